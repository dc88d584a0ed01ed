"""The lesson before the pictures: a small VGGish learns to name sounds, as the published one did on audio tagging."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetFeatureExtractor, VGGishModel
from pcmanet.dataset_scripts.synthetic_listening import SoundMixtures
from pcmanet.dataset_scripts.synthetic_looks import CLASSES
from pcmanet.dataset_scripts.synthetic_sound import SAMPLING_RATE

from .networks import learning_rate_factor
from .recipe import Recipe


SOUNDS_PER_STEP = 16


@dataclass(frozen=True)
class SoundCollator:
    """Makes a batch of sounds; a class, because a worker that is not forked gets it pickled.

    Attributes:
        extractor: Makes the log-mel patches.
    """

    extractor: PCMANetFeatureExtractor

    def __call__(self, sounds: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Stack the log-mel patches of all seconds, and which classes are heard in each."""
        patches = [
            self.extractor(waveform, SAMPLING_RATE, num_frames=len(heard), return_tensors="pt")["input_features"]
            for waveform, heard in sounds
        ]
        return torch.cat(patches), torch.from_numpy(np.concatenate([heard for _, heard in sounds])).float()


def teach_listening(
    audio_encoder: VGGishModel, extractor: PCMANetFeatureExtractor, recipe: Recipe, device: torch.device, quiet: bool
) -> None:
    """Train the audio encoder to name what sounds in every second, with a linear layer that is thrown away after.

    Every process does the same work on the same sounds: it is short, and the weights stay equal without a word.

    Args:
        audio_encoder: Is changed; what of it learns afterwards stays as it was.
        extractor: Makes the log-mel patches.
        recipe: Says how many sounds, and how fast to learn.
        device: Where to compute.
        quiet: Whether to show no progress.
    """
    trainable = [parameter.requires_grad for parameter in audio_encoder.parameters()]
    audio_encoder.requires_grad_(True).to(device)
    tagger = torch.nn.Linear(audio_encoder.config.embedding_size, len(CLASSES)).to(device)
    parameters = [*audio_encoder.parameters(), *tagger.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    sounds = SoundMixtures(recipe.listening_sounds, seed=recipe.seed)
    loader = DataLoader(
        sounds,
        batch_size=min(SOUNDS_PER_STEP, recipe.listening_sounds),
        collate_fn=SoundCollator(extractor),
        num_workers=recipe.num_workers,
        drop_last=True,
    )
    bar = tqdm(loader, desc="listening", unit="step", mininterval=5.0, disable=quiet)
    for step, (patches, heard) in enumerate(bar):
        factor = learning_rate_factor(step, len(loader), "cosine", recipe.warmup_fraction)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        logits = tagger(audio_encoder(patches.to(device)).audio_embeds)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, heard.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    # Else the last lesson's gradient would still count in the first step with pictures.
    optimizer.zero_grad()
    for parameter, learns in zip(audio_encoder.parameters(), trainable, strict=True):
        parameter.requires_grad_(learns)
