"""Which errors are of what was given, not of this program, and how the command says them."""

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from modeling_pcmanet.media_source_pcmanet import SOUND_REMEDY

from .videos import printable


# Of one video: the others are segmented all the same. A full disk (another OSError) is not among them.
VIDEO_ERRORS = (ValueError, FileNotFoundError, MemoryError, torch.OutOfMemoryError)
_USER_ERRORS = (*VIDEO_ERRORS, OSError, StrictDataclassError, SafetensorError, ModuleNotFoundError)


def is_of_user(error: Exception) -> bool:
    """Tells whether an error is of what was given, so that its message says all."""
    return isinstance(error, _USER_ERRORS)


def say(error: Exception) -> str:
    """Writes an error in one line, with the options of the command in place of Python's arguments."""
    remedy = "Give the file that holds its sound with --audio."
    return printable(" ".join(str(error).replace(SOUND_REMEDY, remedy).split())) or type(error).__name__
