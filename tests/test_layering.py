"""Directions of imports (CONTRIBUTING.md), the flat files that go to the Hub, and how the library is cut."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
OURS = ("modeling_pcmanet", "pcmanet", "pipelines", "dataset_scripts", "src")
# Datasets may read media, images, features and class names, and write files; they never use the network or the processor.
OPEN_TO_DATASETS = {
    "configuration_pcmanet",
    "feature_extraction_pcmanet",
    "hub_upload_pcmanet",
    "image_processing_pcmanet",
    "media_pcmanet",
    "media_writing_pcmanet",
    "audio_pcmanet",
}
# The audio encoders themselves with their registries, the converter of published weights, and the lists of public names.
KNOW_AUDIO_ENCODERS = {
    "modeling_pcmanet/__init__.py",
    "modeling_pcmanet/configuration_encoders.py",
    "modeling_pcmanet/convert_pcmanet_to_hf.py",
    "modeling_pcmanet/feature_extraction_pcmanet.py",
    "modeling_pcmanet/modeling_audio_encoders.py",
    "src/pcmanet/__init__.py",
}
AUDIO_ENCODER_NAMES = (
    r"vggish|audio_?mobilenet|efficientat|(?-i:\bAST)|audio.?spectrogram.?transformer|\bclap|"
    r"wav2vec|whisper|pe_?audio"
)
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
    "convolutions_pcmanet",
    "inference_pcmanet",
    "modeling_pcmanet",
    "modeling_pcmanet_decoder",
    "modeling_audio_encoders",
}


def load_architecture():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / ".ci" / "architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


architecture = load_architecture()


@pytest.fixture(scope="module")
def library() -> dict:
    """The modules of the library, by dotted name."""
    return architecture.read_library()


@pytest.fixture(scope="module")
def model_code(library) -> set[str]:
    """Modules saved next to the weights of a model."""
    return architecture.closure(library, *architecture.MODEL_ENTRY_POINTS)


@pytest.fixture(scope="module")
def hub_code(library, model_code) -> set[str]:
    """Modules saved next to the weights of a model with its pipeline."""
    return model_code | architecture.closure(library, architecture.PIPELINE_ENTRY_POINT)


def modules_of(package: str, library: dict) -> list:
    found = [module for name, module in library.items() if name == package or name.startswith(f"{package}.")]
    assert found
    return found


def absolute_imports(path: Path) -> set[str]:
    """Return every module of ours that a file imports by its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return {module for module in found if module.split(".")[0] in OURS}


def test_hub_code_uses_flat_relative_imports_only(library, hub_code):
    # transformers copies these files flat, next to the weights, and refuses absolute imports of our package.
    for name in hub_code:
        module = library[name]
        assert absolute_imports(module.path) == set(), name
        relative = [node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom) and node.level]
        assert all(node.level == 1 and node.module and "." not in node.module for node in relative), name


def test_the_library_is_within_its_limits(library):
    exceeded = {
        name: value for name, value in architecture.measure(library).items() if value > architecture.LIMITS[name]
    }
    assert not exceeded


def test_files_that_write_media_are_not_saved_next_to_weights(hub_code):
    assert "modeling_pcmanet.media_writing_pcmanet" not in hub_code


def test_the_closure_is_what_transformers_copies(library, tmp_path):
    from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, save_code_with_weights

    config = PCMANetConfig.from_preset("tiny")
    with save_code_with_weights():
        PCMANetForAudioVisualSegmentation(config).save_pretrained(tmp_path)
    saved = {path.stem for path in tmp_path.glob("*.py")}
    entry_points = [
        name for name in architecture.MODEL_ENTRY_POINTS if "processing" not in name and "feature" not in name
    ]
    assert saved == {name.rpartition(".")[2] for name in architecture.closure(library, *entry_points)}
    assert "auto_map" in json.loads((tmp_path / "config.json").read_text())


def test_the_model_folder_is_the_lowest_layer(library):
    for module in modules_of("modeling_pcmanet", library):
        allowed = {"pcmanet.files", "modeling_pcmanet"} if module.path.stem in NEVER_ON_THE_HUB else set()
        assert absolute_imports(module.path) <= allowed, module.name


def test_processing_and_network_never_import_each_other(library):
    for module in modules_of("modeling_pcmanet", library):
        targets = {target.rpartition(".")[2] for target in module.imports}
        if module.path.stem in PROCESSING:
            assert not targets & NETWORK, module.name
        if module.path.stem in NETWORK:
            assert not targets & PROCESSING, module.name


def test_pipelines_use_drawing_and_files_only(library):
    # The package itself imports modeling_pcmanet to register the model type, and the name of the task on the Hub.
    allowed = {
        "modeling_pcmanet",
        "modeling_pcmanet.configuration_pcmanet",
        "modeling_pcmanet.media_writing_pcmanet",
        "modeling_pcmanet.media_pcmanet",
        "pcmanet.files",
    }
    for module in modules_of("pcmanet.pipelines", library):
        assert absolute_imports(module.path) <= allowed, module.name


def test_datasets_use_media_and_class_names_only(library):
    for module in modules_of("pcmanet.dataset_scripts", library):
        for imported in absolute_imports(module.path):
            package, _, rest = imported.partition(".")
            own = imported.startswith("pcmanet.dataset_scripts") or imported in ("pcmanet.files", "pcmanet.options")
            assert own or (package == "modeling_pcmanet" and rest in OPEN_TO_DATASETS), (module.name, imported)


def test_any_audio_encoder_is_treated_alike(library):
    """No other file of the library names one, in code, text or comments."""
    named = {
        str(module.path.relative_to(ROOT))
        for module in library.values()
        if re.search(AUDIO_ENCODER_NAMES, module.path.read_text(), re.IGNORECASE)
    }
    assert named == KNOW_AUDIO_ENCODERS


def test_there_is_no_import_cycle(library):
    assert architecture.longest_chain(library)


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


def test_no_command_accepts_abbreviated_options():
    """A misspelled option ends a command instead of setting the option that it is the beginning of."""
    parsers, abbreviating = 0, []
    folders = ("modeling_pcmanet", "src", "pipelines", "dataset_scripts", "examples", "benchmarks", ".ci")
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if ast.unparse(call.func).endswith(("ArgumentParser", "add_parser")):
                parsers += 1
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                if keywords.get("allow_abbrev") != "False":
                    abbreviating.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert parsers > 20
    assert not abbreviating


def test_numbers_of_options_are_checked_where_they_are_parsed():
    """A number out of range is a usage error, and not an error of whatever uses it later."""
    options, unchecked = 0, []
    folders = ("modeling_pcmanet", "src", "pipelines", "dataset_scripts", "examples")
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if ast.unparse(call.func).endswith("add_argument"):
                options += 1
                if any(one.arg == "type" and ast.unparse(one.value) in ("int", "float") for one in call.keywords):
                    unchecked.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert options > 100
    assert not unchecked, "use the types of pcmanet.options"
