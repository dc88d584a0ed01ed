"""Fine-tune a PCMANet checkpoint on other clips and classes with transformers' Trainer, with all of its options.

    python examples/finetune_with_trainer.py --output_dir runs/semantic      # twelve classes from the binary demo model
    python examples/finetune_with_trainer.py --output_dir runs/three --classes plain-ring ringed-star speckled-heart
    python examples/finetune_with_trainer.py --output_dir runs/mine --checkpoint real_world --task folder --data my_clips
    torchrun --nproc_per_node 4 examples/finetune_with_trainer.py --output_dir runs/s4 --task s4 --data AVSBench --bf16

`--help` lists the Trainer's options, such as

    --bf16 or --fp16 (on a CPU: --use_cpu --bf16)  --gradient_accumulation_steps 4  --gradient_checkpointing
    --backbone_learning_rate 1e-5  --resume_from_checkpoint latest  --report_to tensorboard
    --dataloader_num_workers 8 and --ddp_timeout 36000 (seconds) for data that take long to prepare
    --load_best_model_at_end  --early_stopping_patience 3 (which also keeps the best weights)
    --push_to_hub --hub_model_id me/mine --hub_strategy every_save  --hub_code

OUTPUT_DIR receives checkpoints, each with its processor so that the pipeline can load them, and at the end the last or
best weights. With --push_to_hub, these are uploaded with a model card from the folder OUTPUT_DIR-hub. A folder that
contains a run is rejected unless the run is resumed.
"""

import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from transformers import EarlyStoppingCallback, HfArgumentParser, TrainingArguments, set_seed

from pcmanet.dataset_scripts.avsbench import NAMES
from pcmanet.dataset_scripts.avsbench.masks import LABEL_NOISE_RULES
from pcmanet.dataset_scripts.avsbench.rows import MISSING_AUDIO_RULES
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.metrics import TrainerMetrics, build_metrics
from pcmanet.dataset_scripts.paired import is_paired_data
from pcmanet.dataset_scripts.problems import ON_ERROR
from pcmanet.files import demo_file
from pcmanet.training.data import class_names, exchange_stand_ins, load_datasets
from pcmanet.training.publishing import Publication, publish
from pcmanet.training.recipe import Recipe
from pcmanet.training.record import write_record
from pcmanet.training.run import build_processor, freeze_unused, label_settings, load_checkpoint
from pcmanet.training.trainer import SegmentationTrainer, choose_classes, collate_for_trainer, open_output


class HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Keep the line breaks of the docstring, and show all defaults."""


@dataclass
class FineTuning:
    """Checkpoint, data and classes; everything else is in the Trainer's own options."""

    checkpoint: str = field(
        default=str(demo_file("demo_model")), metadata={"help": "folder, Hub id or real_world, with any classes"}
    )
    task: str = field(default="avss", metadata={"choices": list(NAMES), "help": "layout of the data"})
    data: str | None = field(
        default=None,
        metadata={
            "help": "folder of AVSBench or of your own clips, or YAML file of paired data; None: Sounding Shapes"
        },
    )
    classes: list[str] = field(default_factory=list, metadata={"help": "classes to use; others become background"})
    label_noise: str = field(
        default="keep",
        metadata={"choices": list(LABEL_NOISE_RULES), "help": "avss: pixels of classes that the clip does not list"},
    )
    subsets: list[str] = field(default_factory=list, metadata={"help": "avss: v1s, v1m, v2 (default: all)"})
    binary: bool = field(default=False, metadata={"help": "avss, folder: binary masks in place of classes"})
    frames_per_second: float = field(default=1.0, metadata={"help": "folder: rate of the frames, in hertz"})
    missing_audio: str = field(
        default="raise",
        metadata={"choices": list(MISSING_AUDIO_RULES), "help": "folder: videos without an audio track"},
    )
    log_mel: bool = field(default=False, metadata={"help": "s4, ms3: use the published log-mel features"})
    on_error: str = field(
        default="raise", metadata={"choices": list(ON_ERROR), "help": "stop at clips with problems, or skip them"}
    )
    clips: int | None = field(default=None, metadata={"help": "generated data: number of training clips; None: 2000"})
    evaluation_clips: int | None = field(
        default=None, metadata={"help": "generated data: number of validation clips; None: 64"}
    )
    backbone_learning_rate: float | None = field(default=None, metadata={"help": "default: same as the rest"})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "evaluations without a better mIoU"})
    hub_code: bool = field(default=False, metadata={"help": "also upload the code, for use without this package"})

    def __post_init__(self) -> None:
        if self.data is None or is_paired_data(self.data):
            self.clips, self.evaluation_clips = self.clips or 2000, self.evaluation_clips or 64


