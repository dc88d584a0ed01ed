"""The optimized model has the logits of the model for all backbones, sizes, masks and options; early exit; convolutions."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_model import tiny_batch, tiny_model

from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, inference_pcmanet
from modeling_pcmanet.convolutions_pcmanet import (
    FoldedConvolution,
    UpsampledConvolution,
    is_worth_mixing_first,
    is_worth_transforming,
)
from modeling_pcmanet.inference_pcmanet import OptimizedPCMANet, _fold_sequences, choose_dtype
from modeling_pcmanet.modeling_pcmanet_decoder import ClipLayout, ConvolutionBlock


STAGES = ["stage1", "stage2", "stage3", "stage4"]
TINY_PVT = {
    "model_type": "pvt_v2",
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 2, 1, 1],
    "num_attention_heads": [1, 2, 4, 8],
    "mlp_ratios": [4, 4, 4, 4],
    "sr_ratios": [8, 4, 2, 1],
    "layer_norm_eps": 1e-6,
    "out_features": STAGES,
}
BACKBONES: dict[str, dict[str, Any]] = {
    "basic ResNet": {},
    "bottleneck ResNet": {
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [16, 24, 32, 40],
            "depths": [2, 1, 1, 1],
            "layer_type": "bottleneck",
            "out_features": STAGES,
        }
    },
    "PVT-v2": {"backbone_config": TINY_PVT},
    "PVT-v2 without biases": {"backbone_config": {**TINY_PVT, "qkv_bias": False}},
    "linear PVT-v2": {"backbone_config": {**TINY_PVT, "linear_attention": True}},
    "Swin": {
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 2, 2],
            "window_size": 2,
            "out_features": STAGES,
        }
    },
}


def randomize_norms(model: torch.nn.Module) -> None:
    """Randomize every LayerNorm; the BatchNorms of the tiny model are random already."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)


def build(**overrides: Any) -> PCMANetForAudioVisualSegmentation:
    model = tiny_model(**overrides)
    randomize_norms(model)
    return model


@torch.no_grad()
def assert_equal_logits(
    model: PCMANetForAudioVisualSegmentation,
    batch: dict[str, torch.Tensor],
    tolerance: float,
    optimized: OptimizedPCMANet | None = None,
):
    """Compare logits, relative to the largest, and confidence masks."""
    batch = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in batch.items()}
    expected, given = model(**batch), (optimized or model.for_inference())(**batch)
    assert given.logits.shape == expected.logits.shape
    assert given.logits.dtype == expected.logits.dtype
    assert given.logits.is_contiguous()
    difference = (given.logits - expected.logits).abs().max() / expected.logits.abs().max()
    assert difference <= tolerance, difference
    for mask, expected_mask in zip(given.confidence_masks, expected.confidence_masks, strict=True):
        assert torch.equal(mask, expected_mask)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_every_backbone(backbone, dtype, tolerance):
    assert_equal_logits(build(**BACKBONES[backbone]).to(dtype), tiny_batch(), tolerance)


@pytest.fixture(scope="module", params=["basic ResNet", "PVT-v2"])
def network_for_shapes(request):
    """A model and its optimized copy, which take longer to build than to run."""
    model = build(**BACKBONES[request.param]).double()
    return model, model.for_inference()


@pytest.mark.parametrize(
    ("clips", "frames", "size"),
    [(1, 1, (32, 32)), (1, 5, (64, 64)), (3, 2, (50, 71)), (2, 7, (97, 33)), (1, 1, (224, 224)), (2, 10, (32, 96))],
)
def test_every_shape(network_for_shapes, clips, frames, size):
    model, optimized = network_for_shapes
    assert_equal_logits(model, tiny_batch(clips, frames, size), 1e-12, optimized)


@pytest.fixture(
    scope="module", params=[(1, "excluded"), (5, "excluded"), (1, "zeroed"), (5, "zeroed")], ids="{0[0]}-{0[1]}".format
)
def network_for_masks(request):
    """A model and its optimized copy, which take longer to build than to run."""
    num_labels, padded_frames = request.param
    model = build(num_labels=num_labels, padded_frames=padded_frames).double()
    return model, model.for_inference()


