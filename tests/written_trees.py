"""Write trees in the layouts of AVSBench for tests."""

from collections.abc import Mapping
from functools import partialmethod
from pathlib import Path

import pytest
from PIL import Image

from pcmanet.dataset_scripts.sounding_shapes import files


def write_trees(root: Path, **counts: Mapping[str, int]) -> Path:
    """Write a tree for each task with the given clips per split, without raw videos, which no loader reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_write_raw_video", lambda *_: None)
        # Most of the time is that of the compression of PNG files.
        patch.setattr(Image.Image, "save", partialmethod(Image.Image.save, compress_level=1))
        for task, splits in counts.items():
            files.write_avsbench_tree(root, task, splits)
    return root
