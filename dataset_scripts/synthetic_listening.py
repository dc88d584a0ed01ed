"""Sounds of Sounding Shapes without pictures, to teach an audio encoder what sounds before it meets a picture."""

import numpy as np
from torch.utils.data import Dataset

from .synthetic_looks import CLASSES
from .synthetic_sound import SAMPLING_RATE, draw_voice, render_room, render_source


MIXTURE = (0.15, 0.4, 0.3, 0.15)  # chance that none, one, two or three classes sound in a second


class SoundMixtures(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Sounds made on the fly, each with the classes heard in every second; an index always gives the same bytes.

    The random streams are disjoint from those of `SoundingShapes`.

    Args:
        length: Number of sounds.
        seed: From 0 up.
        num_seconds: Duration of each.
    """

    def __init__(self, length: int, *, seed: int = 0, num_seconds: int = 5) -> None:
        self.length, self.seed, self.num_seconds = length, seed, num_seconds

    def __len__(self) -> int:
        """Number of sounds."""
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sound.

        Returns:
            float32 (num_seconds * 16000,), mono in [-1, 1), and bool (num_seconds, 12): which class is heard when.

        Raises:
            IndexError: If the index is not in [0, length).
        """
        if not 0 <= index < self.length:
            raise IndexError(f"sound {index} was asked for, but there are sounds 0 to {self.length - 1}")
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index,)))
        heard = np.zeros((self.num_seconds, len(CLASSES)), dtype=bool)
        present = generator.permutation(len(CLASSES))[:4]
        for second in heard:
            second[generator.permutation(present)[: generator.choice(len(MIXTURE), p=MIXTURE)]] = True
        dry = np.zeros(self.num_seconds * SAMPLING_RATE, dtype=np.float32)
        for label in present:
            dry += render_source(int(label), draw_voice(generator), heard[:, label])
        return render_room(generator, dry), heard
