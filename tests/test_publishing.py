"""A training's way to the Hub: the folder that is complete before, the failed upload, and a stranger who reads the card."""

import hashlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import Failure, HubError, LoopbackHub
from safetensors.torch import load_file, save_file
from stranger import STRANGER
from tiny_model import tiny_config, tiny_model

from modeling_pcmanet import (
    PCMANetFeatureExtractor,
    PCMANetImageProcessor,
    PCMANetProcessor,
)
from modeling_pcmanet.media_pcmanet import write_video
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.training import publishing
from pcmanet.training.publishing import Publication, main, prepare, publish
from pcmanet.training.training_record import write_record


def describe(segmenter: Callable) -> list:
    """Label, score and mask of all that is found in the clip, as JSON keeps it."""
    return [
        [
            [found["label"], found["score"], hashlib.sha256(found["mask"].tobytes()).hexdigest()]
            for found in frame["segments"]
        ]
        for frame in segmenter("clip.mp4")
    ]


USE_AS_STRANGER = f"""{STRANGER}import hashlib, json
from collections.abc import Callable
from pathlib import Path
exec(Path("snippet.py").read_text())
{inspect.getsource(describe)}
print(json.dumps(describe(segmenter)))
"""


def save_result(folder: Path) -> None:
    """Leave what a training leaves: weights, processor, record."""
    audio_config = {**tiny_config().audio_config.to_dict(), "num_mel_frames": 96, "num_mel_bins": 64}
    tiny_model(audio_config=audio_config).save_pretrained(folder)
    images = PCMANetImageProcessor(size={"height": 48, "width": 64})
    PCMANetProcessor(images, PCMANetFeatureExtractor()).save_pretrained(folder)
    record = {"validation": {"miou": 0.25, "f_score": 0.5, "frames": 10, "loss": 3.0}, "clips": 3200, "minutes": 5.1}
    write_record(folder, {**record, "recipe": {"task": "ms3", "data": None, "seed": 3}})


@pytest.fixture
def result(tmp_path: Path) -> Path:
    save_result(tmp_path / "run" / "best")
    return tmp_path / "run" / "best"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "server") as server:
        yield server


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_prepared_folder_is_complete_and_the_result_untouched(result: Path):
    before = contents(result)
    folder = prepare(Publication(result, "me/shapes"))
    assert folder == result.parent / "best-hub"
    assert contents(result) == before
    names = ["README.md", "config.json", "metrics.json", "model.safetensors", "processor_config.json"]
    assert sorted(os.listdir(folder)) == names
    for name in ("metrics.json", "model.safetensors", "processor_config.json"):
        assert contents(folder)[name] == before[name]
    assert 'model="me/shapes")' in (folder / "README.md").read_text()


def test_code_and_the_entry_of_the_pipeline_come_and_go_together(result: Path):
    folder = prepare(Publication(result, "me/shapes", with_code=True))
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_pipelines"] == {
        "audio-visual-segmentation": {
            "impl": "audio_visual_segmentation.AudioVisualSegmentationPipeline",
            "pt": ["AutoModelForUniversalSegmentation"],
            "type": "multimodal",
        }
    }
    assert config["auto_map"]["AutoConfig"] == "configuration_pcmanet.PCMANetConfig"
    assert {"modeling_pcmanet.py", "processing_pcmanet.py", "audio_visual_segmentation.py"} <= set(os.listdir(folder))
    # What came with code is published without it: no entry may point to code that is not there.
    folder.rename(result.parent / "other")
    plain = prepare(Publication(result.parent / "other", "me/shapes"))
    assert not [name for name in os.listdir(plain) if name.endswith(".py")]
    assert not {"custom_pipelines", "auto_map"} & set(json.loads((plain / "config.json").read_text()))
    assert "auto_map" not in (plain / "processor_config.json").read_text()


def test_an_earlier_folder_is_replaced_whole(result: Path):
    folder = prepare(Publication(result, "me/shapes", with_code=True))
    (folder / "rest.txt").write_text("of an earlier time")
    prepare(Publication(result, "me/other"))
    assert "rest.txt" not in os.listdir(folder) and "modeling_pcmanet.py" not in os.listdir(folder)
    assert sorted(os.listdir(result.parent)) == ["best", "best-hub"]


