"""Paired data: clips generated from photos with masks and labeled recordings, paired by class.

    from pcmanet.dataset_scripts.paired import Library, PairedClips, read_settings
    library = Library(read_settings("examples/paired_data/real_world.yaml"), progress=True)
    clip = PairedClips(library, "avss", "train", length=20000)[0]    # frames, masks, waveform, events

A class map in a YAML file (`settings`) says which labels of photos and of recordings mean the same class. The command checks
all files, shows clips and writes them as files:

    python -m pcmanet.dataset_scripts.paired check examples/paired_data/real_world.yaml
"""

from .clips import TASKS, PairedClip, PairedClips, SoundEvent
from .library import Library
from .settings import ClipSettings, PairedSettings, is_paired_data, read_settings


__all__ = [
    "ClipSettings",
    "Library",
    "PairedClip",
    "PairedClips",
    "PairedSettings",
    "SoundEvent",
    "TASKS",
    "is_paired_data",
    "read_settings",
]
