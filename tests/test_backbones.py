"""Visual backbones: EfficientNet-Lite, and every kind of backbone end to end with tiny random networks."""

import importlib.util
import json
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_model import tiny_batch, tiny_config
from torch.nn import functional
from training_runs import TRAINED_NETWORK, train
from transformers import (
    AutoBackbone,
    AutoConfig,
    BeitConfig,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    Dinov2Config,
    Dinov2Model,
    HieraConfig,
    HieraForImageClassification,
    PvtV2Config,
    ResNetConfig,
    SwinConfig,
    SwinForImageClassification,
    TextNetConfig,
    TimmBackboneConfig,
)

from modeling_pcmanet import (
    EfficientNetLiteBackbone,
    EfficientNetLiteConfig,
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
)
from modeling_pcmanet.configuration_encoders import ALL_STAGES, PVT_V2_B5, RESNET_50, build_backbone_config
from modeling_pcmanet.convert_pcmanet_to_hf import convert_state_dict
from modeling_pcmanet.media_writing_pcmanet import write_video
from modeling_pcmanet.modeling_backbones import build_backbone, feature_strides, load_backbone
from pcmanet.pipelines import AudioVisualSegmentationPipeline


NEEDS_TIMM = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: pip install 'pcmanet[timm]'"
)

SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
CONVNEXT = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
HIERA = {
    "embed_dim": 8,
    "image_size": [64, 64],
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "masked_unit_size": [8, 8],
}
DINO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
PVT = {
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
BACKBONES = {
    "pvt_v2": lambda: PvtV2Config(**PVT, out_features=ALL_STAGES),
    "resnet": lambda: ResNetConfig(**RESNET, out_features=ALL_STAGES),
    "swin": lambda: SwinConfig(**SWIN, out_features=ALL_STAGES),
    "convnext": lambda: ConvNextConfig(**CONVNEXT, out_features=ALL_STAGES),
    "efficientnet_lite": lambda: EfficientNetLiteConfig(width_multiplier=0.25, out_features=ALL_STAGES),
    "dinov2": lambda: Dinov2Config(**DINO, out_features=["stage2"]),
    "timm": lambda: TimmBackboneConfig(backbone="tf_efficientnet_lite0", out_indices=[1, 2, 3, 4]),
    "timm_nhwc": lambda: TimmBackboneConfig(backbone="swin_tiny_patch4_window7_224", out_indices=[0, 1, 2, 3]),
}
# A timm Swin is built for one size.
SIZES = {"timm_nhwc": (224, 224)}
MARKS = {
    "timm": [NEEDS_TIMM],
    "timm_nhwc": [NEEDS_TIMM, pytest.mark.slow],
}  # the smallest Swin of timm has 28 million weights
PARAMETERS = [pytest.param(name, marks=MARKS.get(name, [])) for name in BACKBONES]


def build_network(name: str, **settings: Any) -> PCMANetForAudioVisualSegmentation:
    """Build a tiny network with a backbone, with statistics of BatchNorm that are not the identity."""
    torch.manual_seed(0)
    neck = "feature_pyramid" if name == "dinov2" else "convolution"
    model = PCMANetForAudioVisualSegmentation(
        PCMANetConfig(**{**TRAINED_NETWORK, "backbone_config": BACKBONES[name](), "neck": neck, **settings})
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.75, 1.25)
    return model.eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_backbone_works_from_training_to_the_pipeline(name, tmp_path):
    model = build_network(name)
    height, width = SIZES.get(name, (60, 90))  # no multiple of any stride
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(1, 2, 3, height, width, generator=generator)
    batch = {"pixel_values": frames, "input_features": torch.randn(1, 2, 1, 96, 64, generator=generator)}

    # One training step changes the backbone and lowers the loss.
    labels = torch.zeros(1, 2, height, width, dtype=torch.int64)
    before = {key: value.clone() for key, value in model.model.backbone.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = model(**batch, labels=labels).loss
    loss.backward()
    optimizer.step()
    changed = [not torch.equal(value, before[key]) for key, value in model.model.backbone.named_parameters()]
    assert sum(changed) > 0.9 * len(changed)
    with torch.no_grad():
        assert model(**batch, labels=labels).loss < loss

        logits = model(**batch).logits
        assert logits.shape == (1, 2, 1, height, width)
        scale = logits.abs().max()
        assert (model.for_inference()(**batch).logits - logits).abs().max() < 1e-5 * scale + 1e-6

        processor = PCMANetProcessor(
            PCMANetImageProcessor(size={"height": height, "width": width}), PCMANetFeatureExtractor()
        )
        for part in (model, processor):
            part.save_pretrained(tmp_path / "saved")
        loaded = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "saved").eval()
        assert torch.equal(loaded(**batch).logits, logits)

    clip = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "clip.mp4", clip, 1, np.zeros(32000, np.float32), 16000)
    pipe = AudioVisualSegmentationPipeline(model=loaded, processor=processor, device="cpu")
    assert len(pipe(str(tmp_path / "clip.mp4"))) == 2


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_saved_backbone_is_loaded_with_its_neck(name, tmp_path):
    model = build_network(name)
    model.model.backbone.save_pretrained(tmp_path)
    loaded = PCMANetForAudioVisualSegmentation.from_pretrained_backbones(tmp_path, preset="tiny")
    assert loaded.config.neck == model.config.neck
    weights = loaded.model.backbone.state_dict()
    for key, weight in model.model.backbone.state_dict().items():
        assert torch.equal(weights[key], weight), key


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (SwinForImageClassification, SwinConfig(**SWIN)),
        (ConvNextForImageClassification, ConvNextConfig(**CONVNEXT)),
        (ConvNextV2ForImageClassification, ConvNextV2Config(**CONVNEXT)),
        (HieraForImageClassification, HieraConfig(**HIERA)),
    ],
)
def test_a_classification_checkpoint_gets_new_norms_with_a_warning(model_class, config, tmp_path, caplog):
    pretrained = model_class(config)
    pretrained.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert "hidden_states_norms.stage1.weight" in caplog.text
    assert "newly initialized" in caplog.text
    published = pretrained.state_dict()
    new = {key for key in backbone.state_dict() if key.startswith("hidden_states_norms.")}
    prefix = pretrained.base_model_prefix
    for key, weight in backbone.state_dict().items():
        name = next(
            (name for name in (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")) if name in published), None
        )
        assert (key in new) != (name is not None and torch.equal(weight, published[name])), key
    assert len(new) == 8
    # Weights of the network itself must be there.
    kept = {key: weight for key, weight in published.items() if "embeddings" not in key}
    pretrained.save_pretrained(tmp_path / "incomplete", state_dict=kept)
    with pytest.raises(ValueError, match="lacks weights of a .*Backbone"):
        load_backbone(tmp_path / "incomplete")


def test_a_plain_vit_gets_a_feature_pyramid(tmp_path):
    Dinov2Model(Dinov2Config(**DINO)).save_pretrained(tmp_path)
    model = PCMANetForAudioVisualSegmentation.from_pretrained_backbones(tmp_path, preset="tiny")
    assert (model.config.neck, model.config.backbone_config.out_features) == ("feature_pyramid", ["stage2"])
    feature_map = model.model.backbone(model.model.pyramid.fit(torch.zeros(1, 3, 112, 130))).feature_maps[0]
    assert feature_map.shape == (1, 16, 8, 10)
    # Patches of 14 pixels: strides 3.5, 7, 14 and 28.
    assert [tuple(level.shape[1:]) for level in model.model.pyramid(feature_map)] == [
        (4, 32, 40),
        (8, 16, 20),
        (16, 8, 10),
        (16, 4, 5),
    ]


@pytest.mark.parametrize(
    ("backbone", "neck", "message"),
    [
        (Dinov2Config(**DINO, out_features=["stage2"]), "convolution", "plain vision transformer.*feature_pyramid"),
        (
            Dinov2Config(**{**DINO, "num_hidden_layers": 4}, out_features=ALL_STAGES),
            "convolution",
            "all have the same",
        ),
        (Dinov2Config(**DINO, out_features=["stage1", "stage2"]), "feature_pyramid", "expected one name in"),
        (SwinConfig(**SWIN, out_features=["stem", *ALL_STAGES[:3]]), "convolution", "strides 4, 8, 16, 32.*stem"),
        (ResNetConfig(**RESNET, out_features=ALL_STAGES[:3]), "convolution", "must name 4 feature maps"),
    ],
)
def test_a_backbone_with_other_strides_is_refused_in_the_configuration(backbone, neck, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(backbone_config=backbone, neck=neck)


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [
        (SwinConfig(**SWIN, patch_size=2, out_features=ALL_STAGES), r"\[2, 4, 8, 16\]"),
        (ResNetConfig(**RESNET, downsample_in_first_stage=True, out_features=ALL_STAGES), r"\[8, 16, 32, 64\]"),
        (PvtV2Config(**PVT, strides=[2, 2, 2, 2], out_features=ALL_STAGES), r"\[2, 4, 8, 16\]"),
    ],
)
def test_a_backbone_with_other_strides_is_refused_when_the_model_is_built(backbone, strides):
    with pytest.raises(ValueError, match=f"have the strides {strides}, but the decoder needs"):
        PCMANetForAudioVisualSegmentation(tiny_config(backbone_config=backbone))


@pytest.mark.parametrize("config", [PVT_V2_B5, RESNET_50, {**RESNET_50, "downsample_in_first_stage": True}])
def test_known_strides_are_those_of_the_feature_maps(config):
    with torch.device("meta"):
        backbone = build_backbone(build_backbone_config(config)).eval()
        maps = backbone(torch.empty(1, 3, 64, 64)).feature_maps
    assert feature_strides(backbone) == [64 // feature_map.shape[-1] for feature_map in maps]


@pytest.mark.parametrize(
    "config",
    [
        TextNetConfig(out_features=ALL_STAGES),
        BeitConfig(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=16,
            add_fpn=True,
            reshape_hidden_states=True,
            out_features=ALL_STAGES,
        ),
    ],
    ids=["without a number of channels", "with a feature pyramid"],
)
def test_strides_of_other_backbones_are_found(config):
    config = PCMANetConfig(backbone_config=config).backbone_config
    assert feature_strides(build_backbone(config)) == [4, 8, 16, 32]


def test_unknown_backbone_is_refused():
    with pytest.raises(
        ValueError,
        match="Expected `backbone_config` with a known `model_type`, efficientnet_lite or a backbone.*got 'nonesuch'",
    ):
        PCMANetConfig(backbone_config={"model_type": "nonesuch"})


class TestNormalization:
    def test_is_that_of_the_image_processor_next_to_the_weights(self, tmp_path):
        saved = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "rescale_factor": 1 / 127.5, "size": 384}
        settings = {"image_processor_type": "ViTImageProcessor", "do_normalize": True, **saved}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        ResNetConfig(**RESNET).save_pretrained(tmp_path)
        processor = PCMANetImageProcessor.from_backbone(tmp_path, do_resize=False)
        pixels = processor(np.full((32, 32, 3), 255, np.uint8), return_tensors="pt")["pixel_values"][0, :, 0, 0]
        assert pixels.tolist() == pytest.approx([(2 - 0.5) / 0.1, (2 - 0.4) / 0.2, (2 - 0.3) / 0.3], abs=1e-5)
        assert (processor.size["height"], processor.size["width"]) == (224, 224)

    def test_is_not_assumed(self, tmp_path):
        ResNetConfig(**RESNET).save_pretrained(tmp_path)
        with pytest.raises(
            OSError, match=r"has no preprocessor_config.json.*PCMANetImageProcessor\(\)\.save_pretrained"
        ):
            PCMANetImageProcessor.from_backbone(tmp_path)

    @pytest.mark.slow
    def test_is_used_in_training(self, tmp_path):
        Dinov2Model(Dinov2Config(**DINO)).save_pretrained(tmp_path / "visual")
        PCMANetImageProcessor(image_mean=[0.1] * 3).save_pretrained(tmp_path / "visual")
        inner = {name: value for name, value in TRAINED_NETWORK.items() if name != "backbone_config"}
        train(tmp_path / "run", visual_backbone=str(tmp_path / "visual"), configuration=inner)
        assert PCMANetProcessor.from_pretrained(tmp_path / "run" / "last").image_processor.image_mean == (
            0.1,
            0.1,
            0.1,
        )


class TestEfficientNetLite:
    def test_sizes_are_the_published_ones(self):
        channels = {}
        for name, width, depth in (("lite0", 1.0, 1.0), ("lite4", 1.4, 1.8)):
            config = EfficientNetLiteConfig(width_multiplier=width, depth_multiplier=depth, out_features=ALL_STAGES)
            with torch.device("meta"):
                backbone = EfficientNetLiteBackbone(config)
            parameters = sum(weight.numel() for weight in backbone.parameters())
            channels[name] = (backbone.channels, parameters)
        # Without the classifier (1280 channels): 4,652,008 and 13,006,568 parameters with it, as timm counts them.
        assert channels["lite0"] == ([24, 40, 112, 320], 4_652_008 - 320 * 1280 - 2 * 1280 - 1281 * 1000)
        assert channels["lite4"] == ([32, 56, 160, 448], 13_006_568 - 448 * 1280 - 2 * 1280 - 1281 * 1000)

    @pytest.mark.parametrize("size", [(64, 64), (63, 90), (33, 32)])
    def test_features_are_those_of_the_definition(self, size):
        torch.manual_seed(0)
        backbone = build_network("efficientnet_lite").model.backbone
        frames = torch.randn(2, 3, *size)
        with torch.no_grad():
            maps = backbone(frames).feature_maps
            expected = defined_maps(backbone, frames)
        for ours, theirs in zip(maps, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)

    @NEEDS_TIMM
    @pytest.mark.parametrize("size", [(64, 96), (65, 90)])
    def test_timm_weights_give_the_features_of_timm(self, size):
        import timm

        torch.manual_seed(0)
        published = timm.create_model("tf_efficientnet_lite0").eval()
        features = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4)).eval()
        features.load_state_dict(published.state_dict(), strict=False)
        frames = torch.randn(1, 3, *size)
        with torch.no_grad():
            for ours, theirs in zip(
                convert_state_dict(published.state_dict()).model(frames).feature_maps, features(frames), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)

    def test_converter_knows_the_names_of_efficientnet_pytorch(self, tmp_path):
        source = EfficientNetLiteBackbone(EfficientNetLiteConfig(out_features=ALL_STAGES))
        published = {published_name(key): value for key, value in source.state_dict().items()}
        head = {"_conv_head.weight": torch.zeros(8), "_bn1.weight": torch.zeros(8), "_fc.bias": torch.zeros(8)}
        conversion = convert_state_dict({**published, **head})
        assert conversion.title == "EfficientNet-Lite0"
        assert set(conversion.dropped) == set(head)
        converted = conversion.model.state_dict()
        for key, weight in source.state_dict().items():
            assert torch.equal(converted[key], weight), key
        conversion.save(tmp_path / "lite0")
        assert PCMANetImageProcessor.from_backbone(tmp_path / "lite0").image_mean == (0.5, 0.5, 0.5)
        assert isinstance(AutoConfig.from_pretrained(tmp_path / "lite0"), EfficientNetLiteConfig)
        assert isinstance(AutoBackbone.from_config(conversion.model.config), EfficientNetLiteBackbone)


