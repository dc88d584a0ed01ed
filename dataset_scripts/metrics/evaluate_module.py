"""The measures behind the interface of the `evaluate` library; the modules themselves lie in `evaluate_modules/`.

`evaluate` stores predictions as Arrow lists and hands them back as Python objects, 8 to 32 bytes per pixel. So clips
are counted as they are added, and what stays in memory is one row of sums per clip.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

from .accumulators import IGNORE_INDEX, ClipMetrics, Protocol, RobustnessMetrics, quantize_probabilities


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
    """Input formats: masks of whole numbers, or float probabilities; each example is one clip (frames, height, width).

    Args:
        **columns: further inputs with one value per clip.
    """

    def frames(kind: str) -> datasets.Sequence:
        return datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value(kind))))

    return [
        datasets.Features({"predictions": frames(kind), "references": frames("uint8")} | columns)
        for kind in ("uint8", "float32")
    ]


class ClipEvaluation(evaluate.Metric):
    """An `evaluate` metric whose examples are clips, on top of one of our accumulators.

    Args:
        metrics: the accumulator.
        binary: predictions are masks of 0 and 1 or probabilities, not class indices.
        ignore_index: label of pixels that are not counted; None = there are none, and a label of 255 raises, because
            it may as well be the white of a mask.
        **options: what `evaluate.load` hands over.

    Raises:
        ValueError: `num_process` is above 1.
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
                f"num_process is {options['num_process']}, expected 1: across processes take the accumulators of pcmanet.dataset_scripts.metrics.accumulators and gather()"
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
            predictions: one array (frames, height, width) per clip, or all as one array (clips, frames, height,
                width).
            references: the labels, alike.
            **columns: further inputs of the module, one value per clip.

        Raises:
            ValueError: inputs are missing, their numbers, shapes or values do not fit.
        """
        inputs = {"predictions": predictions, "references": references} | columns
        sizes = {name: None if value is None else len(value) for name, value in inputs.items()}
        if set(sizes) != set(self._feature_names()) or None in sizes.values() or len(set(sizes.values())) != 1:
            raise ValueError(
                f"inputs came as {sizes} (number of clips), expected the same number of each of {self._feature_names()}"
            )
        if sizes["predictions"]:
            self._count(inputs)

    def _count(self, inputs: dict[str, Any]) -> None:
        rows = [
            self.metrics.count_predictions(*self._clip(prediction, reference))
            for prediction, reference in zip(inputs["predictions"], inputs["references"], strict=True)
        ]
        self.metrics.append(torch.cat(rows))

    def _clip(self, prediction: Any, reference: Any) -> tuple[Tensor, Tensor]:
        """One clip as a batch of one: reduced predictions and labels."""
        predictions, labels = (torch.as_tensor(np.asarray(value))[None] for value in (prediction, reference))
        if self.ignore_index is None and (labels == IGNORE_INDEX).any():
            raise ValueError(
                f"references hold {IGNORE_INDEX}: divide masks of 0 and 255 by 255, or load the module with ignore_index={IGNORE_INDEX} "
                "if it marks pixels that are not counted"
            )
        if self.binary:
            predictions = quantize_probabilities(predictions)
        elif predictions.is_floating_point():
            raise ValueError(
                f"predictions are {predictions.dtype}, expected class indices: take the argmax over the classes first"
            )
        return predictions, labels

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: str) -> None:
        """Count one clip; arguments and errors as for `add_batch`, without its first dimension."""
        self.add_batch(
            predictions=None if prediction is None else [prediction],
            references=None if reference is None else [reference],
            **{name: [value] for name, value in columns.items()},
        )

    def compute(
        self,
        *,
        predictions: Clips | None = None,
        references: Clips | None = None,
        protocol: Protocol | None = None,
        **columns: Sequence[str],
    ) -> dict[str, float]:
        """Scores of all clips added so far and of those given here; then starts anew.

        Args:
            predictions: as for `add_batch`, or nothing.
            references: as for `add_batch`, or nothing.
            protocol: `"official"`, `"batch"` (one call of `add_batch` is one batch) or `"dataset"`; None = the one the
                module was loaded with.
            **columns: as for `add_batch`.

        Raises:
            ValueError: nothing was added, unknown protocol, or as for `add_batch`.
        """
        if predictions is not None or references is not None or columns:
            self.add_batch(predictions=predictions, references=references, **columns)
        scores = self.metrics.compute(protocol)
        self.metrics.reset()
        return scores

    def __len__(self) -> int:
        """Number of clips counted so far."""
        return len(self.metrics)
