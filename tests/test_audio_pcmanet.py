"""Sound in chunks gives what whole sound gives."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchaudio.functional import resample as torchaudio_resample

from modeling_pcmanet import PCMANetFeatureExtractor
from modeling_pcmanet.audio_pcmanet import (
    AudioBuffer,
    Resampler,
    audio_patches,
    check_sampling_rate,
    check_timestamps,
    in_pieces,
    resample,
    resampled_rate,
    to_mono,
)


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
        ([0.0, 0.1], "is a list.*numpy array"),
        (np.zeros(()), r"shape \(\)"),
        (np.zeros((2, 2, 100)), r"\(2, 2, 100\).*one clip"),
        (np.zeros((2, 0)), "no samples.*zeros"),
        (np.zeros((16000, 2)), r"\(16000, 2\).*audio\.T"),
        (np.zeros(100, np.uint8), "uint8.*int16 or int32"),
        (np.zeros(100, complex), "complex128"),
        (np.array([0.0, np.nan, np.inf]), "2 of 3 values.*NaN or infinite.*nan_to_num"),
        (np.array([0.0, -12000.0]), "reaches 12000.*divided by 32768"),
    ],
)
def test_unusable_sound_is_refused_with_a_remedy(audio, message):
    with pytest.raises(ValueError, match=message):
        to_mono(audio)


@pytest.mark.parametrize("sampling_rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000])
def test_resampling_equals_torchaudio_with_the_arguments_of_avsbench(sampling_rate):
    seconds = np.arange(sampling_rate + 17) / sampling_rate
    for signal in (noise(len(seconds)), np.sin(2 * np.pi * (50 * seconds + 3500 * seconds**2))):
        waveform = torch.from_numpy(signal)
        expected = torchaudio_resample(waveform, sampling_rate, 16000, **AVSBENCH_RESAMPLING)
        # torchaudio rounds beta to float32
        torch.testing.assert_close(resample(waveform, sampling_rate), expected, rtol=0, atol=1e-6)


def test_resampling_works_in_blocks_without_seams(monkeypatch):
    waveform = torch.from_numpy(noise(48000))
    expected = resample(waveform, 48000)
    monkeypatch.setattr("modeling_pcmanet.audio_pcmanet.BLOCKS_AT_ONCE", 7)
    torch.testing.assert_close(resample(waveform, 48000), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("sampling_rate", [8000, 15992, 16000, 22050, 44100, 48000, 96000])
def test_resampling_in_chunks_equals_resampling_the_whole(sampling_rate):
    waveform = torch.from_numpy(noise(3 * sampling_rate + 11))
    resampler = Resampler(sampling_rate)
    sizes = [1, 2, 3, 1000, sampling_rate // 7, 0, 10 * sampling_rate]
    pieces = [resampler.add(chunk) for chunk in waveform.split([*sizes[:-1], len(waveform) - sum(sizes[:-1])])]
    torch.testing.assert_close(
        torch.cat([*pieces, resampler.finish()]), resample(waveform, sampling_rate), rtol=0, atol=1e-13
    )
    assert len(pieces[-1]) > 2 * 16000


def test_where_a_ratio_has_too_many_terms_moments_keep_to_the_clock():
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
def test_whole_sampling_rates_become_int(given):
    assert type(check_sampling_rate(given)) is int


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "missing"),
        (44.1, "hertz"),
        (44100.5, "whole"),
        (0, "hertz"),
        (math.nan, "is nan: expected a whole number"),
        (math.inf, "is inf: expected a whole number"),
        ("16000", "is '16000': expected a whole number"),
        ([16000], "expected a whole number"),
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


RATE = 16_000


def noise_of_sound_stream(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape)


def chunks(waveform: np.ndarray, rate: int, length: int):
    """Pieces of uneven length."""
    start = 0
    while start < waveform.shape[-1]:
        stop = start + 1 + (start * 7919 + length) % (2 * length)
        yield waveform[..., start:stop], rate
        start = stop


def frames(times: list[float]) -> list[SimpleNamespace]:
    return [SimpleNamespace(timestamp=time) for time in times]


def heard(sound: AudioBuffer, times: list[float], audio_alignment: str, **settings) -> torch.Tensor:
    extractor = PCMANetFeatureExtractor(**settings)
    pairs = list(audio_patches(frames(times), sound, extractor, audio_alignment))
    assert [frame.timestamp for frame, _ in pairs] == times
    return torch.stack([patch for _, patch in pairs])


@pytest.mark.parametrize("audio_alignment", ["center", "end", "consecutive"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (48_000, 6), (11_025, 1), (15_992, 1)])
def test_chunks_are_heard_as_the_whole(audio_alignment, rate, channels):
    waveform = noise_of_sound_stream(channels, 7 * rate + 17)
    times = [second + 15 / 16 for second in range(7)]
    whole = PCMANetFeatureExtractor()(
        waveform, rate, timestamps=times, audio_alignment=audio_alignment, return_tensors="pt"
    )
    sound = AudioBuffer(chunks(waveform, rate, 1024), RATE)
    torch.testing.assert_close(heard(sound, times, audio_alignment), whole["input_features"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("audio_alignment", ["center", "end"])
@pytest.mark.parametrize(
    "times",
    [[0.1], [0.0, 0.0, 0.2], [2.5, 2.9], [2.5, 2.9, 3.0, 3.4], [0.5, 9.0], [2.9, 3.1, 3.2, 3.3, 20.0, 20.1]],
)
def test_the_ends_of_the_sound_are_those_of_the_whole(audio_alignment, times):
    waveform = noise_of_sound_stream(3 * RATE)
    whole = PCMANetFeatureExtractor()(
        waveform, RATE, timestamps=times, audio_alignment=audio_alignment, return_tensors="pt"
    )
    assert torch.equal(
        heard(AudioBuffer(chunks(waveform, RATE, 500), RATE), times, audio_alignment), whole["input_features"]
    )


@pytest.mark.parametrize("short_clip", ["repeat_last", "zeros"])
@pytest.mark.parametrize("samples", [100, 15_600, 40_000])
def test_consecutive_patches_that_are_missing(short_clip, samples):
    waveform = noise_of_sound_stream(samples)
    extractor = PCMANetFeatureExtractor(short_clip=short_clip)
    whole = extractor(waveform, RATE, num_frames=4, return_tensors="pt")["input_features"]
    sound = AudioBuffer(chunks(waveform, RATE, 500), RATE)
    assert torch.equal(heard(sound, [0.9, 1.9, 2.9, 3.9], "consecutive", short_clip=short_clip), whole)


def test_a_frame_waits_for_no_more_sound_than_it_needs():
    taken = []

    def watched():
        for index in range(100):
            taken.append(index)
            yield noise_of_sound_stream(1600), RATE

    def pulled(audio_alignment: str) -> list[int]:
        taken.clear()
        return [
            len(taken)
            for _ in audio_patches(
                frames([0.9375, 1.9375, 5.0]), AudioBuffer(watched(), RATE), PCMANetFeatureExtractor(), audio_alignment
            )
        ]

    assert pulled("end") == [10, 20, 50]
    assert pulled("center") == [15, 25, 55]


def test_little_is_kept_of_a_long_sound():
    sound = AudioBuffer(((noise_of_sound_stream(RATE), RATE) for _ in range(60)), RATE)
    kept = [
        len(sound._kept)
        for _ in audio_patches(frames([second + 0.9 for second in range(60)]), sound, PCMANetFeatureExtractor(), "end")
    ]
    assert max(kept) < 3 * RATE
    assert sound.seconds() == pytest.approx(60)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [44_100, 15_992])
def test_a_click_at_the_end_of_ten_minutes_is_heard_in_its_place(rate):
    click = np.zeros(rate)
    click[round(0.2 * rate)] = 1.0
    seconds = ((click if second == 599 else np.zeros(rate), rate) for second in range(600))
    patches = heard(AudioBuffer(seconds, RATE), [0.9375, 599.9375], "end")
    row = patches[1, 0].sum(dim=1).argmax().item()
    start = 599.9375 - 15_600 / RATE
    # Row r hears the 25 ms from 10 r ms on.
    assert start + 0.01 * row + 0.0125 == pytest.approx(599.2, abs=0.0125)


def test_what_was_forgotten_is_not_given():
    sound = AudioBuffer([(noise_of_sound_stream(1000), RATE)], RATE)
    assert not sound.reaches(2000)
    assert sound.cut(900, 1100).tolist()[100:] == [0.0] * 100
    sound.forget(500)
    with pytest.raises(IndexError, match="sample 400 was forgotten"):
        sound.cut(400, 500)


def test_silence_fills_up_only_sound_that_has_ended():
    sound = AudioBuffer([(noise_of_sound_stream(RATE), RATE), (noise_of_sound_stream(RATE), RATE)], RATE)
    assert sound.reaches(RATE)
    sound.fill(5.0)
    assert sound.length == RATE
    assert not sound.reaches(3 * RATE)
    sound.fill(5.0)
    assert sound.reaches(5 * RATE)
    assert not sound.cut(2 * RATE, 5 * RATE).any()


@pytest.mark.parametrize("length", [1, 100, 160_000, 1_000_001])
def test_pieces_make_up_the_waveform(length):
    waveform = noise_of_sound_stream(2, length)
    pieces = list(in_pieces(waveform, RATE))
    np.testing.assert_array_equal(np.concatenate([piece for piece, _ in pieces], axis=1), waveform)
    assert max(piece.shape[1] for piece, _ in pieces) < 21 * RATE


def test_bad_chunks_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        AudioBuffer([(np.full(10, np.nan), RATE)], RATE).reaches(1)
    with pytest.raises(ValueError, match="hertz"):
        AudioBuffer([(noise_of_sound_stream(10), 16.0)], RATE).reaches(1)


def test_no_sound_at_all_has_no_moments():
    with pytest.raises(ValueError, match="no sound came with the frames: give zeros"):
        AudioBuffer([], RATE).position(1.0)
