"""Tests of dataset_scripts/collation.py: the log-mel cache and the collator."""

import wave
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchcodec_decoders import audio_decoder
from written_trees import write_trees

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from modeling_pcmanet.audio_pcmanet import AudioBuffer
from modeling_pcmanet.feature_extraction_pcmanet import AudioMobileNetFeatureExtractor
from pcmanet.dataset_scripts.augmentation import Augmentation
from pcmanet.dataset_scripts.avsbench import RowSettings, load_avsbench
from pcmanet.dataset_scripts.collation import AudioFeatureCache, ClipCollator, real_frames
from pcmanet.dataset_scripts.evaluation import EvaluationReader, find_evaluation_clips
from pcmanet.dataset_scripts.sounding_shapes import SoundingShapes, write_clip


WAVEFORM = np.random.default_rng(0).uniform(-0.5, 0.5, 80000)
SECONDS = tuple(np.arange(5) + 0.9375)


def processor_of(**settings):
    return PCMANetProcessor(PCMANetImageProcessor(), PCMANetFeatureExtractor(**settings))


def compute(audio_features, waveform=WAVEFORM, timestamps=SECONDS, audio_alignment="consecutive"):
    """Return the features of a clip, float32 (frames, 1, 96, 64)."""
    frames = [(timestamp,) for timestamp in timestamps]
    patches = audio_features(frames, AudioBuffer([(waveform, 16000)], 16000), audio_alignment)
    return np.stack([patch.numpy() for _, patch in patches])


def cached_files(folder):
    return sorted(folder.rglob("*.npy"))


def test_features_are_those_of_the_extractor_and_written_once(tmp_path):
    cache = AudioFeatureCache(processor_of(), tmp_path / "cache")
    expected = PCMANetFeatureExtractor()(WAVEFORM, 16000, num_frames=5)["input_features"]
    for _ in range(2):
        np.testing.assert_array_equal(compute(cache), expected)
    assert len(cached_files(tmp_path)) == 1
    assert compute(AudioFeatureCache(processor_of(), tmp_path / "cache")).shape == (5, 1, 96, 64)
    assert len(cached_files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("extractor", "clip"),
    [
        ({}, {"waveform": WAVEFORM * 0.5}),
        ({}, {"waveform": WAVEFORM[:64000]}),
        ({"log_offset": 0.02}, {}),
        ({"short_clip": "zeros"}, {}),
        ({}, {"timestamps": SECONDS[:4]}),
        ({}, {"timestamps": np.arange(5) + 0.5, "audio_alignment": "center"}),
        ({}, {"audio_alignment": "end"}),
    ],
)
def test_other_audio_and_settings_give_other_features(tmp_path, extractor, clip):
    compute(AudioFeatureCache(processor_of(), tmp_path))
    changed = processor_of(**extractor)
    expected = compute(changed.audio_features, **clip)
    np.testing.assert_array_equal(compute(AudioFeatureCache(changed, tmp_path), **clip), expected)
    assert len(cached_files(tmp_path)) == 2


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda content: content[:-40], lambda content: content[:-33] + b"!" * 33]
)
def test_a_damaged_file_is_written_again(tmp_path, damage):
    cache = AudioFeatureCache(processor_of(), tmp_path)
    expected = compute(cache)
    (path,) = cached_files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(compute(cache), expected)
    np.testing.assert_array_equal(np.load(path), expected)


def embed(features):
    """A stand-in for an audio encoder, whose embeddings have two values."""
    return torch.stack([features.flatten(1).mean(1), features.flatten(1).std(1)], dim=1)


def test_embeddings_are_computed_once_for_every_encoder(tmp_path):
    calls = []

    def counted(features):
        calls.append(len(features))
        return embed(features)

    expected = embed(torch.from_numpy(compute(processor_of().audio_features))).numpy()
    for encoder in ("first", "second", "first"):
        cache = AudioFeatureCache(processor_of(), tmp_path, embed=counted, encoder=encoder)
        np.testing.assert_array_equal(compute(cache), expected)
    assert calls == [5, 5]
    np.testing.assert_array_equal(
        compute(AudioFeatureCache(processor_of(), tmp_path)), compute(processor_of().audio_features)
    )


