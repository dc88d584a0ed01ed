"""Tests of the bundled model on the bundled clip of the real world, what a model says about itself, and how it is measured."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import real_world
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.cli.main import main
from pcmanet.pipelines import AudioVisualSegmentationPipeline


EXAMPLES = Path(__file__).parents[1] / "examples"
CLIP = EXAMPLES / "real_world.mp4"
SIDES = {"dog": slice(0, 256), "rooster": slice(256, 512), "helicopter": slice(0, 256)}  # columns of the clip


@pytest.fixture(scope="module")
def segmenter() -> AudioVisualSegmentationPipeline:
    """The pipeline without a model: the bundled one."""
    return pipeline("audio-visual-segmentation", device="cpu")


def write_noise_video(path: Path) -> Path:
    """Three seconds of gray frames with white noise."""
    generator = np.random.default_rng(0)
    frames = (np.full((64, 64, 3), 128, np.uint8) for _ in range(30))
    write_video(path, frames, 10, 0.1 * generator.standard_normal((1, 48000)).astype(np.float32), 16000)
    return path


def test_bundled_model_finds_what_sounds_in_the_bundled_clip(segmenter):
    """Seconds 0 to 1: dog; 2: rooster; 3: both; 4 to 5: silence; 6 to 9: helicopter, next to a silent motorcycle.

    The 4 s around second 1 hear the rooster too, those around second 2 the dog, and those around second 4 the rooster, of which a
    remnant is left.
    """
    results = segmenter(str(CLIP), minimum_area=0.01)
    assert len(results) == 10
    found = [{segment["label"] for segment in result["segments"]} for result in results]
    assert found[0] == {"dog"} and "dog" in found[1]
    assert "rooster" in found[2] and found[3] == {"rooster", "dog"}
    assert found[4] <= {"rooster"} and found[5] == set()
    assert sum((np.asarray(segment["mask"]) > 0).mean() for segment in results[4]["segments"]) < 0.05
    assert found[6:] == [{"helicopter"}] * 4
    for result in results:
        for segment in result["segments"]:
            mask = np.asarray(segment["mask"]) > 0
            assert mask[:, SIDES[segment["label"]]].sum() > 0.9 * mask.sum(), (result["timestamp"], segment["label"])
    assert {sound["label"] for sound in results[0]["heard"]} >= {"dog"}


def test_empty_result_explains_itself(segmenter, tmp_path, caplog):
    transformers_logging.enable_propagation()
    transformers_logging.get_logger("pcmanet").warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        results = segmenter(str(write_noise_video(tmp_path / "noise.mp4")))
    assert all(result["segments"] == [] for result in results)
    assert f"This model {segmenter.model.config.description}" in caplog.text
    assert set(segmenter.model.config.label2id) - {"background"} <= set(
        segmenter.model.config.description.replace(";", ",").replace(":", ",").replace(", ", ",").split(",")
    )


def test_command_says_what_a_model_of_drawn_shapes_knows(tmp_path, capsys):
    write_noise_video(tmp_path / "noise.mp4")
    command = ["segment", str(tmp_path / "noise.mp4"), "--output", str(tmp_path / "out")]
    assert main([*command, "--model", str(EXAMPLES / "demo_model_semantic")]) == 0
    assert "model: knows drawn shapes (Sounding Shapes) only" in capsys.readouterr().err
    assert main(["info", str(EXAMPLES / "demo_model")]) == 0
    assert "knows drawn shapes (Sounding Shapes) only" in capsys.readouterr().out


def two_photos(sounding: int, *, is_heard: bool) -> SimpleNamespace:
    """A clip of class 1 on the left and class 2 on the right, one of which has the recording."""
    visible = np.repeat([[[1, 1, 2, 2]]], 4, axis=1).astype(np.uint8)
    heard = np.zeros((1, 3), bool)
    heard[0, sounding] = is_heard
    return SimpleNamespace(visible=visible, sounding=heard, events=[SimpleNamespace(index=sounding)])


def test_measured_choice_leaves_out_pauses():
    """Where the recording pauses in the second of the frame, an empty mask is right."""
    pairs = [(True, True), (True, False), (False, True), (True, True)]
    clips = [two_photos(1 + place, is_heard=heard) for pair in pairs for place, heard in enumerate(pair)]
    for clip in clips:
        clip.predicted = np.where(clip.sounding.any(), clip.visible == clip.sounding[0].argmax(), 0)
    clips[-1].predicted = np.ones_like(clips[-1].visible)
    predictor = SimpleNamespace(predict=lambda batch: ([clip.predicted for clip in batch], batch))
    right, silent, count = real_world.measure_choice(predictor, clips)
    assert (right, count) == (0.5, 2)
    assert silent == pytest.approx(1 / 6)
