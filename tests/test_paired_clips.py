"""Test clips of paired data: masks against the sounds, levels, determinism, rules of the tasks and kinds of clips."""

import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from paired_files import RATE, TONES, write_paired_data, write_settings
from torch.utils.data import DataLoader

from pcmanet.dataset_scripts.evaluation import EvaluationReader, find_paired_clips
from pcmanet.dataset_scripts.metrics import Audio
from pcmanet.dataset_scripts.paired import Library, PairedClip, PairedClips, read_settings
from pcmanet.dataset_scripts.paired.clips import measure


CLASSES = ("dog", "cat", "bird")
ONLY = {"matching": 1.0}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Photos and tones, each decoded once."""
    return Library(read_settings(write_paired_data(tmp_path_factory.mktemp("paired"), cache="kept")))


def make_clips(library: Library, **changes: Any) -> PairedClips:
    """Return clips of a library with some settings changed."""
    arguments = {key: changes.pop(key) for key in list(changes) if key in ("task", "split", "length", "seed")}
    changed = Library.__new__(Library)
    vars(changed).update(vars(library))
    changed.settings = replace(library.settings, clips=replace(library.settings.clips, **changes))
    return PairedClips(changed, **arguments)


def level_of(samples: np.ndarray, label: str) -> float:
    """Return the level of a label's tone in dBFS, from the spectrum of at least half a second."""
    window = np.hanning(len(samples))
    spectrum = np.abs(np.fft.rfft(samples * window)) * 2 / window.sum()
    place = round(TONES[label] * len(samples) / RATE)
    return float(20 * np.log10(np.sqrt(0.5) * spectrum[max(0, place - 3) : place + 4].max() + 1e-9))


def middle_of(clip: PairedClip, second: int, context: float = 0.0) -> np.ndarray:
    """Return the audio of a frame's second."""
    assert clip.waveform is not None
    start = round((context + second) * RATE)
    return clip.waveform[0, start : start + RATE]


def seconds_of(clips: PairedClips, count: int) -> Iterator[tuple[PairedClip, int]]:
    """Yield each second of the first clips."""
    for index in range(count):
        clip = clips[index]
        for second in range(len(clip.frames)):
            yield clip, second


def test_masks_show_what_sounds(library: Library) -> None:
    clips = make_clips(library, length=60, background=0.0, level_decibels=(-20.0, -15.0), steady=0.2)
    outcomes: Counter[tuple[bool, bool]] = Counter()
    for clip, second in seconds_of(clips, 60):
        mask, visible = clip.masks[second], clip.visible[second]
        for index, name in enumerate(CLASSES, start=1):
            sounds = level_of(middle_of(clip, second), name) > -45
            assert sounds == clip.sounding[second, index]
            np.testing.assert_array_equal(mask == index, (visible == index) & sounds)
            outcomes[sounds, bool((visible == index).any())] += 1
        void = visible == 255
        assert (mask[void] == (255 if clip.sounding[second].any() else 0)).all()
    assert min(outcomes[pair] for pair in ((True, True), (True, False), (False, True))) > 5


