"""Log-mel features on disk, found again by the content of the sound and the settings that made them."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BatchFeature

from modeling_pcmanet.feature_extraction_pcmanet import PCMANetFeatureExtractor


VERSION = 1  # of how features are computed; a higher one makes all files of an older one unknown


class LogMelCache:
    """A feature extractor that computes the features of a sound once, and reads them from then on.

    Several processes may share a folder. A file is written aside and renamed; a damaged one is written again.

    Args:
        extractor: What computes.
        folder: Where features are kept, 24 kB per frame; made if there is none.
    """

    def __init__(self, extractor: PCMANetFeatureExtractor, folder: str | Path) -> None:
        self.extractor = extractor
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def model_input_names(self) -> list[str]:
        """What the extractor gives."""
        return self.extractor.model_input_names

    def __call__(
        self, audio: Any, sampling_rate: int | None = None, *, return_tensors: str | None = None, **options: Any
    ) -> BatchFeature:
        """Give the features of one sound.

        Args:
            audio: As the extractor takes it, one clip.
            sampling_rate: Of the audio, in hertz.
            return_tensors: As for the extractor.
            **options: All else that the extractor takes.

        Returns:
            `input_features` (frames, 1, 96, 64), float32.

        Raises:
            ValueError: What the extractor raises.
        """
        path = self._path(audio, sampling_rate, options)
        features = _read(path)
        if features is None:
            features = np.asarray(self.extractor(audio, sampling_rate, **options)["input_features"], dtype=np.float32)
            _write(path, features)
        return BatchFeature({"input_features": features}, tensor_type=return_tensors)

    def _path(self, audio: Any, sampling_rate: int | None, options: dict[str, Any]) -> Path:
        """Name the file of a sound."""
        samples = np.ascontiguousarray(audio)
        settings = {
            "version": VERSION,
            "extractor": self.extractor.to_dict(),
            "sampling_rate": sampling_rate,
            "samples": [samples.dtype.str, samples.shape],
            "options": options,
        }
        digest = hashlib.sha256(
            json.dumps(settings, sort_keys=True, default=lambda value: np.asarray(value).tolist()).encode()
        )
        digest.update(samples)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.npy"


def _read(path: Path) -> np.ndarray | None:
    """Read features, or return None if they are not there or damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None


def _write(path: Path, features: np.ndarray) -> None:
    """Write features aside and rename."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.npy")
    np.save(aside, features, allow_pickle=False)
    os.replace(aside, path)
