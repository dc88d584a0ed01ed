"""A training run: its start, its loop, its evaluations, and what it writes to its folder.

    run = start_run(read_recipe("smoke"), Path("runs/smoke"))
    print(train(run))

`pcmanet train` does the same with command line options.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DynamoBackend, TorchDynamoPlugin, broadcast_object_list, set_seed
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import PARAM_LIST, AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetProcessor,
)
from modeling_pcmanet.audio_pcmanet import AudioBuffer
from modeling_pcmanet.configuration_encoders import audio_embedding_size, build_audio_config, build_backbone_config
from modeling_pcmanet.configuration_pcmanet import NUM_STAGES
from modeling_pcmanet.media_pcmanet import SAMPLING_OFFSET
from modeling_pcmanet.modeling_audio_encoders import embed_windows, load_strict
from modeling_pcmanet.modeling_pcmanet import PCMANetOutput
from pcmanet.agreement import measure_agreement, write_agreement
from pcmanet.checkpoints import uses_cpu
from pcmanet.dataset_scripts.collation import check_log_mel, real_frames
from pcmanet.dataset_scripts.metrics import ClipMetrics, build_metrics
from pcmanet.dataset_scripts.problems import is_main_process
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES
from pcmanet.dataset_scripts.sounding_shapes.sound import SAMPLING_RATE, SoundMixtures
from pcmanet.files import atomic_folder, find_checkpoint, read_json, recover

from .checkpoints import FOLDER, Checkpoints
from .data import Batch, TrainingData, class_names, load_datasets
from .recipe import DEFAULT_IMAGE_SIZE, Recipe
from .record import RECORD, resume_command, write_record
from .tracking import Tracker


logger = logging.get_logger(__name__)

PREPARATION_TIMEOUT = timedelta(hours=12)  # for the first process to prepare the dataset
RECIPE = "recipe.yaml"
BEST, LAST = "best", "last"
AGREEMENT_CLIPS = 100  # on which masks in bfloat16 are compared; a minute on a CPU with PVT-v2-B5

# The paper numbers its stages from fine to coarse; the network computes them from coarse to fine.
STAGES = tuple(range(NUM_STAGES, 0, -1))

PRETRAINING_BATCH_SIZE = 16  # audio clips per step of `pretrain_audio_encoder`
# After n steps the average keeps at most n / (n + 10) of itself: it covers the last tenth of a short run.
AVERAGE_WARMUP_STEPS = 10


def start_run(
    recipe: Recipe,
    output: Path,
    resume: str | None = None,
    max_steps: int | None = None,
    allow: Sequence[str] = (),
    *,
    needs_test: bool = False,
) -> "Run":
    """Check and build all parts of a run, without writing to its folder. All processes must call this.

    Args:
        recipe: The settings of the run.
        output: The run's folder.
        resume: The folder of a checkpoint or "latest", to resume the run in `output`; None for a new run.
        max_steps: Total number of steps after which to stop; the schedule remains that of the complete run.
        allow: What may differ from the run to resume, see [`Checkpoints`].
        needs_test: Whether the test split is needed too, see [`load_datasets`].

    Returns:
        The run, ready for its next step.

    Raises:
        FileExistsError: If the folder contains a run that is not to be resumed.
        OSError: If the run cannot be resumed.
        ValueError: If the run was started with other settings.
        ValueError: If the recipe does not match the data, the number of processes or a checkpoint to initialize from.
    """
    accelerator = start_accelerator(recipe)
    open_output(output, resume is not None, accelerator)
    set_seed(recipe.seed)
    names, processor = class_names(recipe), build_processor(recipe)
    size = processor.image_processor.size
    network = build_network(recipe, names)
    cast(torch.nn.Module, network).to(memory_format=torch.channels_last)
    freeze_unused(network, processor)
    with main_process_first(accelerator):  # it prepares the cache of the dataset, if there is one
        datasets = load_datasets(recipe, (size["height"], size["width"]), needs_test=needs_test)
    data = TrainingData(
        recipe,
        datasets,
        processor,
        binary=len(names) == 1,
        num_processes=accelerator.num_processes,
        audio_encoder=network.model.audio_encoder if recipe.audio_encoder_is_fixed else None,
    )
    # As the first process sees it, because the same files may have different times on another machine.
    (identity,) = broadcast_object_list([data.identity()])
    checkpoints = Checkpoints(accelerator, output, recipe, identity, allow)
    if recipe.audio_pretraining_clips and not (resume and checkpoints.all()):
        quiet = not accelerator.is_main_process
        pretrain_audio_encoder(network.model.audio_encoder, processor, recipe, accelerator.device, quiet)

    average = start_average(network, recipe.average_decay, accelerator.device)
    network = prepare_for_training(network, recipe, accelerator)
    wrapped, optimizer = accelerator.prepare(network, build_optimizer(network, recipe))
    if recipe.average_decay is not None:
        accelerator.register_for_checkpointing(average)
    # From here on the processes draw different random numbers, for example for the drop path of the backbone.
    set_seed(recipe.seed, device_specific=True)

    run = Run(
        recipe=recipe,
        output=output,
        accelerator=accelerator,
        processor=processor,
        network=network,
        wrapped=wrapped,
        optimizer=optimizer,
        average=average,
        data=data,
        tracker=Tracker(accelerator, output, recipe, names=recipe.trackers),
        checkpoints=checkpoints,
        last_step=data.plan.steps if max_steps is None else min(data.plan.steps, max_steps),
    )
    if resume is not None:
        run.resume(resume)
    return run


def start_accelerator(recipe: Recipe) -> Accelerator:
    """Start Accelerate with the precision and compilation of a recipe."""
    logging.disable_progress_bar()  # of transformers, for files that take a fraction of a second to write
    precision = "no" if recipe.mixed_precision == "none" else recipe.mixed_precision
    # Inductor fails on sizes that it treats as dynamic. A run has few sizes; each is compiled separately.
    dynamo = TorchDynamoPlugin(backend=DynamoBackend.INDUCTOR, dynamic=False) if recipe.compile else None
    accelerator = Accelerator(cpu=uses_cpu(), mixed_precision=precision, dynamo_plugin=dynamo)
    if accelerator.state.deepspeed_plugin is not None:
        # DeepSpeed reads these from a loader that is prepared with the network; this run distributes its clips itself.
        share = recipe.batch_size // (recipe.gradient_accumulation * accelerator.num_processes)
        settings = {"train_micro_batch_size_per_gpu": share, "gradient_clipping": recipe.gradient_clipping or 0.0}
        accelerator.state.deepspeed_plugin.deepspeed_config.update(settings)
    return accelerator


@contextlib.contextmanager
def main_process_first(accelerator: Accelerator, timeout: timedelta = PREPARATION_TIMEOUT) -> Iterator[None]:
    """Run a block in the main process and then in the others, which wait longer than for an exchange of gradients.

    Args:
        accelerator: The processes.
        timeout: Time after which the others end with an error.
    """
    group: Any = None
    if accelerator.num_processes > 1:
        group = torch.distributed.new_group(backend="gloo", timeout=timeout)
    if not accelerator.is_main_process:
        torch.distributed.barrier(group)
    yield
    if accelerator.is_main_process and group is not None:
        torch.distributed.barrier(group)


def open_output(output: Path, resume: bool, accelerator: Accelerator) -> None:
    """Check that the run's folder is free or to be resumed, and remove incomplete files that a killed process left.

    Raises:
        FileExistsError: If there is a run that is not to be resumed, or one that ended and has no checkpoints.
    """
    found = [name for name in (RECIPE, FOLDER, BEST, LAST) if (output / name).exists()]
    # A run that was killed before its first checkpoint has no last weights.
    ended = (output / LAST).is_dir() and not any((output / FOLDER).glob("step-*"))
    if found and (ended or not resume):
        remedy = "Resume it by adding --resume, or choose another --output."
        if ended:
            remedy = f"It has no checkpoint to resume from. Choose another --output, to train on with initialize_from={output / LAST}."
        raise FileExistsError(f"{output} already contains a run ({', '.join(found)}). {remedy}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and output.is_dir():
        recover(output)


def write_recipe(output: Path, recipe: Recipe, accelerator: Accelerator) -> None:
    """Create the run's folder and write the recipe to it."""
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / RECIPE).write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")
    accelerator.wait_for_everyone()