def defined_maps(backbone: EfficientNetLiteBackbone, frames: torch.Tensor) -> list[torch.Tensor]:
    """Compute EfficientNet-Lite from its weights alone, padding as TensorFlow defines "same"."""
    state, maps = backbone.state_dict(), []

    def block(prefix: str, values: torch.Tensor, stride: int, activation: bool = True) -> torch.Tensor:
        weight = state[f"{prefix}.0.weight"]
        for axis in (3, 2):
            side, kernel = values.shape[axis], weight.shape[axis]
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads = (total // 2, total - total // 2)
            values = functional.pad(values, pads if axis == 3 else (0, 0, *pads))
        groups = values.shape[1] // weight.shape[1]
        values = functional.conv2d(values, weight, stride=stride, groups=groups)
        norm = [state[f"{prefix}.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        values = functional.batch_norm(values, *norm, eps=1e-3)
        return values.clamp(0, 6) if activation else values

    values = block("embedder", frames, 2)
    for stage, depth in enumerate((3, 2, 6, 5)):
        for index in range(depth):
            prefix, entry = f"stages.{stage}.{index}", values
            first = index == (1 if stage == 0 else 0)
            if f"{prefix}.expansion.0.weight" in state:
                values = block(f"{prefix}.expansion", values, 1)
            values = block(f"{prefix}.depthwise", values, 2 if first else 1)
            values = block(f"{prefix}.projection", values, 1, activation=False)
            if not first and entry.shape == values.shape:
                values = values + entry
        maps.append(values)
    return maps


def published_name(key: str) -> str:
    """Return the name of efficientnet-pytorch for one of ours."""
    parts = key.split(".")
    if parts[0] == "embedder":
        return f"{'_conv_stem' if parts[1] == '0' else '_bn0'}.{parts[2]}"
    flat = (0, 3, 5, 11)[int(parts[1])] + int(parts[2])
    kind = {"expansion": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    names = kind.get(parts[3], ("_project_conv", "_bn2"))
    return f"_blocks.{flat}.{names[int(parts[4])]}.{parts[5]}"


def test_small_preset_is_optimized_exactly():
    torch.manual_seed(0)
    model = PCMANetForAudioVisualSegmentation(PCMANetConfig.from_preset("small")).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.75, 1.25)
    optimized = model.for_inference()
    # All BatchNorms of the small network, those of its audio encoder included, are folded.
    assert not [name for name, module in optimized.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    frames = tiny_batch(clips=1, frames=2, size=(96, 130))["pixel_values"]
    audio = torch.randn(1, 2, 1, model.config.audio_config.num_mel_bins, 100)
    with torch.no_grad():
        logits = model(frames, audio).logits
        assert (optimized(frames, audio).logits - logits).abs().max() < 1e-5 * logits.abs().max()
