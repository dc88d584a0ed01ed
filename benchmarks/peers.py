"""What do other methods cost for the same input, and what do they publish? Prints a Markdown table.

    python benchmarks/peers.py
    python benchmarks/peers.py --size 384

Counts parameters and multiply-accumulates of convolutions and matrix products, per frame of one clip of five frames,
with the audio encoder (VGGish). The counts follow descriptions of the architectures in this file, which were written
for it and copy no code. The visual backbones and VGGish are those of our own presets, counted on our own networks.
What a method runs only during training is left out. Scores are those that the authors published;
`pcmanet.dataset_scripts.comparison` lists them with their sources.

    TPAVI         AVSBench, github.com/OpenNLPLab/AVSBench, commit 4d4c901 (S4 and MS3)
    AVSegFormer   github.com/vvvb-github/AVSegFormer, commit 1666d4d (MS3): without the auxiliary masks of its loss

The column of EASE contains what that paper measured with the methods' own code on one RTX 4090 (GFLOPs are two per
multiply-accumulate): parameters in millions, GFLOPs per frame, frames per second. It checks our description of
AVSegFormer (tests/test_peers.py).
"""

import argparse
import shlex
import sys
from functools import cache
from typing import TypeAlias

import numpy as np
import torch
from model_cost import PARTS, Network, build, count_gmacs, print_table

from pcmanet.checkpoints import count_parameters
from pcmanet.dataset_scripts.comparison import Row, describe_sources, published_rows


FRAMES = 5
BACKBONES = {"ResNet-50": "resnet50", "PVT-v2": "pvt_v2_b5"}
FEATURES = {"ResNet-50": (256, 512, 1024, 2048), "PVT-v2": (64, 128, 320, 512)}  # channels at 1/4, 1/8, 1/16 and 1/32
AUDIO_SIZE = 128
WIDTH = 256  # of the features of both methods

# Parameters, and multiply-accumulates per frame.
Cost: TypeAlias = np.ndarray


def convolution(inputs: int, outputs: int, kernel: int, side: int) -> Cost:
    """Count a convolution with bias whose output has `side` times `side` pixels."""
    weights = inputs * outputs * kernel**2
    return np.array([weights + outputs, weights * side**2])


def linear(inputs: int, outputs: int, tokens: float) -> Cost:
    """Count a linear layer with bias, for a number of tokens per frame."""
    return np.array([inputs * outputs + outputs, inputs * outputs * tokens])


def product(rows: float, inner: float, columns: float) -> Cost:
    """Count a matrix product without weights."""
    return np.array([0, rows * inner * columns])


def norm(channels: int, number: int = 1) -> Cost:
    """Count normalizations with scale and offset."""
    return np.array([2 * channels * number, 0])


def attention(queries: int, keys: int) -> Cost:
    """Count multi-head attention: four projections and two products."""
    projections = 2 * linear(WIDTH, WIDTH, queries) + 2 * linear(WIDTH, WIDTH, keys)
    return projections + 2 * product(queries, WIDTH, keys)


def feed_forward(tokens: int, hidden: int) -> Cost:
    """Count a feed-forward network."""
    return linear(WIDTH, hidden, tokens) + linear(hidden, WIDTH, tokens)


def tpavi(features: tuple[int, ...], sides: list[int]) -> Cost:
    """Count the network of AVSBench after its encoders.

    Each feature map passes the sum of four dilated convolutions and a block in which every pixel of the clip attends to
    every other one; four fusions follow from coarse to fine, and a head at half and at full size.
    """
    cost = np.zeros(2)
    for channels, side in zip(features, sides, strict=True):
        cost += 4 * convolution(channels, WIDTH, 3, side)
        cost += _non_local_block(side)
    unit_of = [2 * convolution(WIDTH, WIDTH, 3, side) for side in sides]
    cost += 2 * sum(unit_of)
    cost[1] -= unit_of[-1][1]  # the coarsest fusion has no second input: one of its two units never runs
    finest = 2 * sides[0]
    head = convolution(WIDTH, 128, 3, finest) + convolution(128, 32, 3, 2 * finest)
    return cost + head + convolution(32, 1, 1, 2 * finest)


def _non_local_block(side: int) -> Cost:
    """Count one block of TPAVI. The audio is repeated to every pixel before its projection, as published."""
    inner, pixels = WIDTH // 2, side**2
    projections = 3 * convolution(WIDTH, inner, 1, side) + convolution(inner, WIDTH, 1, side)
    products = 2 * product(pixels, inner, FRAMES * pixels)
    return linear(AUDIO_SIZE, WIDTH, 1) + projections + products + norm(WIDTH, 2)


