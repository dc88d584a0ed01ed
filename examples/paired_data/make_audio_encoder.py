"""Make the audio encoder of a real-world model: an AudioSet tagger whose embedding consists of scores of class groups.

    python -m modeling_pcmanet.convert_pcmanet_to_hf --checkpoint mn04_as_mAP_432.pt --output mn04 \
        --labels audioset_class_labels_indices.csv
    python examples/paired_data/make_audio_encoder.py mn04 examples/paired_data/real_world.yaml runs/audio_encoder

There is one group for each class of the data (its `audioset` names) and for each entry of `other_sounds`. The score of a
group is the logarithm of the summed exponentials of its classes.

First, the last layer of the tagger is adapted to the training recordings, so that the group of a recording has the
highest standardized score. Only the weights of the AudioSet classes of groups with recordings change, and a penalty
keeps them close to those of the tagger, which was trained on far more recordings. Then the scores of each group are
standardized with their mean and standard deviation over the training recordings of all other groups, so that a value
of 4 means the same for a class that the tagger scores often and for one that it scores rarely.

Prints how often the right group has the highest score before and after, for the validation recordings.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from modeling_pcmanet import AudioMobileNetFeatureExtractor, AudioMobileNetModel
from pcmanet.dataset_scripts.paired import Library, read_settings
from pcmanet.dataset_scripts.paired.clips import measure
from pcmanet.dataset_scripts.paired.settings import PairedClass


SECONDS = 4  # of the longer windows; the shorter ones last one second
LEVEL = 0.05  # root mean square to which recordings are scaled
WINDOWS = 8  # of each length from each training recording
LOUD = 0.25  # the middles of the windows have at least this fraction of the energy of the loudest second
LEVEL_DECIBELS = (-10, 4)  # added to LEVEL
NOISE = (-5, -3)  # range of the logarithm of the standard deviation of the added noise
# Chosen by cross-validation over the sources of the training and validation recordings.
STEPS, LEARNING_RATE, PENALTY = 100, 0.005, 0.01


def find_groups(model: AudioMobileNetModel, groups: dict[str, tuple[str, ...]]) -> dict[str, list[int]]:
    """Return the class indices of each group; raise ValueError for names that the model does not know."""
    indices = {name: index for index, name in (model.config.id2label or {}).items()}
    unknown = [label for labels in groups.values() for label in labels if label not in indices]
    empty = [name for name, labels in groups.items() if not labels]
    if unknown or empty:
        raise ValueError(
            f"Expected the names of AudioSet classes in every group, got the unknown names {unknown} and no name for {empty}."
        )
    return {name: [indices[label] for label in labels] for name, labels in groups.items()}


def cut_loudest(recording: np.ndarray, sampling_rate: int) -> list[np.ndarray]:
    """Return one window: the 4 seconds around the loudest second, repeated if the recording is shorter: float32 (samples,)."""
    samples, energy = normalize(recording, sampling_rate)
    start = int(energy.argmax()) * 100 - SECONDS * sampling_rate // 2
    start = max(0, min(start, len(samples) - SECONDS * sampling_rate))
    return [np.resize(samples[start : start + SECONDS * sampling_rate], SECONDS * sampling_rate)]


def normalize(recording: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a scaled recording, and the energy of the second around every 100th sample."""
    level, _ = measure(recording, sampling_rate)
    samples = recording.astype(np.float32) / np.float32(level) * LEVEL
    energy = np.convolve(np.square(samples)[::100], np.ones(sampling_rate // 100), mode="same")
    return samples, energy[: -(-len(samples) // 100)]


def draw_windows(recording: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield windows of one and of 4 seconds around loud places, at various levels and with faint noise."""
    samples, energy = normalize(recording, sampling_rate)
    padded = np.pad(samples, SECONDS * sampling_rate // 2)
    for middle in (
        generator.choice(np.flatnonzero(energy >= LOUD * energy.max()), WINDOWS) * 100 + SECONDS * sampling_rate // 2
    ):
        for seconds in (1, SECONDS):
            start = middle - seconds * sampling_rate // 2
            window = padded[start : start + seconds * sampling_rate] * 10 ** (generator.uniform(*LEVEL_DECIBELS) / 20)
            noise = generator.normal(0, 10 ** generator.uniform(*NOISE), len(window))
            yield (window + noise).astype(np.float32)


@torch.no_grad()
def embed_recordings(
    model: AudioMobileNetModel, library: Library, split: str, cut: Callable[[np.ndarray, int], Iterable[np.ndarray]]
) -> tuple[torch.Tensor, list[frozenset[str]]]:
    """Compute the input of the last layer for windows of the recordings of a split.

    Args:
        model: The tagger.
        library: The recordings.
        split: "train" or "val".
        cut: Returns the windows of a recording with a sampling rate, the same number for each recording.

    Returns:
        (recordings, windows, width), and the labels of each recording.
    """
    numbers = [number for number, found in enumerate(library.recording_splits) if found == split]
    rate, extractor = library.settings.clips.sampling_rate, AudioMobileNetFeatureExtractor()
    embedded = [
        torch.stack(
            [
                _embed(model, extractor(window, rate, return_tensors="pt")["input_features"])
                for window in cut(library.recording(number), rate)
            ]
        )
        for number in tqdm(numbers, desc=f"{split} recordings")
    ]
    return torch.stack(embedded), [frozenset(library.recordings[number].labels) for number in numbers]


def _embed(model: AudioMobileNetModel, features: torch.Tensor) -> torch.Tensor:
    """Return the input of the last layer for the features of one window."""
    return functional.hardswish(model.classifier_dense(model(features).pooler_output[0]))


def score_groups(logits: torch.Tensor, indices_of_group: Iterable[list[int]]) -> torch.Tensor:
    """Return the scores of the groups, (..., groups), for class scores (..., classes)."""
    return torch.stack([logits[..., indices].logsumexp(dim=-1) for indices in indices_of_group], dim=-1)


def find_owners(labels: list[frozenset[str]], groups: list[PairedClass]) -> torch.Tensor:
    """Return which recordings, with these labels, belong to which groups: bool (recordings, groups)."""
    return torch.tensor([[not found.isdisjoint(group.sounds) for group in groups] for found in labels])


def standardization(scores: torch.Tensor, owners: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and standard deviation of the scores of each group over the sounds of the others.

    Args:
        scores: (sounds, groups).
        owners: As [`find_owners`] returns them.
    """
    others = [column[~owned] for column, owned in zip(scores.T, owners.T, strict=True)]
    return torch.stack([one.mean() for one in others]), torch.stack([one.std() for one in others])


def adapt(model: AudioMobileNetModel, inputs: torch.Tensor, owners: torch.Tensor, groups: list[list[int]]) -> None:
    """Fine-tune the weights of the AudioSet classes of groups with recordings.

    Args:
        model: Its last layer is changed.
        inputs: Inputs of the last layer, (windows, width).
        owners: The groups of each window, as [`find_owners`] returns them. Windows of no group or of several count
            only for the standardization.
        groups: The class indices of each group.
    """
    used = owners.sum(1) == 1
    targets = owners[used].int().argmax(1)
    counts = torch.bincount(targets, minlength=len(groups))
    weights = (1 / counts)[targets] / (counts > 0).sum()  # each group counts as much as any other
    classes = sorted({index for group, count in zip(groups, counts.tolist(), strict=True) if count for index in group})
    change = torch.zeros(len(classes), inputs.shape[1] + 1, requires_grad=True)  # of the weights and of the bias
    optimizer = torch.optim.Adam([change], lr=LEARNING_RATE)
    logits = model.classifier(inputs).detach()
    mean, scale = standardization(score_groups(logits, groups), owners)
    for _ in range(STEPS):
        changes = inputs[used] @ change[:, :-1].T + change[:, -1]
        scores = score_groups(logits[used].index_add(1, torch.tensor(classes), changes), groups)
        losses = functional.cross_entropy((scores - mean) / scale, targets, reduction="none")
        loss = (losses * weights).sum() + PENALTY * change[:, :-1].square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        model.classifier.weight[classes] += change[:, :-1]
        model.classifier.bias[classes] += change[:, -1]


def count_right(scores: torch.Tensor, owners: torch.Tensor) -> list[tuple[int, int]]:
    """Return for each group how many of its sounds it scores higher than all other groups do, and how many it has."""
    right = functional.one_hot(scores.argmax(1), owners.shape[1]).bool() & owners
    return list(zip(right.sum(0).tolist(), owners.sum(0).tolist(), strict=True))


def main() -> None:
    """Adapt the tagger, standardize the groups and save the encoder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("tagger", help="folder or Hub id of an AudioMobileNet that knows AudioSet's classes")
    parser.add_argument("data", type=Path, help="settings of the paired data")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()

    settings = read_settings(arguments.data)
    model = AudioMobileNetModel.from_pretrained(arguments.tagger).eval()
    groups = sorted((*settings.classes, *settings.other_sounds), key=lambda one: one.name)
    indices_of_group = find_groups(model, {one.name: one.audioset for one in groups})
    indices = list(indices_of_group.values())
    library = Library(settings, progress=True)
    windows, labels = embed_recordings(
        model, library, "train", partial(draw_windows, generator=np.random.default_rng(0))
    )
    loudest, _ = embed_recordings(model, library, "train", cut_loudest)
    held_out, held_out_labels = embed_recordings(model, library, "val", cut_loudest)
    owners, held_out_owners = find_owners(labels, groups), find_owners(held_out_labels, groups)

    def standardize() -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
        with torch.no_grad():
            mean, scale = standardization(score_groups(model.classifier(loudest[:, 0]), indices), owners)
            scores = (score_groups(model.classifier(held_out[:, 0]), indices) - mean) / scale
        return mean, scale, count_right(scores, held_out_owners)

    *_, before = standardize()
    adapt(model, windows.flatten(0, 1), owners.repeat_interleave(windows.shape[1], dim=0), indices)
    means, scales, after = standardize()
    model.config.score_groups = indices_of_group
    model.config.score_means = [round(value, 4) for value in means.tolist()]
    model.config.score_scales = [round(value, 4) for value in scales.tolist()]
    model.save_pretrained(arguments.output)
    AudioMobileNetFeatureExtractor().save_pretrained(arguments.output)
    print(
        "| group | mean over other sounds | standard deviation | validation recordings | right before | right after |"
    )
    print("|---|---|---|---|---|---|")
    for group, mean, scale, (old, count), (new, _) in zip(groups, means, scales, before, after, strict=True):
        print(f"| {group.name} | {mean:.2f} | {scale:.2f} | {count} | {old} | {new} |")
    print(f"\nWritten to {arguments.output}")


if __name__ == "__main__":
    main()
