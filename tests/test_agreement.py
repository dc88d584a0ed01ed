"""Tests of src/pcmanet/agreement.py: masks in bfloat16 against those in float32, and what is written to the configuration."""

import importlib.util
import json
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import cast

import pytest
import torch
from command_runs import save_checkpoint
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_model import tiny_batch, tiny_model
from written_trees import write_trees

from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation
from pcmanet.agreement import main, measure_agreement, to_masks, write_agreement
from pcmanet.dataset_scripts.avsbench import load_avsbench
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.training.publishing import load_result


def test_agreement_is_the_mean_over_frames_of_the_iou():
    model, batch = tiny_model(sharpness=4.0), tiny_batch(clips=1, frames=4)
    with torch.inference_mode():
        exact, rounded = (
            to_masks(model.for_inference(dtype)(**batch).logits)[0].bool() for dtype in (torch.float32, torch.bfloat16)
        )
    assert exact.any(dim=(1, 2)).all() and not torch.equal(exact, rounded)
    ious = (exact & rounded).sum((1, 2)) / (exact | rounded).sum((1, 2))
    assert measure_agreement(model, [batch]) == pytest.approx(ious.mean().item(), abs=1e-4)


def test_padding_does_not_count():
    model, batch = tiny_model(sharpness=4.0), tiny_batch(clips=1, frames=3)
    padded = {name: torch.cat([values, values.new_ones(1, 1, *values.shape[2:])], 1) for name, values in batch.items()}
    padded["frame_mask"] = torch.tensor([[True, True, True, False]])
    assert measure_agreement(model, [padded]) == pytest.approx(measure_agreement(model, [batch]), abs=1e-4)


def test_disagreement_is_found():
    """Features far from zero, of which bfloat16 keeps too few digits to tell them apart."""
    model, batch = tiny_model(), tiny_batch(clips=1)
    head = model.model.stages[-1].head
    with torch.no_grad():
        head[1].running_mean -= 1000.0
        head[-1].bias -= model(**batch).logits.median()
    assert 0 <= measure_agreement(model, [batch]) < 0.9


def test_classes_are_compared_one_by_one():
    model = tiny_model(num_labels=4, sharpness=4.0)
    assert 0.5 < measure_agreement(model, [tiny_batch(seed=seed) for seed in (0, 1)]) <= 1


def test_only_one_field_of_the_configuration_is_written(tmp_path: Path):
    folder = save_checkpoint(tmp_path / "model")
    before = json.loads((folder / "config.json").read_text())
    write_agreement(folder, 0.99876)
    after = json.loads((folder / "config.json").read_text())
    assert after == before | {"bfloat16_agreement": 0.9988}
    assert PCMANetForAudioVisualSegmentation.from_pretrained(folder).config.bfloat16_agreement == 0.9988


def test_command_measures_on_generated_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    folder = save_checkpoint(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["agreement", str(folder), "--clips", "2"])
    main()
    agreement = PCMANetConfig.from_pretrained(folder).bfloat16_agreement
    assert agreement is not None and 0.5 < agreement <= 1
    assert f"between the masks in bfloat16 and float32: {agreement:.4f}" in capsys.readouterr().out


def test_command_measures_on_clips_of_avsbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, root = save_checkpoint(tmp_path / "model"), write_trees(tmp_path, ms3={"val": 2})
    monkeypatch.setattr(sys, "argv", ["agreement", str(folder), "--data", str(root), "--name", "ms3"])
    main()
    rows = list(load_avsbench(root, "ms3", split="val", streaming=True))
    model, collate = load_result(folder)[0], ClipCollator(load_result(folder)[1], binary=True)
    expected = measure_agreement(model, [collate([row]) for row in rows])
    assert PCMANetConfig.from_pretrained(folder).bfloat16_agreement == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("option", ["--name=s4", "--split=test"])
def test_options_of_data_need_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, option: str):
    monkeypatch.setattr(sys, "argv", ["agreement", "model", option])
    with pytest.raises(SystemExit):
        main()
    assert "--name and --split require --data" in capsys.readouterr().err


def test_training_forgets_the_agreement():
    model = tiny_model(bfloat16_agreement=0.995)
    model.eval()
    assert model.config.bfloat16_agreement == 0.995
    model.train()
    assert model.config.bfloat16_agreement is None


def test_agreement_is_a_fraction():
    with pytest.raises(
        StrictDataclassClassValidationError, match="`bfloat16_agreement` is a mean IoU in \\[0, 1\\] or None, got 99.5"
    ):
        tiny_model(bfloat16_agreement=99.5)


def test_averaged_checkpoints_forget_the_agreement_of_one(tmp_path: Path):
    path = Path(__file__).parent.parent / "examples" / "paired_data" / "bundle_model.py"
    spec = cast(ModuleSpec, importlib.util.spec_from_file_location(path.stem, path))
    module = importlib.util.module_from_spec(spec)
    cast(Loader, spec.loader).exec_module(module)
    for name, seed in (("one", 2), ("other", 3)):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        write_agreement(tmp_path / name, 0.995)
    average = module.load_average([tmp_path / "one", tmp_path / "other"])
    assert average.config.bfloat16_agreement is None
    weights = (tiny_model(seed=seed).model.audio_projection.weight for seed in (2, 3))
    torch.testing.assert_close(average.model.audio_projection.weight, sum(weights) / 2)
