"""Sounding Shapes: procedural clips in which only the audio tells which objects are sounding."""

from .clips import NEGATIVE_KINDS, SPLITS, TASKS, SoundingShapes, SyntheticClip
from .files import AVSBENCH_CLASSES, write_avsbench_tree, write_clip
from .scene import CLASSES


__all__ = [
    "AVSBENCH_CLASSES",
    "CLASSES",
    "NEGATIVE_KINDS",
    "SPLITS",
    "TASKS",
    "SoundingShapes",
    "SyntheticClip",
    "write_avsbench_tree",
    "write_clip",
]
