"""The metrics with the interface of the `evaluate` library; the modules that it loads are in `evaluate_modules/`.

`evaluate` stores predictions as Arrow lists and returns them as Python objects, 8 to 32 bytes per pixel. Therefore clips
are counted when they are added, and only one row of sums per clip is kept in memory.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

from .segmentation import IGNORE_INDEX, Audio, ClipMetrics, Protocol, RobustnessMetrics, quantize_probabilities


AVSBENCH_CITATION = """@inproceedings{zhou2022avs,
  title={Audio-Visual Segmentation},
  author={Zhou, Jinxing and Wang, Jianyuan and Zhang, Jiayi and Sun, Weixuan and Zhang, Jing and Birchfield, Stan and
  Guo, Dan and Kong, Lingpeng and Wang, Meng and Zhong, Yiran}, booktitle={European Conference on Computer Vision},
  year={2022}
}"""
ROBUST_CITATION = """@article{li2025audio,
  title={Do Audio-Visual Segmentation Models Truly Segment Sounding Objects?},
  author={Li, Jia and Zhao, Wenjie and Huang, Ziru and Guo, Yunhui and Tian, Yapeng},
  journal={arXiv preprint arXiv:2502.00358},
  year={2025}
}"""

Clips = Sequence[Any]  # one entry per clip: an array, tensor or nested list (frames, height, width)


def clip_features(**columns: datasets.Value) -> list[datasets.Features]:
    """Return the input formats: integer masks or float probabilities; each example is a clip (frames, height, width).

    Args:
        **columns: Additional inputs with one value per clip.
    """

    def frames(kind: str) -> Any:
        return datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value(kind))))

    return [
        datasets.Features({"predictions": frames(kind), "references": frames("uint8")} | columns)
        for kind in ("uint8", "float32")
    ]


class ClipEvaluation(evaluate.Metric):
    """Base class of the `evaluate` metrics, whose examples are clips.

    Args:
        metrics: The accumulator.
        binary: Whether predictions are masks of 0 and 1 or probabilities, not class indices.
        ignore_index: Label of pixels that are not counted. If None, all pixels are counted and a label of 255 raises
            ValueError, because it could be the foreground of a mask of 0 and 255.
        **options: Passed on by `evaluate.load`.

    Raises:
        ValueError: If `num_process` is above 1.
    """

    def __init__(
        self,
        metrics: ClipMetrics | RobustnessMetrics,
        *,
        binary: bool,
        ignore_index: int | None,
        **options: Any,
    ):
        if options.get("num_process", 1) != 1:
            raise ValueError(
                f"Expected num_process 1, got {options['num_process']}. For several processes use the accumulators of "
                "pcmanet.dataset_scripts.metrics and gather()."
            )
        super().__init__(**options)
        self.metrics = metrics
        self.binary = binary
        self.ignore_index = ignore_index

    def add_batch(
        self, *, predictions: Clips | None = None, references: Clips | None = None, **columns: Sequence[str]
    ) -> None:
        """Count a batch of clips.

        Args:
            predictions: One array (frames, height, width) per clip, or one array (clips, frames, height, width).
            references: The labels, in the same form.
            **columns: Additional inputs of the module, one value per clip.

        Raises:
            ValueError: If inputs are missing, or their numbers, shapes or values do not match.
        """
        inputs = {"predictions": predictions, "references": references} | columns
        sizes = {name: None if value is None else len(value) for name, value in inputs.items()}
        if set(sizes) != set(self._feature_names()) or None in sizes.values() or len(set(sizes.values())) != 1:
            raise ValueError(f"Expected the same number of clips for each of {self._feature_names()}, got {sizes}.")
        if sizes["predictions"]:
            self._count(inputs)

    def _count(self, inputs: dict[str, Any]) -> None:
        # The clips of a call with the same type of audio are one batch.
        rows: dict[Audio, list[Tensor]] = {}
        types = inputs.get("audio", ["positive"] * len(inputs["predictions"]))
        for prediction, reference, audio in zip(inputs["predictions"], inputs["references"], types, strict=True):
            row = self._accumulator(audio).count_predictions(*self._clip(prediction, reference))
            rows.setdefault(audio, []).append(row)
        for audio, batch in rows.items():
            self._accumulator(audio).append(torch.cat(batch))

    def _accumulator(self, audio: Audio) -> ClipMetrics:
        """Return the accumulator of a type of audio."""
        return self.metrics if isinstance(self.metrics, ClipMetrics) else self.metrics[audio]

    def _clip(self, prediction: Any, reference: Any) -> tuple[Tensor, Tensor]:
        """Return the reduced predictions and the labels of a clip as a batch of one."""
        predictions, labels = (torch.from_numpy(np.asarray(value))[None] for value in (prediction, reference))
        if self.ignore_index is None and (labels == IGNORE_INDEX).any():
            raise ValueError(
                f"References contain {IGNORE_INDEX}. Divide masks of 0 and 255 by 255, or load the module with "
                f"ignore_index={IGNORE_INDEX} if it marks pixels that are not counted."
            )
        if self.binary:
            predictions = quantize_probabilities(predictions)
        elif predictions.is_floating_point():
            raise ValueError(
                f"Expected class indices as predictions, got {predictions.dtype}. Take the argmax over the classes first."
            )
        return predictions, labels

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Count a clip. Arguments and errors as for `add_batch`, without the first dimension."""
        # `evaluate.combine` passes a clip under the names of a batch.
        clip = {"predictions": prediction, "references": reference} | columns
        batch: dict[str, Any] = {name: None if value is None else [value] for name, value in clip.items()}
        self.add_batch(**batch)

    def compute(
        self,
        *,
        predictions: Clips | None = None,
        references: Clips | None = None,
        protocol: Protocol | None = None,
        **columns: Sequence[str],
    ) -> dict[str, float]:
        """Compute the scores of all clips added before and passed here; then reset the accumulator.

        Args:
            predictions: As for `add_batch`, or None.
            references: As for `add_batch`, or None.
            protocol: `"official"`, `"batch"` (each call of `add_batch` is a batch) or `"dataset"`; None = the one with
                which the module was loaded.
            **columns: As for `add_batch`.

        Raises:
            ValueError: If nothing was added, the protocol is unknown, or as for `add_batch`.
        """
        if predictions is not None or references is not None or columns:
            self.add_batch(predictions=predictions, references=references, **columns)
        scores = self.metrics.compute(protocol)
        self.metrics.reset()
        return scores

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.metrics)
