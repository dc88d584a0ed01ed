"""Publishing: the model card with its metadata, the prepared folder, failed uploads, and use of a published model."""

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
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from isolated_python import WITHOUT_OUR_PACKAGE
from loopback_hub import Failure, HubError, LoopbackHub
from safetensors.torch import load_file, save_file
from tiny_model import tiny_config, tiny_model
from transformers import pipeline

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetImageProcessor,
    PCMANetProcessor,
    save_code_with_weights,
)
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.checkpoints import digest, load_model
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.training import publishing
from pcmanet.training.publishing import (
    CardContent,
    Publication,
    main,
    prepare,
    publish,
    read_evaluation,
    read_record,
    write_card,
)
from pcmanet.training.record import describe_environment, write_record
from pcmanet.training.run import save_model


METRICS = {
    protocol: {"miou": miou, "f_score": 0.75, "frames": 20.0, "groups": 4.0}
    for protocol, miou in (("official", 0.5), ("batch", 0.25), ("dataset", 0.125))
}
RESULTS = {"checkpoint": "best", "name": "s4", "split": "test", "clips": 4, "frames": 20, "metrics": METRICS}
RECORD = {
    "validation": {
        "miou": 0.625,
        "miou_no_background": 0.5,
        "f_score": 0.875,
        "frames": 10.0,
        "loss": 1.0,
        "stage_4/miou": 0.1,
    },
    "clips": 16000,
    "minutes": 21.5,
    "command": "pcmanet train --output runs/first",
    "environment": {"torch": "2.14.1", "device": "CPU, 1 process"},
    "recipe": {"task": "s4", "data": "/data/AVSBench", "seed": 3},
}


def card(
    record: dict = RECORD, evaluations: tuple[dict, ...] = (), config: PCMANetConfig | None = None, **options: Any
) -> ModelCard:
    publication = Publication(Path("best"), "me/shapes", **options)
    content = CardContent(publication, config or tiny_config(), 1_250_000, (48, 64), record, evaluations)
    return ModelCard(write_card(content))


def evaluation(command: str, metrics: dict | None = None) -> dict[str, Any]:
    return {**RESULTS, "command": command, "metrics": metrics or METRICS}


def section(model_card: ModelCard, title: str) -> str:
    return model_card.text.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip()


def test_metrics_of_earlier_weights_are_left_out():
    # As in last/ of a run that --max-steps stopped after its last evaluation.
    assert "0.6250" in card(RECORD | {"step": 200, "validation_step": 200}).text
    stopped = card(RECORD | {"step": 250, "validation_step": 200})
    assert "0.6250" not in stopped.text and "Not recorded." in section(stopped, "Results")
    assert not stopped.data.eval_results


def test_metadata_has_the_metrics_with_their_protocols():
    data = card(evaluations=(evaluation("pcmanet evaluate"),), datasets=("me/avsbench",)).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "video-to-video", "other")
    assert data.tags == ["audio-visual-segmentation", "pcmanet"]
    assert (data.datasets, data.metrics, data.model_name) == (["me/avsbench"], ["mean_iou", "f_score"], "shapes")
    found = {
        (one.dataset_name, one.dataset_split, one.metric_type, one.metric_name): one.metric_value
        for one in data.eval_results
    }
    assert found == {
        ("AVSBench, s4", "val", "mean_iou", "mIoU (official protocol)"): 0.625,
        ("AVSBench, s4", "val", "f_score", "F (official protocol)"): 0.875,
        **{
            ("s4", "test", kind, f"{name} ({protocol} protocol)"): METRICS[protocol][measure]
            for protocol in METRICS
            for kind, name, measure in (("mean_iou", "mIoU", "miou"), ("f_score", "F", "f_score"))
        },
    }


