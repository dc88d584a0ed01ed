"""Write trees in the layouts of AVSBench for tests."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pcmanet.dataset_scripts.sounding_shapes import files


def write_trees(root: Path, **counts: Mapping[str, int]) -> Path:
    """Write a tree for each task with the given clips per split, without raw videos, which no loader reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_write_raw_video", lambda *_: None)
        for task, splits in counts.items():
            files.write_avsbench_tree(root, task, splits)
    return root
