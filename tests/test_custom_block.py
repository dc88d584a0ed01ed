"""Custom blocks: by name in the configuration and assigned to a stage, in the model and in the optimized model."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_batch, tiny_config, tiny_model
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import modeling_pcmanet.inference_pcmanet as inference
from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, register_block
from modeling_pcmanet.inference_pcmanet import UnchangedModule
from modeling_pcmanet.modeling_pcmanet_decoder import (
    AudioVisualGroupAttention,
    ClipLayout,
    ConvolutionBlock,
    DecoderStage,
    GuidedFusion,
    QuerySelectedCrossAttention,
)


KINDS = ("group_attention", "cross_attention", "fusion")
CUSTOM = dict.fromkeys(KINDS, "test")


@register_block("group_attention", "test")
class FrameMixing(nn.Module):
    """Lets frames interact, has weights of five and of no dimensions, an int and a float64 buffer."""

    def __init__(self, config: PCMANetConfig, index: int):
        super().__init__()
        self.across_frames = nn.Conv3d(config.hidden_size, config.hidden_size, (3, 1, 1), padding=(1, 0, 0))
        self.strength = nn.Parameter(torch.tensor(0.3 + index))
        self.register_buffer("offset", torch.tensor([1 / 3], dtype=torch.float64))
        self.register_buffer("order", torch.arange(config.hidden_size), persistent=False)

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        assert visual.dtype == audio.dtype
        mixed = self.across_frames(visual.transpose(0, 1)[None])[0].transpose(0, 1)
        weights = (audio * self.strength + (self.offset * 3).to(audio.dtype)).sigmoid()[:, self.order, None, None]
        return visual.view(len(visual), -1).view(visual.shape) + mixed * weights


@register_block("cross_attention", "test")
class Recurrence(nn.Module):
    """Depends on the order of the frames of a clip, and returns a guidance of full size."""

    def __init__(self, config: PCMANetConfig, _index: int):
        super().__init__()
        self.recurrent = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.spectrum = nn.Parameter(torch.randn(1, config.hidden_size, 1, 2))

    def forward(
        self, visual: torch.Tensor, audio: torch.Tensor, uncertain: torch.Tensor | None, layout: ClipLayout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        states, _ = self.recurrent(layout.to_clips(audio))
        filtered = (torch.view_as_complex(self.spectrum.float()) * 1j).real.to(visual.dtype)[..., None]
        guidance = visual * layout.to_frames(states)[..., None, None] + filtered
        if uncertain is not None:
            mask = functional.interpolate(uncertain[:, None].to(visual.dtype), size=visual.shape[-2:])
            guidance = guidance * (mask + 0.5)
        return guidance, layout.to_frames(states)


@register_block("fusion", "test")
class GatedFusion(nn.Module):
    """Requires a guidance of the size of the feature map; has a gate with initial values of its own."""

    def __init__(self, config: PCMANetConfig, _index: int):
        super().__init__()
        self.gate = nn.Conv2d(2 * config.hidden_size, config.hidden_size, 1)
        nn.init.constant_(self.gate.weight, 0.125)
        self.norm = nn.BatchNorm2d(config.hidden_size)

    def forward(
        self, visual: torch.Tensor, guidance: torch.Tensor | None, coarser: torch.Tensor | None
    ) -> torch.Tensor:
        if coarser is not None:
            visual = visual + functional.interpolate(coarser, size=visual.shape[-2:], mode="bilinear")
        if guidance is None:
            return visual
        gate = self.gate(torch.cat([visual, guidance], dim=1)).sigmoid()
        return self.norm(visual * gate + guidance * (1 - gate))


BLOCKS: dict[str, type[nn.Module]] = {
    "group_attention": FrameMixing,
    "cross_attention": Recurrence,
    "fusion": GatedFusion,
}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Warnings are given again that were given before."""
    inference.logger.warning_once.cache_clear()
    return caplog


