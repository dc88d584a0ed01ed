"""Fine-tunes a PCMANet checkpoint to other clips and classes with transformers' Trainer, so that all its options are there.

    python examples/finetune_with_trainer.py --output_dir runs/semantic      # the binary demo model learns twelve classes
    python examples/finetune_with_trainer.py --output_dir runs/three --classes plain-ring ringed-star speckled-heart
    python examples/finetune_with_trainer.py --output_dir runs/mine --checkpoint me/pcmanet --task folder --data my_clips
    torchrun --nproc_per_node 4 examples/finetune_with_trainer.py --output_dir runs/s4 --task s4 --data AVSBench --bf16

`--help` lists the Trainer's options, such as

    --bf16 or --fp16 (on a CPU: --use_cpu --bf16)  --gradient_accumulation_steps 4  --gradient_checkpointing
    --backbone_learning_rate 1e-5  --resume_from_checkpoint latest  --report_to tensorboard
    --load_best_model_at_end  --early_stopping_patience 3 (which keeps the best as well)
    --push_to_hub --hub_model_id me/mine --hub_strategy every_save  --hub_code

OUTPUT_DIR receives checkpoints, each with its processor, so that the pipeline opens them, and in the end the last or best
weights; with --push_to_hub these go to the Hub, with a model card, from a folder OUTPUT_DIR-hub.
"""

import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

from transformers import EarlyStoppingCallback, HfArgumentParser, TrainingArguments, set_seed

from modeling_pcmanet import PCMANetProcessor
from pcmanet.dataset_scripts.avsbench import NAMES
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.metrics import BinaryMetrics, SemanticMetrics, TrainerMetrics
from pcmanet.training.network import load_checkpoint
from pcmanet.training.publishing import Publication, publish
from pcmanet.training.record import write_record
from pcmanet.training.trainer import FineTuningData, SegmentationTrainer, TrainerCollator, choose_classes


class HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """The commands above as they stand, and every default."""


@dataclass
class FineTuning:
    """What is fine-tuned to what; everything else is in the Trainer's own options."""

    checkpoint: str = field(default="examples/demo_model", metadata={"help": "folder or Hub id, of any classes"})
    task: str = field(default="avss", metadata={"choices": list(NAMES), "help": "kind of data"})
    data: str | None = field(default=None, metadata={"help": "AVSBench or own clips; Sounding Shapes without it"})
    classes: list[str] = field(default_factory=list, metadata={"help": "of the data; others become background"})
    clips: int = field(default=2000, metadata={"help": "Sounding Shapes: training clips"})
    evaluation_clips: int = field(default=64, metadata={"help": "Sounding Shapes: validation clips"})
    backbone_learning_rate: float | None = field(default=None, metadata={"help": "default: as the rest"})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "evaluations without a better mIoU"})
    hub_code: bool = field(default=False, metadata={"help": "push our code too, for use without this package"})


def build_trainer(settings: FineTuning, arguments: TrainingArguments) -> SegmentationTrainer:
    """Puts model, clips, measures and the Trainer together."""
    data = FineTuningData(settings.task, settings.data, settings.clips, settings.evaluation_clips, arguments.seed)
    classes = choose_classes(data.classes, settings.classes)
    num_labels, patience = len(classes.names), settings.early_stopping_patience
    set_seed(arguments.seed)  # the Trainer does so as well, but only after new heads are drawn
    model = load_checkpoint(settings.checkpoint, classes.labels)
    processor = PCMANetProcessor.from_pretrained(settings.checkpoint)
    training, validation = data.load(dict(processor.image_processor.size))
    metrics = TrainerMetrics(
        BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels), arguments.label_names
    )
    return SegmentationTrainer(
        model,
        arguments,
        data_collator=TrainerCollator(ClipCollator(processor, binary=num_labels == 1), classes),
        train_dataset=training,
        eval_dataset=validation,
        # In whatever is a processor the Trainer looks for a tokenizer; all that it has to do is to save this one.
        processing_class=SimpleNamespace(
            save_pretrained=processor.save_pretrained, model_input_names=["pixel_values"]
        ),
        compute_metrics=metrics,
        preprocess_logits_for_metrics=metrics.preprocess_logits_for_metrics,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
        backbone_learning_rate=settings.backbone_learning_rate,
    )


def finish(trainer: SegmentationTrainer, settings: FineTuning, minutes: float) -> None:
    """Saves the weights with their figures and, if asked to, publishes them."""
    folder = Path(trainer.args.output_dir)
    # Called from outside it would push too, with a card of its own and without a second attempt.
    trainer.save_model(_internal_call=True)
    figures = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    if not trainer.is_world_process_zero():
        return
    write_record(folder, {"validation": figures, "minutes": minutes, "recipe": asdict(settings)})
    print(f"mIoU {figures['miou']:.4f}, weights: {folder}")
    if trainer.args.push_to_hub:
        private = bool(trainer.args.hub_private_repo)
        print(f"pushed to {publish(Publication(folder, trainer.hub_model_id, settings.hub_code, private))}")


def parse_args() -> tuple[FineTuning, TrainingArguments]:
    """Reads the command line.

    Raises:
        ValueError: If the Trainer's options do not go with each other.
    """
    parser = HfArgumentParser((FineTuning, TrainingArguments), description=__doc__, formatter_class=HelpFormatter)
    # The first three are what clips and measures need.
    parser.set_defaults(remove_unused_columns=False, label_names=["labels"], batch_eval_metrics=True)
    parser.set_defaults(metric_for_best_model="miou", learning_rate=5e-4, warmup_steps=0.05)
    parser.set_defaults(eval_strategy="epoch", save_strategy="epoch")  # to keep the best, both must be the same
    if parser.parse_args().early_stopping_patience is not None:
        # Who stops because it got no better wants the weights from before.
        parser.set_defaults(load_best_model_at_end=True)
    return parser.parse_args_into_dataclasses()


def main() -> None:
    """Fine-tunes, or goes on with it."""
    try:
        settings, arguments = parse_args()
        resume = arguments.resume_from_checkpoint
        trainer = build_trainer(settings, arguments)
        result = trainer.train(resume_from_checkpoint=True if resume == "latest" else resume)
        finish(trainer, settings, round(result.metrics["train_runtime"] / 60, 1))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
