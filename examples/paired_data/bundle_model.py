"""Make the bundled model from trained checkpoints: averaged weights in half precision, the frame size, a description.

    python examples/paired_data/bundle_model.py runs/real_world/best runs/real_world_second/best \
        --output examples/real_world_model --size 256 --description "knows 17 classes of the real world: person, dog, ..."

The weights of several checkpoints are averaged. The average of a network before and after fine-tuning is often better
than both (Wortsman et al., arXiv 2109.01903). The weights are stored in float16 and used in float32, so the file has
half the size at the same speed. The running statistics of BatchNorm stay in float32. Prints the largest difference of
a logit on random frames. Afterwards, `python -m pcmanet.agreement OUTPUT --data SETTINGS` measures whether
`dtype="auto"` may choose bfloat16.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from pcmanet.options import positive_integer


WEIGHTS = "model.safetensors"


def is_rounded(name: str, values: torch.Tensor) -> bool:
    """Return whether an entry of the weights is rounded."""
    return values.is_floating_point() and values.ndim > 0 and "running_" not in name


def load_average(checkpoints: list[str]) -> PCMANetForAudioVisualSegmentation:
    """Load checkpoints of one network and average their weights and running statistics."""
    networks = [
        PCMANetForAudioVisualSegmentation.from_pretrained(path, dtype=torch.float32).eval() for path in checkpoints
    ]
    states = [network.state_dict() for network in networks]
    average = {
        name: torch.stack([state[name] for state in states]).mean(0) if values.is_floating_point() else values
        for name, values in states[-1].items()
    }
    networks[-1].load_state_dict(average)
    networks[-1].config.bfloat16_agreement = None  # was measured with the weights of one checkpoint
    return networks[-1]


@torch.no_grad()
def largest_difference(before: PCMANetForAudioVisualSegmentation, after: PCMANetForAudioVisualSegmentation) -> str:
    """Compare both networks on random frames and audio embeddings."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(2, 5, 3, 224, 224, generator=generator)
    audio = torch.randn(2, 5, before.config.audio_embeds_size, generator=generator)
    logits = [network(frames, audio_embeds=audio).logits for network in (before, after)]
    return f"{(logits[0] - logits[1]).abs().max():.1e} of {logits[0].abs().max():.1f}"


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        help="folders of checkpoints of one network; the last one provides configuration and processor",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", type=positive_integer, default=256, help="height and width of the frames, in pixels")
    parser.add_argument("--description", required=True, help="what the model knows, in one sentence")
    arguments = parser.parse_args()

    model = load_average(arguments.checkpoints)
    processor = PCMANetProcessor.from_pretrained(arguments.checkpoints[-1])
    processor.image_processor.size = {"height": arguments.size, "width": arguments.size}
    model.config.description = arguments.description
    model.save_pretrained(arguments.output)  # the configuration names float32, in which the weights will be loaded
    processor.save_pretrained(arguments.output)
    weights = load_file(arguments.output / WEIGHTS)
    rounded = {name: values.half() if is_rounded(name, values) else values for name, values in weights.items()}
    (arguments.output / WEIGHTS).write_bytes(save(rounded, metadata={"format": "pt"}))
    after = PCMANetForAudioVisualSegmentation.from_pretrained(arguments.output).eval()
    print(f"Largest difference of a logit: {largest_difference(model, after)}")
    print(f"Written to {arguments.output}: {(arguments.output / WEIGHTS).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
