"""`pcmanet train`: every recipe to its end, the files of a run, the loss of a step, and refused settings."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from paired_files import write_paired_data
from PIL import Image
from training_runs import (
    RECIPES,
    TINY_RUN,
    TRAINED_NETWORK,
    assert_same_weights,
    reset_accelerate,
    steps_logged,
    train,
    weights,
)
from transformers import AutoBackbone
from written_trees import write_trees

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
    VGGishConfig,
    VGGishModel,
)
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.dataset_scripts.paired import Library
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundingShapes
from pcmanet.training.recipe import Recipe
from pcmanet.training.run import start_run, take_step


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder, measures_agreement=True, audio_pretraining_clips=16)
    return folder


def error_of(capsys, output: Path, *words: str, **settings) -> str:
    with pytest.raises(SystemExit) as caught:
        train(output, *words, **settings)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["best", "last"])
def test_run_saves_checkpoints_with_processor_and_metrics(name, trained):
    model, loading = PCMANetForAudioVisualSegmentation.from_pretrained(trained / name, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.config.id2label == {0: "sounding"}
    processor = PCMANetProcessor.from_pretrained(trained / name)
    assert processor.image_processor.size == {"height": 32, "width": 32}
    record = json.loads((trained / name / "metrics.json").read_text())
    assert 0 <= record["validation"]["miou"] <= 1
    assert record["validation"]["frames"] == 15
    assert record["clips"] == 2 * record["step"]
    assert record["recipe"]["clips"] == 12
    assert record["step"] == 6 or name == "best"
    agreement = model.config.bfloat16_agreement
    assert agreement is None if name == "last" else 0.5 < agreement <= 1


def test_run_writes_log_recipe_and_overlays(trained):
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert steps_logged(trained) == [1, 2, 3, 4, 5, 6]
    step = records[0]["training"]
    assert set(step) == {"loss", "gradient_norm", "learning_rate", *(f"stage_{n}/kept_ratio" for n in (4, 3, 2))}
    assert step["learning_rate"] == 2e-3 and step["loss"] > 0
    evaluations = [record for record in records if "evaluation" in record]
    assert [record["step"] for record in evaluations] == [3, 6]
    assert {f"stage_{number}/miou" for number in (4, 3, 2, 1)} <= evaluations[0]["evaluation"].keys()
    assert {"miou", "f_score", "loss"} <= evaluations[0]["evaluation"].keys()
    assert Recipe(**yaml.safe_load((trained / "recipe.yaml").read_text())).audio_pretraining_clips == 16
    with Image.open(trained / "overlays" / "step_00000006.png") as panel:
        assert panel.width > 3 * 224


def test_metrics_are_those_of_the_saved_weights(trained):
    from pcmanet.dataset_scripts.collation import ClipCollator
    from pcmanet.dataset_scripts.metrics import BinaryMetrics

    model = PCMANetForAudioVisualSegmentation.from_pretrained(trained / "last").eval()
    collate = ClipCollator(PCMANetProcessor.from_pretrained(trained / "last"), binary=True)
    metrics = BinaryMetrics()
    for clip in SoundingShapes("ms3", "val", length=3, height=32, width=32):
        batch = collate([clip])
        with torch.no_grad():
            metrics.update(model(**batch).logits, batch["labels"])
    record = json.loads((trained / "last" / "metrics.json").read_text())["validation"]
    assert {name: record[name] for name in metrics.compute()} == pytest.approx(metrics.compute(), abs=1e-6)


def test_weights_depend_on_the_seed_alone(trained, tmp_path):
    train(tmp_path / "again", audio_pretraining_clips=16)
    assert_same_weights(trained, tmp_path / "again")
    train(tmp_path / "other", "--max-steps", "1", seed=1)
    other = weights(tmp_path / "other")
    assert any(not torch.equal(values, other[name]) for name, values in weights(trained).items())


def test_semantic_run_is_initialized_from_a_binary_checkpoint(trained, tmp_path):
    train(tmp_path / "run", task="avss", initialize_from=str(trained / "best"), configuration={})
    model = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "run" / "best")
    assert model.config.num_labels == 13
    assert (model.config.id2label[0], model.config.id2label[12]) == ("background", "halved-capsule")
    # The frozen audio encoder is bit-identical to that of the binary checkpoint.
    first, second = weights(trained, "best"), weights(tmp_path / "run", "best")
    audio_encoder = [name for name in first if ".audio_encoder." in name]
    assert len(audio_encoder) == 12
    assert all(torch.equal(first[name], second[name]) for name in audio_encoder)


class Data(dict[str, str]):
    """The folders of a tree of AVSBench for each task, of custom clips and of a VGGish, written when they are first needed."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, name: str) -> str:
        if name == "vggish":
            VGGishModel(VGGishConfig(**TRAINED_NETWORK["audio_config"])).save_pretrained(self.root / "vggish")
            self[name] = str(self.root / "vggish")
        elif name == "folder":
            self[name] = str(write_custom_clips(self.root / "custom"))
        else:
            counts = {"train": 6, "val": 3} if name == "avss" else {"train": 5, "val": 2}
            self[name] = str(write_trees(self.root, **{name: counts}))
        return self[name]


