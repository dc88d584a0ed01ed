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
"""Feature extractors of audio encoders: the published log-mel patches, AudioMobileNet's spectrograms, and the registry.

The published feature extractor turns a waveform, or audio that arrives in chunks, into one log-mel patch per video
frame. Its values are those of AVSBench, which took them from AudioSet's VGGish. Everything is computed in float64 and
cast at the end, because in float32 the rounding error of the Fourier transform, relative to the 0.01 offset, changes a
chirp by 1e-3.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torchaudio.compliance.kaldi import get_mel_banks
from transformers import CONFIG_MAPPING, FEATURE_EXTRACTOR_MAPPING
from transformers.audio_utils import mel_filter_bank
from transformers.configuration_utils import PreTrainedConfig
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.models.auto.configuration_auto import model_type_to_module_name

from .audio_pcmanet import (
    SAMPLING_RATE,
    AudioBuffer,
    check_audio_alignment,
    check_sampling_rate,
    check_timestamps,
    resample,
    resampled_rate,
    to_mono,
)
from .configuration_encoders import (
    AudioMobileNetConfig,
    VGGishConfig,
    check_keywords,
    drop_code_entries,
    loading_saved,
)


WINDOW_LENGTH = SAMPLING_RATE * 25 // 1000  # samples: 25 ms = 400
HOP_LENGTH = SAMPLING_RATE * 10 // 1000  # samples: 10 ms = 160
FFT_LENGTH = 512  # samples: the next power of two above the window, reached by padding the end with zeros
NUM_MEL_BINS = 64
PATCH_FRAMES = 96  # spectrogram frames: a patch starts 0.96 s after the previous one
MIN_FREQUENCY = 125.0  # hertz
MAX_FREQUENCY = 7500.0  # hertz
LOG_OFFSET = 0.01  # added to the mel magnitude: silence becomes ln 0.01 = -4.605

PATCHES_AT_ONCE = 64  # bounds the memory that an hour of audio needs to that of a minute
SHORT_CLIP_RULES = ("repeat_last", "zeros")
_SAVED_KEYWORDS = {"auto_map", "feature_extractor_type", "processor_class"}  # added to a file by transformers


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
    window = torch.hann_window(window_length, periodic=True, dtype=waveform.dtype, device=waveform.device)
    frames = waveform.unfold(-1, window_length, hop_length) * window
    magnitude = torch.fft.rfft(frames, n=fft_length).abs()
    return torch.log(magnitude @ filters + log_offset)


class CheckedFeatureExtractor(FeatureExtractionMixin):
    """Base class of the feature extractors: an unknown keyword is an error, or a warning when a file is loaded."""

    def __init__(self, **kwargs: Any) -> None:
        accepted = inspect.signature(type(self)).parameters.keys() - {"kwargs"}
        check_keywords(type(self).__name__, kwargs, accepted | _SAVED_KEYWORDS, accepted)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a feature extractor from a saved dictionary as transformers does; unknown keywords stay attributes."""
        with loading_saved():
            return super().from_dict(drop_code_entries(cls, feature_extractor_dict), **kwargs)