def test_what_cannot_be_published_is_refused_before_anything_is_written(result: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="Repo id must"):
        prepare(Publication(result, "me/my shapes"))
    with pytest.raises(FileNotFoundError, match=re.escape(f"run has no config.json: give one of {result}.")):
        prepare(Publication(result.parent, "me/shapes"))
    with pytest.raises(FileNotFoundError, match=r"nowhere has no config\.json: give the folder of a model"):
        prepare(Publication(tmp_path / "nowhere", "me/shapes"))
    with pytest.raises(ValueError, match="is no finished output of examples/evaluate_pcmanet.py"):
        prepare(Publication(result, "me/shapes", evaluations=(tmp_path,)))
    record = (result / "metrics.json").read_text()
    for text, message in (("{", r"metrics\.json is no JSON"), ("[]", r"metrics\.json holds list")):
        (result / "metrics.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            prepare(Publication(result, "me/shapes"))
    (result / "metrics.json").write_text(record)
    weights = load_file(result / "model.safetensors")
    lost = sorted(weights)[-1]
    del weights[lost]
    save_file(weights, result / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=re.escape(f"lacks weights of a PCMANetForAudioVisualSegmentation, such as {lost}")
    ):
        prepare(Publication(result, "me/shapes"))
    assert os.listdir(result.parent) == ["best"]


def test_publish_uploads_the_prepared_folder(result: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(
        publishing, "upload_folder", lambda *names, **options: calls.append((names, options)) or "there"
    )
    assert publish(Publication(result, "me/shapes", private=True), waits=()) == "there"
    options = {"message": "Upload shapes", "private": True, "waits": ()}
    assert calls == [((result.parent / "best-hub", "me/shapes"), options)]


def test_the_command_line_prepares_or_says_what_is_wrong(result: Path, capsys: pytest.CaptureFixture):
    main(
        [str(result), "--to", "me/shapes", "--only-prepare", "--private", "--license", "mit", "--dataset", "me/clips"]
    )
    folder = result.parent / "best-hub"
    command = f"hf upload me/shapes {folder} . --private"
    assert capsys.readouterr().out == f"Prepared {folder}; push it with: {command}\n"
    assert "license: mit\n" in (folder / "README.md").read_text()
    with pytest.raises(SystemExit, match="error: .*has no config.json"):
        main([str(result.parent.parent), "--to", "me/shapes"])


@pytest.mark.slow
def test_a_stranger_reads_the_card_and_gets_the_same_masks(
    result: Path, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    sound = generator.uniform(-0.5, 0.5, (1, 48000)).astype(np.float32)
    write_video(tmp_path / "clip.mp4", frames, 10, sound, 16000)
    environment = hub.environment(tmp_path / "home")
    command = [sys.executable, "-m", "pcmanet.training.publishing", str(result), "--to", "someone/shapes", "--code"]

    # The first time the token has been taken back: nothing is lost, and the command in the message does the rest.
    hub.failures = [Failure(r"POST .*/commit/", HubError(401, "Invalid credentials"), times=100)]
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "error: The upload to someone/shapes failed: status 401, the token is missing" in failed.stderr
    hub.failures = []
    (again,) = re.findall(r"^ {4}(hf upload .*)$", failed.stderr, flags=re.MULTILINE)
    words = [str(Path(sys.executable).with_name("hf")), *shlex.split(again)[1:]]
    subprocess.run(words, env=environment, check=True, capture_output=True)
    files = hub.repositories["models", "someone/shapes"].at("main").files
    stored = {path: file.sha256 for path, file in files.items() if path != ".gitattributes"}
    assert stored == contents(result.parent / "best-hub")
    # Published once more, everything is there already.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Pushed to http")
    assert len(hub.repositories["models", "someone/shapes"].commits) == 2

    card = (result.parent / "best-hub" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    (tmp_path / "snippet.py").write_text(snippet)
    stranger = subprocess.run(
        [sys.executable, "-c", USE_AS_STRANGER],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert stranger.returncode == 0, stranger.stderr[-3000:]
    *printed, masks = stranger.stdout.splitlines()
    model, processor = publishing.load_result(result)
    here = AudioVisualSegmentationPipeline(model=model, processor=processor, device="cpu")
    monkeypatch.chdir(tmp_path)
    expected = describe(here)
    assert len(expected) == 3 and any(expected)
    assert json.loads(masks) == expected
    assert [float(line.split()[0]) for line in printed] == [frame["timestamp"] for frame in here("clip.mp4")]


@pytest.mark.slow
def test_a_training_of_two_processes_is_pushed_once_with_its_figures(hub: LoopbackHub, tmp_path: Path):
    root = Path(__file__).parent.parent
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = [
        str(root / "examples" / "train_pcmanet.py"),
        "--recipe",
        str(root / "examples" / "recipes" / "smoke.yaml"),
    ]
    options = ["--output", str(tmp_path / "run"), "--push-to-hub", "someone/smoke", "--hub-private"]
    small = ["--set", "clips=8", "evaluation_clips=2", "evaluations=1", "image_size=32", "num_workers=0"]
    environment = hub.environment(tmp_path / "home") | {"ACCELERATE_USE_CPU": "true"}
    command = [*launcher, *script, *options, *small]

    wrong = subprocess.run(
        command, env=environment | {"HF_TOKEN": "expired"}, capture_output=True, text=True, check=False
    )
    assert wrong.returncode != 0
    assert "error: someone/smoke on the Hub cannot be made or used: status 401" in wrong.stderr
    assert not (tmp_path / "run" / "recipe.yaml").exists()

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    repository = hub.repositories["models", "someone/smoke"]
    assert repository.private and len(repository.commits) == 2
    files = {path: file.sha256 for path, file in repository.at("main").files.items() if path != ".gitattributes"}
    assert files == contents(tmp_path / "run" / "best-hub")
    record = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    card = (tmp_path / "run" / "best-hub" / "README.md").read_text()
    assert f"| mIoU |   {record['validation']['miou']:.4f} |" in card
    assert "torchrun --nproc_per_node 2 " in card and "CPU, 2 processes" in card
