"""Range checks for numeric command line options, for `type` of argparse; all commands and scripts use them.

Like the parsers, this module does not import torch, so `--help` is fast.
"""

import argparse
import math


LARGEST_PORT = 65535


def _number(text: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text}") from None


def positive(text: str) -> float:
    """Parse a number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def non_negative(text: str) -> float:
    """Parse a number of 0 or more."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def positive_integer(text: str) -> int:
    """Parse an integer of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of 1 or more, got {text}")
    return int(text)


def non_negative_integer(text: str) -> int:
    """Parse an integer of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of 0 or more, got {text}")
    return int(text)


def port(text: str) -> int:
    """Parse the number of a TCP port."""
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to {LARGEST_PORT}, got {text}")
    return int(text)
