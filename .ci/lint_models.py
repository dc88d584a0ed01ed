"""Run Hugging Face's model linter without the one rule that is for files inside transformers alone.

    python .ci/lint_models.py modeling_pcmanet

TRF057 asks for `@auto_docstring`, which looks arguments up in transformers' own source tree; our docstrings say them.
mlinter switches rules by its rules file, so this hands it a copy of its own file with that rule off.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import mlinter


REFUSED = ("TRF057",)


def main() -> int:
    """Lint what the command line names and return mlinter's exit code."""
    rules = (Path(mlinter.__file__).parent / "rules.toml").read_text()
    for rule in REFUSED:
        rules, count = re.subn(rf"(\[rules\.{rule}\][^\[]*?default_enabled = )true", r"\1false", rules)
        if count != 1:
            raise ValueError(f"mlinter's rules file no longer switches {rule} on: remove it from REFUSED.")
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(rules)
        file.flush()
        return subprocess.call(["mlinter", "--no-progress", "--rules-toml", file.name, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
