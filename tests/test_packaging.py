"""The wheel and the source distribution: what they hold, that they work away from the repository, and their metadata."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import yaml
from isolated_python import WITHOUT_EDITABLE_INSTALL
from page_workspace import code_of

import modeling_pcmanet
import pcmanet


ROOT = Path(__file__).parent.parent


def test_public_names_of_the_model_are_names_of_the_package():
    missing = {*modeling_pcmanet.__all__} - {*pcmanet.__all__}
    assert missing == {"save_code_with_weights"}  # for developers: it saves the code of the model next to its weights
    assert all(
        getattr(pcmanet, name) is getattr(modeling_pcmanet, name) for name in {*modeling_pcmanet.__all__} - missing
    )


def tracked(*patterns: str) -> list[str]:
    """Names of the tracked files that match patterns of Git."""
    return subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """Build wheel and source distribution with the setuptools of this environment, from a copy: a build leaves files."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("distributions")
    for name in tracked():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".safetensors"):
                (source / name).touch()  # compressing weights takes longer than everything else
            else:
                (source / name).symlink_to(ROOT / name)
    code = "import sys; from setuptools.build_meta import *; to = sys.argv[1]; build_sdist(to); build_wheel(to)"
    subprocess.run([sys.executable, "-c", code, folder], cwd=source, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions) -> Path:
    return next(distributions.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The unpacked wheel, with the weights that were left out of it."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    for name in tracked("examples/*.safetensors"):
        (folder / "pcmanet" / name).unlink()
        (folder / "pcmanet" / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    return message_from_bytes(zipfile.ZipFile(wheel).read(f"pcmanet-{pcmanet.__version__}.dist-info/METADATA"))


def test_holds_every_module_under_its_installed_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder, installed in (
        ("modeling_pcmanet", "modeling_pcmanet"),
        ("src/pcmanet", "pcmanet"),
        ("pipelines", "pcmanet/pipelines"),
        ("dataset_scripts", "pcmanet/dataset_scripts"),
        ("examples", "pcmanet/examples"),
    ):
        expected = {name.replace(folder, installed, 1) for name in tracked(f"{folder}/*.py")}
        assert expected
        assert expected <= set(names)
    top = {name.split("/")[0] for name in names}
    assert top == {"modeling_pcmanet", "pcmanet", f"pcmanet-{pcmanet.__version__}.dist-info"}


def test_holds_the_bundled_models_clips_and_recipes(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = ("demo_model", "demo_model_semantic", "real_world_model", "recipes", "accelerate_configs", "paired_data")
    data = tracked(
        "examples/*.mp4", "examples/*.css", "examples/*.js", *(f"examples/{folder}/*" for folder in folders)
    )
    assert len(data) > 30
    assert {f"pcmanet/{name}" for name in data} <= names
    modules = tracked("dataset_scripts/evaluate_modules/*")
    assert modules and {f"pcmanet/{name}" for name in modules} <= names
    assert sum((ROOT / name).stat().st_size for name in data) < 40e6  # PyPI accepts 100 MB


def test_the_source_distribution_builds_the_same_wheel_and_holds_no_tests(distributions, wheel):
    root = f"pcmanet-{pcmanet.__version__}/"
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.removeprefix(root) for name in archive.getnames()}
    renamed = {
        "pcmanet/pipelines": "pipelines",
        "pcmanet/dataset_scripts": "dataset_scripts",
        "pcmanet/examples": "examples",
    }
    for name in zipfile.ZipFile(wheel).namelist():
        if ".dist-info/" not in name:
            folder = next((folder for folder in renamed if name.startswith(f"{folder}/")), None)
            expected = (
                name.replace(folder, renamed[folder], 1) if folder else re.sub(r"^pcmanet/", "src/pcmanet/", name)
            )
            assert expected in names, name
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "setup.cfg"} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks", "."))]


def test_program_of_the_readme_runs_where_the_repository_is_not(site, tmp_path):
    code = (
        f"{WITHOUT_EDITABLE_INSTALL}"
        "sys.path.insert(0, sys.argv[1])\n"
        f"{code_of('README.md', 'python')}\n"
        "import modeling_pcmanet, pcmanet.dataset_scripts.metrics, pcmanet.pipelines, pcmanet.training.run\n"
        "for module in (modeling_pcmanet, pcmanet, pcmanet.pipelines, pcmanet.training.run):\n"
        "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
    )
    words = [sys.executable, "-c", code, str(site)]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(name in done.stdout for name in ("dog", "rooster", "helicopter", "torch.Size([10, 288, 512])"))


def test_one_version(wheel):
    assert wheel.name.startswith(f"pcmanet-{pcmanet.__version__}-")
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {pcmanet.__version__} " in changelog
    assert f"version: {pcmanet.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_a_typed_program_checks_against_the_installed_package(site, tmp_path):
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


def test_metadata_agree_with_the_citation(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))
    assert urls["Source"] == citation["repository-code"]
    assert urls["Homepage"] == citation["url"]
    assert urls["Paper"] == citation["references"][0]["url"]
    assert metadata["Author"] == citation["authors"][0]["name"]
    assert metadata["License"] == citation["license"]
    assert set(citation["keywords"]) <= set(metadata["Keywords"].split(","))
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_every_file_names_the_same_repository():
    owners = {"github.com": set(), "github.io": set()}
    for name in tracked("*.md", "*.py", "*.cfg", "*.cff", "*.yml", "*.ipynb"):
        text = (ROOT / name).read_text() if (ROOT / name).is_file() else ""
        owners["github.com"] |= set(re.findall(r"github(?:usercontent)?\.com/([\w-]+/pcmanet)\b", text, re.IGNORECASE))
        owners["github.io"] |= set(re.findall(r"([\w-]+)\.github\.io/pcmanet\b", text, re.IGNORECASE))
    assert owners == {"github.com": {"pcmanet/pcmanet"}, "github.io": {"pcmanet"}}


def test_ci_runs_every_python_version_that_the_metadata_name(metadata):
    declared = {line[26:] for line in metadata.get_all("Classifier") if re.search(r":: 3\.\d+$", line)}
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert set(jobs["test"]["strategy"]["matrix"]["python"]) == {name.split(":: ")[-1] for name in declared}
    assert metadata["Requires-Python"] == ">=" + min(jobs["test"]["strategy"]["matrix"]["python"])


def test_every_extra_that_is_named_exists(metadata):
    extras = set(metadata.get_all("Provides-Extra"))
    named = set()
    for name in tracked("*.md", "*.py", "*.yml", "*Dockerfile*"):
        text = (ROOT / name).read_text() if (ROOT / name).is_file() else ""
        named |= {extra for group in re.findall(r"pcmanet\[([\w,]+)\]", text) for extra in group.split(",")}
    assert {"app", "onnx", "archive"} <= named <= extras


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("v9.9.9", "pcmanet/pcmanet"), f"Expected the tag v{pcmanet.__version__}"),
        ((f"v{pcmanet.__version__}", "someone/fork"), "release from pcmanet/pcmanet"),
        ((), "usage: .ci/release TAG REPOSITORY"),
    ],
)
def test_the_release_refuses_another_tag_and_another_repository(arguments, message):
    result = subprocess.run([ROOT / ".ci" / "release", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert message in result.stderr


def test_the_release_workflow_publishes_what_was_checked():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    commands = [step.get("run") for step in jobs["build"]["steps"]]
    assert '.ci/release "$GITHUB_REF_NAME" "$GITHUB_REPOSITORY"' in commands
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"]["id-token"] == "write"  # trusted publishing: no password
    assert not any("password" in step.get("with", {}) for step in jobs["publish"]["steps"])


def test_the_forms_of_issues_are_valid():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))
    assert len(forms) == 2
    for form in map(yaml.safe_load, (path.read_text() for path in forms)):
        assert {"name", "description", "body"} <= set(form)
        fields = [field["id"] for field in form["body"]]
        assert len(set(fields)) == len(fields)
        assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in form["body"])
