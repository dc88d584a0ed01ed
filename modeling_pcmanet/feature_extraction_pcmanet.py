# Copyright 2026 The pcmanet contributors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Feature extractor of PCMANet: from a waveform, or from audio that arrives in chunks, to one log-mel patch per video frame.

The values are those of AVSBench, which took them from AudioSet's VGGish. Everything is computed in float64 and cast at
the end: in float32 the rounding of the Fourier transform next to the 0.01 offset changes a chirp by 1e-3.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from .audio_pcmanet import (
    SAMPLING_RATE,
    AudioBuffer,
    check_sampling_rate,
    check_timestamps,
    resample,
    resampled_rate,
    to_mono,
)


WINDOW_LENGTH = SAMPLING_RATE * 25 // 1000  # samples: 25 ms = 400
HOP_LENGTH = SAMPLING_RATE * 10 // 1000  # samples: 10 ms = 160
FFT_LENGTH = 512  # samples: the next power of two above the window, reached with zeros at the end
NUM_MEL_BINS = 64
PATCH_FRAMES = 96  # spectrogram frames: a patch starts 0.96 s after the previous one
MIN_FREQUENCY = 125.0  # hertz
MAX_FREQUENCY = 7500.0  # hertz
LOG_OFFSET = 0.01  # added to the mel magnitude: silence becomes ln 0.01 = -4.605

PATCHES_AT_ONCE = 64  # bounds the memory that an hour of audio needs to that of a minute
# How patches follow the frames of a video: one after another whatever the frames, each centered on its frame, or each
# ending at its frame.
AUDIO_ALIGNMENTS = ("consecutive", "center", "end")
SHORT_CLIP_RULES = ("repeat_last", "zeros")


