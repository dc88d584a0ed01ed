"""What the build of the documentation adds to the pages: `hooks` and an extension of mkdocs.yml.

Pages are plain Markdown that is readable on GitHub too. While the site is built,

- `<!-- command: MODULE -->` becomes the help of a command, from its argparse parser, and `<!-- batch -->`,
  `<!-- data columns -->`, `<!-- exit codes -->`, `<!-- recipe fields -->` and `<!-- result columns -->` the tables of the
  code that defines them;
- links to files outside docs/ lead to the repository, and the SVG figures become part of their page, so that their colors
  follow the mode of the site;
- names in docstrings written [`Name`] link to the reference, and docstrings that transformers' style differs in are brought
  into Google's.
"""

import argparse
import dataclasses
import importlib
import inspect
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# The sources as a wheel has them, until the build ends.
LAYOUT = tempfile.TemporaryDirectory(prefix="pcmanet_docs_")
# setup.cfg maps these folders.
PACKAGES = {"pcmanet": "src/pcmanet", "pcmanet/pipelines": "pipelines", "pcmanet/dataset_scripts": "dataset_scripts"}


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: MkDocsConfig) -> None:
    """Lay out the sources as the wheel does, for the reference, which reads them without importing them."""
    folder = Path(tempfile.mkdtemp(dir=LAYOUT.name))
    for name, source in {**PACKAGES, "modeling_pcmanet": "modeling_pcmanet"}.items():
        (folder / name).mkdir()
        for path in (ROOT / source).iterdir():
            if path.suffix == ".py" or (path / "__init__.py").is_file():
                (folder / name / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 MkDocs passes all four by name
    """Fill in the generated parts of a page, and lead links out of docs/ to the repository."""
    markdown = re.sub(r"^<!-- ([a-z ]+)(?:: (\S+))? -->$", _generate, markdown, flags=re.MULTILINE)
    folder = (DOCS / page.file.src_uri).parent

    def lead(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / link[1]))
        if path.is_relative_to(DOCS) or "://" in link[1]:
            return link[0]
        if not path.exists():
            raise PluginError(f"{page.file.src_uri} links to {link[1]}, which does not exist.")
        kind = "tree" if path.is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/main/{path.relative_to(ROOT)}"

    return re.sub(r"\]\((\.\.?/[^)#\s]+)", lead, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 MkDocs passes all four by name
    """Put SVG figures into the page, and every table into a box that scrolls on its own."""
    folder = (DOCS / page.file.src_uri).parent

    def inline(image: re.Match[str]) -> str:
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', image[0]))
        name = Path(attributes["src"]).name
        figure = next(path for path in (folder / name, *DOCS.rglob(name)) if path.is_file()).read_text()
        return figure.replace("<svg ", f'<svg role="img" aria-label="{attributes["alt"]}" ', 1)

    return re.sub(r'<img [^>]*src="[^"]*\.svg"[^>]*>', inline, html)


def _generate(comment: re.Match[str]) -> str:
    """Return the Markdown in place of a comment; comments that are not ours stay."""
    parts: dict[str, Callable[[], str]] = {
        "command": lambda: describe_command(comment[2]),
        "batch": lambda: find_table("modeling_pcmanet.processing_pcmanet"),
        "data columns": lambda: find_table("pcmanet.dataset_scripts.avsbench.rows"),
        "exit codes": describe_exit_codes,
        "recipe fields": describe_recipe,
        "result columns": lambda: importlib.import_module("pcmanet.cli.results").describe_columns(),
    }
    return parts[comment[1]]() if comment[1] in parts else comment[0]


class _FoundParserError(Exception):
    """Carries the parser of a command out of its `parse_args`."""


def _find_parser(module: str) -> argparse.ArgumentParser:
    """Return the parser that a command builds, before it parses anything."""

    def stop(parser: argparse.ArgumentParser, *_args: Any, **_options: Any) -> NoReturn:
        raise _FoundParserError(parser)

    main = importlib.import_module(module).main
    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            main([])
        except _FoundParserError as found:
            return found.args[0]
    raise PluginError(f"{module}.main has not parsed its arguments.")


def describe_command(module: str) -> str:
    """Return the help of a command and of its subcommands as Markdown."""
    parser = _find_parser(module)
    title = parser.prog.removeprefix("python -m ")
    lines = [f"## {title}", *_describe_parser(parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                name = command.prog if title == parser.prog else command.prog.rpartition(" ")[2]
                lines += [f"### {name}", *_describe_parser(command)]
    return "\n\n".join(lines)


def _describe_parser(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the blocks of one parser: description, usage, options by group, notes."""
    yield from _describe_text(parser.description or "")
    if not parser._subparsers:
        values = [action.metavar or action.dest.upper() for action in parser._actions if not action.option_strings]
        yield f"```text\n{' '.join([parser.prog, *values, '[options]'])}\n```"
    for group in parser._action_groups:
        rows = [
            (_invocation(action), action.help % _expansions(parser, action))
            for action in group._group_actions
            if action.help and action.help is not argparse.SUPPRESS and "--help" not in action.option_strings
        ]
        if isinstance(next(iter(group._group_actions), None), argparse._SubParsersAction) or not rows:
            continue
        title = {"positional arguments": "arguments"}.get(group.title or "", group.title or "")
        yield _table(title, "", rows)
    yield from _describe_text(parser.epilog or "")


def _invocation(action: argparse.Action) -> str:
    """Return an option with its values, as code."""
    if action.nargs == 0:
        values = ""
    elif action.choices:
        values = " {" + ",".join(map(str, action.choices)) + "}"
    else:
        values = f" {action.metavar or action.dest.upper()}"
    more = " ..." if action.nargs in ("+", "*") else ""
    return f"`{(', '.join(action.option_strings) + values + more).strip()}`"


def _expansions(parser: argparse.ArgumentParser, action: argparse.Action) -> dict[str, Any]:
    """Return what `%(default)s` and others in a help text stand for."""
    return {**vars(action), "prog": parser.prog}


def _table(first: str, second: str, rows: list[tuple[str, str]]) -> str:
    """Format a table of two columns."""
    cells = [f"| {first} | {second} |", "|---|---|"]
    cells += [f"| {left} | {_escape(right)} |" for left, right in rows]
    return "\n".join(cells)


def _escape(text: str) -> str:
    """Return plain text as Markdown of a table cell; text in backticks is code already."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]|])", r"\\\1", part) for part in parts)


def _describe_text(text: str) -> Iterator[str]:
    """Yield paragraphs of a help text; indented lines are code. The exit codes have a table of their own."""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        title, _, rest = block.partition("\n")
        if title.startswith("exit codes"):
            continue
        if title.rstrip().endswith(":") and rest.startswith(" "):
            language = "bash" if title.strip("\n ") == "examples:" else "text"
            yield f"**{title.strip().rstrip(':').capitalize()}**"
            yield f"```{language}\n{inspect.cleandoc(rest)}\n```"
        elif block.startswith(" "):
            yield f"```bash\n{inspect.cleandoc(block)}\n```"
        elif block:
            yield "\n".join(map(_escape, block.splitlines()))


def find_table(module: str) -> str:
    """Return the table in the docstring of a module."""
    docstring = importlib.import_module(module).__doc__ or ""
    return "\n".join(line for line in docstring.splitlines() if line.startswith("|"))


def describe_exit_codes() -> str:
    """Return the exit codes of `pcmanet` as a table."""
    text = importlib.import_module("pcmanet.cli.arguments").EXIT_CODES
    rows = re.findall(r"^  (\d+) +(.*)$", text, flags=re.MULTILINE)
    return _table("code", "meaning", [(f"`{code}`", meaning) for code, meaning in rows])


def describe_recipe() -> str:
    """Return a table of the fields of a recipe for each section of their definition."""
    recipe = importlib.import_module("pcmanet.training.recipe").Recipe
    defaults, sections, found = recipe().to_dict(), {}, []
    known = {one.name: one for one in dataclasses.fields(recipe)}
    for line in inspect.getsource(recipe).splitlines():
        if title := re.fullmatch(r"    # ([A-Z][^.]*)\.", line):
            found = sections.setdefault(title[1], [])
        elif (name := re.match(r"    (\w+): ", line)) and name[1] in known:
            found.append(known[name[1]])
    tables = []
    for title, members in sections.items():
        rows = ["| field | default | meaning |", "|---|---|---|"]
        for one in members:
            default = json.dumps(defaults[one.name])
            rows.append(f"| `{one.name}` | `{default}` | {_escape(one.metadata['help'])}{_rules(one.metadata)} |")
        tables.append(f"### {title}\n\n" + "\n".join(rows))
    return "\n\n".join(tables)


def _rules(metadata: Any) -> str:
    """Return what values a field of a recipe accepts."""
    if choices := metadata.get("choices"):
        return "; one of " + ", ".join(f"`{one}`" for one in choices)
    texts = {"minimum": "at least", "above": "above", "maximum": "at most"}
    parts = [f"{text} {metadata[rule]:g}" for rule, text in texts.items() if rule in metadata]
    return "; " + " and ".join(parts) if parts else ""


@cache
def _documented_names() -> dict[str, str]:
    """Return the names that have an entry in the reference, and the identifiers of the entries."""
    pages = [path.read_text() for path in (DOCS / "reference" / "python").glob("*.md")]
    paths = [path for page in pages for path in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)]
    return {path.rpartition(".")[2]: path for path in paths}


class Docstrings(griffe.Extension):
    """Brings docstrings into the form that griffe reads."""

    def on_object(self, *, obj: griffe.Object, **_others: Any) -> None:
        """Turn [`Name`] into a link if the reference has an entry of that name, else into code; name sections as griffe."""
        if obj.docstring is None:
            return
        text = re.sub(r"\[`~?([\w.]+)`\](?![\[(])", _link, obj.docstring.value)
        text = re.sub(r"^Example:\n(?= +>>>)", "Examples:\n", text, flags=re.MULTILINE)
        if isinstance(obj, griffe.Class) and "__init__" not in obj.members:
            # The fields of a dataclass or configuration: its attributes have their types.
            text = re.sub(r"^Args:$", "Attributes:", text, flags=re.MULTILINE)
            text = re.sub(
                r"^    (\w+): (?:.|\n     )*", lambda item: item[0] + _default(obj, item), text, flags=re.MULTILINE
            )
        if isinstance(obj, griffe.Function) and obj.returns is not None:
            # griffe takes the text before a colon for the type, unless the type is there.
            text = re.sub(r"^Returns:\n +", lambda section: f"{section[0]}{obj.returns}: ", text, flags=re.MULTILINE)
        obj.docstring.value = text


def _default(fields: griffe.Class, item: re.Match[str]) -> str:
    """Return the default of a field for its description, unless it is long or described."""
    value = str(getattr(fields.members.get(item[1]), "value", None) or "")
    return f" Defaults to `{value}`." if 0 < len(value) <= 40 and "efault" not in item[0] and "(" not in value else ""


def _link(name: re.Match[str]) -> str:
    """Return the link of a name."""
    if name[1] in _documented_names().values():
        return f"[`{name[1].rpartition('.')[2]}`][{name[1]}]"
    owner, _, member = name[1].partition(".")
    path = _documented_names().get(owner)
    target = f"{path}.{member}" if member else path
    return f"[`{name[1]}`][{target}]" if path else f"`{name[1]}`"
