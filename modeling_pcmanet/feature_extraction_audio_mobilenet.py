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
"""Feature extractor of AudioMobileNet: waveforms at 32 kHz to normalized log-mel spectrograms (EfficientAT, 2023)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torchaudio.compliance.kaldi import get_mel_banks
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature


PRE_EMPHASIS = 0.97  # y[t] = x[t] - 0.97 x[t - 1]
LOG_OFFSET = 1e-5  # added to the mel power before the logarithm
# Normalization of the published models: (log-mel + 4.5) / 5.
LOG_MEAN, LOG_SCALE = -4.5, 5.0


@lru_cache(maxsize=8)
def kaldi_mel_filters(num_mel_bins: int, fft_length: int, sampling_rate: int, max_frequency: float) -> torch.Tensor:
    """Build Kaldi's mel filter bank from 0 Hz up.

    Returns:
        (num_mel_bins, fft_length // 2 + 1), float32. The tensor is cached: do not write to it.
    """
    # The last three arguments belong to vocal tract length warping, which a factor of 1 switches off.
    filters, _ = get_mel_banks(num_mel_bins, fft_length, float(sampling_rate), 0.0, max_frequency, 100.0, -500.0, 1.0)
    return functional.pad(filters, (0, 1))


class AudioMobileNetFeatureExtractor(SequenceFeatureExtractor):
    """Compute log-mel spectrograms as EfficientAT does: pre-emphasis, power spectrum, Kaldi mel bands, logarithm.

    Args:
        feature_size: Number of mel bands.
        sampling_rate: In hertz (Hz).
        padding_value: Value that fills up shorter waveforms of a batch.
        window_length: Length of the Hann window, in samples.
        hop_length: Distance of two spectrogram frames, in samples: 320 gives 100 frames per second at 32 kHz.
        fft_length: Length of the Fourier transform, in samples.
        max_frequency: Upper edge of the mel bands, in hertz (Hz).
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 32_000,
        padding_value: float = 0.0,
        window_length: int = 800,
        hop_length: int = 320,
        fft_length: int = 1024,
        max_frequency: float = 15_000.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.window_length = window_length
        self.hop_length = hop_length
        self.fft_length = fft_length
        self.max_frequency = max_frequency

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | Sequence[np.ndarray | torch.Tensor],
        sampling_rate: int | None = None,
        *,
        return_tensors: str | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Compute one spectrogram per waveform.

        Args:
            raw_speech: One waveform (samples,), a batch (windows, samples), or a list of waveforms; mono, full scale
                [-1, 1]. Shorter waveforms of a list are padded to the longest.
            sampling_rate: Of the waveforms, in hertz (Hz); must be that of the extractor.
            return_tensors: `"pt"` or `"np"`; None gives numpy arrays.

        Returns:
            `input_features`: (windows, 1, feature_size, samples // hop_length), float32.

        Raises:
            ValueError: For another sampling rate, stereo, or a waveform of fewer than two samples.
        """
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"Expected audio at {self.sampling_rate} Hz, got sampling_rate={sampling_rate}. Resample it first, and "
                "pass its rate."
            )
        single = isinstance(raw_speech, np.ndarray | torch.Tensor) and raw_speech.ndim == 1
        waveforms = [torch.as_tensor(wave, dtype=torch.float32) for wave in ([raw_speech] if single else raw_speech)]
        for wave in waveforms:
            if wave.ndim != 1 or len(wave) < 2:
                raise ValueError(f"Expected mono waveforms (samples,) of at least 2 samples, got {tuple(wave.shape)}.")
        longest = max(len(wave) for wave in waveforms)
        batch = torch.stack(
            [functional.pad(wave, (0, longest - len(wave)), value=self.padding_value) for wave in waveforms]
        )
        return BatchFeature({"input_features": self._log_mel(batch).numpy()}, tensor_type=return_tensors)

    def _log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Compute spectrograms (windows, 1, feature_size, frames) of waveforms (windows, samples)."""
        emphasized = waveforms[:, 1:] - PRE_EMPHASIS * waveforms[:, :-1]
        spectrum = torch.stft(
            emphasized,
            self.fft_length,
            hop_length=self.hop_length,
            win_length=self.window_length,
            window=torch.hann_window(self.window_length, periodic=False),
            center=True,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        filters = kaldi_mel_filters(self.feature_size, self.fft_length, self.sampling_rate, self.max_frequency)
        log_mel = torch.log(filters @ power + LOG_OFFSET)
        return ((log_mel - LOG_MEAN) / LOG_SCALE).unsqueeze(1)


__all__ = ["AudioMobileNetFeatureExtractor"]
