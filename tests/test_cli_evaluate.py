"""Tests of `pcmanet evaluate` on trees of real files with tiny models, against direct evaluation."""

import csv
import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import tiny_model
from torch.utils.flop_counter import FlopCounterMode
from written_trees import write_trees

from modeling_pcmanet import (
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
)
from pcmanet.checkpoints import count_gmacs, digest, load_model
from pcmanet.cli import arguments, evaluate
from pcmanet.cli.main import main
from pcmanet.cli.results import OutputFolder
from pcmanet.dataset_scripts.avsbench import load_avsbench
from pcmanet.dataset_scripts.avsbench.layouts import NAMES, SECONDS_OF_SUBSET
from pcmanet.dataset_scripts.avsbench.masks import LABEL_NOISE_RULES
from pcmanet.dataset_scripts.avsbench.rows import MISSING_AUDIO_RULES
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.evaluation import NEGATIVES, PROTOCOLS
from pcmanet.dataset_scripts.metrics import BinaryMetrics, FalsePositiveMetrics, SemanticMetrics
from pcmanet.dataset_scripts.problems import ON_ERROR
from pcmanet.dataset_scripts.sounding_shapes import files as files_module


pytestmark = pytest.mark.usefixtures("checkpoints_are_loaded_once")

EXAMPLE = Path(__file__).parents[1] / "examples" / "evaluate_pcmanet.py"
QUICK = ["--num-workers", "0", "--batch-size", "2", "--worst", "0"]
AUDIO_CONFIG = {"block_channels": [[4], [6], [6]], "hidden_size": 12, "embedding_size": 10}
PROCESSOR = PCMANetProcessor(PCMANetImageProcessor(size={"height": 32, "width": 48}), PCMANetFeatureExtractor())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_trees(
        tmp_path_factory.mktemp("avsbench"), s4={"train": 2, "test": 5}, ms3={"test": 3}, avss={"test": 3}
    )


def save(folder: Path, **settings) -> Path:
    """Save a tiny model that predicts about half of the pixels as foreground, and its processor."""
    model = tiny_model(sharpness=8.0, audio_config=AUDIO_CONFIG, **settings)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "pixel_values": torch.randn(1, 5, 3, 32, 48, generator=generator),
        "input_features": torch.randn(1, 5, 1, 96, 64, generator=generator),
    }
    with torch.no_grad():
        for stage in model.model.stages:
            stage.head[-1].bias -= model(**batch).logits.median()
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {labels: save(folder / f"of_{labels}", num_labels=labels) for labels in (1, 71)}


def read_results(folder: Path):
    """Read results.json without the measured speed, which differs between runs."""
    results = json.loads((folder / "results.json").read_text())
    for one in results.get("evaluations", [results]):
        assert one["cost"].pop("frames_per_second") > 0
    return results


COUNTED: dict[str, float] = {}


def count_gmacs_once(config, processor):
    """Count the multiply-accumulates of a configuration in the first run with it; it takes a third of a run."""
    key = config.to_json_string() + processor.to_json_string()
    if key not in COUNTED:
        COUNTED[key] = count_gmacs(config, processor)
    return COUNTED[key]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command in this process; return the results, or the exit code if it is not 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pcmanet.checkpoints.TIMED_RUNS", 2)  # no test depends on how well the speed is measured
    monkeypatch.setattr(evaluate, "count_gmacs", count_gmacs_once)

    def run_command(checkpoint, data, *arguments, output="results"):
        options = ["--data", str(data), *QUICK, *arguments, "--output", output]
        models = [str(one) for one in ([checkpoint] if isinstance(checkpoint, str | Path) else checkpoint)]
        monkeypatch.setattr(sys, "argv", ["pcmanet", "evaluate", *models, *options])
        try:
            code = main()
        except SystemExit as stop:
            return stop.code
        return code or read_results(tmp_path / output)

    return run_command


@functools.cache
def load_network(checkpoint):
    return PCMANetForAudioVisualSegmentation.from_pretrained(checkpoint).eval()


@torch.no_grad()
def predict(checkpoint, rows, silent=False):
    """Yield logits and batch of every two rows, without the command."""
    model = load_network(checkpoint)
    collate = ClipCollator(PROCESSOR, binary=model.config.num_labels == 1)
    for first in range(0, len(rows), 2):
        batch = collate(rows[first : first + 2])
        if silent:
            batch["input_features"] = torch.full_like(batch["input_features"], float(np.log(0.01)))
        inputs = {name: batch[name] for name in PROCESSOR.model_input_names if name in batch}
        yield model(**inputs).logits, batch