@pytest.mark.parametrize(
    "mask",
    [
        [[1, 1, 1], [1, 1, 1]],
        [[1, 0, 0], [1, 1, 1]],
        [[0, 1, 0], [1, 0, 1]],
        [[1, 1, 0], [0, 0, 0]],
    ],
)
def test_every_frame_mask(network_for_masks, mask):
    model, optimized = network_for_masks
    batch = {**tiny_batch(), "frame_mask": torch.tensor(mask, dtype=torch.bool)}
    assert_equal_logits(model, batch, 1e-12, optimized)


def test_audio_of_padding_is_not_embedded():
    optimized, patches = build().for_inference(), []
    optimized.audio_encoder.register_forward_pre_hook(
        lambda _, __, inputs: patches.append(len(inputs["input_features"])), with_kwargs=True
    )
    optimized(**tiny_batch(), frame_mask=torch.tensor([[1, 0, 0], [1, 1, 0]], dtype=torch.bool))
    assert patches == [3]


@pytest.mark.parametrize(
    "overrides",
    [
        {"token_layout": "scrambled", "padded_frames": "zeroed", "masked_query_gradients": False},
        {"gather_queries": True},
        {"cross_attention": None},
        {"confidence_threshold": 0},
        {"num_labels": 3, "num_groups": 4},
        {"token_grid_sizes": [1, 3, 4, 16]},
    ],
    ids=str,
)
def test_every_option(overrides):
    assert_equal_logits(build(**overrides).double(), tiny_batch(), 1e-12)


def hook_output(module: torch.nn.Module) -> None:
    module.register_forward_hook(lambda _module, _inputs, output: output.roll(1, dims=-1))


class RollingConvolution(torch.nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).roll(1, dims=-1)


# Layers, and what is done to each of them.
CHANGES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "hooks of layers": (torch.nn.Conv2d | torch.nn.Linear, hook_output),
    "hooks of norms": (torch.nn.BatchNorm2d | torch.nn.LayerNorm, hook_output),
    "own class": (torch.nn.Conv2d, lambda layer: setattr(layer, "__class__", RollingConvolution)),
    "weight norm": (torch.nn.Conv2d, torch.nn.utils.parametrizations.weight_norm),
    "circular borders": (torch.nn.Conv2d, lambda layer: setattr(layer, "padding_mode", "circular")),
}
EFFICIENT = {"model_type": "efficientnet_lite", "stem_channels": 8, "out_features": STAGES}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("backbone", ["basic ResNet", "bottleneck ResNet", "PVT-v2", "EfficientNet-Lite"])
def test_changed_backbones_keep_what_was_changed(backbone, change):
    model = build(**BACKBONES.get(backbone, {"backbone_config": EFFICIENT}))
    with torch.no_grad():
        before = model(**tiny_batch()).logits
        layers, function = CHANGES[change]
        for module in list(model.model.backbone.modules()):
            if isinstance(module, layers):
                function(module)
        if change != "weight norm":  # the weights keep their values
            assert (model(**tiny_batch()).logits - before).abs().max() > 1e-4
    assert_equal_logits(model, tiny_batch(), 1e-5)


@pytest.mark.parametrize("backbone", ["basic ResNet", "PVT-v2"])
def test_lora_of_all_layers(backbone):
    peft = pytest.importorskip("peft")
    model = build(**BACKBONES[backbone])
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    assert_equal_logits(tuned.base_model.model.eval(), tiny_batch(), 1e-5)


def test_hooks_of_the_model_as_a_whole_are_reported(caplog):
    inference_pcmanet.logger.warning_once.cache_clear()
    model = build()
    hook_output(model.model.backbone.encoder.stages[0])
    model.for_inference()
    assert "does not call the hooks of the model" not in caplog.text
    model.register_forward_hook(lambda *_: None)
    model.for_inference()
    assert "does not call the hooks of the model as a whole" in caplog.text


def test_padded_pointwise_convolution_stays_a_convolution():
    block = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 1, padding=1), torch.nn.BatchNorm2d(6)).eval()
    feature_map = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        expected = block(feature_map)
        torch.testing.assert_close(_fold_sequences(copy.deepcopy(block))(feature_map), expected)


def test_weights_loaded_into_an_optimized_model_are_used():
    first, second, batch = build(seed=1), build(seed=2), tiny_batch(size=(64, 64))
    optimized = second.for_inference()
    assert any(getattr(module, "transformed_weight", None) is not None for module in optimized.modules())
    optimized.load_state_dict(first.for_inference().state_dict())
    assert_equal_logits(first, batch, 1e-5, optimized)


