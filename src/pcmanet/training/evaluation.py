"""Evaluation inside a training: the real measures on every validation clip once, however many processes share them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation
from modeling_pcmanet.configuration_pcmanet import NUM_STAGES
from modeling_pcmanet.modeling_pcmanet import PCMANetOutput
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.metrics import BinaryMetrics, ClipMetrics, SemanticMetrics

from .data import Batch, scored_frames, validation_batches


# The paper counts its stages from fine to coarse, the network walks them from coarse to fine.
STAGES = tuple(range(NUM_STAGES, 0, -1))


@dataclass(frozen=True)
class Panel:
    """The first validation clip, to look at.

    Attributes:
        frames: uint8 (frames, height, width, 3), as the network saw them.
        masks: long (frames, height, width), predicted classes (binary: 0 and 1).
        labels: long (frames, height, width), right classes; 255 is ignored.
    """

    frames: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        figures: The measures of the final output under the official protocol, `loss`, and for every stage (numbered as in
            the paper, 4 is the coarsest) `stage_N/miou` and, but for the last, `stage_N/kept_ratio`.
        panel: On the main process the first clip, else None.
    """

    figures: dict[str, float]
    panel: Panel | None


class Evaluator:
    """Measures networks on the validation clips.

    Args:
        clips: The data set.
        collate: Makes a batch.
        batch_size: Clips per batch.
        num_workers: Processes that read ahead.
        accelerator: Says which share of the batches is this process's.
    """

    def __init__(
        self, clips: Dataset[Any], collate: ClipCollator, batch_size: int, num_workers: int, accelerator: Accelerator
    ) -> None:
        self.accelerator = accelerator
        self.batches = validation_batches(len(clips), batch_size, accelerator.process_index, accelerator.num_processes)
        self.clips, self.collate, self.num_workers = clips, collate, num_workers

    @torch.no_grad()
    def __call__(self, network: PCMANetForAudioVisualSegmentation) -> Evaluation:
        """Measure a network in float32, so that the figures are those that `examples/evaluate_pcmanet.py` finds.

        Args:
            network: In evaluation mode, not wrapped, with the same weights on every process.

        Returns:
            The same figures on every process.

        Raises:
            ValueError: If no frame is annotated.
        """
        num_labels = network.config.num_labels
        metrics = [BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels) for _ in STAGES]
        # Sums over frames: loss and how many are annotated; kept ratios and how many frames are real.
        sums = torch.zeros(NUM_STAGES + 2, dtype=torch.float64)
        panel = None
        bar = tqdm(
            zip(self.batches, self._loader(), strict=True),
            desc="validation",
            unit="batch",
            total=len(self.batches),
            leave=False,
            disable=not self.accelerator.is_main_process,
        )
        for indices, batch in bar:
            batch = {name: values.to(self.accelerator.device) for name, values in batch.items()}
            outputs = network(**batch)
            for stage_metrics, logits in zip(metrics, outputs.stage_logits, strict=True):
                masks = batch["labels"], batch["frame_mask"], batch["annotated_frames"]
                stage_metrics.update(logits.float(), *masks, clip_indices=indices)
            sums += _frame_sums(outputs, batch)
            if panel is None and self.accelerator.is_main_process:
                panel = _draw_panel(outputs, batch, self.collate)
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum")
        return Evaluation(_figures(metrics, sums.tolist()), panel)

    def _loader(self) -> DataLoader:
        """Read this process's batches."""
        return DataLoader(
            self.clips,
            batch_sampler=self.batches,
            collate_fn=self.collate,
            num_workers=min(self.num_workers, len(self.batches)),
            # Left to itself a loader draws from the generator of the network's dropout.
            generator=torch.Generator().manual_seed(0),
        )


def _frame_sums(outputs: PCMANetOutput, batch: Batch) -> torch.Tensor:
    """Sums of one batch, from its means."""
    annotated, real = scored_frames(batch).sum(), batch["frame_mask"].sum()
    parts = [outputs.loss * annotated, annotated, *(outputs.kept_ratios * real), real]
    return torch.stack([part.double().cpu() for part in parts])


def _figures(metrics: list[ClipMetrics], sums: list[float]) -> dict[str, float]:
    """Turn what was counted on all processes into figures."""
    loss, annotated, *kept, real = sums
    if not annotated:
        raise ValueError("no frame of the validation clips is annotated; name their masks in the table of the data.")
    scores = [stage_metrics.gather().compute() for stage_metrics in metrics]
    figures = scores[-1] | {"loss": loss / annotated}
    figures |= {f"stage_{stage}/miou": score["miou"] for stage, score in zip(STAGES, scores, strict=True)}
    return figures | {f"stage_{stage}/kept_ratio": value / real for stage, value in zip(STAGES, kept, strict=False)}


def _draw_panel(outputs: PCMANetOutput, batch: Batch, collate: ClipCollator) -> Panel:
    """Take the first clip of a batch as pictures."""
    real = batch["frame_mask"][0].cpu()
    images = collate.processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.image_mean, images.image_std))
    pixels = (batch["pixel_values"][0].cpu()[real] * std + mean).clamp(0, 1) * 255
    masks = collate.processor.post_process_semantic_segmentation(outputs)[0]
    return Panel(
        frames=pixels.round().byte().permute(0, 2, 3, 1).numpy(),
        masks=masks.cpu()[real].numpy(),
        labels=batch["labels"][0].cpu()[real].numpy(),
    )
