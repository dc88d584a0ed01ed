"""Measure how the library is cut into files, from its imports alone, and fail if a limit is exceeded.

    python .ci/architecture.py            # one Markdown table with the limits
    python .ci/architecture.py --details  # also the longest chain and the definitions with one importer

Counted are the installed packages without `examples/`. A public definition is a function or class at module level whose
name has no leading underscore. It counts as imported by one neighbor if exactly one other file of the repository uses
it (tests do not count), and that file is in the same package and is not its `__init__.py`: such a definition is a
candidate to move into that file. Use through an imported module, as in `counts.f_score`, counts like an import; imports
inside functions count too; imports for type checkers alone do not.
"""

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "modeling_pcmanet": "modeling_pcmanet",
    "pcmanet": "src/pcmanet",
    "pcmanet.dataset_scripts": "dataset_scripts",
    "pcmanet.pipelines": "pipelines",
}
# The files whose classes `save_pretrained` writes as code; transformers follows their relative imports.
MODEL_ENTRY_POINTS = (
    "modeling_pcmanet.configuration_pcmanet",
    "modeling_pcmanet.feature_extraction_pcmanet",
    "modeling_pcmanet.image_processing_pcmanet",
    "modeling_pcmanet.modeling_pcmanet",
    "modeling_pcmanet.modeling_audio_encoders",
    "modeling_pcmanet.processing_pcmanet",
)
PIPELINE_ENTRY_POINT = "pcmanet.pipelines.audio_visual_segmentation"
# What is reached, or little more. Merge what is one concept before you raise a limit.
LIMITS = {
    "library files": 85,
    # 109 for the networks of the paper, the datasets and the commands. The others came with AudioMobileNet (6),
    # EfficientNet-Lite (5), the feature pyramid of plain vision transformers (2), optimized forms of these and of custom
    # blocks (4), paired data (12), the logits of a mask time with what is heard (1), the torchvision backend of the image
    # processor (2), keywords of saved files (2), convolutions for training (1), tables for papers and clips as videos (2),
    # sounding maps (1).
    "classes": 147,
    "files in the longest import chain": 9,
    # Of the decoder and the convolutions, whose optimized forms are in a file of their own (13); of media files, for the
    # processor and the writer (7); of backbones, audio encoders and the optimized model, for the model (7); of the videos
    # and results of the command (8); the rest are main functions and classes of packages.
    "public definitions imported by exactly one neighbor": 58,
    "import cycles": 0,
    "files saved with a model with code": 14,
    "files saved with a pipeline with code": 18,
}


@dataclass
class Module:
    """One file of the library.

    Attributes:
        name: Dotted name.
        path: The file.
        tree: Its syntax tree.
        imports: Names imported from each other module of the library; empty for a module imported as a whole.
    """

    name: str
    path: Path
    tree: ast.Module
    imports: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def package(self) -> str:
        """Dotted name of the package that holds the file."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @property
    def public_definitions(self) -> set[str]:
        """Names of the public functions and classes at module level."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return {node.name for node in self.tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


def read_library(root: Path = ROOT) -> dict[str, Module]:
    """Read every file of the library with its imports resolved, by dotted name."""
    modules = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = [package, *path.relative_to(root / folder).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = Module(name, path, ast.parse(path.read_text()))
    for module in modules.values():
        _resolve(module, modules)
    return modules


def read_users(modules: dict[str, Module], root: Path = ROOT) -> list[Module]:
    """Read the files outside the library that use it: examples and benchmarks."""
    users = [
        Module(f"{folder}.{path.stem}", path, ast.parse(path.read_text()))
        for folder in ("examples", "benchmarks")
        for path in sorted((root / folder).rglob("*.py"))
    ]
    for user in users:
        _resolve(user, modules)
    return users


def _resolve(module: Module, modules: dict[str, Module]) -> None:
    """Fill in the imports of a module."""
    aliases = {}
    for source, name, alias in _imports(module):
        full = f"{source}.{name}" if name else source
        if full in modules and full != module.name:
            module.imports[full].update()
            aliases[alias] = full
        elif source in modules and source != module.name:
            module.imports[source].add(name)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            module.imports[aliases[node.value.id]].add(node.attr)


def _imports(module: Module) -> Iterator[tuple[str, str, str]]:
    """Yield (module, name, local name) for every import that is executed; the name is empty for `import module`."""
    for_type_checkers = {
        id(node)
        for block in ast.walk(module.tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(module.tree):
        if id(node) in for_type_checkers:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((source, alias.name, alias.asname or alias.name) for alias in node.names)


def longest_chain(modules: dict[str, Module]) -> list[str]:
    """Find the longest chain of files in which each imports the next; raise ValueError for a cycle."""
    visiting: list[str] = []

    @cache
    def chain_from(name: str) -> tuple[str, ...]:
        if name in visiting:
            raise ValueError(f"Import cycle: {' -> '.join([*visiting[visiting.index(name) :], name])}")
        visiting.append(name)
        longest = max((chain_from(target) for target in modules[name].imports), key=len, default=())
        visiting.pop()
        return (name, *longest)

    return list(max((chain_from(name) for name in modules), key=len))


def definitions_with_one_importer(modules: dict[str, Module], users: list[Module]) -> dict[tuple[str, str], str]:
    """Map (module, name) of each public definition that only one neighboring file imports to that file."""
    importers = defaultdict(set)
    for user in (*modules.values(), *users):
        for source, names in user.imports.items():
            for name in names:
                importers[source, name].add(user.name)
    found = {}
    for module in modules.values():
        for name in module.public_definitions:
            importer = modules.get(next(iter(importers[module.name, name]), ""))
            if (
                len(importers[module.name, name]) == 1
                and importer
                and importer.name != importer.package == module.package
            ):
                found[module.name, name] = importer.name
    return found


def closure(modules: dict[str, Module], *entry_points: str) -> set[str]:
    """Find the files that `save_pretrained` copies for these modules: they and all that they import from each other."""
    pending, found = list(entry_points), set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += modules[name].imports
    return found


def measure(modules: dict[str, Module]) -> dict[str, int]:
    """Compute every row of the table; raise ValueError for an import cycle."""
    classes = sum(isinstance(node, ast.ClassDef) for module in modules.values() for node in ast.walk(module.tree))
    saved = closure(modules, *MODEL_ENTRY_POINTS)
    with_pipeline = saved | closure(modules, PIPELINE_ENTRY_POINT)
    return {
        "library files": len(modules),
        "classes": classes,
        "files in the longest import chain": len(longest_chain(modules)),
        "public definitions imported by exactly one neighbor": len(
            definitions_with_one_importer(modules, read_users(modules))
        ),
        "import cycles": 0,
        "files saved with a model with code": len(saved),
        "files saved with a pipeline with code": len(with_pipeline),
    }


def main() -> int:
    """Print the table; return 1 if there is an import cycle or a limit is exceeded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--details", action="store_true", help="also list the chain and the definitions")
    arguments = parser.parse_args()
    modules = read_library()
    try:
        rows = measure(modules)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print("| what | value | limit |\n|---|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} | {LIMITS[name]} |")
    if arguments.details:
        print("\nLongest chain:", " -> ".join(longest_chain(modules)))
        for (module, name), user in sorted(definitions_with_one_importer(modules, read_users(modules)).items()):
            print(f"{module}.{name} <- {user}")
    exceeded = [name for name, value in rows.items() if value > LIMITS[name]]
    for name in exceeded:
        print(f"Expected at most {LIMITS[name]} {name}, got {rows[name]}. See --details.", file=sys.stderr)
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
