"""How far a run is: the part of its state that is small enough to read, kept in every checkpoint."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimizer steps done.
        figures: Of the last evaluation.
        evaluated_step: After which step that was.
        best: Figures of the best evaluation, by mIoU.
        best_step: After which step that was.
        stale: Evaluations since then.
        stopped: Whether early stopping has ended the run.
        seconds: Spent training so far, over all starts.
    """

    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    evaluated_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    stale: int = 0
    stopped: bool = False
    seconds: float = 0.0

    def take(self, figures: dict[str, float], patience: int | None) -> bool:
        """Take in the figures of an evaluation after the present step.

        Args:
            figures: With `miou`.
            patience: Evaluations without a better one after which the run stops; None never does.

        Returns:
            Whether they are the best so far.
        """
        self.figures, self.evaluated_step = figures, self.step
        better = not self.best or figures["miou"] > self.best["miou"]
        if better:
            self.best, self.best_step, self.stale = figures, self.step, 0
        else:
            self.stale += 1
        self.stopped = patience is not None and self.stale >= patience
        return better

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON writes them."""
        return asdict(self)


def evaluation_steps(steps: int, evaluations: int, evaluate_from: float) -> set[int]:
    """After which steps to evaluate: evenly spaced, the last one at the end.

    Args:
        steps: Of the whole run.
        evaluations: How many, counting those that are left out.
        evaluate_from: Share of the run before which they are left out.
    """
    spaced = {round(steps * (number + 1) / evaluations) for number in range(evaluations)}
    return {step for step in spaced if step >= steps * evaluate_from and step > 0}
