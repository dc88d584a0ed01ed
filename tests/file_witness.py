"""Runs the training script and writes down which files this process makes, opens for writing or renames.

    torchrun --nproc_per_node 2 tests/file_witness.py --output FOLDER/run ...

The lists go to FOLDER/written_by_RANK.txt. Python reports what it opens itself; safetensors and torch.save write from C++
and Rust, so their functions are watched as well.
"""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch


SCRIPT = Path(__file__).parent.parent / "examples" / "train_pcmanet.py"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main() -> None:
    """Watch, then run the script as if it had been started itself."""
    output = Path(sys.argv[sys.argv.index("--output") + 1])
    report = os.open(output.parent / f"written_by_{os.environ['RANK']}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            os.write(report, os.path.abspath(os.fsencode(path)) + b"\n")

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and details[2] is not None and details[2] & WRITING:
            note(details[0])

    def watched(save: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(what: Any, path: Any, *arguments: Any, **options: Any) -> Any:
            note(path)
            return save(what, path, *arguments, **options)

        return replacement

    torch.save = watched(torch.save)
    safetensors.torch.save_file = watched(safetensors.torch.save_file)
    sys.addaudithook(watch)
    sys.argv[0] = str(SCRIPT)
    runpy.run_path(str(SCRIPT), run_name="__main__")


if __name__ == "__main__":
    main()
