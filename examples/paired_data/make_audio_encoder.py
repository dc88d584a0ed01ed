"""Make the audio encoder of a real-world model: an AudioSet tagger whose embedding is the scores of groups of classes.

    python -m modeling_pcmanet.convert_pcmanet_to_hf --checkpoint mn04_as_mAP_432.pt --output mn04 \
        --labels audioset_class_labels_indices.csv
    python examples/paired_data/make_audio_encoder.py mn04 examples/paired_data/real_world.yaml runs/audio_encoder

There is one group for each class of the data (its `audioset` names) and for each entry of `other_sounds`. The score of a
group is the logarithm of the summed exponentials of its classes. It is standardized with its mean and standard deviation
over the training recordings of all other groups, so that a value of 4 means the same for a class that the tagger scores
often and for one that it scores rarely. Each recording counts with the 4 seconds around its loudest second.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from modeling_pcmanet import AudioMobileNetFeatureExtractor, AudioMobileNetModel
from pcmanet.dataset_scripts.paired import Library, read_settings
from pcmanet.dataset_scripts.paired.clips import measure


SECONDS = 4  # of each recording
LEVEL = 0.05  # root mean square to which recordings are scaled


def find_groups(model: AudioMobileNetModel, groups: dict[str, tuple[str, ...]]) -> dict[str, list[int]]:
    """Return the class indexes of each group; raise ValueError for names that the model does not know."""
    indexes = {name: index for index, name in (model.config.id2label or {}).items()}
    unknown = [label for labels in groups.values() for label in labels if label not in indexes]
    empty = [name for name, labels in groups.items() if not labels]
    if unknown or empty:
        raise ValueError(
            f"Expected the names of AudioSet classes in every group, got the unknown names {unknown} and no name for {empty}."
        )
    return {name: [indexes[label] for label in labels] for name, labels in groups.items()}


def cut_loudest(recording: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Return the 4 seconds around the loudest second, repeated if the recording is shorter: float32 (samples,)."""
    level, _ = measure(recording, sampling_rate)
    samples = recording.astype(np.float32) / np.float32(level) * LEVEL
    energy = np.convolve(np.square(samples)[::100], np.ones(sampling_rate // 100), mode="same")
    start = int(energy.argmax()) * 100 - SECONDS * sampling_rate // 2
    start = max(0, min(start, len(samples) - SECONDS * sampling_rate))
    return np.resize(samples[start : start + SECONDS * sampling_rate], SECONDS * sampling_rate)


@torch.no_grad()
def score_recordings(model: AudioMobileNetModel, library: Library) -> tuple[torch.Tensor, list[frozenset[str]]]:
    """Compute the class scores of the training recordings, (recordings, classes), and the labels of each."""
    extractor, rate = AudioMobileNetFeatureExtractor(), library.settings.clips.sampling_rate
    logits, labels = [], []
    numbers = [number for number, split in enumerate(library.recording_splits) if split == "train"]
    for number in tqdm(numbers, desc="recordings"):
        features = extractor(cut_loudest(library.recording(number), rate), rate, return_tensors="pt")
        logits.append(model(features["input_features"], output_logits=True).logits[0])
        labels.append(frozenset(library.recordings[number].labels))
    return torch.stack(logits), labels


def main() -> None:
    """Standardize the groups and save the encoder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("tagger", help="folder or Hub id of an AudioMobileNet that knows AudioSet's classes")
    parser.add_argument("data", type=Path, help="settings of the paired data")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()

    settings = read_settings(arguments.data)
    model = AudioMobileNetModel.from_pretrained(arguments.tagger).eval()
    groups = {one.name: one.audioset for one in settings.classes} | dict(settings.other_sounds)
    indexes_of_group = find_groups(model, dict(sorted(groups.items())))
    logits, labels = score_recordings(model, Library(settings, progress=True))
    # What a recording of a group is called: the labels of its class, or the name of the group itself.
    sounds = {one.name: set(one.sounds) for one in settings.classes}
    means, scales = [], []
    for name, indexes in indexes_of_group.items():
        scores = logits[:, indexes].logsumexp(dim=1)
        others = torch.tensor([not (found & sounds.get(name, {name})) for found in labels])
        means.append(round(scores[others].mean().item(), 4))
        scales.append(round(scores[others].std().item(), 4))
    model.config.score_groups, model.config.score_means, model.config.score_scales = indexes_of_group, means, scales
    model.save_pretrained(arguments.output)
    AudioMobileNetFeatureExtractor().save_pretrained(arguments.output)
    print("group: mean, standard deviation over other sounds")
    for name, mean, scale in zip(indexes_of_group, means, scales, strict=True):
        print(f"{name}: {mean:.2f}, {scale:.2f}")
    print(f"Written to {arguments.output}")


if __name__ == "__main__":
    main()
