"""Pushing to the Hub and loading from it, with a Hub on this machine."""

import hashlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from isolated_python import WITHOUT_OUR_PACKAGE
from loopback_hub import LoopbackHub
from published_weights import section_shapes, seeded_state_dict
from tiny_model import tiny_config, tiny_model
from transformers import pipeline
from written_trees import write_trees

from modeling_pcmanet import (
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
    save_code_with_weights,
)
from modeling_pcmanet.convert_pcmanet_to_hf import convert_state_dict
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.dataset_scripts.metrics import BinaryMetrics, evaluate_module
from pcmanet.pipelines import AudioVisualSegmentationPipeline


Client = Callable[..., str]
MODULE = Path(evaluate_module.__file__).parents[1] / "evaluate_modules" / "avs_binary"


def describe(model: Any, processor: Any, pipe: Any, clip: str) -> dict[str, Any]:
    """Return the outputs of model and pipeline for a clip, as values that JSON preserves exactly."""
    with torch.no_grad():
        logits = model(**processor(videos=clip, return_tensors="pt")).logits
    scores = [[segment["score"] for segment in frame["segments"]] for frame in pipe(clip)]
    digest = hashlib.sha256(logits.numpy().tobytes()).hexdigest()
    return {"shape": list(logits.shape), "spread": logits.std().item(), "logits": digest, "scores": scores}


DESCRIBE = f"""
import hashlib, json, sys
from typing import Any
import torch

{inspect.getsource(describe)}
"""

PULL_WITHOUT_OUR_PACKAGE = f"""{WITHOUT_OUR_PACKAGE}{DESCRIBE}
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, PvtV2Backbone, pipeline

name = "someone/tiny-with-code"
model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
pipe = pipeline("audio-visual-segmentation", model=name, trust_remote_code=True, device="cpu")
backbone = PvtV2Backbone.from_pretrained("someone/backbone")
weights = hashlib.sha256()
for key, weight in sorted(backbone.state_dict().items()):
    weights.update(key.encode() + weight.numpy().tobytes())
modules = [type(part).__module__.partition(".")[0] for part in (model, processor, pipe)]
print(json.dumps({{
    "modules": modules,
    "clip": describe(model, processor, pipe, sys.argv[1]),
    "backbone": weights.hexdigest(),
}}))
"""

ROWS = """
import hashlib, json, sys
import numpy as np
from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError
from PIL import Image

def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, Image.Image)):
        return hashlib.sha256(value if isinstance(value, bytes) else np.asarray(value).tobytes()).hexdigest()
    return value

try:
    load_dataset("someone/clips", token=False)
    sys.exit("the private dataset was read without a token")
except DatasetNotFoundError:
    pass
loaded = load_dataset("someone/clips")
stream = load_dataset("someone/clips", streaming=True)
written = load_dataset(sys.argv[1], "s4")
print(json.dumps([{split: plain(list(part)) for split, part in data.items()} for data in (loaded, stream, written)]))
"""

SCORE = """
import json
import evaluate
import numpy as np

module = evaluate.load("someone/avs_binary")
module.add_batch(predictions=np.load("predictions.npy"), references=np.load("references.npy"))
print(json.dumps(module.compute(protocol="official")))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """Run a command as a user with empty caches, and return its output."""

    def run(*command: object, folder: Path | None = None, **environment: str) -> str:
        home = tmp_path_factory.mktemp("home")
        done = subprocess.run(
            list(map(str, command)),
            cwd=folder or home,
            env=hub.environment(home) | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


def last_json(output: str) -> dict:
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three seconds of video and audio noise."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    write_video(path, frames, 10, generator.uniform(-0.5, 0.5, (1, 48000)).astype(np.float32), 16000)
    return path


@pytest.fixture(scope="module")
def pushed(hub: LoopbackHub, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Push a model, its processor and, to a second repository, their pipeline with code; return their outputs."""
    audio_config = {**tiny_config().audio_config.to_dict(), "num_mel_frames": 96, "num_mel_bins": 64}
    model = tiny_model(audio_config=audio_config)
    processor = PCMANetProcessor(PCMANetImageProcessor(size={"height": 48, "width": 64}), PCMANetFeatureExtractor())
    pipe = AudioVisualSegmentationPipeline(model=model, processor=processor, device="cpu")
    with pytest.MonkeyPatch.context() as patches:
        hub.connect(patches, tmp_path_factory.mktemp("home"))
        model.push_to_hub("someone/tiny")
        processor.push_to_hub("someone/tiny")
        with save_code_with_weights():
            pipe.push_to_hub("someone/tiny-with-code")
    return describe(model, processor, pipe, str(clip))