def build_trainer(settings: FineTuning, arguments: TrainingArguments) -> SegmentationTrainer:
    """Build the Trainer with model, clips and metrics."""
    counts = {"clips": settings.clips, "evaluation_clips": settings.evaluation_clips}
    recipe = Recipe(
        task=settings.task,
        data=settings.data,
        initialize_from=settings.checkpoint,
        **{name: count for name, count in counts.items() if count is not None},
        label_noise=settings.label_noise,
        subsets=tuple(settings.subsets),
        binary=settings.binary,
        frames_per_second=settings.frames_per_second,
        missing_audio=settings.missing_audio,
        log_mel=settings.log_mel,
        on_error=settings.on_error,
        seed=arguments.seed,
        freeze=(),
        num_workers=arguments.dataloader_num_workers,
    )
    names, table = choose_classes(class_names(recipe), settings.classes)
    patience = settings.early_stopping_patience
    set_seed(arguments.seed)  # the Trainer does this too, but only after new heads are initialized
    model = load_checkpoint(settings.checkpoint, label_settings(names))
    processor = build_processor(recipe)
    size = processor.image_processor.size
    freeze_unused(model, processor)
    with arguments.main_process_first(desc="preparing data"):
        training, validation = load_datasets(recipe, size=(size["height"], size["width"]))
    encoder = model.model.audio_encoder if model.config.freeze_audio_encoder else None
    collate, prepare_batch = exchange_stand_ins(
        training, encoder, model.config.num_audio_windows, ClipCollator(processor, binary=len(names) == 1)
    )
    metrics = TrainerMetrics(build_metrics(len(names)))
    return SegmentationTrainer(
        model,
        arguments,
        data_collator=partial(collate_for_trainer, collate, table),
        train_dataset=training,
        eval_dataset=validation,
        # The Trainer expects a tokenizer in every processor; this one only has to be saved.
        processing_class=SimpleNamespace(
            save_pretrained=processor.save_pretrained, model_input_names=["pixel_values"]
        ),
        compute_metrics=metrics,
        preprocess_logits_for_metrics=metrics.preprocess_logits_for_metrics,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
        backbone_learning_rate=settings.backbone_learning_rate,
        prepare_batch=prepare_batch,
    )


def finish(trainer: SegmentationTrainer, settings: FineTuning, minutes: float) -> None:
    """Save the weights with their metrics and, if requested, upload them."""
    folder = Path(trainer.args.output_dir)
    # Without `_internal_call`, it would also upload, with another card and without a retry.
    with trainer.explain_full_disk(folder):
        trainer.save_model(_internal_call=True)
    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    if not trainer.is_world_process_zero():
        return
    write_record(folder, {"validation": metrics, "minutes": minutes, "recipe": asdict(settings)})
    print(f"mIoU {metrics['miou']:.4f}, weights: {folder}")
    if trainer.args.push_to_hub:
        private = bool(trainer.args.hub_private_repo)
        print(f"Uploaded to {publish(Publication(folder, trainer.hub_model_id, settings.hub_code, private))}")


def parse_args() -> tuple[FineTuning, TrainingArguments]:
    """Parse the command line.

    Raises:
        ValueError: If the Trainer's options contradict each other.
    """
    parser = HfArgumentParser(
        (FineTuning, TrainingArguments), description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False
    )
    # The first two are required by clips and metrics.
    parser.set_defaults(remove_unused_columns=False, batch_eval_metrics=True)
    parser.set_defaults(metric_for_best_model="miou", learning_rate=5e-4, warmup_steps=0.05)
    parser.set_defaults(eval_strategy="epoch", save_strategy="epoch")  # to keep the best, both must be the same
    if parser.parse_args().early_stopping_patience is not None:
        # Early stopping is useful only with the weights of the best evaluation.
        parser.set_defaults(load_best_model_at_end=True)
    return parser.parse_args_into_dataclasses()


def main() -> None:
    """Fine-tune a checkpoint, or resume an interrupted fine-tuning."""
    try:
        settings, arguments = parse_args()
        checkpoint = open_output(arguments)
        if arguments.resume_from_checkpoint and checkpoint is None and arguments.process_index == 0:
            print(f"No checkpoint found in {arguments.output_dir}: a new run begins")
        trainer = build_trainer(settings, arguments)
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finish(trainer, settings, round(result.metrics["train_runtime"] / 60, 1))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
