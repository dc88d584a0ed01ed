"""Paired data from the Hub, and one command from them to a trained, evaluated and published model, with stand-ins."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from loopback_hub import USER, LoopbackHub
from paired_files import RATE, TONES, make_mask, write_photo, write_table, write_tone
from training_runs import TRAINED_NETWORK

from modeling_pcmanet.hub_upload_pcmanet import upload_folder
from pcmanet.cli.arguments import parse_arguments
from pcmanet.cli.train import evaluation_words
from pcmanet.dataset_scripts.paired import Library, read_settings
from pcmanet.dataset_scripts.paired.library import PHOTO_LAYOUTS, RECORDING_LAYOUTS, read_sources
from pcmanet.dataset_scripts.problems import DatasetError
from pcmanet.training.recipe import Recipe


ROOT = Path(__file__).parent.parent
CATEGORIES = {16: "bird", 17: "cat", 18: "dog"}  # ids of COCO


def write_coco_split(root: Path, split: str, count: int) -> None:
    """Write photos and instances of COCO: in turn a dog, a cat, and a dog with a cat, as polygons."""
    images, annotations = [], []
    for number in range(count):
        first, second = [(18, 0), (17, 0), (18, 17)][number % 3]
        name = f"{split}_{number:06d}"
        write_photo(root / split / f"{name}.jpg", make_mask(first - 15, second and second - 15))
        images.append({"id": number, "file_name": f"{name}.jpg", "height": 48, "width": 64})
        shapes = [(first, [0, 0, 32, 0, 32, 48, 0, 48]), (second, [40, 16, 56, 16, 56, 32, 40, 32])]
        annotations += [
            {"image_id": number, "category_id": label, "area": 1536 if place == 0 else 256, "segmentation": [shape]}
            for place, (label, shape) in enumerate(shapes)
            if label
        ]
    categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(values), encoding="utf-8")


def write_esc50(root: Path) -> None:
    """Write recordings in the layout of ESC-50."""
    rows = []
    for target, label in enumerate(TONES):
        for source in range(6):
            name = f"{1 + source % 5}-{target}{source}-A-{target}.wav"
            write_tone(root / "audio" / name, label)
            rows.append({"filename": name, "category": label, "src_file": f"{target}{source}"})
    write_table(root / "meta" / "esc50.csv", rows)


def settings_of_stand_ins(**changes: Any) -> dict[str, Any]:
    """Return the settings of COCO and ESC-50 on the Hub, as examples/paired_data/coco_esc50.yaml describes."""
    coco = {"layout": "coco", "repo": f"{USER}/coco"}
    return {
        "photos": [
            {**coco, "images": "train", "annotations": "annotations/instances_train.json", "split": "train"},
            {**coco, "images": "val", "annotations": "annotations/instances_val.json", "split": "test"},
        ],
        "recordings": [{"layout": "esc50", "repo": f"{USER}/esc50", "path": "."}],
        "classes": {name: {"photos": [name], "sounds": [name]} for name in ("dog", "cat")},
        "background": ["rain"],
        "unknown": ["drum"],
        "splits": {"val": 0.2, "test": 0.2},
        "clips": {"sampling_rate": RATE, "image_size": 64, "seconds": 1},
    } | changes


def write_yaml(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """Upload the stand-ins as datasets."""
    folder = tmp_path_factory.mktemp("hub")
    for split, count in (("train", 12), ("val", 6)):
        write_coco_split(folder / "coco", split, count)
    write_photo(folder / "coco" / "test" / "unused.jpg", make_mask(3))
    write_esc50(folder / "esc50")
    write_tone(folder / "sounds" / "tables" / "dog.wav", "dog")
    write_table(folder / "sounds" / "tables" / "sounds.csv", [{"file": "dog.wav", "class": "dog"}])
    write_tone(folder / "sounds" / "others" / "unused.wav", "cat")
    with LoopbackHub(folder / "server") as server:
        with pytest.MonkeyPatch.context() as patches:
            server.connect(patches, folder / "home")
            for name in ("coco", "esc50", "sounds"):
                upload_folder(folder / name, f"{USER}/{name}", message="stand-ins", repo_type="dataset")
        yield server


@pytest.fixture
def run(hub: LoopbackHub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command as a user of the Hub with empty caches."""

    def command(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = hub.environment(tmp_path / "home") | {"ACCELERATE_USE_CPU": "true"} | environment
        done = [sys.executable, *map(str, words)]
        return subprocess.run(done, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)

    return command


def test_sources_on_the_hub(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.connect(monkeypatch, tmp_path / "home")
    before = len(hub.requests)
    values = settings_of_stand_ins()
    path = write_yaml(tmp_path / "paired.yaml", values)
    library = Library(read_settings(path))
    # Only the files that the sources name are downloaded. Their paths contain the commit.
    commit = hub.repositories["datasets", f"{USER}/coco"].at("main").oid
    assert len(library.photos) == 18 and all(f"/snapshots/{commit}/" in one.image for one in library.photos)
    assert len(library.recordings) == 4 * 6
    # Without the network, the downloaded files are the same data.
    with monkeypatch.context() as patches:
        patches.setattr(constants, "HF_HUB_OFFLINE", True)
        assert Library(read_settings(path)).identity == library.identity

    # All problems are reported together.
    values["photos"][0]["annotations"] = "annotations/other.json"
    values["photos"][1]["revision"] = "v2"
    values["recordings"] = [{"layout": "esc50", "repo": f"{USER}/missing", "path": "."}]
    with pytest.raises(DatasetError) as caught:
        Library(read_settings(write_yaml(tmp_path / "wrong.yaml", values)))
    problems = str(caught.value)
    assert f"other.json: Missing; layout coco needs it in the dataset {USER}/coco" in problems
    assert f"{USER}/coco: Not downloaded from the Hub's datasets: 404" in problems
    assert f"{USER}/missing: Not downloaded from the Hub's datasets: 404" in problems
    assert "log in with `hf auth login`" in problems

    # A table comes with the files next to it.
    table = {"layout": "table", "repo": f"{USER}/sounds", "path": "tables/sounds.csv"}
    (recording,), others = read_sources([table], RECORDING_LAYOUTS)
    assert Path(recording.file).name == "dog.wav" and Path(recording.file).is_file() and others == []
    # Each file is downloaded once.
    downloads = [path for method, path in hub.requests[before:] if method == "GET" and "/resolve/" in path]
    assert downloads and len(downloads) == len(set(downloads))
    assert not any("unused" in path for path in downloads)


def test_without_network_and_cache_the_problem_is_named():
    source = {"layout": "voc", "repo": "nobody/not-in-any-cache", "path": "."}
    found, (problem,) = read_sources([source], PHOTO_LAYOUTS)
    assert found == [] and problem.path == "nobody/not-in-any-cache"
    assert problem.problem.startswith("Not downloaded from the Hub's datasets: ")
    assert "leave out repo and give local paths" in problem.problem


def test_wrong_repositories_in_the_settings(tmp_path: Path):
    esc50 = {"layout": "esc50", "path": "."}
    recordings = [
        {**esc50, "repo": "a/b/c"},
        {**esc50, "revision": "main"},
        {**esc50, "repo": "me/sounds", "revision": 2},
        {**esc50, "repo": "me/sounds", "path": "/data"},
        {**esc50, "repo": "me/sounds", "path": "../data"},
    ]
    with pytest.raises(DatasetError) as caught:
        read_settings(write_yaml(tmp_path / "paired.yaml", settings_of_stand_ins(recordings=recordings)))
    for number, text in enumerate(
        (
            "Expected the id of a dataset on the Hub as repo, such as owner/name, got 'a/b/c'",
            "revision applies only to a dataset on the Hub. Add repo: OWNER/NAME, or leave revision out.",
            "Expected a branch, tag or commit as revision, got 2",
            "Expected path relative to the root of the dataset me/sounds, got '/data'",
            "Expected path relative to the root of the dataset me/sounds, got '../data'",
        ),
        start=1,
    ):
        assert f"recordings, source {number}: {text}" in str(caught.value)


def test_settings_name_their_datasets_once(tmp_path: Path):
    settings = read_settings(write_yaml(tmp_path / "paired.yaml", settings_of_stand_ins()))
    assert settings.dataset_ids == [f"{USER}/coco", f"{USER}/esc50"]
    assert settings.photos[0]["images"] == "train"


def test_evaluation_command_has_the_options_of_the_recipe():
    audio = {"freeze": [], "num_workers": 3}
    recipe = Recipe(task="avss", data="AVSBench", subsets=("v1s", "v2"), label_noise="ignore", **audio)
    parsed = parse_arguments(evaluation_words(recipe, Path("run/best"), Path("run/test"), 500))
    assert (parsed.models, parsed.split, parsed.name) == (["run/best"], "test", ["avss"])
    assert (parsed.subsets, parsed.label_noise, parsed.num_workers) == (["v1s", "v2"], "ignore", 3)
    assert parsed.per_class and parsed.negative_audio == ["silence", "noise"]

    recipe = Recipe(task="folder", data="clips", binary=True, frames_per_second=2, missing_audio="silence", **audio)
    parsed = parse_arguments(evaluation_words(recipe, Path("run/best"), Path("run/test"), 500))
    assert (parsed.binary, parsed.frames_per_second, parsed.missing_audio) == (True, 2.0, "silence")
    assert not parsed.per_class

    recipe = Recipe(task="ms3", data="paired.yaml", **audio)
    assert parse_arguments(evaluation_words(recipe, Path("run/best"), Path("run/test"), 40)).clips == 40


def tiny(**settings: Any) -> list[str]:
    """Return the settings that make the recipe small."""
    network = {"preset": "tiny", "audio_encoder": None, "freeze": [], "audio_windows": None, "image_size": 32}
    values = {**network, "visual_backbone": None, "configuration": TRAINED_NETWORK, "batch_norm": "local"}
    sizes = {"clips": 8, "batch_size": 4, "evaluation_clips": 3, "evaluations": 1, "num_workers": 0}
    return ["--set", *(f"{key}={json.dumps(value)}" for key, value in {**values, **sizes, **settings}.items())]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_one_command_from_datasets_on_the_hub_to_a_published_model(
    processes: int, hub: LoopbackHub, run: Callable[..., Any], tmp_path: Path
):
    path, name = write_yaml(tmp_path / "stand_ins.yaml", settings_of_stand_ins()), f"{USER}/trained-{processes}"
    recipe = ROOT / "examples" / "recipes" / "paired_coco.yaml"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes > 1 else []
    command = [*launcher, "-m", "pcmanet", "train", "--recipe", recipe, "--data", path, "--output", "run"]
    done = run(*command, "--test", 6, "--push-to-hub", name, *tiny(mixed_precision="none"))
    assert done.returncode == 0, done.stderr[-3000:]

    results = json.loads((tmp_path / "run" / "test" / "results.json").read_text())
    assert (results["clips"], results["split"], results["name"]) == (6, "test", "avss")
    files = hub.repositories["models", name].at("main").files
    assert {"README.md", "model.safetensors", "metrics.json"} <= set(files)
    text = (tmp_path / "run" / "best-hub" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.datasets == [f"{USER}/coco", f"{USER}/esc50"]
    assert "### paired data, stand_ins.yaml, avss, test split: 6 clips, 6 frames" in text
    measured = {protocol: f"{values['miou']:.4f}" for protocol, values in results["metrics"].items()}
    section = text[text.index("test split: 6 clips") :]
    row = next(line for line in section.splitlines() if line.startswith("| mIoU  "))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == list(measured.values())
    published = [round(result.metric_value, 4) for result in card.data.eval_results if result.dataset_split == "test"]
    assert {round(values["miou"], 4) for values in results["metrics"].values()} <= set(published)
    assert "as specified in the file `stand_ins.yaml`" in " ".join(text.split()) and "AVSBench, avss" not in text
    assert "has not been measured" not in text  # false positives under silence and noise are in the table
    # The command of the card computes the same again.
    (again,) = [line for line in text.splitlines() if line.startswith("pcmanet evaluate ")]
    assert f"--data {path} --name avss --split test --output run/test" in again
