"""Run the `pcmanet` command in float64 and record which files this process creates, opens for writing or renames.

    torchrun --nproc_per_node 2 tests/record_written_files.py train --output FOLDER/run ...

The lists are written to FOLDER/written_by_RANK.txt. Python reports the files that it opens itself; safetensors and
torch.save write from C++ and Rust, so their functions are replaced.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from float64_training import train_in_float64

from pcmanet.cli.main import main


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def record_written_files() -> None:
    """Write the path of every file that this process writes from now on to the list."""
    output = Path(sys.argv[sys.argv.index("--output") + 1])
    report = os.open(output.parent / f"written_by_{os.environ['RANK']}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def record(path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            os.write(report, os.path.abspath(os.fsencode(path)) + b"\n")

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and details[2] is not None and details[2] & WRITING:
            record(details[0])
        elif event == "os.rename":
            record(details[1])

    def recorded(save: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(content: Any, path: Any, *arguments: Any, **options: Any) -> Any:
            record(path)
            return save(content, path, *arguments, **options)

        return replacement

    torch.save = recorded(torch.save)
    safetensors.torch.save_file = recorded(safetensors.torch.save_file)
    sys.addaudithook(watch)


if __name__ == "__main__":
    record_written_files()
    train_in_float64()
    sys.exit(main())