def write_custom_clips(folder: Path) -> Path:
    (folder / "videos").mkdir(parents=True)
    clips = SoundingShapes("ms3", "train", length=4, height=64, width=48, num_frames=2)
    lines = ["video,split,masks"]
    for index, clip in enumerate(clips):
        write_video(
            folder / "videos" / f"{index}.mp4", clips.render_video_frames(index, 8), 8, clip.waveform[None], 16000
        )
        (folder / "masks" / str(index)).mkdir(parents=True)
        for second, mask in enumerate(clip.binary):
            Image.fromarray(mask * 255).save(folder / "masks" / str(index) / f"{second}.png")
        lines.append(f"videos/{index}.mp4,{'train' if index < 3 else 'val'},masks/{index}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    return Data(tmp_path_factory.mktemp("data"))


SMALL = {"configuration": TRAINED_NETWORK, "preset": "tiny", "image_size": 32, "num_workers": 0, "trackers": []}
SHAPES = {"clips": 8, "evaluation_clips": 2, "evaluations": 2}


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("s4", {"epochs": 2, "evaluations": 2}, 4),
        pytest.param("ms3", {"epochs": 2, "evaluations": 2}, 4, marks=pytest.mark.slow),
        pytest.param("avss", {"epochs": 4, "evaluations": 2}, 8, marks=pytest.mark.slow),
        pytest.param(
            "own_folder",
            {"epochs": 2, "evaluations": 2, "early_stopping_patience": None},
            2,
            marks=pytest.mark.slow,
        ),
        ("ours", SHAPES, None),
        pytest.param("sounding_shapes", {**SHAPES, "audio_pretraining_clips": 16}, None, marks=pytest.mark.slow),
        pytest.param("smoke", {"clips": 8}, None, marks=pytest.mark.slow),
    ],
)
def test_every_recipe_trains_to_its_end(name, settings, steps, data, tmp_path, monkeypatch):
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    on_disk = name in ("s4", "ms3", "avss", "own_folder")
    settings = {**recipe, **SMALL, **settings}
    if on_disk:
        inner = {name: value for name, value in TRAINED_NETWORK.items() if name != "audio_config"}
        settings |= {"data": data[recipe["task"]], "audio_encoder": data["vggish"], "configuration": inner}
    # By default, `train` uses the settings of a tiny run; here only those of the recipe count.
    monkeypatch.setattr("training_runs.TINY_RUN", {})
    train(tmp_path / "run", recipe=RECIPES / f"{name}.yaml", **settings)
    record = json.loads((tmp_path / "run" / "last" / "metrics.json").read_text())
    assert record["recipe"]["optimizer"] == recipe.get("optimizer", "adamw")
    assert record["step"] == (steps or 8 // record["recipe"]["batch_size"])
    assert record["validation_step"] == record["step"]
    best = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "run" / "best")
    assert best.config.num_labels == (71 if name == "avss" else 1)
    assert torch.isfinite(torch.cat([values.flatten().float() for values in weights(tmp_path / "run").values()])).all()


