"""Train PCMANet with Accelerate, on Sounding Shapes, on AVSBench or on one's own clips.

The demo model (binary, several sources), exactly as shipped in examples/demo_model. Its small VGGish first learns to
name sounds, as the published one did on audio tagging, and is then frozen, as published. The second run goes on with every
picture under two sounds, so that looking alone never explains the masks; the third with many sounds of classes that are not
in the picture, which the second still mistook for one that is; the last with all negative sounds again:

    python examples/train_pcmanet.py --listening-sounds 4800 --clips 16000 --evaluations 16 --output runs/first
    python examples/train_pcmanet.py --initialize-from runs/first --seed 1 --pair-sounds --clips 20000 \
        --learning-rate 1.5e-3 --output runs/second
    python examples/train_pcmanet.py --initialize-from runs/second --seed 2 --pair-sounds --clips 7000 \
        --negative-fraction 0.2 --negative-kinds absent_class --learning-rate 7e-4 --evaluations 5 --output runs/third
    python examples/train_pcmanet.py --initialize-from runs/third --seed 3 --pair-sounds --clips 3200 \
        --negative-fraction 0.3 --learning-rate 5e-4 --evaluations 2 --output runs/demo_model

Its semantic sister, which starts from the first run, exactly as shipped in examples/demo_model_semantic:

    python examples/train_pcmanet.py --task avss --initialize-from runs/first --seed 1 --pair-sounds --clips 14000 \
        --learning-rate 1.5e-3 --output runs/demo_model_semantic

The paper's network on AVSBench as downloaded (s4, ms3 or avss; `--task folder` for one's own clips), from published
backbone weights; it wants a GPU:

    python examples/train_pcmanet.py --data AVSBench --task s4 --visual-backbone OpenGVLab/pvt_v2_b5 \
        --audio-encoder vggish --image-size 224 --epochs 15 --batch-size 4 --learning-rate 1e-4 --output runs/s4

A few steps to see that everything works:

    python examples/train_pcmanet.py --clips 32 --evaluation-clips 4 --output runs/smoke

On a GPU the same commands run there, with `--mixed-precision bf16` by default. The best checkpoint on the validation
clips lies under OUTPUT when the command ends, with its processor and metrics.json; OUTPUT is written only by improvements.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
    VGGishModel,
)
from pcmanet.dataset_scripts.avsbench import label_names, load_avsbench
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.metrics import BinaryMetrics, SemanticMetrics
from pcmanet.dataset_scripts.synthetic_clips import NEGATIVE_KINDS, SoundingShapes, SyntheticClip
from pcmanet.dataset_scripts.synthetic_listening import SoundMixtures
from pcmanet.dataset_scripts.synthetic_looks import CLASSES
from pcmanet.dataset_scripts.synthetic_sound import SAMPLING_RATE


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the best checkpoint")
    parser.add_argument("--task", choices=("s4", "ms3", "avss", "folder"), default="ms3", help="kind of data")
    parser.add_argument("--data", type=Path, help="folder of AVSBench or one's own clips; Sounding Shapes without it")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the data; Sounding Shapes needs only one")
    parser.add_argument("--preset", default="tiny", help="network size: tiny, resnet50 or pvt_v2_b5")
    parser.add_argument("--visual-backbone", help="Hub id or folder of pretrained weights, instead of a preset's size")
    parser.add_argument("--audio-encoder", help="Hub id or folder of a pretrained VGGish")
    parser.add_argument(
        "--override", nargs="+", default=[], metavar="KEY=VALUE", help="fields of the configuration, values as in JSON"
    )
    parser.add_argument(
        "--initialize-from", type=Path, help="checkpoint to start from; heads may differ, all else not"
    )
    parser.add_argument(
        "--listening-sounds", type=int, default=0, help="sounds that teach the audio encoder before pictures come in"
    )
    parser.add_argument(
        "--negative-kinds", nargs="+", choices=NEGATIVE_KINDS, default=NEGATIVE_KINDS, help="which sounds these have"
    )
    parser.add_argument("--image-size", type=int, default=112, help="side of the square frames in pixels")
    parser.add_argument("--clips", type=int, default=16000, help="training clips of Sounding Shapes")
    parser.add_argument("--pair-sounds", action="store_true", help="show every picture twice, under different sounds")
    parser.add_argument(
        "--negative-fraction", type=float, default=0.15, help="share of clips, up to 0.5, in which nothing sounds"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="clips per step on each device")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak, after warm-up, before cosine decay")
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--warmup-fraction", type=float, default=0.05, help="share of the steps that warm up")
    parser.add_argument("--average-decay", type=float, default=0.998, help="of the weight average that is evaluated")
    parser.add_argument("--evaluation-clips", type=int, default=64, help="validation clips of Sounding Shapes")
    parser.add_argument("--evaluations", type=int, default=10, help="how often to evaluate, evenly spaced")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="bf16")
    parser.add_argument("--num-workers", type=int, default=1, help="processes that make clips")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.visual_backbone is not None and args.audio_encoder is None:
        parser.error("--visual-backbone goes with --audio-encoder: the network needs both")
    if args.task == "folder" and args.data is None:
        parser.error("--task folder needs --data FOLDER")
    return args


def class_names(args: argparse.Namespace) -> list[str]:
    """Names of the classes of the data, background first; binary data have one."""
    if args.data is not None:
        return list(label_names(args.data, args.task))
    return ["background", *CLASSES] if args.task == "avss" else ["sounding"]


def build_model(args: argparse.Namespace) -> PCMANetForAudioVisualSegmentation:
    """Make a network from a preset or from pretrained backbones, or start from a checkpoint with other heads."""
    names = class_names(args)
    settings = dict(pair.split("=", 1) for pair in args.override)
    settings = {key: json.loads(value) for key, value in settings.items()}
    settings["id2label"] = dict(enumerate(names))
    settings["label2id"] = {name: index for index, name in enumerate(names)}
    if args.initialize_from is not None:
        return load_checkpoint(args.initialize_from, settings)
    if args.visual_backbone is not None:
        return PCMANetForAudioVisualSegmentation.from_pretrained_backbones(
            args.visual_backbone, args.audio_encoder, **settings
        )
    if args.audio_encoder is None:
        return PCMANetForAudioVisualSegmentation(PCMANetConfig.from_preset(args.preset, **settings))
    audio_encoder = VGGishModel.from_pretrained(args.audio_encoder)
    config = PCMANetConfig.from_preset(args.preset, **settings, audio_config=audio_encoder.config)
    model = PCMANetForAudioVisualSegmentation(config)
    model.model.audio_encoder.load_state_dict(audio_encoder.state_dict())
    return model


def load_checkpoint(folder: Path, settings: dict[str, Any]) -> PCMANetForAudioVisualSegmentation:
    """Load a checkpoint whose heads may have other classes.

    Raises:
        ValueError: If anything else differs, naming the keys.
    """
    model, loading = PCMANetForAudioVisualSegmentation.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True, **settings
    )
    strays = [*loading["missing_keys"], *loading["unexpected_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    if strays := [key for key in strays if ".head." not in key]:
        raise ValueError(f"{folder} does not fit this network; keys that differ: {', '.join(strays)}.")
    return model


class PairedSounds(Dataset[SyntheticClip]):
    """Every picture twice in a row, under different sounds, so that looking alone never explains both masks.

    Clip 2i is clip i of the data set (or a negative one), clip 2i + 1 the same pictures with other sounds.
    """

    def __init__(self, clips: SoundingShapes) -> None:
        self.clips = clips

    def __len__(self) -> int:
        """Twice as many as there are pictures."""
        return 2 * len(self.clips)

    def __getitem__(self, index: int) -> SyntheticClip:
        """The clip at an index."""
        return self.clips.swap_sounds(index // 2) if index % 2 else self.clips[index // 2]


def build_datasets(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Make the training and validation clips; those of Sounding Shapes come from separate random streams."""
    if args.data is not None:
        return tuple(load_avsbench(args.data, args.task, split=split) for split in ("train", "val"))
    settings = {"height": args.image_size, "width": args.image_size, "seed": args.seed}
    sounds_per_picture = 2 if args.pair_sounds else 1
    training = SoundingShapes(
        args.task,
        "train",
        length=args.clips // sounds_per_picture,
        negative_fraction=sounds_per_picture * args.negative_fraction,
        negative_kinds=args.negative_kinds,
        **settings,
    )
    validation = SoundingShapes(args.task, "val", length=args.evaluation_clips, **settings)
    return PairedSounds(training) if args.pair_sounds else training, validation