def test_results_are_listed_by_protocol_with_their_commands():
    text = section(card(evaluations=(evaluation("pcmanet evaluate best --data s4"),)), "Results")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| | official |" in lines
    assert "| mIoU, no background | 0.5000 |" in lines
    assert "### s4, test split: 4 clips, 20 frames" in lines
    assert "| | official | batch | dataset |" in lines
    assert "| mIoU | 0.5000 | 0.2500 | 0.1250 |" in lines
    assert "pcmanet evaluate best --data s4" in lines
    assert "loss" not in text and "stage_4" not in text and "frames |" not in text


def test_training_and_environment_are_those_of_metrics_json():
    text = card()
    training = section(text, "Training")
    assert "```bash\npcmanet train --output runs/first\n```" in training
    assert "16,000 clips and 21.5 minutes" in training
    assert "```yaml\ntask: s4\ndata: /data/AVSBench\nseed: 3\n```" in training
    assert "| torch  |         2.14.1 |" in section(text, "Environment")
    assert "available on request" in section(text, "Data")
    assert "48x64 pixels" in section(text, "Limitations")


@pytest.mark.parametrize(
    ("settings", "license", "words"),
    [
        ({"task": "ms3", "data": None}, "apache-2.0", "It contains no real-world data."),
        (
            {"task": "folder", "data": "/home/me/my_clips"},
            "other",
            "Clips of the author, in the folder `my_clips`",
        ),
        ({"task": "avss", "data": "AVSBench"}, "other", "its semantic clips"),
        ({}, "other", "was not recorded"),
    ],
)
def test_data_and_license_follow_from_the_settings(settings: dict, license: str, words: str):
    text = card(record={"arguments": settings})
    assert text.data.license == license
    assert words in section(text, "Data").replace("\n", " ")
    assert card(record={"arguments": settings}, license="mit").data.license == "mit"


def test_weights_that_training_started_from_are_named(tmp_path: Path):
    shapes = {"task": "ms3", "data": None}
    plain = card(record={"arguments": shapes})
    assert plain.data.license == "apache-2.0" and plain.data.base_model is None
    for settings, names, base in (
        ({"initialize_from": "real_world"}, "`real_world`", None),
        ({"checkpoint": str(tmp_path)}, f"`{tmp_path.name}`", None),
        ({"visual_backbone": "a/b", "audio_encoder": "c/d"}, "`a/b`, `c/d`", ["a/b", "c/d"]),
    ):
        text = card(record={"arguments": shapes | settings})
        assert f"Training started from the weights of {names}." in section(text, "Training")
        assert (text.data.base_model, text.data.license) == (base, "other")


def test_evaluated_custom_clips_have_the_name_of_their_folder():
    found = evaluation("pcmanet evaluate best --data my_clips") | {"name": "folder", "data": "/home/me/my_clips"}
    assert "### custom clips, my_clips, test split:" in section(card(evaluations=(found,)), "Results")


def test_missing_values_are_not_recorded():
    text = card(record={})
    assert section(text, "Results").startswith("Not recorded.")
    assert section(text, "Training") == "Not recorded."
    assert section(text, "Environment") == "Not recorded."
    assert text.data.eval_results is None and text.data.metrics is None


def test_false_positive_rate_is_a_limitation_unless_it_was_measured():
    words = "has not been measured here"
    assert words in section(card(), "Limitations").replace("\n  ", " ")
    metrics = {protocol: {**values, "false_positive_rate": 0.01} for protocol, values in METRICS.items()}
    text = card(evaluations=(evaluation("pcmanet evaluate --negative-audio noise", metrics),))
    assert words not in section(text, "Limitations").replace("\n  ", " ")
    assert "| false-positive rate, negative audio |" in text.text


