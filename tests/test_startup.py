"""Start of a command: what it does not import; benchmarks/startup.py: every part is measured in a new process, in order, and compared with the unavoidable parts."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import startup


ROOT = Path(__file__).parent.parent


def test_table_compares_with_what_nobody_can_avoid():
    seconds = dict.fromkeys(startup.PARTS, 1.0) | {"our modules": 3.0, "network alone": 0.5}
    lines = startup.table([seconds, seconds, dict.fromkeys(seconds, 100.0)])
    assert "| our modules | 3.00 | 37.5% |" in lines
    assert "| all | 8.00 | |" in lines
    assert lines[-1].startswith("The total is 3.20 times")


def test_parts_run_in_order_in_a_new_process(monkeypatch):
    parts = {
        "first": "number = 2",
        "second": "assert number == 2; model = {model!r}\nfor _ in range(10**6): number += 1",
        "third": "assert (model, {clip!r}) == ('a model', 'a clip')",
    }
    monkeypatch.setattr(startup, "PARTS", parts)
    seconds = startup.measure("a model", "a clip")
    assert list(seconds) == list(parts)
    assert seconds["second"] > seconds["third"] >= 0


def test_registration_waits_while_other_libraries_look_for_transformers(tmp_path):
    """accelerate, diffusers and others ask whether transformers is installed before somebody imports it."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").touch()
    code = (
        "import importlib, importlib.util, sys\n"
        "import pcmanet\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "importlib.import_module = print\n"
        "assert [importlib.util.find_spec('transformers').name for _ in range(2)] == 2 * ['transformers']\n"
        "print('import')\n"
        "import transformers\n"
        "assert transformers.__file__.startswith(sys.argv[1]) and not transformers.__loader__.__module__.startswith('pcmanet')\n"
        "assert not any(type(finder).__module__ == 'pcmanet' for finder in sys.meta_path)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["import", "pcmanet.pipelines"]


@pytest.mark.slow
def test_command_does_not_import_what_it_does_not_use():
    """Each of these takes 0.2 to 5 s; all are installed for tests or as dependencies."""
    unused = {
        "datasets",
        "evaluate",
        "gradio",
        "matplotlib",
        "onnxruntime",
        "pandas",
        "peft",
        "ray",
        "sklearn",
        "timm",
    }
    code = (
        "import sys; from pcmanet.cli.main import main\n"
        f"assert main(['segment', {str(ROOT / 'examples' / 'demo.mp4')!r}, '--output', sys.argv[1], '--format', 'rle']) == 0\n"
        f"print(sorted({unused!r} & set(sys.modules)))"
    )
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-c", code, f"{folder}/out"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
