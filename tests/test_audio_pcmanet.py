"""Check, mix, resample and buffer audio."""

import math
import warnings

import numpy as np
import pytest
import torch
from torchaudio.functional import resample as torchaudio_resample

from modeling_pcmanet.audio_pcmanet import (
    AudioBuffer,
    Resampler,
    check_sampling_rate,
    check_timestamps,
    cut_windows,
    resample,
    resampled_rate,
    to_mono,
)


RATE = 16_000

# AVSBench's resampling in torchaudio's terms
AVSBENCH_RESAMPLING = {
    "lowpass_filter_width": 50,
    "rolloff": 0.917347,
    "resampling_method": "sinc_interp_kaiser",
    "beta": 12.9846,
}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8"])
def test_mono_is_the_mean_of_the_channels(dtype):
    audio = noise(3, 1000).astype(dtype)
    mono = to_mono(audio)
    assert mono.dtype == torch.float64
    np.testing.assert_allclose(mono.numpy(), audio.astype(np.float64).mean(axis=0), atol=1e-15)
    torch.testing.assert_close(to_mono(audio[0]).numpy(), audio[0].astype(np.float64))


@pytest.mark.parametrize(("dtype", "full_scale"), [("int16", 2**15), (">i2", 2**15), ("int32", 2**31)])
def test_integers_are_divided_by_their_full_scale(dtype, full_scale):
    audio = np.array([[-full_scale, 0, full_scale // 2], [-full_scale, 0, full_scale // 2]]).astype(dtype)
    assert to_mono(audio).tolist() == [-1.0, 0.0, 0.5]


def test_tensors_equal_arrays():
    audio = noise(2, 500).astype(np.float32)
    assert torch.equal(to_mono(torch.from_numpy(audio)), to_mono(audio))
    half = torch.from_numpy(audio).bfloat16()
    assert torch.equal(to_mono(half), half.double().mean(dim=0))
    assert to_mono(torch.tensor([0, 16384], dtype=torch.int16)).tolist() == [0.0, 0.5]


def test_read_only_arrays_give_no_warning():
    audio = np.frombuffer(noise(100).tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_mono(audio).shape == (100,)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([0.0, 0.1], "numpy array.*got list"),
        (np.zeros(()), r"got \(\)"),
        (np.zeros((2, 2, 100)), r"one clip.*\(2, 2, 100\)"),
        (np.zeros((2, 0)), "at least one sample.*zeros"),
        (np.zeros((16000, 2)), r"\(16000, 2\).*audio\.T"),
        (np.zeros(100, np.uint8), "int16 or int32.*uint8"),
        (np.zeros(100, complex), "complex128"),
        (np.array([0.0, np.nan, np.inf]), "2 of 3 values.*NaN or infinite.*nan_to_num"),
        (np.array([0.0, -12000.0]), "12000.*by 32768"),
    ],
)
def test_wrong_audio_is_refused(audio, message):
    with pytest.raises(ValueError, match=message):
        to_mono(audio)


@pytest.mark.parametrize("sampling_rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000])
def test_resampling_equals_torchaudio_with_the_arguments_of_avsbench(sampling_rate):
    seconds = np.arange(sampling_rate + 17) / sampling_rate
    for signal in (noise(len(seconds)), np.sin(2 * np.pi * (50 * seconds + 3500 * seconds**2))):
        waveform = torch.from_numpy(signal)
        expected = torchaudio_resample(waveform, sampling_rate, 16000, **AVSBENCH_RESAMPLING)
        # Issue 16, point 18: the filter is torchaudio's own, so only sums are rounded differently.
        torch.testing.assert_close(resample(waveform, sampling_rate), expected, rtol=0, atol=1e-13)


def test_resampling_in_blocks_has_no_seams(monkeypatch):
    waveform = torch.from_numpy(noise(48000))
    expected = resample(waveform, 48000)
    monkeypatch.setattr("modeling_pcmanet.audio_pcmanet.BLOCKS_AT_ONCE", 7)
    torch.testing.assert_close(resample(waveform, 48000), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("sampling_rate", [8000, 15992, 16000, 22050, 44100, 48000, 96000])
def test_resampling_in_chunks_equals_resampling_at_once(sampling_rate):
    waveform = torch.from_numpy(noise(3 * sampling_rate + 11))
    resampler = Resampler(sampling_rate)
    sizes = [1, 2, 3, 1000, sampling_rate // 7, 0, 10 * sampling_rate]
    pieces = [resampler.add(chunk) for chunk in waveform.split([*sizes[:-1], len(waveform) - sum(sizes[:-1])])]
    torch.testing.assert_close(
        torch.cat([*pieces, resampler.finish()]), resample(waveform, sampling_rate), rtol=0, atol=1e-13
    )
    assert len(pieces[-1]) > 2 * 16000


def test_a_ratio_with_too_many_terms_keeps_times():
    assert resampled_rate(44100) == resampled_rate(16000) == 16000
    hour = torch.zeros(15992 * 36, dtype=torch.float64)
    hour[-1] = 1.0
    assert resampled_rate(15992) != 16000
    assert resample(hour, 15992).argmax() == pytest.approx(36 * resampled_rate(15992), abs=2)


def test_resampling_to_the_same_rate_changes_nothing():
    waveform = torch.from_numpy(noise(1000))
    assert resample(waveform, 16000) is waveform


@pytest.mark.parametrize("sampling_rate", [44101, 15999, 8001])
def test_a_rate_without_a_common_factor_keeps_pitch_and_length(sampling_rate):
    tone = torch.from_numpy(np.sin(2 * np.pi * 1000 * np.arange(sampling_rate) / sampling_rate))
    resampled = resample(tone, sampling_rate)
    assert abs(len(resampled) - 16000) <= 0.0005 * 16000
    spectrum = torch.fft.rfft(resampled[2000:14000] * torch.hann_window(12000, dtype=torch.float64)).abs()
    assert spectrum.argmax() * 16000 / 12000 == pytest.approx(1000, abs=1.4)


@pytest.mark.parametrize("given", [16000, 16000.0, np.int64(16000), torch.tensor(16000)])
def test_integral_sampling_rates_become_int(given):
    assert type(check_sampling_rate(given)) is int


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "missing"),
        (44.1, "hertz"),
        (44100.5, "integer"),
        (0, "hertz"),
        (math.nan, "integer.*nan"),
        (math.inf, "integer.*inf"),
        ("16000", "integer.*'16000'"),
        ([16000], "integer"),
    ],
)
def test_wrong_sampling_rates_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_sampling_rate(given)


@pytest.mark.parametrize("bad", [[], [[1.0]], [0.5, math.nan], [-0.1, 0.5]])
def test_wrong_timestamps_are_refused(bad):
    with pytest.raises(ValueError, match="finite seconds"):
        check_timestamps(bad, None)


def test_the_number_of_timestamps_is_checked():
    assert check_timestamps(torch.tensor([0.5, 1.5]), 2).tolist() == [0.5, 1.5]
    with pytest.raises(ValueError, match="2 timestamps for 3 frames"):
        check_timestamps([0.5, 1.5], 3)


def test_dropped_samples_cannot_be_read():
    audio = AudioBuffer([(noise(1000), RATE)], RATE)
    assert not audio.reaches(2000)
    assert audio.cut(900, 1100).tolist()[100:] == [0.0] * 100
    audio.drop(500)
    with pytest.raises(IndexError, match="400"):
        audio.cut(400, 500)


def test_a_chunk_without_samples_is_waited_for():
    audio = AudioBuffer([(noise(RATE), RATE), (None, RATE), (noise(RATE), RATE)], RATE)
    assert audio.reaches(RATE) and not audio.is_waiting
    assert not audio.reaches(3 * RATE) and audio.is_waiting
    assert not audio.reaches(3 * RATE) and not audio.is_waiting
    assert audio.length == 2 * RATE


def test_a_chunk_may_have_fewer_samples_than_channels():
    assert AudioBuffer([(np.zeros((2, 1)), RATE)], RATE).reaches(1)


def test_bad_chunks_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        AudioBuffer([(np.full(10, np.nan), RATE)], RATE).reaches(1)


def test_without_audio_there_is_no_sample_at_a_time():
    with pytest.raises(ValueError, match="without audio.*zeros"):
        AudioBuffer([], RATE).position(1.0)


RAMP_RATE = 1000
RAMP = np.arange(4000) / 8000  # 4 s; every sample has its own value


def chunks_of(waveform: np.ndarray, rate: int, size: int):
    return ((waveform[start : start + size], rate) for start in range(0, len(waveform), size))


def windows_of_ramp(timestamps, windows, size: int = 4000) -> list[list[list[int]]]:
    """Return the windows of each frame as indices of samples, -1 where there is silence beyond the audio."""
    silence = -1 / 8000
    audio = AudioBuffer(chunks_of(RAMP - silence, RAMP_RATE, size), RAMP_RATE)
    cut = cut_windows([(timestamp,) for timestamp in timestamps], audio, windows)
    return [[np.rint((window + silence) * 8000).astype(int).tolist() for window in row] for _, row in cut]


def samples(*bounds: int) -> list[int]:
    """Return the indices from the first bound to the second, from the third to the fourth, and so on."""
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return [index for start, stop in pairs for index in range(start, stop)]


@pytest.mark.parametrize(
    ("timestamp", "window", "expected"),
    [
        (2.0, (1.0, 1.0), samples(1000, 3000)),
        (1.0, (1.0, 1.0), samples(0, 2000)),
        (3.0, (1.0, 1.0), samples(2000, 4000)),
        (2.5, (0.1, 0.0), samples(2400, 2500)),
        # The audio starts or ends inside the window: what there is is repeated.
        (0.5, (1.0, 1.0), samples(0, 1500, 0, 500)),
        (3.5, (1.0, 1.0), samples(2500, 4000, 2500, 3000)),
        (0.4, (2.0, 0.0), samples(*(0, 400) * 5)),
        # At the start there is at least a quarter of a second, or the length of the window.
        (0.0, (1.0, 0.0), samples(*(0, 250) * 4)),
        (0.1, (1.0, 0.0), samples(*(0, 250) * 4)),
        (0.0, (0.1, 0.0), samples(0, 100)),
        # Silence from the end of the audio to the frame.
        (4.5, (1.0, 0.0), samples(3500, 4000) + [-1] * 500),
        (4.5, (1.0, 1.0), (samples(3500, 4000) + [-1] * 500) * 2),
        (7.0, (1.0, 1.0), [-1] * 2000),
    ],
)
@pytest.mark.parametrize("size", [1, 333, 4000])
def test_a_window_has_the_audio_around_its_frame(timestamp, window, expected, size):
    assert windows_of_ramp([timestamp], [window], size) == [[expected]]


@pytest.mark.parametrize("size", [1, 777, 4000])
def test_several_windows_of_several_frames_have_one_length(size):
    assert windows_of_ramp([0.5, 2.0, 3.75], [(0.5, 0.0), (0.5, 0.5)], size) == [
        [samples(*(0, 500) * 2), samples(0, 1000)],
        [samples(*(1500, 2000) * 2), samples(1500, 2500)],
        [samples(*(3250, 3750) * 2), samples(3250, 4000, 3250, 3500)],
    ]


@pytest.mark.parametrize(("rate", "target_rate"), [(16_000, 32_000), (44_100, 16_000), (48_000, 48_000)])
@pytest.mark.parametrize("size", [441, 20_000, 10**6])
def test_windows_have_the_rate_of_the_buffer(rate, target_rate, size):
    waveform = noise(2 * rate)
    expected = resample(torch.from_numpy(waveform), rate, target_rate).float().numpy()
    audio = AudioBuffer(chunks_of(waveform, rate, size), target_rate)
    ((_, (short, whole)), (_, (last, _))) = cut_windows([(0.5,), (1.5,)], audio, [(0.25, 0.25), (0.5, 0.5)])
    half = target_rate // 2
    np.testing.assert_allclose(whole, expected[: 2 * half], atol=1e-6)
    np.testing.assert_allclose(short, np.tile(expected[half // 2 : 3 * half // 2], 2), atol=1e-6)
    np.testing.assert_allclose(last, np.tile(expected[5 * half // 2 : 7 * half // 2], 2), atol=1e-6)


@pytest.mark.parametrize(
    ("windows", "after"), [([(1.0, 0.0)], 0.0), ([(0.5, 0.5), (2.0, 0.1)], 0.5), ([(0.1, 0.0), (0.1, 0.02)], 0.02)]
)
def test_no_frame_waits_for_audio_after_its_windows(windows, after):
    read, size = [0], 10

    def chunks():
        for chunk, rate in chunks_of(RAMP, RAMP_RATE, size):
            read[0] += len(chunk)
            yield chunk, rate

    frames = [(timestamp,) for timestamp in (0.5, 1.0, 2.25, 3.0)]
    for (timestamp,), _ in cut_windows(frames, AudioBuffer(chunks(), RAMP_RATE), windows):
        assert read[0] / RAMP_RATE <= timestamp + after + size / RAMP_RATE


def test_a_frame_of_live_audio_waits_for_its_windows():
    """Frame 1 needs audio that comes with frame 2."""
    arrived = []

    def frames():
        for second in range(3):
            arrived.append(second)
            yield (float(second),)

    chunks = ((None, RAMP_RATE) if index % 2 else (RAMP[:1000], RAMP_RATE) for index in range(6))
    rows = [
        (len(arrived), frame[0]) for frame, _ in cut_windows(frames(), AudioBuffer(chunks, RAMP_RATE), [(0.5, 0.5)])
    ]
    assert rows == [(1, 0.0), (3, 1.0), (3, 2.0)]


@pytest.mark.parametrize("windows", [[(1.0, 0.0)], [(0.0, 1.0), (2.0, 2.0)]])
def test_windows_without_audio_are_refused(windows):
    with pytest.raises(ValueError, match="without audio.*zeros"):
        list(cut_windows([(1.0,)], AudioBuffer([], RATE), windows))
