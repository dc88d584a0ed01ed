"""Who may import whom: the directions of CONTRIBUTING.md, and the flat form that the Hub needs."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
OURS = ("modeling_pcmanet", "pcmanet", "pipelines", "dataset_scripts", "training", "command")
# Data sets may read media, features and names of classes, never the network or the processor.
OPEN_TO_DATA_SETS = {
    "configuration_pcmanet",
    "feature_extraction_pcmanet",
    "hub_upload_pcmanet",
    "media_pcmanet",
    "media_writing_pcmanet",
    "waveform_pcmanet",
}
PROCESSING = {
    "clip_pcmanet",
    "clip_stream_pcmanet",
    "feature_extraction_pcmanet",
    "image_processing_pcmanet",
    "processing_pcmanet",
    "sound_stream_pcmanet",
}
NETWORK = {
    "configuration_pcmanet",
    "inference_backbone_pcmanet",
    "inference_convolution_pcmanet",
    "inference_decoder_pcmanet",
    "inference_pcmanet",
    "inference_winograd_pcmanet",
    "inputs_pcmanet",
    "loss_pcmanet",
    "modeling_pcmanet",
    "modeling_pcmanet_decoder",
    "modeling_vggish",
}


def python_files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if ".venv" not in path.parts)


def imports(path: Path) -> set[tuple[int, str]]:
    """Every import of a file as (leading dots, module)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.level, node.module or ""))
    return found


def own_absolute_imports(path: Path) -> set[str]:
    return {module for level, module in imports(path) if level == 0 and module.split(".")[0] in OURS}


@pytest.mark.parametrize("path", python_files("modeling_pcmanet"), ids=lambda path: path.name)
def test_the_model_folder_is_flat_and_knows_nobody(path):
    assert own_absolute_imports(path) == set()
    relative = {(level, module) for level, module in imports(path) if level}
    assert all(level == 1 and module and "." not in module for level, module in relative), relative


@pytest.mark.parametrize("path", python_files("modeling_pcmanet"), ids=lambda path: path.name)
def test_processing_and_network_never_meet(path):
    targets = {module for level, module in imports(path) if level == 1}
    if path.stem in PROCESSING:
        assert not targets & NETWORK
    if path.stem in NETWORK:
        assert not targets & PROCESSING


@pytest.mark.parametrize("path", python_files("pipelines"), ids=lambda path: path.name)
def test_pipelines_stand_on_transformers_alone(path):
    # The package registers the architecture; its modules also run as remote code, where nothing of ours is installed.
    assert own_absolute_imports(path) == ({"modeling_pcmanet"} if path.stem == "__init__" else set())
    assert all(level <= 1 for level, _ in imports(path))


@pytest.mark.parametrize("path", python_files("dataset_scripts"), ids=lambda path: path.name)
def test_data_sets_know_media_and_names_only(path):
    for module in own_absolute_imports(path):
        package, _, rest = module.partition(".")
        # Only the modules that `evaluate` loads by path name their own package; they lie outside it when loaded.
        own_package = module.startswith("pcmanet.dataset_scripts") and "evaluate_modules" in path.parts
        assert own_package or (package == "modeling_pcmanet" and rest in OPEN_TO_DATA_SETS), f"{path.name}: {module}"
    assert all(level <= 1 for level, _ in imports(path))


@pytest.mark.parametrize("folder, forbidden", [("training", "command"), ("command", "training")])
def test_training_and_command_stand_side_by_side_on_the_rest(folder, forbidden):
    for path in python_files(folder):
        modules = own_absolute_imports(path)
        assert all(module.startswith(("modeling_pcmanet", "pcmanet.")) for module in modules), (path.name, modules)
        assert not any(module.startswith(f"pcmanet.{forbidden}") for module in modules), (path.name, modules)
        assert all(level <= 1 for level, _ in imports(path)), path.name


@pytest.mark.parametrize(
    "path",
    [path for folder in ("examples", "benchmarks", "tests") for path in python_files(folder)],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_users_of_the_library_use_installed_names(path):
    assert not {
        module
        for module in own_absolute_imports(path)
        if module.split(".")[0] in ("pipelines", "dataset_scripts", "training", "command")
    }
    assert all(level == 0 for level, _ in imports(path))