@pytest.mark.parametrize("padded_frames", ["excluded", "zeroed"])
@pytest.mark.parametrize("given", ["input_features", "audio_embeds"])
def test_audio_embeds_of_padding_are_0(padded_frames, given):
    model, batch = build(padded_frames=padded_frames), tiny_batch()
    if given == "audio_embeds":
        batch = {"pixel_values": batch["pixel_values"], "audio_embeds": torch.rand(2, 3, 10)}
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with torch.no_grad():
        expected = model(**batch, frame_mask=mask).audio_embeds
        optimized = model.for_inference()(**batch, frame_mask=mask).audio_embeds
    torch.testing.assert_close(optimized, expected)
    assert (expected[~mask] == 0).all() and expected[mask].abs().max() > 0


def test_confident_network():
    """All masks are empty from the second stage on: no queries, and no NaN."""
    model, batch = build(sharpness=1000.0), tiny_batch(size=(64, 64))
    with torch.no_grad():
        assert model(**batch).kept_ratios[-1] < 0.05
    assert_equal_logits(model.double(), batch, 1e-12)


def test_audio_embeds_replace_input_features():
    batch = {"pixel_values": tiny_batch()["pixel_values"], "audio_embeds": torch.rand(2, 3, 10)}
    assert_equal_logits(build(), batch, 1e-5)


def test_for_inference_of_model_in_training_mode():
    model = build().train()
    with torch.no_grad():
        given = model.for_inference()(**tiny_batch()).logits
        assert model.training
        torch.testing.assert_close(given, model.eval()(**tiny_batch()).logits, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backbone", ["basic ResNet", "PVT-v2"])
def test_half_precision_is_close(backbone, dtype):
    """Inputs may be float32; the logits have the data type of the optimized model."""
    model = build(**BACKBONES[backbone])
    with torch.no_grad():
        expected = model(**tiny_batch()).logits
        given = model.for_inference(dtype)(**tiny_batch()).logits
    assert given.dtype == dtype
    assert ((given > 0) == (expected > 0)).float().mean() > 0.95
    assert (given - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_audio_encoder_in_half_precision():
    """Only the embeddings are rounded; everything else keeps its data type."""
    model, batch = build(), tiny_batch()
    optimized, exact = model.for_inference(audio_dtype=torch.bfloat16), model.for_inference()
    assert {x.dtype for x in optimized.audio_encoder.parameters()} == {torch.bfloat16}
    assert {x.dtype for name, x in optimized.named_parameters() if "audio_encoder" not in name} == {torch.float32}
    given, expected = optimized(**batch).logits, exact(**batch).logits
    assert given.dtype == torch.float32
    assert 0 < (given - expected).abs().max() < 0.05 * expected.abs().max()
    embeddings = torch.rand(2, 3, 10)
    given, expected = (x(batch["pixel_values"], audio_embeds=embeddings).logits for x in (optimized, exact))
    assert torch.equal(given, expected)


def test_for_inference_does_not_modify_the_model():
    model = build()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    optimized = model.for_inference(torch.bfloat16)
    for parameter in optimized.parameters():
        parameter.zero_()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert model.dtype == torch.float32


def test_training_raises():
    optimized = build().for_inference()
    with pytest.raises(RuntimeError, match="cannot be trained.*for_inference"):
        optimized.train()
    assert not optimized.eval().training
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    assert not optimized(**tiny_batch()).logits.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["basic ResNet", "PVT-v2"])
@pytest.mark.parametrize("padding", [False, True])
def test_one_graph_for_any_number_of_clips_and_frames(backbone, padding):
    """No graph breaks, and neither the number of clips nor of frames is fixed in an exported program."""
    optimized = build(**BACKBONES[backbone]).double().for_inference()
    batches = [{name: x.double() for name, x in tiny_batch(*clips).items()} for clips in ((2, 3), (3, 5), (1, 4))]
    for batch in batches if padding else ():
        batch["frame_mask"] = torch.ones(batch["pixel_values"].shape[:2], dtype=torch.bool)
        batch["frame_mask"][-1, 2:] = False
    torch.compiler.reset()
    compiled = torch.compile(optimized, fullgraph=True, backend="eager", dynamic=True)
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("frames")}
    program = torch.export.export(optimized, (), batches[0], dynamic_shapes=dict.fromkeys(batches[0], dimensions))
    for batch in batches:
        expected = optimized(**batch).logits
        torch.testing.assert_close(compiled(**batch).logits, expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(program.module()(**batch).logits, expected, atol=1e-10, rtol=0)


def test_to_and_pickle():
    optimized, batch = build().for_inference(), tiny_batch()
    buffer = io.BytesIO()
    torch.save(optimized, buffer)
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert torch.equal(loaded(**batch).logits, optimized(**batch).logits)
    assert loaded.to(torch.float64)(**batch).logits.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": torch.zeros(2, 3, 3, 16, 64)}, "at least 32"),
        ({"input_features": None}, "got neither"),
        ({"audio_embeds": torch.zeros(2, 3, 10)}, "got both"),
        ({"frame_mask": torch.ones(2, 4, dtype=torch.bool)}, r"`frame_mask` must be \(batch, frames\)"),
    ],
)
def test_invalid_inputs_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        build().for_inference()(**{**tiny_batch(), **changes})


