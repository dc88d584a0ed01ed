"""Compare log-mel patches with an independent implementation, and streamed patches with those of complete audio."""

import json
import math

import numpy as np
import pytest
import torch
from torchaudio.functional import resample as torchaudio_resample
from transformers import AutoFeatureExtractor

from modeling_pcmanet import (
    AudioMobileNetFeatureExtractor,
    PCMANetFeatureExtractor,
    PCMANetImageProcessor,
    PCMANetProcessor,
)
from modeling_pcmanet.audio_pcmanet import AudioBuffer
from modeling_pcmanet.feature_extraction_pcmanet import log_mel, mel_filters


RATE = 16_000
SILENCE = math.log(0.01)


def reference_filters() -> np.ndarray:
    """The mel matrix from its definition: 66 edges linear in mel, triangles linear in mel, nothing at 0 Hz."""

    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)

    edges = np.linspace(mel(125.0), mel(7500.0), 66)
    bins = mel(np.arange(257) * 16000 / 512)
    matrix = np.zeros((257, 64))
    for column, (lower, center, upper) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        matrix[:, column] = np.minimum((bins - lower) / (center - lower), (upper - bins) / (upper - center)).clip(
            min=0
        )
    matrix[0] = 0
    return matrix


def reference_spectrogram(waveform: np.ndarray) -> np.ndarray:
    """Steps 2 to 5 of AVSBench's log-mel in plain numpy, float64."""
    count = 1 + (len(waveform) - 400) // 160
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([waveform[160 * i : 160 * i + 400] * hann for i in range(count)])
    return np.log(np.abs(np.fft.rfft(frames, 512)) @ reference_filters() + 0.01)


def reference_patches(waveform: np.ndarray) -> np.ndarray:
    spectrogram = reference_spectrogram(waveform)
    count = (len(waveform) - 240) // 15360
    return spectrogram[: 96 * count].reshape(count, 1, 96, 64)


def reference_at_16_khz(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    mono = torch.from_numpy(audio.reshape(-1, audio.shape[-1]).mean(axis=0))
    return torchaudio_resample(
        mono,
        sampling_rate,
        16000,
        lowpass_filter_width=50,
        rolloff=0.917347,
        resampling_method="sinc_interp_kaiser",
        beta=12.9846,
    ).numpy()


def signal(kind: str, samples: int, sampling_rate: int = 16000) -> np.ndarray:
    seconds = np.arange(samples) / sampling_rate
    if kind == "noise":
        return np.random.default_rng(0).uniform(-1, 1, samples)
    if kind == "chirp":
        return np.sin(2 * np.pi * (50 * seconds + 700 * seconds**2))
    if kind == "quiet":
        return 1e-4 * np.random.default_rng(1).standard_normal(samples)
    return np.zeros(samples)


@pytest.fixture
def extractor() -> PCMANetFeatureExtractor:
    return PCMANetFeatureExtractor()


def test_mel_filters_equal_their_definition():
    filters = mel_filters()
    assert filters.dtype == torch.float64
    np.testing.assert_allclose(filters.numpy(), reference_filters(), atol=1e-12)
    assert not filters[0].any()


@pytest.mark.parametrize("kind", ["noise", "chirp", "quiet", "silence"])
def test_log_mel_equals_an_independent_implementation(kind):
    waveform = signal(kind, 40000)
    ours = log_mel(torch.from_numpy(waveform)).numpy()
    np.testing.assert_allclose(ours, reference_spectrogram(waveform), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["noise", "chirp", "quiet", "silence"])
@pytest.mark.parametrize(("sampling_rate", "channels"), [(16000, 1), (16000, 2), (44100, 2), (48000, 6), (8000, 1)])
def test_patches_equal_an_independent_implementation(extractor, kind, sampling_rate, channels):
    audio = signal(kind, 5 * sampling_rate, sampling_rate) * np.linspace(0.2, 1, channels)[:, None]
    patches = extractor(audio, sampling_rate)["input_features"]
    expected = reference_patches(reference_at_16_khz(audio, sampling_rate))
    assert patches.dtype == np.float32
    assert patches.shape == (5, 1, 96, 64)
    np.testing.assert_allclose(patches, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "patches"),
    [(15600, 1), (30959, 1), (30960, 2), (61680, 4), (77040, 5), (153840, 10), (169199, 10), (169200, 11)],
)
def test_number_of_complete_patches(extractor, samples, patches):
    assert len(extractor(np.zeros(samples), 16000)["input_features"]) == patches


