"""Tests of dataset_scripts/sounding_shapes/sound.py."""

import numpy as np
import pytest

from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES
from pcmanet.dataset_scripts.sounding_shapes.sound import (
    SAMPLING_RATE,
    SOUNDS,
    draw_voice,
    quantize,
    render_noise,
    render_room,
    render_source,
)


EACH_CLASS = pytest.mark.parametrize("label", range(12), ids=CLASSES)
# The band of each class that contains at least 90% of its energy, in Hz.
BANDS = (
    (100, 420),
    (220, 2600),
    (450, 850),
    (1900, 6000),
    (400, 510),
    (500, 8000),
    (1000, 2500),
    (500, 4200),
    (4500, 7500),
    (2700, 4500),
    (700, 1800),
    (2000, 7500),
)
# Events per second of the families that pulse, lowest and highest.
PULSES = {0: (4, 6), 2: (5, 7), 3: (3, 4), 5: (11, 15), 7: (4, 5), 8: (3, 4.5), 11: (2.5, 3.2)}


def one_second(label: int, seed: int) -> np.ndarray:
    return render_source(label, draw_voice(np.random.default_rng(seed)), np.array([True]))


def test_every_class_has_a_sound():
    assert len(SOUNDS) == len(CLASSES)


@EACH_CLASS
def test_a_family_stays_in_its_pitch_range(label):
    lowest, highest = BANDS[label]
    frequency = np.fft.rfftfreq(SAMPLING_RATE, 1 / SAMPLING_RATE)
    for seed in range(20):
        energy = np.abs(np.fft.rfft(one_second(label, seed))) ** 2
        assert energy[(frequency >= lowest) & (frequency <= highest)].sum() > 0.9 * energy.sum()


@pytest.mark.parametrize("label", PULSES, ids=lambda label: CLASSES[label])
def test_a_family_pulses_at_its_rate(label):
    for seed in range(10):
        voice = draw_voice(np.random.default_rng(seed))
        rate = voice.between(*PULSES[label], voice.rate)
        waveform = render_source(label, voice, np.ones(8, dtype=bool))
        envelope = np.square(waveform).reshape(-1, 160).sum(axis=1)
        spectrum = np.square(np.abs(np.fft.rfft((envelope - envelope.mean()) * np.hanning(len(envelope)))))
        # Most of the envelope's energy is at multiples of the rate; the bins are an eighth of a hertz wide.
        multiple = np.arange(len(spectrum)) / 8.0 / rate
        on_rate = (np.abs(multiple - np.rint(multiple)) * rate <= 0.25) & (multiple > 0.5)
        assert spectrum[on_rate].sum() > 0.6 * spectrum[multiple > 0.5].sum()


@EACH_CLASS
def test_a_source_sounds_in_its_seconds_at_its_level(label):
    voice = draw_voice(np.random.default_rng(label))
    seconds = np.array([False, True, True, False, True])
    waveform = render_source(label, voice, seconds)
    assert waveform.dtype == np.float32
    blocks = waveform.reshape(5, SAMPLING_RATE)
    assert not blocks[~seconds].any()
    np.testing.assert_allclose(np.sqrt(np.mean(blocks[seconds] ** 2, axis=1)), voice.level, rtol=0.25)
    # It fades in over 20 ms where it starts and continues without a gap from second 1 to second 2.
    assert np.abs(blocks[1][:16]).max() < 0.05 * np.abs(blocks[1]).max()
    assert np.abs(blocks[2][-16:]).max() < 0.05 * np.abs(blocks[2]).max()


@EACH_CLASS
def test_voices_of_a_family_differ_and_are_reproducible(label):
    voices = [one_second(label, seed) for seed in range(4)]
    assert len({voice.tobytes() for voice in voices}) == 4
    np.testing.assert_array_equal(one_second(label, 3), voices[3])


def test_loudness_varies_by_ten_decibels():
    levels = [draw_voice(np.random.default_rng(seed)).level for seed in range(300)]
    spread = 20.0 * np.log10(max(levels) / min(levels))
    assert 9.0 < spread <= 10.0


def test_a_room_adds_noise_reverberation_and_loudness():
    dry = np.zeros(2 * SAMPLING_RATE, dtype=np.float32)
    dry[SAMPLING_RATE] = 0.5
    rooms = [render_room(np.random.default_rng(seed), dry) for seed in range(30)]
    floors = [20.0 * np.log10(room[:8000].std()) for room in rooms]
    assert -67.0 < min(floors) < -62.0
    assert -54.0 < max(floors) < -49.0
    peaks = [room[SAMPLING_RATE] for room in rooms]
    assert 0.11 < min(peaks) < 0.2
    assert 0.4 < max(peaks) < 0.52
    tails = [room[SAMPLING_RATE + 1 :][:800].std() / room[:8000].std() for room in rooms]
    assert 0.1 < np.mean(np.array(tails) < 1.2) < 0.6


@pytest.mark.parametrize("peak", [0.3, 1.0, 4.0])
def test_quantized_audio_never_clips_and_fits_16_bits(peak):
    waveform = quantize(np.linspace(-peak, peak, 1001, dtype=np.float32))
    assert np.abs(waveform).max() == pytest.approx(min(peak, 0.98), abs=1e-4)
    np.testing.assert_array_equal(waveform * 32768, np.rint(waveform * 32768))
    assert waveform.max() * 32768 <= 32767


def test_noise_is_as_loud_as_the_sources():
    for seed in range(20):
        noise = render_noise(np.random.default_rng(seed), SAMPLING_RATE)
        assert noise.dtype == np.float32
        assert 0.017 < noise.std() < 0.18
        assert np.abs(noise).max() <= 1.0