def build_loaders(args: argparse.Namespace, processor: PCMANetProcessor) -> tuple[DataLoader, DataLoader]:
    """Make the loaders of training and validation."""
    training, validation = build_datasets(args)
    options = {
        "batch_size": args.batch_size,
        "collate_fn": ClipCollator(processor, binary=len(class_names(args)) == 1),
        "num_workers": args.num_workers,
        "persistent_workers": args.num_workers > 0,
    }
    # Every clip of Sounding Shapes is new, so there is nothing to shuffle: index i is a random clip already.
    shuffle = args.data is not None
    return DataLoader(training, shuffle=shuffle, drop_last=True, **options), DataLoader(validation, **options)


def teach_listening(
    audio_encoder: VGGishModel, extractor: PCMANetFeatureExtractor, args: argparse.Namespace, device: torch.device
) -> None:
    """Train the audio encoder to name what sounds in every second, with a linear layer that is thrown away after.

    Every process does the same work on the same sounds: it is short, and the weights stay equal without a word.
    """

    def collate(sounds: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
        patches = [
            extractor(waveform, SAMPLING_RATE, num_frames=len(heard), return_tensors="pt")["input_features"]
            for waveform, heard in sounds
        ]
        return torch.cat(patches), torch.from_numpy(np.concatenate([heard for _, heard in sounds])).float()

    trainable = [parameter.requires_grad for parameter in audio_encoder.parameters()]
    audio_encoder.requires_grad_(True).to(device)
    tagger = torch.nn.Linear(audio_encoder.config.embedding_size, len(CLASSES)).to(device)
    parameters = [*audio_encoder.parameters(), *tagger.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=args.weight_decay)
    sounds = SoundMixtures(args.listening_sounds, seed=args.seed)
    loader = DataLoader(sounds, batch_size=16, collate_fn=collate, num_workers=args.num_workers, drop_last=True)
    for step, (patches, heard) in enumerate(bar := tqdm(loader, desc="listening", mininterval=5.0)):
        set_learning_rate(optimizer, args, step, len(loader))
        logits = tagger(audio_encoder(patches.to(device)).audio_embeds)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, heard.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    for parameter, learns in zip(audio_encoder.parameters(), trainable, strict=True):
        parameter.requires_grad_(learns)


def set_learning_rate(optimizer: torch.optim.Optimizer, args: argparse.Namespace, step: int, steps: int) -> None:
    """Give the optimizer the learning rate of a step."""
    for group in optimizer.param_groups:
        group["lr"] = args.learning_rate * learning_rate_factor(step, steps, args.warmup_fraction)


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Rise linearly from 0 to 1 during warm-up, then fall to 0 along a cosine."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator, num_labels: int
) -> dict[str, float]:
    """Measure a model on every clip of a loader under the official protocol."""
    model.eval()
    metrics = BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels)
    for batch in tqdm(loader, desc="validation", leave=False, disable=not accelerator.is_local_main_process):
        with accelerator.autocast():
            outputs = model(**batch)
        metrics.update(outputs.logits.float(), batch["labels"], batch["frame_mask"], batch.get("label_mask"))
    return metrics.gather().compute()