def uncertain_model(
    batch: dict[str, torch.Tensor], sharpness: float = 8.0, **overrides: Any
) -> PCMANetForAudioVisualSegmentation:
    """Build a model whose stages are each certain of some frames and uncertain of others."""
    model = build(sharpness=sharpness, **overrides).double()
    with torch.no_grad():
        for index, stage in enumerate(model.model.stages):
            stage.head[-1].bias -= model.model(**batch).stage_logits[index].median()
    return model


def resize(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def decode_with_early_exit(
    model: PCMANetForAudioVisualSegmentation, batch: dict[str, torch.Tensor], real: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one clip through the model and remove each frame that stops; frames that are not `real` are zeroed."""
    network, size = model.model, batch["pixel_values"].shape[-2:]
    embeddings = network.audio_encoder(batch["input_features"]).audio_embeds * real[:, None]
    audio, heard = network.audio_projection(embeddings), torch.zeros(len(real), 1, dtype=torch.double)
    if network.audio_classifier is not None:
        heard = network.audio_classifier(embeddings)
    maps = network.backbone(batch["pixel_values"]).feature_maps[::-1]
    maps = [neck(x) * real[:, None, None, None] for neck, x in zip(network.neck, maps, strict=True)]
    frames, token, fused, uncertain = list(range(len(real))), audio, None, None
    logits, stages = {}, {}
    for index, stage in enumerate(network.stages):
        layout = ClipLayout(1, len(frames), None)
        fused, stage_logits, token = stage(maps[index][frames], audio[frames], token, fused, uncertain, layout)
        stage_logits = stage_logits + heard[frames][:, :, None, None]
        uncertain = network.confidence_masking(stage_logits, uncertain)
        masks = network.confidence_masking(resize(stage_logits, maps[min(index + 1, 3)].shape[-2:]), None)
        active = [place for place, mask in enumerate(masks) if index < 3 and mask.double().mean() > threshold]
        for place in set(range(len(frames))) - set(active):
            logits[frames[place]], stages[frames[place]] = resize(stage_logits[[place]], size)[0], index + 1
        frames = [frames[place] for place in active]
        fused, token, uncertain = fused[active], token[active], uncertain[active]
        if not frames:
            break
    return torch.stack([logits[key] for key in sorted(logits)]), torch.tensor([stages[key] for key in sorted(stages)])


PADDED = [[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]


@pytest.fixture(
    scope="module",
    params=[
        ({}, 0.2, None),
        ({}, 0.2, PADDED),
        ({"sharpness": 50.0}, 0, None),
        ({"sharpness": 50.0, "num_labels": 4}, 0.1, PADDED),
        ({"padded_frames": "zeroed", "token_layout": "scrambled"}, 0.3, PADDED),
        ({"sharpness": 20.0, "cross_attention": None}, 0.5, None),
        ({"sharpness": 20.0, "num_labels": 4, "audio_classifier": True}, 0.3, PADDED),
    ],
    ids=str,
)
def early_exit(request):
    """A model, its optimized copy, a batch, its mask, and a threshold with which some frames leave early."""
    overrides, threshold, mask = request.param
    batch = {name: x.double() for name, x in tiny_batch(3, 4, (64, 80)).items()}
    model = uncertain_model(batch, **overrides)
    return model, model.for_inference(), batch, mask, threshold


@pytest.mark.parametrize("clip_by_clip", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_early_exit_equals_decoding_without_the_stopped_frames(monkeypatch, clip_by_clip, early_exit):
    monkeypatch.setattr(OptimizedPCMANet, "_runs_clip_by_clip", lambda *_: clip_by_clip)
    model, optimized, batch, mask, threshold = early_exit
    real = torch.ones(3, 4, dtype=torch.bool) if mask is None else torch.tensor(mask, dtype=torch.bool)
    masked = {} if mask is None else {"frame_mask": real}
    output = optimized(**batch, **masked, early_exit_threshold=threshold)
    assert len(output.stages_used[real].unique()) >= 2
    for clip in range(3):
        # Excluded frames are not computed; zeroed ones are.
        computed = real[clip] | (model.config.padded_frames == "zeroed")
        assert not output.logits[clip][~computed].any()
        assert not output.stages_used[clip][~computed].any()
        if computed.any():
            own = {name: x[clip][computed] for name, x in batch.items()}
            logits, stages = decode_with_early_exit(model, own, real[clip][computed].double(), threshold)
            assert output.stages_used[clip][computed].tolist() == stages.tolist()
            torch.testing.assert_close(output.logits[clip][computed], logits, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "masked", [{}, {"frame_mask": torch.tensor(PADDED, dtype=torch.bool)}], ids=["not padded", "padded"]
)
def test_threshold_that_stops_no_frame_is_bit_identical(masked):
    batch = {name: x.double() for name, x in tiny_batch(3, 4, (64, 80)).items()}
    optimized = uncertain_model(batch).float().for_inference()
    expected, given = optimized(**batch, **masked), optimized(**batch, **masked, early_exit_threshold=0.01)
    assert expected.stages_used is None
    real = masked.get("frame_mask", torch.ones(3, 4, dtype=torch.bool))
    assert torch.equal(given.stages_used, 4 * real)
    assert torch.equal(given.logits, expected.logits)
    for mask, expected_mask in zip(given.confidence_masks, expected.confidence_masks, strict=True):
        assert torch.equal(mask, expected_mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_threshold_1_gives_the_coarsest_logits(dtype):
    model, batch = build(num_labels=3).double(), tiny_batch()
    batch = {name: x.double() for name, x in batch.items()}
    with torch.no_grad():
        expected = model(**batch)
    given = model.for_inference(dtype)(**batch, early_exit_threshold=1)
    tolerance = 1e-10 if dtype == torch.float64 else 0.1 * expected.stage_logits[0].abs().max().item()
    torch.testing.assert_close(given.logits.double(), expected.stage_logits[0], atol=tolerance, rtol=0)
    assert (given.stages_used == 1).all()
    for number, (mask, expected_mask) in enumerate(
        zip(given.confidence_masks, expected.confidence_masks, strict=True), start=1
    ):
        assert mask.shape == expected_mask.shape
        assert number == 1 or not mask.any()


@pytest.mark.parametrize(
    ("overrides", "threshold", "message"),
    [
        ({}, -0.1, "between 0 and 1, got -0.1"),
        ({}, 1.5, "between 0 and 1, got 1.5"),
        ({}, float("nan"), "between 0 and 1, got nan"),
        ({"confidence_threshold": 0}, 0.1, "`confidence_threshold` 0 and keeps all of them"),
    ],
)
def test_invalid_early_exit_thresholds_raise(overrides, threshold, message):
    with pytest.raises(ValueError, match=message):
        build(**overrides).for_inference()(**tiny_batch(), early_exit_threshold=threshold)


def test_early_exit_in_an_exported_graph_raises():
    with pytest.raises(ValueError, match="not supported in a compiled or exported graph"):
        torch.export.export(build().for_inference(), (), {**tiny_batch(), "early_exit_threshold": 0.1}, strict=False)


@pytest.fixture
def chunks_of_one_frame(monkeypatch):
    monkeypatch.setattr("modeling_pcmanet.convolutions_pcmanet.CHUNK_VALUES", 1)


def direct_and_given(block, module, feature_map, *size):
    """Return the outputs of a block, after upsampling if a size is given, and of its optimized module."""
    with torch.no_grad():
        resized = feature_map
        if size:
            resized = torch.nn.functional.interpolate(feature_map, size=size[0], mode="bilinear", align_corners=False)
        return block(resized), module(feature_map, *size)


def is_transforming(convolution, feature_map):
    """Return whether a convolution of the optimized model uses Winograd's algorithm."""
    weight = convolution.convolution.weight
    return convolution.transformed_weight is not None and is_worth_transforming(feature_map, weight)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (7, 7), (12, 3), (14, 13)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.usefixtures("chunks_of_one_frame")
def test_winograd_convolution(size, dtype, tolerance):
    torch.manual_seed(0)
    block = ConvolutionBlock(40, 72).to(dtype).eval()
    convolution, feature_map = FoldedConvolution(block[0], block[1]), torch.randn(3, 40, *size, dtype=dtype)
    assert is_transforming(convolution, feature_map)
    expected, given = direct_and_given(block, convolution, feature_map)
    torch.testing.assert_close(given, expected, atol=tolerance, rtol=0)


def test_convolutions_without_winograd():
    for module, feature_map in [
        (torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 56, 56)),
        (torch.nn.Conv2d(64, 64, 3, padding=1, stride=2), torch.randn(1, 64, 7, 7)),
        (torch.nn.Conv2d(64, 64, 3, padding=1, groups=2), torch.randn(1, 64, 7, 7)),
        (torch.nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"), torch.randn(1, 64, 7, 7)),
        (torch.nn.Conv2d(64, 64, 1), torch.randn(1, 64, 7, 7)),
        (torch.nn.Conv2d(64, 64, 3, padding=1).bfloat16(), torch.randn(1, 64, 7, 7).bfloat16()),
    ]:
        batch_norm = torch.nn.BatchNorm2d(64).to(feature_map.dtype)
        assert not is_transforming(FoldedConvolution(module, batch_norm), feature_map)


@pytest.mark.parametrize("channels", [6, 80])
@pytest.mark.parametrize("resized", [(8, 10), (7, 13), (9, 6), (4, 5), (3, 4), (28, 5), (31, 17)])
@pytest.mark.parametrize("low", [(4, 5), (1, 1), (1, 7)])
@pytest.mark.usefixtures("chunks_of_one_frame")
def test_upsampled_convolution(low, resized, channels):
    torch.manual_seed(0)
    block = ConvolutionBlock(channels, 10).double().eval()
    feature_map = torch.randn(3, channels, *low, dtype=torch.float64)
    expected, given = direct_and_given(block, UpsampledConvolution(block), feature_map, resized)
    torch.testing.assert_close(given, expected, atol=1e-13, rtol=1e-13)


def test_rule_for_mixing_before_upsampling():
    feature_map = torch.randn(1, 80, 4, 5)
    assert is_worth_mixing_first(feature_map, (8, 10))
    assert not is_worth_mixing_first(feature_map, (4, 5))
    assert not is_worth_mixing_first(feature_map.bfloat16(), (8, 10))
    assert not is_worth_mixing_first(torch.randn(1, 80, 200, 200), (400, 400))


@pytest.mark.parametrize(
    ("agreement", "capabilities", "dtype", "reason"),
    [
        (0.995, {"avx512_bf16": True}, torch.bfloat16, "avx512_bf16, masks agree with float32 by mIoU 0.995"),
        (0.99, {"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16, "amx_bf16, masks agree"),
        (0.995, {"avx512_bf16": False, "avx2": True}, torch.float32, "no units for bfloat16 are known in this cpu"),
        (0.995, {"bf16": True, "architecture": "aarch64"}, torch.float32, "no units for bfloat16 are known"),
        (0.989, {"avx512_bf16": True}, torch.float32, "agree by mIoU 0.989, less than 0.99"),
        (None, {"avx512_bf16": True}, torch.float32, "the checkpoint does not say"),
    ],
)
def test_bfloat16_is_chosen_where_it_is_fast_and_agrees(
    agreement: float | None,
    capabilities: dict[str, Any],
    dtype: torch.dtype,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    model = tiny_model(bfloat16_agreement=agreement)
    chosen, given = model.choose_inference_dtype()
    assert chosen == dtype and reason in given


def test_bfloat16_is_chosen_on_gpus_by_the_kind_of_backbone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    config = tiny_model(bfloat16_agreement=0.995).config
    assert choose_dtype(config, torch.device("cuda"))[0] == torch.bfloat16
    small = PCMANetConfig.from_preset("small", bfloat16_agreement=0.995)
    assert choose_dtype(small, torch.device("cuda")) == (
        torch.float32,
        "efficientnet_lite is slower in bfloat16 on a GPU",
    )
    assert choose_dtype(config, torch.device("mps"))[0] == torch.float32


def test_weights_in_half_precision_stay_so():
    model = tiny_model(bfloat16_agreement=0.995).half()
    assert model.choose_inference_dtype() == (torch.float16, "the data type of the weights")
