"""Spans of time and loudness."""

import numpy as np
import pytest

from pcmanet.pipelines.timeline import loudness, sounding_spans


def results(*found: dict[str, float]) -> list[dict]:
    """One network frame per argument: labels with their scores."""
    return [
        {"timestamp": float(number), "segments": [{"label": label, "score": score} for label, score in frame.items()]}
        for number, frame in enumerate(found)
    ]


class TestSpans:
    def test_consecutive_frames_are_joined_and_their_scores_averaged(self):
        spans = sounding_spans(results({"drum": 0.6}, {"drum": 0.8, "bell": 0.5}, {}, {"drum": 0.9}, {}))
        assert spans == {
            "drum": [(0.0, 2.0, pytest.approx(0.7)), (3.0, 4.0, pytest.approx(0.9))],
            "bell": [(1.0, 2.0, 0.5)],
        }
        assert list(spans) == ["drum", "bell"]

    def test_times_follow_the_rate_and_the_last_ends_with_the_video(self):
        found = results({}, {"bell": 1.0}, {"bell": 1.0})
        assert sounding_spans(found, 4)["bell"] == [(0.25, 0.75, 1.0)]
        assert sounding_spans(found, 4, duration=0.7)["bell"] == [(0.25, 0.7, 1.0)]

    def test_most_probable_segment_of_a_label_counts(self):
        frame = {"timestamp": 0.0, "segments": [{"label": "bell", "score": 0.9}, {"label": "bell", "score": 0.2}]}
        assert sounding_spans([frame])["bell"] == [(0.0, 1.0, 0.9)]

    def test_no_segments(self):
        assert sounding_spans(results({}, {})) == {}
        assert sounding_spans([]) == {}

    @pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["frames_per_second", "duration"])
    def test_invalid_rates_and_durations_are_refused(self, name, value):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive number, got"):
            sounding_spans(results({"bell": 1.0}), **{name: value})


class TestLoudness:
    def test_peaks_of_all_channels_relative_to_the_loudest(self):
        waveform = np.zeros((2, 400), np.float32)
        waveform[0, 150] = -0.5
        waveform[1, 399] = 0.25
        np.testing.assert_allclose(loudness(waveform, 100, duration=4.0, parts=4), [0, 1, 0, 0.5])

    def test_missing_audio_is_silent_and_audio_beyond_is_ignored(self):
        waveform = np.array([0.5, 0.5, 1.0, 1.0], np.float32)
        np.testing.assert_allclose(loudness(waveform, 2, duration=4.0, parts=4), [0.5, 1, 0, 0])
        np.testing.assert_allclose(loudness(waveform, 2, duration=1.0, parts=2), [1, 1])

    def test_silent_audio(self):
        np.testing.assert_array_equal(loudness(np.zeros((1, 10), np.float32), 10, 1.0, 5), np.zeros(5))