def test_classes_are_listed_if_they_are_few():
    few = tiny_config(id2label={0: "background", 1: "dog", 2: "cat"}, label2id={"background": 0, "dog": 1, "cat": 2})
    assert "one of 2 classes: dog, cat." in card(config=few).text.replace("\n", " ")
    names = ["background", *(f"kind{index}" for index in range(70))]
    many = tiny_config(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
    text = card(config=many).text.replace("\n", " ")
    assert "one of 70 classes: kind0, kind1, kind2, kind3, kind4 and so on, see config.json." in text


def test_snippet_trusts_remote_code_only_if_it_is_in_the_repository():
    assert "trust_remote_code=True" in section(card(with_code=True), "Use")
    without = section(card(), "Use")
    assert "trust_remote_code" not in without and "import pcmanet  # registers" in without


def test_evaluation_is_read_with_its_command_and_classes(tmp_path: Path):
    classes = {"dog": {protocol: {"miou": 0.5, "f_score": 0.5} for protocol in METRICS}}
    (tmp_path / "results.json").write_text(json.dumps({**RESULTS, "classes": classes}))
    (tmp_path / "results.md").write_text(
        "# best on s4 test\n\n    python evaluate.py best 'my data'\n\n| | official |\n"
    )
    found = read_evaluation(tmp_path)
    assert found["command"] == "python evaluate.py best 'my data'"
    assert "| dog   |" in card(evaluations=(found,)).text
    (tmp_path / "results.md").write_text("no command")
    with pytest.raises(ValueError, match="is not the output of a finished"):
        read_evaluation(tmp_path)


def test_metrics_json_has_command_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--output", "my runs"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    write_record(tmp_path, {"validation": {"miou": 0.5}})
    record = read_record(tmp_path)
    assert record["command"] == "torchrun --nproc_per_node 2 train.py --output 'my runs'"
    assert record["environment"] == describe_environment()
    assert record["environment"]["device"].endswith(", 2 processes")
    assert record["validation"] == {"miou": 0.5}
    assert read_record(tmp_path / "nowhere") == {}
    # With two machines a process does not know the options of the other.
    monkeypatch.setenv("WORLD_SIZE", "4")
    write_record(tmp_path, {})
    words = "train.py --output 'my runs'  # the options of the launcher are not known"
    assert read_record(tmp_path)["command"] == words


def describe(segmenter: Callable) -> list:
    """Return label, score and mask of all segments of the clip, as JSON can hold them."""
    return [
        [
            [found["label"], found["score"], hashlib.sha256(found["mask"].tobytes()).hexdigest()]
            for found in frame["segments"]
        ]
        for frame in segmenter("clip.mp4")
    ]


USE_WITHOUT_OUR_PACKAGE = f"""{WITHOUT_OUR_PACKAGE}import hashlib, json
from collections.abc import Callable
from pathlib import Path
exec(Path("snippet.py").read_text())
{inspect.getsource(describe)}
print(json.dumps(describe(segmenter)))
"""


def save_result(folder: Path) -> None:
    """Write what a training writes: weights, processor, metrics.json."""
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


def test_prepared_folder_is_complete_and_the_trained_model_unchanged(result: Path):
    before = contents(result)
    folder = prepare(Publication(result, "me/shapes"))
    assert folder == result.parent / "best-hub"
    assert contents(result) == before
    names = ["README.md", "config.json", "metrics.json", "model.safetensors", "processor_config.json"]
    assert sorted(os.listdir(folder)) == names
    for name in ("metrics.json", "model.safetensors", "processor_config.json"):
        assert contents(folder)[name] == before[name]
    assert 'model="me/shapes")' in (folder / "README.md").read_text()


def test_code_and_pipeline_entry_are_published_together(result: Path):
    folder = prepare(Publication(result, "me/shapes", with_code=True))
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_pipelines"] == {
        "audio-visual-segmentation": {
            "impl": "audio_visual_segmentation.AudioVisualSegmentationPipeline",
            "pt": ["AutoModelForSemanticSegmentation"],
            "type": "multimodal",
        }
    }
    assert config["auto_map"]["AutoConfig"] == "configuration_pcmanet.PCMANetConfig"
    assert {"modeling_pcmanet.py", "processing_pcmanet.py", "audio_visual_segmentation.py"} <= set(os.listdir(folder))
    # A model with code is published without it: no entry may point to missing code.
    folder.rename(result.parent / "other")
    plain = prepare(Publication(result.parent / "other", "me/shapes"))
    assert not [name for name in os.listdir(plain) if name.endswith(".py")]
    assert not {"custom_pipelines", "auto_map"} & set(json.loads((plain / "config.json").read_text()))
    assert "auto_map" not in (plain / "processor_config.json").read_text()