def test_levels_are_those_of_the_events(library: Library) -> None:
    clips = make_clips(
        library, length=40, sounds=ONLY, steady=1.0, second_sound=1.0, distractor=1.0, background=1.0, seconds=3
    )
    counts: Counter[int] = Counter()
    for index in range(40):
        clip = clips[index]
        counts[len(clip.events)] += 1
        assert np.abs(clip.waveform).max() <= 1
        labels = [event.label for event in clip.events]
        assert len(set(labels)) == len(labels)
        for event in clip.events:
            # Between two recordings of a sound there is a pause, so the loudest of many short pieces is compared.
            assert clip.waveform is not None
            pieces = [clip.waveform[0, start : start + RATE // 4] for start in range(0, 2 * RATE, RATE // 8)]
            assert max(level_of(piece, event.label) for piece in pieces) == pytest.approx(event.decibels, abs=0.7)
        main, *others = [event.decibels for event in clip.events if event.label != "rain"]
        assert all(abs(other - main) <= 6 for other in others)
        (rain,) = [event.decibels for event in clip.events if event.label == "rain"]
        assert -25 <= rain - main <= -8
    assert set(counts) >= {3, 4}


def test_loud_mixtures_are_attenuated_together(library: Library) -> None:
    options = {"sounds": ONLY, "second_sound": 1.0, "steady": 1.0, "background": 0.0}
    loud = make_clips(library, length=20, level_decibels=(3.0, 3.0), balance_decibels=(0.0, 0.0), **options)
    for index in range(20):
        clip = loud[index]
        assert clip.waveform is not None
        assert np.abs(clip.waveform).max() == pytest.approx(1.0, abs=1e-5)
        levels = [event.decibels for event in clip.events]
        assert max(levels) < 0
        assert np.ptp(levels) == pytest.approx(0, abs=1e-6)


def assert_same(one: PairedClip, other: PairedClip) -> None:
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, vars(other)[name])
        else:
            assert value == vars(other)[name]


def test_clips_depend_on_the_index_alone(library: Library) -> None:
    clips = make_clips(library, length=12)
    backwards = {index: clips[index] for index in reversed(range(12))}
    for index in range(12):
        assert_same(clips[index], backwards[index])
    other = make_clips(library, length=12, seed=1)
    assert any(not np.array_equal(clips[k].waveform, other[k].waveform) for k in range(12))


def test_workers_give_the_same_clips(tmp_path: Path) -> None:
    library = Library(read_settings(write_paired_data(tmp_path, cache="kept")))
    clips = PairedClips(library, length=6)
    expected = [clips[index] for index in range(6)]
    loader = DataLoader(clips, batch_size=None, num_workers=2, collate_fn=_same)
    for clip, one in zip(loader, expected, strict=True):
        assert_same(clip, one)
    # A worker that is not forked gets the dataset without the arrays that are mapped into memory.
    pickled = pickle.dumps(clips)
    assert len(pickled) < 100_000
    assert_same(pickle.loads(pickled)[5], expected[5])


def _same(clip: PairedClip) -> PairedClip:
    return clip


def test_clips_of_a_picture_differ_in_sound(library: Library) -> None:
    clips = make_clips(library, length=80, contrast=1.0)
    both = 0
    for index in range(0, 80, 2):
        one, other = clips[index], clips[index + 1]
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.visible, other.visible)
        assert not np.array_equal(one.waveform, other.waveform)
        if len(set(np.unique(one.visible)) - {0, 255}) > 1:
            both += 1
            assert (one.sound, other.sound) == ("matching", "matching")
            assert one.events[0].label != other.events[0].label
    assert both > 10


def test_kinds_have_their_weights(library: Library) -> None:
    sounds = {"matching": 0.5, "absent": 0.2, "unknown": 0.1, "background": 0.1, "silence": 0.1}
    pictures = {"single": 0.5, "mosaic": 0.25, "paste": 0.25}
    clips = make_clips(library, length=400, sounds=sounds, pictures=pictures, contrast=0.0, seconds=1)
    kinds = [clips[index] for index in range(400)]
    heard = Counter(clip.sound for clip in kinds)
    assert {kind: heard[kind] / 400 for kind in sounds} == pytest.approx(sounds, abs=0.06)
    seen = Counter(clip.picture for clip in kinds[::2])
    assert {kind: seen[kind] / 200 for kind in pictures} == pytest.approx(pictures, abs=0.1)
    # Two clips of a picture differ as much as the weights allow: with half of them matching, always in this.
    for one, two in zip(kinds[::2], kinds[1::2], strict=True):
        if len(set(np.unique(one.visible)) & {1, 2, 3}) < 3:  # otherwise no class is absent, and the weights differ
            assert (one.sound == "matching") != (two.sound == "matching")


def test_negative_clips_have_empty_masks(library: Library) -> None:
    for kind, labels in (
        ("absent", set(CLASSES)),
        ("unknown", {"drum"}),
        ("background", {"rain"}),
        ("silence", set()),
    ):
        clips = make_clips(
            library, length=12, sounds={kind: 1.0}, contrast=0.0, background=0.0, pictures={"single": 1}
        )
        for index in range(12):
            clip = clips[index]
            assert clip.sound == kind
            assert not (clip.masks % 255).any()
            assert clip.sounding_objects() == []
            assert bool(clip.events) == (kind != "silence")
            assert {event.label for event in clip.events} <= labels
            assert clip.waveform is not None
            assert kind == "silence" or np.abs(clip.waveform).max() > 0.01
            assert kind != "silence" or np.abs(clip.waveform).max() < 0.01


def test_splits_share_neither_photos_nor_recordings(library: Library) -> None:
    files: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        clips = make_clips(library, split=split, length=60, seconds=1)
        groups = {one.file: one.group for one in library.recordings}
        files[split] = {groups[event.file] for index in range(60) for event in clips[index].events}
        files[split] |= {library.photos[number].id for numbers in clips.photos.values() for number in numbers}
    assert all(files.values())
    assert not files["train"] & files["val"] | files["train"] & files["test"] | files["val"] & files["test"]


