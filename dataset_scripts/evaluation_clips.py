"""Clips of one split for an evaluation: found, checked, read in any order, and put under wrong sounds on request.

Files are read where they lie, without a prepared copy, and any process can read any clip: which batch a clip is in never
depends on how many processes there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature

from modeling_pcmanet.media_pcmanet import read_audio

from .avsbench_folder import VideoFiles, encode_wav
from .avsbench_rows import RowSettings, row_features
from .avsbench_sources import AVSBenchError, Source, find_clips, inspect_files, label_names, read_clip_row
from .avsbench_trees import share_nothing
from .collation import ClipCollator
from .metric_counts import IGNORE_INDEX
from .robustness_metrics import Audio


SAMPLING_RATE = 16000  # of silence and noise, in hertz
NOISE_LEVEL = 0.1  # root mean square of white noise; full scale is 1


@dataclass(frozen=True)
class EvaluationClips:
    """The clips of one split.

    Attributes:
        name: "s4", "ms3", "avss" or "folder".
        split: "train", "val" or "test".
        table: The table that lists the clips.
        clips: Where the files of each clip lie, in the order of the table.
        settings: What was chosen about rows.
        labels: Names of the classes; a single one if masks are binary.
    """

    name: str
    split: str
    table: Path
    clips: Sequence[Source]
    settings: RowSettings
    labels: tuple[str, ...]

    @property
    def binary(self) -> bool:
        """Whether masks only tell sounding from silent."""
        return len(self.labels) == 1

    def row(self, index: int) -> dict[str, Any]:
        """Read one clip as `load_avsbench` does, pictures decoded.

        Args:
            index: Position in `clips`.

        Returns:
            The row; see `avsbench_rows` for the columns.

        Raises:
            AVSBenchError: Naming every file of the clip that cannot be used.
        """
        return row_features(self.settings.log_mel).decode_example(read_clip_row(self.clips[index], self.settings))


def find_evaluation_clips(root: str | Path, name: str, split: str, settings: RowSettings) -> EvaluationClips:
    """Find the clips of a split, and all their files that are missing or cut short.

    Args:
        root: As for `load_avsbench`.
        name: "s4", "ms3", "avss" or "folder".
        split: "train", "val" or "test".
        settings: What was chosen about rows.

    Returns:
        The clips.

    Raises:
        ValueError: If the table has no clip of the split, or a setting is not for these data.
        AVSBenchError: Naming all lines of the table and all files that cannot be used.
    """
    tree = find_clips(root, name, settings)
    clips = [clip for clip in tree.clips if clip.split == split]
    if not clips:
        splits = sorted({clip.split for clip in tree.clips})
        raise ValueError(f"{tree.table} has no clips of split {split!r}, only of {', '.join(splits)}")
    if faults := inspect_files(clips, settings):
        raise AVSBenchError(faults)
    return EvaluationClips(name, split, tree.table, clips, settings, label_names(root, name))


def find_off_screen_sounds(data: EvaluationClips, folder: Path | None = None) -> list[str]:
    """Find for each clip a file whose sound belongs to nothing in it.

    Args:
        data: The clips.
        folder: Sounds that are taken in turns. If None, the sound of the next clip in the table that shares nothing with
            this one (`share_nothing`); so never for MS3, whose table does not tell what is heard.

    Returns:
        One path per clip.

    Raises:
        FileNotFoundError: If the folder holds no file.
        ValueError: If no other clip's sound is surely wrong.
    """
    if folder is not None:
        sounds = sorted(str(path) for path in folder.rglob("*") if path.is_file())
        if not sounds:
            raise FileNotFoundError(f"there are no files in {folder}; give a folder of sounds")
        return [sounds[index % len(sounds)] for index in range(len(data.clips))]
    donors = []
    for index, clip in enumerate(data.clips):
        others = (*data.clips[index + 1 :], *data.clips[:index])
        donor = next((other for other in others if share_nothing(other.objects, clip.objects)), None)
        if donor is None:
            problem = f"{data.table} names no clip in which surely nothing is heard that is heard in {clip.id!r}"
            raise ValueError(f"{problem}; give a folder of other sounds")
        donors.append(donor.path if isinstance(donor, VideoFiles) else donor.audio)
    return donors


@dataclass(frozen=True)
class EvaluationReader:
    """Makes batches of clips under their own or a wrong sound.

    Attributes:
        data: The clips.
        collate: Brings rows to a batch.
        off_screen: From `find_off_screen_sounds`; may be empty if "off_screen" is never asked for.
        seed: Of the noise, from 0 up.
        frames: To which number of frames batches are filled up at least, as the published AVSS evaluation does with 10.
    """

    data: EvaluationClips
    collate: ClipCollator
    off_screen: Sequence[str] = ()
    seed: int = 0
    frames: int = 0

    def read(self, indices: Sequence[int], audio: Audio = "positive") -> BatchFeature:
        """Make a batch.

        Args:
            indices: Positions of its clips.
            audio: The clips' own sound, or by what it is replaced. A clip gets the same sound in every run.

        Returns:
            The batch of the processor's table. Labels are those of the clips' own sound; `RobustnessMetrics` knows.

        Raises:
            ValueError: If a clip cannot be used; AVSBenchError names every file of it.
        """
        batch = self.collate([self._row(index, audio) for index in indices])
        missing = max(0, self.frames - batch["frame_mask"].shape[1])
        for name, values in batch.items():
            fill = IGNORE_INDEX if name == "labels" else 0
            batch[name] = torch.cat([values, values.new_full((len(values), missing, *values.shape[2:]), fill)], dim=1)
        return batch

    def _row(self, index: int, audio: Audio) -> dict[str, Any]:
        """Read a clip, and put a wrong sound under it if asked to."""
        row = self.data.row(index)
        if audio == "positive":
            return row
        seconds = len(row["frames"]) / self.data.settings.frames_per_second
        return row | {"audio": {"path": None, "bytes": self._wrong_sound(index, audio, seconds)}, "log_mel": None}

    def _wrong_sound(self, index: int, audio: Audio, seconds: float) -> bytes:
        """Make a wav of a sound that belongs to nothing in a clip."""
        samples = round(seconds * SAMPLING_RATE)
        if audio == "silence":
            return encode_wav(np.zeros((1, samples)), SAMPLING_RATE)
        if audio == "noise":
            generator = np.random.default_rng((self.seed, index))
            return encode_wav(generator.normal(0, NOISE_LEVEL, (1, samples)), SAMPLING_RATE)
        waveform, rate = read_audio(self.off_screen[index])
        return encode_wav(np.resize(waveform.mean(axis=0), (1, round(seconds * rate))), rate)
