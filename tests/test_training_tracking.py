"""The tracker: what stands in TensorBoard's files, in the log and in the panel, also after a kill and a resume."""

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


def pictures(rows: int = 2, side: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey frames; the left half of the prediction is class 1, the right half of the truth class 2, its bottom unknown."""
    frames = np.full((rows, side, side, 3), 120, np.uint8)
    masks, labels = np.zeros((2, rows, side, side), np.int64)
    masks[:, :, : side // 2] = 1
    labels[:, :, side // 2 :] = 2
    labels[:, 3 * side // 4 :] = 255
    return frames, masks, labels


def test_numbers_of_any_library_reach_both_logs(tmp_path):
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
    seen = scalars(tmp_path)
    assert seen["training/loss"] == [(1, 0.5), (2, 0.25)]
    assert seen["training/learning_rate/backbone"] == [(1, pytest.approx(1e-5))]
    assert seen["training/gradient_norm"] == [(2, float("inf"))]
    assert seen["evaluation/official/miou"] == [(2, 0.75)]
    assert seen["evaluation/kept_ratio/stage_4"] == [(2, 0.125)]


def test_the_recipe_stands_in_tensorboard(tmp_path):
    tracker = make(tmp_path)
    tracker.log_step(1, {"loss": 1.0})
    end(tracker)
    accumulator = events(tmp_path)
    text = accumulator.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "    name: ours\n    learning_rate: 0.0001\n    data: AVSBench\n"


def test_nothing_is_made_before_something_is_logged(tmp_path):
    tracker = make(tmp_path / "run")
    assert tracker.state_dict()["records"] == 0
    assert not (tmp_path / "run").exists()


def test_a_panel_lies_in_the_folder_and_in_tensorboard(tmp_path):
    tracker = make(tmp_path)
    tracker.log_overlays(7, *pictures(), id2label=NAMES)
    end(tracker)
    assert records(tmp_path) == [{"step": 7, "overlays": "overlays/step_00000007.png"}]
    (event,) = events(tmp_path).Images("overlays")
    with (
        Image.open(io.BytesIO(event.encoded_image_string)) as seen,
        Image.open(tmp_path / "overlays" / "step_00000007.png") as saved,
    ):
        assert event.step == 7
        assert np.array_equal(np.asarray(seen), np.asarray(saved))
        assert np.array_equal(np.asarray(saved), np.asarray(draw_panel(*pictures(), NAMES)))


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path):
    def log(tracker: Tracker, steps: range, scale: float = 1.0) -> None:
        for step in steps:
            tracker.log_step(step, {"loss": scale / step})
            if step % 2 == 0:
                tracker.log_evaluation(step, {"miou": scale * step / 10})
                tracker.log_overlays(step, *pictures(step))

    whole = make(tmp_path / "whole")
    log(whole, range(1, 7))
    end(whole)

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
    resumed.log_overlays(4, *pictures(4))
    assert not (tmp_path / "killed" / "overlays" / "step_00000006.png").exists()
    log(resumed, range(5, 7))
    end(resumed)

    assert (tmp_path / "killed" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    assert scalars(tmp_path / "killed") == scalars(tmp_path / "whole")
    shown = [events(tmp_path / name).Images("overlays") for name in ("killed", "whole")]
    assert [[(image.step, image.encoded_image_string) for image in images] for images in shown][0] == [
        (image.step, image.encoded_image_string) for image in shown[1]
    ]
    assert [image.step for image in shown[0]] == [2, 4, 6]


def test_a_run_that_loaded_nothing_starts_its_log_anew(tmp_path):
    for loss in (1.0, 2.0):
        tracker = make(tmp_path)
        tracker.log_step(1, {"loss": loss})
        end(tracker)
    assert records(tmp_path) == [{"step": 1, "training": {"loss": 2.0}}]
    assert scalars(tmp_path)["training/loss"] == [(1, 2.0)]


def test_a_log_of_another_run_is_refused(tmp_path):
    tracker = make(tmp_path)
    tracker.load_state_dict({"step": 3, "records": 2, "run_id": "a"})
    (tmp_path / "log.jsonl").write_text('{"step": 1, "training": {}}\n')
    with pytest.raises(ValueError, match=r"log.jsonl has 1 records, but the checkpoint .* had 2"):
        tracker.log_step(4, {"loss": 1.0})


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "training": {}}\nrubbish\n')
    with pytest.raises(ValueError, match=r"log.jsonl, line 2 is no JSON: b'rubbish"):
        make(tmp_path).log_step(4, {"loss": 1.0})


def test_what_cannot_be_logged_is_refused(tmp_path):
    tracker = make(tmp_path)
    tracker.log_step(4, {"loss": 1.0})
    with pytest.raises(ValueError, match="Step 3 was logged after step 4"):
        tracker.log_step(3, {"loss": 1.0})
    with pytest.raises(TypeError, match="'a/loss' must be a single number, got Tensor"):
        tracker.log_step(5, {"a": {"loss": torch.ones(2)}})
    with pytest.raises(RuntimeError, match="load the checkpoint first"):
        tracker.load_state_dict({"step": 0, "records": 0, "run_id": "a"})
    end(tracker)
    assert len(records(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "message"), [("tensorbord", "Accelerate does not know it"), ("aim", "install its package")]
)
def test_a_tracker_that_is_not_there_is_refused(name, message, tmp_path):
    with pytest.raises(ValueError, match=f"'{name}' is not there .{message}"):
        make(tmp_path, names=["tensorboard", name])


class Remembering(GeneralTracker):
    """A tracker of Accelerate's kind, as users write them."""

    name = "remembering"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.seen = []

    @property
    def tracker(self):
        return self.seen

    def store_init_configuration(self, values):
        self.seen.append(values)

    def log(self, values, step=None, **kwargs):
        self.seen.append((step, values | kwargs))


def test_any_tracker_of_accelerate_will_do(tmp_path):
    remembering = Remembering()
    tracker = make(tmp_path, names=[remembering])
    tracker.log_step(1, {"loss": 1})
    tracker.log_overlays(1, *pictures())
    end(tracker)
    assert remembering.seen[1:] == [(1, {"training/loss": 1.0})]
    assert not (tmp_path / "tensorboard").exists()


def test_a_resumed_run_goes_on_under_its_own_name_on_a_server(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *_, init_kwargs: given.append(init_kwargs["wandb"]))
    first, second = make(tmp_path / "run"), make(tmp_path / "run")
    first.log_step(1, {"loss": 1.0})
    second.load_state_dict(first.state_dict())
    second.log_step(2, {"loss": 1.0})
    recipe = {"name": "ours", "learning_rate": 1e-4, "data": "AVSBench"}
    assert given[0] == {"id": given[1]["id"], "resume": "allow", "name": "run", "config": recipe}


def test_without_trackers_there_is_still_the_log(tmp_path):
    tracker = make(tmp_path, names=[])
    tracker.log_step(1, {"loss": 1.0})
    end(tracker)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_only_the_main_process_writes(tmp_path):
    other = SimpleNamespace(is_main_process=False)
    tracker = Tracker(other, tmp_path / "run", {"name": "ours"})
    tracker.log_step(1, {"loss": 1.0})
    tracker.log_evaluation(1, {"miou": 1.0})
    tracker.log_overlays(1, *pictures())
    tracker.load_state_dict({"step": 5, "records": 3, "run_id": "a"})
    assert not (tmp_path / "run").exists()