def test_a_checkpoint_with_code_needs_no_trust_where_the_package_is_installed(result: Path, tmp_path: Path):
    folder = prepare(Publication(result, "me/shapes", with_code=True))
    segmenter = pipeline("audio-visual-segmentation", model=str(folder), device="cpu")
    assert type(segmenter) is AudioVisualSegmentationPipeline
    # Weights that are trained from it are saved without its code, and nothing may refer to that code.
    model, processor = load_model(str(folder))
    save_model(tmp_path / "trained", model, processor, {})
    saved = "".join(path.read_text() for path in (tmp_path / "trained").glob("*.json"))
    assert not any(entry in saved for entry in ("auto_map", "custom_pipelines"))
    assert type(pipeline("audio-visual-segmentation", model=str(tmp_path / "trained"), device="cpu")) is type(
        segmenter
    )
    # The same model saved with code, then without.
    segmenter.save_pretrained(tmp_path / "again")
    with save_code_with_weights():
        segmenter.model.save_pretrained(tmp_path / "again")
    segmenter.model.save_pretrained(tmp_path / "plain")
    assert not {"custom_pipelines", "auto_map"} & set(json.loads((tmp_path / "plain" / "config.json").read_text()))


def test_earlier_folder_is_replaced_completely(result: Path):
    folder = prepare(Publication(result, "me/shapes", with_code=True))
    (folder / "rest.txt").write_text("of an earlier time")
    prepare(Publication(result, "me/other"))
    assert "rest.txt" not in os.listdir(folder) and "modeling_pcmanet.py" not in os.listdir(folder)
    assert sorted(os.listdir(result.parent)) == ["best", "best-hub"]


def test_invalid_input_is_refused_before_anything_is_written(result: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="Repo id must"):
        prepare(Publication(result, "me/my shapes"))
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"config.json not found in {result.parent}. Give one of {result}.")
    ):
        prepare(Publication(result.parent, "me/shapes"))
    with pytest.raises(FileNotFoundError, match=r"config\.json not found in .*nowhere. Give the folder of a model"):
        prepare(Publication(tmp_path / "nowhere", "me/shapes"))
    with pytest.raises(ValueError, match="is not the output of a finished `pcmanet evaluate`"):
        prepare(Publication(result, "me/shapes", evaluations=(tmp_path,)))
    record = (result / "metrics.json").read_text()
    for text, message in (("{", r"metrics\.json is not valid JSON"), ("[]", r"metrics\.json contains list")):
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


