"""The measures of AVSBench as small accumulators: update with batches, compute at the end, merge across processes.

An accumulator keeps one row of sums per clip, never pixels. From the rows it computes any of three protocols, which
published numbers mix up:

- `"official"`: AVSBench's evaluation with one clip per batch, as its test scripts run it. Does not depend on the batch
  size.
- `"batch"`: the same formula on the clips of each `update` call, then the plain mean over the calls: numbers that were
  measured with larger batches.
- `"dataset"`: pixels are summed over the whole data set before any ratio is taken. Does not depend on the batch size.

Sums over clips are exactly rounded (`math.fsum`), so neither the order of the clips nor the number of processes
changes the last digit.
"""

from torch import Tensor

from .clip_metrics import ClipMetrics, Protocol, Table, checked_protocol, exact_mean, exact_sum
from .metric_counts import (
    FIRST_FOREGROUND_CODE,
    IGNORE_INDEX,
    THRESHOLD_COUNT,
    binary_iou,
    class_counts,
    class_iou,
    code_histogram,
    f_score,
    foreground_counts,
    threshold_counts,
)


class BinaryMetrics(ClipMetrics):
    """IoU ("J") and F score of foreground masks: the measures of AVSBench's S4 and MS3.

    A pixel is foreground if sigmoid(logit) > 0.5; a frame with an empty target scores the fraction of pixels left
    empty in IoU and is skipped in F; F is the maximum over 255 thresholds of a group's mean curve, so it depends on
    the grouping. `compute` returns `miou`, `f_score` in [0, 1], and the numbers of scored `frames`, and of `groups`
    that were averaged.

    Example:
        >>> import torch
        >>> metrics = BinaryMetrics()
        >>> logits = torch.tensor([[4.0, 4.0], [-4.0, -4.0]]).view(1, 1, 1, 2, 2)
        >>> metrics.update(logits, torch.tensor([[1, 0], [0, 0]]).view(1, 1, 2, 2))
        >>> {name: round(value, 4) for name, value in metrics.compute().items()}
        {'miou': 0.5, 'f_score': 0.5652, 'frames': 1.0, 'groups': 1.0}
    """

    label_columns = ("frames", "labelled_frames", "target")

    def __init__(
        self, protocol: Protocol = "official", *, ignore_index: int = IGNORE_INDEX, score_padding: bool = False
    ):
        super().__init__(1, protocol, ignore_index=ignore_index, score_padding=score_padding)

    @property
    def columns(self) -> dict[str, int]:
        """Column names of a row, each with its width: sums over the frames of the clip."""
        scalars = ("frames", "pixels", "iou", "labelled_frames", "intersection", "predicted", "target")
        curves = ("curve", "curve_intersection", "curve_predicted")
        return dict.fromkeys(scalars, 1) | dict.fromkeys(curves, THRESHOLD_COUNT)

    def _measure_frames(self, predictions: Tensor, targets: Tensor) -> Table:
        histogram = code_histogram(predictions, targets, self.ignore_index).cpu()
        pixels, target = histogram.sum((1, 2)), histogram[:, 1].sum(1)
        above_half, reached = foreground_counts(histogram), threshold_counts(histogram)
        intersection, predicted = above_half[:, 1], above_half.sum(1)
        curve = f_score(reached[:, 1], reached.sum(1), target[:, None])
        return {
            "frames": pixels > 0,
            "pixels": pixels,
            "iou": binary_iou(intersection, predicted, target, pixels),
            "labelled_frames": target > 0,
            "intersection": intersection,
            "predicted": predicted,
            "target": target,
            "curve": curve,  # zero for an empty target, so such frames drop out of the sum
            "curve_intersection": reached[:, 1],
            "curve_predicted": reached.sum(1),
        }

    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        if protocol == "dataset":
            iou = binary_iou(*(groups[name] for name in ("intersection", "predicted", "target", "pixels")))
            curve = f_score(groups["curve_intersection"], groups["curve_predicted"], groups["target"])
        else:
            iou = groups["iou"] / groups["frames"]
            curve = groups["curve"] / groups["labelled_frames"].clamp(min=1.0)
        return {
            "miou": exact_mean(iou),
            "f_score": exact_mean(curve.amax(1)),
            "frames": float(groups["frames"].sum()),
            "groups": float(len(iou)),
        }


