"""AudioMobileNet: configuration, feature extractor, model and converter, against recorded values and a plain network."""

import csv

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from modeling_pcmanet.configuration_encoders import AudioMobileNetConfig
from modeling_pcmanet.convert_pcmanet_to_hf import convert_state_dict, main
from modeling_pcmanet.feature_extraction_pcmanet import AudioMobileNetFeatureExtractor, kaldi_mel_filters
from modeling_pcmanet.modeling_audio_encoders import AudioMobileNetModel, embed_audio


# mn04 as published: input, expanded and output channels, kernel, stride, channels of squeeze-excitation (0 for none).
MN04 = (
    (8, 8, 8, 3, 1, 0),
    (8, 24, 16, 3, 2, 0),
    (16, 32, 16, 3, 1, 0),
    (16, 32, 16, 5, 2, 8),
    (16, 48, 16, 5, 1, 16),
    (16, 48, 16, 5, 1, 16),
    (16, 96, 32, 3, 2, 0),
    (32, 80, 32, 3, 1, 0),
    (32, 72, 32, 3, 1, 0),
    (32, 72, 32, 3, 1, 0),
    (32, 192, 48, 3, 1, 48),
    (48, 272, 48, 3, 1, 72),
    (48, 272, 64, 5, 2, 72),
    (64, 384, 64, 5, 1, 96),
    (64, 384, 64, 5, 1, 96),
)
FIRST_HARD_SWISH = 6  # blocks before it use ReLU
RECORDED_LOG_MEL = {  # of the published front end: mean, and mel band 10 at frames 5 to 9
    (0, 32000): (0.32437315583229065, [-0.649292, -1.224401, -0.561699, -0.723821, -0.556439]),
    (1, 30720): (0.31977778673171997, [-0.764552, -0.633484, -0.699468, -1.147588, -1.00072]),
    (2, 160000): (0.30745527148246765, [-0.594769, -0.758181, -0.678858, -0.879938, -1.059886]),
}


def recorded_waveform(seed: int, samples: int) -> torch.Tensor:
    """Return the waveform for which the published front end was recorded."""
    time = torch.arange(samples) / 32000
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    tone = torch.sin(2 * torch.pi * (300 + 200 * seed) * time) * (0.5 + 0.5 * torch.sin(2 * torch.pi * 3 * time))
    return 0.3 * tone + 0.02 * noise


def test_spectrograms_are_made_on_the_cpu_whatever_the_default_device_is():
    waveform = recorded_waveform(0, 32000)
    expected = AudioMobileNetFeatureExtractor()(waveform, 32000, return_tensors="pt")["input_features"]
    kaldi_mel_filters.cache_clear()
    try:
        with torch.device("meta"):  # as `torch.set_default_device`; a tensor there has no values
            features = AudioMobileNetFeatureExtractor()(waveform, 32000, return_tensors="pt")["input_features"]
    finally:
        kaldi_mel_filters.cache_clear()
    assert torch.equal(features, expected)


def published_modules(index: int) -> dict[str, str]:
    """Return the published prefix of each module of a block."""
    in_channels, expanded, _, _, _, squeezed = MN04[index]
    names = [
        *(["expansion"] if expanded != in_channels else []),
        "depthwise",
        *(["squeeze"] if squeezed else []),
        "projection",
    ]
    return {name: f"features.{index + 1}.block.{position}" for position, name in enumerate(names)}


