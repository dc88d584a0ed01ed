"""The first lines of a program that cannot import our packages, except from the Hub, a checkpoint or a wheel."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


# The editable install is an import finder; folders on the path are left to the program.
WITHOUT_EDITABLE_INSTALL = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""
WITHOUT_OUR_PACKAGE = f"""{WITHOUT_EDITABLE_INSTALL}
try:
    import modeling_pcmanet
    sys.exit("our package can be imported here")
except ImportError:
    pass
"""


def run_isolated(program: str, *arguments: Any, folder: Path) -> list[Any]:
    """Run a program in a process of its own, without network, and return the lines of JSON that it prints."""
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line[:1] in ("[", "{")]
