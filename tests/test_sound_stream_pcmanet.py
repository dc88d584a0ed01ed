"""Sound in chunks gives what whole sound gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_pcmanet import PCMANetFeatureExtractor
from modeling_pcmanet.sound_stream_pcmanet import SoundStream, hear, in_pieces


RATE = 16_000


def noise(*shape: int, seed: int = 0) -> np.ndarray:
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


def heard(sound: SoundStream, times: list[float], patching: str, **settings) -> torch.Tensor:
    extractor = PCMANetFeatureExtractor(**settings)
    pairs = list(hear(frames(times), sound, extractor, patching))
    assert [frame.timestamp for frame, _ in pairs] == times
    return torch.stack([patch for _, patch in pairs])


@pytest.mark.parametrize("patching", ["aligned", "trailing", "consecutive"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (48_000, 6), (11_025, 1), (15_992, 1)])
def test_chunks_are_heard_as_the_whole(patching, rate, channels):
    waveform = noise(channels, 7 * rate + 17)
    times = [second + 15 / 16 for second in range(7)]
    whole = PCMANetFeatureExtractor()(waveform, rate, timestamps=times, patching=patching, return_tensors="pt")
    sound = SoundStream(chunks(waveform, rate, 1024), RATE)
    torch.testing.assert_close(heard(sound, times, patching), whole["input_features"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("patching", ["aligned", "trailing"])
@pytest.mark.parametrize(
    "times",
    [[0.1], [0.0, 0.0, 0.2], [2.5, 2.9], [2.5, 2.9, 3.0, 3.4], [0.5, 9.0], [2.9, 3.1, 3.2, 3.3, 20.0, 20.1]],
)
def test_the_ends_of_the_sound_are_those_of_the_whole(patching, times):
    waveform = noise(3 * RATE)
    whole = PCMANetFeatureExtractor()(waveform, RATE, timestamps=times, patching=patching, return_tensors="pt")
    assert torch.equal(heard(SoundStream(chunks(waveform, RATE, 500), RATE), times, patching), whole["input_features"])


@pytest.mark.parametrize("short_clip", ["repeat_last", "zeros"])
@pytest.mark.parametrize("samples", [100, 15_600, 40_000])
def test_consecutive_patches_that_are_missing(short_clip, samples):
    waveform = noise(samples)
    extractor = PCMANetFeatureExtractor(short_clip=short_clip)
    whole = extractor(waveform, RATE, num_frames=4, return_tensors="pt")["input_features"]
    sound = SoundStream(chunks(waveform, RATE, 500), RATE)
    assert torch.equal(heard(sound, [0.9, 1.9, 2.9, 3.9], "consecutive", short_clip=short_clip), whole)


def test_a_frame_waits_for_no_more_sound_than_it_needs():
    taken = []

    def watched():
        for index in range(100):
            taken.append(index)
            yield noise(1600), RATE

    def pulled(patching: str) -> list[int]:
        taken.clear()
        return [
            len(taken)
            for _ in hear(
                frames([0.9375, 1.9375, 5.0]), SoundStream(watched(), RATE), PCMANetFeatureExtractor(), patching
            )
        ]

    assert pulled("trailing") == [10, 20, 50]
    assert pulled("aligned") == [15, 25, 55]


def test_little_is_kept_of_a_long_sound():
    sound = SoundStream(((noise(RATE), RATE) for _ in range(60)), RATE)
    kept = [
        len(sound._kept)
        for _ in hear(frames([second + 0.9 for second in range(60)]), sound, PCMANetFeatureExtractor(), "trailing")
    ]
    assert max(kept) < 3 * RATE
    assert sound.seconds() == pytest.approx(60)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [44_100, 15_992])
def test_a_click_at_the_end_of_ten_minutes_is_heard_in_its_place(rate):
    click = np.zeros(rate)
    click[round(0.2 * rate)] = 1.0
    seconds = ((click if second == 599 else np.zeros(rate), rate) for second in range(600))
    patches = heard(SoundStream(seconds, RATE), [0.9375, 599.9375], "trailing")
    row = patches[1, 0].sum(dim=1).argmax().item()
    start = 599.9375 - 15_600 / RATE
    # Row r hears the 25 ms from 10 r ms on.
    assert start + 0.01 * row + 0.0125 == pytest.approx(599.2, abs=0.0125)


def test_what_was_forgotten_is_not_given():
    sound = SoundStream([(noise(1000), RATE)], RATE)
    assert not sound.reaches(2000)
    assert sound.cut(900, 1100).tolist()[100:] == [0.0] * 100
    sound.forget(500)
    with pytest.raises(IndexError, match="sample 400 was forgotten"):
        sound.cut(400, 500)


def test_silence_fills_up_only_sound_that_has_ended():
    sound = SoundStream([(noise(RATE), RATE), (noise(RATE), RATE)], RATE)
    assert sound.reaches(RATE)
    sound.fill(5.0)
    assert sound.length == RATE
    assert not sound.reaches(3 * RATE)
    sound.fill(5.0)
    assert sound.reaches(5 * RATE)
    assert not sound.cut(2 * RATE, 5 * RATE).any()


@pytest.mark.parametrize("length", [1, 100, 160_000, 1_000_001])
def test_pieces_make_up_the_waveform(length):
    waveform = noise(2, length)
    pieces = list(in_pieces(waveform, RATE))
    np.testing.assert_array_equal(np.concatenate([piece for piece, _ in pieces], axis=1), waveform)
    assert max(piece.shape[1] for piece, _ in pieces) < 21 * RATE


def test_bad_chunks_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        SoundStream([(np.full(10, np.nan), RATE)], RATE).reaches(1)
    with pytest.raises(ValueError, match="hertz"):
        SoundStream([(noise(10), 16.0)], RATE).reaches(1)


def test_no_sound_at_all_has_no_moments():
    with pytest.raises(ValueError, match="no sound came with the frames: give zeros"):
        SoundStream([], RATE).position(1.0)
