"""The documentation site: its navigation names every page, and it builds without a warning."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def list_pages(entry: Any) -> Iterator[str]:
    """Yield the pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    for part in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
        yield from list_pages(part)


def test_navigation_names_exactly_the_pages():
    named = list(list_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(named) == len(set(named))
    assert set(named) == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    pytest.importorskip("mkdocs", reason="`make docs` installs mkdocs")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def read_page(site: Path, name: str) -> str:
    """Return the HTML of a page, given by its path without the suffix."""
    return (site / name.removesuffix("index") / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_site_has_every_page_and_loads_nothing_from_other_servers(site: Path):
    for page in DOCS.rglob("*.md"):
        html = read_page(site, str(page.relative_to(DOCS).with_suffix("")))
        assert "<h1" in html, page
        assert re.findall(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]*"', html) == [], page
        assert re.findall(r'<link[^>]* rel="(?:stylesheet|preconnect)"[^>]* href="(?:https?:)?//[^"]*"', html) == [], (
            page
        )


@pytest.mark.slow
def test_generated_parts_are_those_of_the_code(site: Path):
    from pcmanet.training.recipe import Recipe  # here, because it imports torch

    command_line = read_page(site, "reference/command_line")
    for text in (
        "--early-exit-threshold",
        "--list-fields",
        "internal error; please report the traceback",
        "--push-to-hub",
    ):
        assert text in command_line
    recipes = read_page(site, "reference/recipes")
    assert all(f"<code>{one.name}</code>" in recipes for one in dataclasses.fields(Recipe))
    assert "pixel_values" in read_page(site, "concepts/batch")
    assert "<code>annotated_frames</code>" in read_page(site, "reference/python/data")
    assert "run-length encoding" in read_page(site, "reference/results")
    for page, name in (("model", "masked_query_gradients"), ("processor", "post_process_semantic_segmentation")):
        assert name in read_page(site, f"reference/python/{page}")
    for page, name in (("processor", "PCMANetProcessor"), ("data", "dataset_scripts.collation.ClipCollator")):
        assert f'.{name}.__call__"' in read_page(site, f"reference/python/{page}"), "calls are documented"
    calls = unescape(re.sub(r"<[^>]+>", "", read_page(site, "reference/python/pipeline")))
    assert "A list with one entry per mask time, in order: {" in calls, (
        "no text is taken for the type of what is returned"
    )
    # A generator has "Yields": what it returns at its end is None.
    assert not re.search(r"<code>None</code>\s*–", read_page(site, "reference/python/pipeline"))