def published_weights(num_labels: int = 527) -> dict[str, torch.Tensor]:
    """Make a state dict with the names and shapes of mn04 and random values."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def add_convolution(prefix: str, *shape: int) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        weights[f"{prefix}.0.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        weights[f"{prefix}.1.weight"] = 1 + 0.1 * torch.randn(shape[0], generator=generator)
        weights[f"{prefix}.1.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
        weights[f"{prefix}.1.running_mean"] = 0.1 * torch.randn(shape[0], generator=generator)
        weights[f"{prefix}.1.running_var"] = 0.5 + torch.rand(shape[0], generator=generator)
        weights[f"{prefix}.1.num_batches_tracked"] = torch.tensor(0)

    def add_linear(prefix: str, outputs: int, inputs: int) -> None:
        weights[f"{prefix}.weight"] = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
        weights[f"{prefix}.bias"] = 0.1 * torch.randn(outputs, generator=generator)

    add_convolution("features.0", 8, 1, 3, 3)
    for index, (in_channels, expanded, out_channels, kernel, _, squeezed) in enumerate(MN04):
        modules = published_modules(index)
        if "expansion" in modules:
            add_convolution(modules["expansion"], expanded, in_channels, 1, 1)
        add_convolution(modules["depthwise"], expanded, 1, kernel, kernel)
        if squeezed:
            add_linear(f"{modules['squeeze']}.conc_se_layers.0.fc1", squeezed, expanded)
            add_linear(f"{modules['squeeze']}.conc_se_layers.0.fc2", expanded, squeezed)
        add_convolution(modules["projection"], out_channels, expanded, 1, 1)
    add_convolution("features.16", 384, 64, 1, 1)
    add_linear("classifier.2", 512, 384)
    add_linear("classifier.5", num_labels, 512)
    return weights


def plain_outputs(weights: dict[str, torch.Tensor], spectrograms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute embedding and logits from published weights, written as plain function calls."""

    def convolve(x: torch.Tensor, prefix: str, stride: int = 1) -> torch.Tensor:
        weight = weights[f"{prefix}.0.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(weights[f"{prefix}.1.{name}"] for name in names), eps=1e-3)

    def linear(x: torch.Tensor, prefix: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{prefix}.weight"], weights[f"{prefix}.bias"])

    x = functional.hardswish(convolve(spectrograms, "features.0", stride=2))
    for index, (in_channels, _, out_channels, _, stride, _) in enumerate(MN04):
        activation = functional.relu if index < FIRST_HARD_SWISH else functional.hardswish
        modules, before = published_modules(index), x
        if "expansion" in modules:
            x = activation(convolve(x, modules["expansion"]))
        x = activation(convolve(x, modules["depthwise"], stride))
        if "squeeze" in modules:
            means = x.mean(dim=(2, 3))
            hidden = functional.relu(linear(means, f"{modules['squeeze']}.conc_se_layers.0.fc1"))
            x = x * torch.sigmoid(linear(hidden, f"{modules['squeeze']}.conc_se_layers.0.fc2"))[:, :, None, None]
        x = convolve(x, modules["projection"])
        x = x + before if stride == 1 and in_channels == out_channels else x
    embedding = functional.hardswish(convolve(x, "features.16")).mean(dim=(2, 3))
    return embedding, linear(functional.hardswish(linear(embedding, "classifier.2")), "classifier.5")


def test_sizes_are_those_of_mn04():
    config = AudioMobileNetConfig()
    sizes = [(b.in_channels, b.expanded_channels, b.out_channels, b.kernel_size, b.stride) for b in config.blocks]
    assert sizes == [row[:5] for row in MN04]
    assert [block.squeezed_channels for block in config.blocks] == [row[5] for row in MN04]
    assert (config.embedding_size, config.classifier_size, config.num_labels) == (384, 512, 527)
    assert sum(parameter.numel() for parameter in AudioMobileNetModel(config).parameters()) == 983_599


@pytest.mark.parametrize("settings", [{"width_multiplier": 0.0}, {"num_mel_bins": 0}, {"classifier_dropout": 1.0}])
def test_sizes_out_of_range_are_refused(settings):
    with pytest.raises(Exception, match=next(iter(settings))):
        AudioMobileNetConfig(**settings)


@pytest.mark.parametrize("seed, samples", RECORDED_LOG_MEL)
def test_spectrograms_equal_the_recorded_ones(seed, samples):
    extractor = AudioMobileNetFeatureExtractor()
    features = extractor(recorded_waveform(seed, samples), sampling_rate=32000, return_tensors="pt")["input_features"]
    mean, band = RECORDED_LOG_MEL[seed, samples]
    assert features.shape == (1, 1, 128, samples // 320)
    assert features.mean().item() == pytest.approx(mean, abs=1e-5)
    assert features[0, 0, 10, 5:10].tolist() == pytest.approx(band, abs=1e-4)


def test_a_batch_equals_its_waveforms():
    extractor = AudioMobileNetFeatureExtractor()
    waves = [recorded_waveform(seed, 32000).numpy() for seed in (0, 1)]
    batch = extractor(waves, sampling_rate=32000)["input_features"]
    assert isinstance(batch, np.ndarray) and batch.dtype == np.float32
    for row, wave in zip(batch, waves, strict=True):
        np.testing.assert_allclose(row, extractor(wave, sampling_rate=32000)["input_features"][0], atol=1e-6)


@pytest.mark.parametrize(
    "audio, rate, message",
    [
        (np.zeros(3200), 16000, "Expected audio at 32000 Hz, got sampling_rate=16000"),
        (np.zeros(3200), None, "got sampling_rate=None"),
        ([np.zeros((2, 3200))], 32000, r"got the shapes \[\(2, 3200\)\]"),
        ([], 32000, r"got the shapes \[\]"),
        (np.zeros(513), 32000, "at least 514 samples, got 513. Pad it"),
        ([np.zeros(3200), np.full(3200, np.nan)], 32000, "3200 of 3200 values that are NaN"),
        (np.full(3200, 20000.0), 32000, "Divide int16 samples"),
    ],
)
def test_audio_that_does_not_fit_is_refused(audio, rate, message):
    with pytest.raises(ValueError, match=message):
        AudioMobileNetFeatureExtractor()(audio, sampling_rate=rate)


def test_integers_are_divided_by_their_full_scale():
    extractor = AudioMobileNetFeatureExtractor()
    integers = np.random.default_rng(0).integers(-20000, 20000, 3200, dtype=np.int16)
    features = [extractor(wave, sampling_rate=32000)["input_features"] for wave in (integers, integers / 32768)]
    np.testing.assert_array_equal(*features)


def test_the_default_data_type_has_no_effect():
    waveform = recorded_waveform(0, 32000)
    expected = AudioMobileNetFeatureExtractor()(waveform, 32000, return_tensors="pt")["input_features"]
    kaldi_mel_filters.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        features = [AudioMobileNetFeatureExtractor()(waveform, 32000, return_tensors="pt")["input_features"]]
        torch.set_default_dtype(torch.float32)
        features.append(AudioMobileNetFeatureExtractor()(waveform, 32000, return_tensors="pt")["input_features"])
    finally:
        torch.set_default_dtype(torch.float32)
        kaldi_mel_filters.cache_clear()
    for each in features:
        assert each.dtype == torch.float32
        torch.testing.assert_close(each, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_length": 2048}, "window_length of at most fft_length, got hop_length=320, window_length=2048"),
        ({"window_length": 0}, "window_length=0"),
        ({"hop_length": 0}, "positive hop_length"),
        ({"max_frequency": 16001.0}, "at most half the sampling_rate, 16000 Hz, got 16001"),
        ({"max_frequency": 0.0}, "got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AudioMobileNetFeatureExtractor(**settings)


def test_an_unknown_keyword_is_refused():
    """A keyword of other feature extractors, such as `max_length`, would have no effect."""
    with pytest.raises(TypeError, match="max_length"):
        AudioMobileNetFeatureExtractor()(np.zeros(3200), sampling_rate=32000, max_length=1600)


def test_converted_weights_give_the_outputs_of_a_plain_network():
    weights = published_weights()
    conversion = convert_state_dict(weights)
    assert (conversion.title, dict(conversion.dropped)) == ("AudioMobileNet mn04", {})
    spectrograms = torch.randn(3, 1, 128, 100, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = conversion.model(spectrograms, output_logits=True)
        embedding, logits = plain_outputs(weights, spectrograms)
    torch.testing.assert_close(outputs.pooler_output, embedding, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs.logits, logits, atol=1e-4, rtol=1e-4)
    assert conversion.model(spectrograms[:1]).logits is None


def test_other_spectrograms_are_refused():
    model = AudioMobileNetModel(AudioMobileNetConfig(num_mel_bins=32))
    with pytest.raises(ValueError, match=r"32 mel bands, time frames\), got \(1, 1, 128, 100\)"):
        model(torch.zeros(1, 1, 128, 100))


def test_a_converted_file_is_loaded_with_its_classes(tmp_path):
    torch.save(published_weights(num_labels=3), tmp_path / "mn04.pt")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("index", "mid", "display_name"), (0, "/m/a", "Speech"), (1, "/m/b", "Dog"), (2, "/m/c", "Bell")]
        )
    options = [
        "--checkpoint",
        tmp_path / "mn04.pt",
        "--labels",
        tmp_path / "labels.csv",
        "--output",
        tmp_path / "mn04",
    ]
    main([str(option) for option in options])
    config = AutoConfig.from_pretrained(tmp_path / "mn04")
    assert config.id2label == {0: "Speech", 1: "Dog", 2: "Bell"}
    model = AutoModel.from_pretrained(tmp_path / "mn04").eval()
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "mn04")
    features = extractor(recorded_waveform(0, 32000), sampling_rate=32000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        _, expected = plain_outputs(published_weights(num_labels=3), features)
        torch.testing.assert_close(model(features, output_logits=True).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([("index", "name"), (0, "Speech")], "Expected the columns index and display_name"),
        ([("index", "display_name"), (1, "Speech")], "Expected the indices 0 to 0"),
        ([("index", "display_name"), (0, "Speech")], "Expected 3 class names"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path, rows, message):
    torch.save(published_weights(num_labels=3), tmp_path / "mn04.pt")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    options = [
        "--checkpoint",
        tmp_path / "mn04.pt",
        "--labels",
        tmp_path / "labels.csv",
        "--output",
        tmp_path / "mn04",
    ]
    with pytest.raises(SystemExit, match=message):
        main([str(option) for option in options])
    assert not (tmp_path / "mn04").exists()


GROUPS = {"animal": [0, 3], "bell": [1]}


def small_model(**settings) -> AudioMobileNetModel:
    torch.manual_seed(0)
    sizes = {"width_multiplier": 0.1, "num_mel_bins": 32, "num_labels": 4, "initializer_range": 0.5}
    return AudioMobileNetModel(AudioMobileNetConfig(**sizes, **settings)).eval()


@torch.no_grad()
def test_scores_of_groups_are_standardized_and_clamped():
    spectrograms = torch.randn(3, 1, 32, 50, generator=torch.Generator().manual_seed(1))
    logits = small_model()(spectrograms, output_logits=True).logits
    scores = torch.stack([(logits[:, 0].exp() + logits[:, 3].exp()).log(), logits[:, 1]], dim=1)
    assert scores.std() > 1e-3

    model = small_model(score_groups=GROUPS)
    outputs = model(spectrograms)
    torch.testing.assert_close(outputs.logits, logits)
    torch.testing.assert_close(outputs.audio_embeds, scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embed_audio(model, spectrograms), outputs.audio_embeds)
    assert (model.config.embedding_size, model.config.feature_size) == (2, outputs.pooler_output.shape[1])

    # Five scales above the mean, and so far from it that the value is clamped.
    means, scales = [scores[0, 0].item() - 5.0, scores[0, 1].item()], [1.0, 2.0]
    embeddings = small_model(score_groups=GROUPS, score_means=means, score_scales=scales)(spectrograms).audio_embeds
    assert embeddings[0].tolist() == pytest.approx([5.0, 0.0], abs=1e-4)
    expected = (scores[:, 1] - means[1]) / scales[1]
    torch.testing.assert_close(embeddings[:, 1], expected, atol=1e-5, rtol=1e-5)
    for mean, clamped in ((1000.0, -4.0), (-1000.0, 12.0)):
        model = small_model(score_groups=GROUPS, score_means=[mean, mean])
        assert (model(spectrograms).audio_embeds == clamped).all()


def test_without_groups_the_embedding_is_the_feature_map():
    model = small_model()
    assert model.config.embedding_size == model.config.feature_size
    assert model(torch.zeros(1, 1, 32, 50)).audio_embeds is None


@torch.no_grad()
def test_saved_groups_are_loaded(tmp_path):
    model = small_model(score_groups=GROUPS, score_means=[0.25, -0.5], score_scales=[1.5, 2.0])
    model.save_pretrained(tmp_path)
    loaded = AudioMobileNetModel.from_pretrained(tmp_path).eval()
    assert list(loaded.config.score_groups.items()) == list(GROUPS.items())
    assert (loaded.config.score_means, loaded.config.score_scales) == ([0.25, -0.5], [1.5, 2.0])
    spectrograms = torch.randn(2, 1, 32, 50)
    torch.testing.assert_close(loaded(spectrograms).audio_embeds, model(spectrograms).audio_embeds)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"score_groups": {"dog": [0, 4]}}, r"class indices below 4, got \[0, 4\] for dog"),
        ({"score_groups": {"dog": [-1]}}, r"class indices below 4, got \[-1\] for dog"),
        ({"score_groups": {"dog": []}}, r"class indices below 4, got \[\] for dog"),
        ({"score_groups": GROUPS, "score_means": [0.0]}, "one value for each of 2 `score_groups`"),
        ({"score_groups": GROUPS, "score_scales": [1.0, 0.0]}, r"`score_scales` \(positive\)"),
        ({"score_means": [0.0]}, "one value for each of 0 `score_groups`"),
        ({"score_groups": {"dog": [0], "cat": [1]}}, r"must be sorted by name.*got \['dog', 'cat'\]"),
    ],
)
def test_groups_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(Exception, match=message):
        small_model(**settings)
