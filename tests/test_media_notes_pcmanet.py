"""Notes: each said once, to the log and to whoever reads them."""

import logging

import pytest

from modeling_pcmanet.media_notes_pcmanet import MediaNotes


def test_a_note_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="modeling_pcmanet")
    notes = MediaNotes("film.mp4")
    notes.add("it is torn")
    notes.add("it is old", logging.INFO)
    notes.add("it is torn")
    assert notes.texts == ["it is torn", "it is old"]
    assert caplog.record_tuples == [
        ("modeling_pcmanet.media_notes_pcmanet", logging.WARNING, "film.mp4: it is torn"),
        ("modeling_pcmanet.media_notes_pcmanet", logging.INFO, "film.mp4: it is old"),
    ]
    assert f"{notes} is a film" == "film.mp4 is a film"


def test_what_is_counted_is_said_at_the_end() -> None:
    notes = MediaNotes("film.mp4")
    for _ in range(3):
        notes.count("tears")
    notes.count("stains")
    assert notes.texts == []
    notes.finish()
    notes.finish()
    assert notes.texts == ["tears: 3", "stains: 1"]
