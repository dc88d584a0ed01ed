"""Sounding maps, softmax and classifier of the audio, and the modulation of benchmarks/fusions.py: values by hand, choice between objects by the audio, the optimized model and exported files."""

from pathlib import Path
from typing import Any

import fusions
import numpy as np
import pytest
import torch
from test_export_onnx import assert_file_gives_equal_logits, draw
from tiny_model import tiny_batch, tiny_config, tiny_model
from torch import nn

from modeling_pcmanet import PCMANetForAudioVisualSegmentation
from modeling_pcmanet.modeling_pcmanet_decoder import SoundingMaps, audio_inputs
from pcmanet.examples.export_onnx import EXPORTED_MASK, export


FUSIONS = {
    "modulation": fusions.MODULATION,
    "sounding maps": fusions.SOUNDING_MAPS,
    "audio softmax": fusions.AUDIO_SOFTMAX,
    "audio classifier": fusions.AUDIO_CLASSIFIER,
}
every_fusion = pytest.mark.parametrize("fields", FUSIONS.values(), ids=FUSIONS)


def build_block(block: type[nn.Module]) -> nn.Module:
    """Build a block in evaluation mode, whose output projection has norms that change nothing."""
    torch.manual_seed(0)
    block = block(tiny_config(), 0).double().eval()
    block.output_projection[1].eps = 0.0
    return block


