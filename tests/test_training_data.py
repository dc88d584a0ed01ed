"""The clips of every step, for any number of processes and any first step; paired audio, seeded collation, loaders."""

import os
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from paired_files import RATE, write_paired_data
from training_runs import TINY_RUN, tiny_run
from written_trees import write_trees

from modeling_pcmanet import PCMANetImageProcessor, PCMANetProcessor
from modeling_pcmanet.configuration_encoders import AudioMobileNetConfig
from modeling_pcmanet.feature_extraction_pcmanet import AudioMobileNetFeatureExtractor
from modeling_pcmanet.modeling_audio_encoders import AudioMobileNetModel, embed_windows
from pcmanet.dataset_scripts.clips import to_arrays
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.paired import Library, PairedClips, SoundEvent, read_settings
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundingShapes
from pcmanet.training.data import (
    Batch,
    BatchPlan,
    Draw,
    TrainingClips,
    TrainingData,
    class_names,
    crop_to_square,
    load_datasets,
    order_scores,
)
from pcmanet.training.recipe import FILES, PLACE, Recipe
from pcmanet.training.run import build_processor


def plan(**changes) -> BatchPlan:
    settings = {"num_clips": 11, "batch_size": 4, "parts": 1, "processes": 1, "epochs": 2, "shuffle": True, "seed": 3}
    return BatchPlan(**{**settings, **changes})


def clips_of(shares) -> list[int]:
    return sorted(draw.clip for batches in shares for draws in batches for draw in draws if draw.counts)


def test_every_epoch_has_every_clip_once_in_another_order():
    one = plan()
    assert (one.steps_per_epoch, one.steps) == (3, 6)
    epochs = [[draw for step in range(first, first + 3) for draw in one.share(step, 0)[0]] for first in (0, 3)]
    orders = [[draw.clip for draw in epoch] for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(11))
    assert orders[0] != orders[1]
    assert [draw.position for draw in epochs[1]] == list(range(11, 22))
    assert [one.clips_before(step) for step in (0, 1, 2, 3, 4, 6)] == [0, 4, 8, 11, 15, 22]


def test_order_depends_on_the_seed_or_the_data():
    assert plan().share(0, 0) == plan().share(0, 0) != plan(seed=4).share(0, 0)
    assert [draw.clip for draw in plan(shuffle=False).share(4, 0)[0]] == [4, 5, 6, 7]


@pytest.mark.parametrize("processes, parts", [(1, 2), (2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("step", range(6))
def test_step_has_the_same_clips_for_any_number_of_processes_and_parts(processes, parts, step):
    shared = plan(processes=processes, parts=parts)
    shares = [shared.share(step, process) for process in range(processes)]
    assert clips_of(shares) == clips_of([plan().share(step, 0)])
    # All processes take part in every exchange of gradients, and their numbers of clips differ by one at most.
    assert len({len(batches) for batches in shares}) == 1
    for batches in zip(*shares, strict=True):
        assert max(map(len, batches)) - min(map(len, batches)) <= 1


def test_process_without_a_clip_repeats_one_that_does_not_count():
    # The third step has three clips for four processes.
    alone = plan(processes=4).share(2, 3)
    assert len(alone) == 1 and len(alone[0]) == 1
    assert not alone[0][0].counts
    assert alone[0][0].clip == plan(processes=4).share(2, 0)[0][0].clip


def test_later_first_step_gives_the_remaining_batches():
    shared = plan(processes=2, parts=2)
    complete = list(shared.micro_batches(0, 6, 1))
    before = list(shared.micro_batches(0, 4, 1))
    assert before + list(shared.micro_batches(4, 6, 1)) == complete


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"processes": 3},
            "batch_size is 4, which 3 processes times 1 gradient_accumulation cannot share evenly. Set it to a multiple of 3",
        ),
        ({"num_clips": 0}, "Expected training clips, got none"),
    ],
)
def test_step_that_cannot_be_shared_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_options_of_the_data_reach_the_clips(tmp_path, caplog):
    root = write_trees(tmp_path, avss={"train": 4, "val": 4}, ms3={"train": 2, "val": 1})
    options = {"task": "avss", "data": str(root), "freeze": []}
    recipe = Recipe(**options, subsets=["v1s", "v2"], binary=True)
    training, validation = load_datasets(recipe)
    assert [row["subset"] for row in training] == [row["subset"] for row in validation] == ["v1s", "v2", "v1s"]
    assert class_names(recipe) == ["sounding"] and np.asarray(training[0]["masks"][0]).max() == 1
    wav = next(root.glob("Multi-sources/ms3_data/audio_wav/train/*.wav"))
    wav.write_bytes(b"no wav")
    with pytest.raises(ValueError, match="Not a wav file"):
        load_datasets(Recipe(**options | {"task": "ms3"}))
    caplog.clear()
    training, _ = load_datasets(Recipe(**options | {"task": "ms3", "on_error": "skip"}))
    assert len(training) == 1 and [str(wav) in record.message for record in caplog.records] == [True]
    with pytest.raises(ValueError, match="Missing folder"):
        load_datasets(Recipe(**options | {"task": "ms3", "log_mel": True}))


