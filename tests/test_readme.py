"""README and docs: their code runs, their commands are valid, their links lead somewhere, their figures are the cards'."""

import importlib.util
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from loopback_hub import LoopbackHub
from page_workspace import (
    build_wheel,
    code_of,
    commands_of,
    fill_hub,
    fill_working_folder,
    make_environment,
    read_blocks,
    run_page,
    write_downloads,
)

from pcmanet.cli.arguments import parse_arguments
from pcmanet.training.recipe import read_recipe


ROOT = Path(__file__).parent.parent
DOCS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES = ["README.md", "MODEL_CARD.md", "CONTRIBUTING.md", "examples/README.md", *DOCS]
# Pages whose code is run as it is, in the order of the page: shell first, then Python.
TUTORIALS = [
    page
    for page in ("README.md", *DOCS)
    if not page.startswith("docs/benchmarks/") and (code_of(page, "bash") or code_of(page, "python"))
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPOSITORY = "https://github.com/pcmanet/pcmanet"
RAW = "https://raw.githubusercontent.com/pcmanet/pcmanet/main/"
SITE = "https://pcmanet.github.io/pcmanet/"
LANGUAGES = {"bash", "bibtex", "json", "python", "text", "yaml"}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 250


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mapping[str, str], Path]]:
    """The environment of a reader with the built wheel, and a folder with the data that the pages name."""
    folder = tmp_path_factory.mktemp("reader")
    write_downloads(folder / "downloads")
    with LoopbackHub(folder / "server") as hub:
        environment = make_environment(hub, build_wheel(folder / "wheel"), folder)
        fill_hub(hub, folder)
        yield environment, folder


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS)
def test_code_of_a_page_runs_outside_the_clone(page: str, reader: tuple[Mapping[str, str], Path], tmp_path: Path):
    fill_working_folder(tmp_path)
    run_page(page, reader[0], tmp_path)


@pytest.mark.parametrize("page", TUTORIALS)
def test_blocks_say_what_they_are(page: str):
    blocks = read_blocks(page)
    assert {block.language for block in blocks} <= LANGUAGES
    assert all(block.language in ("bash", "python") for block in blocks if block.reason)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_valid(page: str):
    for command in commands_of(page):
        words = shlex.split(re.sub(r"^\$ ", "", command))
        starts = [
            k for k, word in enumerate(words) if word == "pcmanet" and (k == 0 or re.search("^-m$|=", words[k - 1]))
        ]
        if not starts:
            continue
        arguments = parse_arguments(words[starts[0] + 1 :])
        if arguments.command == "train" and arguments.recipe:
            recipe = read_recipe(arguments.recipe, arguments.set, data=arguments.data)
            processes = re.search(r"--num_processes (\d+)", command)
            assert recipe.batch_size % int(processes[1] if processes else 1) == 0, command


def local_target(page: str, link: str) -> Path | None:
    """Return the file of this repository that a link leads to, or None for other places."""
    address = link.partition("#")[0]
    if address.startswith(SITE):
        name = address.removeprefix(SITE).strip("/")
        return ROOT / "docs" / (f"{name}.md" if name else "index.md")
    for prefix in (RAW, f"{REPOSITORY}/blob/main/", f"{REPOSITORY}/tree/main/"):
        if address.startswith(prefix):
            return ROOT / address.removeprefix(prefix)
    return None if "://" in address or not address else (ROOT / page).parent / address


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    targets = [target for link in links if (target := local_target(page, link))]
    assert [str(target) for target in targets if not target.exists()] == []


def test_links_of_the_readme_are_absolute():
    """The package index shows the README without the repository."""
    assert [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_scripts_and_modules_exist(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
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


def test_figures_of_the_readme_stand_in_the_model_cards():
    cards = "".join((ROOT / name).read_text() for name in ("MODEL_CARD.md", "examples/real_world_model/README.md"))
    section = README.split("## Models")[1].split("## ")[0]
    figures = [
        figure for row in re.findall(r"^\| .*\|$", section, re.MULTILINE) for figure in re.findall(r"\d+\.\d+", row)
    ]
    assert len(figures) > 5
    assert [figure for figure in figures if figure not in cards and figure != "2.0"] == []


def test_citation_of_the_readme_is_that_of_the_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    entries = "".join(block.code for block in read_blocks("README.md") if block.language == "bibtex")
    paper = citation["references"][0]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    for value in (citation["title"], citation["version"], citation["license"], paper["title"], paper["url"], authors):
        assert str(value) in entries, value
    assert citation["repository-code"] == REPOSITORY
    assert REPOSITORY in entries