def test_evaluation_of_other_weights_or_on_training_clips_is_refused(result: Path, tmp_path: Path):
    def write(**changes: Any) -> Publication:
        found = {**RESULTS, "digest": digest(*load_model(str(result))), **changes}
        (tmp_path / "results.json").write_text(json.dumps(found))
        (tmp_path / "results.md").write_text("# best on s4 test\n\n    pcmanet evaluate best\n")
        return Publication(result, "me/shapes", evaluations=(tmp_path,))

    assert "### s4, test split" in (prepare(write()) / "README.md").read_text()
    for changes, message in (
        ({"digest": "0" * 32, "checkpoint": "runs/other/best"}, "is an evaluation of runs/other/best, whose weights"),
        ({"digest": None}, f"Evaluate it with `pcmanet evaluate {result}`, or leave out {tmp_path}."),
        ({"split": "train"}, "is an evaluation on the train split"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            prepare(write(**changes))


def test_publish_uploads_the_prepared_folder(result: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(
        publishing, "upload_folder", lambda *names, **options: calls.append((names, options)) or "there"
    )
    assert publish(Publication(result, "me/shapes", private=True), waits=()) == "there"
    options = {"message": "Upload shapes", "private": True, "waits": ()}
    assert calls == [((result.parent / "best-hub", "me/shapes"), options)]


def test_command_line_prepares_or_prints_an_error(result: Path, capsys: pytest.CaptureFixture):
    main(
        [str(result), "--to", "me/shapes", "--only-prepare", "--private", "--license", "mit", "--dataset", "me/clips"]
    )
    folder = result.parent / "best-hub"
    command = f"hf upload me/shapes {folder} . --private"
    assert capsys.readouterr().out == f"Prepared {folder}. Upload it with: {command}\n"
    assert "license: mit\n" in (folder / "README.md").read_text()
    with pytest.raises(SystemExit, match="error: config.json not found"):
        main([str(result.parent.parent), "--to", "me/shapes"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--code"]])
def test_the_pipeline_of_a_published_model_is_found_without_naming_its_task(
    options: list[str], result: Path, hub: LoopbackHub, tmp_path: Path
):
    environment = hub.environment(tmp_path / "home")
    publishing_command = [sys.executable, "-m", "pcmanet.training.publishing", str(result), "--to", "someone/shapes"]
    subprocess.run([*publishing_command, *options], env=environment, check=True, capture_output=True)
    use = "import pcmanet; from transformers import pipeline; print(type(pipeline(model='someone/shapes')).__name__)"
    done = subprocess.run([sys.executable, "-c", use], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "AudioVisualSegmentationPipeline\n", done.stderr[-3000:]


@pytest.mark.slow
def test_snippet_of_the_card_gives_the_same_masks_without_this_package(
    result: Path, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    sound = generator.uniform(-0.5, 0.5, (1, 48000)).astype(np.float32)
    write_video(tmp_path / "clip.mp4", frames, 10, sound, 16000)
    environment = hub.environment(tmp_path / "home")
    command = [sys.executable, "-m", "pcmanet.training.publishing", str(result), "--to", "someone/shapes", "--code"]

    # The first upload fails because the token was revoked. The command in the message uploads the prepared folder.
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
    # A second upload has nothing to add.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Uploaded to http")
    assert len(hub.repositories["models", "someone/shapes"].commits) == 2

    card = (result.parent / "best-hub" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    (tmp_path / "snippet.py").write_text(snippet)
    isolated = subprocess.run(
        [sys.executable, "-c", USE_WITHOUT_OUR_PACKAGE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert isolated.returncode == 0, isolated.stderr[-3000:]
    *printed, masks = isolated.stdout.splitlines()
    model, processor = publishing.load_result(result)
    here = AudioVisualSegmentationPipeline(model=model, processor=processor, device="cpu")
    monkeypatch.chdir(tmp_path)
    expected = describe(here)
    assert len(expected) == 3 and any(expected)
    assert json.loads(masks) == expected
    assert [float(line.split()[0]) for line in printed] == [frame["timestamp"] for frame in here("clip.mp4")]


@pytest.mark.slow
def test_training_of_two_processes_is_uploaded_once_with_its_metrics(hub: LoopbackHub, tmp_path: Path):
    root = Path(__file__).parent.parent
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = ["-m", "pcmanet", "train", "--recipe", str(root / "examples" / "recipes" / "smoke.yaml")]
    options = ["--output", str(tmp_path / "run"), "--push-to-hub", "someone/smoke", "--hub-private"]
    small = ["--set", "clips=8", "evaluation_clips=2", "evaluations=1", "image_size=32", "num_workers=0"]
    environment = hub.environment(tmp_path / "home") | {"ACCELERATE_USE_CPU": "true"}
    command = [*launcher, *script, *options, *small]

    wrong = subprocess.run(
        command, env=environment | {"HF_TOKEN": "expired"}, capture_output=True, text=True, check=False
    )
    assert wrong.returncode != 0
    assert "error: Repository someone/smoke cannot be created or accessed: status 401" in wrong.stderr
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
