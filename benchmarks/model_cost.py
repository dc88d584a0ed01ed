"""What does each part of PCMANet cost, compared with the published code, and what does selecting queries save?

    python benchmarks/model_cost.py
    python benchmarks/model_cost.py --frames 10 --size 384

Counts parameters and multiply-accumulates (torch.utils.flop_counter: convolutions and matrix products, one
multiply-accumulate is two FLOPs) per frame, of one clip. Nothing is timed and no weights are needed, so the numbers are
the same on any machine. Prints three Markdown tables: parameters, GMACs, and QSCA by the fraction of selected queries.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSemanticSegmentation, PreTrainedConfig

from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, PCMANetProcessor
from modeling_pcmanet.modeling_pcmanet_decoder import ClipLayout
from pcmanet.checkpoints import count_parameters


# Column of the tables to its modules; `*` matches every decoder stage.
PARTS = {
    "backbone": "model.backbone",
    "neck": "model.neck.*",
    "AVGA": "model.stages.*.group_attention",
    "QSCA": "model.stages.*.cross_attention",
    "GF": "model.stages.*.fusion",
    "heads": "model.stages.*.head",
    "audio projection": "model.audio_projection",
    "audio encoder": "model.audio_encoder",
}
NUM_STAGES = 4
KEPT_RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)


@dataclass(frozen=True)
class Network:
    """One row of the tables.

    Attributes:
        name: Name in the tables.
        preset: Preset of the configuration.
        overrides: Changed fields of the preset.
        published_parameters: Parameters of the published code, without audio encoder and the 22.06 M unused ones of ResNet-50.
        published_gmacs: GMACs per frame of the published code.
    """

    name: str
    preset: str
    overrides: dict[str, Any] = field(default_factory=dict)
    published_parameters: int | None = None
    published_gmacs: float | None = None


# Published values: counted on the published code at 224 x 224, five frames per clip. Its ResNet-50 contains copies of its
# stages 3 and 4 that are never run, 22,063,104 parameters. Ours lacks two further parts, because nothing reads their
# output: GF's coarser projection of stage 4 (590,592) and three matrices of stage 1's QSCA (196,608).
UNUSED = 22_063_104
NETWORKS = (
    Network("PVT-v2-B5, S4 and MS3", "pvt_v2_b5", {}, 95_068_740, 21.85),
    Network("PVT-v2-B5, AVSS", "pvt_v2_b5", {"num_labels": 71}, 95_104_860),
    Network("ResNet-50, S4", "resnet50", {"num_groups": 4}, 65_750_596 - UNUSED, 16.83),
    Network("ResNet-50, MS3", "resnet50", {}, 65_684_932 - UNUSED),
    Network("ResNet-50, AVSS", "resnet50", {"num_labels": 71}, 65_721_052 - UNUSED),
    Network("small", "small"),
    Network("tiny", "tiny"),
)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--frames", type=int, default=5, help="frames of the clip")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    return parser.parse_args()


def build(network: Network, **switches: Any) -> PCMANetForAudioVisualSegmentation:
    """Build a network with eager attention, because the counter does not support every fused one."""
    config = PCMANetConfig.from_preset(network.preset, **network.overrides, **switches)
    return AutoModelForSemanticSegmentation.from_config(config, attn_implementation="eager").eval()


def module_names(pattern: str) -> list[str]:
    """Expand `*` in a name to all stages."""
    return [pattern.replace("*", str(index)) for index in range(NUM_STAGES)] if "*" in pattern else [pattern]


def feature_shape(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the shape of the audio features of one frame."""
    processor = PCMANetProcessor.from_pretrained_backbones(audio=config)
    rate = processor.feature_extractor.sampling_rate
    batch = processor(
        videos=np.zeros((1, 32, 32, 3), np.uint8), audio=np.zeros(rate), sampling_rate=rate, return_tensors="pt"
    )
    return tuple(batch["input_features"].shape[2:])


def count_gmacs(model: PCMANetForAudioVisualSegmentation, frames: int, size: int) -> dict[str, float]:
    """Count GMACs per frame by part; the model is on the meta device, so that nothing is computed."""
    features = feature_shape(model.config.audio_config)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        model(torch.empty(1, frames, 3, size, size), input_features=torch.empty(1, frames, *features))
    counts = counter.get_flop_counts()
    root = type(model).__name__

    def gmacs(pattern: str) -> float:
        flops = sum(sum(counts.get(f"{root}.{name}", {}).values()) for name in module_names(pattern))
        return flops / 2e9 / frames

    parts = {part: gmacs(pattern) for part, pattern in PARTS.items()}
    uncounted = counter.get_total_flops() / 2e9 / frames - sum(parts.values())
    if abs(uncounted) > 1e-6:
        raise RuntimeError(
            f"Expected every operation to belong to a part of the table, got {uncounted:.6f} other GMACs per frame."
        )
    return parts


