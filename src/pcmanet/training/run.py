"""One training run with all its parts, put together from a recipe; the loop itself stands in examples/train_pcmanet.py."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import TorchDynamoPlugin, broadcast_object_list, parse_flag_from_env, set_seed
from torch.utils.data import Dataset
from transformers.utils import logging

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from pcmanet.files import recover, written_aside

from .checkpoints import FOLDER, Checkpoints, resume_command
from .data import (
    Batch,
    BatchPlan,
    SeededCollator,
    build_collators,
    build_datasets,
    class_names,
    describe_clips,
    training_batches,
)
from .evaluation import Evaluator
from .network import (
    WeightAverage,
    build_network,
    build_optimizer,
    build_processor,
    pretrain_audio_encoder,
    set_training_mode,
    synchronize_norms,
)
from .recipe import Recipe
from .record import write_record
from .tracking import Tracker


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimizer steps done.
        figures: Of the last evaluation.
        evaluated_step: After which step that was.
        best: Figures of the best evaluation, by mIoU.
        best_step: After which step that was.
        stale: Evaluations since then.
        stopped: Whether early stopping has ended the run.
        seconds: Spent training so far, over all starts.
    """

    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    evaluated_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    stale: int = 0
    stopped: bool = False
    seconds: float = 0.0

    def take(self, figures: dict[str, float], patience: int | None) -> bool:
        """Take in the figures of an evaluation after the present step.

        Args:
            figures: With `miou`.
            patience: Evaluations without a better one after which the run stops; None never does.

        Returns:
            Whether they are the best so far.
        """
        self.figures, self.evaluated_step = figures, self.step
        better = not self.best or figures["miou"] > self.best["miou"]
        if better:
            self.best, self.best_step, self.stale = figures, self.step, 0
        else:
            self.stale += 1
        self.stopped = patience is not None and self.stale >= patience
        return better

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON writes them."""
        return asdict(self)


def evaluation_steps(steps: int, evaluations: int, evaluate_from: float) -> set[int]:
    """After which steps to evaluate: evenly spaced, the last one at the end.

    Args:
        steps: Of the whole run.
        evaluations: How many, counting those that are left out.
        evaluate_from: Share of the run before which they are left out.
    """
    spaced = {round(steps * (number + 1) / evaluations) for number in range(evaluations)}
    return {step for step in spaced if step >= steps * evaluate_from and step > 0}


RECIPE = "recipe.yaml"
BEST, LAST = "best", "last"


def start_accelerator(recipe: Recipe) -> Accelerator:
    """Join the other processes, if there are any, on the devices there are."""
    logging.disable_progress_bar()  # of transformers, for a file that is written in a moment
    # Left to itself, Accelerate takes CPU processes of torchrun for one process each.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    precision = "no" if recipe.mixed_precision == "none" else recipe.mixed_precision
    # Inductor fails on sizes that it takes for variable; a run has few, each of which it then compiles for.
    dynamo = TorchDynamoPlugin(backend="inductor", dynamic=False) if recipe.compile else None
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, dynamo_plugin=dynamo)
    if accelerator.state.deepspeed_plugin is not None:
        # DeepSpeed reads this off a loader that is prepared with the network; ours never is, it deals out clips itself.
        share = recipe.batch_size // (recipe.gradient_accumulation * accelerator.num_processes)
        settings = {"train_micro_batch_size_per_gpu": share, "gradient_clipping": recipe.gradient_clipping or 0.0}
        accelerator.state.deepspeed_plugin.deepspeed_config.update(settings)
    return accelerator


def open_output(output: Path, resume: bool, accelerator: Accelerator) -> None:
    """Make sure that the run's folder is free, or is to be gone on with, and tidy up what a kill left there.

    Raises:
        FileExistsError: If there is a run already and none is to be resumed.
    """
    there = [name for name in (RECIPE, FOLDER, BEST, LAST) if (output / name).exists()]
    if there and not resume:
        raise FileExistsError(
            f"{output} already holds a run ({', '.join(there)}): go on with it by adding --resume, or give another "
            "--output."
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and output.is_dir():
        recover(output)


def write_recipe(output: Path, recipe: Recipe, accelerator: Accelerator) -> None:
    """Leave the recipe beside what comes of it."""
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / RECIPE).write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    accelerator.wait_for_everyone()


def save_model(
    folder: Path, network: PCMANetForAudioVisualSegmentation, processor: PCMANetProcessor, record: dict[str, Any]
) -> None:
    """Save weights, processor and metrics.json with the figures they reached; one process calls this.

    Args:
        folder: Replaced if it is there; never seen half written.
        network: Not wrapped.
        processor: Its processor.
        record: What metrics.json holds besides the command and the environment.
    """
    with written_aside(folder) as aside:
        network.save_pretrained(aside)
        processor.save_pretrained(aside)
        write_record(aside, record)


@dataclass
class Run:
    """What a training loop needs.

    Attributes:
        recipe: What is done.
        output: Folder for everything that is written.
        accelerator: The processes and the device.
        processor: Goes with the network.
        network: The network, not wrapped.
        wrapped: The network as the loop calls it.
        optimizer: Of what learns.
        average: The weights that are evaluated and saved.
        plan: Which clips are in which step.
        clips: The training clips.
        collate: Makes training batches.
        evaluator: Measures a network.
        tracker: Writes down how it goes.
        checkpoints: To go on from.
        last_step: After which step to stop.
        progress: How far the run is.
    """

    recipe: Recipe
    output: Path
    accelerator: Accelerator
    processor: PCMANetProcessor
    network: PCMANetForAudioVisualSegmentation
    wrapped: torch.nn.Module
    optimizer: AcceleratedOptimizer
    average: WeightAverage
    plan: BatchPlan
    clips: Dataset[Any]
    collate: SeededCollator
    evaluator: Evaluator
    tracker: Tracker
    checkpoints: Checkpoints
    last_step: int
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.evaluate_after = evaluation_steps(self.plan.steps, recipe.evaluations, recipe.evaluate_from)
        self.started = time.monotonic()

    def resume(self, asked: str) -> None:
        """Go on from a checkpoint, or from the start if the run was killed before its first one.

        Args:
            asked: A checkpoint's folder, or "latest".

        Raises:
            CheckpointError: If the checkpoint is damaged, or of another run.
        """
        if state := self.checkpoints.load(asked):
            self.progress = Progress(**state["progress"])
            self.tracker.load_state_dict(state["tracker"])
            self.started -= self.progress.seconds
        self.accelerator.print(f"going on after step {self.progress.step} of {self.plan.steps}")

    def steps(self) -> Iterator[list[Batch]]:
        """Yield what this process trains on, from where the run stands: the batches of one optimizer step at a time."""
        end = self.progress.step if self.progress.stopped else self.last_step
        steps, process = (self.progress.step, end), self.accelerator.process_index
        device, workers = self.accelerator.device, self.recipe.num_workers
        return training_batches(self.clips, self.plan, steps, process, self.collate, workers, device)

    def finish_step(self, figures: dict[str, float]) -> None:
        """Take in a step that was done: weight average, tracker, and an evaluation or a checkpoint if one is due."""
        self.average.update(self.network)
        self.progress.step += 1
        self.progress.seconds = time.monotonic() - self.started
        self.tracker.log_step(self.progress.step, figures)
        if self.progress.step in self.evaluate_after:
            self.evaluate()
        at_end = self.progress.stopped or self.progress.step == self.last_step
        if at_end or self.progress.step % self.recipe.checkpoint_steps == 0:
            state = {"progress": self.progress.to_dict(), "tracker": self.tracker.state_dict()}
            self.checkpoints.save(self.progress.step, state)

    def evaluate(self) -> None:
        """Measure the averaged weights on the validation clips and save them if they are the best so far."""
        evaluation = self.evaluator(self.average.synchronized(self.network, self.accelerator))
        better = self.progress.take(evaluation.figures, self.recipe.early_stopping)
        self.tracker.log_evaluation(self.progress.step, evaluation.figures)
        if (panel := evaluation.panel) is not None:
            id2label = self.network.config.id2label
            self.tracker.log_overlays(self.progress.step, panel.frames, panel.masks, panel.labels, id2label=id2label)
        if better:
            self.save_weights(BEST)

    def save_weights(self, folder: str) -> None:
        """Save the averaged weights with their processor and figures, for `from_pretrained`."""
        averaged, progress = self.average.synchronized(self.network, self.accelerator), self.progress
        if self.accelerator.is_main_process:
            record = {
                "validation": progress.figures,
                "validation_step": progress.evaluated_step,
                "step": progress.step,
                "clips": self.plan.clips_before(progress.step),
                "minutes": round(progress.seconds / 60, 1),
                "processes": self.accelerator.num_processes,
                "recipe": self.recipe.to_dict(),
            }
            save_model(self.output / folder, averaged, self.processor, record)

    def finish(self) -> str:
        """Save the last weights, close the trackers and say how the run ended."""
        self.save_weights(LAST)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return self._report()

    def _report(self) -> str:
        progress, steps, best = self.progress, self.plan.steps, "not evaluated yet"
        if progress.best:
            best = f"best mIoU on validation: {progress.best['miou']:.4f} (after step {progress.best_step})"
        if progress.stopped:
            end = f"stopped early after step {progress.step} of {steps}: "
            end += f"{progress.stale} evaluations without a better mIoU"
        elif progress.step < steps:
            end = f"stopped after step {progress.step} of {steps}; go on with: {resume_command()}"
        else:
            end = f"finished after {steps} steps, {progress.seconds / 60:.1f} minutes"
        folders = [str(self.output / name) for name in (BEST, LAST) if name == LAST or progress.best]
        return f"{best}\n{end}\ncheckpoint: {', '.join(folders)}"


def start_run(recipe: Recipe, output: Path, resume: str | None = None, max_steps: int | None = None) -> Run:
    """Put a run together; every process calls this.

    Args:
        recipe: What to do.
        output: The run's folder.
        resume: A checkpoint's folder or "latest", to go on with the run in `output`; None for a new run.
        max_steps: After how many steps in all to stop; the schedule stays that of the whole run.

    Returns:
        The run, ready for its next step.

    Raises:
        FileExistsError: If the folder holds a run that is not to be resumed.
        CheckpointError: If the run cannot be resumed.
        ValueError: If the recipe does not fit the data, the number of processes or a checkpoint to start from.
    """
    accelerator = start_accelerator(recipe)
    open_output(output, resume is not None, accelerator)
    set_seed(recipe.seed)
    names, processor = class_names(recipe), build_processor(recipe)
    network = build_network(recipe, names).to(memory_format=torch.channels_last)
    with accelerator.main_process_first():  # who prepares the data set's cache, if it needs one
        clips, validation_clips = build_datasets(recipe)
    plan = build_plan(recipe, len(clips), accelerator.num_processes)
    # The first process's view: on another machine the same files may have other times.
    (data,) = broadcast_object_list([describe_clips(recipe, len(clips))])
    checkpoints = Checkpoints(accelerator, output, recipe, data)
    if recipe.listening_sounds and not (resume and checkpoints.all()):
        extractor, quiet = processor.feature_extractor, not accelerator.is_main_process
        pretrain_audio_encoder(network.model.audio_encoder, extractor, recipe, accelerator.device, quiet)

    average = WeightAverage(network, recipe.average_decay)
    average.network.to(accelerator.device)
    network = synchronize_norms(network, recipe, accelerator)
    set_training_mode(network, recipe)
    wrapped, optimizer = accelerator.prepare(network, build_optimizer(network, recipe))
    accelerator.register_for_checkpointing(average)
    # From here on the processes draw different numbers, for example which paths of the backbone are dropped.
    set_seed(recipe.seed, device_specific=True)

    collate, validation_collate = build_collators(recipe, processor, binary=len(names) == 1)
    batch_size, workers = recipe.evaluation_batch_size, recipe.num_workers
    run = Run(
        recipe=recipe,
        output=output,
        accelerator=accelerator,
        processor=processor,
        network=network,
        wrapped=wrapped,
        optimizer=optimizer,
        average=average,
        plan=plan,
        clips=clips,
        collate=collate,
        evaluator=Evaluator(validation_clips, validation_collate, batch_size, workers, accelerator),
        tracker=Tracker(accelerator, output, recipe, names=recipe.trackers),
        checkpoints=checkpoints,
        last_step=plan.steps if max_steps is None else min(plan.steps, max_steps),
    )
    if resume is not None:
        run.resume(resume)
    write_recipe(output, recipe, accelerator)
    return run


def build_plan(recipe: Recipe, num_clips: int, processes: int) -> BatchPlan:
    """Plan which clips are in which step.

    Raises:
        ValueError: If the processes cannot share a step evenly.
    """
    return BatchPlan(
        num_clips=num_clips,
        batch_size=recipe.batch_size,
        rounds=recipe.gradient_accumulation,
        processes=processes,
        epochs=recipe.epochs,
        # Every clip of Sounding Shapes is new, so there is nothing to shuffle: index i is a random clip already.
        shuffle=recipe.data is not None,
        seed=recipe.seed,
    )