def train(run: "Run", test: Callable[[], object] | None = None) -> str:
    """Train from the run's next step to its end. All processes must call this.

    Args:
        run: The run.
        test: Called at the end of the complete training, when the weights are saved and the processes are still connected.

    Returns:
        How the run ended, in a few lines.

    Raises:
        FloatingPointError: If the loss or a gradient is not finite.
        OSError: If a checkpoint cannot be written.
    """
    write_recipe(run.output, run.recipe, run.accelerator)
    bar = tqdm(
        desc="training",
        unit="step",
        total=run.last_step,
        initial=run.progress.step,
        mininterval=1.0,
        disable=not run.accelerator.is_main_process,
    )
    for batches in run.steps():
        set_learning_rate(run.optimizer, run.recipe, run.progress.step, run.data.plan.steps)
        values = take_step(run, batches)
        run.finish_step(values)
        bar.update()
        best = f"{run.progress.best['miou']:.4f}" if run.progress.best else "none yet"
        bar.set_postfix(loss=f"{values['loss']:.3f}", best=best, refresh=False)
        if run.progress.stopped:
            break
    bar.close()
    return run.finish(test)


def take_step(run: "Run", batches: list[Batch]) -> dict[str, float]:
    """Take one optimizer step.

    The loss is the mean over the annotated frames of all clips of the step, however they are divided among processes and
    batches. Each batch is therefore weighted by its number of annotated frames.

    Args:
        run: The run.
        batches: The batches of this process, see `TrainingData.training_batches`.

    Returns:
        Values to log: loss, learning rate, norm of the gradient, kept ratios.

    Raises:
        FloatingPointError: If the loss or the gradient is not finite.
    """
    accelerator, optimizer = run.accelerator, run.optimizer
    counts = [batch["annotated_frames"].sum() for batch in batches]
    total = _sum_over_processes(torch.stack(counts).sum(), accelerator).clamp(min=1)
    # Of the loss, of the kept ratios of all stages but the last, and of the frames, which weight these ratios.
    sums = torch.zeros(NUM_STAGES + 1, device=accelerator.device)
    for number, (batch, count) in enumerate(zip(batches, counts, strict=True), start=1):
        accelerator.sync_gradients = number == len(batches)
        with contextlib.nullcontext() if accelerator.sync_gradients else accelerator.no_sync(run.wrapped):
            outputs = run.wrapped(**batch)
            # Gradients are averaged over the processes, so the mean over all frames needs their number as a factor.
            accelerator.backward(outputs.loss * (count / total * accelerator.num_processes))
        # Without the clips that only fill up a batch, of which no frame is annotated.
        counted = real_frames(batch) & batch["annotated_frames"].any(dim=1, keepdim=True)
        kept = [(mask.float().mean(dim=(2, 3)) * counted).sum() for mask in outputs.confidence_masks]
        loss_part = outputs.loss.detach().float() * (count / total)
        sums += torch.stack([loss_part, *kept, counted.sum()])
    loss, *kept_sums, frames = _sum_over_processes(sums, accelerator).tolist()
    _check_finite("loss", loss, run)
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), run.recipe.gradient_clipping or math.inf)
    norms = {} if norm is None else {"gradient_norm": float(norm)}  # DeepSpeed may not return it
    if norms and run.recipe.mixed_precision != "fp16":  # whose scaler skips such a step
        _check_finite("norm of the gradient", norms["gradient_norm"], run)
    optimizer.step()
    optimizer.zero_grad()
    values = {"loss": loss, "learning_rate": optimizer.param_groups[0]["lr"], **norms}
    ratios = [kept / frames for kept in kept_sums]
    return values | {f"stage_{stage}/kept_ratio": ratio for stage, ratio in zip(STAGES, ratios, strict=False)}


