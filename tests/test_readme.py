"""README and docs: their Python runs, their commands and files exist, the figures are those of the model cards."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES = ["README.md", "MODEL_CARD.md", "CONTRIBUTING.md", "examples/README.md", *DOCS]


@pytest.mark.parametrize("number", range(README.count("```python\n")))
def test_python_of_the_readme_runs(number):
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[number]
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip()


@pytest.mark.parametrize(
    "page", ["docs/guides/backbones.md", "docs/reference/inputs.md", "docs/benchmarks/streaming.md"]
)
def test_programs_of_a_page_run(page):
    programs = re.findall(r"```python\n(import.*?|from.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(result.stdout.splitlines()) >= len(programs) > 0


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_named_scripts_and_modules_exist(page):
    text = (ROOT / page).read_text()
    scripts = set(re.findall(r"python ((?:examples|benchmarks)/\w+\.py)", text))
    assert all((ROOT / script).is_file() for script in scripts), scripts
    modules = set(re.findall(r"python -m ((?:modeling_pcmanet|pcmanet)[\w.]+)", text))
    for module in modules:
        assert importlib.util.find_spec(module), module


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(), flags=re.MULTILINE)
    }
    assert named <= targets


def test_figures_of_the_readme_stand_in_the_model_card():
    card = (ROOT / "MODEL_CARD.md").read_text()
    rows = re.findall(
        r"^\| .*\d.*\|$", README.split("## What the bundled models know")[1].split("## ")[0], flags=re.MULTILINE
    )
    assert rows
    for row in rows:
        for figure in re.findall(r"\d+\.\d+", row):
            assert figure in card, figure
