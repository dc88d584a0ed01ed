"""Tests of examples/app_analysis.py and app_probe.py, without a server: limits, what is kept, what goes."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from odd_media import begin_late, onset, write_film
from transformers import pipeline

from modeling_pcmanet import PCMANetProcessor
from modeling_pcmanet.media_pcmanet import read_media
from modeling_pcmanet.media_writing_pcmanet import write_video


EXAMPLES = Path(__file__).parents[1] / "examples"
CLIP = EXAMPLES / "demo.mp4"
MODEL = EXAMPLES / "demo_model_semantic"


@pytest.fixture(scope="module")
def analysis_module() -> ModuleType:
    """The examples lie beside each other as scripts do: they are found where they lie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        return importlib.import_module("app_analysis")


@pytest.fixture(scope="module")
def segmenter(analysis_module: ModuleType):
    return pipeline(
        "audio-visual-segmentation", model=str(MODEL), pipeline_class=analysis_module.LogitsPipeline, device="cpu"
    )


def video(path: Path, *, seconds: float, sound_seconds: float) -> Path:
    frames = (np.full((48, 64, 3), 7 * number, np.uint8) for number in range(round(8 * seconds)))
    write_video(path, frames, 8, np.zeros((1, round(16000 * sound_seconds)), np.float32), 16000)
    return path


def test_reads_through_a_file_and_tells_what_is_in_it(analysis_module, tmp_path):
    path = video(tmp_path / "clip.mp4", seconds=2, sound_seconds=2)
    facts = analysis_module.probe_video(path, "clip.mp4", analysis_module.Limits())
    assert (facts.frames, facts.width, facts.height) == (16, 64, 48)
    assert facts.seconds == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    "lengths, limits, reason",
    [
        ((3, 3), {"seconds": 2}, r"^clip lasts 3 s. This page takes up to 2 s"),
        ((1, 4), {"seconds": 2}, r"^The sound of clip lasts 4 s"),
        ((1, 1), {"pixels": 3071}, r"pictures of 64x48 pixels"),
    ],
)
def test_refuses_what_breaks_a_limit(analysis_module, tmp_path, lengths, limits, reason):
    path = video(tmp_path / "clip.mp4", seconds=lengths[0], sound_seconds=lengths[1])
    with pytest.raises(analysis_module.RefusedVideoError, match=reason):
        analysis_module.probe_video(path, "clip", analysis_module.Limits(**limits))


def test_refuses_more_masks_than_memory_holds_and_says_how_many_would_do(analysis_module, tmp_path):
    facts = analysis_module.probe_video(
        video(tmp_path / "clip.mp4", seconds=4, sound_seconds=4), "clip", analysis_module.Limits()
    )
    limits = analysis_module.Limits(held_bytes=4 * 1000 * 8)
    limits.check_work(facts, rate=2, logits_per_frame=1000)
    with pytest.raises(analysis_module.RefusedVideoError, match="at 4 masks a second .* cut the video to 2 s"):
        limits.check_work(facts, rate=4, logits_per_frame=1000)


def test_stages_are_those_of_the_model_and_everything_goes(analysis_module, segmenter, tmp_path):
    analysis = analysis_module.Analysis(segmenter, CLIP, "my clip.mp4", analysis_module.Limits(), tmp_path)
    analysis.run(rate=1)
    assert analysis.timestamps == pytest.approx([0.92, 1.92, 2.92, 3.92, 4.92])
    assert analysis.loudness.max() == 1

    # Five frames are one window: the model on the whole clip says the same.
    processor = PCMANetProcessor.from_pretrained(MODEL)
    with torch.no_grad():
        outputs = segmenter.model(**processor(videos=str(CLIP)))
    stages = analysis.stages(2)
    for stage, mask in zip(stages[1:], outputs.confidence_masks, strict=True):
        assert stage.asked == pytest.approx(mask[0, 2].float().mean().item())

    assert len(list(tmp_path.iterdir())) == 1
    analysis.close()
    assert not list(tmp_path.iterdir())


def test_the_overlay_of_a_recording_that_begins_under_way_is_in_time(analysis_module, segmenter, tmp_path):
    film = begin_late(write_film(tmp_path / "cut.ts", options={"x264-params": "keyint=8:scenecut=0"}), 0.05)
    analysis = analysis_module.Analysis(segmenter, film, "cut.ts", analysis_module.Limits(), tmp_path)
    analysis.run(rate=1)
    overlay = read_media(analysis.draw(0.5, lambda *_: None).overlay)
    assert onset(overlay.waveform, overlay.sampling_rate) == pytest.approx(0.2, abs=0.05)
    analysis.close()


def test_a_refused_video_leaves_no_file(analysis_module, segmenter, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    visits = tmp_path / "visits"
    visits.mkdir()
    with pytest.raises(analysis_module.RefusedVideoError, match=r"^text.mp4 cannot be read as audio or video"):
        analysis_module.Analysis(segmenter, tmp_path / "text.mp4", "text.mp4", analysis_module.Limits(), visits)
    assert not list(visits.iterdir())
