"""Render the audio of Sounding Shapes: twelve sound families with different pitch, timbre and envelope.

Pitch, rate, timbre and loudness are drawn for every source and stay constant during a clip. Every family repeats at least
twice a second, so any second of it differs from any second of another family.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset


SAMPLING_RATE = 16000  # Hz, the rate of the published log-mel features
FADE = 0.02  # seconds, raised cosine, inside the first and the last sounding second
ATTACK = np.float32(200.0)  # full amplitudes per second: a stroke rises over 5 ms, so that its onset does not click
REVERBERATION_TAIL = 0.2  # seconds
NOISE_KINDS = ("white", "pink", "brown")
TURN = np.float32(2.0 * np.pi)


# Sources: one sound family per class


@dataclass(frozen=True)
class Voice:
    """Properties of a source that are drawn once per clip.

    Attributes:
        pitch: Position in the family's pitch range, in [0, 1].
        rate: Position in the family's range of events per second, in [0, 1].
        timbre: Position in the range of another property of the family, in [0, 1].
        phase: Position in its cycle at the start of the clip, in [0, 1].
        level: Root mean square while sounding; full scale is 1.
        noise_seed: Seed of the family's noise, if it has any.
    """

    pitch: float
    rate: float
    timbre: float
    phase: float
    level: float
    noise_seed: int

    def between(self, lowest: float, highest: float, position: float) -> np.float32:
        """Interpolate a range geometrically, as pitch and tempo are perceived."""
        return np.float32(lowest * (highest / lowest) ** position)

    def cycle(self, lowest: float, highest: float, time: np.ndarray) -> tuple[np.ndarray, np.float32]:
        """Return the position in [0, 1) within the event at each time, and the events per second."""
        rate = self.between(lowest, highest, self.rate)
        return (time * rate + np.float32(self.phase)) % 1.0, rate


def draw_voice(generator: np.random.Generator) -> Voice:
    """Draw the properties of a source; its loudness varies by 10 dB."""
    pitch, rate, timbre, phase, loudness = generator.uniform(0.0, 1.0, 5)
    level = 0.1 * 10.0 ** ((10.0 * loudness - 5.0) / 20.0)
    return Voice(pitch, rate, timbre, phase, level, int(generator.integers(2**32)))


def _sine(frequency: np.float32, time: np.ndarray) -> np.ndarray:
    return np.sin(TURN * frequency * time)


def _band_noise(voice: Voice, time: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Return flat noise between two frequencies in Hz, with edges of 1/6 of the band."""
    noise = np.random.default_rng(voice.noise_seed).standard_normal(len(time), dtype=np.float32)
    spectrum = np.fft.rfft(noise)
    frequency = np.fft.rfftfreq(len(time), 1.0 / SAMPLING_RATE).astype(np.float32)
    width = np.float32((highest - lowest) / 6.0)
    spectrum *= np.clip(np.minimum(frequency - lowest, highest - frequency) / width, 0.0, 1.0)
    return np.fft.irfft(spectrum, len(time))


