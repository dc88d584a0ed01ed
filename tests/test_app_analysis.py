"""The analysis behind the page, without a server: limits, stored and deleted files."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_media import Track, begin_late, big_endian, onset, patch_box, write_odd_video
from transformers import pipeline

from modeling_pcmanet import PCMANetProcessor
from modeling_pcmanet.media_pcmanet import MediaReader, read_media
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.examples import app_analysis


EXAMPLES = Path(__file__).parents[1] / "examples"
CLIP = EXAMPLES / "demo.mp4"
MODEL = EXAMPLES / "demo_model_semantic"


@pytest.fixture(scope="module")
def segmenter():
    return pipeline(
        "audio-visual-segmentation", model=str(MODEL), pipeline_class=app_analysis.LogitsPipeline, device="cpu"
    )


def video(path: Path, *, seconds: float, audio_seconds: float) -> Path:
    frames = (np.full((48, 64, 3), 7 * number, np.uint8) for number in range(round(8 * seconds)))
    write_video(path, frames, 8, np.zeros((1, round(16000 * audio_seconds)), np.float32), 16000)
    return path


def test_probe_returns_the_properties_of_a_video(tmp_path):
    path = video(tmp_path / "clip.mp4", seconds=2, audio_seconds=2)
    info = app_analysis.probe_video(path, "clip.mp4", app_analysis.Limits())
    assert (info.frames, info.width, info.height) == (16, 64, 48)
    assert info.seconds == pytest.approx(2, abs=0.01)


def test_probe_measures_a_video_without_timestamps(tmp_path):
    path = write_odd_video(tmp_path / "raw.h264", tracks=())
    with MediaReader(path, audio=False) as reader:
        assert len(list(reader.frames("video"))) == 40
    info = app_analysis.probe_video(path, "raw.h264", app_analysis.Limits(), needs_audio=False)
    assert info.frames == 40
    assert info.seconds == pytest.approx(reader.end)


@pytest.mark.parametrize(
    "lengths, limits, reason",
    [
        ((3, 3), {"seconds": 2}, r"^clip is 3 s long. This server accepts up to 2 s"),
        ((1, 4), {"seconds": 2}, r"^The audio of clip is 4 s long"),
        ((1, 1), {"pixels": 3071}, r"frames of 64x48 pixels"),
    ],
)
def test_videos_beyond_a_limit_are_refused(tmp_path, lengths, limits, reason):
    path = video(tmp_path / "clip.mp4", seconds=lengths[0], audio_seconds=lengths[1])
    with pytest.raises(app_analysis.RefusedVideoError, match=reason):
        app_analysis.probe_video(path, "clip", app_analysis.Limits(**limits))


def test_the_size_as_displayed_is_limited(tmp_path):
    def widen(stream):
        stream.sample_aspect_ratio = Fraction(4, 1)

    path = write_odd_video(tmp_path / "wide.mp4", configure=widen)  # 64x48 stored
    info = app_analysis.probe_video(path, "wide.mp4", app_analysis.Limits(pixels=256 * 48))
    assert (info.width, info.height) == (256, 48)
    with pytest.raises(app_analysis.RefusedVideoError, match="wide.mp4 has frames of 256x48 pixels as displayed"):
        app_analysis.probe_video(path, "wide.mp4", app_analysis.Limits(pixels=256 * 48 - 1))


def test_a_video_that_is_longer_than_its_timestamps_declare_is_refused(segmenter, tmp_path):
    path = write_odd_video(tmp_path / "clip.mp4", tracks=[Track(seconds=0.3)])
    patch_box(path, b"stts", 12, big_endian(0), count=1)  # all frames at nearly the same time
    limits = app_analysis.Limits(seconds=0.2)
    assert app_analysis.probe_video(path, "clip.mp4", limits).seconds < 0.5
    with pytest.raises(
        app_analysis.RefusedVideoError, match="longer than its timestamps declare: 1.0 s of it .* up to 0.2 s. Convert"
    ):
        app_analysis.Analysis(segmenter, path, "clip.mp4", limits, tmp_path)
    analysis = app_analysis.Analysis(segmenter, path, "clip.mp4", app_analysis.Limits(), tmp_path)
    assert analysis.info.seconds > 1  # as decoded, on which the limit of memory depends
    analysis.close()


def test_masks_beyond_the_memory_limit_are_refused_with_a_suggestion(tmp_path):
    info = app_analysis.probe_video(
        video(tmp_path / "clip.mp4", seconds=4, audio_seconds=4), "clip", app_analysis.Limits()
    )
    limits = app_analysis.Limits(held_bytes=4 * 1000 * 8)
    limits.check_memory(info, rate=2, logits_per_frame=1000)
    with pytest.raises(app_analysis.RefusedVideoError, match="at 4 masks per second .* cut the video to 2 s"):
        limits.check_memory(info, rate=4, logits_per_frame=1000)


def test_stages_are_those_of_the_model_and_all_files_are_deleted(segmenter, tmp_path):
    analysis = app_analysis.Analysis(segmenter, CLIP, "my clip.mp4", app_analysis.Limits(), tmp_path)
    analysis.run(rate=1)
    assert analysis.timestamps == pytest.approx([0.92, 1.92, 2.92, 3.92, 4.92])
    assert analysis.loudness.max() == 1

    # Five frames are one window, so the model returns the same for the complete clip.
    processor = PCMANetProcessor.from_pretrained(MODEL)
    with torch.no_grad():
        outputs = segmenter.model(**processor(videos=str(CLIP), return_tensors="pt"))
    stages = analysis.stages(2)
    for stage, mask in zip(stages[1:], outputs.confidence_masks, strict=True):
        assert stage.queried == pytest.approx(mask[0, 2].float().mean().item())

    assert len(list(tmp_path.iterdir())) == 1
    analysis.close()
    assert not list(tmp_path.iterdir())


def test_overlay_of_a_recording_with_a_late_start_is_synchronous(segmenter, tmp_path):
    video = begin_late(write_odd_video(tmp_path / "cut.ts", options={"x264-params": "keyint=8:scenecut=0"}), 0.05)
    analysis = app_analysis.Analysis(segmenter, video, "cut.ts", app_analysis.Limits(), tmp_path)
    analysis.run(rate=1)
    overlay = read_media(analysis.draw(0.5, lambda *_: None).overlay)
    assert onset(overlay.waveform, overlay.sampling_rate) == pytest.approx(0.2, abs=0.05)
    analysis.close()


def test_refused_videos_leave_no_file(segmenter, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    sessions = tmp_path / "sessions"
    sessions.mkdir()
    with pytest.raises(app_analysis.RefusedVideoError, match=r"^text.mp4 cannot be read as audio or video"):
        app_analysis.Analysis(segmenter, tmp_path / "text.mp4", "text.mp4", app_analysis.Limits(), sessions)
    assert not list(sessions.iterdir())