@pytest.mark.parametrize("task", ["s4"])
def test_avsbench_with_frozen_pretrained_backbones(task, data, tmp_path):
    config = PCMANetConfig.from_preset("tiny", **TRAINED_NETWORK)
    torch.manual_seed(3)
    backbone = AutoBackbone.from_config(config.backbone_config)
    backbone.save_pretrained(tmp_path / "visual")
    PCMANetImageProcessor(image_std=[0.2] * 3).save_pretrained(tmp_path / "visual")
    VGGishModel(VGGishConfig(**TRAINED_NETWORK["audio_config"])).save_pretrained(tmp_path / "vggish")
    inner = {name: value for name, value in TRAINED_NETWORK.items() if not name.endswith("_config")}
    folders = {"visual_backbone": str(tmp_path / "visual"), "audio_encoder": str(tmp_path / "vggish")}
    settings = {"task": task, "data": data[task], "negative_fraction": 0.0, "freeze": ["audio_encoder", "backbone"]}
    train(tmp_path / "run", **settings, **folders, configuration=inner)
    model = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "run" / "last")
    processor = PCMANetProcessor.from_pretrained(tmp_path / "run" / "last")
    assert processor.image_processor.image_std == (0.2, 0.2, 0.2)
    # The pretrained weights and running statistics are loaded and unchanged.
    trained = model.model.backbone.state_dict()
    for name, values in backbone.state_dict().items():
        assert torch.equal(trained[name], values), name


@pytest.mark.slow  # tests/test_training_data.py tests the cache itself
def test_run_with_cached_embeddings_is_bit_identical_to_one_that_computes_them(data, tmp_path):
    inner = {name: value for name, value in TRAINED_NETWORK.items() if name != "audio_config"}
    settings = {"task": "s4", "data": data["s4"], "audio_encoder": data["vggish"], "negative_fraction": 0.0}
    settings |= {"configuration": inner, "epochs": 2, "evaluations": 1}
    cache = {"audio_cache": str(tmp_path / "cache")}
    train(tmp_path / "plain", **settings)
    train(tmp_path / "computed", **settings, **cache)
    files = sorted((tmp_path / "cache").rglob("*.npy"))
    assert len(files) == 7 and np.load(files[0]).shape == (
        5,
        10,
    )  # training and validation clips; frames, embedding size
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    train(tmp_path / "cached", **settings, **cache)
    assert files[0].read_bytes() == content
    plain, computed, cached = (weights(tmp_path / name) for name in ("plain", "computed", "cached"))
    assert all(torch.equal(computed[key], cached[key]) for key in plain)
    # Without a cache the embeddings of a batch are computed together, which rounds differently.
    assert all(torch.allclose(computed[key], plain[key], rtol=1e-3, atol=1e-4) for key in plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"mixed_precision": "bf16"}, {"gradient_checkpointing": True}, {"compile": True}]
)
def test_cheaper_training_has_the_same_loss_and_resumes(settings, trained, tmp_path):
    train(tmp_path / "run", audio_pretraining_clips=16, **settings)
    loss, expected = (
        json.loads((folder / "log.jsonl").read_text().splitlines()[0])["training"]["loss"]
        for folder in (tmp_path / "run", trained)
    )
    assert loss == pytest.approx(expected, rel=2e-2)
    train(tmp_path / "run", "--resume", audio_pretraining_clips=16, **settings)


