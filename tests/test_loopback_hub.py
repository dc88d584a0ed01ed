"""Pushing to the Hub and loading from it, in separate processes with a Hub on this machine."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from isolated_python import WITHOUT_OUR_PACKAGE
from loopback_hub import LoopbackHub
from published_weights import section_shapes, seeded_state_dict
from written_trees import write_trees

from modeling_pcmanet.convert_pcmanet_to_hf import convert_state_dict
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.dataset_scripts.metrics import BinaryMetrics, evaluate_module


Client = Callable[..., str]
TESTS = Path(__file__).parent
MODULE = Path(evaluate_module.__file__).parents[1] / "evaluate_modules" / "avs_binary"

# Outputs of model and pipeline for a clip, as values that JSON preserves exactly.
DESCRIBE = """
import hashlib, json, sys
import torch

def describe(model, processor, pipe, clip):
    with torch.no_grad():
        logits = model(**processor(videos=clip, return_tensors="pt")).logits
    scores = [[segment["score"] for segment in frame["segments"]] for frame in pipe(clip)]
    digest = hashlib.sha256(logits.numpy().tobytes()).hexdigest()
    return {"shape": list(logits.shape), "spread": logits.std().item(), "logits": digest, "scores": scores}
"""

PUSH = f"""{DESCRIBE}
from tiny_model import tiny_config, tiny_model
from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from modeling_pcmanet import save_code_with_weights
from pcmanet.pipelines import AudioVisualSegmentationPipeline

audio_config = tiny_config().audio_config.to_dict()
model = tiny_model(audio_config={{**audio_config, "num_mel_frames": 96, "num_mel_bins": 64}})
processor = PCMANetProcessor(PCMANetImageProcessor(size={{"height": 48, "width": 64}}), PCMANetFeatureExtractor())
model.push_to_hub("someone/tiny")
processor.push_to_hub("someone/tiny")
pipe = AudioVisualSegmentationPipeline(model=model, processor=processor, device="cpu")
with save_code_with_weights():
    pipe.push_to_hub("someone/tiny-with-code")
print(json.dumps(describe(model, processor, pipe, sys.argv[1])))
"""

PULL = f"""{DESCRIBE}
import pcmanet.pipelines
from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from transformers import pipeline

model = PCMANetForAudioVisualSegmentation.from_pretrained("someone/tiny")
processor = PCMANetProcessor.from_pretrained("someone/tiny")
pipe = pipeline("audio-visual-segmentation", model="someone/tiny", device="cpu")
print(json.dumps(describe(model, processor, pipe, sys.argv[1])))
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
    sys.exit("the private data set was read without a token")
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


# The server itself, used by the client library of the Hub.
HISTORY = """
import json
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

def status(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except HfHubHTTPError as error:
        return [type(error).__name__, error.response.status_code]

api, name = HfApi(), "someone/history"
statuses = {"missing": status(api.model_info, name)}
api.create_repo(name)
api.create_repo(name, exist_ok=True)
statuses["exists"] = status(api.create_repo, name)
large = CommitOperationAdd("weights/model.bin", b"large")
first = api.create_commit(name, [CommitOperationAdd("a.txt", b"first"), large], commit_message="first")
changes = [CommitOperationAdd("a.txt", b"second"), CommitOperationDelete("weights/")]
raced = {"commit_message": "late", "parent_commit": first.oid}
api.create_commit(name, changes, commit_message="second", parent_commit=first.oid)
statuses["race"] = status(api.create_commit, name, [CommitOperationAdd("b.txt", b"late")], **raced)
statuses["file"] = status(api.hf_hub_download, name, "b.txt")
statuses["revision"] = status(api.hf_hub_download, name, "a.txt", revision="other")
late = [CommitOperationAdd("c.txt", b"late")]
statuses["expired"] = status(HfApi(token="expired").create_commit, name, late, commit_message="late")
contents = {
    revision: {path: open(api.hf_hub_download(name, path, revision=revision)).read() for path in paths}
    for revision, paths in ((first.oid, ("a.txt", "weights/model.bin")), ("main", ("a.txt",)))
}
trees = [
    [entry.path for entry in api.list_repo_tree(name, revision=first.oid, recursive=deep)] for deep in (False, True)
]
(info,) = api.get_paths_info(name, "weights/model.bin", revision=first.oid)
print(json.dumps({
    "user": api.whoami()["name"],
    "statuses": statuses,
    "contents": list(contents.values()),
    "trees": trees,
    "info": [info.size, info.lfs.sha256],
    "range": HfFileSystem().cat_file(f"{name}/a.txt", start=1, end=4).decode(),
}))
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
def pushed(client: Client, clip: Path) -> dict:
    """Push a model, its processor and, to a second repository, their pipeline with code; return their outputs."""
    return last_json(client(sys.executable, "-c", PUSH, clip, PYTHONPATH=str(TESTS)))


def test_pushed_model_gives_equal_logits_after_loading(hub: LoopbackHub, client: Client, clip: Path, pushed: dict):
    assert pushed["shape"] == [1, 3, 1, 48, 64] and pushed["spread"] > 0.1
    assert [len(scores) for scores in pushed["scores"]] == [1, 1, 1]
    # Public repositories need no token.
    assert last_json(client(sys.executable, "-c", PULL, clip, HF_TOKEN="")) == pushed
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


@pytest.mark.slow
def test_converted_backbone_and_pushed_code_work_without_this_package(
    hub: LoopbackHub, client: Client, clip: Path, pushed: dict, tmp_path: Path
):
    published = seeded_state_dict(section_shapes("pvt_v2_b0"))
    torch.save(published, tmp_path / "pvt_v2_b0.pth")
    command = [sys.executable, "-m", "modeling_pcmanet.convert_pcmanet_to_hf", "--checkpoint", "pvt_v2_b0.pth"]
    client(*command, "--output", "converted", "--push-to-hub", "someone/backbone", folder=tmp_path)
    repository = hub.repositories["models", "someone/backbone"]
    assert sorted(repository.at("main").files) == [".gitattributes", "README.md", "config.json", "model.safetensors"]

    output = last_json(client(sys.executable, "-c", PULL_WITHOUT_OUR_PACKAGE, clip))
    assert output["modules"] == ["transformers_modules"] * 3
    assert output["clip"] == pushed
    weights = hashlib.sha256()
    for key, weight in sorted(convert_state_dict(published).model.state_dict().items()):
        weights.update(key.encode() + weight.numpy().tobytes())
    assert output["backbone"] == weights.hexdigest()


@pytest.mark.slow
def test_exported_data_set_is_loaded_and_streamed(hub: LoopbackHub, client: Client, tmp_path: Path):
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


def test_server_keeps_a_history_and_raises_the_errors_of_the_hub(client: Client):
    output = last_json(client(sys.executable, "-c", HISTORY))
    assert output["user"] == "someone"
    assert output["statuses"] == {
        "missing": ["RepositoryNotFoundError", 404],
        "exists": ["HfHubHTTPError", 409],
        "race": ["HfHubHTTPError", 412],
        "file": ["RemoteEntryNotFoundError", 404],
        "revision": ["RevisionNotFoundError", 404],
        "expired": ["HfHubHTTPError", 401],
    }
    assert output["contents"] == [{"a.txt": "first", "weights/model.bin": "large"}, {"a.txt": "second"}]
    assert output["trees"] == [
        ["weights", ".gitattributes", "a.txt"],
        ["weights", ".gitattributes", "a.txt", "weights/model.bin"],
    ]
    assert output["info"] == [5, hashlib.sha256(b"large").hexdigest()]
    assert output["range"] == "eco"