def test_rules_of_the_tasks(library: Library) -> None:
    for task, split, annotated in (("s4", "train", 1), ("s4", "val", 3), ("ms3", "train", 3), ("avss", "train", 3)):
        clips = make_clips(library, task=task, split=split, length=20, sounds=ONLY)
        values: set[int] = set()
        for index in range(20):
            clip = clips[index]
            assert clip.annotated_frames.tolist() == [k < annotated for k in range(3)]
            assert (clip.masks[annotated:] == 255).all()
            values |= set(np.unique(clip.masks[:annotated]).tolist())
            if task == "s4":
                assert len([event for event in clip.events if event.label != "rain"]) == 1
                assert (clip.events[0].start, clip.events[0].stop) == (0, 3)
        assert values - {0, 255} == ({1, 2, 3} if task == "avss" else {1})
        assert clips.binary == (task != "avss")


def test_context_extends_the_audio_only(library: Library) -> None:
    clips = make_clips(library, length=30, seconds=1, context_seconds=1.5, background=0.0, steady=0.3)
    later = 0
    for clip, second in seconds_of(clips, 30):
        assert clip.waveform is not None
        assert clip.waveform.shape == (1, 4 * RATE)
        assert clip.timestamps.tolist() == [1.5 + 15 / 16]
        for index, name in enumerate(CLASSES, start=1):
            sounds = level_of(middle_of(clip, second, 1.5), name) > -50
            assert sounds == clip.sounding[0, index]
            anywhere = any(event.label == name for event in clip.events)
            later += anywhere and not sounds
    assert later > 0


def test_sounds_start_and_stop(library: Library) -> None:
    clips = make_clips(library, length=60, sounds=ONLY, steady=0.0, background=0.0, seconds=5)
    events = [clips[index].events[0] for index in range(60)]
    assert any(event.start > 0 for event in events)
    assert any(event.stop < 5 for event in events)
    assert all(0 <= event.start < event.stop <= 5 for event in events)
    changing = [index for index in range(60) if np.ptp(clips[index].sounding.sum(axis=1))]
    assert len(changing) > 15


def test_pictures(library: Library) -> None:
    """Frames and masks agree: red tells the class of the photo, which survives cropping, mirroring and pasting."""
    for kind in ("single", "mosaic", "paste"):
        clips = make_clips(library, length=16, pictures={kind: 1.0}, seconds=2)
        for index in range(0, 16, 2):
            clip = clips[index]
            assert clip.frames.shape[:3] == clip.visible.shape
            classes = set(np.unique(clip.visible)) - {0, 255}
            assert len(classes) >= (1 if clip.picture == "single" else 2)
            for label in classes:
                red = clip.frames[..., 0][clip.visible == label]
                assert np.median(red) == pytest.approx(40 * label, abs=14)
        kinds = {clips[index].picture for index in range(16)}
        assert kind in kinds


def test_motion(library: Library) -> None:
    still = make_clips(library, length=10, still=1.0, pictures={"single": 1.0})
    moving = make_clips(library, length=10, still=0.0, pictures={"single": 1.0}, zoom=2.0)
    assert all((still[k].frames[0] == still[k].frames[-1]).all() for k in range(0, 10, 2))
    assert any((moving[k].frames[0] != moving[k].frames[-1]).any() for k in range(0, 10, 2))


def test_stand_ins(tmp_path: Path) -> None:
    write_paired_data(tmp_path)
    classes = {"dog": {"photos": ["dog"], "sounds": ["dog"]}, "cat": {"photos": ["cat"]}}
    options = {"sounds": ONLY, "contrast": 0.0, "background": 0.0}
    for stand_ins in (False, True):
        changes = {"stand_ins": stand_ins, **options}
        path = write_settings(tmp_path, classes=classes, clips=changes, cache="kept")
        clips = PairedClips(Library(read_settings(path)), length=40)
        events = [event for index in range(40) for event in clips[index].events]
        cats = [event for event in events if event.label == "cat"]
        assert bool(cats) == stand_ins
        assert all(event.stand_in == "dog" and "/dog/" in event.file for event in cats)
        assert all(event.stand_in is None for event in events if event.label == "dog")


