"""Sounding Shapes: procedural clips in which only the audio identifies the sounding objects.

    from pcmanet.dataset_scripts.sounding_shapes import SoundingShapes
    clip = SoundingShapes("ms3", "test")[0]    # frames, masks, waveform

On the command line, `clip` writes a video and `tree` a dataset in the layout of AVSBench:

    python -m pcmanet.dataset_scripts.sounding_shapes clip --index 3 --output demo.mp4
    python -m pcmanet.dataset_scripts.sounding_shapes tree --task avss --train 60 --val 12 --test 12 --output data
"""

from .clips import NEGATIVE_KINDS, TASKS, SoundingShapes, SyntheticClip
from .files import write_avsbench_tree, write_clip
from .scene import CLASSES
from .sound import SAMPLING_RATE, SoundMixtures


__all__ = [
    "CLASSES",
    "NEGATIVE_KINDS",
    "SAMPLING_RATE",
    "SoundMixtures",
    "SoundingShapes",
    "SyntheticClip",
    "TASKS",
    "write_avsbench_tree",
    "write_clip",
]