def test_published_features_for_another_audio_encoder_are_refused_before_the_data_are_read(tmp_path):
    recipe = Recipe(task="s4", data=str(tmp_path), preset="small", log_mel=True, freeze=[])
    with pytest.raises(ValueError, match="log_mel gives log-mel patches"):
        build_processor(recipe)


CPU = torch.device("cpu")
AUGMENTED = {"augmentation": {"flips": 0.5}}


def tiny_data(clips, validation=(), *, processes: int = 1, **settings) -> TrainingData:
    recipe = Recipe(**tiny_run(**settings))
    processor: PCMANetProcessor = build_processor(recipe)
    return TrainingData(recipe, (clips, validation), processor, binary=True, num_processes=processes)


def first_batch(data: TrainingData) -> Batch:
    return next(data.training_batches(0, data.plan.steps, 0, CPU))[0]


@pytest.fixture(scope="module")
def clips() -> SoundingShapes:
    return SoundingShapes("ms3", "train", length=5, height=32, width=32, num_frames=2)


def same(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_identity_of_the_data_changes_with_the_files_of_training_and_validation(tmp_path):
    tree = write_trees(tmp_path / "tree", ms3={"train": 1, "val": 1, "test": 1})

    def identity() -> dict:
        return tiny_data([None], task="ms3", data=str(tree), freeze=[], negative_fraction=0.0).identity()

    before = identity()
    assert identity() == before
    for split, changes in (("test", False), ("val", True), ("train", True)):
        mask = next(tree.rglob(f"gt_masks/{split}/*/*.png"))
        mask.write_bytes(mask.read_bytes() + b" ")
        after = identity()
        assert [after[name] != before[name] for name in (FILES, PLACE)] == [changes] * 2
        before = after
    assert after.keys() == {"clips", FILES, PLACE}
    os.utime(mask)
    touched = identity()
    tree = tree.rename(tmp_path / "moved")
    assert len({before[PLACE], touched[PLACE], identity()[PLACE]}) == 3
    assert before[FILES] == touched[FILES] == identity()[FILES]


def test_identity_of_sounding_shapes_is_their_number(clips):
    assert tiny_data(clips).identity() == {"clips": 5}


@pytest.mark.parametrize("data, shuffled", [(None, False), ("AVSBench", True)])
def test_only_data_on_disk_is_shuffled(data, shuffled):
    settings = {"negative_fraction": 0.0, "data": data, "freeze": []}
    plan = tiny_data(range(40), processes=2, **settings).plan
    order = [draw.clip for step in range(20) for draw in sorted(plan.share(step, 0)[0] + plan.share(step, 1)[0])]
    assert sorted(order) == list(range(40))
    assert (order == list(range(40))) is not shuffled


def test_paired_audio_repeats_the_frames_of_every_clip(clips):
    pairs = TrainingClips(clips, pair_audio=True)
    assert len(pairs) == 10
    (first, draw), (second, _) = pairs[Draw(6, 0)], pairs[Draw(7, 1)]
    assert draw == Draw(6, 0)
    assert np.array_equal(first.frames, second.frames)
    assert not np.array_equal(first.sounding, second.sounding)
    assert np.array_equal(first.waveform, clips[3].waveform)


def test_augmentation_depends_on_seed_and_position_alone(clips):
    torch.manual_seed(1)
    first = first_batch(tiny_data(clips, **AUGMENTED))
    torch.manual_seed(2)
    assert same(first, first_batch(tiny_data(clips, **AUGMENTED)))
    assert not same(first, first_batch(tiny_data(clips, **AUGMENTED, seed=1)))
    # Somewhere in twenty positions the same clip is flipped, and somewhere not.
    data = tiny_data([clips[0]] * 20, **AUGMENTED, batch_size=1)
    sums = {batch["pixel_values"].sum().item() for (batch,) in data.training_batches(0, 20, 0, CPU)}
    assert len(sums) > 1


def test_batches_leave_the_global_generators_alone(clips):
    torch.manual_seed(1)
    np.random.seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    data = tiny_data(clips, clips, **AUGMENTED)
    first_batch(data)
    list(data.validation_batches(data.validation_indices(0), CPU))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_repeated_clip_has_no_annotated_frame(clips):
    data = tiny_data(clips, processes=2, batch_size=2)
    # The third step has one clip for two processes.
    (first,), (second,) = (next(data.training_batches(2, 3, process, CPU)) for process in (0, 1))
    assert first["annotated_frames"].tolist() == [[True, True]]
    assert second["annotated_frames"].tolist() == [[False, False]]
    assert torch.equal(first["pixel_values"], second["pixel_values"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_later_first_step_gives_the_same_batches(num_workers, clips):
    settings = {**AUGMENTED, "epochs": 2}
    complete = list(tiny_data(clips, **settings).training_batches(0, 6, 0, CPU))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rest = list(tiny_data(clips, **settings, num_workers=num_workers).training_batches(3, 6, 0, CPU))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(complete) == 6 and len(rest) == 3
    for expected, found in zip(complete[3:], rest, strict=True):
        assert all(same(*pair) for pair in zip(expected, found, strict=True))


def test_validation_batches_do_not_depend_on_the_number_of_processes():
    def indices(clips: int, process: int, processes: int) -> list[list[int]]:
        data = tiny_data(range(4), range(clips), processes=processes, batch_size=4, evaluation_batch_size=3)
        return data.validation_indices(process)

    assert indices(7, 0, 1) == [[0, 1, 2], [3, 4, 5], [6]]
    assert [indices(7, process, 2) for process in (0, 1)] == [[[0, 1, 2], [6]], [[3, 4, 5]]]
    assert indices(2, 1, 2) == []


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (47, 32)])
def test_center_crop_keeps_the_central_square(shape):
    clip = to_arrays(SoundingShapes("ms3", "train", length=1, height=shape[0], width=shape[1])[0], binary=True)
    square = crop_to_square(clip)
    side, top, left = min(shape), (shape[0] - min(shape)) // 2, (shape[1] - min(shape)) // 2
    assert square.frames.shape[1:] == (side, side, 3)
    assert np.array_equal(square.frames, clip.frames[:, top : top + side, left : left + side])
    assert np.array_equal(square.masks, clip.masks[:, top : top + side, left : left + side])


def test_training_clips_are_augmented_and_validation_clips_are_not(clips):
    plain, changed = (
        tiny_data(clips, clips, batch_size=1, augmentation=augmentation)
        for augmentation in (None, {"photometric": 1.0})
    )
    validation = next(changed.validation_batches([[0]], CPU))
    assert torch.equal(first_batch(plain)["pixel_values"], validation["pixel_values"])
    assert not torch.equal(first_batch(changed)["pixel_values"], validation["pixel_values"])


def test_sounding_shapes_of_a_recipe():
    recipe = Recipe(**{**TINY_RUN, "pair_audio": True, "clips": 8, "negative_fraction": 0.5})
    training, validation = load_datasets(recipe)
    pairs = TrainingClips(training, pair_audio=True)
    assert (len(pairs), len(validation)) == (8, 3)
    # Half of all clips are negative, so every first clip of a pair is.
    assert [pairs[Draw(index, 0)][0].negative is not None for index in range(8)] == [True, False] * 4
    assert class_names(Recipe(**TINY_RUN)) == ["sounding"]
    assert len(class_names(Recipe(**{**TINY_RUN, "task": "avss"}))) == 13
    training, _ = load_datasets(Recipe(**TINY_RUN), size=(48, 64))
    assert training[0].frames.shape[1:3] == (48, 64)


# --- Stand-ins ---


def test_recipe_changes_the_clips_of_paired_data(tmp_path):
    path = write_paired_data(tmp_path, clips={"seconds": 2, "context_seconds": 0.0})
    settings = {
        "task": "ms3",
        "data": str(path),
        "audio_encoder": "x",
        "negative_fraction": 0.0,
        "evaluation_clips": 3,
    }
    recipe = Recipe(**TINY_RUN | settings | {"paired_clips": {"seconds": 1}})
    training, validation = load_datasets(recipe)
    assert (training[0].frames.shape[0], validation[0].frames.shape[0], len(validation)) == (1, 1, 3)
    assert load_datasets(replace(recipe, paired_clips={}))[0][0].frames.shape[0] == 2
    with pytest.raises(ValueError, match="paired_clips needs paired data, but data is AVSBench"):
        replace(recipe, data="AVSBench")


def test_stand_in_exchanges_the_scores_of_two_classes():
    def event(label: str, stand_in: str | None = None) -> SoundEvent:
        return SoundEvent(label, 1, "recording.wav", 0.0, 1.0, -20.0, stand_in)

    groups = ["dog", "cat", "bird", "drum"]
    assert order_scores(SimpleNamespace(events=(event("bird"),)), groups) == [0, 1, 2, 3]
    clip = SimpleNamespace(events=(event("bird", stand_in="dog"), event("rain")))
    assert order_scores(clip, groups) == [2, 1, 0, 3]
    both = SimpleNamespace(events=(event("bird", stand_in="dog"), event("cat", stand_in="drum")))
    assert order_scores(both, groups) == [2, 3, 0, 1]


WINDOWS = [[0.5, 0.5], [1.0, 0.0]]  # seconds before and after a frame


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> PairedClips:
    """Clips of dogs, cats and birds, of which cats and birds have no recordings."""
    classes = {name: {"photos": [name], "sounds": [name] if name == "dog" else []} for name in ("dog", "cat", "bird")}
    changes = {"stand_ins": True, "seconds": 2, "context_seconds": 1.0, "sounds": {"matching": 1.0}, "background": 0.0}
    path = write_paired_data(tmp_path_factory.mktemp("paired"), classes=classes, clips=changes)
    return PairedClips(Library(read_settings(path)), "ms3", length=8)


def scoring_encoder(groups: dict[str, list[int]] | None) -> AudioMobileNetModel:
    torch.manual_seed(0)
    sizes = {"width_multiplier": 0.1, "num_mel_bins": 32, "num_labels": 5, "initializer_range": 0.5}
    return AudioMobileNetModel(AudioMobileNetConfig(**sizes, score_groups=groups)).eval()


def paired_processor() -> PCMANetProcessor:
    extractor = AudioMobileNetFeatureExtractor(feature_size=32, sampling_rate=RATE, max_frequency=7000.0)
    return PCMANetProcessor(PCMANetImageProcessor(size={"height": 32, "width": 32}), extractor, WINDOWS)


def paired_data(clips: PairedClips, encoder: AudioMobileNetModel | None, **settings) -> TrainingData:
    data = {
        "task": "ms3",
        "data": str(clips.library.settings.path),
        "audio_encoder": "scores",
        "negative_fraction": 0.0,
    }
    recipe = Recipe(**{**TINY_RUN, **data, **settings})
    datasets, processor = (clips, clips), paired_processor()
    return TrainingData(recipe, datasets, processor, binary=True, num_processes=1, audio_encoder=encoder)


def embeddings(data: TrainingData, part: str) -> Iterator[Batch]:
    """Yield batches of two clips."""
    if part == "validation":
        yield from data.validation_batches([[0, 1], [2, 3], [4, 5], [6, 7]], CPU)
    else:
        yield from (batch for (batch,) in data.training_batches(0, 4, 0, CPU))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("part, settings", [("validation", {}), ("training", {}), ("training", {"center_crop": True})])
def test_batches_have_the_embeddings_of_the_encoder_with_stand_ins_exchanged(
    part, settings, cached, stand_ins, tmp_path
):
    # Groups are sorted, so they are not in the order of the classes: dog, cat, bird.
    encoder = scoring_encoder({"bird": [2], "cat": [1], "dog": [0, 3]})
    data = paired_data(stand_ins, encoder, audio_cache=str(tmp_path / "cache") if cached else None, **settings)
    collate, exchanged = ClipCollator(paired_processor(), binary=True), []
    for number, batch in enumerate(embeddings(data, part)):
        clips = [stand_ins[2 * number], stand_ins[2 * number + 1]]
        features = collate(clips)["input_features"]
        assert "input_features" not in batch and batch["audio_embeds"].shape == (2, 2, 2 * 3)
        for clip, audio, scores in zip(clips, features, batch["audio_embeds"], strict=True):
            with torch.no_grad():
                expected = embed_windows(encoder, audio, num_windows=2).view(2, 2, 3)
            labels = [event.label for event in clip.events if event.stand_in == "dog"]
            exchanged += labels
            order = {(): [0, 1, 2], ("cat",): [0, 2, 1], ("bird",): [2, 1, 0]}[tuple(labels)]
            torch.testing.assert_close(scores.view(2, 2, 3), expected[..., order], atol=1e-5, rtol=1e-4)
            assert expected.std(dim=-1).min() > 1e-3  # so that an exchange shows
    assert set(exchanged) == {"cat", "bird"}
    assert len(exchanged) < 8  # some clips have a dog


@pytest.mark.parametrize("encoder", [scoring_encoder(None), None])
def test_cache_has_embeddings_of_an_audio_encoder_that_never_changes(encoder, clips, tmp_path):
    recipe = Recipe(**TINY_RUN, audio_cache=str(tmp_path / "cache"))
    data = TrainingData(
        recipe, (clips, clips), paired_processor(), binary=True, num_processes=1, audio_encoder=encoder
    )
    (batch,) = next(data.training_batches(0, 1, 0, CPU))
    (expected,) = data.validation_batches([[0, 1]], CPU)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2
    name = "input_features" if encoder is None else "audio_embeds"
    assert torch.equal(batch[name], expected[name])
    assert ("audio_embeds" in batch) == (encoder is not None)


def test_stand_ins_need_an_audio_encoder_that_scores_all_classes(stand_ins):
    for encoder, missing in (
        (None, "dog, cat, bird"),
        (scoring_encoder(None), "dog, cat, bird"),
        (scoring_encoder({"cat": [1], "dog": [0]}), "bird"),
    ):
        with pytest.raises(ValueError, match=rf"paired\.yaml has stand_ins.*got none for {missing}\. Use one"):
            paired_data(stand_ins, encoder)
