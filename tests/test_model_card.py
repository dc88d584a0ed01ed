"""The card of a trained model: metadata that the Hub understands, figures under their protocols, and nothing invented."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny_model import tiny_config

from pcmanet.training.model_card import CardContent, Evaluation, read_evaluation, write_card
from pcmanet.training.training_record import describe_environment, read_record, write_record


FIGURES = {
    protocol: {"miou": miou, "f_score": 0.75, "frames": 20.0, "groups": 4.0}
    for protocol, miou in (("official", 0.5), ("batch", 0.25), ("dataset", 0.125))
}
RESULTS = {"checkpoint": "best", "name": "s4", "split": "test", "clips": 4, "frames": 20, "figures": FIGURES}
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
    "command": "python examples/train_pcmanet.py --output runs/first",
    "environment": {"torch": "2.14.1", "device": "CPU, 1 process"},
    "recipe": {"task": "s4", "data": "/data/AVSBench", "seed": 3},
}


def card(**changes: Any) -> ModelCard:
    values = {"config": tiny_config(), "parameters": 1_250_000, "frame_size": (48, 64), "record": RECORD}
    return ModelCard(write_card(CardContent(repository="me/shapes", **{**values, **changes})))


def section(model_card: ModelCard, title: str) -> str:
    return model_card.text.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip()


def test_the_hub_reads_what_was_measured_and_how():
    data = card(evaluations=(Evaluation("python evaluate", RESULTS),), datasets=("me/avsbench",)).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-segmentation", "other")
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
            ("s4", "test", kind, f"{name} ({protocol} protocol)"): FIGURES[protocol][measure]
            for protocol in FIGURES
            for kind, name, measure in (("mean_iou", "mIoU", "miou"), ("f_score", "F", "f_score"))
        },
    }


def test_figures_stand_under_their_protocols_with_their_commands():
    text = section(card(evaluations=(Evaluation("python examples/evaluate_pcmanet.py best s4", RESULTS),)), "Figures")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| | official |" in lines
    assert "| mIoU, no background | 0.5000 |" in lines
    assert "### s4, test split: 4 clips, 20 frames" in lines
    assert "| | official | batch | dataset |" in lines
    assert "| mIoU | 0.5000 | 0.2500 | 0.1250 |" in lines
    assert "python examples/evaluate_pcmanet.py best s4" in lines
    assert "loss" not in text and "stage_4" not in text and "frames |" not in text


def test_training_and_environment_are_those_of_the_record():
    text = card()
    training = section(text, "Training")
    assert "```bash\npython examples/train_pcmanet.py --output runs/first\n```" in training
    assert "16,000 clips and 21.5 minutes" in training
    assert "```yaml\ntask: s4\ndata: /data/AVSBench\nseed: 3\n```" in training
    assert "| torch  |         2.14.1 |" in section(text, "Environment")
    assert "given out on request" in section(text, "Data")
    assert "48x64 pixels" in section(text, "Limits")


@pytest.mark.parametrize(
    ("settings", "license", "words"),
    [
        ({"task": "ms3", "data": None}, "apache-2.0", "The real world does not occur in it."),
        (
            {"task": "folder", "data": "/home/me/my_clips"},
            "other",
            "Clips of the author's own, in the folder `my_clips`",
        ),
        ({"task": "avss", "data": "AVSBench"}, "other", "its semantic clips"),
        ({}, "other", "was not recorded"),
    ],
)
def test_data_and_licence_follow_from_the_settings(settings: dict, license: str, words: str):
    text = card(record={"arguments": settings})
    assert text.data.license == license
    assert words in section(text, "Data").replace("\n", " ")
    assert card(record={"arguments": settings}, license="mit").data.license == "mit"


def test_nothing_is_invented():
    text = card(record={})
    assert section(text, "Figures").startswith("None were recorded.")
    assert section(text, "Training") == "How it was trained was not recorded."
    assert section(text, "Environment") == "It was not recorded."
    assert text.data.eval_results is None and text.data.metrics is None


def test_wrong_sounds_count_as_measured_only_if_they_were():
    words = "has not been measured here"
    assert words in section(card(), "Limits").replace("\n  ", " ")
    figures = {protocol: {**values, "false_positive_rate": 0.01} for protocol, values in FIGURES.items()}
    heard = Evaluation("python evaluate --negative-audio noise", {**RESULTS, "figures": figures})
    text = card(evaluations=(heard,))
    assert words not in section(text, "Limits").replace("\n  ", " ")
    assert "| false positives under wrong sounds |" in text.text


def test_classes_are_named_as_long_as_they_are_few():
    few = tiny_config(id2label={0: "background", 1: "dog", 2: "cat"}, label2id={"background": 0, "dog": 1, "cat": 2})
    assert "of which of 2 classes it is: dog, cat." in card(config=few).text.replace("\n", " ")
    names = ["background", *(f"kind{index}" for index in range(70))]
    many = tiny_config(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
    text = card(config=many).text.replace("\n", " ")
    assert "of which of 70 classes it is: kind0, kind1, kind2, kind3, kind4 and so on, see config.json." in text


def test_the_snippet_trusts_code_only_where_it_lies_in_the_repository():
    assert "trust_remote_code=True" in section(card(with_code=True), "Use")
    without = section(card(), "Use")
    assert "trust_remote_code" not in without and "import pcmanet.pipelines" in without


def test_an_evaluation_is_read_with_its_command_and_classes(tmp_path: Path):
    classes = {"dog": {protocol: {"miou": 0.5, "f_score": 0.5} for protocol in FIGURES}}
    (tmp_path / "results.json").write_text(json.dumps({**RESULTS, "classes": classes}))
    (tmp_path / "results.md").write_text(
        "# best on s4 test\n\n    python evaluate.py best 'my data'\n\n| | official |\n"
    )
    evaluation = read_evaluation(tmp_path)
    assert evaluation.command == "python evaluate.py best 'my data'"
    assert "| dog   |" in card(evaluations=(evaluation,)).text
    (tmp_path / "results.md").write_text("no command")
    with pytest.raises(ValueError, match="is no finished output"):
        read_evaluation(tmp_path)


def test_a_record_says_how_and_in_what_it_came_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
    # Of two machines this one cannot tell how the other was started.
    monkeypatch.setenv("WORLD_SIZE", "4")
    write_record(tmp_path, {})
    words = "train.py --output 'my runs'  # by a launcher whose options were not recorded"
    assert read_record(tmp_path)["command"] == words