def count_cross_attention(model: PCMANetForAudioVisualSegmentation, frames: int, size: int, kept: float) -> float:
    """Count GMACs per frame of all QSCA for a fraction of selected queries, with constructed masks."""
    layout = ClipLayout(batch=1, frames=frames, real=None)
    flops, audio = 0, torch.zeros(frames, model.config.hidden_size)
    for index, stage in enumerate(model.model.stages):
        side, grid = size // 2 ** (5 - index), stage.cross_attention.token_grid_size
        visual = torch.zeros(frames, model.config.hidden_size, side, side)
        tokens = frames * grid**2
        selected = (torch.arange(tokens) < round(kept * tokens)).view(frames, grid, grid)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            # The coarsest stage has no mask.
            stage.cross_attention(visual, audio, None if index == 0 else selected, layout)
        flops += counter.get_total_flops()
    return flops / 2e9 / frames


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n")
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(cells)} |")


def parameter_row(network: Network, parts: dict[str, int]) -> list[str]:
    """Return the parameters in millions; like the published count, ours excludes the audio encoder."""
    ours = sum(parts.values()) - parts["audio encoder"]
    published = network.published_parameters
    compared = ["", ""] if published is None else [f"{published:,}", f"{ours - published:+,}"]
    return [network.name, f"{ours:,}", *compared, *(f"{count / 1e6:.2f}" for count in parts.values())]


def gmacs_row(network: Network, parts: dict[str, float], as_published: bool) -> list[str]:
    """Return GMACs per frame, fractions of the total without audio encoder; the published count only for its own setting."""
    total = sum(parts.values()) - parts["audio encoder"]
    published = f"{network.published_gmacs:.2f}" if as_published and network.published_gmacs else ""
    cells = [f"{gmacs:.2f} ({gmacs / total:.1%})" for part, gmacs in parts.items() if part != "audio encoder"]
    return [network.name, f"{total:.2f}", published, *cells, f"{parts['audio encoder']:.2f}"]


def print_selection_table(totals: dict[str, float], frames: int, size: int) -> None:
    """Print the cost of QSCA by fraction of queries; it is the same for both backbones of the paper."""
    model = build(NETWORKS[0], gather_queries=True)
    costs = [count_cross_attention(model, frames, size, kept) for kept in KEPT_RATIOS]
    references = {"QSCA": costs[0]} | {name: totals[name] for name in ("PVT-v2-B5, S4 and MS3", "ResNet-50, S4")}
    print_table(
        "QSCA with gathered queries, by the fraction of queries that stages 3, 2 and 1 select",
        ["selected", "QSCA, GMACs per frame", *(f"saved of {name}" for name in references)],
        [
            [
                f"{kept:.0%}",
                f"{cost:.4f}",
                *(f"{(costs[0] - cost) / reference:.2%}" for reference in references.values()),
            ]
            for kept, cost in zip(KEPT_RATIOS, costs, strict=True)
        ],
    )


def main() -> None:
    """Print the three tables."""
    options = parse_args()
    print(f"`python {shlex.join(sys.argv)}`")
    as_published = (options.frames, options.size) == (5, 224)
    parameters, gmacs, totals = [], [], {}
    for network in NETWORKS:
        with torch.device("meta"):
            model = build(network)
        parts = count_gmacs(model, options.frames, options.size)
        totals[network.name] = sum(parts.values()) - parts["audio encoder"]
        parameters.append(parameter_row(network, count_parameters(model.config, PARTS)))
        gmacs.append(gmacs_row(network, parts, as_published))
    columns = list(PARTS)
    print_table(
        "Parameters; parts in millions, totals without the audio encoder",
        ["network", "parameters", "published", "difference", *columns],
        parameters,
    )
    print_table(
        f"GMACs per frame, {options.frames} frames of {options.size} x {options.size}; fractions without the audio encoder",
        ["network", "GMACs", "published", *columns],
        gmacs,
    )
    print_selection_table(totals, options.frames, options.size)


if __name__ == "__main__":
    main()