def _hum(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Low tone of 140 to 190 Hz with its octave, throbbing 4 to 6 times a second."""
    pitch = voice.between(140.0, 190.0, voice.pitch)
    position, _ = voice.cycle(4.0, 6.0, time)
    tone = _sine(pitch, time) + np.float32(0.3 + 0.4 * voice.timbre) * _sine(2.0 * pitch, time)
    return tone * (0.55 - 0.45 * np.cos(TURN * position))


def _buzz(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Steady reed-like tone of 260 to 340 Hz with seven harmonics."""
    pitch = voice.between(260.0, 340.0, voice.pitch)
    slope = 0.3 + 0.4 * voice.timbre
    harmonics = (_sine(k * pitch, time + np.float32(0.37 * k)) * np.float32(k**-slope) for k in range(1, 8))
    return sum(harmonics, np.zeros_like(time))


def _knock(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Short wooden knocks around 550 to 700 Hz, 5 to 7 a second."""
    pitch = voice.between(550.0, 700.0, voice.pitch)
    position, rate = voice.cycle(5.0, 7.0, time)
    seconds = position / rate
    decay = np.exp(seconds * np.float32(-50.0 - 20.0 * voice.timbre))
    return np.minimum(seconds * ATTACK, 1.0) * decay * np.sin(TURN * pitch * seconds)


def _bell(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Ringing strikes with inharmonic partials from 2.1 to 6 kHz, 3 to 4 a second."""
    pitch = voice.between(2100.0, 2500.0, voice.pitch)
    position, rate = voice.cycle(3.0, 4.0, time)
    seconds = position / rate
    partials = sum(
        np.float32(weight) * np.sin(TURN * pitch * np.float32(ratio) * seconds)
        for ratio, weight in ((1.0, 1.0), (1.52, 0.8), (2.24, 0.6))
    )
    return np.minimum(seconds * ATTACK, 1.0) * np.exp(seconds * np.float32(-9.0 - 5.0 * voice.timbre)) * partials


def _tone(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Pure steady tone of 420 to 490 Hz."""
    return _sine(voice.between(420.0, 490.0, voice.pitch), time)


def _click(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Bright clicks over the whole spectrum, 11 to 15 a second."""
    position, rate = voice.cycle(11.0, 15.0, time)
    noise = np.random.default_rng(voice.noise_seed).standard_normal(len(time), dtype=np.float32)
    return noise * np.exp(position / rate * np.float32(-500.0 - 200.0 * voice.timbre))


def _warble(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Siren whose pitch varies by a quarter around 1.5 to 1.8 kHz, 4 to 6 times a second."""
    pitch = voice.between(1500.0, 1800.0, voice.pitch)
    rate = voice.between(4.0, 6.0, voice.rate)
    swing = np.float32(0.2 + 0.08 * voice.timbre) * pitch / rate
    return np.sin(TURN * pitch * time - swing * np.cos(TURN * (rate * time + np.float32(voice.phase))))


def _up_chirp(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Upward sweeps from 600 Hz over two octaves or more, 4 to 5 a second with a gap after each."""
    return _chirp(voice, time, voice.between(550.0, 700.0, voice.pitch), 2.0 + 0.4 * voice.timbre, (4.0, 5.0))


def _down_chirp(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Downward sweeps from 7 kHz over an octave or more, 2.5 to 3.2 a second with a gap after each."""
    return _chirp(voice, time, voice.between(6300.0, 7200.0, voice.pitch), -1.3 - 0.3 * voice.timbre, (2.5, 3.2))


def _chirp(
    voice: Voice, time: np.ndarray, start: np.float32, octaves: float, rates: tuple[float, float]
) -> np.ndarray:
    """Exponential sweeps of `octaves` from `start` Hz that fill four fifths of each event."""
    position, rate = voice.cycle(*rates, time)
    speed = np.float32(octaves * np.log(2.0)) * rate / np.float32(0.8)  # nepers per second
    sweep = np.sin(TURN * start / speed * np.expm1(speed * position / rate))
    # Rise and fall over a twentieth of the event, so that no click identifies the sweep.
    return sweep * np.clip(np.minimum(position, 0.8 - position) * 20.0, 0.0, 1.0)


def _hiss(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Shaker: bursts of noise between 4.6 and 7.4 kHz, 3 to 4.5 a second."""
    lowest = float(voice.between(4600.0, 5000.0, voice.pitch))
    position, _ = voice.cycle(3.0, 4.5, time)
    gate = np.clip(np.minimum(position, 0.5 - position) * 25.0, 0.0, 1.0)
    return _band_noise(voice, time, lowest, lowest + 2000.0 + 400.0 * voice.timbre) * gate


def _trill(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Two alternating notes between 2.9 and 4.3 kHz, 7 to 9 changes a second."""
    pitch = voice.between(2900.0, 3200.0, voice.pitch)
    position, _ = voice.cycle(3.5, 4.5, time)
    step = np.float32(1.25 + 0.1 * voice.timbre)
    upper = position >= 0.5
    gate = np.clip(np.minimum(position % 0.5, 0.5 - position % 0.5) * 40.0, 0.0, 1.0)
    return np.sin(TURN * pitch * np.where(upper, step, np.float32(1.0)) * time) * gate


def _wind(voice: Voice, time: np.ndarray) -> np.ndarray:
    """Steady noise between 0.8 and 1.6 kHz."""
    lowest = float(voice.between(750.0, 900.0, voice.pitch))
    return _band_noise(voice, time, lowest, lowest * (1.7 + 0.2 * voice.timbre))


# In the order of the class indices: class k sounds as family k.
SOUNDS: tuple[Callable[[Voice, np.ndarray], np.ndarray], ...] = (
    _hum,
    _buzz,
    _knock,
    _bell,
    _tone,
    _click,
    _warble,
    _up_chirp,
    _hiss,
    _trill,
    _wind,
    _down_chirp,
)


def render_source(label: int, voice: Voice, seconds: np.ndarray) -> np.ndarray:
    """Render one source.

    Args:
        label: Class index, from 0.
        voice: Its drawn properties.
        seconds: bool (seconds,), when the source sounds.

    Returns:
        float32 (seconds * 16000,), mono.
    """
    waveform = np.zeros(len(seconds) * SAMPLING_RATE, dtype=np.float32)
    steps = np.diff(np.concatenate([[0], seconds.astype(np.int8), [0]]))
    for first, last in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True):
        time = np.arange(first * SAMPLING_RATE, last * SAMPLING_RATE, dtype=np.float32) / np.float32(SAMPLING_RATE)
        run = SOUNDS[label](voice, time)
        run *= np.float32(voice.level) / np.sqrt(np.mean(np.square(run)))
        length = int(FADE * SAMPLING_RATE)
        fade = (0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)).astype(np.float32)
        run[:length] *= fade
        run[-length:] *= fade[::-1]
        waveform[first * SAMPLING_RATE : last * SAMPLING_RATE] = run
    return waveform


# Mixtures


def render_mixture(
    generator: np.random.Generator, labels: Sequence[int] | np.ndarray, sounding: np.ndarray
) -> np.ndarray:
    """Render several sources in a room.

    Args:
        generator: Source of all randomness.
        labels: Class index of each source, from 0.
        sounding: bool (seconds, sources), which source sounds when.

    Returns:
        float32 (seconds * 16000,), mono in [-1, 1), on the 16-bit grid.
    """
    dry = np.zeros(len(sounding) * SAMPLING_RATE, dtype=np.float32)
    for label, seconds in zip(labels, sounding.T, strict=True):
        dry += render_source(int(label), draw_voice(generator), seconds)
    return render_room(generator, dry)


def render_room(generator: np.random.Generator, dry: np.ndarray) -> np.ndarray:
    """Apply a room to the mixture of all sources: loudness, reverberation and a noise floor, on the 16-bit grid.

    Args:
        generator: Source of all randomness.
        dry: float32 (samples,), the sum of all sources.

    Returns:
        float32 (samples,) in [-1, 1), every value a multiple of 1/32768, so that a PCM16 file stores it exactly.
    """
    loudness = 10.0 ** (generator.uniform(-12.0, 0.0) / 20.0)
    padded = len(dry) + int(REVERBERATION_TAIL * SAMPLING_RATE)
    spectrum = np.fft.rfft(dry, padded) * np.fft.rfft(_draw_response(generator), padded)
    wet = np.fft.irfft(spectrum, padded)[: len(dry)] * np.float32(loudness)
    floor = 10.0 ** (generator.uniform(-66.0, -50.0) / 20.0)
    waveform = wet + np.float32(floor) * generator.standard_normal(len(dry), dtype=np.float32)
    return quantize(waveform)


def quantize(waveform: np.ndarray) -> np.ndarray:
    """Scale down a waveform that would clip and round it to 16 bits: float32 (samples,) in [-1, 1)."""
    peak = max(1.0, float(np.abs(waveform).max()) / 0.98)
    return np.rint(waveform * np.float32(32768.0 / peak)).astype(np.float32) / np.float32(32768.0)


def _draw_response(generator: np.random.Generator) -> np.ndarray:
    """Draw an impulse response: the direct sound, and in two out of three rooms a decaying tail of noise."""
    length = int(REVERBERATION_TAIL * SAMPLING_RATE)
    decay = generator.uniform(0.02, 0.06)  # seconds to fall by 8.7 dB
    strength = generator.uniform(0.0, 0.5) * (generator.uniform() < 2.0 / 3.0)
    time = np.arange(length, dtype=np.float32) / np.float32(SAMPLING_RATE)
    response = generator.standard_normal(length, dtype=np.float32) * np.exp(time * np.float32(-1.0 / decay))
    response *= np.float32(strength) / np.linalg.norm(response)
    response[0] = 1.0
    return response


def render_noise(generator: np.random.Generator, samples: int) -> np.ndarray:
    """Render noise of no class: white, pink or brown, as loud as the sources.

    Args:
        generator: Source of all randomness.
        samples: Length.

    Returns:
        float32 (samples,) on the 16-bit grid.
    """
    color = NOISE_KINDS[int(generator.integers(len(NOISE_KINDS)))]
    spectrum = np.fft.rfft(generator.standard_normal(samples, dtype=np.float32))
    frequency = np.fft.rfftfreq(samples, 1.0 / SAMPLING_RATE).astype(np.float32)
    exponent = {"white": 0.0, "pink": -0.5, "brown": -1.0}[color]
    waveform = np.fft.irfft(spectrum * np.maximum(frequency, 50.0) ** np.float32(exponent), samples)
    level = 0.1 * 10.0 ** (generator.uniform(-15.0, 5.0) / 20.0)
    return quantize(waveform * np.float32(level) / np.sqrt(np.mean(np.square(waveform))))


MIXTURE = (0.15, 0.4, 0.3, 0.15)  # probability that none, one, two or three classes sound in a second


class SoundMixtures(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Procedural audio clips for audio classification, each with the classes that sound in every second.

    An index always gives the same bytes. The random streams are disjoint from those of `SoundingShapes`.

    Args:
        length: Number of clips.
        seed: Seed of the clips, 0 or more.
        num_seconds: Duration of each clip.
    """

    def __init__(self, length: int, *, seed: int = 0, num_seconds: int = 5) -> None:
        self.length, self.seed, self.num_seconds = length, seed, num_seconds

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return one clip.

        Returns:
            float32 (num_seconds * 16000,), mono in [-1, 1), and bool (num_seconds, 12): which class sounds when.

        Raises:
            IndexError: If the index is not in [0, length).
        """
        if not 0 <= index < self.length:
            raise IndexError(f"Expected an index from 0 to {self.length - 1}, got {index}")
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index,)))
        sounding = np.zeros((self.num_seconds, len(SOUNDS)), dtype=bool)
        labels = generator.permutation(len(SOUNDS))[:4]
        for second in sounding:
            second[generator.permutation(labels)[: generator.choice(len(MIXTURE), p=MIXTURE)]] = True
        return render_mixture(generator, labels, sounding[:, labels]), sounding