def count(metrics, predictions):
    for logits, batch in predictions:
        metrics.update(logits, batch["labels"], batch.get("frame_mask"), batch["annotated_frames"])
    return metrics


def load(root, name, split="test"):
    return list(load_avsbench(root, name, split=split, streaming=True))


def test_choices_of_the_command_line_match_the_library():
    assert arguments.DATASETS == NAMES
    assert arguments.LABEL_NOISE_RULES == LABEL_NOISE_RULES
    assert list(arguments.NEGATIVE_AUDIO) == NEGATIVES
    assert tuple(SECONDS_OF_SUBSET) == arguments.SUBSETS
    assert arguments.MISSING_AUDIO_RULES == MISSING_AUDIO_RULES
    assert arguments.ON_ERROR == ON_ERROR


@pytest.mark.parametrize(("name", "split", "frames"), [("s4", "test", 25), ("s4", "train", 2), ("ms3", "test", 15)])
def test_binary_metrics_match_direct_evaluation(run, root, checkpoints, name, split, frames):
    results = run(checkpoints[1], root, "--name", name, "--split", split)
    rows = load(root, name, split)
    predictions = list(predict(checkpoints[1], rows))
    metrics = count(BinaryMetrics(), predictions)
    assert results["metrics"] == {protocol: metrics.compute(protocol) for protocol in PROTOCOLS}
    assert (results["name"], results["split"], results["clips"], results["frames"]) == (name, split, len(rows), frames)
    # The same from AVSBench's formula, without our metrics.
    ious = []
    for logits, batch in predictions:
        for mask, labels, known in zip(logits[:, :, 0] > 0, batch["labels"], batch["annotated_frames"], strict=True):
            pairs = [(mask[k], labels[k] == 1) for k in np.flatnonzero(known)]
            ious.append(
                np.mean([(m & t).sum() / ((m | t).sum() + 1e-7) if t.any() else (~m).float().mean() for m, t in pairs])
            )
    assert results["metrics"]["official"]["miou"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert [clip["miou"] for clip in results["per_clip"]] == pytest.approx(ious, abs=1e-6)
    assert [clip["clip"] for clip in results["per_clip"]] == [row["id"] for row in rows]
    assert 0.05 < results["metrics"]["official"]["miou"] < 0.95


def test_semantic_metrics_match_direct_evaluation(run, root, checkpoints):
    results = run(checkpoints[71], root, "--name", "avss", "--per-class")
    metrics = count(SemanticMetrics(71), predict(checkpoints[71], load(root, "avss")))
    assert results["metrics"] == {protocol: metrics.compute(protocol) for protocol in PROTOCOLS}
    assert results["frames"] == 20
    assert not any("published" in name for name in results["metrics"]["official"])
    assert len(results["classes"]) == results["metrics"]["official"]["classes_seen"]
    iou = metrics.per_class("official")["iou"]
    assert results["classes"]["background"]["official"]["miou"] == iou[0].item()


def test_scored_padding_is_noted_where_the_network_does_not_compute_it(capsys):
    evaluate._note_uncomputed_padding("ours", tiny_model(padded_frames="zeroed").config)
    assert capsys.readouterr().err == ""
    evaluate._note_uncomputed_padding("ours", tiny_model().config)
    assert 'note: ours has padded_frames="excluded", so --score-padding counts' in capsys.readouterr().err


def test_published_variants_of_avss(run, root, checkpoints, capsys):
    options = ["--name", "avss", "--score-padding", "--published-no-background"]
    results = run(checkpoints[71], root, *options)
    assert f"note: {checkpoints[71]} has padded_frames" in capsys.readouterr().err
    metrics = SemanticMetrics(71, score_padding=True, report_published_no_background=True)
    logits, labels = [], []
    for some, batch in predict(checkpoints[71], load(root, "avss")):
        for clip, right in zip(some, batch["labels"], strict=True):
            missing = 10 - len(clip)
            logits.append(torch.nn.functional.pad(clip, [0, 0, 0, 0, 0, 0, 0, missing]))
            labels.append(torch.nn.functional.pad(torch.where(right == 255, 0, right), [0, 0, 0, 0, 0, missing]))
    for clip, right in zip(logits, labels, strict=True):
        metrics.update(clip[None], right[None])
    expected = metrics.compute("official")
    assert results["frames"] == expected["frames"] == 30
    assert set(results["metrics"]["official"]) == set(expected)
    assert results["metrics"]["official"]["miou_published_no_background"] != expected["miou_no_background"]
    assert 'mIoU, "no background" as published' in Path("results/results.md").read_text()


def test_classes_of_binary_masks_are_the_sounding_objects(run, root, checkpoints):
    results = run(checkpoints[1], root, "--name", "s4", "--per-class")
    rows = load(root, "s4")
    assert set(results["classes"]) == {row["category"] for row in rows}
    category = rows[0]["category"]
    members = [
        clip["miou"] for clip, row in zip(results["per_clip"], rows, strict=True) if row["category"] == category
    ]
    assert results["classes"][category]["official"]["miou"] == pytest.approx(np.mean(members), abs=1e-12)
    assert f"| {category} " in Path("results/results.md").read_text()


def test_negative_audio_can_be_added_later(run, root, checkpoints):
    plain = run(checkpoints[1], root, "--name", "s4")
    before = {path.name: path.stat().st_mtime_ns for path in Path("results/progress").iterdir()}
    results = run(checkpoints[1], root, "--name", "s4", "--negative-audio", "off_screen", "silence", "noise")
    files = {path.name: path.stat().st_mtime_ns for path in Path("results/progress").glob("*.safetensors")}
    assert len(files) == 12 and all(files[name] == before[name] for name in before if "positive" in name)
    silence = count(FalsePositiveMetrics(1), predict(checkpoints[1], load(root, "s4"), silent=True))
    for protocol in PROTOCOLS:
        scores = results["metrics"][protocol]
        assert {name: scores[name] for name in plain["metrics"][protocol]} == plain["metrics"][protocol]
        rates = [scores[f"false_positive_rate_{kind}"] for kind in ("silence", "noise", "off_screen")]
        assert rates[0] == pytest.approx(silence.compute(protocol)["false_positive_rate"], abs=1e-6)
        assert len(set(rates)) == 3 and scores["false_positive_rate"] == pytest.approx(np.mean(rates))
        assert scores["g_miou"] == pytest.approx(2 / (1 / scores["miou"] + 1 / (1 - np.mean(rates))))


def test_off_screen_audio_from_a_folder(run, root, checkpoints, capsys):
    options = [root, "--name", "ms3", "--negative-audio", "off_screen"]
    assert run(checkpoints[1], *options) == 2
    assert "--off-screen-audio" in capsys.readouterr().err
    results = run(
        checkpoints[1], *options, "--off-screen-audio", str(root / "Single-source" / "s4_data" / "audio_wav")
    )
    assert 0 < results["metrics"]["official"]["false_positive_rate_off_screen"] < 1


def test_tables_and_worst_clips(run, root, checkpoints, capsys):
    results = run(checkpoints[1], root, "--name", "s4", "--worst", "2")
    text = Path("results/results.md").read_text()
    table = capsys.readouterr().out.split("\n\n")[0].strip()
    assert table in text and "|      | official |  batch | dataset |" in table
    assert f"{results['metrics']['dataset']['f_score']:.4f}" in table
    assert f"    pcmanet evaluate {checkpoints[1]} --data {root} " in text and "5 clips, 25 frames" in text
    worst = sorted(results["per_clip"], key=lambda clip: clip["miou"])[:2]
    assert [line.split()[1] for line in text.splitlines()[-2:]] == [clip["clip"] for clip in worst]
    sheet = Image.open("results/worst_clips.png")
    one = run(checkpoints[1], root, "--name", "s4", "--worst", "1")
    assert one == results
    assert Image.open("results/worst_clips.png").height == pytest.approx(sheet.height / 2, abs=40)


def test_example_prints_the_table_of_the_command(run, root, checkpoints, monkeypatch, capsys):
    run(checkpoints[71], root, "--name", "avss")
    table = capsys.readouterr().out.split("\n\n")[0].strip()
    words = [str(checkpoints[71]), "--data", str(root), "--name", "avss", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *words])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.strip() == table