def test_pushed_model_gives_equal_logits_after_loading(
    hub: LoopbackHub, clip: Path, pushed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert pushed["shape"] == [1, 3, 1, 48, 64] and pushed["spread"] > 0.1
    assert [len(scores) for scores in pushed["scores"]] == [1, 1, 1]
    hub.connect(monkeypatch, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "")  # public repositories need no token
    model = PCMANetForAudioVisualSegmentation.from_pretrained("someone/tiny")
    processor = PCMANetProcessor.from_pretrained("someone/tiny")
    pipe = pipeline("audio-visual-segmentation", model="someone/tiny", device="cpu")
    assert describe(model, processor, pipe, str(clip)) == pushed
    repository = hub.repositories["models", "someone/tiny"]
    assert [commit.title for commit in repository.commits[1:]] == [
        "Upload PCMANetForAudioVisualSegmentation",
        "Upload processor",
    ]
    files = repository.at("main").files
    assert sorted(files) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "processor_config.json",
    ]
    assert [path for path, file in files.items() if file.is_lfs] == ["model.safetensors"]


def test_card_is_ours_unless_the_repository_has_one(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.connect(monkeypatch, tmp_path / "home")
    model = tiny_model()
    model.push_to_hub("someone/method")
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="someone/keyword")
    for name in ("someone/method", "someone/keyword"):
        card = Path(hf_hub_download(name, "README.md")).read_text()
        assert "import pcmanet" in card and "pipeline_tag: video-to-video" in card
    assert (tmp_path / "saved" / "README.md").read_text() == card
    HfApi().upload_file(path_or_fileobj=b"# My model\n", path_in_repo="README.md", repo_id="someone/method")
    model.push_to_hub("someone/method")
    assert "# My model" in Path(hf_hub_download("someone/method", "README.md")).read_text()


@pytest.mark.slow
def test_converted_backbone_and_pushed_code_work_without_this_package(
    hub: LoopbackHub, client: Client, clip: Path, pushed: dict, tmp_path: Path
):
    published = seeded_state_dict(section_shapes("pvt_v2_b0"))
    torch.save(published, tmp_path / "pvt_v2_b0.pth")
    command = [sys.executable, "-m", "modeling_pcmanet.convert_pcmanet_to_hf", "--checkpoint", "pvt_v2_b0.pth"]
    client(*command, "--output", "converted", "--push-to-hub", "someone/backbone", folder=tmp_path)
    repository = hub.repositories["models", "someone/backbone"]
    assert sorted(repository.at("main").files) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "configuration_encoders.py",
        "image_processing_pcmanet.py",  # how the images of the backbone are normalized
        "model.safetensors",
        "preprocessor_config.json",
    ]

    output = last_json(client(sys.executable, "-c", PULL_WITHOUT_OUR_PACKAGE, clip))
    assert output["modules"] == ["transformers_modules"] * 3
    assert output["clip"] == pushed
    weights = hashlib.sha256()
    for key, weight in sorted(convert_state_dict(published).model.state_dict().items()):
        weights.update(key.encode() + weight.numpy().tobytes())
    assert output["backbone"] == weights.hexdigest()