def avsegformer(features: tuple[int, ...], sides: list[int], queries: int = 300, hidden: int = 2048) -> Cost:
    """Count AVSegFormer after its encoders.

    Deformable attention over three feature maps in six encoder layers (its sampling is not a matrix product and not
    counted), six decoder layers whose queries are the audio, and a network over the queries' maps at each pixel of the
    finest size.
    """
    finest, tokens = sides[0], sum(side**2 for side in sides[1:])
    cost = linear(AUDIO_SIZE, WIDTH, 1) + np.array(
        [(queries + 3) * WIDTH, 0]
    )  # and the queries and levels, which are learned
    for channels, side in zip(features, sides, strict=True):
        cost += convolution(channels, WIDTH, 1, side) + norm(WIDTH)
    heads, levels, points = 8, 3, 4
    samples = heads * levels * points
    deformable = linear(WIDTH, 3 * samples, tokens) + 2 * linear(WIDTH, WIDTH, tokens)
    cost += 6 * (deformable + feed_forward(tokens, hidden) + norm(WIDTH, 2))
    decoder = attention(queries, queries) + attention(queries, tokens) + feed_forward(queries, hidden)
    cost += 6 * (decoder + norm(WIDTH, 3))
    # Mixing of the channels by the audio: query and output of one token, keys and values of every pixel.
    cost += 2 * linear(WIDTH, WIDTH, 1) + linear(WIDTH, 2 * WIDTH, finest**2)
    cost += convolution(WIDTH, WIDTH, 1, finest) + convolution(WIDTH, WIDTH, 3, finest) + norm(WIDTH, 2)
    cost += product(queries, WIDTH, finest**2)
    for inputs, outputs in ((queries, hidden), (hidden, hidden), (hidden, WIDTH)):
        cost += convolution(inputs, outputs, 1, finest)
    head = convolution(WIDTH, 128, 3, finest) + convolution(128, 32, 3, 4 * finest)
    return cost + head + convolution(32, 1, 1, 4 * finest)


METHODS = {"TPAVI": tpavi, "AVSegFormer": avsegformer}


@cache  # every method with this backbone uses it
def count_ours(backbone: str, size: int) -> tuple[dict[str, int], dict[str, float]]:
    """Return parameters and GMACs per frame of our network with a backbone, by part."""
    with torch.device("meta"):
        model = build(Network(backbone, BACKBONES[backbone]))
    return count_parameters(model.config, PARTS), count_gmacs(model, FRAMES, size)


def count_peer(method: str, backbone: str, size: int) -> tuple[float, float]:
    """Return parameters in millions and GMACs per frame of another method, with both encoders."""
    parameters, gmacs = count_ours(backbone, size)
    sides = [size // stride for stride in (4, 8, 16, 32)]
    own_parameters, own_products = METHODS[method](FEATURES[backbone], sides)
    encoders = "backbone", "audio encoder"
    return (
        (sum(parameters[part] for part in encoders) + own_parameters) / 1e6,
        sum(gmacs[part] for part in encoders) + own_products / 1e9,
    )


def peer_row(row: Row, size: int) -> list[str]:
    """Return the cells of another method; figures that nobody counted or published are empty."""
    backbone = row.network.partition(" @")[0]
    counted = ["", ""]
    if row.method in METHODS:
        counted = [f"{value:.1f}" for value in count_peer(row.method, backbone, size)]
    measured = "" if "-" in row.costs else " · ".join(row.costs)
    scores = [" / ".join(f"{score:.1f}" for score in pair if score == score) for [pair] in row.scores.values()]
    return [row.method, row.network, *counted, measured, *scores]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels, a multiple of 32")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    options = parse_args()
    print(f"`python {shlex.join(sys.argv)}`")
    rows = []
    for backbone in BACKBONES:
        parameters, gmacs = (sum(parts.values()) for parts in count_ours(backbone, options.size))
        rows.append(["PCMANet, this library", backbone, f"{parameters / 1e6:.1f}", f"{gmacs:.1f}", *[""] * 4])
    rows += [peer_row(row, options.size) for row in published_rows()]
    names = "S4 mIoU / F", "MS3 mIoU / F", "AVSS mIoU / F"
    header = ["method", "backbone", "parameters, M", "GMACs per frame", "as measured by EASE", *names]
    print_table(
        f"One clip of {FRAMES} frames at {options.size} x {options.size}; with the audio encoder", header, rows
    )
    print("", *(f"- {line}" for line in describe_sources(published_rows())), sep="\n")


if __name__ == "__main__":
    main()
