"""Trees in AVSBench's layouts for the tests of whatever reads them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pcmanet.dataset_scripts.sounding_shapes import files


def write_trees(root: Path, **counts: Mapping[str, int]) -> Path:
    """Write a tree for each task, given its clips per split, but no raw videos: no loader reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_write_raw_video", lambda *_: None)
        for task, splits in counts.items():
            files.write_avsbench_tree(root, task, splits)
    return root
