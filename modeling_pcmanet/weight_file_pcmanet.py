"""Opening files of published weights: nothing in them is executed, and what lies around the weights is taken off."""

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


StateDict = Mapping[str, torch.Tensor]


class ConversionError(ValueError):
    """A file that cannot be converted; the message says why and lists every key in question."""


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint without executing anything in it.

    Args:
        path: A `.safetensors` file or one that `torch.save` wrote, in which the state dict may lie below other names
            (`state_dict`, `model`, ...).

    Raises:
        FileNotFoundError: If there is no such file.
        ConversionError: If the file is damaged, holds more than plain data, or not exactly one state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to switch the protection off, so only the name of the culprit is taken over.
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        raise ConversionError(
            f"{path} was refused and nothing in it was executed: it holds more than tensors"
            f"{f' (it asks for {culprit[1]})' if culprit else ''}. If you trust its author, load it where it was made, "
            "write the tensors alone with torch.save(model.state_dict(), 'plain.pth'), and convert that file."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, LookupError) as error:
        raise ConversionError(f"{path} is damaged or no checkpoint: {error or type(error).__name__}.") from error
    return _find_state_dict(loaded, path)


def _find_state_dict(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    """Return the one state dict in what a file holds, at whatever depth."""
    found = dict(_walk(loaded, "the file"))
    if len(found) != 1:
        raise ConversionError(
            f"{path} must hold exactly one state dict (names with dots to tensors), found {', '.join(found) or 'none'}. "
            "Write the one you mean to a file of its own with torch.save and convert that."
        )
    return dict(next(iter(found.values())))


def _walk(value: object, place: str) -> Iterator[tuple[str, StateDict]]:
    """Yield every state dict below a value; the state of an optimizer has no dots in its names and is none."""
    if not isinstance(value, Mapping):
        return
    if all(torch.is_tensor(item) for item in value.values()) and any("." in str(key) for key in value):
        yield place, value
        return
    for key, item in value.items():
        yield from _walk(item, f"{place}[{key!r}]")


def without_wrappers(state_dict: StateDict) -> dict[str, torch.Tensor]:
    """Strip what DataParallel and torch.compile put before every key."""
    wrapper = re.compile(r"(?:module\.|_orig_mod\.)+")
    if all(wrapper.match(key) for key in state_dict):
        return {wrapper.sub("", key, count=1): tensor for key, tensor in state_dict.items()}
    return dict(state_dict)


__all__ = ["ConversionError", "StateDict", "read_state_dict", "without_wrappers"]
