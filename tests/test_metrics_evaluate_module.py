"""Tests of the modules for the `evaluate` library, loaded by path and from a Hub, against the accumulators."""

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch

from pcmanet.dataset_scripts.metrics import (
    BinaryMetrics,
    RobustnessMetrics,
    SemanticMetrics,
    evaluate_module,
)


MODULES = Path(evaluate_module.__file__).parents[1] / "evaluate_modules"
NAMES = ("avs_binary", "avs_semantic", "avs_robustness")
SHAPE = (4, 3, 8, 6)  # clips, frames, height, width


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a temporary cache; one for all tests here, because Python caches the path of a package."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(folder / "modules"))
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(folder / "metrics"))
        yield


def load(name: str, **options: Any) -> evaluate.EvaluationModule:
    return evaluate.load(str(MODULES / name), **options)


def make_clips(classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities, class indices and labels of some clips."""
    generator = np.random.default_rng(classes)
    probabilities = generator.random(SHAPE, dtype=np.float32)
    predictions, labels = (generator.integers(0, classes, SHAPE, dtype=np.uint8) for _ in range(2))
    return probabilities, predictions, labels


def binary_scores(predictions: np.ndarray, labels: np.ndarray, protocol: str = "official") -> dict[str, float]:
    metrics = BinaryMetrics(protocol)
    codes = evaluate_module.quantize_probabilities(torch.from_numpy(predictions))
    metrics.update_predictions(codes, torch.from_numpy(labels))
    return metrics.compute()


@pytest.mark.parametrize("kind", ["masks", "probabilities"])
@pytest.mark.parametrize("protocol", ["official", "dataset"])
def test_binary_module_takes_masks_and_probabilities(kind: str, protocol: str):
    probabilities, masks, labels = make_clips(2)
    predictions = masks if kind == "masks" else probabilities
    module = load("avs_binary")
    module.add_batch(predictions=predictions[:3], references=labels[:3])
    module.add_batch(predictions=predictions[3:], references=labels[3:])
    assert len(module) == 4
    assert module.compute(protocol=protocol) == binary_scores(predictions, labels, protocol)
    assert len(module) == 0


def test_each_call_is_a_batch():
    probabilities, _, labels = make_clips(2)
    module = load("avs_binary", protocol="batch")
    for clips in (slice(0, 3), slice(3, 4)):
        module.add_batch(predictions=probabilities[clips], references=labels[clips])
    metrics = BinaryMetrics("batch")
    codes = evaluate_module.quantize_probabilities(torch.from_numpy(probabilities))
    for clips in (slice(0, 3), slice(3, 4)):
        metrics.update_predictions(codes[clips], torch.from_numpy(labels[clips]))
    assert module.compute() == metrics.compute()


@pytest.mark.parametrize("convert", [torch.from_numpy, np.ndarray.tolist], ids=["tensor", "list"])
def test_clips_of_any_container_and_length(convert: Any):
    probabilities, _, labels = make_clips(2)
    module, expected = load("avs_binary"), load("avs_binary")
    lengths = (3, 1, 2, 3)
    clips = list(zip(probabilities, labels, lengths, strict=True))
    module.add_batch(
        predictions=[convert(prediction[:length]) for prediction, _, length in clips],
        references=[convert(label[:length]) for _, label, length in clips],
    )
    for prediction, label, length in clips:
        expected.add(prediction=prediction[:length], reference=label[:length])
    assert module.compute() == expected.compute()


def test_semantic_module_matches_the_accumulator():
    _, predictions, labels = make_clips(5)
    labels[0, 0, :4] = 255
    module = load("avs_semantic", num_labels=5, report_published_no_background=True)
    metrics = SemanticMetrics(5, report_published_no_background=True)
    metrics.update_predictions(torch.from_numpy(predictions), torch.from_numpy(labels))
    assert module.compute(predictions=predictions, references=labels) == metrics.compute()


def test_the_semantic_module_is_called_like_mean_iou():
    # Issue 16, point 19.
    _, predictions, labels = make_clips(3)
    labels[0, 0, :2] = 9
    clips = {"predictions": predictions, "references": labels}
    module = load("avs_semantic")
    given = module.compute(**clips, num_labels=3, ignore_index=9)
    assert given == load("avs_semantic", num_labels=3, ignore_index=9).compute(**clips)
    assert module.metrics.num_labels == 71
    module.add_batch(predictions=predictions, references=predictions)
    with pytest.raises(ValueError, match="4 clips were added with num_labels=71.*Pass these to evaluate.load"):
        module.compute(num_labels=3)
    assert module.compute(num_labels=71, ignore_index=255)["miou_seen_classes"] == 1


def test_robustness_module_matches_the_accumulator():
    _, masks, labels = make_clips(2)
    audio_types = ["positive", "silence", "noise", "positive"]
    module, metrics = load("avs_robustness"), RobustnessMetrics()
    module.add_batch(predictions=masks, references=labels, audio=audio_types)
    codes = evaluate_module.quantize_probabilities(torch.from_numpy(masks))
    for audio in ("positive", "silence", "noise"):
        clips = [index for index, kind in enumerate(audio_types) if kind == audio]
        metrics[audio].update_predictions(codes[clips], torch.from_numpy(labels[clips]))
    assert module.compute() == metrics.compute()


def test_combined_modules_prefix_shared_names():
    _, masks, labels = make_clips(2)
    combined = evaluate.combine([load("avs_binary"), load("avs_semantic", num_labels=2), load("avs_robustness")])
    combined.add_batch(predictions=masks, references=labels, audio=["positive", "silence"] * 2)
    scores = combined.compute(protocol="dataset")
    assert scores["avs_binary_miou"] == binary_scores(masks, labels, "dataset")["miou"]
    assert 0.0 < scores["avs_semantic_miou"] < 1.0
    assert 0.0 < scores["g_miou"] < 1.0


def test_combined_modules_take_single_clips():
    _, masks, labels = make_clips(2)
    audio = ["positive", "silence", "positive", "noise"]
    combined = evaluate.combine([load("avs_binary"), load("avs_robustness")])
    combined.add_batch(predictions=masks, references=labels, audio=audio)
    expected = combined.compute()
    for prediction, reference, kind in zip(masks, labels, audio, strict=True):
        combined.add(prediction=prediction, reference=reference, audio=kind)
    assert combined.compute() == expected


def test_masks_of_0_and_255_raise():
    _, masks, labels = make_clips(2)
    module = load("avs_binary")
    with pytest.raises(ValueError, match="References contain 255. Divide masks of 0 and 255 by 255, or load"):
        module.add_batch(predictions=masks, references=labels * 255)
    with pytest.raises(ValueError, match=r"from 0.0 to 255.0.*divide masks of 0 and 255 by 255"):
        module.add_batch(predictions=masks * 255, references=labels)
    assert len(module) == 0


def test_ignore_index_is_optional():
    _, masks, labels = make_clips(2)
    module = load("avs_binary", ignore_index=255)
    cropped = binary_scores(masks[..., :4], labels[..., :4])
    labels[..., 4:] = 255
    assert module.compute(predictions=masks, references=labels) == cropped


def test_mismatched_inputs_raise():
    probabilities, masks, labels = make_clips(2)
    with pytest.raises(ValueError, match=r"same number of clips.*'predictions': 4, 'references': 2"):
        load("avs_binary").add_batch(predictions=masks, references=labels[:2])
    with pytest.raises(ValueError, match=r"'references': None"):
        load("avs_binary").add_batch(predictions=masks)
    with pytest.raises(ValueError, match=r"same number of clips for each of \['predictions', 'references', 'audio'\]"):
        load("avs_robustness").add_batch(predictions=masks, references=labels)
    with pytest.raises(ValueError, match="Expected class indices as predictions, got torch.float32"):
        load("avs_semantic", num_labels=2).add_batch(predictions=probabilities, references=labels)


def test_num_process_above_one_raises():
    with pytest.raises(ValueError, match="num_process 1, got 2"):
        load("avs_binary", num_process=2, process_id=0)


@pytest.mark.parametrize("name", NAMES)
def test_readme_example_prints_the_numbers_in_its_comment(
    name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(MODULES.parent.parent)
    example = re.search(r"```python\n(.*?)```", (MODULES / name / "README.md").read_text(), re.DOTALL)[1]
    exec(example, {})
    printed = dict(re.findall(r"'(\w+)': ([\d.]+)", capsys.readouterr().out))
    documented = re.findall(r"(\w+) ([\d.]+)", example.rsplit("#", 1)[1])
    assert len(documented) >= 2
    assert {key: round(float(printed[key]), 4) for key, _ in documented} == {
        key: float(value) for key, value in documented
    }


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """Serve the module folders as Spaces of a user, at the address that `evaluate` requests."""
    for name in NAMES:
        revision = tmp_path / "hub" / "spaces" / "user" / name / "resolve"
        revision.mkdir(parents=True)
        (revision / "main").symlink_to(MODULES / name, target_is_directory=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "hub"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", NAMES)
def test_modules_load_from_the_hub(name: str, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate.config, "HUB_EVALUATE_URL", hub + "/spaces/{path}/resolve/{revision}/{name}")
    monkeypatch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    monkeypatch.setattr(evaluate.config, "DOWNLOADED_EVALUATE_PATH", str(tmp_path / "downloads"))
    module = evaluate.load(f"user/{name}")
    assert module.name == name
    assert isinstance(module, evaluate_module.ClipEvaluation)
