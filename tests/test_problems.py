"""Tests of dataset_scripts/problems.py: errors that list the problems of many files."""

import pickle

from pcmanet.dataset_scripts.problems import SHOWN_PROBLEMS, DatasetError, Problem


def test_error_shows_some_problems_and_holds_all():
    problems = [Problem("clip", f"file{number}", "missing") for number in range(SHOWN_PROBLEMS + 5)]
    error = pickle.loads(pickle.dumps(DatasetError(problems)))
    assert error.problems == problems
    lines = str(error).splitlines()
    assert lines[0] == "Found 105 problem(s) in the data:" and lines[1] == "  file0: missing"
    assert len(lines) == SHOWN_PROBLEMS + 2 and "5 more" in lines[-1]


def test_error_from_a_worker_keeps_its_text():
    # A DataLoader raises the class again with the text of the worker's error.
    text = str(DatasetError([Problem(clip="abc", path="abc.wav", problem="Empty file")]))
    assert str(DatasetError(text)) == text
    assert DatasetError(text).problems == []