def _check_finite(name: str, value: float, run: "Run") -> None:
    """Raise FloatingPointError unless a value is finite, before it changes the weights, which a checkpoint would keep."""
    if not math.isfinite(value):
        remedy = "Lower learning_rate, increase warmup_fraction, or set mixed_precision to none"
        raise FloatingPointError(
            f"Expected a finite {name}, got {value} in step {run.progress.step + 1}. {remedy}. {run.checkpoints.resume_hint()}"
        )


def _sum_over_processes(values: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Sum a tensor over the processes; all of them receive the sum."""
    return cast(torch.Tensor, accelerator.reduce(values, "sum"))


@torch.no_grad()
def evaluate(
    network: PCMANetForAudioVisualSegmentation,
    data: TrainingData,
    processor: PCMANetProcessor,
    accelerator: Accelerator,
) -> tuple[dict[str, float], dict[str, np.ndarray] | None]:
    """Evaluate a network on every validation clip once, in float32, as `pcmanet evaluate` does.

    Args:
        network: The network in evaluation mode, not wrapped, with the same weights on every process.
        data: The validation clips.
        processor: Converts logits to masks.
        accelerator: The processes that share the clips. All of them must call this.

    Returns:
        The metrics, equal on every process: those of the final output under the official protocol, `loss`, and for every
        stage (numbered as in the paper, 4 is the coarsest) `stage_N/miou` and, except for the last, `stage_N/kept_ratio`.
        Also the first clip as arguments of `draw_panel` on the main process, and None on the others.

    Raises:
        ValueError: If no frame is annotated.
    """
    num_labels = cast(int, network.config.num_labels)
    metrics: list[ClipMetrics] = [build_metrics(num_labels) for _ in STAGES]
    # Sums over frames: loss and number of annotated frames; kept ratios and number of frames.
    sums = torch.zeros(NUM_STAGES + 2, dtype=torch.float64, device="cpu")
    panel = None
    indices = data.validation_indices(accelerator.process_index)
    bar = tqdm(
        zip(indices, data.validation_batches(indices, accelerator.device), strict=True),
        desc="validation",
        unit="batch",
        total=len(indices),
        leave=False,
        disable=not accelerator.is_main_process,
    )
    for clip_indices, batch in bar:
        outputs = network(**batch)
        for stage_metrics, logits in zip(metrics, outputs.stage_logits, strict=True):
            masks = batch["labels"], batch.get("frame_mask"), batch["annotated_frames"]
            stage_metrics.update(logits.float(), *masks, clip_indices=clip_indices)
        sums += _frame_sums(outputs, batch)
        if panel is None and accelerator.is_main_process:
            panel = _first_clip(outputs, batch, processor)
    if accelerator.num_processes > 1:
        sums = _sum_over_processes(sums.to(accelerator.device), accelerator)
    return _compute(metrics, sums.tolist()), panel


def _frame_sums(outputs: PCMANetOutput, batch: Batch) -> torch.Tensor:
    """Return the sums of one batch, from its means."""
    annotated, frames = batch["annotated_frames"].sum(), real_frames(batch).sum()
    loss, kept_ratios = cast(torch.Tensor, outputs.loss), cast(torch.Tensor, outputs.kept_ratios)
    parts = [loss * annotated, annotated, *(kept_ratios * frames), frames]
    return torch.stack([part.cpu().double() for part in parts])  # MPS has no float64


def _compute(metrics: list[ClipMetrics], sums: list[float]) -> dict[str, float]:
    """Compute the metrics of all processes."""
    loss, annotated, *kept, frames = sums
    if not annotated:
        raise ValueError("Expected annotated validation frames, got none. Add their masks to the table of the data.")
    stages = [stage_metrics.gather().compute() for stage_metrics in metrics]
    values = stages[-1] | {"loss": loss / annotated}
    values |= {f"stage_{stage}/miou": metric["miou"] for stage, metric in zip(STAGES, stages, strict=True)}
    return values | {f"stage_{stage}/kept_ratio": value / frames for stage, value in zip(STAGES, kept, strict=False)}


def _first_clip(outputs: PCMANetOutput, batch: Batch, processor: PCMANetProcessor) -> dict[str, np.ndarray]:
    """Return frames, predicted masks and labels of the first clip of a batch, without padding."""
    real = real_frames(batch)[0].cpu()
    images = processor.image_processor
    pixels = batch["pixel_values"][0].cpu()[real]
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (images.image_mean, images.image_std))
    pixels = (pixels * std + mean).clamp(0, 1) * 255
    masks = processor.post_process_semantic_segmentation(outputs)[0]
    return {
        "frames": pixels.round().byte().permute(0, 2, 3, 1).numpy(),
        "masks": masks.cpu()[real].numpy(),
        "labels": batch["labels"][0].cpu()[real].numpy(),
    }


@dataclass
class Progress:
    """The state of a run, as checkpoints save it.

    Attributes:
        step: Optimizer steps done.
        metrics: Metrics of the last evaluation.
        evaluated_step: The step of the last evaluation.
        best: Metrics of the best evaluation, by mIoU.
        best_step: The step of the best evaluation.
        patience_counter: Evaluations since the best one.
        stopped: Whether early stopping has ended the run.
        seconds: Training time so far, including that before the run was resumed.
    """

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    evaluated_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    patience_counter: int = 0
    stopped: bool = False
    seconds: float = 0.0

    def update(self, metrics: dict[str, float], patience: int | None) -> bool:
        """Add the metrics of an evaluation after the current step.

        Args:
            metrics: The metrics, including `miou`.
            patience: Evaluations without a better mIoU after which the run stops; None never stops it.

        Returns:
            Whether they are the best so far.
        """
        self.metrics, self.evaluated_step = metrics, self.step
        better = not self.best or metrics["miou"] > self.best["miou"]
        if better:
            self.best, self.best_step, self.patience_counter = metrics, self.step, 0
        else:
            self.patience_counter += 1
        self.stopped = patience is not None and self.patience_counter >= patience
        return better


@dataclass
class Run:
    """All parts of a run.

    Attributes:
        recipe: The settings.
        output: Folder of all files.
        accelerator: The processes and the device.
        processor: The processor of the network.
        network: The network, not wrapped.
        wrapped: The network as the training loop calls it.
        optimizer: The optimizer of the trainable weights.
        average: The weights that are evaluated and saved.
        data: The clips, and which of them are in which step.
        tracker: The log.
        checkpoints: The checkpoints to resume from.
        last_step: The step after which to stop.
        progress: The state of the run.
    """

    recipe: Recipe
    output: Path
    accelerator: Accelerator
    processor: PCMANetProcessor
    network: PCMANetForAudioVisualSegmentation
    wrapped: torch.nn.Module
    optimizer: AcceleratedOptimizer
    average: AveragedModel
    data: TrainingData
    tracker: Tracker
    checkpoints: Checkpoints
    last_step: int
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.evaluate_after = evaluation_steps(self.data.plan.steps, recipe.evaluations, recipe.evaluate_from)
        self.started = time.monotonic()

    def resume(self, name: str) -> None:
        """Resume from a checkpoint, or start again if the run was killed before its first one.

        Args:
            name: The folder of a checkpoint, or "latest".

        Raises:
            OSError: If the checkpoint is not found or damaged.
            ValueError: If it belongs to a run with other settings.
        """
        state = self.checkpoints.load(name)
        if state is None:
            self.accelerator.print(f"No checkpoint found in {self.checkpoints.folder}: a new run begins")
            return
        self.progress = Progress(**state["progress"])
        self.tracker.load_state_dict(state["tracker"])
        self.started -= self.progress.seconds
        self._check_best_weights()
        self.accelerator.print(f"Resuming after step {self.progress.step} of {self.data.plan.steps}")

    def _check_best_weights(self) -> None:
        """Forget the best evaluation unless its weights are saved; steps that are repeated may have replaced them."""
        file = self.output / BEST / RECORD
        saved = read_json(file, "Remove its folder.")["step"] if file.is_file() else None
        if self.progress.best and saved != self.progress.best_step:
            found = "not found" if saved is None else f"has the weights of step {saved}, which is repeated"
            self.accelerator.print(
                f"{self.output / BEST} {found}: the best weights are chosen from the remaining evaluations"
            )
            self.progress.best = {}

    def steps(self) -> Iterator[list[Batch]]:
        """Yield the batches of this process for one optimizer step at a time, from the next step on."""
        end = self.progress.step if self.progress.stopped else self.last_step
        process, device = self.accelerator.process_index, self.accelerator.device
        return self.data.training_batches(self.progress.step, end, process, device)

    def finish_step(self, values: dict[str, float]) -> None:
        """Update the weight average and the log after a step, and evaluate or save a checkpoint when it is due.

        Args:
            values: See [`take_step`].
        """
        if self.recipe.average_decay is not None:
            update_average(self.average, self.network)
        self.progress.step += 1
        self.progress.seconds = time.monotonic() - self.started
        self.tracker.log_step(self.progress.step, values)
        if self.progress.step in self.evaluate_after:
            self.evaluate()
        at_end = self.progress.stopped or self.progress.step == self.last_step
        if at_end or self.progress.step % self.recipe.checkpoint_steps == 0:
            state = {"progress": asdict(self.progress), "tracker": self.tracker.state_dict()}
            self.checkpoints.save(self.progress.step, state)

    def averaged_network(self) -> PCMANetForAudioVisualSegmentation:
        """Return the weights to evaluate and save, equal on every process; without average, those of the last step."""
        if self.recipe.average_decay is None:
            update_average(self.average, self.network)
        # Parameters are equal on all processes, but each has its own running statistics of BatchNorm.
        broadcast(self.average.module.buffers())
        return cast(PCMANetForAudioVisualSegmentation, self.average.module)

    def evaluate(self) -> None:
        """Evaluate the averaged weights on the validation clips, and save them if they are the best so far."""
        metrics, panel = evaluate(self.averaged_network(), self.data, self.processor, self.accelerator)
        better = self.progress.update(metrics, self.recipe.early_stopping_patience)
        self.tracker.log_evaluation(self.progress.step, metrics)
        if panel is not None:
            id2label = cast(dict[int, str], self.network.config.id2label)
            self.tracker.log_overlays(self.progress.step, **panel, id2label=id2label)
        if better:
            self.save_weights(BEST)

    def save_weights(self, name: str) -> None:
        """Save the averaged weights with their processor and metrics, for `from_pretrained`.

        Args:
            name: Name of the folder in `output`.
        """
        averaged, progress = self.averaged_network(), self.progress
        if self.accelerator.is_main_process:
            record = {
                "validation": progress.metrics,
                "validation_step": progress.evaluated_step,
                "step": progress.step,
                "clips": self.data.plan.clips_before(progress.step),
                "minutes": round(progress.seconds / 60, 1),
                "processes": self.accelerator.num_processes,
                "recipe": self.recipe.to_dict(),
                "datasets": self.data.dataset_ids,
            }
            with self.checkpoints.explain_full_disk(self.output / name):
                save_model(self.output / name, averaged, self.processor, record)

    @property
    def is_complete(self) -> bool:
        """Whether no step is left, or the training stopped early because it no longer improved."""
        return self.progress.stopped or self.progress.step == self.data.plan.steps

    def finish(self, test: Callable[[], object] | None = None) -> str:
        """Save the last weights, test a complete run, close the trackers and return how the run ended."""
        self.save_weights(LAST)
        if self.progress.best and self.is_complete and self.accelerator.is_main_process:
            self._measure_agreement(self.output / BEST)
        self.accelerator.wait_for_everyone()
        if test is not None and self.is_complete:
            test()
        self.accelerator.end_training()
        return self._report()

    def _measure_agreement(self, folder: Path) -> None:
        """Measure on validation clips how well bfloat16 and float32 masks agree, and write it to a configuration."""
        model = load_strict(PCMANetForAudioVisualSegmentation, folder, dtype=torch.float32)
        cast(nn.Module, model).to(self.accelerator.device)
        indices = self.data.validation_indices(0)[: math.ceil(AGREEMENT_CLIPS / self.recipe.evaluation_batch_size)]
        batches = self.data.validation_batches(indices, self.accelerator.device)
        write_agreement(folder, measure_agreement(model, batches))

    def _report(self) -> str:
        progress, steps, best = self.progress, self.data.plan.steps, "Not evaluated yet"
        if progress.best:
            best = f"Best mIoU on validation: {progress.best['miou']:.4f} (after step {progress.best_step})"
        if progress.stopped:
            end = f"Stopped early after step {progress.step} of {steps}: "
            end += f"{progress.patience_counter} evaluations without a better mIoU"
        elif progress.step < steps:
            end = f"Stopped after step {progress.step} of {steps}. Resume with: {resume_command()}"
        else:
            end = f"Finished after {steps} steps, {progress.seconds / 60:.1f} minutes"
        folders = [str(self.output / name) for name in (BEST, LAST) if name == LAST or progress.best]
        return f"{best}\n{end}\nWeights: {', '.join(folders)}"


def evaluation_steps(steps: int, evaluations: int, evaluate_from: float) -> set[int]:
    """Return the steps after which to evaluate: evenly spaced, the last one at the end.

    Args:
        steps: Number of steps of the complete run.
        evaluations: Number of evaluations, including those that are skipped.
        evaluate_from: Fraction of the run before which evaluations are skipped.
    """
    spaced = {round(steps * (number + 1) / evaluations) for number in range(evaluations)}
    # A quotient, because a product such as 100 * 0.07 is rounded to more than 7.
    return {step for step in spaced if step > 0 and step / steps >= evaluate_from}


def save_model(
    folder: Path, network: PCMANetForAudioVisualSegmentation, processor: PCMANetProcessor, record: dict[str, Any]
) -> None:
    """Save weights, processor and metrics.json. One process calls this.

    Args:
        folder: The folder; replaced if it exists, never visible while it is incomplete.
        network: The network, not wrapped.
        processor: Its processor.
        record: The content of metrics.json in addition to the command and the environment.
    """
    with atomic_folder(folder, overwrite=True) as temporary:
        network.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        write_record(temporary, record)


# The network: initial weights, normalization, optimizer, learning rate and weight average.


def build_processor(recipe: Recipe) -> PCMANetProcessor:
    """Build the processor of a recipe: that of the checkpoint to initialize from, or that of its backbones.

    Raises:
        OSError: If a folder or Hub id is not found.
        ValueError: If `audio_windows` or `log_mel` do not fit the audio encoder.
    """
    if recipe.initialize_from is not None:
        processor = PCMANetProcessor.from_pretrained(find_checkpoint(recipe.initialize_from))
        if recipe.image_size is not None:
            processor.image_processor.size = {"height": recipe.image_size, "width": recipe.image_size}
    else:
        side = recipe.image_size or DEFAULT_IMAGE_SIZE
        # Only the parts, because `configuration` may have fields that fit a pretrained backbone but not the preset's.
        preset = PCMANetConfig.from_preset(recipe.preset)
        visual = build_backbone_config(recipe.configuration.get("backbone_config") or preset.backbone_config)
        audio = build_audio_config(recipe.configuration.get("audio_config") or preset.audio_config)
        processor = PCMANetProcessor.from_pretrained_backbones(
            _find_weights(recipe.visual_backbone) or visual,
            _find_weights(recipe.audio_encoder) or audio,
            audio_windows=recipe.audio_windows,
            size={"height": side, "width": side},
        )
    if isinstance(processor.feature_extractor, PCMANetFeatureExtractor):
        # AVSBench fills missing audio of its semantic clips with zeros, and repeats the last patch of its other clips.
        zeros = recipe.data is not None and recipe.task == "avss"
        processor.feature_extractor.short_clip = "zeros" if zeros else "repeat_last"
    if recipe.log_mel:
        check_log_mel(processor)
    return processor


def build_network(recipe: Recipe, names: Sequence[str]) -> PCMANetForAudioVisualSegmentation:
    """Build a network from a preset, from pretrained backbones, or from a checkpoint whose heads may differ.

    Args:
        recipe: The recipe.
        names: Names of the classes, background first; a single one for binary masks.

    Returns:
        The network, on the CPU, with the parts in `recipe.freeze` frozen.

    Raises:
        OSError: If a checkpoint is not found.
        ValueError: If a field of the configuration is wrong, or weights are missing or do not fit.
    """
    settings = {
        **recipe.configuration,
        "freeze_audio_encoder": "audio_encoder" in recipe.freeze,
        "bfloat16_agreement": None,  # measured for the trained weights
        **label_settings(names),
    }
    if recipe.audio_windows is not None:
        settings["num_audio_windows"] = len(recipe.audio_windows)
    network = _initialize(recipe, settings)
    if "backbone" in recipe.freeze:
        network.model.backbone.requires_grad_(False)
    if recipe.gradient_checkpointing:
        # transformers 5.23 has renamed the method, and the old name warns.
        getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)()
    return network


def label_settings(names: Sequence[str]) -> dict[str, dict]:
    """Return `id2label` and `label2id` of a configuration for these class names."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def _initialize(recipe: Recipe, settings: dict[str, Any]) -> PCMANetForAudioVisualSegmentation:
    """Build the network with its initial weights."""
    if recipe.initialize_from is not None:
        return load_checkpoint(
            recipe.initialize_from,
            settings,
            reinitialize_mismatched=recipe.reinitialize_mismatched,
            remedy="Set `configuration` to that of the checkpoint, or reinitialize these weights: "
            "--set reinitialize_mismatched=true",
        )
    return PCMANetForAudioVisualSegmentation.from_pretrained_backbones(
        _find_weights(recipe.visual_backbone), _find_weights(recipe.audio_encoder), preset=recipe.preset, **settings
    )


def _find_weights(name: str | None) -> str | None:
    """Return the folder or Hub id of a pretrained part; raise FileNotFoundError for a folder that does not exist."""
    return None if name is None else find_checkpoint(name)


def load_checkpoint(
    name: str,
    settings: dict[str, Any],
    *,
    reinitialize_mismatched: bool = False,
    remedy: str = "Use a checkpoint with this configuration.",
) -> PCMANetForAudioVisualSegmentation:
    """Load a checkpoint whose heads and audio classifier may have other classes; it may also lack the audio classifier.

    Their weights are used if the number of classes is the same, each class with those of the same name.

    Args:
        name: Folder or Hub id (owner/name).
        settings: Fields of the configuration that differ from the checkpoint's. Its description, which says what the
            checkpoint knows, is not kept.
        reinitialize_mismatched: Whether to reinitialize weights that are missing or have another shape.
        remedy: What to do about weights that do not fit, for the error.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If any other weights differ; the message lists their names and shapes.
    """
    checkpoint, settings = find_checkpoint(name), {"description": None, **settings}
    loaded: Any = PCMANetForAudioVisualSegmentation.from_pretrained(
        checkpoint, ignore_mismatched_sizes=True, output_loading_info=True, **settings
    )
    network, loading = loaded
    found = [(key, "is missing") for key in loading["missing_keys"]]
    found += [(key, f"is {tuple(given)}, expected {tuple(own)}") for key, given, own in loading["mismatched_keys"]]
    found = [one for one in found if not any(part in one[0] for part in (".head.", ".audio_classifier."))]
    found += [(key, "is not part of the network") for key in loading["unexpected_keys"]]
    problems = sorted(" ".join(one) for one in found)
    if problems and not reinitialize_mismatched:
        listed = "\n  ".join(problems)
        raise ValueError(f"{name} does not fit this network, {len(problems)} weights differ:\n  {listed}\n{remedy}")
    known = cast(dict[int, str], PCMANetConfig.from_pretrained(checkpoint).id2label)
    moved = _move_classes(network, list(known.values()))
    if moved and is_main_process():
        logger.warning(
            f"{name} has other classes or another order of them: weights of {', '.join(moved)} moved to the class of that name"
        )
    return network


@torch.no_grad()
def _move_classes(network: PCMANetForAudioVisualSegmentation, known: Sequence[str]) -> list[str]:
    """Give every class of the heads and of the audio classifier the weights that a checkpoint has for its name.

    The other classes get the remaining weights. With another number of classes, all weights are new.

    Args:
        network: The network, with the weights in the order of the checkpoint; changed in place.
        known: Names of the classes of the checkpoint.

    Returns:
        Names of the classes whose weights had another position.
    """
    names = list(cast(dict[int, str], network.config.id2label).values())
    if len(names) != len(known):
        return []
    remaining = (index for index, name in enumerate(known) if name not in names)
    order = [known.index(name) if name in known else next(remaining, place) for place, name in enumerate(names)]
    heads = [cast(nn.Sequential, stage.head) for stage in network.model.stages]
    heads += [] if network.model.audio_classifier is None else [network.model.audio_classifier]
    for values in (values for head in heads for values in head[-1].parameters()):
        values.copy_(values[order])
    return [name for place, name in enumerate(names) if name in known and order[place] != place]


def freeze_unused(network: PCMANetForAudioVisualSegmentation, processor: PCMANetProcessor) -> list[str]:
    """Freeze the parameters that get no gradient, for which distributed training would wait in every step.

    Backbones have such parameters beyond their feature maps, for example the last norm of Swin or the mask token of
    DINOv2. With `masked_query_gradients=False`, the attention of selected queries is not trained, as published.

    Args:
        network: The network, on the CPU.
        processor: Makes the frame on which the loss is computed once.

    Returns:
        Names of the parameters that were trainable before.
    """
    size, rate = processor.image_processor.size, processor.feature_extractor.sampling_rate
    frame = np.zeros((1, size["height"], size["width"], 3), np.uint8)
    audio: dict[str, Any] = {"audio": np.zeros(rate, np.float32), "sampling_rate": rate}
    batch = processor(videos=frame, segmentation_maps=frame[..., 0], return_tensors="pt", **audio)
    trainable = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    mode = network.training
    network.eval()  # draws no random numbers and changes no statistics
    gradients = torch.autograd.grad(network(**batch).loss, list(trainable.values()), allow_unused=True)
    network.train(mode)
    unused = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    for name in unused:
        trainable[name].requires_grad_(False)
    return unused


def pretrain_audio_encoder(
    audio_encoder: PreTrainedModel, processor: PCMANetProcessor, recipe: Recipe, device: torch.device, quiet: bool
) -> None:
    """Train the audio encoder to classify the sounds in every second, with a linear layer that is then discarded.

    Every process does the same work on the same audio, because the work is short. Then all of them take the weights
    of the first one: on GPUs, equal steps can differ in the last digits, and FSDP2 would join shards of different
    weights.

    Args:
        audio_encoder: Trained in place. Afterwards the same parameters require gradients as before.
        processor: Computes the audio features.
        recipe: The number of audio clips, the learning rate and the weight decay.
        device: Where to compute.
        quiet: Whether to hide the progress bar.
    """
    trainable = [parameter.requires_grad for parameter in audio_encoder.parameters()]
    cast(nn.Module, audio_encoder.requires_grad_(True)).to(device)
    num_windows = len(processor.audio_windows or [None])
    width = num_windows * audio_embedding_size(audio_encoder.config)
    classifier = nn.Linear(width, len(CLASSES)).to(device)
    parameters = [*audio_encoder.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    loader = DataLoader(
        SoundMixtures(recipe.audio_pretraining_clips, seed=recipe.seed),
        batch_size=min(PRETRAINING_BATCH_SIZE, recipe.audio_pretraining_clips),
        # Not a closure, because it is pickled for workers that are not forked.
        collate_fn=functools.partial(_collate_audio, processor),
        num_workers=recipe.num_workers,
        drop_last=True,
    )
    bar = tqdm(loader, desc="audio pretraining", unit="step", mininterval=5.0, disable=quiet)
    for step, (features, classes) in enumerate(bar):
        factor = learning_rate_factor(step, len(loader), "cosine", recipe.warmup_fraction)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        logits = classifier(embed_windows(audio_encoder, features.to(device), num_windows))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, classes.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    # Otherwise the gradient of the last step would be added to that of the first training step.
    optimizer.zero_grad()
    for parameter, required in zip(audio_encoder.parameters(), trainable, strict=True):
        parameter.requires_grad_(required)
    broadcast([*audio_encoder.parameters(), *audio_encoder.buffers()])


@torch.no_grad()
def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Replace the values of tensors with those of the first process, if there are several."""
    if torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


def _collate_audio(
    processor: PCMANetProcessor, clips: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the audio features of all seconds, and the classes that sound in each."""
    alignment = "consecutive" if processor.audio_windows is None else None
    features = []
    for waveform, classes in clips:
        frames = [(second + SAMPLING_OFFSET,) for second in range(len(classes))]
        audio = AudioBuffer([(waveform, SAMPLING_RATE)], processor.feature_extractor.sampling_rate)
        features += [one for _, one in processor.audio_features(frames, audio, alignment)]
    return torch.stack(features), torch.from_numpy(np.concatenate([classes for _, classes in clips])).float()


def prepare_for_training(
    network: PCMANetForAudioVisualSegmentation, recipe: Recipe, accelerator: Accelerator
) -> PCMANetForAudioVisualSegmentation:
    """Set the network to training mode, with the statistics of BatchNorm that `recipe.batch_norm` selects.

    Args:
        network: The network; changed in place, or replaced if statistics are synchronized.
        recipe: The recipe.
        accelerator: The number of processes and the device.

    Raises:
        ValueError: If CPU processes are to synchronize statistics, which torch does not support.
    """
    if recipe.batch_norm == "synchronized" and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise ValueError(
                "batch_norm is synchronized, which torch supports on GPUs only. On CPU processes set batch_norm to "
                "local, or with pretrained backbones to frozen_backbone."
            )
        network = cast(PCMANetForAudioVisualSegmentation, nn.SyncBatchNorm.convert_sync_batchnorm(network))
    network.train()
    if "backbone" in recipe.freeze:
        network.model.backbone.eval()
    frozen = {"frozen": network, "frozen_backbone": network.model.backbone}.get(recipe.batch_norm)
    for module in [] if frozen is None else frozen.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return network


def build_optimizer(network: PCMANetForAudioVisualSegmentation, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimizer of all trainable parameters; a backbone with its own learning rate is a separate group."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    trainable = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    if recipe.backbone_learning_rate is None:
        groups = [{"params": [parameter for _, parameter in trainable], "peak": recipe.learning_rate}]
    else:
        rates = {False: recipe.learning_rate, True: recipe.backbone_learning_rate}
        groups = [
            {"params": [weight for name, weight in trainable if ("backbone." in name) == inside], "peak": rate}
            for inside, rate in rates.items()
        ]
    return kind(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,  # one pass over weights, gradients and moments
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, steps: int) -> None:
    """Set the learning rate of every parameter group for a step (from 0) out of `steps`."""
    factor = learning_rate_factor(step, steps, recipe.schedule, recipe.warmup_fraction)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def learning_rate_factor(step: int, steps: int, schedule: str, warmup_fraction: float) -> float:
    """Return the fraction of the peak learning rate: a linear warm-up, then constant or a cosine to 0.

    Args:
        step: Index of the step, from 0.
        steps: Number of steps of the complete training.
        schedule: "constant" or "cosine".
        warmup_fraction: Fraction of the steps in which the learning rate rises.

    Returns:
        A factor in [0, 1].
    """
    warmup = max(1, round(steps * warmup_fraction)) if warmup_fraction else 0
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def start_average(
    network: PCMANetForAudioVisualSegmentation, decay: float | None, device: torch.device
) -> AveragedModel:
    """Copy a network for the moving average of its weights and of the statistics of BatchNorm.

    The copy is complete on every process and never wrapped. Evaluating it therefore needs no communication between the
    processes and computes in float32, and saving it needs no gathering.

    Args:
        network: The network before `accelerator.prepare`.
        decay: Fraction of the average that each update keeps. Update n keeps at most n / (n + 10), so that the first one
            replaces the initial weights. With None, every update does.
        device: Device of the copy.
    """

    def blend(own: PARAM_LIST, new: PARAM_LIST, _: torch.Tensor | int) -> None:
        updates = int(average.n_averaged)  # which stays on the CPU, so that reading it waits for no device
        # The plain decay would keep mostly the initial weights until 1 / (1 - decay) steps are done.
        keep = min(decay or 0.0, updates / (updates + AVERAGE_WARMUP_STEPS))
        if own[0].is_floating_point():
            torch._foreach_lerp_(own, new, 1 - keep)
        else:
            torch._foreach_copy_(own, new)

    average = AveragedModel(network, multi_avg_fn=blend, use_buffers=True).eval().requires_grad_(False)
    average.module.to(device)
    return average


@torch.no_grad()
def update_average(average: AveragedModel, network: nn.Module) -> None:
    """Add the weights and statistics of the trained network after a step. All processes must call this.

    Args:
        average: See [`start_average`].
        network: The trained network without its wrappers. Its parameters may be sharded (FSDP2) or of another data type.
    """

    def values(own: Iterable[tuple[str, Any]], new: Iterable[tuple[str, Any]]) -> Iterator[torch.Tensor]:
        found = dict(new)
        return (_gather(found[name].detach()).to(tensor.dtype) for name, tensor in own)

    # Everything that `update_parameters` reads from a network.
    complete = SimpleNamespace(
        parameters=lambda: values(average.module.named_parameters(), network.named_parameters()),
        buffers=lambda: values(average.module.named_buffers(), network.named_buffers()),
    )
    average.update_parameters(cast(nn.Module, complete))


def _gather(values: torch.Tensor) -> torch.Tensor:
    """Gather a tensor that is sharded over the processes."""
    return values.full_tensor() if isinstance(values, DTensor) else values
