"""Tests of pipelines/inputs.py. Tests of pipelines/inputs.py: one input or several, and the arguments that each comes to."""

import io
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import GeneratorType

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from pcmanet.pipelines.inputs import clip_arguments, list_or_generator, share, whole_number


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


NAMES = ["a.mp4", "b.mp4", "c.mp4"]
TABLE = Dataset.from_dict({"video": NAMES})


class Rows(TorchDataset):
    """Says where it ends by its length only."""

    def __len__(self) -> int:
        return len(NAMES)

    def __getitem__(self, index: int) -> str:
        return NAMES[index % len(NAMES)]


class Stream(TorchIterableDataset):
    """Has no length."""

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)


@pytest.mark.parametrize("inputs", [NAMES, tuple(NAMES)])
def test_what_lies_there_is_a_list(inputs: object):
    assert list_or_generator(inputs) == NAMES


@pytest.mark.parametrize(
    "inputs",
    [
        iter(NAMES),
        map(str, NAMES),
        (name for name in NAMES),
        dict.fromkeys(NAMES).keys(),
        TABLE["video"],
        TABLE.to_iterable_dataset()["video"],
        Rows(),
        Stream(),
    ],
    ids=lambda inputs: type(inputs).__name__,
)
def test_what_comes_one_by_one_is_a_generator(inputs: object):
    several = list_or_generator(inputs)
    assert isinstance(several, GeneratorType)
    assert list(several) == NAMES


@pytest.mark.parametrize("inputs", [TABLE, TABLE.to_iterable_dataset()], ids=lambda inputs: type(inputs).__name__)
def test_rows_of_a_data_set(inputs: object):
    assert list(list_or_generator(inputs)) == [{"video": name} for name in NAMES]


@pytest.mark.parametrize("inputs", [[], ()])
def test_transformers_gets_no_empty_list(inputs: object):
    assert isinstance(list_or_generator(inputs), GeneratorType)
    assert list(list_or_generator(inputs)) == []


@pytest.mark.parametrize(
    "inputs",
    [
        "a.mp4",
        Path("a.mp4"),
        b"bytes",
        bytearray(b"bytes"),
        io.BytesIO(b"bytes"),
        io.StringIO("text"),
        {"video": "a.mp4"},
        np.zeros((2, 4, 4, 3), np.uint8),
        torch.zeros(2, 4, 4, 3),
        5,
        None,
    ],
    ids=lambda inputs: type(inputs).__name__,
)
def test_one_input_stays_as_it_is(inputs: object):
    assert list_or_generator(inputs) is inputs


def test_a_sound_without_its_rate_takes_that_of_the_call():
    wave = np.zeros(8)
    given = clip_arguments({"video": "a.mp4", "audio": {"array": wave}}, sampling_rate=8000)
    assert given["audio"] is wave
    assert given["sampling_rate"] == 8000
    assert clip_arguments("a.mp4", audio={"array": wave})["sampling_rate"] is None


@pytest.mark.parametrize("source", [{"bytes": None}, {"path": None, "bytes": None}])
def test_a_dictionary_of_no_file_is_refused(source: dict):
    with pytest.raises(ValueError, match='"bytes" or "path", got'):
        clip_arguments(source)
    with pytest.raises(ValueError, match='"bytes" or "path", got'):
        clip_arguments("a.mp4", audio=source)
