"""Numbers among the arguments of a call, checked; None, which is "not given", stays None."""

from numbers import Integral, Real
from typing import Any


def share(name: str, value: Any) -> float | None:
    """Checks a share of a whole, or a probability.

    Args:
        name: Of the argument.
        value: What came.

    Returns:
        The same as float.

    Raises:
        ValueError: If it is no number in [0, 1].
    """
    if value is None:
        return None
    if not _is_number(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name} is a share between 0 and 1, got {value!r}.")
    return float(value)


def whole_number(name: str, value: Any, least: int) -> int | None:
    """Checks a number of things.

    Args:
        name: Of the argument.
        value: What came.
        least: The smallest number that makes sense.

    Returns:
        The same as int.

    Raises:
        ValueError: If it is no whole number, or a smaller one.
    """
    if value is None:
        return None
    if not _is_number(value, Integral) or value < least:
        raise ValueError(f"{name} is a whole number, {least} at least, got {value!r}.")
    return int(value)


def _is_number(value: Any, kind: type) -> bool:
    """Tells whether a value is a number of a kind; for Python True and False are some, too."""
    return isinstance(value, kind) and not isinstance(value, bool)
