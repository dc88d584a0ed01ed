"""Directions of imports (CONTRIBUTING.md), the flat files that go to the Hub, and how the library is cut."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
OURS = ("modeling_pcmanet", "pcmanet", "pipelines", "dataset_scripts", "src")
# Data sets may read media, features and class names, and write files; they never use the network or the processor.
OPEN_TO_DATA_SETS = {
    "configuration_pcmanet",
    "feature_extraction_pcmanet",
    "hub_upload_pcmanet",
    "media_pcmanet",
    "media_writing_pcmanet",
    "audio_pcmanet",
}
# Files of modeling_pcmanet and pipelines that never go to the Hub may use what only the installed package has.
NEVER_ON_THE_HUB = {"convert_pcmanet_to_hf", "hub_upload_pcmanet", "media_writing_pcmanet"}
PROCESSING = {
    "audio_pcmanet",
    "feature_extraction_pcmanet",
    "image_processing_pcmanet",
    "media_pcmanet",
    "processing_pcmanet",
}
NETWORK = {
    "configuration_pcmanet",
    "inference_pcmanet",
    "modeling_pcmanet",
    "modeling_pcmanet_decoder",
    "modeling_vggish",
}


def load_architecture():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / ".ci" / "architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


architecture = load_architecture()
LIBRARY = architecture.read_library()
MODEL_CODE = architecture.closure(LIBRARY, *architecture.MODEL_ENTRY_POINTS)
HUB_CODE = MODEL_CODE | architecture.closure(LIBRARY, architecture.PIPELINE_ENTRY_POINT)


def modules_of(package: str) -> list[str]:
    return sorted(name for name in LIBRARY if name == package or name.startswith(f"{package}."))


def absolute_imports(path: Path) -> set[str]:
    """Return every module of ours that a file imports by its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return {module for module in found if module.split(".")[0] in OURS}


@pytest.mark.parametrize("name", sorted(HUB_CODE))
def test_hub_code_uses_flat_relative_imports_only(name):
    # transformers copies these files flat, next to the weights, and refuses absolute imports of our package.
    module = LIBRARY[name]
    assert absolute_imports(module.path) == set()
    relative = [node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert all(node.level == 1 and node.module and "." not in node.module for node in relative)


def test_few_files_are_saved_next_to_weights():
    assert len(MODEL_CODE) <= 14
    assert len(HUB_CODE) <= 18
    assert "modeling_pcmanet.media_writing_pcmanet" not in HUB_CODE


def test_the_closure_is_what_transformers_copies(tmp_path):
    from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, save_code_with_weights

    config = PCMANetConfig.from_preset("tiny")
    with save_code_with_weights():
        PCMANetForAudioVisualSegmentation(config).save_pretrained(tmp_path)
    saved = {path.stem for path in tmp_path.glob("*.py")}
    entry_points = [
        name for name in architecture.MODEL_ENTRY_POINTS if "processing" not in name and "feature" not in name
    ]
    assert saved == {name.rpartition(".")[2] for name in architecture.closure(LIBRARY, *entry_points)}
    assert "auto_map" in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("name", modules_of("modeling_pcmanet"))
def test_the_model_folder_is_the_lowest_layer(name):
    path = LIBRARY[name].path
    allowed = {"pcmanet.files", "modeling_pcmanet"} if path.stem in NEVER_ON_THE_HUB else set()
    assert absolute_imports(path) <= allowed


@pytest.mark.parametrize("name", modules_of("modeling_pcmanet")[1:])
def test_processing_and_network_never_import_each_other(name):
    stem = name.rpartition(".")[2]
    targets = {target.rpartition(".")[2] for target in LIBRARY[name].imports}
    if stem in PROCESSING:
        assert not targets & NETWORK
    if stem in NETWORK:
        assert not targets & PROCESSING


@pytest.mark.parametrize("name", modules_of("pcmanet.pipelines"))
def test_pipelines_use_drawing_and_files_only(name):
    # The package itself imports modeling_pcmanet to register the model type.
    allowed = {
        "modeling_pcmanet",
        "modeling_pcmanet.media_writing_pcmanet",
        "modeling_pcmanet.media_pcmanet",
        "pcmanet.files",
    }
    assert absolute_imports(LIBRARY[name].path) <= allowed


@pytest.mark.parametrize("name", modules_of("pcmanet.dataset_scripts"))
def test_data_sets_use_media_and_class_names_only(name):
    for module in absolute_imports(LIBRARY[name].path):
        package, _, rest = module.partition(".")
        own = module.startswith("pcmanet.dataset_scripts") or module == "pcmanet.files"
        assert own or (package == "modeling_pcmanet" and rest in OPEN_TO_DATA_SETS), f"{name}: {module}"


def test_there_is_no_import_cycle():
    assert architecture.longest_chain(LIBRARY)


@pytest.mark.parametrize(
    "path",
    [path for folder in ("examples", "benchmarks", "tests") for path in sorted((ROOT / folder).rglob("*.py"))],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_users_of_the_library_use_installed_names(path):
    folders = {module.split(".")[0] for module in absolute_imports(path)}
    assert not folders & {"pipelines", "dataset_scripts", "src"}
    relative = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative
