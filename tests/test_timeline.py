"""Tests of pipelines/timeline.py."""

import numpy as np
import pytest

from pcmanet.pipelines.timeline import Span, loudness, sounding_spans


def results(*found: dict[str, float]) -> list[dict]:
    """One network frame per argument: labels with their scores."""
    return [
        {"timestamp": float(number), "segments": [{"label": label, "score": score} for label, score in frame.items()]}
        for number, frame in enumerate(found)
    ]


class TestSpans:
    def test_neighbours_are_joined_and_their_scores_averaged(self):
        spans = sounding_spans(results({"drum": 0.6}, {"drum": 0.8, "bell": 0.5}, {}, {"drum": 0.9}, {}))
        assert spans == {
            "drum": [Span(0.0, 2.0, pytest.approx(0.7)), Span(3.0, 4.0, pytest.approx(0.9))],
            "bell": [Span(1.0, 2.0, 0.5)],
        }
        assert list(spans) == ["drum", "bell"]
        assert [span.seconds for span in spans["drum"]] == [2.0, 1.0]

    def test_a_finer_rate_gives_finer_times_and_the_video_ends_the_last(self):
        found = results({}, {"bell": 1.0}, {"bell": 1.0})
        assert sounding_spans(found, 4)["bell"] == [Span(0.25, 0.75, 1.0)]
        assert sounding_spans(found, 4, duration=0.7)["bell"] == [Span(0.25, 0.7, 1.0)]

    def test_of_two_segments_of_a_label_the_most_probable_counts(self):
        frame = {"timestamp": 0.0, "segments": [{"label": "bell", "score": 0.9}, {"label": "bell", "score": 0.2}]}
        assert sounding_spans([frame])["bell"] == [Span(0.0, 1.0, 0.9)]

    def test_nothing_sounds(self):
        assert sounding_spans(results({}, {})) == {}
        assert sounding_spans([]) == {}

    @pytest.mark.parametrize("arguments", [{"frames_per_second": 0}, {"duration": -1.0}])
    def test_refuses_what_is_not_positive(self, arguments: dict):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be a positive number"):
            sounding_spans(results({"bell": 1.0}), **arguments)


class TestLoudness:
    def test_peaks_of_both_channels_by_time_with_the_loudest_at_one(self):
        waveform = np.zeros((2, 400), np.float32)
        waveform[0, 150] = -0.5
        waveform[1, 399] = 0.25
        np.testing.assert_allclose(loudness(waveform, 100, duration=4.0, parts=4), [0, 1, 0, 0.5])

    def test_missing_sound_is_silent_and_what_is_beyond_does_not_count(self):
        waveform = np.array([0.5, 0.5, 1.0, 1.0], np.float32)
        np.testing.assert_allclose(loudness(waveform, 2, duration=4.0, parts=4), [0.5, 1, 0, 0])
        np.testing.assert_allclose(loudness(waveform, 2, duration=1.0, parts=2), [1, 1])

    def test_silence_stays_silence(self):
        np.testing.assert_array_equal(loudness(np.zeros((1, 10), np.float32), 10, 1.0, 5), np.zeros(5))