@lru_cache(maxsize=8)
def mel_filters(
    num_mel_bins: int = NUM_MEL_BINS,
    fft_length: int = FFT_LENGTH,
    min_frequency: float = MIN_FREQUENCY,
    max_frequency: float = MAX_FREQUENCY,
    sampling_rate: int = SAMPLING_RATE,
) -> torch.Tensor:
    """Build VGGish's mel filter bank: triangles linear in mel, without area normalization, nothing at 0 Hz.

    Args:
        num_mel_bins: Number of triangles.
        fft_length: Length of the Fourier transform, in samples.
        min_frequency: Lower edge of the first triangle, in hertz.
        max_frequency: Upper edge of the last triangle, in hertz.
        sampling_rate: In hertz.

    Returns:
        (fft_length // 2 + 1, num_mel_bins), float64, in [0, 1]. The tensor is cached: do not write to it.
    """
    bank = mel_filter_bank(
        fft_length // 2 + 1,
        num_mel_bins,
        min_frequency,
        max_frequency,
        sampling_rate,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(bank)


def log_mel(
    waveform: torch.Tensor,
    filters: torch.Tensor | None = None,
    window_length: int = WINDOW_LENGTH,
    hop_length: int = HOP_LENGTH,
    fft_length: int = FFT_LENGTH,
    log_offset: float = LOG_OFFSET,
) -> torch.Tensor:
    """Compute the log-mel spectrogram of VGGish (AVSBench protocol), without padding and without centering.

    Args:
        waveform: (..., samples), float64, one channel at 16 kHz, in [-1, 1].
        filters: (fft_length // 2 + 1, mel bins), float64; the default is [`mel_filters`] with its defaults.
        window_length: Length of the periodic Hann window, in samples.
        hop_length: Distance between two windows, in samples.
        fft_length: Length to which each windowed frame is padded with zeros at its end, in samples.
        log_offset: Added to the mel magnitude before the logarithm.

    Returns:
        (..., 1 + (samples - window_length) // hop_length, mel bins), float64, at least ln(log_offset).
    """
    filters = mel_filters() if filters is None else filters
    window = torch.hann_window(window_length, periodic=True, dtype=waveform.dtype)
    frames = waveform.unfold(-1, window_length, hop_length) * window
    magnitude = torch.fft.rfft(frames, n=fft_length).abs()
    return torch.log(magnitude @ filters + log_offset)


def check_audio_alignment(audio_alignment: Any) -> None:
    """Raise ValueError for an unknown audio alignment."""
    if audio_alignment not in AUDIO_ALIGNMENTS:
        raise ValueError(f"Expected audio_alignment as one of {AUDIO_ALIGNMENTS}, got {audio_alignment!r}.")


class PCMANetFeatureExtractor(FeatureExtractionMixin):
    """Compute one VGGish log-mel patch per video frame from the audio of a clip (AVSBench protocol).

    The audio is reduced to one channel, resampled to 16 kHz and cut into patches of 96 spectrogram frames, 15,600 samples.
    The audio alignment is how the patches follow the frames of the video:

    - `"consecutive"`, as published: patch k starts at sample 15,360 k, whatever the times of the frames. With one frame per
      second it falls behind by another 40 ms every second. Surplus patches are dropped; where patches are missing,
      `short_clip` chooses what replaces them.
    - `"center"`: each patch is centered on its frame's timestamp, and moved as little as needed to stay inside the audio.
      The audio counts as silent from its end to the last frame.
    - `"end"`: the same, but each patch ends at its frame's timestamp. The first of the published patches is placed so for
      frames at 15/16 of each second. No patch needs audio after its frame, so live input can be followed.

    Audio shorter than one patch (0.975 s) is padded with silence to one patch in all of them.

    Args:
        sampling_rate: Rate at which features are computed, in hertz.
        num_mel_bins: Number of mel bins.
        patch_frames: Spectrogram frames per patch.
        window_length: Length of the Hann window, in samples.
        hop_length: Distance between two spectrogram frames, in samples.
        fft_length: Length of the Fourier transform, in samples, at least `window_length`.
        min_frequency: Lower edge of the mel bins, in hertz.
        max_frequency: Upper edge of the mel bins, in hertz, at most half the sampling rate.
        log_offset: Added to the mel magnitude before the logarithm.
        short_clip: What replaces missing consecutive patches: `"repeat_last"`, the last patch (S4, MS3), or `"zeros"`,
            the value 0.0 (AVSS).
        **kwargs: What transformers adds to a saved file; any other keyword is an error.

    Raises:
        ValueError: For values that contradict each other and for unknown keywords.
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        sampling_rate: int = SAMPLING_RATE,
        num_mel_bins: int = NUM_MEL_BINS,
        patch_frames: int = PATCH_FRAMES,
        window_length: int = WINDOW_LENGTH,
        hop_length: int = HOP_LENGTH,
        fft_length: int = FFT_LENGTH,
        min_frequency: float = MIN_FREQUENCY,
        max_frequency: float = MAX_FREQUENCY,
        log_offset: float = LOG_OFFSET,
        short_clip: str = "repeat_last",
        **kwargs: Any,
    ) -> None:
        unknown = [key for key in kwargs if key not in ("feature_extractor_type", "processor_class", "auto_map")]
        if unknown:
            raise ValueError(f"Got unknown keywords {unknown} for {type(self).__name__}. Correct or remove them.")
        super().__init__(**kwargs)
        self.sampling_rate = sampling_rate
        self.num_mel_bins = num_mel_bins
        self.patch_frames = patch_frames
        self.window_length = window_length
        self.hop_length = hop_length
        self.fft_length = fft_length
        self.min_frequency = min_frequency
        self.max_frequency = max_frequency
        self.log_offset = log_offset
        self.short_clip = short_clip
        self._validate()

    def _validate(self) -> None:
        """Raise ValueError for values that contradict each other."""
        for name in ("sampling_rate", "num_mel_bins", "patch_frames", "window_length", "hop_length", "fft_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Expected {name} as an integer of at least 1, got {value!r}.")
        if self.fft_length < self.window_length:
            raise ValueError(
                f"Expected fft_length of at least window_length = {self.window_length}, because windows are padded with "
                f"zeros to it, got {self.fft_length}."
            )
        if not 0 <= self.min_frequency < self.max_frequency <= self.sampling_rate / 2:
            raise ValueError(
                "Expected 0 <= min_frequency < max_frequency <= sampling_rate / 2 = "
                f"{self.sampling_rate / 2}, got {self.min_frequency} and {self.max_frequency}."
            )
        if not self.log_offset > 0:
            raise ValueError(f"Expected log_offset above 0, because silence has no logarithm, got {self.log_offset}.")
        if self.short_clip not in SHORT_CLIP_RULES:
            raise ValueError(f"Expected short_clip as one of {SHORT_CLIP_RULES}, got {self.short_clip!r}.")

    @property
    def patch_stride(self) -> int:
        """Samples between the starts of two consecutive patches: 15,360 = 0.96 s."""
        return self.patch_frames * self.hop_length

    @property
    def patch_length(self) -> int:
        """Samples in one patch: 15,600 = 0.975 s."""
        return (self.patch_frames - 1) * self.hop_length + self.window_length

    def samples_before(self, audio_alignment: str) -> int:
        """Return how many samples of a patch precede its frame: half of them for `"center"`, all for `"end"`."""
        return self.patch_length if audio_alignment == "end" else self.patch_length // 2

    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        *,
        num_frames: int | Sequence[int] | None = None,
        timestamps: Any = None,
        audio_alignment: str = "consecutive",
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Compute the log-mel patches of one clip, or of each clip of a list.

        Args:
            audio: (samples,) or (channels, samples), numpy array or torch tensor; float in [-1, 1], int16 or int32. A
                list or tuple of these is a list of clips.
            sampling_rate: Of the audio, in hertz; required.
            num_frames: How many video frames the clip has (a list for a list of clips). Without it (and without
                `timestamps`), consecutive alignment returns every complete patch.
            timestamps: (frames,), seconds from the start of the audio, one per video frame (a list of these for a list
                of clips); required for `"center"` and `"end"`.
            audio_alignment: `"consecutive"`, `"center"` (each patch is centered on its frame) or `"end"` (each patch ends
                at its frame).
            return_tensors: `"pt"` or `"np"`; clips of a list must then have the same number of frames.

        Returns:
            `input_features`: (frames, 1, patch_frames, num_mel_bins), float32; a list of these for a list of clips.

        Raises:
            ValueError: For audio that [`to_mono`] refuses (the error gives the index in a list), a missing or wrong
                sampling rate, an unknown audio alignment, missing timestamps, or lists of different lengths.
        """
        settings = {"sampling_rate": check_sampling_rate(sampling_rate), "audio_alignment": audio_alignment}
        if not isinstance(audio, list | tuple):
            features = self._extract_clip(audio, num_frames=num_frames, timestamps=timestamps, **settings)
            return BatchFeature({"input_features": features.numpy()}, tensor_type=return_tensors)
        clips = zip(audio, *(_per_clip(value, len(audio)) for value in (num_frames, timestamps)), strict=True)
        patches = []
        for index, (clip, frames, times) in enumerate(clips):
            try:
                patches.append(self._extract_clip(clip, num_frames=frames, timestamps=times, **settings).numpy())
            except ValueError as error:
                raise ValueError(f"Clip {index}: {error}") from error
        return BatchFeature({"input_features": patches}, tensor_type=return_tensors)

    def _extract_clip(
        self, audio: Any, sampling_rate: int, num_frames: Any, timestamps: Any, audio_alignment: str
    ) -> torch.Tensor:
        """Compute one clip's patches: (frames, 1, patch_frames, num_mel_bins), float32."""
        check_audio_alignment(audio_alignment)
        times = None if timestamps is None else check_timestamps(timestamps, num_frames)
        count: int | None = num_frames if times is None else len(times)
        if count is not None and (not isinstance(count, int | np.integer) or count < 1):
            raise ValueError(f"Expected num_frames as an integer of at least 1, got {count!r}.")
        waveform = resample(to_mono(audio), sampling_rate, self.sampling_rate)
        if audio_alignment == "consecutive":
            return self._fit(self._patches(*self._consecutive_starts(waveform, count)), count)
        if times is None:
            raise ValueError(
                f'audio_alignment="{audio_alignment}" needs timestamps=, the seconds from the start of the audio to each frame.'
            )
        positions = np.rint(times * resampled_rate(sampling_rate, self.sampling_rate)).astype(np.int64)
        return self._patches(*self._starts_at(waveform, positions, self.samples_before(audio_alignment)))

    def _consecutive_starts(self, waveform: torch.Tensor, num_frames: int | None) -> tuple[torch.Tensor, np.ndarray]:
        """Place every complete patch after the previous one: the padded waveform and (patches,) first samples."""
        waveform = _fill(waveform, self.patch_length)
        count = 1 + (len(waveform) - self.patch_length) // self.patch_stride
        count = count if num_frames is None else min(count, num_frames)
        return waveform, np.arange(count) * self.patch_stride

    def _starts_at(
        self, waveform: torch.Tensor, positions: np.ndarray, before: int
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Start a patch `before` samples before every position: the padded waveform and (frames,) first samples."""
        # The audio counts as silent from its end to the last frame, so that a frame after the end gets silence and not the
        # last sound.
        waveform = _fill(waveform, max(self.patch_length, int(positions.max())))
        return waveform, np.clip(positions - before, 0, len(waveform) - self.patch_length)

    def _patches(self, waveform: torch.Tensor, starts: np.ndarray) -> torch.Tensor:
        """Compute the log-mel of the patch at each first sample: (patches, 1, patch_frames, num_mel_bins), float32."""
        candidates = waveform.unfold(0, self.patch_length, 1)
        blocks = torch.from_numpy(starts).split(PATCHES_AT_ONCE)
        return torch.cat([self.log_mel_patches(candidates[block]) for block in blocks])

    def _fit(self, patches: torch.Tensor, num_frames: int | None) -> torch.Tensor:
        """Apply the short-clip rule where there are fewer consecutive patches than frames."""
        missing = 0 if num_frames is None else num_frames - len(patches)
        if not missing:
            return patches
        filling = patches[-1:] if self.short_clip == "repeat_last" else torch.zeros_like(patches[-1:])
        return torch.cat([patches, filling.expand(missing, -1, -1, -1)])

    def log_mel_patches(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Compute the log-mel patches of audio that is already cut.

        Args:
            waveforms: (patches, patch_length), float64, one channel at the rate of the extractor, in [-1, 1].

        Returns:
            (patches, 1, patch_frames, num_mel_bins), float32.
        """
        filters = mel_filters(
            self.num_mel_bins, self.fft_length, self.min_frequency, self.max_frequency, self.sampling_rate
        )
        spectrogram = log_mel(
            waveforms, filters, self.window_length, self.hop_length, self.fft_length, self.log_offset
        )
        return spectrogram.to(torch.float32).unsqueeze(1)

    def audio_patches(
        self, frames: Iterable[tuple[Any, ...]], audio: AudioBuffer, audio_alignment: str
    ) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """Add its patch to each frame of a stream: the same patches as from a call with the complete audio.

        Args:
            frames: Tuples that begin with a timestamp in seconds from the start of the audio, in order of time.
            audio: Read as far as the frames need it.
            audio_alignment: `"consecutive"`, `"center"` or `"end"`.

        Returns:
            An iterator over the frames, each with its log-mel patch (1, patch_frames, num_mel_bins), float32.
        """
        if audio_alignment == "consecutive":
            return self._stream_consecutive(frames, audio)
        return self._stream_at_timestamps(frames, audio, self.samples_before(audio_alignment))

    def _stream_consecutive(
        self, frames: Iterable[tuple[Any, ...]], audio: AudioBuffer
    ) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """Cut patches one after another, whatever the timestamps; past the last complete one, apply the short-clip rule."""
        patch, start, waiting = torch.zeros(0), 0, deque()
        for frame in chain(frames, [None]):
            if frame is not None:
                waiting.append(frame)
            while waiting:
                is_reached = audio.reaches(start + self.patch_length)
                if is_reached or (start == 0 and not audio.is_waiting):
                    patch = self._patch_at(audio, start)
                elif frame is not None:
                    break  # audio that is much shorter than the frames may still be filled up with silence
                elif self.short_clip == "zeros":
                    patch = torch.zeros_like(patch)
                yield waiting.popleft(), patch
                start += self.patch_stride

    def _stream_at_timestamps(
        self, frames: Iterable[tuple[Any, ...]], audio: AudioBuffer, before: int
    ) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """Cut a patch for each frame that starts `before` samples before it.

        At the end of the audio a patch depends on the frames that follow: the audio counts as silent up to the last frame,
        and patches are moved to stay inside it. Frames wait there until the last frame is known.
        """
        length, waiting, last = self.patch_length, deque(), 0
        for frame in chain(frames, [None]):
            if frame is not None:
                last = audio.position(frame[0])
                waiting.append((frame, max(0, last - before)))
            while waiting:
                start = waiting[0][1]
                if not audio.reaches(start + length):
                    if frame is not None and (audio.is_waiting or last < start + length):
                        break
                    start = min(start, max(audio.length, last, length) - length)
                yield waiting.popleft()[0], self._patch_at(audio, start)

    def _patch_at(self, audio: AudioBuffer, start: int) -> torch.Tensor:
        """Drop the audio before a sample and compute the patch that starts there."""
        audio.drop(start)
        return self.log_mel_patches(audio.cut(start, start + self.patch_length)[None])[0]


def _fill(waveform: torch.Tensor, length: int) -> torch.Tensor:
    """Append silence up to a length in samples; a longer waveform is unchanged."""
    return functional.pad(waveform, (0, max(0, length - len(waveform))))


def _per_clip(value: Any, count: int) -> Sequence[Any]:
    """Repeat None for the clips of a list; anything else must be a list with one entry per clip."""
    if value is None:
        return [None] * count
    if not isinstance(value, list | tuple) or len(value) != count:
        raise ValueError(
            f"Expected num_frames and timestamps as lists of {count} entries, because audio is a list of {count} clips, "
            f"got {value!r}."
        )
    return value