def randomized(model: PCMANetForAudioVisualSegmentation) -> PCMANetForAudioVisualSegmentation:
    """Randomize all norms, so that folding them changes weights."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


def assign(model: PCMANetForAudioVisualSegmentation, *kinds: str) -> PCMANetForAudioVisualSegmentation:
    """Assign custom blocks to the second and the last stage."""
    for index in (1, 3):
        for kind in kinds:
            setattr(model.model.stages[index], kind, BLOCKS[kind](model.config, index))
    return model.eval()


@torch.no_grad()
def assert_equal_logits(model: PCMANetForAudioVisualSegmentation, tolerance: float = 1e-5, **more: Any) -> None:
    batch = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in (tiny_batch() | more).items()}
    expected, given = model(**batch), model.for_inference()(**batch)
    assert given.logits.shape == expected.logits.shape
    assert (given.logits - expected.logits).abs().max() <= tolerance * expected.logits.abs().max()
    for mask, expected_mask in zip(given.confidence_masks, expected.confidence_masks, strict=True):
        assert torch.equal(mask, expected_mask)


MASKS = {"no mask": None, "mask": [[1, 0, 1], [0, 1, 0]]}


class TestOptimizedModel:
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS, ("group_attention", "fusion")], ids=str)
    @pytest.mark.parametrize("way", ["by name", "assigned"])
    def test_equals_the_model(self, log, way, kinds, mask):
        model = tiny_model(**dict.fromkeys(kinds, "test")) if way == "by name" else assign(tiny_model(), *kinds)
        more = {} if MASKS[mask] is None else {"frame_mask": torch.tensor(MASKS[mask], dtype=torch.bool)}
        assert_equal_logits(randomized(model), **more)
        # Once, however often the model is optimized.
        model.for_inference()
        (warning,) = log.messages
        for kind in KINDS:
            for index, stage in enumerate(model.model.stages):
                is_custom = type(getattr(stage, kind)) is BLOCKS[kind]
                assert (f"stages.{index}.{kind} ({BLOCKS[kind].__name__})" in warning) == is_custom

    @pytest.mark.parametrize("padded_frames", ["zeroed", "excluded"])
    @pytest.mark.parametrize("cross_attention", [None, "qsca", "test"])
    def test_equals_the_model_with_other_options(self, padded_frames, cross_attention):
        options = {"padded_frames": padded_frames, "cross_attention": cross_attention, "num_labels": 3}
        model = tiny_model(**(CUSTOM | options), token_layout="scrambled")
        mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
        assert_equal_logits(randomized(model).double(), 1e-12, frame_mask=mask)

    def test_published_blocks_do_not_warn(self, log):
        model = tiny_model()
        # The hooks with which transformers records outputs stay on the model, and do not count.
        model(**tiny_batch(), output_hidden_states=True)
        assert any(stage._forward_hooks for stage in model.model.stages)
        optimized = model.for_inference()
        nn.SyncBatchNorm.convert_sync_batchnorm(tiny_model()).for_inference()
        assert not log.messages
        assert not any(isinstance(module, UnchangedModule) for module in optimized.modules())

    @pytest.mark.parametrize("part", ["neck", "head", "stage", "layer", "subclass", "settings", "forward"])
    def test_any_other_module(self, log, part):
        model = randomized(tiny_model())
        network, stage = model.model, model.model.stages[1]
        width = model.config.hidden_size
        if part == "neck":
            network.neck[1] = nn.Sequential(nn.Conv2d(16, width, 1), nn.GELU())
        elif part == "head":
            stage.head = nn.Conv2d(width, 1, 3, padding=1)
        elif part == "stage":
            network.stages[1] = OtherStage(model.config, 1)
        elif part == "layer":
            stage.fusion.output_projection[2] = nn.GELU()
        elif part == "subclass":
            stage.group_attention = HalvedAttention(model.config, 1)
        elif part == "settings":
            stage.fusion.coarser_projection[0].padding_mode = "reflect"
        else:
            stage.cross_attention.forward = lambda visual, audio, *_: (visual.relu(), audio)
        assert_equal_logits(model.eval())
        (warning,) = log.messages
        assert "stages.1" in warning
        assert not any(f"stages.{index}" in warning for index in (0, 2, 3))

    @pytest.mark.parametrize("how", ["hook", "hook before", "parametrization", "weight norm", "hook of the stage"])
    def test_hooks_and_parametrizations(self, log, how):
        model = randomized(tiny_model())
        stage = model.model.stages[2]
        if how == "hook":
            stage.fusion.output_projection.register_forward_hook(lambda _module, _inputs, output: output * 2)
        elif how == "hook before":
            stage.head[3].register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,))
        elif how == "parametrization":
            parametrizations.orthogonal(stage.group_attention.audio_projection[0])
        elif how == "weight norm":
            parametrizations.weight_norm(stage.fusion.coarser_projection[0])
        else:
            stage.register_forward_hook(lambda _module, _inputs, output: (output[0], output[1] * 3, output[2]))
        assert_equal_logits(model)
        (warning,) = log.messages
        assert "stages.2" in warning

    def test_early_exit(self):
        """A clip whose frames all continue is computed as without early exit; others are computed without stopped frames."""
        batch = {name: x.double() for name, x in tiny_batch(2, 4).items()}
        model = randomized(tiny_model(**CUSTOM)).double()
        with torch.no_grad():
            model.model.stages[0].head[-1].bias -= model(**batch).stage_logits[0].median()
        optimized = model.for_inference()
        expected, given = (optimized(**batch, early_exit_threshold=threshold) for threshold in (None, 0))
        torch.testing.assert_close(given.logits, expected.logits, rtol=1e-12, atol=1e-12)
        stopped = optimized(**batch, early_exit_threshold=1).logits
        torch.testing.assert_close(stopped, model(**batch).stage_logits[0], rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        model, batch = tiny_model(**CUSTOM), tiny_batch()
        with torch.no_grad():
            expected = model(**batch).logits
            given = model.for_inference(dtype)(**batch).logits
        assert given.dtype == dtype
        assert (given - expected).abs().mean() < 0.1 * expected.abs().mean()

    @torch.no_grad()
    def test_autocast(self):
        model, batch = tiny_model(**CUSTOM), tiny_batch()
        optimized, exact = model.for_inference(), model(**batch).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, given = model(**batch).logits, optimized(**batch).logits
        assert given.dtype == expected.dtype
        assert (given - exact).abs().mean() < 0.1 * exact.abs().mean()

    def test_the_model_is_not_modified(self):
        model = tiny_model(**CUSTOM)
        before = copy.deepcopy(model.state_dict())
        for parameter in model.for_inference().parameters():
            parameter.zero_()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_random_numbers_are_not_drawn(self):
        model = tiny_model()
        before = torch.get_rng_state()
        model.for_inference()
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.slow
    def test_compiled_graph(self):
        model = assign(tiny_model(), "group_attention", "fusion").double()
        optimized, batch = model.for_inference(), {name: x.double() for name, x in tiny_batch().items()}
        torch.compiler.reset()
        compiled = torch.compile(optimized, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**batch).logits, optimized(**batch).logits, atol=1e-10, rtol=0)


class HalvedAttention(AudioVisualGroupAttention):
    """A subclass, whose layers are those of the published block."""

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return super().forward(visual, audio) / 2


class OtherStage(DecoderStage):
    """A subclass of the stage."""

    def forward(self, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        fused, logits, audio_token = super().forward(*inputs)
        return fused / 2, logits * 3, audio_token


class TestModel:
    def test_names_of_the_configuration_select_the_published_blocks(self):
        stage = tiny_model().model.stages[0]
        assert type(stage.group_attention) is AudioVisualGroupAttention
        assert type(stage.cross_attention) is QuerySelectedCrossAttention
        assert type(stage.fusion) is GuidedFusion

    def test_training_step_with_gradient_checkpointing(self):
        batch = tiny_batch() | {"labels": torch.ones(2, 3, 48, 64, dtype=torch.long)}
        model = tiny_model(**CUSTOM).train()
        model(**batch).loss.backward()
        expected = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        for kind in KINDS:
            assert any(kind in name and gradient.any() for name, gradient in expected.items())
        model.zero_grad()
        model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, expected[name])

    def test_padded_frames_are_not_computed(self):
        """Frames of a batch with padding are those of the same clips alone, although the blocks depend on their order."""
        model, batch = tiny_model(cross_attention="test").double(), tiny_batch(2, 4)
        batch = {name: x.double() for name, x in batch.items()}
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
        with torch.no_grad():
            padded = model(**batch, frame_mask=mask).logits
            alone = model(**{name: x[1:, :2] for name, x in batch.items()}).logits
        torch.testing.assert_close(padded[1:, :2], alone)

    @pytest.mark.slow
    def test_compiled_graph(self):
        model, batch = tiny_model(group_attention="test", fusion="test"), tiny_batch()
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)


class TestCheckpoint:
    def test_round_trip(self, tmp_path: Path):
        model, batch = randomized(tiny_model(**CUSTOM)), tiny_batch()
        model.save_pretrained(tmp_path)
        loaded = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path)
        assert [getattr(loaded.config, kind) for kind in KINDS] == ["test"] * 3
        with torch.no_grad():
            assert torch.equal(loaded(**batch).logits, model(**batch).logits)

    def test_new_block_in_an_old_checkpoint_has_its_own_initial_values(self, tmp_path: Path):
        """transformers would draw the gate anew and leave the other two uninitialized."""
        tiny_model().save_pretrained(tmp_path)
        loaded = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path, **CUSTOM)
        for model in (loaded, PCMANetForAudioVisualSegmentation(tiny_config(**CUSTOM))):
            for index, stage in enumerate(model.model.stages):
                assert torch.equal(stage.fusion.gate.weight, torch.full_like(stage.fusion.gate.weight, 0.125))
                assert stage.group_attention.strength == torch.tensor(0.3 + index)
                assert torch.equal(stage.group_attention.order, torch.arange(16))

    def test_unregistered_block_raises(self, tmp_path: Path):
        config = tiny_config(fusion="gided")
        config.save_pretrained(tmp_path)
        message = (
            "unknown fusion 'gided'. Did you mean 'guided'.*'guided', 'test'.*import the module that registers it"
        )
        with pytest.raises(ValueError, match=message):
            PCMANetForAudioVisualSegmentation(PCMANetConfig.from_pretrained(tmp_path))

    @pytest.mark.parametrize(("saved", "loaded"), [(True, "qsca"), (False, None)])
    def test_configuration_from_before_the_names(self, saved, loaded):
        values = tiny_config().to_dict() | {"cross_attention": saved}
        del values["fusion"], values["group_attention"]
        config = PCMANetConfig.from_dict(values)
        assert config.cross_attention == loaded
        assert (config.group_attention, config.fusion) == ("avga", "guided")

    def test_without_cross_attention(self, tmp_path: Path):
        tiny_config(cross_attention=None).save_pretrained(tmp_path)
        assert PCMANetConfig.from_pretrained(tmp_path).cross_attention is None


class TestRegistration:
    def test_unknown_kind_raises(self):
        with pytest.raises(ValueError, match="group_attention, cross_attention, fusion, got 'head'"):
            register_block("head", "mine")

    @pytest.mark.parametrize("name", ["guided", "test"])
    def test_taken_name_raises(self, name):
        with pytest.raises(
            ValueError, match=f"The fusion '{name}' is already .*Fusion. Register the block with another"
        ):
            register_block("fusion", name)(ConvolutionBlock)

    def test_defining_a_class_again_replaces_it(self):
        again = type("GatedFusion", (nn.Module,), {"__module__": __name__, "__qualname__": "GatedFusion"})
        try:
            assert register_block("fusion", "test")(again) is again
            with pytest.raises(TypeError):
                PCMANetForAudioVisualSegmentation(tiny_config(fusion="test"))
        finally:
            register_block("fusion", "test")(GatedFusion)

    @pytest.mark.parametrize("block", [lambda *_: nn.Identity(), nn.Identity(), dict])
    def test_other_object_raises(self, block):
        with pytest.raises(TypeError, match="Expected an nn.Module class to register as fusion 'mine'"):
            register_block("fusion", "mine")(block)


@pytest.mark.slow
def test_example(tmp_path: Path):
    """A few steps suffice to see that it trains, saves, loads and segments."""
    script = Path(__file__).parent.parent / "examples" / "custom_block.py"
    command = [sys.executable, str(script), "--output", str(tmp_path / "run"), "--clips", "64"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(re.search(r"IoU of the demo clip: (\S+)", output)[1]) > 0.3, output
