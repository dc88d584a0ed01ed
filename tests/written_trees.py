"""Write trees in the layouts of AVSBench for tests."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partialmethod
from pathlib import Path

import pytest
from PIL import Image

from pcmanet.dataset_scripts.sounding_shapes import files


@contextlib.contextmanager
def little_compression() -> Iterator[None]:
    """Compress PNG files as little as possible: most of the time to write a tree is that of their compression."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "save", partialmethod(Image.Image.save, compress_level=1))
        yield


def write_trees(root: Path, **counts: Mapping[str, int]) -> Path:
    """Write a tree for each task with the given clips per split, without raw videos, which no loader reads."""
    with little_compression(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_write_raw_video", lambda *_: None)
        for task, splits in counts.items():
            files.write_avsbench_tree(root, task, splits)
    return root
