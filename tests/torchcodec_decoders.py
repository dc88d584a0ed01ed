"""Decoders of torchcodec, as decoded columns of `datasets` hold them.

torchcodec loads the FFmpeg libraries of the system. Where it cannot, objects with the part of its interface that the
library uses take its place; they are made from the files by the library's own reader.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from modeling_pcmanet.media_pcmanet import iterate_frames, read_audio


try:
    from torchcodec.decoders import AudioDecoder, VideoDecoder
except (ImportError, OSError, RuntimeError):
    AudioDecoder = VideoDecoder = None


class Frames:
    """The interface of `VideoDecoder`."""

    def __init__(self, path: str) -> None:
        self._frames = list(iterate_frames(path))
        duration = self._frames[1][0] * len(self._frames)
        self.metadata = SimpleNamespace(
            average_fps=len(self._frames) / duration,
            duration_seconds=duration,
            begin_stream_seconds=2.0,
            end_stream_seconds=2.0 + duration,
        )

    def __len__(self) -> int:
        return len(self._frames)

    def get_frame_at(self, index: int) -> SimpleNamespace:
        seconds, frame = self._frames[index]
        return SimpleNamespace(data=torch.from_numpy(frame).permute(2, 0, 1), pts_seconds=2.0 + seconds)


class Samples:
    """The interface of `AudioDecoder`."""

    def __init__(self, path: str) -> None:
        waveform, rate = read_audio(path)
        self._samples = SimpleNamespace(data=torch.from_numpy(waveform), sample_rate=rate)

    def get_all_samples(self) -> SimpleNamespace:
        return self._samples


def video_decoder(path: Path, *, keeps_file: bool = True) -> Any:
    """Return a decoder of a video file, with the file as `datasets` keeps it or without."""
    return _with_file((VideoDecoder or Frames)(str(path)), path, keeps_file)


def audio_decoder(path: Path, *, keeps_file: bool = True) -> Any:
    """Return a decoder of an audio file, with the file as `datasets` keeps it or without."""
    return _with_file((AudioDecoder or Samples)(str(path)), path, keeps_file)


def _with_file(decoder: Any, path: Path, keeps_file: bool) -> Any:
    if keeps_file:
        decoder._hf_encoded = {"path": str(path), "bytes": None}
    return decoder