FRAMES_ONLY = Augmentation(loudness=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_trees(tmp_path_factory.mktemp("avsbench"), s4={"train": 2, "val": 1}, avss={"test": 3})


@pytest.fixture
def load(root, tmp_path):
    return lambda name, split, **options: load_avsbench(root, name, split=split, cache_dir=tmp_path, **options)


@pytest.fixture(scope="module")
def processor():
    return PCMANetProcessor(PCMANetImageProcessor(size={"height": 32, "width": 48}), PCMANetFeatureExtractor())


def test_clips_of_sounding_shapes_are_collated_by_the_processor(processor):
    dataset = SoundingShapes("s4", "train", length=2, height=40, width=40)
    batch = ClipCollator(processor, binary=True)([dataset[0], dataset[1]])
    expected = processor(
        videos=[dataset[index].frames for index in range(2)],
        audio=[dataset[index].waveform for index in range(2)],
        sampling_rate=16000,
        segmentation_maps=[[dataset[index].binary[0], *[None] * 4] for index in range(2)],
        return_tensors="pt",
    )
    assert set(batch) == {"pixel_values", "input_features", "labels", "annotated_frames"}
    for name, values in expected.items():
        torch.testing.assert_close(batch[name], values, rtol=0, atol=0)


def test_s4_training_rows_have_labels_in_their_first_frame_only(processor, load):
    batch = ClipCollator(processor, binary=True)(list(load("s4", "train")))
    assert batch["pixel_values"].shape == (2, 5, 3, 32, 48) and batch["input_features"].shape == (2, 5, 1, 96, 64)
    assert batch["annotated_frames"].tolist() == [[True, False, False, False, False]] * 2
    assert real_frames(batch).equal(torch.ones(2, 5, dtype=torch.bool))
    assert set(batch["labels"][:, 0].unique().tolist()) == {0, 1} and (batch["labels"][:, 1:] == 255).all()


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_give_the_batch_of_their_source_clips(processor, load, streaming):
    collate = ClipCollator(processor, binary=True)
    (row,) = load("s4", "val", streaming=streaming)
    clip = SoundingShapes("s4", "val", length=1, height=224, width=224)[0]
    batch, expected = collate([row]), collate([clip])
    for name, values in expected.items():
        torch.testing.assert_close(batch[name], values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("split", ["train", "val"])  # in train some masks are None
@pytest.mark.parametrize("form", ["numpy", "torch", "decoder"])
def test_every_format_of_rows_gives_the_same_batch(processor, load, split, form, tmp_path):
    rows, collate = load("s4", split), ClipCollator(processor, binary=True)
    if form == "decoder":  # of a column that was cast to `Audio`
        row = dict(rows[0])
        (tmp_path / "audio.wav").write_bytes(row["audio"]["bytes"])
        row["audio"] = audio_decoder(tmp_path / "audio.wav")
    else:
        row = rows.with_format(form)[0]
    batch, expected = collate([row]), collate([rows[0]])
    assert set(batch) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(batch[name], values, rtol=0, atol=0)


@pytest.mark.parametrize("binary", [False, True])
def test_clips_of_five_and_ten_seconds_share_a_batch(processor, load, binary):
    rows = list(load("avss", "test"))
    batch = ClipCollator(processor, binary=binary)(rows)
    assert (
        batch["frame_mask"].sum(1).tolist() == [5, 5, 10]
        and batch["frame_mask"][0].tolist() == [True] * 5 + [False] * 5
    )
    assert batch["annotated_frames"].equal(batch["frame_mask"])
    assert (batch["labels"][:2, 5:] == 255).all() and (batch["pixel_values"][:2, 5:] == 0).all()
    seen = set(batch["labels"][batch["frame_mask"]].unique().tolist())
    assert seen == {0, 1} if binary else max(seen) > 1 and max(seen) < 71


def test_a_loader_with_workers_gives_the_same_batches(processor, load):
    collate = ClipCollator(processor, binary=True)
    (alone,) = DataLoader(load("s4", "train"), batch_size=2, collate_fn=collate)
    (worked,) = DataLoader(load("s4", "train", streaming=True), batch_size=2, collate_fn=collate, num_workers=1)
    for name, values in alone.items():
        torch.testing.assert_close(worked[name], values, rtol=0, atol=0)


def test_augmentation_follows_the_seed(processor, load):
    rows = list(load("s4", "train"))
    augmented = ClipCollator(processor, binary=True, augmentation=Augmentation(replacement=0.3))

    def draw(seed):
        torch.manual_seed(seed)
        return augmented(rows)

    assert all(torch.equal(draw(1)[name], draw(1)[name]) for name in ("pixel_values", "input_features", "labels"))
    assert not torch.equal(draw(1)["pixel_values"], draw(2)["pixel_values"])
    plain = ClipCollator(processor, binary=True)
    torch.manual_seed(1)
    first = plain(rows)
    assert torch.equal(first["pixel_values"], plain(rows)["pixel_values"])


def test_replaced_audio_replaces_the_published_features_and_empties_the_labels(processor, load):
    silence = Augmentation(flips=0, crops=0, photometric=0, loudness=0, replacement=1.0, replacements=("silence",))
    rows = [{**row, "log_mel": np.ones((5, 1, 96, 64), np.float32)} for row in load("s4", "train")]
    batch = ClipCollator(processor, binary=True, augmentation=silence)(rows)
    # A clip with replaced audio has the same weight in a mean over annotated frames as before.
    assert batch["annotated_frames"].tolist() == [[True, False, False, False, False]] * 2
    assert (batch["labels"][:, 0] == 0).all() and (batch["labels"][:, 1:] == 255).all()
    torch.testing.assert_close(batch["input_features"], torch.full_like(batch["input_features"], np.log(0.01)))


def test_the_cache_gives_the_same_features_without_computing_them_again(processor, load, tmp_path, monkeypatch):
    rows = list(load("avss", "test"))
    expected = ClipCollator(processor, binary=False)(rows)
    cached = ClipCollator(
        processor, binary=False, augmentation=None, audio_cache=AudioFeatureCache(processor, tmp_path / "log_mel")
    )
    assert torch.equal(cached(rows)["input_features"], expected["input_features"])
    assert len(list((tmp_path / "log_mel").rglob("*.npy"))) == 3
    monkeypatch.setattr(PCMANetFeatureExtractor, "log_mel_patches", None)
    assert torch.equal(cached(rows)["input_features"], expected["input_features"])


def test_batches_have_embeddings_of_the_features_that_they_would_have(processor, load, tmp_path):
    row = load("s4", "val")[0]
    published = np.random.default_rng(0).normal(size=(5, 1, 96, 64)).astype(np.float32)
    short = np.frombuffer(row["audio"]["bytes"][44:], "<i2").reshape(-1, 2)[: 4 * 16000]
    rows = [row, {**row, "log_mel": published}, {**row, "audio": {"path": None, "bytes": wav(short)}}]
    expected = ClipCollator(processor, binary=True)(rows)
    features = expected.pop("input_features")
    cache = AudioFeatureCache(processor, tmp_path, embed=embed, encoder="digest")
    for _ in range(2):
        batch = dict(ClipCollator(processor, binary=True, audio_cache=cache)(rows))
        assert torch.equal(batch.pop("audio_embeds"), torch.stack([embed(one) for one in features]))
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)
        cache.embed = fail


def fail(_features):
    raise AssertionError("Expected embeddings of the cache, not computed ones")


def test_a_cache_rejects_an_augmentation_of_audio(processor, tmp_path):
    with pytest.raises(ValueError, match="without audio changes"):
        ClipCollator(processor, True, augmentation=Augmentation(), audio_cache=AudioFeatureCache(processor, tmp_path))
    ClipCollator(processor, True, augmentation=FRAMES_ONLY, audio_cache=AudioFeatureCache(processor, tmp_path))


def test_published_features_replace_the_audio(processor, load):
    row = load("s4", "val")[0]
    features = np.random.default_rng(0).normal(size=(5, 1, 96, 64)).astype(np.float32)
    batch = ClipCollator(processor, binary=True)([{**row, "audio": None, "log_mel": features}])
    np.testing.assert_array_equal(batch["input_features"][0], features)
    with pytest.raises(ValueError, match="neither audio nor log-mel"):
        ClipCollator(processor, binary=True)([{**row, "audio": None}])
    with pytest.raises(ValueError, match="features but no audio"):
        ClipCollator(processor, binary=True, augmentation=Augmentation())(
            [{**row, "audio": None, "log_mel": features}]
        )


def test_published_features_are_refused_for_another_audio_encoder(load, root):
    extractor = AudioMobileNetFeatureExtractor()
    collate = ClipCollator(PCMANetProcessor(PCMANetImageProcessor(), extractor), binary=True)
    message = "log_mel gives log-mel patches, .* the features of AudioMobileNetFeatureExtractor. Leave log_mel out"
    with pytest.raises(ValueError, match=message):
        collate([{**load("s4", "val")[0], "log_mel": np.zeros((5, 1, 96, 64), np.float32)}])
    data = find_evaluation_clips(root, "s4", "val", RowSettings())
    EvaluationReader(data, collate)
    with pytest.raises(ValueError, match=message):
        EvaluationReader(replace(data, settings=RowSettings(log_mel=True)), collate)


@pytest.mark.parametrize(("seconds", "same"), [(4.0, False), (7.5, True), (30.0, True)])
def test_short_and_long_audio_is_treated_as_in_avsbench(processor, load, seconds, same):
    row, collate = load("s4", "val")[0], ClipCollator(processor, binary=True)
    samples = np.frombuffer(row["audio"]["bytes"][44:], "<i2").reshape(-1, 2)
    longer = np.resize(np.concatenate([samples, samples[::-1]]), (round(seconds * 16000), 2))
    other = {**row, "audio": {"path": None, "bytes": wav(longer)}}
    batch, expected = collate([other])["input_features"][0], collate([row])["input_features"][0]
    assert torch.equal(batch[:4], expected[:4])
    assert torch.equal(batch[4], expected[4] if same else expected[3])


def wav(samples):
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(16000)
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def test_errors_name_the_clip(processor, load):
    row = load("s4", "val")[0]
    with pytest.raises(ValueError, match=f"Clip '{row['id']}'"):
        ClipCollator(processor, binary=True)([{**row, "audio": {"path": None, "bytes": b"no sound"}}])
    with pytest.raises(ValueError, match=rf"In the batch of clips \['{row['id']}'\]: clip 0"):
        ClipCollator(processor, binary=True)([{**row, "timestamps": [0.1, 0.2, 0.3, 0.4, 9.9]}])


def test_a_custom_folder_gives_a_batch(processor, tmp_path):
    dataset = SoundingShapes("ms3", "train", length=1, height=64, width=96, num_frames=2)
    (tmp_path / "masks").mkdir()
    write_clip(dataset, 0, tmp_path / "clip.mp4", frames_per_second=16)
    Image.fromarray(dataset[0].binary[1] * np.uint8(255)).save(tmp_path / "masks" / "1.png")
    (tmp_path / "clips.csv").write_text("video,split,masks\nclip.mp4,train,masks\n")
    rows = list(load_avsbench(tmp_path, "folder", split="train", cache_dir=tmp_path / "cache"))
    batch = ClipCollator(processor, binary=True)(rows)
    direct = processor(videos=[str(tmp_path / "clip.mp4")], return_tensors="pt")
    assert batch["annotated_frames"].tolist() == [[False, True]]
    torch.testing.assert_close(batch["pixel_values"], direct["pixel_values"], rtol=0, atol=0)
    torch.testing.assert_close(batch["input_features"], direct["input_features"], rtol=0, atol=0.02)
    expected = np.asarray(Image.fromarray(dataset[0].binary[1]).resize((48, 32), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(batch["labels"][0, 1], expected)
