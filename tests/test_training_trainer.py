"""Clips, classes and learning rates of fine-tuning."""

import doctest
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_model
from transformers import TrainingArguments

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.sounding_shapes.files import write_avsbench_tree
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES
from pcmanet.training import trainer as trainer_module
from pcmanet.training.trainer import FineTuningData, SegmentationTrainer, TrainerCollator, choose_classes


SIZE = {"height": 48, "width": 64}


def test_the_example_in_the_docstring_holds():
    result = doctest.testmod(trainer_module)
    assert (result.attempted, result.failed) == (1, 0)


def test_chosen_classes_are_numbered_in_their_order_and_others_become_background():
    known = ["background", *CLASSES]
    chosen = choose_classes(known, ["plain-ring", "striped-disc"])
    assert chosen.labels == {
        "id2label": {0: "background", 1: "plain-ring", 2: "striped-disc"},
        "label2id": {"background": 0, "plain-ring": 1, "striped-disc": 2},
    }
    expected = [{"plain-ring": 1, "striped-disc": 2}.get(name, 0) for name in known]
    assert chosen.table[: len(known)].tolist() == expected
    assert chosen.table[255] == 255
    whole = choose_classes(known)
    assert (whole.names, whole.table.tolist()) == (known, list(range(256)))


@pytest.mark.parametrize(
    ("known", "wanted", "message"),
    [
        (["background", "dog"], ["cat"], r"\['cat'\] are not in the data; theirs are: dog"),
        (["background", "dog"], ["background"], "are not in the data"),
        (["sounding"], ["dog"], "theirs are: none, their masks are binary"),
        (["background", "dog"], ["dog", "dog"], "are not all different"),
    ],
)
def test_classes_that_cannot_be_had_are_refused(known: list[str], wanted: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        choose_classes(known, wanted)


def test_batches_hold_the_chosen_classes_and_say_by_labels_alone_what_is_scored():
    data = FineTuningData("avss", clips=2, evaluation_clips=1)
    training, validation = data.load(SIZE)
    assert (len(training), len(validation)) == (2, 1)
    chosen = choose_classes(data.classes, [CLASSES[(training[0].masks[training[0].masks > 0] - 1)[0]]])
    processor = PCMANetProcessor(PCMANetImageProcessor(size=SIZE), PCMANetFeatureExtractor())
    plain = ClipCollator(processor, binary=False)
    batch = TrainerCollator(plain, chosen)([training[0], training[1]])
    expected = torch.stack([torch.from_numpy(training[index].masks) for index in range(2)])
    kept = data.classes.index(chosen.names[1])
    assert torch.equal(batch["labels"], (expected == kept).long())
    assert batch["labels"].any()
    # A clip whose second and third seconds are not annotated.
    unmasked = plain([training[0]]) | {"annotated_frames": torch.tensor([[True, False, False, True, True]])}
    labels = TrainerCollator(lambda _clips: unmasked, chosen)([training[0]])["labels"][0]
    assert [bool((frame == 255).all()) for frame in labels] == [False, True, True, False, False]


def test_classes_and_clips_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = write_avsbench_tree(tmp_path / "tree", "s4", {"train": 2, "val": 1})
    data = FineTuningData("s4", str(root))
    assert len(data.classes) == 1
    training, validation = data.load(SIZE)
    assert (len(training), len(validation)) == (2, 1)


@pytest.mark.parametrize("rate", [None, 1e-5])
def test_the_backbone_has_a_learning_rate_of_its_own(tmp_path: Path, rate: float | None):
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
