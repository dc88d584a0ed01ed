"""What does each audio encoder receive and return per frame, and what does it cost?

    python benchmarks/audio_encoders.py
    python benchmarks/audio_encoders.py --window 1 0    # the last second before the frame

Prints a Markdown table of the default configuration of each type: the sampling rate and the shape of the features of one
frame, the width of the embedding, parameters, and multiply-accumulates per frame (torch.utils.flop_counter: one
multiply-accumulate is two FLOPs). Nothing is timed and no weights are needed.
"""

import argparse

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_pcmanet.configuration_encoders import (
    AUDIO_CONFIGS,
    audio_embedding_size,
    build_audio_config,
)
from modeling_pcmanet.feature_extraction_pcmanet import build_feature_extractor
from modeling_pcmanet.modeling_audio_encoders import build_audio_encoder, embed_audio
from pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor


MODEL_TYPES = (
    *AUDIO_CONFIGS,
    "audio-spectrogram-transformer",
    "clap_audio_model",
    "wav2vec2",
    "whisper",
    "pe_audio_encoder",
)


def build_row(model_type: str, window: list[float]) -> list[str]:
    """Return the cells of one type of audio encoder.

    Args:
        model_type: Model type of the configuration.
        window: Seconds before and after the frame; a feature extractor that places patches ignores it.
    """
    config = build_audio_config({"model_type": model_type})
    extractor = build_feature_extractor(config)
    places_patches = isinstance(extractor, PCMANetFeatureExtractor)
    processor = PCMANetProcessor(PCMANetImageProcessor(), extractor, None if places_patches else [window])
    rate = extractor.sampling_rate
    frame = processor(
        videos=np.zeros((1, 32, 32, 3), np.uint8), audio=np.zeros(rate), sampling_rate=rate, return_tensors="pt"
    )
    features = frame["input_features"][0]
    with torch.device("meta"):
        encoder = build_audio_encoder(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        embedding = embed_audio(encoder, features.to("meta"))
    assert embedding.shape == (1, audio_embedding_size(config))
    seconds = extractor.patch_length / rate if places_patches else sum(window)
    return [
        model_type,
        f"{rate:,} Hz",
        f"{seconds:g} s",
        " x ".join(map(str, features.shape[1:])),
        str(embedding.shape[1]),
        f"{sum(parameter.numel() for parameter in encoder.parameters()) / 1e6:.2f} M",
        f"{counter.get_total_flops() / 2e9:.2f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--window",
        nargs=2,
        type=float,
        default=[2.0, 2.0],
        metavar=("BEFORE", "AFTER"),
        help="seconds before and after the frame (default: %(default)s)",
    )
    arguments = parser.parse_args()
    names = ["model type", "sampling rate", "window", "features of a frame", "width", "parameters", "GMACs per frame"]
    print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for model_type in MODEL_TYPES:
        print(f"| {' | '.join(build_row(model_type, arguments.window))} |")


if __name__ == "__main__":
    main()
