""""""

import os
import pickle
from collections import OrderedDict
from io import BytesIO

import numpy as np
import pytest
import torch

from pcmanet.dataset_scripts.avsbench.rows import LARGEST_FILE, read_log_mel


TENSOR = torch.arange(5 * 96 * 64, dtype=torch.float32).reshape(5, 1, 96, 64)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def read(tmp_path):
    def read(content, frames=5):
        path = tmp_path / "clip.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        return read_log_mel(path, frames)

    return read


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_tensors_are_read(read, protocol):
    features = read(pickle.dumps(TENSOR, protocol=protocol))
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, TENSOR.numpy())


def test_views_and_other_precisions_are_read(read):
    np.testing.assert_array_equal(read(TENSOR.flip(0)), TENSOR.flip(0))
    np.testing.assert_array_equal(read(torch.cat([TENSOR, TENSOR])[2:7]), torch.cat([TENSOR, TENSOR])[2:7])
    np.testing.assert_array_equal(read(TENSOR.double().requires_grad_()), TENSOR)


def storage(content):
    file = BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_nothing_that_a_pickle_says_is_run(read, tmp_path):
    touch = Call(os.system, f"touch {tmp_path}/executed")
    rebuilt = Call(torch._utils._rebuild_tensor_v2, touch, 0, (5,), (1,), False, OrderedDict())
    for content in (
        touch,
        {"features": touch},
        rebuilt,
        Call(torch.storage._load_from_bytes, storage(touch)),
        Call(eval, f"open('{tmp_path}/executed', 'w')"),
        Call(torch.load, f"{tmp_path}/other.pkl"),
        b"cos\nsystem\n(S'touch executed'\ntR.",
    ):
        with pytest.raises(ValueError, match="was not run"):
            read(content)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("size", [(5, 1, 96, 65), (2**40, 1, 1, 1)])
def test_a_tensor_cannot_reach_beyond_its_storage(read, size):
    content = Call(
        torch._utils._rebuild_tensor_v2,
        Call(torch.storage._load_from_bytes, storage(TENSOR.untyped_storage())),
        0,
        size,
    )
    content.call = content.call[0], (*content.call[1], (6240, 6240, 65, 1), False, OrderedDict())
    with pytest.raises(ValueError, match="was not run"):
        read(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is no pickled tensor"),
        (pickle.dumps(TENSOR)[:-40], "is no pickled tensor"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps(TENSOR[:4]), r"holds a tensor \(4, 1, 96, 64\), expected a tensor \(5, 1, 96, 64\)"),
        (pickle.dumps(TENSOR / 0), "not finite"),
        (bytes(LARGEST_FILE + 1), "has more than"),
    ],
)
def test_other_content_is_refused(read, content, problem):
    with pytest.raises(ValueError, match=problem):
        read(content)
