"""Check the types of the library as it is installed, with pyright (the basedpyright distribution, which needs no Node.js).

    python .ci/check_types.py            # all files; what `make check` runs
    python .ci/check_types.py pipelines  # only errors below a folder or in a file

The packages are in several folders of the repository and are joined under one name when they are installed (setup.cfg,
`package_dir`). Type checkers do not follow the import hooks of an editable installation, so the packages are copied
into one temporary folder first. Reported paths are those of the repository.
"""

import configparser
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("modeling_pcmanet", "pcmanet")
CONFIGURATION = {
    "include": list(CHECKED),
    "exclude": ["pcmanet/examples"],
    "pythonVersion": "3.11",
    "typeCheckingMode": "basic",
    # Third-party noise: these libraries re-export names and ship partial stubs.
    "reportPrivateImportUsage": False,
    "reportMissingModuleSource": False,
    "reportMissingTypeStubs": False,
}


def package_folders() -> dict[str, Path]:
    """Read where each installed package is in the repository, parents first."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["package_dir"].strip().splitlines()
    pairs = [[part.strip() for part in line.split("=")] for line in lines]
    return {package: ROOT / folder for package, folder in sorted(pairs)}


def join_packages(target: Path) -> dict[str, Path]:
    """Copy the packages under their installed names.

    Args:
        target: An empty folder.

    Returns:
        The folder in the repository of each copied folder.
    """
    origins = {}
    for package, folder in package_folders().items():
        copy = target.joinpath(*package.split("."))
        shutil.copytree(
            folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.mp4", "demo_model*")
        )
        origins[str(copy)] = folder
    return origins


def check(folder: Path) -> list[dict]:
    """Run the type checker on a folder that holds a `pyrightconfig.json` and return its diagnostics."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(result.stdout)["generalDiagnostics"]
    except ValueError:
        raise RuntimeError(f"The type checker failed:\n{result.stdout}{result.stderr}") from None


def main(only: list[str]) -> int:
    """Print every error with its place in the repository; return 1 if there is any."""
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary).resolve()
        origins = join_packages(target)
        (target / "pyrightconfig.json").write_text(json.dumps(CONFIGURATION))
        lines = []
        for problem in check(target):
            copy = max((copy for copy in origins if problem["file"].startswith(copy)), key=len)
            path = origins[copy].joinpath(Path(problem["file"]).relative_to(copy)).relative_to(ROOT)
            line = problem["range"]["start"]["line"] + 1
            message = problem["message"].replace(str(target), "").replace("\n", "\n    ")
            if not only or any(str(path).startswith(prefix) for prefix in only):
                lines.append(f"{path}:{line}: {message} [{problem.get('rule', 'syntax')}]")
    print("\n".join([*lines, f"{len(lines)} type errors"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
