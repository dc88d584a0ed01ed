"""Evaluation inside a training: the same figures as the measures by themselves, of every stage."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_model import tiny_config
from training_runs import TRAINED_NETWORK

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetImageProcessor, PCMANetProcessor
from modeling_pcmanet.feature_extraction_pcmanet import PCMANetFeatureExtractor
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.metrics import BinaryMetrics, SemanticMetrics
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundingShapes
from pcmanet.training.evaluation import Evaluator


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


@pytest.mark.parametrize("task", ["ms3", "avss"])
def test_figures_are_those_of_the_measures(task, accelerator):
    labels = 1 if task == "ms3" else 13
    torch.manual_seed(0)
    network = PCMANetForAudioVisualSegmentation(tiny_config(**TRAINED_NETWORK, num_labels=labels)).eval()
    with torch.no_grad():
        for stage in network.model.stages:
            stage.head[-1].weight.mul_(5.0)  # so that the stages differ and some pixels are sure
    processor = PCMANetProcessor(PCMANetImageProcessor(size={"height": 32, "width": 32}), PCMANetFeatureExtractor())
    collate = ClipCollator(processor, binary=labels == 1)
    clips = SoundingShapes(task, "val", length=3, height=32, width=32, num_frames=2)

    state = torch.get_rng_state()
    evaluation = Evaluator(clips, collate, 2, 0, accelerator)(network)
    assert torch.equal(torch.get_rng_state(), state)

    losses, kept = [], []
    metrics = [BinaryMetrics() if labels == 1 else SemanticMetrics(labels) for _ in range(4)]
    with torch.no_grad():
        for clip in clips:
            batch = collate([clip])
            outputs = network(**batch)
            losses.append(outputs.loss.item())
            kept.append(outputs.kept_ratios)
            for stage, logits in zip(metrics, outputs.stage_logits, strict=True):
                stage.update(logits, batch["labels"])
    figures = evaluation.figures
    expected = metrics[-1].compute()
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["frames"] == 6
    assert figures["loss"] == pytest.approx(sum(losses) / 3)
    found = [figures[f"stage_{number}/miou"] for number in (4, 3, 2, 1)]
    assert found == pytest.approx([stage.compute()["miou"] for stage in metrics])
    assert found[-1] == figures["miou"]
    ratios = [figures[f"stage_{number}/kept_ratio"] for number in (4, 3, 2)]
    assert ratios == pytest.approx(torch.stack(kept).mean(0).tolist())

    panel = evaluation.panel
    assert panel.frames.shape == (2, 32, 32, 3)
    # What the network saw is the picture itself, but for the rounding of the normalisation.
    assert abs(panel.frames.astype(int) - clips[0].frames).max() <= 1
    assert (panel.labels == (clips[0].binary if labels == 1 else clips[0].masks)).all()
    assert panel.masks.shape == panel.labels.shape and panel.masks.max() < max(labels, 2)


def test_validation_clips_without_masks_are_refused(accelerator):
    network = PCMANetForAudioVisualSegmentation(tiny_config(**TRAINED_NETWORK)).eval()
    processor = PCMANetProcessor(PCMANetImageProcessor(size={"height": 32, "width": 32}), PCMANetFeatureExtractor())
    clip = SoundingShapes("ms3", "val", length=1, height=32, width=32, num_frames=2)[0]
    unannotated = replace(clip, annotated_frames=np.zeros(2, dtype=bool))
    with pytest.raises(ValueError, match="no frame of the validation clips is annotated; name their masks"):
        Evaluator([unannotated], ClipCollator(processor, binary=True), 1, 0, accelerator)(network)
