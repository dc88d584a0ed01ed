"""Compare AudioMobileNet with recorded outputs of the published network, and time it.

    python benchmarks/audio_mobilenet.py --checkpoint mn04_as_mAP_432.pt --recorded mn04_recorded.json

Prints the largest deviation of the spectrogram, the embedding and the class scores per recording, and the CPU time of one
second of audio.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from modeling_pcmanet.convert_pcmanet_to_hf import convert_state_dict, read_state_dict
from modeling_pcmanet.feature_extraction_pcmanet import AudioMobileNetFeatureExtractor


ROUNDS = 50


def recorded_waveform(seed: int, samples: int) -> torch.Tensor:
    """Return the waveform (samples,) of a recording: an amplitude-modulated tone with noise."""
    seconds = torch.arange(samples) / 32000
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    tone = torch.sin(2 * torch.pi * (300 + 200 * seed) * seconds) * (0.5 + 0.5 * torch.sin(2 * torch.pi * 3 * seconds))
    return 0.3 * tone + 0.02 * noise


def deviation(values: torch.Tensor, recorded: list[float]) -> float:
    """Return the largest absolute difference from the recorded values, which come first."""
    return (values[: len(recorded)] - torch.tensor(recorded)).abs().max().item()


@torch.inference_mode()
def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="published state dict of a mn04")
    parser.add_argument("--recorded", type=Path, required=True, help="JSON file of recorded outputs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = convert_state_dict(read_state_dict(arguments.checkpoint)).model
    extractor = AudioMobileNetFeatureExtractor()
    print("| seed | samples | spectrogram | embedding | class scores |\n|---|---|---|---|---|")
    for record in json.loads(arguments.recorded.read_text()):
        waveform = recorded_waveform(record["seed"], record["samples"])
        features = extractor(waveform, sampling_rate=32000, return_tensors="pt")["input_features"]
        outputs = model(features, output_logits=True)
        deviations = (
            deviation(features[0, 0, 10, 5:10], record["log_mel[0,10,5:10]"]),
            deviation(outputs.pooler_output[0], record["pooled[0,:8]"]),
            deviation(outputs.logits[0], record["logits[0,:8]"]),
        )
        print(f"| {record['seed']} | {record['samples']} | {' | '.join(f'{value:.1e}' for value in deviations)} |")
    second = recorded_waveform(0, 32000)
    start = time.process_time()
    for _ in range(ROUNDS):
        features = extractor(second, sampling_rate=32000, return_tensors="pt")["input_features"]
    middle = time.process_time()
    for _ in range(ROUNDS):
        model(features)
    end = time.process_time()
    print(
        f"\nOne second of audio, one thread: features {(middle - start) / ROUNDS * 1e3:.1f} ms, network {(end - middle) / ROUNDS * 1e3:.1f} ms."
    )


if __name__ == "__main__":
    main()