def test_silence_is_the_logarithm_of_the_offset(extractor):
    patches = extractor(np.zeros(80000), 16000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(patches, torch.full((5, 1, 96, 64), SILENCE), rtol=0, atol=1e-6)


def test_patches_computed_in_blocks_have_no_seams(extractor):
    waveform = signal("noise", 15360 * 130 + 240)
    patches = extractor(waveform, 16000)["input_features"]
    assert len(patches) == 130
    for index in (0, 63, 64, 127, 128, 129):
        alone = reference_patches(waveform[15360 * index : 15360 * index + 15600])
        np.testing.assert_allclose(patches[index : index + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("samples", [1, 399, 8000, 15599])
def test_audio_below_one_patch_is_padded_with_silence(extractor, samples):
    waveform = signal("noise", samples)
    filled = np.pad(waveform, (0, 15600 - samples))
    expected = reference_patches(filled)
    for settings in ({}, {"audio_alignment": "center", "timestamps": [0.3]}):
        np.testing.assert_allclose(
            extractor(waveform, 16000, **settings)["input_features"], expected, rtol=0, atol=1e-6
        )


def test_surplus_patches_are_dropped(extractor):
    waveform = signal("noise", 16000 * 11)
    patches = extractor(waveform, 16000, num_frames=10)["input_features"]
    np.testing.assert_array_equal(patches, extractor(waveform, 16000)["input_features"][:10])


@pytest.mark.parametrize("rule", ["repeat_last", "zeros"])
def test_missing_patches_follow_the_short_clip_rule(rule):
    waveform = signal("noise", 61680)
    patches = PCMANetFeatureExtractor(short_clip=rule)(waveform, 16000, num_frames=6)["input_features"]
    complete = PCMANetFeatureExtractor()(waveform, 16000)["input_features"]
    np.testing.assert_array_equal(patches[:4], complete)
    replacement = complete[3] if rule == "repeat_last" else np.zeros((1, 96, 64))
    np.testing.assert_array_equal(patches[4:], np.stack([replacement, replacement]))


def test_consecutive_patches_drift_by_40_ms_every_second_and_centered_ones_do_not(extractor):
    timestamps = np.arange(10) + 0.25
    waveform = np.zeros(160000)
    waveform[(timestamps * 16000).astype(int)] = 1.0

    def click_positions(**settings):
        patches = extractor(waveform, 16000, **settings)["input_features"]
        return patches.max(axis=-1).argmax(axis=-1)[:, 0]  # in frames of 10 ms

    consecutive = click_positions(num_frames=10)
    assert np.diff(consecutive).tolist() == [4] * 9
    centered = click_positions(timestamps=timestamps, audio_alignment="center")
    # The first patch would start before the audio.
    assert np.ptp(centered[1:]) == 0
    assert abs(int(centered[1]) - 48) <= 1


def test_centered_patches_stay_inside_the_audio(extractor):
    waveform = signal("noise", 80000)
    timestamps = [0.0, 0.2, 1.25, 2.5, 4.9]
    starts = [0, 0, 20000 - 7800, 40000 - 7800, 80000 - 15600]
    expected = np.concatenate([reference_patches(waveform[start : start + 15600]) for start in starts])
    patches = extractor(waveform, 16000, timestamps=timestamps, audio_alignment="center")["input_features"]
    np.testing.assert_allclose(patches, expected, rtol=0, atol=1e-6)


def test_a_centered_patch_after_the_end_of_the_audio_is_silent(extractor):
    waveform = signal("noise", 48000)
    timestamps = np.arange(5) + 15 / 16
    patches = extractor(waveform, 16000, timestamps=timestamps, audio_alignment="center")["input_features"]
    filled = np.pad(waveform, (0, 31000))
    np.testing.assert_allclose(patches[2:3], reference_patches(filled[39200:54800]), rtol=0, atol=1e-6)
    np.testing.assert_allclose(patches[3:], SILENCE, atol=1e-6)


def test_a_list_of_clips_gives_a_list(extractor):
    clips = [signal("noise", 80000), signal("chirp", 48000)]
    features = extractor(clips, 16000, num_frames=[5, 3])["input_features"]
    assert [len(feature) for feature in features] == [5, 3]
    for clip, frames, feature in zip(clips, (5, 3), features, strict=True):
        np.testing.assert_array_equal(feature, extractor(clip, 16000, num_frames=frames)["input_features"])
    stacked = extractor(clips, 16000, num_frames=[3, 3], return_tensors="pt")["input_features"]
    assert stacked.shape == (2, 3, 1, 96, 64)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape)


def chunks(waveform: np.ndarray, rate: int, length: int):
    """Yield pieces of uneven length."""
    start = 0
    while start < waveform.shape[-1]:
        stop = start + 1 + (start * 7919 + length) % (2 * length)
        yield waveform[..., start:stop], rate
        start = stop


def frames(times: list[float]) -> list[tuple[float]]:
    return [(time,) for time in times]


def streamed(audio: AudioBuffer, times: list[float], audio_alignment: str, **settings) -> torch.Tensor:
    extractor = PCMANetFeatureExtractor(**settings)
    pairs = list(extractor.audio_patches(frames(times), audio, audio_alignment))
    assert [frame[0] for frame, _ in pairs] == times
    return torch.stack([patch for _, patch in pairs])


@pytest.mark.parametrize("audio_alignment", ["center", "end", "consecutive"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (48_000, 6), (11_025, 1), (15_992, 1)])
def test_chunks_give_the_patches_of_the_complete_audio(audio_alignment, rate, channels):
    waveform = noise(channels, 7 * rate + 17)
    times = [second + 15 / 16 for second in range(7)]
    complete = PCMANetFeatureExtractor()(
        waveform, rate, timestamps=times, audio_alignment=audio_alignment, return_tensors="pt"
    )
    audio = AudioBuffer(chunks(waveform, rate, 1024), RATE)
    torch.testing.assert_close(streamed(audio, times, audio_alignment), complete["input_features"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("audio_alignment", ["center", "end"])
@pytest.mark.parametrize(
    "times",
    [[0.1], [0.0, 0.0, 0.2], [2.5, 2.9], [2.5, 2.9, 3.0, 3.4], [0.5, 9.0], [2.9, 3.1, 3.2, 3.3, 20.0, 20.1]],
)
def test_the_patches_at_the_ends_are_those_of_the_complete_audio(audio_alignment, times):
    waveform = noise(3 * RATE)
    complete = PCMANetFeatureExtractor()(
        waveform, RATE, timestamps=times, audio_alignment=audio_alignment, return_tensors="pt"
    )
    assert torch.equal(
        streamed(AudioBuffer(chunks(waveform, RATE, 500), RATE), times, audio_alignment), complete["input_features"]
    )


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 1, RATE))])
def test_no_audio_is_refused(nothing):
    with pytest.raises(ValueError, match="Got no audio. Pass the audio of one clip"):
        PCMANetFeatureExtractor()(nothing, RATE)