def save_checkpoint(
    model: PCMANetForAudioVisualSegmentation, processor: PCMANetProcessor, record: dict, folder: Path
) -> None:
    """Save weights, processor and the figures they reached."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "metrics.json").write_text(json.dumps(record, indent=2, default=str) + "\n")


def train(args: argparse.Namespace) -> dict[str, float]:
    """Run the training and return the figures of the best checkpoint."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    size = {"height": args.image_size, "width": args.image_size}
    # AVSBench's semantic clips fill missing sound with zeros, its others repeat the last patch.
    extractor = PCMANetFeatureExtractor(short_clip="zeros" if args.data and args.task == "avss" else "repeat_last")
    processor = PCMANetProcessor(PCMANetImageProcessor(size=size), extractor)
    model = build_model(args).to(memory_format=torch.channels_last)
    if args.listening_sounds:
        teach_listening(model.model.audio_encoder, processor.feature_extractor, args, accelerator.device)
    num_labels = model.config.num_labels
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.average_decay), use_buffers=True)
    averaged.to(accelerator.device)
    training, validation = build_loaders(args, processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    model, optimizer, training, validation = accelerator.prepare(model, optimizer, training, validation)
    steps = args.epochs * len(training)
    evaluate_at = {round(steps * (number + 1) / args.evaluations) for number in range(args.evaluations)}

    best: dict[str, float] = {"miou": -1.0}
    started = time.monotonic()
    batches = itertools.chain.from_iterable(training for _ in range(args.epochs))
    bar = tqdm(batches, desc="training", total=steps, disable=not accelerator.is_local_main_process, mininterval=5.0)
    for step, batch in enumerate(bar):
        set_learning_rate(optimizer, args, step, steps)
        model.train()
        with accelerator.autocast():
            loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(accelerator.unwrap_model(model))
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", best=f"{best['miou']:.4f}")
        if step + 1 in evaluate_at:
            figures = evaluate(averaged.module, validation, accelerator, num_labels)
            seen = {"clips": (step + 1) * args.batch_size, "minutes": round((time.monotonic() - started) / 60, 1)}
            accelerator.print(f"\nclips {seen['clips']}  minutes {seen['minutes']}  loss {loss.item():.4f}  {figures}")
            if figures["miou"] > best["miou"]:
                best = figures
                record = {"validation": figures, **seen, "arguments": vars(args)}
                if accelerator.is_main_process:
                    save_checkpoint(averaged.module, processor, record, args.output)
    return best


def main() -> None:
    """Train and say where the checkpoint lies."""
    args = parse_args()
    best = train(args)
    print(f"best mIoU on validation: {best['miou']:.4f}; checkpoint: {args.output}")


if __name__ == "__main__":
    main()
