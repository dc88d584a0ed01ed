"""The tracker: records in TensorBoard and in the log, also after a kill and a resume."""

import errno
import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pcmanet.pipelines.panel import draw_panel
from pcmanet.training.tracking import Tracker


NAMES = {0: "background", 1: "dog", 2: "violin"}


@dataclass
class Recipe:
    name: str = "ours"
    learning_rate: float = 1e-4
    data: Path = Path("AVSBench")


def make(folder: Path, **options) -> Tracker:
    return Tracker(Accelerator(cpu=True), folder, Recipe(), **options)


def end(tracker: Tracker) -> None:
    tracker._accelerator.end_training()


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard" / "pcmanet"), size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = events(folder)
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def panel_arrays(rows: int = 2, side: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return gray frames, masks with class 1 in the left half, and labels with class 2 in the right half and an ignored bottom."""
    frames = np.full((rows, side, side, 3), 120, np.uint8)
    masks, labels = np.zeros((2, rows, side, side), np.int64)
    masks[:, :, : side // 2] = 1
    labels[:, :, side // 2 :] = 2
    labels[:, 3 * side // 4 :] = 255
    return frames, masks, labels


def test_numbers_of_any_library_are_written_to_both_logs(tmp_path):
    tracker = make(tmp_path)
    tracker.log_step(1, {"loss": torch.tensor(0.5), "learning_rate": {"backbone": 1e-5, "head": np.float64(1e-4)}})
    tracker.log_step(2, {"loss": torch.tensor([0.25], requires_grad=True), "gradient_norm": float("inf")})
    tracker.log_evaluation(2, {"official": {"miou": 0.75, "clips": 3}, "kept_ratio": {"stage_4": 0.125}})
    end(tracker)
    assert records(tmp_path) == [
        {"step": 1, "training": {"loss": 0.5, "learning_rate/backbone": 1e-5, "learning_rate/head": 1e-4}},
        {"step": 2, "training": {"loss": 0.25, "gradient_norm": "inf"}},
        {"step": 2, "evaluation": {"official/miou": 0.75, "official/clips": 3, "kept_ratio/stage_4": 0.125}},
    ]
    values = scalars(tmp_path)
    assert values["training/loss"] == [(1, 0.5), (2, 0.25)]
    assert values["training/learning_rate/backbone"] == [(1, pytest.approx(1e-5))]
    assert values["training/gradient_norm"] == [(2, float("inf"))]
    assert values["evaluation/official/miou"] == [(2, 0.75)]
    assert values["evaluation/kept_ratio/stage_4"] == [(2, 0.125)]


def test_recipe_is_written_to_tensorboard(tmp_path):
    tracker = make(tmp_path)
    tracker.log_step(1, {"loss": 1.0})
    end(tracker)
    accumulator = events(tmp_path)
    text = accumulator.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "    name: ours\n    learning_rate: 0.0001\n    data: AVSBench\n"


def test_nothing_is_written_before_the_first_record(tmp_path):
    tracker = make(tmp_path / "run")
    assert tracker.state_dict()["records"] == 0
    assert not (tmp_path / "run").exists()


def test_panel_is_written_to_the_folder_and_to_tensorboard(tmp_path):
    tracker = make(tmp_path)
    tracker.log_overlays(7, *panel_arrays(), id2label=NAMES)
    end(tracker)
    assert records(tmp_path) == [{"step": 7, "overlays": "overlays/step_00000007.png"}]
    (event,) = events(tmp_path).Images("overlays")
    with (
        Image.open(io.BytesIO(event.encoded_image_string)) as logged,
        Image.open(tmp_path / "overlays" / "step_00000007.png") as saved,
    ):
        assert event.step == 7
        assert np.array_equal(np.asarray(logged), np.asarray(saved))
        assert np.array_equal(np.asarray(saved), np.asarray(draw_panel(*panel_arrays(), NAMES)))


def test_an_error_of_the_disk_names_the_overlay(tmp_path, monkeypatch):
    def fill_the_disk(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    tracker = make(tmp_path, names=[])
    with pytest.raises(OSError, match="No space left on device: .*overlays/step_00000007.png"):
        tracker.log_overlays(7, *panel_arrays())
    assert list((tmp_path / "overlays").iterdir()) == []


def test_killed_run_resumes_with_the_log_of_an_uninterrupted_one(tmp_path):
    def log(tracker: Tracker, steps: range, scale: float = 1.0) -> None:
        for step in steps:
            tracker.log_step(step, {"loss": scale / step})
            if step % 2 == 0:
                tracker.log_evaluation(step, {"miou": scale * step / 10})
                tracker.log_overlays(step, *panel_arrays(step))

    complete = make(tmp_path / "complete")
    log(complete, range(1, 7))
    end(complete)

    # Killed at step 6, in the middle of a line, with the last checkpoint taken at step 4 before its evaluation was logged.
    killed = make(tmp_path / "killed")
    log(killed, range(1, 4))
    killed.log_step(4, {"loss": 1 / 4})
    state = json.loads(json.dumps(killed.state_dict()))
    killed.log_evaluation(4, {"miou": 99.0})
    log(killed, range(5, 7), scale=99.0)
    with (tmp_path / "killed" / "log.jsonl").open("a") as log_file:
        log_file.write('{"step": 7, "trai')
    end(killed)

    resumed = make(tmp_path / "killed")
    resumed.load_state_dict(state)
    resumed.log_evaluation(4, {"miou": 4 / 10})
    resumed.log_overlays(4, *panel_arrays(4))
    assert not (tmp_path / "killed" / "overlays" / "step_00000006.png").exists()
    log(resumed, range(5, 7))
    end(resumed)

    assert (tmp_path / "killed" / "log.jsonl").read_bytes() == (tmp_path / "complete" / "log.jsonl").read_bytes()
    assert scalars(tmp_path / "killed") == scalars(tmp_path / "complete")
    shown = [events(tmp_path / name).Images("overlays") for name in ("killed", "complete")]
    assert [[(image.step, image.encoded_image_string) for image in images] for images in shown][0] == [
        (image.step, image.encoded_image_string) for image in shown[1]
    ]
    assert [image.step for image in shown[0]] == [2, 4, 6]


def test_run_without_a_state_starts_a_new_log(tmp_path):
    for loss in (1.0, 2.0):
        tracker = make(tmp_path)
        tracker.log_step(1, {"loss": loss})
        end(tracker)
    assert records(tmp_path) == [{"step": 1, "training": {"loss": 2.0}}]
    assert scalars(tmp_path)["training/loss"] == [(1, 2.0)]


def test_log_of_another_run_is_refused(tmp_path):
    tracker = make(tmp_path)
    tracker.load_state_dict({"step": 3, "records": 2, "run_id": "a"})
    (tmp_path / "log.jsonl").write_text('{"step": 1, "training": {}}\n')
    with pytest.raises(ValueError, match=r"Expected at least 2 records in .*log.jsonl, .* got 1"):
        tracker.log_step(4, {"loss": 1.0})


def test_invalid_line_is_named_in_the_error(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "training": {}}\nrubbish\n')
    with pytest.raises(ValueError, match=r"log.jsonl, line 2 is not valid JSON: b'rubbish"):
        make(tmp_path).log_step(4, {"loss": 1.0})


def test_invalid_records_are_refused(tmp_path):
    tracker = make(tmp_path)
    tracker.log_step(4, {"loss": 1.0})
    with pytest.raises(ValueError, match="Expected a step of at least 4, got 3"):
        tracker.log_step(3, {"loss": 1.0})
    with pytest.raises(TypeError, match="Expected a single number as 'a/loss', got Tensor"):
        tracker.log_step(5, {"a": {"loss": torch.ones(2)}})
    with pytest.raises(RuntimeError, match="Load the checkpoint first"):
        tracker.load_state_dict({"step": 0, "records": 0, "run_id": "a"})
    end(tracker)
    assert len(records(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "Accelerate does not support it"),
        ("aim", "Install its package, or leave it out: --set trackers"),
    ],
)
def test_tracker_that_is_not_installed_is_refused(name, message, tmp_path):
    with pytest.raises(ValueError, match=f"got '{name}'. {message}"):
        make(tmp_path, names=["tensorboard", name])


class CustomTracker(GeneralTracker):
    """A custom tracker, as users write them for Accelerate."""

    name = "custom"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.records = []

    @property
    def tracker(self):
        return self.records

    def store_init_configuration(self, values):
        self.records.append(values)

    def log(self, values, step=None, **kwargs):
        self.records.append((step, values | kwargs))


def test_custom_tracker_of_accelerate(tmp_path):
    custom = CustomTracker()
    tracker = make(tmp_path, names=[custom])
    tracker.log_step(1, {"loss": 1})
    tracker.log_overlays(1, *panel_arrays())
    end(tracker)
    assert custom.records[1:] == [(1, {"training/loss": 1.0})]
    assert not (tmp_path / "tensorboard").exists()


def test_resumed_run_keeps_its_id_on_a_server(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *_, init_kwargs: given.append(init_kwargs["wandb"]))
    first, second = make(tmp_path / "run"), make(tmp_path / "run")
    first.log_step(1, {"loss": 1.0})
    second.load_state_dict(first.state_dict())
    second.log_step(2, {"loss": 1.0})
    recipe = {"name": "ours", "learning_rate": 1e-4, "data": "AVSBench"}
    assert given[0] == {"id": given[1]["id"], "resume": "allow", "name": "run", "config": recipe}


def test_without_trackers_only_the_log_is_written(tmp_path):
    tracker = make(tmp_path, names=[])
    tracker.log_step(1, {"loss": 1.0})
    end(tracker)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_only_the_main_process_writes(tmp_path):
    other = SimpleNamespace(is_main_process=False)
    tracker = Tracker(other, tmp_path / "run", {"name": "ours"})
    tracker.log_step(1, {"loss": 1.0})
    tracker.log_evaluation(1, {"miou": 1.0})
    tracker.log_overlays(1, *panel_arrays())
    tracker.load_state_dict({"step": 5, "records": 3, "run_id": "a"})
    assert not (tmp_path / "run").exists()
