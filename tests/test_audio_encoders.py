"""Audio encoders: every kind end to end with tiny random networks, loading, errors, and VGGish against plain operations."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional
from training_runs import TRAINED_NETWORK, train
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoModel,
    BertConfig,
    BertModel,
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    EncodecConfig,
    EncodecModel,
    ModernBertConfig,
    PeAudioConfig,
    PeAudioEncoderConfig,
    PeAudioFeatureExtractor,
    PeAudioModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.configuration_utils import PreTrainedConfig

from modeling_pcmanet import (
    AudioMobileNetConfig,
    AudioMobileNetFeatureExtractor,
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
    VGGishConfig,
    VGGishModel,
)
from modeling_pcmanet.configuration_encoders import audio_embedding_size, build_audio_config
from modeling_pcmanet.feature_extraction_pcmanet import build_feature_extractor
from modeling_pcmanet.media_writing_pcmanet import write_video
from modeling_pcmanet.modeling_audio_encoders import (
    build_audio_encoder,
    embed_audio,
    embed_windows,
    load_audio_encoder,
)
from pcmanet.pipelines import AudioVisualSegmentationPipeline


ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
SIZE = (32, 48)
RATE = 16_000
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)
AUDIO = np.random.default_rng(1).uniform(-0.5, 0.5, 2 * RATE).astype(np.float32)

AST = {"num_attention_heads": 2, "intermediate_size": 16, "max_length": 64, "num_mel_bins": 32}
CLAP_AUDIO = {
    "spec_size": 64,
    "num_mel_bins": 16,
    "depths": [1, 1],
    "num_attention_heads": [1, 2],
    "patch_embeds_hidden_size": 8,
    "num_hidden_layers": 2,
}
WAV2VEC2 = {
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8, 8],
    "conv_stride": [10, 8],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
    "mask_time_prob": 0.0,  # the loss of one step is compared with that of the next
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "max_source_positions": 50,
    "num_mel_bins": 16,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
DAC = {
    "model_type": "dac",
    "encoder_hidden_size": 4,
    "downsampling_ratios": [8, 10],
    "decoder_hidden_size": 8,
    "codebook_dim": 8,
    "hidden_size": 16,
    "hop_length": 80,
}
PE_AUDIO = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 16,
    "dac_config": DAC,
}
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1}


class Encoder(NamedTuple):
    """One kind of audio encoder.

    Attributes:
        config: Builds its configuration.
        extractor: Builds its feature extractor.
        windows: Of the processor; None for the default, or for patches.
        features: Shape of the features of a frame.
    """

    config: Callable[[], PreTrainedConfig]
    extractor: Callable[[], Any]
    windows: list[list[float]] | None
    features: tuple[int, ...]


ENCODERS = {
    "vggish": Encoder(
        lambda: VGGishConfig(block_channels=[[4], [4], [4]], hidden_size=8, embedding_size=10),
        PCMANetFeatureExtractor,
        None,
        (1, 96, 64),
    ),
    "audio_mobilenet": Encoder(
        lambda: AudioMobileNetConfig(width_multiplier=0.1, num_mel_bins=32),
        lambda: AudioMobileNetFeatureExtractor(feature_size=32),
        [[0.5, 0.0], [0.5, 0.5]],
        (2, 1, 32, 100),
    ),
    "ast": Encoder(
        lambda: ASTConfig(**SMALL, **AST),
        lambda: ASTFeatureExtractor(num_mel_bins=32, max_length=64),
        [[0.25, 0.25]],
        (64, 32),
    ),
    "clap": Encoder(
        lambda: ClapAudioConfig(**{**SMALL, **CLAP_AUDIO}),
        lambda: ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="rand_trunc"),
        [[0.5, 0.5]],
        (1, 101, 16),
    ),
    "clap_fusion": Encoder(
        lambda: ClapAudioConfig(**{**SMALL, **CLAP_AUDIO}, enable_fusion=True),
        lambda: ClapFeatureExtractor(feature_size=16, max_length_s=1),
        [[0.5, 0.0], [0.25, 0.25]],
        (2, 4, 101, 16),
    ),
    "wav2vec2": Encoder(
        lambda: Wav2Vec2Config(**SMALL, **WAV2VEC2),
        Wav2Vec2FeatureExtractor,
        [[0.1, 0.1], [0.0, 0.25]],
        (2, 4000),
    ),
    "whisper": Encoder(
        lambda: WhisperConfig(**WHISPER),
        lambda: WhisperFeatureExtractor(feature_size=16, chunk_length=1),
        [[0.5, 0.5]],
        (16, 100),
    ),
    "pe_audio": Encoder(
        lambda: PeAudioEncoderConfig(**SMALL, **PE_AUDIO),
        lambda: PeAudioFeatureExtractor(hop_length=80),
        [[0.1, 0.1]],
        (1, 9600),
    ),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    write_video(path, np.repeat(FRAMES, 10, axis=0), 10, AUDIO[None], RATE)
    return path


def build_processor(name: str) -> PCMANetProcessor:
    encoder = ENCODERS[name]
    image_processor = PCMANetImageProcessor(size={"height": SIZE[0], "width": SIZE[1]})
    return PCMANetProcessor(image_processor, encoder.extractor(), encoder.windows)


def build_network(name: str, **settings: Any) -> PCMANetForAudioVisualSegmentation:
    torch.manual_seed(0)
    settings = {"num_audio_windows": len(ENCODERS[name].windows or [None]), **settings}
    audio_config = ENCODERS[name].config()
    return PCMANetForAudioVisualSegmentation(
        PCMANetConfig(**{**TRAINED_NETWORK, "audio_config": audio_config, **settings})
    ).eval()


def build_batch(processor: PCMANetProcessor) -> dict[str, torch.Tensor]:
    return dict(processor(videos=FRAMES, audio=AUDIO, sampling_rate=RATE, return_tensors="pt"))


def assert_same_weights(given: torch.nn.Module, expected: torch.nn.Module) -> None:
    states = given.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


@pytest.mark.parametrize("name", ENCODERS)
class TestEveryEncoder:
    def test_learns(self, name):
        model = build_network(name, freeze_audio_encoder=False)
        batch = {**build_batch(build_processor(name)), "labels": torch.zeros(1, 2, *SIZE, dtype=torch.int64)}
        assert batch["input_features"].shape == (1, 2, *ENCODERS[name].features)
        before = {key: value.clone() for key, value in model.model.audio_encoder.named_parameters()}
        loss = model(**batch).loss
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=1e-3).step()
        trained = {key for key, value in model.model.audio_encoder.named_parameters() if value.grad is not None}
        changed = {key for key, value in model.model.audio_encoder.named_parameters() if (value != before[key]).any()}
        # The embedding does not depend on a classifier, an embedding of masked audio, or a branch for longer audio.
        assert len(trained) > 0.3 * len(before) and len(changed) > 0.5 * len(trained)
        with torch.no_grad():
            assert model(**batch).loss < loss

    def test_stays_as_it_is_when_frozen(self, name):
        model = build_network(name).train()
        assert model.training and not any(module.training for module in model.model.audio_encoder.modules())
        before = {key: value.clone() for key, value in model.model.audio_encoder.state_dict().items()}
        projection = model.model.audio_projection.weight.clone()
        batch = {**build_batch(build_processor(name)), "labels": torch.ones(1, 2, *SIZE, dtype=torch.int64)}
        model(**batch).loss.backward()
        torch.optim.SGD(model.parameters(), lr=1e-3).step()
        assert all(torch.equal(value, before[key]) for key, value in model.model.audio_encoder.state_dict().items())
        assert not torch.equal(model.model.audio_projection.weight, projection)

    @torch.no_grad()
    def test_gives_the_same_logits_optimized_saved_and_as_embeddings(self, name, tmp_path):
        model, processor = build_network(name), build_processor(name)
        batch = build_batch(processor)
        logits = model(**batch).logits
        assert logits.shape == (1, 2, 1, *SIZE)
        assert (model.for_inference()(**batch).logits - logits).abs().max() < 1e-5 * logits.abs().max() + 1e-6

        frames = batch.pop("input_features")
        embeddings = embed_windows(model.model.audio_encoder, frames[0], model.config.num_audio_windows)
        width = model.config.num_audio_windows * audio_embedding_size(model.config.audio_config)
        assert embeddings.shape == (2, width)
        assert not torch.allclose(embeddings[0], embeddings[1], rtol=1e-4)  # each frame has its own audio
        torch.testing.assert_close(model(**batch, audio_embeds=embeddings[None]).logits, logits)

        for part in (model, processor):
            part.save_pretrained(tmp_path)
        loaded = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path).eval()
        read = PCMANetProcessor.from_pretrained(tmp_path)
        assert type(loaded.config.audio_config) is type(model.config.audio_config)
        assert type(read.feature_extractor) is type(processor.feature_extractor)
        assert read.audio_windows == ENCODERS[name].windows
        again = build_batch(read)
        assert torch.equal(again["input_features"], frames)
        assert torch.equal(loaded(**again).logits, logits)

    def test_gets_the_same_features_streamed_and_live(self, name, clip):
        processor = build_processor(name)
        called = processor(videos=str(clip), return_tensors="pt")["input_features"][0]
        streamed = torch.stack([frame["input_features"] for frame in processor.stream(str(clip))])
        assert torch.equal(streamed, called)

        # A camera with 10 frames per second, and a microphone with pieces of a fifth of a second.
        camera = np.repeat(FRAMES, 10, axis=0)
        chunks = (
            (camera[2 * k : 2 * k + 2], [k / 5, k / 5 + 0.1], AUDIO[k * RATE // 5 : (k + 1) * RATE // 5])
            for k in range(10)
        )
        live = list(processor.stream_live(chunks, sampling_rate=RATE))
        times = [frame["timestamp"] for frame in live]
        alignment = "end" if processor.audio_windows is None else None
        expected = processor(
            videos=FRAMES,
            audio=AUDIO,
            sampling_rate=RATE,
            timestamps=times,
            audio_alignment=alignment,
            return_tensors="pt",
        )
        torch.testing.assert_close(
            torch.stack([frame["input_features"] for frame in live]),
            expected["input_features"][0],
            rtol=1e-3,
            atol=1e-3,
        )

    def test_segments_a_video(self, name, clip):
        model, processor = build_network(name), build_processor(name)
        pipe = AudioVisualSegmentationPipeline(model=model, processor=processor, device="cpu")
        entries = pipe(str(clip), threshold=0.0)
        assert [segment["mask"].size for entry in entries for segment in entry["segments"]] == [(56, 40)] * 2

    def test_has_a_default_feature_extractor(self, name):
        """Without one that is saved with the weights."""
        config = ENCODERS[name].config()
        processor = PCMANetProcessor.from_pretrained_backbones(audio=config, audio_windows=ENCODERS[name].windows)
        given = ENCODERS[name].extractor()
        assert type(processor.feature_extractor) is type(given)
        extractor = build_feature_extractor(config)
        features = extractor([AUDIO[: RATE // 2]], sampling_rate=extractor.sampling_rate, return_tensors="pt")
        encoder = build_audio_encoder(config).eval()
        if name == "vggish":
            features["input_features"] = features["input_features"][0]
        with torch.no_grad():
            embeddings = embed_audio(encoder, features[extractor.model_input_names[0]])
        assert embeddings.shape == (1, audio_embedding_size(config))

    @pytest.mark.slow
    def test_trains_with_the_command(self, name, tmp_path):
        """Here from the audio encoder of an earlier checkpoint."""
        folder, earlier = tmp_path / "earlier", build_network(name)
        for part in (earlier, build_processor(name)):
            part.save_pretrained(folder)
        inner = {key: value for key, value in TRAINED_NETWORK.items() if key != "audio_config"}
        settings = {} if ENCODERS[name].windows is None else {"audio_windows": ENCODERS[name].windows}
        steps = {"clips": 1, "batch_size": 1, "negative_fraction": 0.0, "evaluations": 1, "evaluation_clips": 1}
        train(tmp_path / "run", audio_encoder=str(folder), configuration=inner, **settings, **steps)
        model = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "run" / "last")
        assert_same_weights(model.model.audio_encoder, earlier.model.audio_encoder)
        processor = PCMANetProcessor.from_pretrained(tmp_path / "run" / "last")
        assert type(processor.feature_extractor) is type(ENCODERS[name].extractor())
        assert processor.audio_windows == ENCODERS[name].windows


def test_the_audio_encoder_of_a_recipe_may_be_a_configuration(tmp_path):
    audio_config = {"model_type": "wav2vec2", **SMALL, **WAV2VEC2}
    steps = {"clips": 2, "audio_pretraining_clips": 1, "evaluations": 1, "evaluation_clips": 1}
    network = {**TRAINED_NETWORK, "audio_config": audio_config}
    train(tmp_path / "run", configuration=network, audio_windows=[[0.1, 0.0], [0.1, 0.1]], **steps)
    model = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "run" / "last")
    processor = PCMANetProcessor.from_pretrained(tmp_path / "run" / "last")
    assert (model.config.audio_config.model_type, model.config.num_audio_windows) == ("wav2vec2", 2)
    assert type(processor.feature_extractor) is Wav2Vec2FeatureExtractor


WHOLE_MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "classifier": (
        lambda: ASTForAudioClassification(ASTConfig(**SMALL, **AST)),
        lambda model: model.audio_spectrogram_transformer,
        "ast",
    ),
    "speech_recognition": (
        lambda: Wav2Vec2ForCTC(Wav2Vec2Config(**SMALL, **WAV2VEC2)),
        lambda model: model.wav2vec2,
        "wav2vec2",
    ),
    "encoder_decoder": (
        lambda: WhisperForConditionalGeneration(WhisperConfig(**WHISPER)),
        lambda model: model.get_encoder(),
        "whisper",
    ),
    "audio_and_text": (
        lambda: ClapModel(
            ClapConfig(
                audio_config={**SMALL, **CLAP_AUDIO, "enable_fusion": True},
                text_config=ClapTextConfig(**SMALL, num_attention_heads=2, intermediate_size=16).to_dict(),
                projection_dim=16,
            )
        ),
        lambda model: model.audio_model,
        "clap_fusion",
    ),
    "audio_and_long_text": (
        lambda: PeAudioModel(
            PeAudioConfig(
                text_config=ModernBertConfig(**SMALL, num_attention_heads=2, intermediate_size=16).to_dict(),
                audio_config={**SMALL, **PE_AUDIO},
            )
        ),
        lambda model: model.audio_encoder,
        "pe_audio",
    ),
    "tagger": (
        lambda: build_audio_encoder(AudioMobileNetConfig(width_multiplier=0.1, num_mel_bins=32)),
        lambda model: model,
        "audio_mobilenet",
    ),
    "segmentation": (lambda: build_network("vggish"), lambda model: model.model.audio_encoder, "vggish"),
}


@pytest.fixture(scope="module")
def visual(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("visual")
    build_network("vggish").model.backbone.save_pretrained(folder)
    PCMANetImageProcessor(image_mean=[0.4] * 3).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("whole", WHOLE_MODELS)
def test_the_audio_encoder_of_a_pretrained_model_is_loaded(whole, visual, tmp_path):
    build, part, name = WHOLE_MODELS[whole]
    torch.manual_seed(3)
    source = build()
    source.save_pretrained(tmp_path)
    ENCODERS[name].extractor().save_pretrained(tmp_path)
    windows = ENCODERS[name].windows
    model = PCMANetForAudioVisualSegmentation.from_pretrained_backbones(
        visual, tmp_path, preset="tiny", num_audio_windows=len(windows or [None])
    )
    assert_same_weights(model.model.audio_encoder, part(source))
    processor = PCMANetProcessor.from_pretrained_backbones(
        visual, tmp_path, audio_windows=windows, size={"height": SIZE[0], "width": SIZE[1]}
    )
    assert processor.image_processor.image_mean == (0.4, 0.4, 0.4)
    assert type(processor.feature_extractor) is type(ENCODERS[name].extractor())
    with torch.no_grad():
        assert model(**build_batch(processor)).logits.isfinite().all()


def test_a_folder_without_feature_extractor_gives_the_default_one(tmp_path):
    build_network("ast").model.audio_encoder.save_pretrained(tmp_path)
    processor = PCMANetProcessor.from_pretrained_backbones(audio=tmp_path, audio_windows=[[0.25, 0.25]])
    assert isinstance(processor.feature_extractor, ASTFeatureExtractor)
    assert (processor.feature_extractor.num_mel_bins, processor.audio_windows) == (32, [[0.25, 0.25]])


@pytest.mark.parametrize(("name", "used"), [("ast", 0.655), ("clap", 1.0), ("whisper", 1.0)])
def test_windows_that_a_feature_extractor_would_cut_are_refused(name, used):
    image_processor, extractor = PCMANetImageProcessor(), ENCODERS[name].extractor()
    PCMANetProcessor(image_processor, extractor, [[used, 0.0], [0.1, 0.2]])
    message = (
        f"window of 4 s, of which {type(extractor).__name__} would use only {used:g} s. Pass shorter audio_windows"
    )
    with pytest.raises(ValueError, match=message):
        PCMANetProcessor(image_processor, extractor)
    # What is used is all of the window: the last samples matter, and nothing is drawn at random.
    window = np.random.default_rng(0).uniform(-1, 1, round(used * extractor.sampling_rate)).astype(np.float32)
    other = np.append(window[:-100], np.zeros(100, np.float32))
    first, again, changed = (
        extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="np")[extractor.model_input_names[0]]
        for wave in (window, window, other)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, changed)


def test_a_model_that_is_no_audio_encoder_is_refused(tmp_path):
    bert = BertConfig(**SMALL, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    with pytest.raises(ValueError, match="input is input_features or input_values, got BertModel with input_ids"):
        build_network("vggish", audio_config=bert)
    BertModel(bert).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Expected an audio encoder.* got BertModel with input_ids"):
        load_audio_encoder(tmp_path)
    with pytest.raises(ValueError, match="No default feature extractor is known for BertConfig"):
        PCMANetProcessor.from_pretrained_backbones(audio=bert)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "nonesuch"}, "audio_mobilenet or an audio model of transformers.*got 'nonesuch'"),
        ({"model_type": "segformer"}, "SegformerConfig has none of embedding_size, hidden_size, d_model"),
        ({"model_type": "musicgen"}, "MusicgenConfig has none of embedding_size"),
    ],
)
def test_a_configuration_of_no_audio_encoder_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PCMANetConfig(audio_config=settings)


def test_an_adapter_sets_the_width():
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": [8] * 7}
    settings = {"model_type": "wav2vec2", "hidden_size": 16, "output_hidden_size": 24, **sizes}
    for add_adapter, width in ((False, 16), (True, 24)):
        config = PCMANetConfig(audio_config={**settings, "add_adapter": add_adapter, "num_codevector_groups": 1})
        encoder = build_audio_encoder(config.audio_config).eval()
        assert embed_audio(encoder, torch.zeros(1, 16000)).shape[-1] == width == config.audio_embeds_size


def test_a_model_without_hidden_states_is_refused():
    codec = EncodecModel(EncodecConfig(hidden_size=8, num_filters=4, num_lstm_layers=1, codebook_size=8)).eval()
    with pytest.raises(
        ValueError, match="output has last_hidden_state or audio_embeds or pooler_output.*EncodecModel"
    ):
        embed_audio(codec, torch.zeros(1, 1, 640))


def test_missing_weights_are_refused(tmp_path):
    model = build_network("ast").model.audio_encoder
    state = {key: value for key, value in model.state_dict().items() if key != "layernorm.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks weights of a ASTModel, such as layernorm.weight \(1 of"):
        load_audio_encoder(tmp_path)


def test_the_audio_part_stands_for_a_configuration_with_several():
    config = ClapConfig(audio_config={**SMALL, **CLAP_AUDIO})
    assert build_audio_config(config) is config.audio_config
    assert build_audio_config(PCMANetConfig.from_preset("small")).model_type == "audio_mobilenet"


def test_the_number_of_windows_has_to_fit():
    batch = build_batch(build_processor("ast"))
    with pytest.raises(ValueError, match=r"must be \(batch, frames, windows, ...\) = \(1, 2, 2, ...\)"):
        build_network("ast", num_audio_windows=2)(**batch)
    with pytest.raises(ValueError, match="`audio_embeds` must be .* 32"):
        build_network("ast", num_audio_windows=2)(
            pixel_values=batch["pixel_values"], audio_embeds=torch.zeros(1, 2, 16)
        )


def test_an_encoder_of_your_own_is_used_trained_and_loaded(clip, tmp_path):
    """The program in docs/guides/custom_blocks.md."""
    page = (ROOT / "docs" / "guides" / "custom_blocks.md").read_text()
    (program,) = re.findall(r"```python\n(import torch.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["logits"].shape == (1, 5, 1, 224, 224)
    model, processor = names["model"], names["processor"]
    names["logits"].mean().backward()
    assert model.model.audio_encoder.convolution.weight.grad.abs().max() > 0
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    loaded = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path)
    assert type(loaded.model.audio_encoder) is names["WaveformModel"]
    with torch.no_grad():
        batches = [
            one(videos=str(clip), return_tensors="pt")
            for one in (processor, PCMANetProcessor.from_pretrained(tmp_path))
        ]
        assert torch.equal(loaded(**batches[1]).logits, model.eval()(**batches[0]).logits)


@torch.no_grad()
def test_checkpoints_of_before_audio_encoders_were_exchangeable_are_loaded(clip, tmp_path):
    """`first_checkpoint` is the demo model as it was first saved; its weights have not changed."""
    demo = ROOT / "examples" / "demo_model"
    for file in (FIXTURES / "first_checkpoint").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").symlink_to(demo / "model.safetensors")
    assert "num_audio_windows" not in json.loads((tmp_path / "config.json").read_text())
    assert "audio_windows" not in json.loads((tmp_path / "processor_config.json").read_text())

    old, loading = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert (old.config.audio_config.model_type, old.config.num_audio_windows) == ("vggish", 1)
    new = PCMANetForAudioVisualSegmentation.from_pretrained(demo)
    batches = [
        PCMANetProcessor.from_pretrained(folder)(videos=str(clip), return_tensors="pt") for folder in (tmp_path, demo)
    ]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[1])
    assert torch.equal(old.eval()(**batches[0]).logits, new.eval()(**batches[1]).logits)


class TestVGGish:
    TINY = VGGishConfig(
        block_channels=[[2], [3, 4]], hidden_size=8, embedding_size=6, num_mel_frames=8, num_mel_bins=4
    )

    @pytest.fixture
    def model(self) -> VGGishModel:
        torch.manual_seed(0)
        return VGGishModel(self.TINY).eval()

    def test_equals_plain_operations(self, model):
        """Convolutions with ReLU and max pooling, channels last before flattening, ReLU after the last layer."""
        patches = torch.randn(3, 1, 8, 4)
        weights = model.state_dict()
        states = patches
        for name, pooled in (("features.0", True), ("features.3", False), ("features.5", True)):
            states = functional.conv2d(states, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).relu()
            states = functional.max_pool2d(states, 2) if pooled else states
        states = torch.stack([states[:, :, row, column] for row in range(2) for column in range(1)], dim=1).flatten(1)
        for name in ("embeddings.0", "embeddings.2", "embeddings.4"):
            states = (states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]).relu()
        torch.testing.assert_close(model(patches).audio_embeds, states)

    def test_published_sizes(self):
        with torch.device("meta"):
            model = VGGishModel(VGGishConfig())
        assert sum(parameter.numel() for parameter in model.parameters()) == 72_141_184
        names = {name.rsplit(".", 1)[0] for name in model.state_dict()}
        expected = {
            *(f"features.{index}" for index in (0, 3, 6, 8, 11, 13)),
            *(f"embeddings.{index}" for index in (0, 2, 4)),
        }
        assert names == expected

    @pytest.mark.parametrize("shape", [(2, 8, 4), (2, 1, 4, 8), (2, 3, 8, 4)])
    def test_invalid_patches_raise(self, model, shape):
        with pytest.raises(ValueError, match=r"must be \(patches, 1, 8, 4\), got"):
            model(torch.zeros(shape))

    def test_assigned_configuration_fields_are_validated(self):
        config = VGGishConfig()
        config.hidden_size = 0
        with pytest.raises(StrictDataclassError, match="`hidden_size` must be positive, got 0"):
            VGGishModel(config)

    def test_save_and_load(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").is_file()
        patches = torch.randn(2, 1, 8, 4)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert isinstance(loaded, VGGishModel)
        assert torch.equal(loaded(patches).audio_embeds, model(patches).audio_embeds)