@pytest.mark.slow
def test_exported_dataset_is_loaded_and_streamed(hub: LoopbackHub, client: Client, tmp_path: Path):
    write_trees(tmp_path / "root", s4={"train": 2, "test": 1})
    command = [sys.executable, "-m", "pcmanet.dataset_scripts.avsbench", "export", tmp_path / "root", tmp_path / "out"]
    printed = client(*command, "--clips-per-shard", "1", "--push-to-hub", "someone/clips")
    repository = hub.repositories["datasets", "someone/clips"]
    assert repository.private
    assert printed.splitlines()[-1].endswith(f"/datasets/someone/clips/commit/{repository.at('main').oid}")
    assert sorted(repository.at("main").files) == [
        ".gitattributes",
        "README.md",
        "s4/test-00000-of-00001.parquet",
        "s4/train-00000-of-00002.parquet",
        "s4/train-00001-of-00002.parquet",
    ]

    loaded, stream, written = last_json(client(sys.executable, "-c", ROWS, tmp_path / "out"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 2, "test": 1}
    assert len({json.dumps(row["frames"]) for rows in loaded.values() for row in rows}) == 3
    assert loaded == stream == written


@pytest.mark.slow
def test_metric_is_loaded_from_a_space(hub: LoopbackHub, client: Client, tmp_path: Path):
    generator = np.random.default_rng(0)
    clips = {name: generator.integers(0, 2, (2, 3, 8, 6), dtype=np.uint8) for name in ("predictions", "references")}
    for name, array in clips.items():
        np.save(tmp_path / f"{name}.npy", array)
    # As in the README of the module.
    hf = Path(sys.executable).with_name("hf")
    client(hf, "upload", "someone/avs_binary", MODULE, ".", "--repo-type", "space")
    scores = last_json(client(sys.executable, "-c", SCORE, folder=tmp_path))
    assert ("GET", "/spaces/someone/avs_binary/resolve/main/avs_binary.py") in hub.requests
    metrics = BinaryMetrics("official")
    metrics.update_predictions(
        evaluate_module.quantize_probabilities(torch.from_numpy(clips["predictions"])),
        torch.from_numpy(clips["references"]),
    )
    assert scores == metrics.compute()


def status(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, int]:
    """Return the class and the status of the error that a request to the Hub raises."""
    with pytest.raises(HfHubHTTPError) as caught:
        call(*arguments, **options)
    return type(caught.value).__name__, caught.value.response.status_code


def test_server_keeps_a_history_and_raises_the_errors_of_the_hub(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The server itself, used by the client library of the Hub."""
    hub.connect(monkeypatch, tmp_path)
    api, name = HfApi(), "someone/history"
    assert api.whoami()["name"] == "someone"
    assert status(api.model_info, name) == ("RepositoryNotFoundError", 404)
    api.create_repo(name)
    api.create_repo(name, exist_ok=True)
    assert status(api.create_repo, name) == ("HfHubHTTPError", 409)

    large = CommitOperationAdd("weights/model.bin", b"large")
    first = api.create_commit(name, [CommitOperationAdd("a.txt", b"first"), large], commit_message="first")
    changes = [CommitOperationAdd("a.txt", b"second"), CommitOperationDelete("weights/")]
    raced = {"commit_message": "late", "parent_commit": first.oid}
    api.create_commit(name, changes, commit_message="second", parent_commit=first.oid)
    late = [CommitOperationAdd("b.txt", b"late")]
    assert status(api.create_commit, name, late, **raced) == ("HfHubHTTPError", 412)
    assert status(api.hf_hub_download, name, "b.txt") == ("RemoteEntryNotFoundError", 404)
    assert status(api.hf_hub_download, name, "a.txt", revision="other") == ("RevisionNotFoundError", 404)
    expired = HfApi(token="expired")
    assert status(expired.create_commit, name, late, commit_message="late") == ("HfHubHTTPError", 401)

    for revision, contents in (
        (first.oid, {"a.txt": "first", "weights/model.bin": "large"}),
        ("main", {"a.txt": "second"}),
    ):
        for path, content in contents.items():
            assert Path(api.hf_hub_download(name, path, revision=revision)).read_text() == content
    trees = [
        [entry.path for entry in api.list_repo_tree(name, revision=first.oid, recursive=deep)]
        for deep in (False, True)
    ]
    assert trees == [
        ["weights", ".gitattributes", "a.txt"],
        ["weights", ".gitattributes", "a.txt", "weights/model.bin"],
    ]
    (info,) = api.get_paths_info(name, "weights/model.bin", revision=first.oid)
    assert (info.size, info.lfs.sha256) == (5, hashlib.sha256(b"large").hexdigest())
    assert HfFileSystem(endpoint=hub.url).cat_file(f"{name}/a.txt", start=1, end=4) == b"eco"