@pytest.mark.parametrize("kind", ["unknown", "absent"])
def test_sounds_of_no_visible_object_are_similar_to_those_of_visible_ones(tmp_path: Path, kind: str) -> None:
    """Only where the settings ask for it, and where a class has a similar sound that may sound in this clip."""
    write_paired_data(tmp_path)
    similar = {"unknown": {"dog": "drum", "cat": "rain"}, "absent": {"dog": "bird", "cat": "dog"}}[kind]
    options = {"sounds": {kind: 1.0}, "pictures": {"single": 1.0}, "contrast": 0.0, "background": 0.0}
    drawn = {}
    for fraction, with_similar in ((1.0, True), (0.0, True), (0.0, False)):
        classes = {name: {"photos": [name], "sounds": [name]} for name in CLASSES}
        for name, sound in similar.items() if with_similar else ():
            classes[name]["similar"] = [sound]
        path = write_settings(
            tmp_path,
            classes=classes,
            background=[],
            unknown=["drum", "rain"],
            cache="kept",
            clips=options | ({"similar_sounds": fraction} if with_similar else {}),
        )
        drawn[fraction, with_similar] = list(PairedClips(Library(read_settings(path)), length=80))
    found: dict[str, set[str]] = {}
    for clip in drawn[1.0, True]:
        seen = " and ".join(name for index, name in enumerate(CLASSES, start=1) if (clip.visible == index).any())
        assert not np.isin(clip.masks, (1, 2, 3)).any()
        found.setdefault(seen, set()).add(Path(clip.events[0].file).parent.name)
    expected = {
        "unknown": {"dog": {"drum"}, "cat": {"rain"}, "dog and cat": {"drum", "rain"}, "bird": {"drum", "rain"}},
        "absent": {"dog": {"bird"}, "cat": {"dog"}, "dog and cat": {"bird"}, "bird": {"dog", "cat"}},
    }
    assert found == expected[kind]
    for one, same in zip(drawn[0.0, True], drawn[0.0, False], strict=True):
        assert_same(one, same)


def test_kind_of_weight_0_never_sounds(library: Library) -> None:
    """Also in clips of pictures whose classes have no recordings, which cannot have the other kind."""
    clips = make_clips(library, length=40, sounds={"matching": 1.0, "absent": 0.0}, contrast=0.0)
    clips.recordings = {role: numbers for role, numbers in clips.recordings.items() if role == 1}
    assert {clips[index].sound for index in range(40)} == {"matching", "silence"}


def test_evaluation_has_the_clips_of_a_validation(library: Library) -> None:
    clips = find_paired_clips(library.settings.path, "ms3", "val", length=3, seed=5)
    expected = make_clips(library, task="ms3", split="val", length=3, seed=5)
    for index in range(3):
        assert_same(clips.read(index), expected[index])


@pytest.mark.parametrize("audio", ["silence", "noise"])
def test_negative_audio_is_as_long_as_that_of_the_clip(tmp_path: Path, audio: Audio) -> None:
    """Otherwise windows around the last frames would be half silent."""
    write_paired_data(tmp_path)
    path = write_settings(tmp_path, clips={"context_seconds": 1.5}, cache="kept")
    reader = EvaluationReader(find_paired_clips(path, "ms3", "test", length=1, seed=0), cast(Any, None))
    own, replaced = reader._clip(0, "positive"), reader._clip(0, audio)
    assert replaced.waveform.shape[-1] / replaced.sampling_rate == own.waveform.shape[-1] / own.sampling_rate == 6.0
    assert (replaced.waveform[..., -100:] != 0).any() == (audio == "noise")
    np.testing.assert_array_equal(replaced.masks, own.masks)


def test_evaluation_has_no_stand_ins(tmp_path: Path) -> None:
    write_paired_data(tmp_path)
    classes = {"dog": {"photos": ["dog"], "sounds": ["dog"]}, "cat": {"photos": ["cat"]}}
    options = {"stand_ins": True, "sounds": ONLY, "contrast": 0.0, "background": 0.0}
    path = write_settings(tmp_path, classes=classes, clips=options, cache="kept")
    clips = find_paired_clips(path, "avss", "test", length=20, seed=0)
    present = {label for index in range(20) for label in np.unique(clips.read(index).masks)}
    assert 1 in present and 2 not in present, present  # of classes: dog, cat


def test_level_of_a_recording_leaves_its_silence_out() -> None:
    recording = np.zeros(RATE, dtype=np.int16)
    recording[4000:8000] = 1000
    level, active = measure(recording, RATE)
    assert level == pytest.approx(1000, rel=0.15)
    assert active.tolist() == [2, 3, 4]


def test_wrong_arguments(library: Library) -> None:
    for arguments in ({"task": "s5"}, {"split": "all"}, {"length": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match="Expected"):
            make_clips(library, **arguments)
    with pytest.raises(IndexError, match="from 0 to 4"):
        make_clips(library, length=5)[5]


def test_identity_changes_with_the_settings(library: Library) -> None:
    one, same, other = (make_clips(library, zoom=zoom).identity for zoom in (1.5, 1.5, 1.6))
    assert one == same != other
