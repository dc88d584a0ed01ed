"""examples/export_onnx.py: files with the logits of the model for other numbers of clips and frames, and errors."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_inference_pcmanet import BACKBONES, build

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
)
from modeling_pcmanet.feature_extraction_pcmanet import build_feature_extractor
from pcmanet.examples import export_onnx
from pcmanet.examples.export_onnx import CHECKED_MASKS, EXPORTED_MASK, compare, export, input_shapes, load, make_batch


ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "export_onnx.py"
DEMO_MODEL = ROOT / "examples" / "demo_model"
# The second clip starts with padding, the third is padding only.
HARD_MASK = ((True, True), (False, True), (False, False), (True, False))


def draw(model: torch.nn.Module, audio_input: str, size: tuple[int, int], mask: tuple[tuple[bool, ...], ...]):
    """Draw a batch for a model and the default processor of its audio encoder."""
    image_processor = PCMANetImageProcessor(size={"height": 32, "width": 32})
    processor = PCMANetProcessor(image_processor, build_feature_extractor(model.config.audio_config))
    return make_batch(input_shapes(model.config, processor, audio_input, size), mask)


def parse(monkeypatch, *arguments: str | Path):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    return export_onnx.parse_args()


def assert_file_gives_equal_logits(path: Path, optimized: torch.nn.Module, audio_input: str, size: tuple[int, int]):
    run = load(path)
    for mask in (*CHECKED_MASKS, EXPORTED_MASK, ((True,),), HARD_MASK):
        batch = draw(optimized, audio_input, size, mask)
        expected = optimized(**batch).logits
        assert expected.shape == (*batch["frame_mask"].shape, optimized.config.num_labels, *size)
        torch.testing.assert_close(
            run(batch) / expected.abs().max(), expected / expected.abs().max(), atol=1e-5, rtol=0
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "audio_input", "size", "overrides"),
    [
        ("bottleneck ResNet", "input_features", (64, 64), {}),
        ("PVT-v2", "audio_embeds", (50, 71), {"num_labels": 5, "token_grid_sizes": [1, 3, 4, 16]}),
        ("basic ResNet", "input_features", (33, 40), {"padded_frames": "zeroed", "token_layout": "scrambled"}),
    ],
)
def test_onnx_file_of_every_kind_of_network(tmp_path, backbone, audio_input, size, overrides):
    path, optimized = tmp_path / "model.onnx", build(**BACKBONES[backbone], **overrides).for_inference()
    export(optimized, draw(optimized, audio_input, size, EXPORTED_MASK), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert_file_gives_equal_logits(path, optimized, audio_input, size)
    graph = onnx.load(path).graph
    shapes = {x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in graph.input}
    assert list(shapes) == ["pixel_values", audio_input, "frame_mask"]
    assert shapes["pixel_values"] == ["batch", "frames", 3, *size]
    assert shapes["frame_mask"] == ["batch", "frames"]
    assert {node.domain for node in graph.node} == {""}


@pytest.mark.slow
def test_torch_export_file(tmp_path):
    path, optimized = tmp_path / "model.pt2", build().for_inference()
    export(optimized, draw(optimized, "input_features", (48, 64), EXPORTED_MASK), path)
    assert_file_gives_equal_logits(path, optimized, "input_features", (48, 64))


@pytest.mark.slow
def test_command_line_exports_the_demo_model(tmp_path):
    """The file takes the batch of the processor and runs without PyTorch."""
    answer = subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    assert answer.returncode == 0, answer.stderr
    assert "model.onnx: 10 MB, for frames of 112 x 112" in answer.stdout
    rows = [line.strip("| ").split(" | ") for line in answer.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["1 x 5", "3 x 2"]
    assert all(0 <= float(row[-1]) <= 1e-5 for row in rows[2:])

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    processor = PCMANetProcessor.from_pretrained(DEMO_MODEL)
    batch = dict(processor(videos=str(ROOT / "examples" / "demo.mp4"), return_tensors="np"))
    batch.setdefault("frame_mask", np.ones(batch["pixel_values"].shape[:2], bool))
    (logits,) = session.run(["logits"], batch)
    fractions = (logits[0, :, 0] > 0).mean(axis=(1, 2))
    # Large sounding objects in the first three seconds, none in the fourth.
    np.testing.assert_allclose(fractions, [0.273, 0.216, 0.373, 0, 0.072], atol=2e-3)


@pytest.mark.slow
def test_strided_convolutions_of_the_small_network(tmp_path):
    """With wide kernels, whose weights the exporter does not pad in advance."""
    torch.manual_seed(0)
    model = PCMANetForAudioVisualSegmentation(PCMANetConfig.from_preset("small"))
    optimized = model.eval().for_inference()
    path = tmp_path / "model.onnx"
    export(optimized, draw(optimized, "audio_embeds", (64, 64), EXPORTED_MASK), path)
    assert_file_gives_equal_logits(path, optimized, "audio_embeds", (64, 64))


def test_checked_batches_have_other_sizes_than_the_exported_one():
    model = build()
    for audio_input, shape in (("input_features", (1, 16, 8)), ("audio_embeds", (10,))):
        for mask in (EXPORTED_MASK, *CHECKED_MASKS):
            batch = draw(model, audio_input, (40, 56), mask)
            assert list(batch) == ["pixel_values", audio_input, "frame_mask"]
            clips = (len(mask), len(mask[0]))
            assert batch["pixel_values"].shape == (*clips, 3, 40, 56)
            assert batch[audio_input].shape == (*clips, *shape)
    exported = torch.tensor(EXPORTED_MASK).shape
    for mask in map(torch.tensor, CHECKED_MASKS):
        assert all(a != b for a, b in zip(mask.shape, exported, strict=True))


def test_compare_finds_a_difference(capsys):
    model = build()
    batch = draw(model, "input_features", (32, 32), ((True, True), (True, False)))
    with torch.no_grad():
        exact, largest = model(**batch).logits, model(**batch).logits.abs().max()
    runs = {"model": lambda _: exact, "optimized": lambda _: exact, "bad.onnx": lambda _: exact + 0.25 * largest}
    assert compare(runs, [batch]) == pytest.approx(0.25, rel=1e-3)
    header, _, row = capsys.readouterr().out.splitlines()
    assert "bad.onnx, speed relative to optimized" in header
    assert row.startswith("| 2 x 2 |")
    assert row.endswith("| 2.5e-01 |")


def test_compare_returns_nan_of_any_batch():
    model = build()
    batches = [draw(model, "input_features", (32, 32), mask) for mask in (((True,),), ((True, True),))]
    with torch.no_grad():
        exact = [model(**batch).logits for batch in batches]

    def with_nan(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return exact[0] if batch is batches[0] else exact[1] * torch.nan

    def unchanged(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return exact[0] if batch is batches[0] else exact[1]

    for order in (batches, batches[::-1]):
        assert math.isnan(compare({"model": unchanged, "optimized": unchanged, "bad.onnx": with_nan}, order))


def test_different_logits_raise(monkeypatch, tmp_path, capsys):
    output = tmp_path / "bad.onnx"
    parse(monkeypatch, DEMO_MODEL, "--output", output, "--size", "32", "48")
    monkeypatch.setattr(export_onnx, "export", lambda _optimized, _batch, path: path.write_bytes(bytes(2_000_000)))
    zeros = torch.zeros(1, 1, 1, 32, 48)
    monkeypatch.setattr(export_onnx, "load", lambda _path: lambda _batch: zeros)
    with pytest.raises(SystemExit, match=r"bad\.onnx differ .* by 1\.0e\+00 .*Do not use the file"):
        export_onnx.main()
    assert "bad.onnx: 2 MB, for frames of 32 x 48 and any number" in capsys.readouterr().out


def test_suffix_selects_the_format(monkeypatch, capsys):
    assert parse(monkeypatch).output == Path("model.onnx")
    assert parse(monkeypatch, "OWNER/NAME", "--output", "a.pt2").model == "OWNER/NAME"
    with pytest.raises(SystemExit):
        parse(monkeypatch, "--output", "model.pt")
    assert "Expected --output to end in .onnx or .pt2" in capsys.readouterr().err


def test_size_is_checked(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        parse(monkeypatch, "--size", "0", "224")
    assert "--size: expected an integer of 1 or more, got 0" in capsys.readouterr().err


def test_missing_output_folder_is_an_error(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        parse(monkeypatch, "--output", tmp_path / "missing" / "model.onnx")
    assert "create it first" in capsys.readouterr().err


def test_missing_model_is_an_error_without_a_traceback(monkeypatch, tmp_path):
    words = ["export_onnx", str(tmp_path / "nowhere"), "--output", str(tmp_path / "model.pt2")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="error: Checkpoint folder .*nowhere not found"):
        export_onnx.main()


def test_missing_packages_are_an_error(monkeypatch, capsys):
    monkeypatch.setattr(export_onnx, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(SystemExit):
        parse(monkeypatch)
    message = capsys.readouterr().err
    assert "onnxruntime, which are not installed" in message
    assert "pip install 'pcmanet[onnx]'" in message
    assert parse(monkeypatch, "--output", "model.pt2").output.suffix == ".pt2"
