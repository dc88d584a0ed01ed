"""AVSBench's published log-mel files, which are pickles, read without running anything that they say."""

import io
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


PATCH_SHAPE = (1, 96, 64)  # of VGGish
LARGEST_FILE = 16 * 2**20  # bytes; a published file holds 5 patches, 123 kB


def read_log_mel(path: str | Path, frames: int) -> np.ndarray:
    """Read one `audio_log_mel` file.

    Args:
        path: Of a pickled tensor.
        frames: How many patches it must hold.

    Returns:
        float32 (frames, 1, 96, 64).

    Raises:
        ValueError: If the file is large, damaged, asks for anything but a tensor, or holds another shape or values
            that are not finite. Nothing of it has run then.
    """
    if Path(path).stat().st_size > LARGEST_FILE:
        raise ValueError(f"has more than {LARGEST_FILE} bytes; a log-mel file holds {frames} patches of 24 kB")
    try:
        tensor = _TensorUnpickler(io.BytesIO(Path(path).read_bytes())).load()
    # A damaged pickle fails in any way at all.
    except Exception as error:
        raise ValueError(f"is no pickled tensor, and was not run ({error}); use the wav") from error
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != (frames, *PATCH_SHAPE):
        came = f"a tensor {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        raise ValueError(f"holds {came}, expected a tensor {(frames, *PATCH_SHAPE)}; use the wav")
    if not torch.isfinite(tensor).all():
        raise ValueError("holds values that are not finite; use the wav")
    return tensor.detach().to(torch.float32).numpy()


class _TensorUnpickler(pickle.Unpickler):
    """Knows the names by which a tensor is pickled and refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call."""
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): _load_storage,
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]


def _rebuild_tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> torch.Tensor:
    """Put a tensor on its storage; unlike torch's own function of this name it never makes the storage larger."""
    values = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    return values.as_strided(size, stride, offset)


def _load_storage(data: bytes) -> Any:
    """Load the pickled storage inside a pickled tensor; torch's own unpickler is restricted as well."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message advises to switch the restriction off.
        raise pickle.UnpicklingError("its storage holds more than numbers") from error


def _encode(text: str, encoding: str) -> bytes:
    """Write bytes as the pickle protocols before the third spell them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")
