"""The wheel: what it holds, that it works away from the repository, and that it takes nobody's top-level name."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from isolated_python import WITHOUT_EDITABLE_INSTALL

import pcmanet


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel with the setuptools of this environment, from a copy: a build leaves files behind."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".cfg", ".toml", ".typed"} or name == "LICENSE":
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            folder,
            source,
        ],
        check=True,
    )
    return next(folder.glob("*.whl"))


def test_holds_every_module_under_its_installed_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder, installed in (
        ("modeling_pcmanet", "modeling_pcmanet"),
        ("src/pcmanet", "pcmanet"),
        ("pipelines", "pcmanet/pipelines"),
        ("dataset_scripts", "pcmanet/dataset_scripts"),
        ("examples", "pcmanet/examples"),
    ):
        tracked = subprocess.run(
            ["git", "ls-files", f"{folder}/*.py"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        expected = {line.replace(folder, installed, 1) for line in tracked.stdout.split()}
        assert expected
        assert expected <= set(names)
    top = {name.split("/")[0] for name in names}
    assert top == {"modeling_pcmanet", "pcmanet", f"pcmanet-{pcmanet.__version__}.dist-info"}


def test_works_where_the_repository_is_not(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"{WITHOUT_EDITABLE_INSTALL}"
        "sys.path.insert(0, sys.argv[1])\n"
        "import pcmanet, modeling_pcmanet, pcmanet.pipelines, pcmanet.dataset_scripts.metrics, pcmanet.training.run\n"
        "assert modeling_pcmanet.__file__.startswith(sys.argv[1]), modeling_pcmanet.__file__\n"
        "print(modeling_pcmanet.PCMANetConfig.from_preset('tiny').hidden_size)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "64"


def test_one_version(wheel):
    assert wheel.name.startswith(f"pcmanet-{pcmanet.__version__}-")
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {pcmanet.__version__} " in changelog
    assert f"version: {pcmanet.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_a_typed_program_checks_against_the_installed_package(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert (site / "pcmanet" / "py.typed").is_file() and (site / "modeling_pcmanet" / "py.typed").is_file()
    program = tmp_path / "program.py"
    program.write_text((ROOT / "tests" / "typed_consumer.py").read_text())
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"include": ["program.py"], "extraPaths": [str(site)]}))
    command = [
        sys.executable,
        "-m",
        "basedpyright",
        "--outputjson",
        "--level",
        "error",
        "--pythonpath",
        sys.executable,
    ]
    result = subprocess.run([*command, "-p", str(tmp_path)], capture_output=True, text=True, check=False)
    problems = json.loads(result.stdout)["generalDiagnostics"]
    reported = {problem["range"]["start"]["line"] + 1: problem["message"] for problem in problems}
    lines = program.read_text().splitlines()
    expected = {number for number, line in enumerate(lines, start=1) if "# error:" in line}
    assert set(reported) == expected, reported