def test_loss_is_the_mean_over_annotated_frames_and_kept_ratios_over_their_clips_for_any_accumulation(tmp_path):
    settings = {"batch_size": 4, "batch_norm": "frozen", "average_decay": None}
    network = {**TRAINED_NETWORK, "confidence_threshold": 0.3}
    recipe = Recipe(**{**TINY_RUN, **settings, "configuration": network})
    values = []
    reset_accelerate()
    for cuts in ([(0, 4)], [(0, 1), (1, 4)], [(0, 2), (2, 3), (3, 4)]):
        run = start_run(recipe, tmp_path / str(len(cuts)))
        batch = next(iter(run.steps()))[0]
        batch["annotated_frames"][1, 1:] = False  # four frames fewer than the others
        batch["annotated_frames"][3] = False  # a repeated clip
        batches = [{name: tensor[first:last] for name, tensor in batch.items()} for first, last in cuts]
        values.append(take_step(run, batches))
        # The average is not updated yet, so it holds the weights before the step.
        outputs = run.average(**batch)
        assert values[-1]["loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
        kept = [values[-1][f"stage_{number}/kept_ratio"] for number in (4, 3, 2)]
        expected = run.average(**{name: tensor[:3] for name, tensor in batch.items()}).kept_ratios
        assert kept == pytest.approx(expected.tolist(), rel=1e-5) and 0 < kept[2] < 1
    for other in (1, 2):
        assert values[other] == pytest.approx(values[0], rel=1e-5)


def test_loss_that_is_not_finite_ends_the_run_before_the_weights_change(tmp_path, capsys):
    settings = {"learning_rate": 1e30, "gradient_clipping": None, "warmup_fraction": 0.0, "checkpoint_steps": 1}
    error = error_of(capsys, tmp_path / "run", **settings)
    assert "error: Expected a finite loss, got nan in step 2. Lower learning_rate" in error
    assert f"The last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-00000001'}" in error


def test_gradient_that_is_not_finite_ends_the_run_before_the_weights_change(tmp_path, capsys, monkeypatch):
    backward = Accelerator.backward
    monkeypatch.setattr(Accelerator, "backward", lambda self, loss: backward(self, loss * float("inf")))
    error = error_of(capsys, tmp_path / "run", checkpoint_steps=1)
    assert "error: Expected a finite norm of the gradient, got nan in step 1. Lower learning_rate" in error
    assert "No checkpoint was written yet" in error and not (tmp_path / "run" / "checkpoints").exists()


def test_early_stopping_also_holds_on_resume(tmp_path, capsys):
    # A learning rate so small that no later evaluation is better than the first.
    settings = {"learning_rate": 1e-30, "batch_norm": "frozen", "evaluations": 6, "early_stopping_patience": 2}
    train(tmp_path / "run", **settings)
    assert "Stopped early after step 3 of 6: 2 evaluations without a better mIoU" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()
    train(tmp_path / "run", "--resume", **settings)
    assert "Stopped early after step 3 of 6" in capsys.readouterr().out
    assert steps_logged(tmp_path / "run") == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "folder"}, "task is folder, but data is not set"),
        ({"configuration": {"hidden_sise": 3}}, "Did you mean 'hidden_size'"),
        (
            {"initialize_from": "nowhere"},
            "Checkpoint folder nowhere not found. Give a folder, or a Hub id as owner/name.",
        ),
        ({"visual_backbone": "nowhere"}, "Checkpoint folder nowhere not found."),
        ({"audio_encoder": "./nowhere"}, "Checkpoint folder ./nowhere not found."),
        ({"data": "nowhere", "negative_fraction": 0.0, "freeze": []}, "nowhere"),
        ({"trackers": ["crystal_ball"]}, "'crystal_ball'"),
    ],
)
def test_invalid_settings_are_refused(settings, message, tmp_path, capsys):
    assert message in error_of(capsys, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_missing_test_split_is_an_error_before_the_training(data, tmp_path, capsys):
    settings = {"task": "ms3", "data": data["ms3"], "negative_fraction": 0.0, "freeze": []}
    message = error_of(capsys, tmp_path / "run", "--test", **settings)
    assert "No clips of split 'test' found" in message and "it has clips of" in message
    assert not (tmp_path / "run").exists()
    message = error_of(capsys, tmp_path / "run", "--test", "6", **settings)
    assert f"--test 6: a number of clips applies to paired data only, but data is {data['ms3']}" in message


def test_damaged_test_clip_is_an_error_before_the_training(tmp_path, capsys):
    tree = write_trees(tmp_path / "tree", ms3={"train": 2, "val": 1, "test": 2})
    mask = sorted(tree.rglob("gt_masks/test/*/*_2.png"))[-1]
    Image.fromarray(np.full((224, 224), 9, np.uint8)).save(mask)
    settings = {"task": "ms3", "data": str(tree), "freeze": [], "epochs": 1, "evaluations": 1}
    assert str(mask) in error_of(capsys, tmp_path / "run", "--test", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_split_without_annotated_frames_is_an_error_before_the_training(split, data, tmp_path, capsys):
    clips = shutil.copytree(data["folder"], tmp_path / "clips")
    splits = ["train", "train", "val", "test"]
    lines = [
        f"videos/{index}.mp4,{name},{'' if name == split else f'masks/{index}'}" for index, name in enumerate(splits)
    ]
    (clips / "clips.csv").write_text("\n".join(["video,split,masks", *lines]) + "\n")
    settings = {"task": "folder", "data": str(clips), "freeze": [], "epochs": 1, "evaluations": 1}
    message = error_of(capsys, tmp_path / "run", "--test", **settings)
    assert (
        f"Expected annotated frames in split '{split}' of {clips}, got none in its {splits.count(split)} clips"
        in message
    )
    assert not (tmp_path / "run").exists()


def test_test_is_as_complete_as_for_published_data_and_its_failure_does_not_prevent_the_upload(
    data, tmp_path, capsys, monkeypatch
):
    clips = shutil.copytree(data["folder"], tmp_path / "clips")
    (clips / "clips.csv").write_text((clips / "clips.csv").read_text().replace("2.mp4,train", "2.mp4,test"))
    (clips / "classes.txt").write_text("background\nring\n")
    for path in clips.rglob("masks/*/*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    commands, published = [], []
    monkeypatch.setattr("pcmanet.cli.train.create_repository", lambda *_, **__: None)
    monkeypatch.setattr("pcmanet.cli.train.publish", lambda publication: published.append(publication) or "there")

    def fail(arguments):
        commands.append(arguments.words)
        raise ValueError("no space left")

    monkeypatch.setattr("pcmanet.cli.evaluate.run", fail)
    settings = {"task": "folder", "data": str(clips), "freeze": [], "epochs": 1, "evaluations": 1}
    message = error_of(capsys, tmp_path / "run", "--test", "--push-to-hub", "me/ring", **settings)
    (command,) = commands
    assert "--per-class" in command and "--clips" not in command
    assert f"Repeat the test with: pcmanet {shlex.join(command)}\n" in message and "error: no space left" in message
    (publication,) = published
    assert (publication.folder, publication.evaluations) == (tmp_path / "run" / "best", ())


@pytest.mark.parametrize("settings", [{"learning_rat": 1}, {"data": "nowhere.yaml", "task": "ms3", "freeze": []}])
def test_nothing_is_created_on_the_hub_for_a_wrong_recipe(settings, tmp_path, capsys, monkeypatch):
    created = []
    monkeypatch.setattr("pcmanet.cli.train.create_repository", lambda *names, **_: created.append(names))
    error_of(capsys, tmp_path / "run", "--push-to-hub", "me/new", **settings)
    assert not created


def test_nothing_is_written_for_a_repository_that_cannot_be_created(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise ValueError("wrong token")

    monkeypatch.setattr("pcmanet.cli.train.create_repository", fail)
    assert "wrong token" in error_of(capsys, tmp_path / "run", "--push-to-hub", "me/new")
    assert not (tmp_path / "run").exists()


def test_paired_data_without_test_photos_are_an_error_before_the_training(tmp_path, capsys):
    data = write_paired_data(tmp_path, splits={"val": 0.2, "test": 0.0})
    settings = {"task": "ms3", "data": str(data), "negative_fraction": 0.0, "freeze": []}
    message = error_of(capsys, tmp_path / "run", "--test", "2", **settings)
    assert f"--test: No photos with an object of any class in split 'test' of {data}. Set `splits`" in message
    assert not (tmp_path / "run").exists()


def test_paired_data_are_read_once_before_the_training(tmp_path, monkeypatch):
    data, read = write_paired_data(tmp_path), []
    first = Library.__init__
    monkeypatch.setattr(Library, "__init__", lambda library, *a, **k: (read.append(a), first(library, *a, **k))[1])
    monkeypatch.setattr("pcmanet.cli.train.train", lambda run, _: f"{run.data.plan.steps} steps")
    train(tmp_path / "run", "--test", "2", task="ms3", data=str(data), negative_fraction=0.0, freeze=[])
    assert len(read) == 1