def draw_inputs(channels: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a nonnegative feature map, as the neck returns it, of two frames with 3x4 pixels, and audio."""
    generator = torch.Generator().manual_seed(1)
    visual, audio = (
        torch.randn(shape, generator=generator).double() for shape in ((2, channels, 3, 4), (2, channels))
    )
    return visual.relu(), audio


@torch.no_grad()
def test_modulation_equals_the_formula_at_each_pixel():
    block, (visual, audio) = build_block(fusions.Modulation), draw_inputs()
    block.batch_norm.running_mean.uniform_(0, 1)
    block.batch_norm.eps = 0.0
    given = block(visual, audio).numpy()
    weight, bias = (x.numpy() for x in (block.audio_projection.weight, block.audio_projection.bias))
    output = block.output_projection[0]
    for frame, row, column in np.ndindex(2, 3, 4):
        scale, offset = np.split(weight @ audio[frame].numpy() + bias, 2)
        pixel = visual[frame, :, row, column].numpy()
        centered = pixel - block.batch_norm.running_mean.numpy()
        modulated = np.maximum((1 + scale) * centered + offset, 0)
        added = np.maximum(output.weight[:, :, 0, 0].numpy() @ modulated + output.bias.numpy(), 0)
        np.testing.assert_allclose(given[frame, :, row, column], pixel + added, atol=1e-12)


@torch.no_grad()
def test_sounding_maps_equal_the_formula_at_each_pixel():
    block, (visual, audio) = build_block(SoundingMaps), draw_inputs()
    block.batch_norm.running_mean.uniform_(0, 1)
    block.batch_norm.running_var.fill_(0.25)
    block.batch_norm.eps = 0.0
    given, maps = block(visual, audio).numpy(), block.compare(visual, audio).numpy()
    output = block.output_projection[0]
    for frame, row, column in np.ndindex(2, 3, 4):
        queries = (block.queries.weight @ audio[frame] + block.queries.bias).numpy().reshape(16, -1)
        pixel = visual[frame, :, row, column].numpy()
        cosines = queries @ pixel / np.linalg.norm(queries, axis=1) / np.linalg.norm(pixel)
        np.testing.assert_allclose(maps[frame, :, row, column], cosines, atol=1e-12)
        scores = 2 * (cosines - block.batch_norm.running_mean.numpy())
        joined = np.concatenate([pixel, scores])
        added = np.maximum(output.weight[:, :, 0, 0].numpy() @ joined + output.bias.numpy(), 0)
        np.testing.assert_allclose(given[frame, :, row, column], pixel + added, atol=1e-12)


def test_audio_softmax_is_that_of_each_window():
    """The published network gets the embeddings alone."""
    scores = [[0.0, np.log(3.0), 0.0], [2.0, 2.0, 2.0 + np.log(2.0)]]
    embeddings = torch.tensor([scores[0] + scores[1]], dtype=torch.float32)
    config = tiny_config(audio_softmax=True, num_audio_windows=2)
    expected = [*embeddings[0].tolist(), 0.8, 2.4, 0.8, 1.0, 1.0, 2.0]
    torch.testing.assert_close(audio_inputs(embeddings, config), torch.tensor([expected]))
    assert audio_inputs(embeddings, tiny_config(num_audio_windows=2)) is embeddings


def test_audio_softmax_reaches_the_blocks():
    """Weights of the embeddings alone give the network without the softmax."""
    plain, model, batch = tiny_model(), tiny_model(audio_softmax=True), tiny_batch()
    weight = plain.model.audio_projection.weight
    state = plain.state_dict() | {"model.audio_projection.weight": torch.cat([weight, 0 * weight], dim=1)}
    model.load_state_dict(state)
    with torch.no_grad():
        expected = plain(**batch).logits
        torch.testing.assert_close(model(**batch).logits, expected)
        model.model.audio_projection.weight[:, weight.shape[1] :] += 1
        assert (model(**batch).logits - expected).abs().max() > 1e-3


@torch.no_grad()
def test_audio_classifier_adds_its_logits_to_every_pixel_and_stage():
    """Without cross-attention, a stage does not depend on the logits of another one."""
    fields: dict[str, Any] = {"num_labels": 3, "cross_attention": None, "audio_softmax": True}
    plain, model, batch = tiny_model(**fields), tiny_model(**fields, audio_classifier=True), tiny_batch()
    model.load_state_dict(plain.state_dict(), strict=False)
    first, last = model.model.audio_classifier[0], model.model.audio_classifier[2]
    expected, given = plain(**batch), model(**batch)
    for clip, frame in np.ndindex(2, 3):
        embedding = expected.audio_embeds[clip, frame].double().numpy()
        exponentials = np.exp(embedding - embedding.max())
        inputs = np.concatenate([embedding, 4 * exponentials / exponentials.sum()])
        hidden = np.maximum(first.weight.numpy() @ inputs + first.bias.numpy(), 0)
        added = (last.weight.numpy() @ hidden + last.bias.numpy())[:, None, None]
        assert np.ptp(added) > 0.1
        for ours, without in zip(
            (given.logits, *given.stage_logits), (expected.logits, *expected.stage_logits), strict=True
        ):
            np.testing.assert_allclose(ours[clip, frame], without[clip, frame].numpy() + added, atol=1e-4)
    torch.testing.assert_close(model.for_inference()(**batch).logits, given.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_new_audio_classifier_changes_nothing(tmp_path: Path):
    """Neither of a new network nor of a checkpoint that has none."""
    plain, batch = tiny_model(), tiny_batch()
    plain.save_pretrained(tmp_path)
    extended = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path, audio_classifier=True).eval()
    torch.testing.assert_close(extended(**batch).logits, plain(**batch).logits)
    for model in (extended, PCMANetForAudioVisualSegmentation(tiny_config(audio_classifier=True))):
        first, last = model.model.audio_classifier[0], model.model.audio_classifier[2]
        assert first.weight.std() > 0.01 and not last.weight.any() and not last.bias.any()


@pytest.mark.parametrize("block", [fusions.Modulation, SoundingMaps])
def test_learns_which_of_two_objects_sounds(block):
    """Two objects in random halves of an image, under the audio of one of them or of a third: 100 steps of the block alone."""
    torch.manual_seed(0)
    model = nn.ModuleList([block(tiny_config(), 0), nn.Conv2d(16, 1, 1)])
    appearances, sounds = torch.rand(3, 16), torch.randn(3, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def draw_batch(frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        classes = torch.rand(frames, 3).argsort(1)
        halves = appearances[classes[:, :2]].transpose(1, 2).repeat_interleave(2, 2)
        visual = halves[:, :, None].expand(-1, -1, 4, -1) + 0.1 * torch.rand(frames, 16, 4, 4)
        heard = torch.randint(3, (frames,))
        truth = (classes[:, :2] == heard[:, None]).repeat_interleave(2, 1)[:, None, None].expand(-1, 1, 4, -1)
        return visual, sounds[heard], truth.float()

    for _ in range(100):
        visual, audio, truth = draw_batch(16)
        loss = nn.functional.binary_cross_entropy_with_logits(model[1](model[0](visual, audio)), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in model.parameters())
    visual, audio, truth = draw_batch(64)
    with torch.no_grad():
        masks = model.eval()[1](model[0](visual, audio)) > 0
    assert truth.flatten(1).any(1).float().mean() < 0.9  # also images in which neither object sounds
    assert (masks == truth.bool()).float().mean() > 0.97


@every_fusion
@torch.no_grad()
def test_optimized_model_and_padding(fields):
    model, batch = tiny_model(**fields).double(), {name: x.double() for name, x in tiny_batch(2, 4).items()}
    expected, optimized = model(**batch).logits, model.for_inference()
    torch.testing.assert_close(optimized(**batch).logits, expected, atol=1e-10, rtol=1e-10)
    assert optimized.has_unchanged_modules == (fields is fusions.MODULATION)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    padded = optimized(**batch, frame_mask=mask).logits
    torch.testing.assert_close(padded[mask], expected[mask], atol=1e-10, rtol=1e-10)


@every_fusion
@torch.no_grad()
def test_a_frame_does_not_depend_on_the_others(fields):
    model = tiny_model(**fields).double()
    batch = {name: x.double() for name, x in tiny_batch(1, 5).items()}
    together = model(**batch).logits
    alone = torch.cat(
        [model(**{name: x[:, [frame]] for name, x in batch.items()}).logits for frame in range(5)], dim=1
    )
    torch.testing.assert_close(alone, together, atol=1e-12, rtol=1e-12)
    assert torch.equal(model(**batch).logits, together)


@every_fusion
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_of_black_frames(fields, dtype):
    """Pixels whose features are all zero have no direction."""
    model = tiny_model(**fields)
    for layer in model.model.neck.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.zero_()
            layer.bias.zero_()
    assert model.for_inference(dtype)(**tiny_batch()).logits.isfinite().all()


def test_costs():
    """The figures follow from the shapes: 64 channels, and stages of 7x7 to 56x56 pixels."""
    pixels = sum(side**2 for side in (7, 14, 28, 56))
    modulation, maps = map(fusions.count_cost, (fusions.MODULATION, fusions.SOUNDING_MAPS))
    assert modulation == (
        4 * (64 * 128 + 128 + 128 + 64 * 64 + 64 + 128),
        pytest.approx(1e-6 * (pixels * 64 * 64 + 4 * 64 * 128)),
    )
    products = pixels * (16 * 64 + 64 * (64 + 16)) + 4 * 64 * 16 * 64
    assert maps == (4 * (64 * 1024 + 1024 + 32 + 80 * 64 + 64 + 128), pytest.approx(1e-6 * products))


@pytest.mark.slow
@every_fusion
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_exported_file(tmp_path, fields, suffix):
    path, optimized = tmp_path / f"model.{suffix}", tiny_model(**fields).for_inference()
    export(optimized, draw(optimized, "input_features", (48, 64), EXPORTED_MASK), path)
    assert_file_gives_equal_logits(path, optimized, "input_features", (48, 64))