@pytest.mark.parametrize("short_clip", ["repeat_last", "zeros"])
@pytest.mark.parametrize("samples", [100, 15_600, 40_000])
def test_missing_consecutive_patches_in_a_stream(short_clip, samples):
    waveform = noise(samples)
    extractor = PCMANetFeatureExtractor(short_clip=short_clip)
    complete = extractor(waveform, RATE, num_frames=4, return_tensors="pt")["input_features"]
    audio = AudioBuffer(chunks(waveform, RATE, 500), RATE)
    assert torch.equal(streamed(audio, [0.9, 1.9, 2.9, 3.9], "consecutive", short_clip=short_clip), complete)


def test_a_frame_waits_for_no_more_audio_than_it_needs():
    taken = []

    def watched():
        for index in range(100):
            taken.append(index)
            yield noise(1600), RATE

    def pulled(audio_alignment: str) -> list[int]:
        taken.clear()
        return [
            len(taken)
            for _ in PCMANetFeatureExtractor().audio_patches(
                frames([0.9375, 1.9375, 5.0]), AudioBuffer(watched(), RATE), audio_alignment
            )
        ]

    assert pulled("end") == [10, 20, 50]
    assert pulled("center") == [15, 25, 55]


def test_little_is_kept_of_long_audio():
    audio = AudioBuffer(((noise(RATE), RATE) for _ in range(60)), RATE)
    kept = [
        len(audio._kept)
        for _ in PCMANetFeatureExtractor().audio_patches(frames([second + 0.9 for second in range(60)]), audio, "end")
    ]
    assert max(kept) < 3 * RATE
    assert audio.seconds() == pytest.approx(60)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [44_100, 15_992])
def test_a_click_at_the_end_of_ten_minutes_keeps_its_time(rate):
    click = np.zeros(rate)
    click[round(0.2 * rate)] = 1.0
    seconds = ((click if second == 599 else np.zeros(rate), rate) for second in range(600))
    patches = streamed(AudioBuffer(seconds, RATE), [0.9375, 599.9375], "end")
    row = patches[1, 0].sum(dim=1).argmax().item()
    start = 599.9375 - 15_600 / RATE
    # Row r holds the 25 ms from 10 r ms on.
    assert start + 0.01 * row + 0.0125 == pytest.approx(599.2, abs=0.0125)


