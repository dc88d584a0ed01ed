"""Fine-tuning with the Trainer: the effect of its options, measured by numbers."""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback_hub import Failure, HubError, LoopbackHub
from paired_files import RATE, write_paired_data
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_model import tiny_config, tiny_model
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments, pipeline
from written_trees import write_trees

from modeling_pcmanet import (
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
)
from modeling_pcmanet.configuration_encoders import AudioMobileNetConfig
from modeling_pcmanet.feature_extraction_pcmanet import AudioMobileNetFeatureExtractor
from pcmanet.dataset_scripts.avsbench import RowSettings
from pcmanet.dataset_scripts.metrics import SemanticMetrics
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundingShapes
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES as ALL_CLASSES


SCRIPT = Path(__file__).parent.parent / "examples" / "finetune_with_trainer.py"
CLASSES = ["plain-ring", "ringed-star", "speckled-heart"]
CLIP = SCRIPT.parent / "demo.mp4"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("finetune_with_trainer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny binary model with its processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    audio_config = {**tiny_config().audio_config.to_dict(), "num_mel_frames": 96, "num_mel_bins": 64}
    tiny_model(audio_config=audio_config).save_pretrained(folder)
    images = PCMANetImageProcessor(size={"height": 32, "width": 32})
    PCMANetProcessor(images, PCMANetFeatureExtractor()).save_pretrained(folder)
    return folder


@pytest.fixture
def build(script, checkpoint: Path, tmp_path: Path):
    """Build a Trainer as the script does, by default with two steps of four clips."""

    def build_trainer(folder: str = "run", settings: dict[str, Any] | None = None, **arguments: Any):
        tuning = {"checkpoint": str(checkpoint), "classes": CLASSES, "clips": 8, "evaluation_clips": 3}
        options = {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "report_to": [],
            "use_cpu": True,
            "remove_unused_columns": False,
            "batch_eval_metrics": True,
            "metric_for_best_model": "miou",
            "per_device_eval_batch_size": 2,
        }
        options |= arguments
        return script.build_trainer(
            script.FineTuning(**tuning | (settings or {})), TrainingArguments(str(tmp_path / folder), **options)
        )

    return build_trainer


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def keep_statistics(trainer) -> None:
    """Freeze the statistics of BatchNorm, which otherwise depend on how clips are divided into batches."""
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
            module.train = lambda *_mode, module=module: module


def test_accumulation_does_not_change_loss_and_step(build):
    runs = []
    for size, parts in ((4, 1), (2, 2), (1, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "max_grad_norm": 0.0}
        trainer = build(f"parts{parts}", **options)
        # As in AVSS, clips differ in the number of annotated frames.
        trainer.train_dataset = [
            replace(clip, annotated_frames=np.arange(5) <= index % 4)
            for index, clip in enumerate(trainer.train_dataset)
        ]
        keep_statistics(trainer)
        trainer.train()
        assert trainer.state.global_step == 2
        norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        runs.append((losses(trainer), norms, weights(trainer)))
    (plain_losses, plain_norms, plain), *others = runs
    for accumulated_losses, norms, accumulated in others:
        assert accumulated_losses == pytest.approx(plain_losses, rel=1e-5)
        assert norms == pytest.approx(plain_norms, rel=1e-3)
        assert all(torch.allclose(plain[name], accumulated[name], rtol=1e-3, atol=2e-4) for name in plain)


def test_resumed_run_is_bit_identical_to_an_uninterrupted_one(build):
    options = {"num_train_epochs": 2, "save_steps": 3, "max_grad_norm": 1.0, "warmup_steps": 0.25}
    complete = build("complete", settings={"backbone_learning_rate": 1e-3}, **options)
    complete.train()
    assert complete.state.global_step == 4
    stopped = build("complete", settings={"backbone_learning_rate": 1e-3}, **options)
    stopped.train(resume_from_checkpoint=str(Path(complete.args.output_dir) / "checkpoint-3"))
    assert stopped.state.global_step == 4
    assert losses(stopped) == losses(complete)
    assert_equal(weights(stopped), weights(complete))


def test_metrics_are_those_of_the_accumulator(build):
    trainer = build()
    found = trainer.evaluate()
    metrics, model = SemanticMetrics(4), trainer.model.eval()
    processor = trainer.data_collator.args[0].processor
    shapes = SoundingShapes("avss", "val", length=3, seed=trainer.args.seed, height=32, width=32)
    names = ["background", *CLASSES]
    table = torch.tensor([names.index(name) if name in names else 0 for name in ["background", *ALL_CLASSES]])
    for index in range(3):
        batch = processor(
            videos=[shapes[index].frames],
            audio=[shapes[index].waveform],
            sampling_rate=shapes[index].sampling_rate,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits = model(**batch).logits
        metrics.update(logits, table[torch.from_numpy(shapes[index].masks).long()][None])
    expected = metrics.compute()
    assert {name: found[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_best_model_is_loaded_and_the_pipeline_loads_every_checkpoint(build):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    trainer = build(learning_rate=0.3, num_train_epochs=2, **options)
    trainer.train()
    scores = {entry["step"]: entry["eval_miou"] for entry in trainer.state.log_history if "eval_miou" in entry}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert len(scores) == 4 and len(set(scores.values())) > 1
    assert trainer.state.best_metric == scores[best]
    folder = Path(trainer.args.output_dir) / f"checkpoint-{best}"
    saved = load_file(folder / "model.safetensors")
    loaded = weights(trainer)
    assert_equal({name: loaded[name] for name in saved}, saved)
    assert trainer.evaluate()["eval_miou"] == pytest.approx(scores[best])
    segmenter = pipeline("audio-visual-segmentation", model=str(folder), device="cpu")
    assert segmenter.model.config.id2label == dict(enumerate(["background", *CLASSES]))
    assert [frame["timestamp"] for frame in segmenter(str(CLIP))][:2] == [0.92, 1.92]


@pytest.mark.slow
def test_early_stopping(build):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no", "learning_rate": 0.0}
    trainer = build(settings={"early_stopping_patience": 2}, num_train_epochs=10, **options)
    keep_statistics(trainer)
    trainer.train()
    assert trainer.state.global_step == 3  # one evaluation to beat, two that do not


def test_resumed_early_stopping_counts_on_with_the_requested_patience(build):
    trainer = build(settings={"early_stopping_patience": 3}, eval_strategy="epoch")
    (callback,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
    saved = {"args": {"early_stopping_patience": 9}, "attributes": {"early_stopping_patience_counter": 2}}
    trainer.state.stateful_callbacks = {"EarlyStoppingCallback": saved}
    trainer._load_callback_state()
    assert (callback.early_stopping_patience, callback.early_stopping_patience_counter) == (3, 2)


def test_early_stopping_can_be_added_to_a_resumed_run(build):
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    build(max_steps=1, **options).train()
    resumed = build(settings={"early_stopping_patience": 2}, max_steps=2, **options)
    resumed.train(resume_from_checkpoint=str(Path(resumed.args.output_dir) / "checkpoint-1"))
    state = json.loads((Path(resumed.args.output_dir) / "checkpoint-2" / "trainer_state.json").read_text())
    assert "EarlyStoppingCallback" in state["stateful_callbacks"]


def test_full_disk_is_an_error_that_names_the_checkpoint_and_removes_it(build):
    trainer = build(save_strategy="steps", save_steps=1, max_steps=2)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(TrainerCallback):  # the disk, after the first checkpoint, which is smaller than that of the optimizer
        def on_save(self, arguments, *_args, **_kwargs):
            size = (Path(arguments.output_dir) / "checkpoint-1" / "optimizer.pt").stat().st_size - 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1][1]))

    trainer.add_callback(Fill)
    folder = Path(trainer.args.output_dir)
    try:
        with pytest.raises(OSError, match="a file was only partly written") as caught:
            trainer.train()
    finally:
        signal.signal(signal.SIGXFSZ, before[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
    good = f"The last good checkpoint is {folder / 'checkpoint-1'}. Resume with: "
    assert str(caught.value).startswith(f"Checkpoint {folder / 'checkpoint-2'} could not be written: ")
    assert good in str(caught.value) and not (folder / "checkpoint-2").exists()


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_weight_and_bf16_changes_little(build):
    runs = {}
    for name, options in {
        "plain": {},
        "checkpointing": {"gradient_checkpointing": True},
        "bf16": {"bf16": True},
    }.items():
        trainer = build(name, **options)
        trainer.train()
        runs[name] = losses(trainer), weights(trainer)
    assert runs["checkpointing"][0] == runs["plain"][0]
    assert_equal(runs["checkpointing"][1], runs["plain"][1])
    assert runs["bf16"][0] != runs["plain"][0]
    assert runs["bf16"][0] == pytest.approx(runs["plain"][0], rel=0.02)


@pytest.mark.slow
def test_tensorboard_has_the_logged_values(build):
    trainer = build(report_to=["tensorboard"], eval_strategy="epoch")
    trainer.train()
    (folder,) = {path.parent for path in Path(trainer.args.output_dir).rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses(trainer))
    (logged,) = [entry["eval_miou"] for entry in trainer.state.log_history if "eval_miou" in entry]
    assert [event.value for event in events.Scalars("eval/miou")] == pytest.approx([logged])


def parse(script, monkeypatch, *words: str):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output_dir", "unused", "--use_cpu", *words])
    return script.parse_args()


def test_options_that_keep_the_best_weights(script, monkeypatch, capsys):
    assert not parse(script, monkeypatch)[1].load_best_model_at_end
    for words in (["--load_best_model_at_end"], ["--early_stopping_patience", "3"]):
        arguments = parse(script, monkeypatch, *words)[1]
        assert arguments.load_best_model_at_end
        assert arguments.eval_strategy == arguments.save_strategy == "epoch"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--eval_strategy", "no"])
    with pytest.raises(SystemExit, match=r"error: .*strategy"):
        script.main()
    with pytest.raises(SystemExit):
        parse(script, monkeypatch, "--help")
    assert "\n    python examples/finetune_with_trainer.py --output_dir runs/semantic " in capsys.readouterr().out


def test_finished_run_is_not_overwritten_and_damage_names_the_last_good_checkpoint(
    script, checkpoint: Path, tmp_path: Path, monkeypatch
):
    words = ["--checkpoint", str(checkpoint), "--classes", *CLASSES, "--clips", "8", "--evaluation_clips", "2"]
    words += ["--output_dir", str(tmp_path / "run"), "--use_cpu", "--report_to", "none", "--num_train_epochs", "2"]
    command = [str(SCRIPT), *words, "--per_device_train_batch_size", "8"]

    def error_of(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit) as stopped:
            script.main()
        return str(stopped.value)

    monkeypatch.setattr(sys, "argv", [*command, "--resume_from_checkpoint", "latest"])
    script.main()  # nothing to resume yet
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    error = error_of()
    assert error.startswith(f"error: {tmp_path / 'run'} already contains a run (checkpoint-1, checkpoint-2, model.")
    assert "Resume it with --resume_from_checkpoint latest, or choose another --output_dir." in error
    (tmp_path / "run" / "checkpoint-2" / "model.safetensors").write_bytes(b"damaged")
    error = error_of("--resume_from_checkpoint", "latest")
    assert "checkpoint-2 is damaged: " in error and "model.safetensors has 7 bytes instead of" in error
    assert f"The last good checkpoint is {tmp_path / 'run' / 'checkpoint-1'}. Resume with: python " in error
    assert error.endswith(f"--resume_from_checkpoint {tmp_path / 'run' / 'checkpoint-1'}")
    damaged = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path for path in before if after[path] != before[path]} == {damaged} and after.keys() == before.keys()
    assert error_of("--learning_rat", "1") == "2"  # a usage error


def test_seed_determines_the_new_heads(build):
    heads = [build(seed=seed).model.model.stages[0].head[-1].weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_options_of_the_data_reach_the_clips(build, tmp_path: Path):
    root = write_trees(tmp_path, avss={"train": 4, "val": 1})
    next(root.glob("AVSBench_semantic/v1m/*/audio.wav")).write_bytes(b"no wav")
    options = {"data": str(root), "classes": [], "subsets": ["v1s", "v1m"], "binary": True, "on_error": "skip"}
    options |= {"clips": None, "evaluation_clips": None}
    trainer = build(settings=options)
    assert [row["subset"] for row in trainer.train_dataset] == ["v1s", "v1s"]
    assert trainer.model.config.num_labels == 1


def test_recordings_that_stand_in_for_other_classes_get_their_scores(build, tmp_path: Path):
    names = ["bird", "cat", "dog"]
    classes = {name: {"photos": [name], "sounds": [name] if name != "bird" else []} for name in names}
    changes = {"stand_ins": True, "seconds": 1, "sounds": {"matching": 1.0}, "background": 0.0, "second_sound": 0.0}
    settings = {"data": str(write_paired_data(tmp_path, classes=classes, clips=changes)), "classes": []}
    with pytest.raises(ValueError, match=r"paired\.yaml has stand_ins.*got none for bird, cat, dog"):
        build(settings=settings)

    sizes = {"width_multiplier": 0.1, "num_mel_bins": 32, "num_labels": 5, "initializer_range": 0.5}
    groups = {name: [index] for index, name in enumerate(names)}
    tiny_model(audio_config=AudioMobileNetConfig(**sizes, score_groups=groups)).save_pretrained(tmp_path / "scores")
    extractor = AudioMobileNetFeatureExtractor(feature_size=32, sampling_rate=RATE, max_frequency=7000.0)
    images = PCMANetImageProcessor(size={"height": 32, "width": 32})
    PCMANetProcessor(images, extractor, [[0.5, 0.5]]).save_pretrained(tmp_path / "scores")
    trainer = build(settings=settings | {"checkpoint": str(tmp_path / "scores")}, max_steps=1)

    clips, model = trainer.train_dataset, trainer.model.eval()
    number = next(index for index in range(8) if clips[index].events[0].stand_in == "dog")
    batch = trainer.data_collator([clips[number]])
    rest = {name: batch[name] for name in batch if name != "score_order"}
    assert clips[number].events[0].label == "bird"
    plain = model(**rest)
    scores = plain.audio_embeds
    exchanged = {name: rest[name] for name in rest if name != "input_features"} | {
        "audio_embeds": scores[..., [2, 1, 0]]
    }
    torch.testing.assert_close(trainer.compute_loss(model, batch), model(**exchanged).loss)
    assert abs(trainer.compute_loss(model, batch) - plain.loss) > 1e-4
    trainer.train()
    assert trainer.evaluate()["eval_frames"] == 3


@pytest.mark.parametrize(("task", "rule"), [("avss", "zeros"), ("ms3", "repeat_last")])
def test_missing_audio_is_filled_as_by_the_command(task: str, rule: str, build, tmp_path: Path):
    root = write_trees(tmp_path, **{task: {"train": 1, "val": 1}})
    trainer = build(settings={"task": task, "data": str(root), "classes": [], "clips": None, "evaluation_clips": None})
    assert trainer.data_collator.args[0].processor.feature_extractor.short_clip == rule
    with pytest.raises(ValueError, match=f"clips needs generated clips, but data is {root}"):
        build(settings={"task": task, "data": str(root), "clips": 4})


def test_every_option_of_the_rows_is_an_option_of_the_script(script):
    assert {one.name for one in fields(RowSettings)} <= {one.name for one in fields(script.FineTuning)}


def test_bundled_model_is_found_by_its_name(script, tmp_path: Path):
    settings = script.FineTuning(checkpoint="real_world", classes=CLASSES, clips=1, evaluation_clips=1)
    trainer = script.build_trainer(settings, TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to=[]))
    assert trainer.model.config.num_labels == 1 + len(CLASSES)


def test_invalid_classes_and_checkpoints_are_refused(build, tmp_path: Path):
    with pytest.raises(ValueError, match=r"\['unicorn'\] not found in the data"):
        build(settings={"classes": ["unicorn"]})
    with pytest.raises(OSError, match="nowhere"):
        build(settings={"checkpoint": str(tmp_path / "nowhere")})


@pytest.mark.slow
def test_script_uploads_every_save_and_finally_a_model_card(checkpoint: Path, tmp_path: Path):
    with LoopbackHub(tmp_path / "server") as hub:
        command = [sys.executable, str(SCRIPT), "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "run")]
        command += [
            "--classes",
            *CLASSES,
            "--clips",
            "8",
            "--evaluation_clips",
            "2",
            "--use_cpu",
            "--report_to",
            "none",
        ]
        command += ["--num_train_epochs", "2", "--save_strategy", "epoch", "--load_best_model_at_end", "--push_to_hub"]
        command += ["--hub_model_id", "someone/tuned", "--hub_strategy", "every_save", "--hub_always_push"]
        # The uploads of the Trainer fail silently; the last one is repeated.
        hub.failures = [Failure(r"POST .*/commit/", HubError(500, "Internal Error"), times=3)]
        environment = hub.environment(tmp_path / "home")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Uploaded to http" in done.stdout
        repository = hub.repositories["models", "someone/tuned"]
        files = repository.at("main").files
        prepared = tmp_path / "run-hub"
        assert {"README.md", "config.json", "model.safetensors", "processor_config.json"} <= set(files)
        assert set(os.listdir(prepared)) <= set(files)
        record = json.loads((tmp_path / "run" / "metrics.json").read_text())
        card = (prepared / "README.md").read_text()
        assert f"{record['validation']['miou']:.4f}" in card
        assert f"python {SCRIPT} --checkpoint" in card
        model = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "run")
        assert model.config.num_labels == 4
        resumed = subprocess.run(
            [*command, "--resume_from_checkpoint", "latest"],
            env=environment | {"HF_TOKEN": "expired"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert resumed.returncode == 1 and "401" in resumed.stderr