def test_example_refuses_a_folder_without_a_table(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(checkpoints[1]), "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"No table of clips found in {tmp_path}"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_find_segments_scores_every_class_in_a_mask():
    target = np.array([[0, 1, 1, 255], [2, 2, 0, 0]], dtype=np.uint8)
    mask = np.array([[1, 1, 0, 1], [3, 0, 0, 0]])
    found = evaluate.find_segments(mask, target, {1: "one", 2: "two", 3: "three"})
    assert [(segment["label"], segment["score"]) for segment in found] == [("one", 1 / 3), ("three", 0.0)]
    assert np.asarray(found[0]["mask"]).tolist() == [[255, 255, 0, 255], [0, 0, 0, 0]]
    (unknown,) = evaluate.find_segments(np.array([[1]]), np.array([[255]]), {1: "one"})
    assert np.isnan(unknown["score"])


@pytest.fixture
def custom_clips(tmp_path):
    """A folder of two videos with one annotated frame each."""
    folder = tmp_path / "custom"
    (folder / "masks").mkdir(parents=True)
    dataset = files_module.SoundingShapes("ms3", "test", length=2, height=64, width=64, num_frames=2)
    rows = [("video", "split", "masks", "objects")]
    for index in range(2):
        files_module.write_clip(dataset, index, folder / f"{index}.mp4", frames_per_second=8)
        files_module._save_image(folder / "masks" / str(index) / "1.png", dataset[index].binary[1])
        rows.append((f"{index}.mp4", "test", f"masks/{index}", ("dog", "cat")[index]))
    with (folder / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_custom_clips_are_evaluated_on_annotated_frames(run, custom_clips, checkpoints, tmp_path, capsys):
    results = run(checkpoints[1], custom_clips, "--per-class", "--worst", "1", "--negative-audio", "off_screen")
    assert (results["name"], results["clips"], results["frames"]) == ("folder", 2, 2)
    assert set(results["classes"]) == {"cat", "dog"}
    (custom_clips / "classes.txt").write_text("background\nanything\n")
    names = {0: "background", 1: "something"}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    assert run(save(tmp_path / "named", **labels), custom_clips, output="named_results") == 2
    assert "Class 1 is 'something'" in capsys.readouterr().err
    (custom_clips / "classes.txt").write_text("background\nsomething\n")
    assert run(tmp_path / "named", custom_clips, output="named_results")["metrics"]["official"]["classes_seen"] == 2


@pytest.mark.parametrize(
    ("labels", "data", "arguments", "message"),
    [
        (1, "", ["--name", "avss"], "predicts binary masks, but avss has 71 classes"),
        (71, "", ["--name", "s4"], "predicts 71 classes, but s4 has binary masks"),
        (1, "", [], "contains s4 and ms3 and avss. Choose with --name"),
        (1, "", ["--name", "s4", "avss"], "No checkpoint is given for avss"),
        (71, "", ["--name", "s4", "ms3"], "predicts 71 classes, which none of"),
        (1, "", ["--name", "s4", "--subsets", "v2"], "applies to avss only"),
        (71, "", ["--name", "avss", "--score-padding", "--original-resolution"], "no original resolution"),
        (1, "Single-source/s4_data", [], "No table of clips found"),
        (1, "nowhere", [], "nowhere not found"),
        (1, "", ["--name", "s4", "--split", "val"], "No clips of split 'val' found"),
        (1, "", ["--name", "folder"], "clips.csv"),
        (1, "", ["--name", "s4", "--score-padding"], "--score-padding applies to avss only"),
        (1, "", ["--name", "s4", "--published-no-background"], "--published-no-background applies to avss only"),
        (1, "", ["--name", "ms3", "--per-class"], "lists no sounding objects"),
        (1, "", ["--name", "ms3", "--label-noise", "ignore"], "applies to avss only"),
        (
            1,
            "",
            ["--name", "s4", "ms3", "--label-noise", "ignore"],
            "--label-noise applies to avss only, but the data are",
        ),
        (1, "", ["--name", "ms3", "avss", "--missing-audio", "silence"], "--missing-audio applies to folder only"),
        (1, "", ["--name", "s4", "ms3", "--score-padding"], "applies to avss only, but the data are s4 and ms3"),
        (1, "", ["--name", "ms3", "--clips", "3"], "--clips applies to paired data only"),
        (1, "", ["--name", "avss", "--binary", "--published-no-background"], "is a mean over classes"),
        (1, "", ["--name", "s4", "--batch-size", "0"], "--batch-size"),
        (0, "", ["--name", "s4"], "nothing"),
    ],
)
def test_user_errors_give_one_line_per_problem(run, root, checkpoints, capsys, labels, data, arguments, message):
    assert run(checkpoints.get(labels, root / "nothing"), root / data, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not Path("results").exists()
    if "batch-size" not in message:  # a usage error
        assert error.startswith("error: ") and error.count("\n") == (2 if "clips.csv" in message else 1)


def test_incomplete_weights_raise(run, root, checkpoints, tmp_path, capsys):
    model = type(tiny_model()).from_pretrained(checkpoints[1])
    weights = {name: values for name, values in model.state_dict().items() if "head" not in name}
    model.save_pretrained(tmp_path / "headless", state_dict=weights)
    PROCESSOR.save_pretrained(tmp_path / "headless")
    assert run(tmp_path / "headless", root, "--name", "s4") == 2
    assert "lacks weights of a PCMANetForAudioVisualSegmentation, such as" in capsys.readouterr().err


def test_other_settings_raise(run, root, checkpoints, capsys, monkeypatch):
    assert run(checkpoints[1], root, "--name", "ms3")["digest"] == digest(*load_model(str(checkpoints[1])))
    assert run(checkpoints[1], root, "--name", "ms3", "--batch-size", "3", "--seed", "1") == 2
    error = capsys.readouterr().err
    assert "was created with other settings: " in error and "batch_size is " in error and "seed is " in error
    assert run(checkpoints[1], root, "--name", "s4") == 2
    # The stored counts are not those of a version whose metrics or data may count differently.
    monkeypatch.setattr(evaluate, "__version__", "9.9")
    assert run(checkpoints[1], root, "--name", "ms3") == 2
    assert "pcmanet is '9.9', was '" in capsys.readouterr().err


def test_results_in_bfloat16_are_kept_apart(run, root, checkpoints, capsys):
    exact = run(checkpoints[1], root, "--name", "ms3")
    assert exact["dtype"] == "float32"
    assert run(checkpoints[1], root, "--name", "ms3", "--dtype", "bfloat16") == 2
    assert "dtype is 'bfloat16', was 'float32'" in capsys.readouterr().err
    rounded = run(checkpoints[1], root, "--name", "ms3", "--dtype", "bfloat16", output="rounded")
    assert (rounded["dtype"], rounded["cost"]["device"]) == ("bfloat16", "cpu, 1 thread(s), bfloat16")
    miou, other = (found["metrics"]["official"]["miou"] for found in (exact, rounded))
    assert miou != other and miou == pytest.approx(other, abs=0.05)
    # The checkpoint does not say whether its masks agree in bfloat16.
    assert run(checkpoints[1], root, "--name", "ms3", "--dtype", "auto")["dtype"] == "float32"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, checkpoints):
    """The binary checkpoint with other weights, as of another seed."""
    folder = tmp_path_factory.mktemp("seeds") / "seed_1"
    model, processor = load_model(str(checkpoints[1]))
    with torch.no_grad():
        for stage in model.model.stages:
            stage.head[-1].bias += 2.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return [checkpoints[1], folder]


def test_all_datasets_in_one_run_and_one_table(run, root, checkpoints, seeds):
    models = [*seeds, checkpoints[71]]
    options = ["--name", "s4", "ms3", "avss", "--score-padding", "--per-class", "--log-mel", "--label-noise", "ignore"]
    assert run(models, root, *options) == 2  # no tree has log-mel features
    results = run(models, root, *[option for option in options if option != "--log-mel"])["evaluations"]
    found = [(one["name"], Path(one["checkpoint"]).name) for one in results]
    assert found == [(name, folder.name) for folder in seeds for name in ("s4", "ms3")] + [("avss", "of_71")]
    alone = run(checkpoints[1], root, "--name", "ms3", output="alone")
    assert results[1]["metrics"] == alone["metrics"]
    text = Path("results/results.md").read_text()
    (row,) = [line.split("|")[2:] for line in text.splitlines() if line.startswith("| PCMANet")]
    cells = [cell.strip() for cell in row]
    for name, column in (("s4", 1), ("ms3", 3)):
        for key, place in (("miou", column), ("f_score", column + 1)):
            values = [100 * one["metrics"]["official"][key] for one in results if one["name"] == name]
            assert cells[place] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    avss = results[-1]["metrics"]["official"]
    assert cells[5:7] == [f"{100 * avss[key]:.1f}" for key in ("miou", "f_score")]
    latex = Path("results/table.tex").read_text()
    assert latex.count(r"\\") == 3 and latex.count(r"$\pm$") == 4 and "S4" in latex
    assert all((Path("results") / name).is_dir() for name in ("s4", "ms3", "avss"))
    assert "By class" in next(Path("results/avss").glob("*/results.md")).read_text()


def test_a_checkpoint_can_be_given_for_one_dataset(run, root, checkpoints, seeds):
    models = [f"s4={seeds[0]}", f"ms3={seeds[1]}", f"avss={checkpoints[71]}"]
    results = run(models, root)["evaluations"]
    assert [(one["name"], one["checkpoint"]) for one in results] == [
        (name, str(path)) for name, path in (("s4", seeds[0]), ("ms3", seeds[1]), ("avss", checkpoints[71]))
    ]


def test_variants_of_a_network_are_no_seeds():
    def result(name, architecture, checkpoint):
        return {"name": name, "architecture": architecture, "checkpoint": checkpoint}

    seeds = [result("s4", "x", "a"), result("s4", "x", "b"), result("ms3", "y", "c")]
    assert evaluate._variants(seeds) == [("PCMANet", seeds)]
    variants = [result("s4", "x", "a"), result("s4", "y", "b"), result("ms3", "y", "c")]
    assert evaluate._variants(variants) == [("PCMANet, a", variants[:1]), ("PCMANet, b", variants[1:])]


def test_cost_of_the_evaluated_checkpoint(run, root, checkpoints):
    cost = run(checkpoints[1], root, "--name", "ms3")["cost"]
    model, processor = load_model(str(checkpoints[1]))
    assert cost["parameters"] == sum(values.numel() for values in model.parameters())
    assert cost["device"] == "cpu, 1 thread(s), float32"
    batch = processor(np.zeros((5, 9, 9, 3), np.uint8), np.zeros(80000), sampling_rate=16000, return_tensors="pt")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    # The network of this test gathers queries, so that it computes less than what is counted.
    assert counter.get_total_flops() / 1e10 <= cost["gmacs_per_frame"] < 1.5 * counter.get_total_flops() / 1e10
    text = Path("results/results.md").read_text()
    assert f"{cost['parameters'] / 1e6:.2f}" in text and f"{cost['gmacs_per_frame']:.2f}" in text
    before = Path("results/progress/speed.json").read_bytes()
    run(checkpoints[1], root, "--name", "ms3")
    assert Path("results/progress/speed.json").read_bytes() == before


def test_published_results_are_added_with_their_sources(run, root, checkpoints, capsys):
    run(checkpoints[1], root, "--name", "ms3", "--compare")
    text, latex = Path("results/results.md").read_text(), Path("results/table.tex").read_text()
    assert "| COMBO" in text and "59.2" in text and "github.com/yannqi/COMBO-AVS" in text
    assert "MS3 mIoU" in text and "S4 mIoU" not in text  # S4 was not evaluated
    assert "% COMBO: arXiv 2312.06462" in latex and "COMBO" in capsys.readouterr().out
    run(checkpoints[1], root, "--name", "ms3")
    assert "COMBO" not in Path("results/results.md").read_text()


@pytest.mark.parametrize(("name", "labels"), [pytest.param("s4", 1, marks=pytest.mark.slow), ("avss", 71)])
def test_masks_of_all_clips_are_written_on_request(run, root, checkpoints, name, labels):
    run(checkpoints[labels], root, "--name", name)
    assert not Path("results/masks").exists()
    run(checkpoints[labels], root, "--name", name, "--save-masks")
    rows = load(root, name)
    predicted = [
        clip[batch["frame_mask"][k]] if "frame_mask" in batch else clip
        for logits, batch in predict(checkpoints[labels], rows)
        for k, clip in enumerate(logits)
    ]
    for row, logits in zip(rows, predicted, strict=True):
        folder = Path("results/masks") / (row["category"] or "") / row["id"]
        assert sorted(int(path.stem) for path in folder.iterdir()) == list(range(len(row["frames"])))
        for number, frame in enumerate(row["frames"]):
            mask = np.asarray(Image.open(folder / f"{number}.png"))
            assert mask.shape == frame.size[::-1]
            resized = torch.nn.functional.interpolate(logits[number][None], mask.shape, mode="bilinear")[0]
            expected = (resized[0] > 0).numpy() * 255 if labels == 1 else resized.argmax(0).numpy()
            assert (mask != expected).mean() < 1e-3
    one = next(Path("results/masks").rglob("3.png"))
    damaged = one.parent
    for path in damaged.iterdir():
        path.unlink()
    damaged.rmdir()
    run(checkpoints[labels], root, "--name", name, "--save-masks")
    assert one.is_file()


def test_original_resolution(run, root, checkpoints):
    options = ["--name", "avss", "--binary"]
    small = run(checkpoints[1], root, *options)
    results = run(checkpoints[1], root, *options, "--original-resolution", output="original")
    rows = list(load_avsbench(root, "avss", split="test", streaming=True, binary=True))
    metrics = BinaryMetrics()
    for first, (logits, _) in zip((0, 2), predict(checkpoints[1], rows), strict=True):
        for clip, row in zip(logits, rows[first : first + 2], strict=True):
            size = row["frames"][0].size[::-1]
            resized = torch.nn.functional.interpolate(clip[: len(row["frames"])], size, mode="bilinear")
            metrics.update(resized[None], torch.from_numpy(np.stack(row["masks"])).long()[None])
    assert results["metrics"]["official"] == pytest.approx(metrics.compute("official"), abs=1e-4)
    assert results["metrics"] != small["metrics"] and results["resolution"] == "original"
    assert "scored at the size of the frames" in Path("original/results.md").read_text()


def test_subsets_and_binary_masks_of_avss(run, root, checkpoints):
    results = run(checkpoints[1], root, "--name", "avss", "--binary", "--subsets", "v1s", "v2")
    assert results["clips"] == 2
    rows = list(load_avsbench(root, "avss", split="test", streaming=True, subsets=["v1s", "v2"], binary=True))
    assert results["metrics"]["official"] == count(BinaryMetrics(), predict(checkpoints[1], rows)).compute("official")


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_clips_with_problems_are_skipped_on_request(run, checkpoints, tmp_path, caplog, workers):
    write_trees(tmp_path, ms3={"test": 5})
    rows = load(tmp_path, "ms3")
    missing = next(tmp_path.rglob(f"visual_frames/{rows[0]['id']}/*_5.png"))
    damaged = next(tmp_path.rglob(f"gt_masks/test/{rows[2]['id']}/*_5.png"))
    missing.unlink()
    Image.fromarray(np.full((224, 224), 100, np.uint8)).save(damaged)
    options = [tmp_path, "--name", "ms3", "--num-workers", workers, "--negative-audio", "silence"]
    assert run(checkpoints[1], *options) == 2
    results = run(checkpoints[1], *options, "--on-error", "skip")
    assert [clip["clip"] for clip in results["per_clip"]] == [rows[index]["id"] for index in (1, 3, 4)]
    assert results["skipped_clips"] == 2 and len(results["skipped"]) == 2
    kept = [rows[index] for index in (1, 3, 4)]
    expected = count(BinaryMetrics(), predict(checkpoints[1], kept)).compute("official")
    assert results["metrics"]["official"]["miou"] == pytest.approx(expected["miou"], abs=1e-3)
    text = Path("results/results.md").read_text()
    (record,) = caplog.records
    for path in (missing, damaged):
        assert str(path) in text and str(path) in record.message
    assert "Skipped 2 of 5 clips" in record.message


def test_unusable_lines_are_named_if_the_split_has_no_others(run, custom_clips, checkpoints, capsys):
    table = custom_clips / "clips.csv"
    table.write_text(table.read_text().replace(",test,", ",tests,"))
    for on_error in ("raise", "skip"):
        assert run(checkpoints[1], custom_clips, "--on-error", on_error) == 2
        error = capsys.readouterr().err
        assert "; it has clips of no split." in error
        assert error.count("Unknown split 'tests'") == 2


def test_videos_without_audio_are_silence_on_request(run, custom_clips, checkpoints, capsys):
    frames = [np.zeros((64, 64, 3), np.uint8)] * 16
    files_module.write_video(custom_clips / "silent.mp4", frames, 8)
    with (custom_clips / "clips.csv").open("a", newline="") as file:
        csv.writer(file).writerow(("silent.mp4", "test", "", ""))
    assert run(checkpoints[1], custom_clips) == 2
    assert 'set missing_audio to "silence"' in capsys.readouterr().err
    results = run(checkpoints[1], custom_clips, "--missing-audio", "silence", output="silence")
    assert (results["clips"], results["frames"]) == (3, 4)


def test_damaged_file_is_listed_and_the_rest_is_kept(run, root, checkpoints, tmp_path, capsys):
    write_trees(tmp_path, ms3={"test": 3})
    last = next(tmp_path.rglob(f"gt_masks/test/{load(tmp_path, 'ms3')[2]['id']}/*_5.png"))
    intact = last.read_bytes()
    Image.fromarray(np.full((224, 224), 100, np.uint8)).save(last)
    assert run(checkpoints[1], tmp_path, "--num-workers", "1") == 2
    error = capsys.readouterr().err
    assert str(last) in error and "gray values 100" in error and "Traceback" not in error
    (done,) = Path("results/progress").glob("*.safetensors")
    timestamp = done.stat().st_mtime_ns
    last.write_bytes(intact)
    expected = run(checkpoints[1], root, "--name", "ms3", output="intact")
    assert run(checkpoints[1], tmp_path)["metrics"] == expected["metrics"]
    assert done.stat().st_mtime_ns == timestamp


def test_damaged_counts_are_named_with_the_remedy(run, root, checkpoints, capsys):
    expected = run(checkpoints[1], root, "--name", "ms3")
    damaged = min(Path("results/progress").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:20])
    assert run(checkpoints[1], root, "--name", "ms3") == 2
    assert f"{damaged} is damaged: " in capsys.readouterr().err
    damaged.unlink()
    assert run(checkpoints[1], root, "--name", "ms3") == expected


def test_only_one_run_at_a_time(run, root, checkpoints, capsys):
    other = OutputFolder(Path("results"))
    other.join(first=True)
    assert run(checkpoints[1], root, "--name", "ms3") == 2
    assert "Another pcmanet is writing to results" in capsys.readouterr().err
    other.leave()
    assert run(checkpoints[1], root, "--name", "ms3")["clips"] == 3
    OutputFolder(Path("results")).join(first=True)


def test_log_file_has_no_progress_bar(run, root, checkpoints, capsys):
    run(checkpoints[1], root, "--name", "s4")
    lines = capsys.readouterr().err.split("\n")
    assert [line for line in lines if "evaluating" in line] == [f"evaluating: {done} of 3 batches" for done in (0, 3)]
    assert not any("\r" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_all_processes_prints_no_traceback(checkpoints, root, tmp_path, number):
    """A batch system and a terminal send it to the workers too."""
    options = ["--name", "s4", "--batch-size", "1", "--num-workers", "2", "--output", tmp_path / "out"]
    options += ["--negative-audio", "silence", "noise", "off_screen"]  # so that the signal comes before the end
    command = launch(checkpoints[1], root, *options, start_new_session=True)
    while not list((tmp_path / "out").glob("progress/p*.safetensors")):
        assert command.poll() is None
        time.sleep(0.01)
    os.killpg(command.pid, number)
    printed, _ = command.communicate(timeout=600)
    assert "To resume: pcmanet evaluate" in printed and "Traceback" not in printed
    assert command.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]


@pytest.mark.slow
def test_workers_that_are_not_forked(run, root, checkpoints, monkeypatch):
    """This is the default on macOS, and everywhere since Python 3.14."""
    expected = run(checkpoints[1], root, "--name", "ms3")
    monkeypatch.setattr(
        evaluate, "DataLoader", functools.partial(evaluate.DataLoader, multiprocessing_context="forkserver")
    )
    assert run(checkpoints[1], root, "--name", "ms3", "--num-workers", "1", output="not_forked") == expected


def launch(checkpoint, data, *arguments, processes=1, **settings):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    start = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += [] if processes == 1 else ["--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [*start, "-m", "pcmanet", "evaluate", checkpoint, "--data", data, *QUICK, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **settings,
    )


@pytest.mark.slow
def test_two_processes_and_a_resumed_run_match_one_process(run, root, checkpoints, tmp_path):
    options = ["--name", "s4", "--negative-audio", "silence", "noise", "off_screen", "--per-class"]
    expected = run(checkpoints[1], root, *options)

    both = launch(checkpoints[1], root, *options, "--output", tmp_path / "both", processes=2)
    printed, _ = both.communicate(timeout=600)
    assert both.returncode == 0, printed
    assert read_results(tmp_path / "both") == expected
    assert printed.count("| mIoU") == 1

    killed = launch(checkpoints[1], root, *options, "--output", tmp_path / "killed")
    progress = tmp_path / "killed" / "progress"
    deadline = time.monotonic() + 600
    while not list(progress.glob("p*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert not (tmp_path / "killed" / "results.json").exists()
    done = {path: path.stat().st_mtime_ns for path in progress.glob("*.safetensors")}
    assert 0 < len(done) < 12
    again = launch(checkpoints[1], root, *options, "--output", tmp_path / "killed", processes=2)
    printed, _ = again.communicate(timeout=600)
    assert again.returncode == 0, printed
    assert read_results(tmp_path / "killed") == expected
    assert all(path.stat().st_mtime_ns == timestamp for path, timestamp in done.items())
    assert len(list(progress.iterdir())) == 14