def test_the_conventions_of_transformers(extractor):
    # Issue 16, point 16.
    waveforms = np.random.default_rng(0).uniform(-1, 1, (2, 16000)).astype(np.float32)
    expected = [extractor(waveform, sampling_rate=16000)["input_features"] for waveform in waveforms]
    for batch in (list(waveforms), waveforms.tolist(), waveforms[:, None], tuple(map(torch.from_numpy, waveforms))):
        features = extractor(raw_speech=batch, sampling_rate=16000, return_tensors="pt")["input_features"]
        np.testing.assert_array_equal(features, np.stack(expected))
    one = extractor(waveforms[0].tolist(), sampling_rate=16000)["input_features"]
    np.testing.assert_array_equal(one, expected[0])
    assert extractor.feature_size == one.shape[-1] == 64
    lengths = [np.zeros(16000), np.zeros(48000)]
    assert [len(patches) for patches in extractor(lengths, sampling_rate=16000)["input_features"]] == [1, 3]
    with pytest.raises(ValueError, match=r"Clips of \[1, 3\] frames cannot be stacked"):
        extractor(lengths, sampling_rate=16000, return_tensors="pt")
    for_windows = AudioMobileNetFeatureExtractor()
    long = np.random.default_rng(0).uniform(-1, 1, 32000)
    np.testing.assert_array_equal(
        for_windows(long.tolist(), sampling_rate=32000)["input_features"],
        for_windows(long, sampling_rate=32000)["input_features"],
    )


@pytest.mark.parametrize(
    ("audio", "settings", "message"),
    [
        (np.zeros(16000), {}, "sampling_rate is missing"),
        (
            np.zeros(16000),
            {"sampling_rate": 16000, "audio_alignment": "centered"},
            "audio_alignment.*'center'.*'centered'",
        ),
        (np.zeros(16000), {"sampling_rate": 16000, "audio_alignment": "center"}, "needs timestamps"),
        (np.zeros(16000), {"sampling_rate": 16000, "num_frames": 0}, "num_frames.*got 0"),
        (np.zeros(16000), {"sampling_rate": 16000, "num_frames": [1]}, "num_frames.*got \\[1\\]"),
        (np.zeros(16000), {"sampling_rate": 16000, "num_frames": 2, "timestamps": [0.5]}, "1 timestamps for 2"),
        ([np.zeros(16000), np.full(9, np.nan)], {"sampling_rate": 16000}, "Clip 1: .*NaN"),
        ([np.zeros(16000)], {"sampling_rate": 16000, "num_frames": 1}, "lists of 1"),
    ],
)
def test_wrong_calls_are_refused(extractor, audio, settings, message):
    with pytest.raises(ValueError, match=message):
        extractor(audio, **settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"fft_length": 256}, "window_length = 400.*got 256"),
        ({"hop_length": 0}, "hop_length.*got 0"),
        ({"patch_frames": 96.0}, "patch_frames.*got 96.0"),
        ({"max_frequency": 9000.0}, "sampling_rate / 2"),
        ({"min_frequency": 7500.0}, "min_frequency < max_frequency"),
        ({"log_offset": 0.0}, "log_offset"),
        ({"short_clip": "repeat"}, "short_clip.*zeros.*'repeat'"),
        ({"hop_lenght": 160}, "unknown keyword `hop_lenght`. Did you mean `hop_length`"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        PCMANetFeatureExtractor(**setting)


@pytest.mark.parametrize("extractor_class", [PCMANetFeatureExtractor, AudioMobileNetFeatureExtractor])
def test_unknown_settings_are_refused_from_users_and_loaded_from_files(extractor_class, tmp_path, caplog):
    with pytest.raises(ValueError, match="unknown keyword `hop_lenght`. Did you mean `hop_length`"):
        extractor_class(hop_lenght=160)
    extractor = extractor_class()
    name = f"training_run_of_{extractor_class.__name__}"  # each warning is given once per process
    setattr(extractor, name, "x")
    PCMANetProcessor(PCMANetImageProcessor(), extractor).save_pretrained(tmp_path / "processor")
    extractor.save_pretrained(tmp_path)
    assert getattr(AutoFeatureExtractor.from_pretrained(tmp_path), name) == "x"
    assert f"`{name}`, which has no effect" in caplog.text
    assert getattr(PCMANetProcessor.from_pretrained(tmp_path / "processor").feature_extractor, name) == "x"


def test_unknown_keywords_of_a_saved_processor_are_a_warning(tmp_path, caplog):
    PCMANetProcessor(PCMANetImageProcessor(), PCMANetFeatureExtractor()).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps(saved | {"audio_window": 3}))
    assert PCMANetProcessor.from_pretrained(tmp_path).audio_windows is None
    assert "unknown keyword `audio_window`, which has no effect. Did you mean `audio_windows`?" in caplog.text


def test_settings_survive_saving_and_act(tmp_path):
    settings = {"sampling_rate": 8000, "max_frequency": 3500.0, "num_mel_bins": 32, "short_clip": "zeros"}
    extractor = PCMANetFeatureExtractor(**settings)
    extractor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings.items() <= saved.items()
    for factory in (PCMANetFeatureExtractor, AutoFeatureExtractor):
        loaded = factory.from_pretrained(tmp_path)
        assert type(loaded) is PCMANetFeatureExtractor
        assert loaded.to_dict() == extractor.to_dict()
    assert loaded(np.zeros(16000), 8000)["input_features"].shape == (1, 1, 96, 32)
