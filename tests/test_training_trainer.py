"""Fine-tuning with the Trainer: chosen classes, collation, and learning rates."""

import doctest
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_model import tiny_model
from transformers import TrainingArguments

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundingShapes
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES
from pcmanet.training import trainer as trainer_module
from pcmanet.training.trainer import SegmentationTrainer, choose_classes, collate_for_trainer, open_output


SIZE = {"height": 48, "width": 64}


def test_docstring_example():
    result = doctest.testmod(trainer_module)
    assert (result.attempted, result.failed) == (2, 0)


def test_chosen_classes_are_numbered_in_their_order_and_others_become_background():
    known = ["background", *CLASSES]
    names, table = choose_classes(known, ["plain-ring", "striped-disc"])
    assert names == ["background", "plain-ring", "striped-disc"]
    expected = [{"plain-ring": 1, "striped-disc": 2}.get(name, 0) for name in known]
    assert table[: len(known)].tolist() == expected
    assert table[255] == 255
    with torch.device("meta"):  # as `torch.set_default_device`; the labels of a batch are on the CPU
        names, table = choose_classes(known)
    assert (names, table.tolist()) == (known, list(range(256)))


@pytest.mark.parametrize(
    ("known", "wanted", "message"),
    [
        (["background", "dog"], ["cat"], r"\['cat'\] not found in the data. Its classes are: dog"),
        (["background", "dog"], ["background"], "not found in the data"),
        (["sounding"], ["dog"], "Its classes are: none, the masks are binary"),
        (["background", "dog"], ["dog", "dog"], "Expected different classes"),
    ],
)
def test_invalid_classes_are_refused(known: list[str], wanted: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        choose_classes(known, wanted)


def test_only_checkpoints_are_a_run(tmp_path: Path):
    arguments = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=None)
    for name in ("2026", "checkpoint-old"):
        (tmp_path / name).mkdir()
    assert open_output(arguments) is None
    (tmp_path / "checkpoint-2026").mkdir()
    with pytest.raises(FileExistsError, match=r"already contains a run \(checkpoint-2026\)"):
        open_output(arguments)


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json"])
@pytest.mark.parametrize("resume", [None, "latest"])
def test_finished_run_without_checkpoints_does_not_start_again(name: str, resume: str | None, tmp_path: Path):
    (tmp_path / name).touch()
    message = rf"already contains a run \({name}\). It has no checkpoints. Choose another --output_dir"
    with pytest.raises(FileExistsError, match=message):
        open_output(SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=resume))


def test_labels_have_the_chosen_classes_and_mark_ignored_frames():
    clips = SoundingShapes("avss", "train", length=2, **SIZE)
    known = ["background", *CLASSES]
    names, table = choose_classes(known, [known[clips[0].masks[clips[0].masks > 0][0]]])
    processor = PCMANetProcessor(PCMANetImageProcessor(size=SIZE), PCMANetFeatureExtractor())
    collate = ClipCollator(processor, binary=False)
    batch = collate_for_trainer(collate, table, [clips[0], clips[1]])
    expected = torch.stack([torch.from_numpy(clips[index].masks) for index in range(2)])
    assert torch.equal(batch["labels"], (expected == known.index(names[1])).long())
    assert batch["labels"].any()
    partly = replace(clips[0], annotated_frames=np.array([True, False, False, True, True]))
    labels = collate_for_trainer(collate, table, [partly])["labels"][0]
    assert [bool((frame == 255).all()) for frame in labels] == [False, True, True, False, False]


@pytest.mark.parametrize("rate", [None, 1e-5])
def test_backbone_learning_rate(tmp_path: Path, rate: float | None):
    model = tiny_model()
    arguments = TrainingArguments(str(tmp_path), learning_rate=1e-3, weight_decay=0.1, use_cpu=True, report_to=[])
    trainer = SegmentationTrainer(model, arguments, backbone_learning_rate=rate)
    optimizer = trainer.create_optimizer()
    found = {
        id(weight): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found) == len(learning)
    for name, weight in learning.items():
        assert found[id(weight)][0] == (rate if rate and "backbone." in name else 1e-3), name
    # Norms and biases do not decay, inside the backbone and outside.
    decays = {(found[id(weight)][1], "backbone." in name) for name, weight in learning.items()}
    assert decays == {(0.1, True), (0.0, True), (0.1, False), (0.0, False)}
    trainer.create_scheduler(num_training_steps=10)
    assert len(trainer.lr_scheduler.get_last_lr()) == len(optimizer.param_groups) == (2 if rate is None else 4)