class SemanticMetrics(ClipMetrics):
    """Mean IoU and F score over classes: the measures of AVSBench-semantic (AVSS).

    The class of a pixel is the argmax, the first of equals. `"official"`: per frame and class, then the mean over the
    frames that show the class in the prediction or the target, then the mean over all classes (one never seen counts
    0). `"batch"`: that inside each update call, then per class the mean over the calls that show it. `"dataset"`:
    ratios of pixels summed over everything.

    `compute` returns `miou` and `f_score` over all classes, `..._no_background` over classes 1 and up,
    `..._seen_classes` over the classes seen, and the numbers of `classes_seen` and scored `frames`.

    Args:
        num_labels: number of classes with background, which is class 0 (AVSS: 71).
        protocol: what `compute` uses unless told otherwise.
        ignore_index: label of pixels that are not counted.
        score_padding: also score the padded frames of short clips, as published.
        report_published_no_background: also return `..._published_no_background`: the official script slices `[:-1]`,
            which keeps the background and drops the last class (AVSS: woman). Wrong, but what published tables hold.

    Raises:
        ValueError: fewer than two classes, unknown protocol, or an `ignore_index` that is a class.

    Example:
        >>> import torch
        >>> metrics = SemanticMetrics(num_labels=3)
        >>> logits = torch.nn.functional.one_hot(torch.tensor([[0, 1], [1, 1]]), 3).permute(2, 0, 1).float()
        >>> metrics.update(logits[None, None], torch.tensor([[0, 0], [1, 1]])[None, None])
        >>> {name: round(value, 4) for name, value in metrics.compute().items() if name.startswith("miou")}
        {'miou': 0.3889, 'miou_no_background': 0.3333, 'miou_seen_classes': 0.5833}
    """

    label_columns = ("frames", "target")

    def __init__(
        self,
        num_labels: int,
        protocol: Protocol = "official",
        *,
        ignore_index: int = IGNORE_INDEX,
        score_padding: bool = False,
        report_published_no_background: bool = False,
    ):
        if num_labels < 2:
            raise ValueError(
                f"num_labels is {num_labels}, expected two classes or more: for the binary task take BinaryMetrics"
            )
        super().__init__(num_labels, protocol, ignore_index=ignore_index, score_padding=score_padding)
        self.report_published_no_background = report_published_no_background

    @property
    def columns(self) -> dict[str, int]:
        """Column names of a row, each with its width: sums over the frames of the clip."""
        return {"frames": 1} | dict.fromkeys(
            ("iou", "f_score", "seen_frames", "intersection", "predicted", "target"), self.num_labels
        )

    def _measure_frames(self, predictions: Tensor, targets: Tensor) -> Table:
        counts = class_counts(predictions, targets, self.num_labels, self.ignore_index)
        intersection, predicted, target = (count.cpu() for count in counts)
        return {
            "frames": target.sum(1) > 0,
            "iou": class_iou(intersection, predicted, target),
            "f_score": f_score(intersection, predicted, target),
            "seen_frames": predicted + target > 0,
            "intersection": intersection,
            "predicted": predicted,
            "target": target,
        }

    def per_class(self, protocol: Protocol | None = None) -> Table:
        """Scores of each class, float64 (num_labels,): `iou` and `f_score`, 0 if never seen, and `seen` (0 or 1).

        Raises:
            ValueError: nothing was counted yet, or unknown protocol.
        """
        protocol = self.protocol if protocol is None else checked_protocol(protocol)
        return self._class_scores(self._groups(protocol), protocol)

    def _class_scores(self, groups: Table, protocol: Protocol) -> Table:
        if protocol == "dataset":
            counts = [groups[name][0] for name in ("intersection", "predicted", "target")]
            seen = (counts[1] + counts[2] > 0).double()
            return {"iou": class_iou(*counts), "f_score": f_score(*counts), "seen": seen}
        if protocol == "official":
            groups = {name: exact_sum(column)[None] for name, column in groups.items()}
        # A mean over the frames of each group that show the class, then over the groups that show it.
        seen = (groups["seen_frames"] > 0).double()
        frames, group_counts = groups["seen_frames"].clamp(min=1.0), seen.sum(0).clamp(min=1.0)
        scores = {name: exact_sum(groups[name] / frames) / group_counts for name in ("iou", "f_score")}
        return scores | {"seen": seen.amax(0)}

    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        scores = self._class_scores(groups, protocol)
        slices = {"": slice(None), "_no_background": slice(1, None)}
        if self.report_published_no_background:
            slices["_published_no_background"] = slice(None, -1)
        means = {}
        for name, column in (("miou", scores["iou"]), ("f_score", scores["f_score"])):
            means |= {f"{name}{suffix}": exact_mean(column[classes]) for suffix, classes in slices.items()}
            means[f"{name}_seen_classes"] = exact_mean(column[scores["seen"] > 0])
        return means | {"classes_seen": float(scores["seen"].sum()), "frames": float(groups["frames"].sum())}


class FalsePositiveMetrics(ClipMetrics):
    """False-positive rate on negative audio: the fraction of pixels claimed although nothing in the picture sounds.

    `"official"` and `"batch"` take the mean over the frames of each group, then over the groups; `"dataset"` divides
    the summed pixels. `compute` returns `false_positive_rate` in [0, 1] and the number of scored `frames`. Foreground
    is a probability above one half, or any class but 0. What the labels say besides `ignore_index` does not matter:
    the right mask is empty.

    Example:
        >>> import torch
        >>> metrics = FalsePositiveMetrics(num_labels=1)
        >>> metrics.update(torch.tensor([4.0, -4.0, -4.0, -4.0]).view(1, 1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.long))
        >>> metrics.compute()
        {'false_positive_rate': 0.25, 'frames': 1.0}
    """

    label_columns = ("frames", "pixels")

    @property
    def columns(self) -> dict[str, int]:
        """Column names of a row, each with its width: sums over the frames of the clip."""
        return dict.fromkeys(("frames", "pixels", "rate", "false_positives"), 1)

    def _measure_frames(self, predictions: Tensor, targets: Tensor) -> Table:
        counted = targets != self.ignore_index
        first_foreground = FIRST_FOREGROUND_CODE if self.num_labels == 1 else 1
        pixels = counted.sum((1, 2)).cpu()
        false_positives = (counted & (predictions >= first_foreground)).sum((1, 2)).cpu()
        rate = false_positives.double() / pixels.clamp(min=1)
        return {"frames": pixels > 0, "pixels": pixels, "rate": rate, "false_positives": false_positives}

    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        parts = ("false_positives", "pixels") if protocol == "dataset" else ("rate", "frames")
        rate = exact_mean(groups[parts[0]] / groups[parts[1]])
        return {"false_positive_rate": rate, "frames": float(groups["frames"].sum())}