class PCMANetFeatureExtractor(CheckedFeatureExtractor):
    """Compute one VGGish log-mel patch per video frame from the audio of a clip (AVSBench protocol).

    The audio is reduced to one channel, resampled to 16 kHz and cut into patches of 96 spectrogram frames, 15,600
    samples. The audio alignment determines where the patches are in relation to the frames of the video:

    - `"consecutive"`, as published: patch k starts at sample 15,360 k, regardless of the timestamps of the frames. At
      one frame per second, it falls behind by another 40 ms every second. Surplus patches are dropped; `short_clip`
      chooses what replaces missing patches.
    - `"center"`: each patch is centered on its frame's timestamp, and moved as little as needed to stay inside the audio.
      The audio counts as silent from its end to the last frame.
    - `"end"`: the same, but each patch ends at its frame's timestamp. For frames at 15/16 of each second, the first of
      the published patches has this position. No patch needs audio after its frame, so this alignment works for live
      input.

    In all three cases, audio shorter than one patch (0.975 s) is padded with silence to one patch.

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
    def feature_size(self) -> int:
        """Size of the last dimension of the features, under the name that other feature extractors use."""
        return self.num_mel_bins

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
        raw_speech: Any,
        sampling_rate: int | None = None,
        *,
        num_frames: int | Sequence[int] | None = None,
        timestamps: Any = None,
        audio_alignment: str = "consecutive",
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Compute the log-mel patches of one clip, or of each clip of a list.

        Args:
            raw_speech: (samples,) or (channels, samples), numpy array or torch tensor; float in [-1, 1], int16 or int32; or
                a list of floats. A list or tuple of these, or an array (clips, channels, samples), is a list of clips.
            sampling_rate: Sampling rate of the audio, in hertz; required. Audio at a rate other than that of the
                extractor is resampled.
            num_frames: Number of video frames of the clip (a list for a list of clips). Without it (and without
                `timestamps`), consecutive alignment returns every complete patch.
            timestamps: (frames,), seconds from the start of the audio, one per video frame (a list of these for a list
                of clips); required for `"center"` and `"end"`.
            audio_alignment: `"consecutive"`, `"center"` (each patch is centered on its frame) or `"end"` (each patch ends
                at its frame).
            return_tensors: `"pt"` or `"np"`; the clips of a list must then have the same number of frames. A processor
                pads them.

        Returns:
            `input_features`: (frames, 1, patch_frames, num_mel_bins), float32; a list of these for a list of clips.

        Raises:
            ValueError: For no audio, audio that [`to_mono`] rejects (for a list, the error gives the index), a missing
                or wrong sampling rate, an unknown audio alignment, missing timestamps, lists of different lengths, or
                clips that cannot be stacked.
        """
        settings = {"sampling_rate": check_sampling_rate(sampling_rate), "audio_alignment": audio_alignment}
        waveforms = _as_arrays(raw_speech)
        if not isinstance(waveforms, list) and np.ndim(waveforms) != 3:
            features = self._extract_clip(waveforms, num_frames=num_frames, timestamps=timestamps, **settings)
            return BatchFeature({"input_features": features.numpy()}, tensor_type=return_tensors)
        count = len(waveforms)
        if not count:
            raise ValueError("Got no audio. Pass the audio of one clip, or a list of at least one.")
        clips = zip(waveforms, *(_per_clip(value, count) for value in (num_frames, timestamps)), strict=True)
        patches = []
        for index, (clip, frames, times) in enumerate(clips):
            try:
                patches.append(self._extract_clip(clip, num_frames=frames, timestamps=times, **settings).numpy())
            except ValueError as error:
                raise ValueError(f"Clip {index}: {error}") from error
        lengths = [len(features) for features in patches]
        if return_tensors is not None and len(set(lengths)) > 1:
            raise ValueError(
                f"Clips of {lengths} frames cannot be stacked. Pass num_frames=, or leave out return_tensors and pad them."
            )
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
        """Place patches one after another; return the padded waveform and the first samples, (patches,)."""
        waveform = _fill(waveform, self.patch_length)
        count = 1 + (len(waveform) - self.patch_length) // self.patch_stride
        count = count if num_frames is None else min(count, num_frames)
        return waveform, np.arange(count) * self.patch_stride

    def _starts_at(
        self, waveform: torch.Tensor, positions: np.ndarray, before: int
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Start patches `before` samples before each position; return padded waveform and first samples, (frames,)."""
        # The audio counts as silent from its end to the last frame, so a frame after the end gets silence and not the
        # last sound.
        waveform = _fill(waveform, max(self.patch_length, int(positions.max())))
        return waveform, np.clip(positions - before, 0, len(waveform) - self.patch_length)

    def _patches(self, waveform: torch.Tensor, starts: np.ndarray) -> torch.Tensor:
        """Compute the log-mel of the patch at each first sample: (patches, 1, patch_frames, num_mel_bins), float32."""
        candidates = waveform.unfold(0, self.patch_length, 1)
        blocks = torch.from_numpy(starts).split(PATCHES_AT_ONCE)
        return torch.cat([self.log_mel_patches(candidates[block]) for block in blocks])

    def _fit(self, patches: torch.Tensor, num_frames: int | None) -> torch.Tensor:
        """Apply the short-clip rule if there are fewer consecutive patches than frames."""
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
        """Pair each frame of a stream with its patch, which is the same as from a call with the complete audio.

        Args:
            frames: Tuples that begin with a timestamp in seconds from the start of the audio, in chronological order.
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
        """Cut consecutive patches regardless of timestamps; after the last complete one, apply the short-clip rule."""
        patch, start, waiting = torch.zeros(0, device="cpu"), 0, deque()
        for frame in chain(frames, [None]):
            if frame is not None:
                waiting.append(frame)
            while waiting:
                is_reached = audio.reaches(start + self.patch_length)
                if is_reached or (start == 0 and not audio.is_waiting):
                    patch = self._patch_at(audio, start)
                elif frame is not None:
                    break  # audio that is much shorter than the frames may still be padded with silence
                elif self.short_clip == "zeros":
                    patch = torch.zeros_like(patch)
                yield waiting.popleft(), patch
                start += self.patch_stride

    def _stream_at_timestamps(
        self, frames: Iterable[tuple[Any, ...]], audio: AudioBuffer, before: int
    ) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """Cut a patch for each frame that starts `before` samples before it.

        At the end of the audio, a patch depends on the frames that follow, because the audio counts as silent up to
        the last frame, and patches are moved to stay inside it. Frames wait there until the last frame is known.
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


def _as_arrays(raw_speech: Any) -> Any:
    """Return one waveform as it is, or as an array if it is a list of numbers; return several as a list of these."""
    if not isinstance(raw_speech, list | tuple):
        return raw_speech
    if raw_speech and isinstance(raw_speech[0], Real):
        return np.asarray(raw_speech, np.float64)
    return [_as_arrays(waveform) for waveform in raw_speech]


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


# AudioMobileNet.

PRE_EMPHASIS = 0.97  # y[t] = x[t] - 0.97 x[t - 1]
POWER_OFFSET = 1e-5  # added to the mel power before the logarithm
# Normalization of the published models: (log-mel + 4.5) / 5.
LOG_MEAN, LOG_SCALE = -4.5, 5.0


@lru_cache(maxsize=8)
def kaldi_mel_filters(num_mel_bins: int, fft_length: int, sampling_rate: int, max_frequency: float) -> torch.Tensor:
    """Build Kaldi's mel filter bank, which starts at 0 Hz.

    Returns:
        (num_mel_bins, fft_length // 2 + 1), float32. The tensor is cached: do not write to it.
    """
    # The last three arguments belong to vocal tract length warping, which a factor of 1 disables.
    with torch.device("cpu"):  # not the default device, on which torchaudio would create them
        filters, _ = get_mel_banks(
            num_mel_bins, fft_length, float(sampling_rate), 0.0, max_frequency, 100.0, -500.0, 1.0
        )
    return functional.pad(filters.float(), (0, 1))


class AudioMobileNetFeatureExtractor(SequenceFeatureExtractor, CheckedFeatureExtractor):
    """Compute log-mel spectrograms as EfficientAT does: pre-emphasis, power spectrum, Kaldi mel bands, logarithm.

    Args:
        feature_size: Number of mel bands.
        sampling_rate: In hertz (Hz).
        padding_value: Value that pads shorter waveforms of a batch with `padding="constant"`.
        padding: `"repeat"` pads shorter waveforms of a batch with themselves, so the encoder's mean over time is that
            of the waveform; `"constant"` pads them with `padding_value`.
        window_length: Length of the Hann window, in samples.
        hop_length: Distance between two spectrogram frames, in samples: 320 gives 100 frames per second at 32 kHz.
        fft_length: Length of the Fourier transform, in samples.
        max_frequency: Upper edge of the mel bands, in hertz (Hz).
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 32_000,
        padding_value: float = 0.0,
        padding: str = "repeat",
        window_length: int = 800,
        hop_length: int = 320,
        fft_length: int = 1024,
        max_frequency: float = 15_000.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        if padding not in ("repeat", "constant"):
            raise ValueError(f'Expected "repeat" or "constant" as padding, got {padding!r}.')
        if not (0 < window_length <= fft_length and hop_length > 0):
            raise ValueError(
                f"Expected a positive hop_length and a window_length of at most fft_length, got hop_length={hop_length}, "
                f"window_length={window_length} and fft_length={fft_length}."
            )
        if not 0 < max_frequency <= sampling_rate / 2:
            raise ValueError(
                f"Expected a max_frequency of at most half the sampling_rate, {sampling_rate / 2:g} Hz, got {max_frequency:g}."
            )
        self.padding = padding
        self.window_length = window_length
        self.hop_length = hop_length
        self.fft_length = fft_length
        self.max_frequency = max_frequency

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        *,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Compute one spectrogram per waveform.

        Args:
            raw_speech: One waveform (samples,), an array, tensor or list of floats; a batch (windows, samples), or a
                list of waveforms; mono, float in [-1, 1], int16 or int32. Shorter waveforms of a list are padded to
                the longest (see `padding`).
            sampling_rate: Sampling rate of the waveforms, in hertz (Hz); must be that of the extractor.
            return_tensors: `"pt"` or `"np"`; None gives numpy arrays.

        Returns:
            `input_features`: (windows, 1, feature_size, samples // hop_length), float32.

        Raises:
            ValueError: For a different sampling rate, stereo audio, a waveform of fewer than two samples, a longest
                waveform of less than half a Fourier transform, no waveform, and values that [`to_mono`] rejects.
        """
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"Expected audio at {self.sampling_rate} Hz, got sampling_rate={sampling_rate}. Resample it first, and "
                "pass its rate."
            )
        given = _as_arrays(raw_speech)
        single = isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 1
        waveforms = [given] if single else list(given)
        shapes = [tuple(np.shape(wave)) for wave in waveforms]
        if not shapes or not all(len(shape) == 1 and shape[0] > 1 for shape in shapes):
            raise ValueError(f"Expected mono waveforms (samples,) of at least 2 samples, got the shapes {shapes}.")
        longest, fewest = max(samples for (samples,) in shapes), self.fft_length // 2 + 2
        if longest < fewest:  # its ends are reflected by half a Fourier transform
            raise ValueError(
                f"Expected a waveform of at least {fewest} samples, got {longest}. Pad it with zeros, or pass a "
                "longer window of audio."
            )
        batch = torch.stack([self._fill_up(to_mono(wave).float(), longest) for wave in waveforms])
        return BatchFeature({"input_features": self._log_mel(batch).numpy()}, tensor_type=return_tensors)

    def _fill_up(self, waveform: torch.Tensor, samples: int) -> torch.Tensor:
        """Pad a waveform to a number of samples, as `padding` specifies."""
        if self.padding == "repeat":
            return waveform.repeat(-(-samples // len(waveform)))[:samples]
        return functional.pad(waveform, (0, samples - len(waveform)), value=self.padding_value)

    def _log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Compute spectrograms (windows, 1, feature_size, frames) of waveforms (windows, samples)."""
        emphasized = waveforms[:, 1:] - PRE_EMPHASIS * waveforms[:, :-1]
        spectrum = torch.stft(
            emphasized,
            self.fft_length,
            hop_length=self.hop_length,
            win_length=self.window_length,
            window=torch.hann_window(
                self.window_length, periodic=False, dtype=waveforms.dtype, device=waveforms.device
            ),
            center=True,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        filters = kaldi_mel_filters(self.feature_size, self.fft_length, self.sampling_rate, self.max_frequency)
        log_mel = torch.log(filters @ power + POWER_OFFSET)
        return ((log_mel - LOG_MEAN) / LOG_SCALE).unsqueeze(1)


# The registry.

# Feature extractors of our own audio encoders; transformers' Auto classes know all others.
_FEATURE_EXTRACTORS: dict[str, type[FeatureExtractionMixin]] = {
    VGGishConfig.model_type: PCMANetFeatureExtractor,
    AudioMobileNetConfig.model_type: AudioMobileNetFeatureExtractor,
}
# Settings of a default feature extractor that follow from the configuration of its encoder.
_DEFAULT_SETTINGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    VGGishConfig.model_type: lambda config: {
        "num_mel_bins": config.num_mel_bins,
        "patch_frames": config.num_mel_frames,
    },
    AudioMobileNetConfig.model_type: lambda config: {"feature_size": config.num_mel_bins},
    "audio-spectrogram-transformer": lambda config: {
        "num_mel_bins": config.num_mel_bins,
        "max_length": config.max_length,
    },
    # Spectrogram frames of 10 ms, which the model arranges in a square.
    "clap_audio_model": lambda config: {
        "feature_size": config.num_mel_bins,
        "max_length_s": config.spec_size**2 // config.num_mel_bins // 100,
        "truncation": "fusion" if config.enable_fusion else "rand_trunc",
    },
    # Two spectrogram frames of 10 ms per position.
    "whisper": lambda config: {
        "feature_size": config.num_mel_bins,
        "chunk_length": config.max_source_positions // 50,
    },
}


# Seconds of a window that a feature extractor of transformers uses. It cuts off the rest (CLAP's at random).
_SECONDS_USED: dict[str, Callable[[Any], float]] = {
    # Spectrogram frames of 25 ms, one every 10 ms.
    "ASTFeatureExtractor": lambda extractor: (extractor.max_length + 1.5) / 100,
    "ClapFeatureExtractor": lambda extractor: extractor.max_length_s,
    "WhisperFeatureExtractor": lambda extractor: extractor.chunk_length,
}


def seconds_used(feature_extractor: Any) -> float:
    """Return the length in seconds of the longest window that a feature extractor uses completely, or infinity."""
    return _SECONDS_USED.get(type(feature_extractor).__name__, lambda _: math.inf)(feature_extractor)


def build_feature_extractor(config: PreTrainedConfig) -> FeatureExtractionMixin:
    """Build the default feature extractor of an audio encoder, with the sizes of its configuration.

    Raises:
        ValueError: If none is known for this type.
    """
    extractor_class = _feature_extractor_class(config)
    if extractor_class is None:
        raise ValueError(
            f"No default feature extractor is known for {type(config).__name__}. Load one with AutoFeatureExtractor and pass it "
            "to PCMANetProcessor."
        )
    settings = _DEFAULT_SETTINGS.get(config.model_type, lambda _: {})
    return extractor_class(**settings(config))


def _feature_extractor_class(config: PreTrainedConfig) -> type[FeatureExtractionMixin] | None:
    """Return the class of the feature extractor of an audio encoder, or None if none is known."""
    if config.model_type in _FEATURE_EXTRACTORS:
        return _FEATURE_EXTRACTORS[config.model_type]
    # transformers has feature extractors for complete models; a part, such as the audio part of CLAP, belongs to one of these.
    complete_model = model_type_to_module_name(config.model_type)
    known = [type(config), *([CONFIG_MAPPING[complete_model]] if complete_model in CONFIG_MAPPING else [])]
    mapping: Any = FEATURE_EXTRACTOR_MAPPING
    return next((mapping[one] for one in known if one in mapping), None)
