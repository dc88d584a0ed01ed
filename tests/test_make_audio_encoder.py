"""examples/paired_data/make_audio_encoder.py: groups of classes, standardized over the recordings of all others."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paired_files import write_paired_data

from modeling_pcmanet import AudioMobileNetFeatureExtractor, AudioMobileNetModel
from modeling_pcmanet.configuration_encoders import AudioMobileNetConfig
from pcmanet.dataset_scripts.paired import Library, read_settings


SCRIPT = Path(__file__).parent.parent / "examples" / "paired_data" / "make_audio_encoder.py"
RATE = 32000  # of the feature extractor
CLASSES = {
    "dog": {"photos": ["dog"], "sounds": ["dog"], "audioset": ["Dog"]},
    "cat": {"photos": ["cat"], "audioset": ["Meow", "Purr"]},  # without recordings
    "bird": {"photos": ["bird"], "sounds": ["bird"], "audioset": ["Chirp"]},
}
GROUPS = {"bird": [4], "cat": [1, 2], "dog": [0], "drums": [3]}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_audio_encoder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.WINDOWS = 2
    return module


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> Path:
    """A tiny tagger with random weights, and statistics of BatchNorm for which its scores differ between sounds."""
    torch.manual_seed(0)
    names = dict(enumerate(["Dog", "Meow", "Purr", "Drum", "Chirp"]))
    model = AudioMobileNetModel(AudioMobileNetConfig(width_multiplier=0.1, initializer_range=1.0, id2label=names))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 1, 128, 1).expand(-1, -1, -1, 100) - 1)
    folder = tmp_path_factory.mktemp("tagger")
    model.save_pretrained(folder)
    return folder


def write_data(root: Path, **changes) -> Path:
    clips = {"sampling_rate": RATE}
    return write_paired_data(
        root,
        classes=CLASSES,
        other_sounds={"drums": {"sounds": ["drum"], "audioset": ["Drum"]}},
        clips=clips,
        cache="kept",
        **changes,
    )


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["make_audio_encoder.py", *map(str, arguments)])
    script.main()


def test_scores_are_standardized_over_the_training_recordings_of_other_groups(script, tagger, tmp_path, monkeypatch):
    settings = write_data(tmp_path / "data")
    run(script, monkeypatch, tagger, settings, tmp_path / "encoder")
    encoder = AudioMobileNetModel.from_pretrained(tmp_path / "encoder").eval()
    assert list(encoder.config.score_groups.items()) == list(GROUPS.items())
    assert encoder.config.embedding_size == 4
    extractor = AudioMobileNetFeatureExtractor.from_pretrained(tmp_path / "encoder")

    library = Library(read_settings(settings))
    numbers = [number for number, split in enumerate(library.recording_splits) if split == "train"]
    labels = [library.recordings[number].labels[0].replace("drum", "drums") for number in numbers]
    waveforms = [script.cut_loudest(library.recording(number), RATE)[0] for number in numbers]
    with torch.no_grad():
        scores = torch.cat([encoder(**extractor(one, RATE, return_tensors="pt")).audio_embeds for one in waveforms])
    assert set(labels) == {"dog", "bird", "drums", "rain"} and len(scores) < len(library.recordings)
    for column, name in enumerate(GROUPS):
        others = scores[[label != name for label in labels], column]
        assert others.mean().item() == pytest.approx(0.0, abs=0.01), name
        assert others.std().item() == pytest.approx(1.0, abs=0.01), name


def test_the_right_group_has_the_highest_score_more_often_and_other_classes_keep_their_weights(
    script, tagger, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(script, "PENALTY", 0.0)
    monkeypatch.setattr(script, "LEARNING_RATE", 0.5)  # the tiny tagger has small features
    run(script, monkeypatch, tagger, write_data(tmp_path / "data"), tmp_path / "encoder")
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:6]]
    assert [row[0] for row in rows] == list(GROUPS)
    counts, before, after = (torch.tensor([int(row[column]) for row in rows]) for column in (3, 4, 5))
    assert counts.tolist() == [2, 0, 2, 2] and (before <= counts).all() and (after <= counts).all()
    assert after.sum() > before.sum()

    old, new = (AudioMobileNetModel.from_pretrained(path).state_dict() for path in (tagger, tmp_path / "encoder"))
    assert {name for name in old if not old[name].equal(new[name])} == {"classifier.weight", "classifier.bias"}
    changed = (old["classifier.weight"] != new["classifier.weight"]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [0, 3, 4]  # cat, of two classes, has no recordings


def test_unknown_class_names_are_refused(script, tagger, tmp_path, monkeypatch):
    settings = write_data(tmp_path / "data")
    settings.write_text(settings.read_text().replace("Meow", "Miaow"))
    with pytest.raises(ValueError, match=r"unknown names \['Miaow'\] and no name for \[\]"):
        run(script, monkeypatch, tagger, settings, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
