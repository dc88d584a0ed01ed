"""Tests of pipelines/checked_numbers.py."""

import math
from fractions import Fraction

import numpy as np
import pytest

from pcmanet.pipelines.checked_numbers import share, whole_number


@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.25), np.int64(1), Fraction(1, 4)])
def test_shares_become_float(value: object):
    assert share("threshold", value) == value
    assert type(share("threshold", value)) is float


@pytest.mark.parametrize("value", [-0.1, 1.01, math.nan, "0.5", True, [0.5]])
def test_what_is_no_share_is_refused(value: object):
    with pytest.raises(ValueError, match="threshold is a share between 0 and 1, got "):
        share("threshold", value)


@pytest.mark.parametrize("value", [1, 10, np.int64(3)])
def test_whole_numbers_become_int(value: object):
    assert whole_number("batch_size", value, 1) == value
    assert type(whole_number("batch_size", value, 1)) is int


@pytest.mark.parametrize("value", [0, -1, 2.5, 2.0, "2", True])
def test_what_is_no_whole_number_is_refused(value: object):
    with pytest.raises(ValueError, match="batch_size is a whole number, 1 at least, got "):
        whole_number("batch_size", value, 1)


def test_what_was_not_given_stays_so():
    assert share("threshold", None) is None
    assert whole_number("batch_size", None, 1) is None
