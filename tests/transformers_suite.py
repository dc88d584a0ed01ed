"""Load transformers' own common tests from its source distribution, which `make test-slow` downloads; its wheel has none."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import transformers


FOLDER = Path(sys.prefix) / "transformers_tests" / transformers.__version__
PACKAGE = "transformers_tests"
# Base classes in files that the source distribution lacks. They test text generation, and exporters of models that
# transformers itself contains; tests/test_modeling_pcmanet.py exports ours.
MISSING = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def load_suite(name: str) -> ModuleType:
    """Import a file of the suite, such as `test_modeling_common`; skip the test module that calls it if it is missing."""
    if not (FOLDER / f"{name}.py").is_file():
        pytest.skip(f"{FOLDER} has no {name}.py: run `make test-slow`, which downloads it", allow_module_level=True)
    if PACKAGE not in sys.modules:
        _add_module(PACKAGE, __path__=[str(FOLDER)])
        for missing, base in MISSING.items():
            _add_module(f"{PACKAGE}.{missing.partition('.')[0]}", __path__=[])
            _add_module(f"{PACKAGE}.{missing}", **{base: type(base, (), {})})
    return importlib.import_module(f"{PACKAGE}.{name}")


def _add_module(name: str, **contents: object) -> None:
    module = sys.modules[name] = ModuleType(name)
    vars(module).update(contents)
