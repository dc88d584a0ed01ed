"""Tests of the pipeline: arguments, inputs, windows, reading ahead, and real files through a tiny model."""

import contextlib
import copy
import io
import math
import pickle
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import GeneratorType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset as HubDataset
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from torchcodec_decoders import audio_decoder, video_decoder
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, Pipeline, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging as transformers_logging
from written_trees import write_trees

from modeling_pcmanet import (
    AudioMobileNetFeatureExtractor,
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
)
from modeling_pcmanet.configuration_pcmanet import PIPELINE_TAG
from modeling_pcmanet.media_pcmanet import read_audio, read_media
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.dataset_scripts.avsbench import load_avsbench
from pcmanet.files import DEFAULT_MODEL, find_checkpoint
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.pipelines.audio_visual_segmentation import (
    Window,
    _blend_windows,
    _clip_arguments,
    _fading_weights,
    _fraction,
    _integer,
    _list_or_generator,
    _mask_logits_of_rates,
    _next_clip,
    _read_ahead,
    _ReadAhead,
    _return_freed_memory,
    _split_windows,
    collate_windows,
    iterate_mask_logits,
)


@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.25), np.int64(1), Fraction(1, 4)])
def test_fractions_become_float(value: object):
    assert _fraction("threshold", value) == value
    assert type(_fraction("threshold", value)) is float


@pytest.mark.parametrize("value", [-0.1, 1.01, math.nan, "0.5", True, [0.5]])
def test_values_that_are_not_fractions_are_refused(value: object):
    with pytest.raises(ValueError, match="`threshold` must be a number between 0 and 1, got "):
        _fraction("threshold", value)


@pytest.mark.parametrize("value", [1, 10, np.int64(3)])
def test_integers_become_int(value: object):
    assert _integer("batch_size", value, 1) == value
    assert type(_integer("batch_size", value, 1)) is int


@pytest.mark.parametrize("value", [0, -1, 2.5, 2.0, "2", True])
def test_values_that_are_not_integers_are_refused(value: object):
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, got "):
        _integer("batch_size", value, 1)


def test_missing_arguments_stay_none():
    assert _fraction("threshold", None) is None
    assert _integer("batch_size", None, 1) is None


NAMES = ["a.mp4", "b.mp4", "c.mp4"]
TABLE = HubDataset.from_dict({"video": NAMES})


class Rows(TorchDataset):
    """A dataset whose end is known only from its length."""

    def __len__(self) -> int:
        return len(NAMES)

    def __getitem__(self, index: int) -> str:
        return NAMES[index % len(NAMES)]


class Stream(TorchIterableDataset):
    """A dataset without a length."""

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)


@pytest.mark.parametrize("inputs", [NAMES, tuple(NAMES)])
def test_lists_and_tuples_become_a_list(inputs: object):
    assert _list_or_generator(inputs) == NAMES


@pytest.mark.parametrize(
    "inputs",
    [
        iter(NAMES),
        map(str, NAMES),
        (name for name in NAMES),
        dict.fromkeys(NAMES).keys(),
        TABLE["video"],
        TABLE.to_iterable_dataset()["video"],
        Rows(),
        Stream(),
    ],
    ids=lambda inputs: type(inputs).__name__,
)
def test_iterators_and_datasets_become_a_generator(inputs: object):
    several = _list_or_generator(inputs)
    assert isinstance(several, GeneratorType)
    assert list(several) == NAMES


@pytest.mark.parametrize("inputs", [TABLE, TABLE.to_iterable_dataset()], ids=lambda inputs: type(inputs).__name__)
def test_rows_of_a_dataset(inputs: object):
    assert list(_list_or_generator(inputs)) == [{"video": name} for name in NAMES]


@pytest.mark.parametrize("inputs", [[], ()])
def test_empty_lists_become_an_empty_generator(inputs: object):
    assert isinstance(_list_or_generator(inputs), GeneratorType)
    assert list(_list_or_generator(inputs)) == []


@pytest.mark.parametrize(
    "inputs",
    [
        "a.mp4",
        Path("a.mp4"),
        b"bytes",
        bytearray(b"bytes"),
        io.BytesIO(b"bytes"),
        io.StringIO("text"),
        {"video": "a.mp4"},
        np.zeros((2, 4, 4, 3), np.uint8),
        torch.zeros(2, 4, 4, 3),
        5,
        None,
    ],
    ids=lambda inputs: type(inputs).__name__,
)
def test_one_input_is_unchanged(inputs: object):
    assert _list_or_generator(inputs) is inputs


def test_the_arguments_of_a_clip():
    given = _clip_arguments({"video": "a.mp4", "label": 3}, audio="b.wav", sampling_rate=8000)
    assert given == {"video": "a.mp4", "audio": "b.wav", "sampling_rate": 8000}
    row = {"frames": [1], "timestamps": [0.5], "path": "c.mp4"}
    assert _clip_arguments(row) == {"video": [1], "timestamps": [0.5], "audio": None, "sampling_rate": None}
    assert _clip_arguments({"path": "c.mp4"})["video"] == {"path": "c.mp4"}
    row = {"video": None, "frames": [1], "audio": None, "sampling_rate": None, "timestamps": None}
    assert _clip_arguments(row, audio="b.wav", sampling_rate=8000) == {
        "video": [1],
        "audio": "b.wav",
        "sampling_rate": 8000,
    }


def frames(number: int) -> list[dict]:
    return [
        {
            "timestamp": float(index),
            "original_size": (4, 6),
            "mask_timestamps": (float(index),),
            "pixel_values": torch.full((3, 2, 2), float(index)),
            "input_features": torch.full((1, 96, 64), float(index)),
        }
        for index in range(number)
    ]


def split(number: int, length: int, overlap: int) -> list[list[int]]:
    windows = list(_split_windows(iter(frames(number)), length, overlap))
    assert [window.is_last for window in windows] == [False] * (len(windows) - 1) + [True]
    assert sum(window.new_frames for window in windows) == number
    return [[int(frame["timestamp"]) for frame in window.frames] for window in windows]


@pytest.mark.parametrize(
    ("number", "length", "overlap", "starts"),
    [
        (1, 10, 2, [0]),
        (10, 10, 2, [0]),
        (11, 10, 2, [0, 1]),
        (18, 10, 2, [0, 8]),
        (19, 10, 2, [0, 8, 9]),
        (26, 10, 2, [0, 8, 16]),
        (6, 3, 0, [0, 3]),
        (7, 3, 0, [0, 3, 4]),
        (5, 4, 3, [0, 1]),
        (3, 1, 0, [0, 1, 2]),
    ],
)
def test_windows_cover_the_clip(number: int, length: int, overlap: int, starts: list[int]):
    expected = [list(range(start, min(start + length, number))) for start in starts]
    assert split(number, length, overlap) == expected


def test_windows_share_a_fifth_by_default():
    windows = list(_split_windows(iter(frames(18)), 10))
    assert [(window.new_frames, window.overlap) for window in windows] == [(10, 2), (8, 2)]


def test_no_frames_give_no_windows():
    assert list(_split_windows(iter([]), 10, 2)) == []


def test_frames_of_several_rates_are_split_and_blended_independently():
    both = [
        {**frame, "rate": rate} for frame in frames(23) for rate in range(2) if rate or frame["timestamp"] % 2 == 0
    ]
    outputs = [
        (
            window,
            torch.tensor([frame["timestamp"] + 100 * window.rate for frame in window.frames])[:, None, None, None],
        )
        for window in _split_windows(iter(both), 4, 2)
    ]
    assert [sum(w.is_last for w, _ in outputs if w.rate == rate) for rate in range(2)] == [1, 1]
    found = list(_mask_logits_of_rates(outputs))
    for rate, number in enumerate((12, 23)):
        levels = [logits.item() for index, (_, logits, *_) in found if index == rate]
        assert levels == pytest.approx([100 * rate + (2 - rate) * index for index in range(number)])


@pytest.mark.parametrize("number", [1, 3, 4, 5, 8, 9, 23])
def test_equal_windows_blend_to_themselves(number: int):
    values = torch.randn(number, 2, 3, 3, dtype=torch.float64)
    windows = _split_windows(iter(frames(number)), 4, 2)
    outputs = ((window, torch.stack([values[int(f["timestamp"])] for f in window.frames])) for window in windows)
    blended = list(_blend_windows(outputs))
    assert [frame["timestamp"] for frame, _ in blended] == [float(index) for index in range(number)]
    torch.testing.assert_close(torch.stack([logits for _, logits in blended]), values)


def test_windows_fade_linearly():
    windows = list(_split_windows(iter(frames(8)), 5, 2))
    levels = [torch.full((5, 1, 1, 1), float(level)) for level in range(2)]
    blended = [logits.item() for _, logits in _blend_windows(zip(windows, levels, strict=True))]
    assert blended == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1])
    assert _fading_weights(5, 2) == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])


def test_frames_are_yielded_as_soon_as_no_window_can_change_them():
    windows, seen = list(_split_windows(iter(frames(8)), 5, 2)), []

    def outputs() -> Iterator[tuple[Window, torch.Tensor]]:
        for number, window in enumerate(windows):
            seen.append(number)
            yield window, torch.zeros(5, 1, 1, 1)

    after = [(frame["timestamp"], len(seen)) for frame, _ in _blend_windows(outputs())]
    assert after == [(0.0, 2), (1.0, 2), (2.0, 2), (3.0, 2), (4.0, 2), (5.0, 2), (6.0, 2), (7.0, 2)]


def test_logits_between_frames_are_interpolated_in_time():
    def frame(timestamp: float, *mask_timestamps: float) -> dict:
        return {"timestamp": timestamp, "original_size": (1, 1), "mask_timestamps": mask_timestamps}

    given = (frame(1.0, 0.0, 1.0), frame(3.0, 1.5, 2.0), frame(3.0, 2.9), frame(4.0, 3.5, 4.5))
    outputs = [(Window(given, 4, 0, is_last=True), torch.tensor([10.0, 20.0, 40.0, 0.0])[:, None])]
    levels = [(timestamp, logits.item()) for timestamp, logits, *_ in iterate_mask_logits(outputs)]
    assert levels == [(0.0, 10.0), (1.0, 10.0), (1.5, 12.5), (2.0, 15.0), (2.9, 40.0), (3.5, 20.0), (4.5, 0.0)]


def test_windows_are_separated_by_clip():
    windows = [Window((), 0, 0, is_last) for is_last in (False, True, True, False)]
    outputs = iter([(window, torch.zeros(0)) for window in windows])
    assert [len(list(_next_clip(outputs))) for _ in range(3)] == [2, 1, 1]


def test_shorter_windows_are_padded():
    batch = collate_windows([frames(3), frames(2)], torch.float16)
    assert batch["frame_mask"].tolist() == [[True] * 3, [True, True, False]]
    assert batch["pixel_values"].shape == (2, 3, 3, 2, 2)
    assert batch["pixel_values"].dtype == batch["input_features"].dtype == torch.float16
    assert batch["pixel_values"][1, :, 0, 0, 0].tolist() == [0.0, 1.0, 0.0]
    assert "frame_mask" not in collate_windows([frames(3), frames(3)], torch.float16)


class TestReadAhead:
    def test_yields_all_items_in_order(self):
        assert list(_ReadAhead((number for number in range(50)), 3)) == list(range(50))

    def test_reads_ahead_up_to_its_capacity(self):
        made = []

        def items() -> Iterator[int]:
            for number in range(100):
                made.append(number)
                yield number

        reader = _ReadAhead(items(), 3)
        assert next(reader) == 0
        time.sleep(0.3)
        assert len(made) <= 5
        reader.close()

    def test_errors_are_raised_in_place_of_the_item(self):
        def items() -> Iterator[int]:
            yield 1
            raise OSError("the disk failed")

        reader = _ReadAhead(items(), 3)
        assert next(reader) == 1
        with pytest.raises(OSError, match="disk failed"):
            next(reader)
        assert list(reader) == []

    def test_close_ends_thread_and_generator(self):
        ended = threading.Event()

        def items() -> Iterator[int]:
            try:
                while True:
                    yield 0
            finally:
                ended.set()

        reader = _ReadAhead(items(), 1)
        next(reader)
        reader.close()
        reader.close()
        assert ended.is_set()
        assert list(reader) == []

    def test_take_waiting_returns_all_waiting_items(self):
        reader = _ReadAhead((number for number in range(5)), 10)
        reader._thread.join()
        assert reader.take_waiting() == [0, 1, 2, 3, 4]
        assert reader.take_waiting() == []

    @pytest.mark.parametrize("at_once", [1, 2, 5])
    def test_clips_follow_each_other(self, at_once: int):
        clips = ((clip * 10 + number for number in range(3)) for clip in range(4))
        expected = [clip * 10 + number for clip in range(4) for number in range(3)]
        assert list(_read_ahead(clips, at_once, 2)) == expected

    def test_close_ends_every_thread(self):
        clips = ((number for number in range(100)) for _ in range(4))
        chain = _read_ahead(clips, 3, 2)
        next(chain)
        chain.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_freed_memory_is_returned_to_the_system():
    # Blocks small enough for the heap, and one in use at its end: glibc alone keeps the memory before it.
    blocks = [bytes(64 * 1024) for _ in range(640)]
    last = blocks[-1]
    del blocks
    before = resident_bytes() if platform.libc_ver()[0] == "glibc" else 0
    _return_freed_memory()
    if before:
        assert before - resident_bytes() > 20 * 2**20
    assert len(last) == 64 * 1024


def test_freed_memory_is_returned_after_each_window(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    monkeypatch.setattr("pcmanet.pipelines.audio_visual_segmentation._TRIM", calls.append)
    windows = _split_windows(iter(frames(8)), 5, 2)
    outputs = ((window, torch.zeros(5, 1, 1, 1)) for window in windows)
    after = [(frame["timestamp"], len(calls)) for frame, _ in _blend_windows(outputs)]
    assert after == [(float(index), 2) for index in range(8)]
    assert calls == [0, 0]


SIZE = (64, 48)  # width, height
RATE = 16000
SEMANTIC = {0: "background", 1: "bell", 2: "drum", 3: "flute"}


TINY_AUDIO = {"block_channels": [[4], [8], [8], [8]], "hidden_size": 16, "embedding_size": 16}


def tiny_config(**labels: object) -> PCMANetConfig:
    backbone = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    return PCMANetConfig(
        backbone_config=backbone,
        hidden_size=16,
        num_groups=4,
        num_attention_heads=2,
        head_channels=8,
        token_grid_sizes=[1, 2, 2, 4],
        **{"audio_config": TINY_AUDIO, **labels},
    )


BUILT: dict[str, Pipeline] = {}


def tiny_pipeline(**settings: object) -> Pipeline:
    """Return a new copy of a pipeline, which takes a fraction of the time to build it."""
    if str(settings) not in BUILT:
        BUILT[str(settings)] = build_pipeline(**settings)
    return copy.deepcopy(BUILT[str(settings)])


def build_pipeline(**settings: object) -> Pipeline:
    torch.manual_seed(0)
    model = PCMANetForAudioVisualSegmentation(tiny_config(**settings)).eval()
    processor = PCMANetProcessor(PCMANetImageProcessor(size={"height": 32, "width": 32}), PCMANetFeatureExtractor())

    # Random weights predict one class everywhere: spread the logits and center them on the decision.
    head = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    torch.nn.init.normal_(head.weight, std=2.0)
    batch = processor(videos=clip_frames(5, 7)[::10], audio=clip_audio(5, 7), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        head.bias -= model(**batch).logits.mean(dim=(0, 1, 3, 4))
    return pipeline("audio-visual-segmentation", model=model, processor=processor, device="cpu")


@pytest.fixture(scope="module")
def binary() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def semantic() -> Pipeline:
    return tiny_pipeline(id2label=SEMANTIC, label2id={label: index for index, label in SEMANTIC.items()})


def clip_frames(seconds: int, seed: int) -> np.ndarray:
    """Ten frames per second of moving noise, (frames, height, width, 3)."""
    generator = np.random.default_rng(seed)
    still = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([np.roll(still, frame, axis=1) for frame in range(10 * seconds)])


def clip_audio(seconds: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.1, (1, seconds * RATE))
    return noise.astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Clips of 2, 5 and 3 seconds."""
    folder = tmp_path_factory.mktemp("clips")
    paths = []
    for seed, seconds in enumerate((2, 5, 3)):
        paths.append(folder / f"{seconds}s.mp4")
        write_video(paths[-1], clip_frames(seconds, seed), 10, clip_audio(seconds, seed), RATE)
    return paths


@pytest.fixture(scope="module")
def one_by_one(semantic: Pipeline, clips: list[Path]) -> list[list[dict]]:
    return [semantic(path) for path in clips]


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("silent") / "silent.mp4"
    write_video(path, clip_frames(2, 0), 10)
    return path


def assert_same(left: list[dict], right: list[dict]) -> None:
    assert [frame["timestamp"] for frame in left] == [frame["timestamp"] for frame in right]
    for one, other in zip(left, right, strict=True):
        assert [segment["label"] for segment in one["segments"]] == [segment["label"] for segment in other["segments"]]
        for segment, twin in zip(one["segments"], other["segments"], strict=True):
            assert segment["score"] == pytest.approx(twin["score"], abs=1e-4)
            different = np.asarray(segment["mask"]) != np.asarray(twin["mask"])
            assert different.mean() < 1e-3


def run_model(pipe: Pipeline, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return pipe.model(**{name: batch[name] for name in pipe.processor.model_input_names if name in batch}).logits


class TestResult:
    def test_binary_equals_the_processor(self, binary: Pipeline, clips: list[Path]):
        result = binary(clips[1])
        batch = binary.processor(videos=str(clips[1]), return_tensors="pt")
        logits = run_model(binary, batch)
        masks = binary.processor.post_process_semantic_segmentation(
            SimpleNamespace(logits=logits), target_sizes=SIZE[::-1]
        )[0]
        assert [frame["timestamp"] for frame in result] == pytest.approx([0.9, 1.9, 2.9, 3.9, 4.9])
        assert 0.05 < masks.float().mean() < 0.95
        probability = torch.nn.functional.interpolate(logits[0], SIZE[::-1], mode="bilinear").sigmoid()[:, 0]
        for frame, mask, expected in zip(result, masks.bool(), probability, strict=True):
            (segment,) = frame["segments"]
            assert segment["label"] == "sounding"
            assert (segment["mask"].mode, segment["mask"].size) == ("L", SIZE)
            assert (np.asarray(segment["mask"]) == 255 * mask.numpy()).all()
            assert segment["score"] == pytest.approx(expected[mask].mean().item(), abs=1e-5)

    def test_semantic_equals_the_processor(self, semantic: Pipeline, clips: list[Path]):
        result = semantic(clips[2])
        logits = run_model(semantic, semantic.processor(videos=str(clips[2]), return_tensors="pt"))
        ids = semantic.processor.post_process_semantic_segmentation(
            SimpleNamespace(logits=logits), target_sizes=SIZE[::-1]
        )[0]
        probability = torch.nn.functional.interpolate(logits[0], SIZE[::-1], mode="bilinear").softmax(dim=1)
        found = set()
        for frame, expected, probabilities in zip(result, ids, probability, strict=True):
            labels = [segment["label"] for segment in frame["segments"]]
            assert sorted(labels) == sorted(SEMANTIC[index] for index in expected.unique().tolist() if index > 0)
            scores = [segment["score"] for segment in frame["segments"]]
            assert scores == sorted(scores, reverse=True)
            for segment in frame["segments"]:
                index = semantic.model.config.label2id[segment["label"]]
                assert (np.asarray(segment["mask"]) == 255 * (expected == index).numpy()).all()
                assert segment["score"] == pytest.approx(
                    probabilities[index][expected == index].mean().item(), abs=1e-5
                )
            found |= set(labels)
        assert len(found) >= 2

    def test_no_segment_without_pixels_above_the_threshold(self, binary: Pipeline, clips: list[Path]):
        assert [frame["segments"] for frame in binary(clips[0], threshold=1.0)] == [[], []]

    def test_threshold_of_the_semantic_task(self, semantic: Pipeline, clips: list[Path]):
        confident = semantic(clips[0], threshold=0.6)
        for frame, strict in zip(semantic(clips[0]), confident, strict=True):
            masks = {segment["label"]: np.asarray(segment["mask"]) for segment in frame["segments"]}
            for segment in strict["segments"]:
                assert (np.asarray(segment["mask"]) <= masks[segment["label"]]).all()
                assert segment["score"] > 0.6

    def test_minimum_area(self, semantic: Pipeline, clips: list[Path]):
        everything = semantic(clips[1])
        areas = [np.asarray(s["mask"]).mean() / 255 for frame in everything for s in frame["segments"]]
        limit = float(np.median(areas))
        kept = [
            np.asarray(s["mask"]).mean() / 255
            for frame in semantic(clips[1], minimum_area=limit)
            for s in frame["segments"]
        ]
        assert kept == [area for area in areas if area >= limit]
        assert 0 < len(kept) < len(areas)

    def test_frames_per_second(self, binary: Pipeline, clips: list[Path]):
        times = [frame["timestamp"] for frame in binary(clips[0], frames_per_second=2)]
        assert times == pytest.approx(read_media(clips[0], frames_per_second=2).timestamps)
        assert len(times) == 4

    def test_arguments_of_the_constructor_are_defaults(self, binary: Pipeline, clips: list[Path]):
        strict = AudioVisualSegmentationPipeline(
            model=binary.model, processor=binary.processor, device="cpu", threshold=1.0
        )
        assert strict(clips[0])[0]["segments"] == []
        assert_same(strict(clips[0], threshold=0.5), binary(clips[0]))

    def test_result_does_not_depend_on_the_default_device(
        self, binary: Pipeline, semantic: Pipeline, clips: list[Path]
    ):
        for pipe in (binary, semantic):
            expected = pipe(clips, batch_size=2)
            with torch.device("meta"):  # as `torch.set_default_device`; a tensor there has no values
                results = pipe(clips, batch_size=2)
            for result, same in zip(results, expected, strict=True):
                assert_same(result, same)


def blended(windows: list[tuple[int, torch.Tensor]], overlap: int) -> torch.Tensor:
    """Weighted mean of windows given as (first frame, logits), computed frame by frame."""
    length = max(start + len(logits) for start, logits in windows)
    frames = []
    for frame in range(length):
        total, weights = 0, 0
        for start, logits in windows:
            index = frame - start
            if 0 <= index < len(logits):
                weight = min(1, (index + 1) / (overlap + 1), (len(logits) - index) / (overlap + 1))
                total, weights = total + weight * logits[index], weights + weight
        frames.append(total / weights)
    return torch.stack(frames)


def masks_of(result: list[dict]) -> np.ndarray:
    """The masks of the binary task, (frames, height, width), bool."""
    empty = np.zeros(SIZE[::-1], bool)
    return np.stack([np.asarray(f["segments"][0]["mask"]) == 255 if f["segments"] else empty for f in result])


class TestWindows:
    @pytest.mark.parametrize(
        ("length", "overlap", "starts"),
        [
            (5, 0, [0]),
            (4, 2, [0, 1]),
            (3, 1, [0, 2]),
            (2, 1, [0, 1, 2, 3]),
            (2, 0, [0, 2, 3]),
            (1, 0, [0, 1, 2, 3, 4]),
        ],
    )
    def test_windows_fade_into_each_other(
        self, binary: Pipeline, clips: list[Path], length: int, overlap: int, starts: list[int]
    ):
        result = binary(clips[1], frames_per_window=length, window_overlap=overlap)
        batch = binary.processor(videos=str(clips[1]), return_tensors="pt")
        windows = []
        for start in starts:
            window = {name: tensor[:, start : start + length] for name, tensor in batch.items()}
            windows.append((start, run_model(binary, window)[0]))
        expected = binary.processor.post_process_semantic_segmentation(
            SimpleNamespace(logits=blended(windows, overlap)[None]), target_sizes=SIZE[::-1]
        )[0]
        assert (masks_of(result) != expected.bool().numpy()).mean() < 1e-3

    def test_default_windows_have_ten_frames_and_share_two(
        self, binary: Pipeline, clips: list[Path], monkeypatch: pytest.MonkeyPatch
    ):
        lengths = []
        forward = binary.model.forward

        def spy(**inputs: torch.Tensor) -> object:
            lengths.append(tuple(inputs["pixel_values"].shape[:2]))
            return forward(**inputs)

        monkeypatch.setattr(binary.model, "forward", spy)
        binary(clips[1], frames_per_second=5, use_optimized_model=False)
        assert lengths == [(1, 10)] * 3

    def test_batch_size_does_not_change_the_result(self, semantic: Pipeline, clips: list[Path]):
        assert_same(
            semantic(clips[1], frames_per_window=2, window_overlap=1, batch_size=3),
            semantic(clips[1], frames_per_window=2, window_overlap=1),
        )


class TestStream:
    @pytest.mark.parametrize("settings", [{}, {"frames_per_second": 4, "frames_per_window": 6, "minimum_area": 0.1}])
    def test_yields_what_a_call_returns(self, semantic: Pipeline, clips: list[Path], settings: dict):
        stream = semantic.stream(clips[1], **settings)
        assert_same(list(stream), semantic(clips[1], **settings))

    @pytest.mark.parametrize("rates", [(1, 4), (5, 1, "video")])
    def test_several_rates_in_one_pass(self, semantic: Pipeline, clips: list[Path], rates: tuple[float | str, ...]):
        settings = {"frames_per_window": 6, "minimum_area": 0.1}
        found = list(semantic.stream_rates(clips[1], rates, **settings))
        for index, rate in enumerate(rates):
            expected = list(semantic.stream(clips[1], frames_per_second=rate, **settings))
            assert [entry for number, entry in found if number == index] == expected

    def test_masks_per_second_with_several_rates_are_refused(self, semantic: Pipeline, clips: list[Path]):
        with pytest.raises(ValueError, match="`masks_per_second` applies to one rate"):
            semantic.stream_rates(clips[1], (1, 4), masks_per_second=8)
        with pytest.raises(ValueError, match="frames_per_second is 0"):
            semantic.stream_rates(clips[1], (1, 0))

    def test_every_frame_of_the_video(self, binary: Pipeline, clips: list[Path]):
        computed = binary(clips[0], frames_per_second="video")
        assert [frame["timestamp"] for frame in computed] == pytest.approx(np.arange(20) / 10)
        interpolated = binary(clips[0], masks_per_second="video")
        assert [frame["timestamp"] for frame in interpolated] == pytest.approx(np.arange(20) / 10)
        network = masks_of(binary(clips[0]))
        masks = masks_of(interpolated)
        assert (masks[9] == network[0]).all()
        assert (masks[0] == network[0]).all()
        assert (masks[19] == network[1]).all()

    def test_masks_between_network_frames_are_interpolated(self, binary: Pipeline, clips: list[Path]):
        result = binary(clips[1], masks_per_second=4)
        assert [frame["timestamp"] for frame in result] == pytest.approx(
            read_media(clips[1], frames_per_second=4).timestamps
        )
        batch = binary.processor(videos=str(clips[1]), return_metadata=True, return_tensors="pt")
        logits, times = run_model(binary, batch)[0], batch["timestamps"][0]
        for frame, mask in zip(result, masks_of(result), strict=True):
            position = np.interp(frame["timestamp"], times, np.arange(len(times)))
            mean = torch.lerp(logits[int(position)], logits[min(int(position) + 1, 4)], float(position % 1))
            expected = torch.nn.functional.interpolate(mean[None], SIZE[::-1], mode="bilinear")[0, 0] > 0
            assert (mask != expected.numpy()).mean() < 1e-3

    def test_closing_early_ends_the_thread_and_closes_the_file(self, binary: Pipeline, clips: list[Path]):
        stream = binary.stream(clips[1], frames_per_second=10, frames_per_window=2)
        next(stream)
        assert "read-ahead" in [thread.name for thread in threading.enumerate()]
        stream.close()
        assert "read-ahead" not in [thread.name for thread in threading.enumerate()]
        links = [entry.resolve() for entry in Path("/proc/self/fd").iterdir()]
        assert clips[1] not in links

    def test_errors_of_the_reading_thread_are_raised(self, binary: Pipeline, tmp_path: Path):
        (tmp_path / "text.mp4").write_text("not a video")
        with pytest.raises(ValueError, match=r"text\.mp4"):
            next(binary.stream(tmp_path / "text.mp4"))
        with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
            next(binary.stream("nowhere.mp4"))

    def test_invalid_arguments_are_refused_immediately(self, binary: Pipeline, clips: list[Path]):
        with pytest.raises(ValueError, match=r"`window_overlap` must be less than `frames_per_window` \(4\), got 4"):
            binary.stream(clips[0], frames_per_window=4, window_overlap=4)
        with pytest.raises(TypeError, match="treshold"):
            binary.stream(clips[0], treshold=0.5)
        with pytest.raises(ValueError, match="audio_alignment.*'foo'"):
            binary.stream(clips[0], audio_alignment="foo")
        with pytest.raises(ValueError, match="frames_per_second is 0"):
            binary.stream(clips[0], frames_per_second=0)
        with pytest.raises(ValueError, match="`batch_size` must be .*got 0"):
            binary.stream(clips[0], batch_size=0)


def live_chunks(frames: np.ndarray, audio: np.ndarray, read: list[float]) -> Iterator[tuple]:
    """A camera with ten frames per second and a microphone; `read` collects the seconds that were read."""
    for index, frame in enumerate(frames):
        piece = audio[:, RATE // 10 * index : RATE // 10 * (index + 1)]
        read.append((index + 1) / 10)
        yield frame[None], [index / 10], piece


class TestLive:
    @pytest.mark.parametrize(("audio_alignment", "latency"), [("end", 0.0), ("center", 0.4875)])
    def test_masks_follow_as_soon_as_frame_and_audio_have_arrived(
        self, binary: Pipeline, audio_alignment: str, latency: float
    ):
        read: list[float] = []
        chunks = live_chunks(clip_frames(5, 4), clip_audio(5, 4), read)
        live = binary.live(chunks, sampling_rate=RATE, frames_per_second=2, audio_alignment=audio_alignment)
        waits = [(read[-1] - result["timestamp"], result["timestamp"]) for result in live]
        assert [timestamp for _, timestamp in waits] == pytest.approx(
            [0.4, 0.9, 1.4, 1.9, 2.4, 2.9, 3.4, 3.9, 4.4, 4.9]
        )
        # A tenth of a second for the frame itself, another for the next one, and the rest of a chunk of audio. The first
        # patch waits until 0.975 s, and the input ends before the last one is complete.
        assert all(latency <= wait <= latency + 0.31 for wait, _ in waits[2:-1])

    def test_windows_end_with_the_newest_frame(self, binary: Pipeline):
        frames, audio = clip_frames(5, 4), clip_audio(5, 4)
        live = list(binary.live(live_chunks(frames, audio, []), sampling_rate=RATE, frames_per_window=3))
        times = [result["timestamp"] for result in live]
        batch = binary.processor(
            frames[9::10], audio, sampling_rate=RATE, timestamps=times, audio_alignment="end", return_tensors="pt"
        )
        for index, mask in enumerate(masks_of(live)):
            window = {name: tensor[:, max(0, index - 2) : index + 1] for name, tensor in batch.items()}
            logits = torch.nn.functional.interpolate(run_model(binary, window)[0, -1:], SIZE[::-1], mode="bilinear")
            assert (mask != (logits[0, 0] > 0).numpy()).mean() < 1e-3

    def test_arguments_of_the_constructor_are_defaults(self, binary: Pipeline):
        def live(pipe: Pipeline, **settings: Any) -> list[dict]:
            chunks = live_chunks(clip_frames(3, 4), clip_audio(3, 4), [])
            return list(pipe.live(chunks, sampling_rate=RATE, **settings))

        defaults = {"frames_per_second": 2, "frames_per_window": 1, "audio_alignment": "center"}
        configured = AudioVisualSegmentationPipeline(
            model=binary.model, processor=binary.processor, device="cpu", window_overlap=0, **defaults
        )
        expected = live(binary, **defaults)
        assert len(expected) == 6
        assert_same(live(configured), expected)
        assert len(live(configured, frames_per_second=1)) == 3

    def test_late_frames_are_dropped(self, binary: Pipeline):
        def live(**settings: bool) -> Iterator[dict]:
            chunks = live_chunks(clip_frames(5, 4), clip_audio(5, 4), [])
            return binary.live(chunks, sampling_rate=RATE, frames_per_second=2, **settings)

        every = [result["timestamp"] for result in live()]
        late = live(drop_late=True)
        first = next(late)["timestamp"]
        for thread in threading.enumerate():
            if thread.name == "read-ahead":
                thread.join()
        assert [first, *(result["timestamp"] for result in late)] in [
            every[-1:],
            *([timestamp, every[-1]] for timestamp in every[:-1]),
        ]

    def test_invalid_arguments(self, binary: Pipeline):
        with pytest.raises(ValueError, match="`frames_per_window` must be .*got 0"):
            binary.live([], sampling_rate=RATE, frames_per_window=0)
        with pytest.raises(ValueError, match="sampling_rate is missing"):
            next(binary.live(live_chunks(clip_frames(1, 4), clip_audio(1, 4), []), sampling_rate=None))
        with pytest.raises(ValueError, match="Live input does not accept masks_per_second"):
            binary.live([], sampling_rate=RATE, masks_per_second=2)
        assert list(binary.live([], sampling_rate=RATE)) == []


class Adapter(torch.nn.Module):
    """A module that changes the output of another one and can be switched off, as those of peft."""

    def __init__(self, base: torch.nn.Module):
        super().__init__()
        self.base, self.is_active = base, True

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.base(values) + 100.0 * self.is_active


def _first_frames(pipe: Pipeline, clip: Path) -> tuple[dict, ...]:
    """Read the frames of the first window."""
    with contextlib.closing(pipe.preprocess(clip)) as windows:
        return next(windows).frames


class TestOptimizedModel:
    def test_a_pipeline_can_be_copied_and_pickled(self, semantic: Pipeline, clips: list[Path]):
        for copied in (copy.deepcopy(semantic), pickle.loads(pickle.dumps(semantic))):
            assert_same(semantic(clips[1]), copied(clips[1]))

    def test_returns_the_same_masks(self, semantic: Pipeline, clips: list[Path]):
        assert_same(semantic(clips[1]), semantic(clips[1], use_optimized_model=False))
        assert semantic._network() is not semantic.model
        assert semantic._network() is semantic._network()

    def test_is_in_bfloat16_where_the_checkpoint_says_that_masks_agree(
        self, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        saved = tiny_pipeline(bfloat16_agreement=0.995)
        saved.save_pretrained(tmp_path)
        automatic, explicit, float32 = (
            pipeline("audio-visual-segmentation", model=str(tmp_path), device="cpu", **dtype)
            for dtype in ({}, {"dtype": "auto"}, {"dtype": "float32"})
        )
        for pipe in (automatic, explicit):
            assert (pipe._network().dtype, pipe.model.dtype) == (torch.bfloat16, torch.float32)
            assert pipe.choose_dtype()[1] == "avx512_bf16, masks agree with float32 by mIoU 0.995"
        assert float32._network().dtype == torch.float32
        assert automatic._logits([[frame] for frame in _first_frames(automatic, clips[0])], {}).dtype == torch.float32
        expected = saved.model.for_inference(torch.bfloat16).state_dict()
        for name, values in automatic._network().state_dict().items():
            assert torch.equal(values, expected[name])
        assert automatic(clips[0]) != float32(clips[0])

    def test_is_in_float32_after_training(self, clips: list[Path], monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        pipe = tiny_pipeline(bfloat16_agreement=0.995)
        pipe(clips[0])
        assert pipe._optimized_model.dtype == torch.bfloat16
        pipe.model.train()
        assert pipe.choose_dtype() == (torch.float32, "the data type of the weights of a model that is not optimized")
        pipe.model.eval()
        pipe(clips[0])
        assert pipe._optimized_model.dtype == torch.float32

    def test_has_the_data_type_of_the_arguments_of_the_class(self, semantic: Pipeline):
        for dtype in ("bfloat16", torch.float16):
            pipe = AudioVisualSegmentationPipeline(
                model=semantic.model, processor=semantic.processor, device="cpu", dtype=dtype
            )
            assert pipe.choose_dtype() == (getattr(torch, str(dtype).removeprefix("torch.")), "as requested")
            assert pipe._network().dtype == pipe.choose_dtype()[0]

    def test_is_rebuilt_when_the_weights_change(self, clips: list[Path]):
        pipe = tiny_pipeline()
        before = pipe(clips[0])
        with torch.no_grad():
            head = [module for module in pipe.model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
            head.bias += 100.0
        after = pipe(clips[0])
        assert before[0]["segments"][0]["score"] < 0.99 < after[0]["segments"][0]["score"]

    @pytest.mark.parametrize("part", ["weights", "statistics", "settings", "modules"])
    def test_is_rebuilt_after_changes_that_pytorch_does_not_record(self, part: str, clips: list[Path]):
        pipe = tiny_pipeline()
        before = pipe(clips[0])
        head = pipe.model.model.stages[-1].head
        if part == "weights":
            head[-1].bias.data += 100.0
        elif part == "statistics":
            head[1].running_mean.data.sub_(1000.0)
        elif part == "settings":
            head[1].eps = 1e9
        else:
            head[-1] = copy.deepcopy(head[-1]).requires_grad_(False)
            head[-1].bias += 100.0
        after = pipe(clips[0])
        assert after != before
        assert_same(after, pipe(clips[0], use_optimized_model=False))
        assert pipe._network() is not pipe.model

    def test_another_thread_may_drop_the_copy_at_any_time(self, monkeypatch: pytest.MonkeyPatch):
        pipe = tiny_pipeline()
        copied, is_current = pipe._network(), pipe._is_current

        def compare(*args: object, **kwargs: object) -> bool:
            result = is_current(*args, **kwargs)
            pipe._optimized_model = None
            return result

        monkeypatch.setattr(pipe, "_is_current", compare)
        assert pipe._network() is copied

    @pytest.mark.parametrize(
        ("change", "of_every_shape"),
        [(lambda w: w.neg_(), False), (lambda w: w.copy_(w.flip(0)), True), (lambda w: w.copy_(w.flip(-1)), True)],
    )
    def test_exchanged_and_negated_weights_are_noticed(self, change: Callable, of_every_shape: bool):
        model = tiny_pipeline().model
        weights = [weight for weight in model.parameters() if weight.numel() > 1 and weight.count_nonzero()]
        if of_every_shape:
            weights = {weight.shape: weight for weight in weights}.values()
        optimized = model.for_inference()
        for weight in weights:
            kept = weight.data.clone()
            change(weight.data)
            is_changed = not torch.equal(kept, weight)
            assert optimized.is_copy_of(model.model) != is_changed
            weight.data.copy_(kept)
        assert optimized.is_copy_of(model.model)

    @pytest.mark.parametrize("kind", ["hook", "hook of all modules", "forward", "adapter"])
    def test_is_not_used_with_hooks_or_adapters(self, kind: str, clips: list[Path], monkeypatch: pytest.MonkeyPatch):
        pipe = tiny_pipeline()
        before = pipe(clips[0])
        head = pipe.model.model.stages[-1].head
        handle = None
        if kind == "hook":
            handle = head[-1].register_forward_hook(lambda *_: _[-1] + 100.0)
        elif kind == "hook of all modules":

            def add(module: torch.nn.Module, _: Any, logits: torch.Tensor) -> torch.Tensor | None:
                return logits + 100.0 if module is head[-1] else None

            handle = torch.nn.modules.module.register_module_forward_hook(add)
        elif kind == "forward":
            forward = head[-1].forward
            monkeypatch.setattr(head[-1], "forward", lambda values: forward(values) + 100.0)
        else:
            head[-1] = Adapter(head[-1])
        try:
            after = pipe(clips[0])
            assert pipe._network() is pipe.model
        finally:
            if handle is not None:
                handle.remove()
        assert before[0]["segments"][0]["score"] < 0.99 < after[0]["segments"][0]["score"]
        if kind == "adapter":
            head[-1].is_active = False
            assert_same(pipe(clips[0]), before)

    @pytest.mark.slow  # compiling takes 4 s each
    @pytest.mark.parametrize("in_place", [False, True])
    def test_is_not_used_in_place_of_a_compiled_model(self, in_place: bool, clips: list[Path]):
        pipe = tiny_pipeline()
        before = pipe(clips[0])
        graphs = []

        def backend(graph: torch.fx.GraphModule, _: Any) -> Callable:
            graphs.append(graph)
            return graph.forward

        torch.compiler.reset()
        if in_place:
            pipe.model.compile(backend=backend)
        else:
            pipe.model = torch.compile(pipe.model, backend=backend)
        after = pipe(clips[0])
        torch.compiler.reset()
        assert graphs
        assert_same(after, before)

    def test_is_not_used_in_training_or_for_other_models(self):
        pipe = tiny_pipeline()
        pipe.model.train()
        assert pipe._network() is pipe.model
        pipe.model = SimpleNamespace(training=False)
        assert pipe._network() is pipe.model

    @pytest.mark.parametrize("optimized", [True, False])
    def test_a_model_in_training_mode_is_a_warning(
        self, clips: list[Path], optimized: bool, caplog: pytest.LogCaptureFixture
    ):
        """As after `Trainer.train()`: its BatchNorms would be changed silently."""
        pipe = tiny_pipeline()
        pipe(clips[0], use_optimized_model=optimized)
        assert "training mode" not in caplog.text
        transformers_logging.get_logger("pcmanet").warning_once.cache_clear()
        pipe.model.train()
        next(pipe.stream(clips[0], use_optimized_model=optimized))
        assert "runs a model in training mode" in caplog.text and "Call `model.eval()` first" in caplog.text

    def test_early_exit_at_the_first_stage(
        self, semantic: Pipeline, clips: list[Path], monkeypatch: pytest.MonkeyPatch
    ):
        given = semantic(clips[1], early_exit_threshold=1)
        assert given == list(semantic.stream(clips[1], early_exit_threshold=1))
        assert any(frame["segments"] for frame in given)
        forward = semantic.model.forward
        monkeypatch.setattr(
            semantic.model, "forward", lambda **batch: SimpleNamespace(logits=forward(**batch).stage_logits[0])
        )
        assert_same(given, semantic(clips[1], use_optimized_model=False))

    def test_early_exit_requires_it(self, binary: Pipeline, clips: list[Path]):
        with pytest.raises(ValueError, match="`early_exit_threshold` requires the optimized model"):
            binary(clips[0], early_exit_threshold=0.1, use_optimized_model=False)


class VideoFiles(TorchDataset):
    """A dataset of paths."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        return str(self.paths[index])


class TestSeveralInputs:
    @pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
    def test_list(self, semantic: Pipeline, clips: list[Path], one_by_one: list, batch_size: int):
        results = semantic([str(path) for path in clips], batch_size=batch_size)
        assert [len(result) for result in results] == [2, 5, 3]
        for result, expected in zip(results, one_by_one, strict=True):
            assert_same(result, expected)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_dataset(self, semantic: Pipeline, clips: list[Path], one_by_one: list, num_workers: int):
        results = semantic(VideoFiles(clips), batch_size=2, num_workers=num_workers)
        for result, expected in zip(results, one_by_one, strict=True):
            assert_same(result, expected)

    def test_generator_streams(self, semantic: Pipeline, clips: list[Path], one_by_one: list):
        taken = []

        def paths() -> Iterator[str]:
            for path in clips:
                taken.append(path)
                yield str(path)

        results = iter(semantic(paths()))
        assert_same(next(results), one_by_one[0])
        assert len(taken) == 1
        assert_same(next(results), one_by_one[1])

    @pytest.mark.parametrize("kind", [tuple, iter, lambda names: HubDataset.from_dict({"video": names})])
    def test_other_collections(self, semantic: Pipeline, clips: list[Path], one_by_one: list, kind: Callable):
        for result, expected in zip(semantic(kind([str(path) for path in clips])), one_by_one, strict=True):
            assert_same(result, expected)

    def test_no_video_gives_no_result(self, semantic: Pipeline):
        assert semantic([]) == []

    @pytest.mark.parametrize("value", [0, -1, "2"])
    def test_invalid_batch_sizes(self, semantic: Pipeline, clips: list[Path], value: object):
        for inputs in (clips[0], list(clips), iter(clips)):
            with pytest.raises(ValueError, match=f"`batch_size` must be .*got {value!r}"):
                semantic(inputs, batch_size=value)
        with pytest.raises(ValueError, match="`num_workers` must be .*got -1"):
            semantic(clips[0], num_workers=-1)

    def test_windows_of_different_clips_share_a_batch(self, semantic: Pipeline, clips: list[Path]):
        alone = [semantic(path, frames_per_window=2) for path in clips]
        together = semantic([str(path) for path in clips], batch_size=3, frames_per_window=2)
        for result, expected in zip(together, alone, strict=True):
            assert_same(result, expected)


class TestInputs:
    def test_path_bytes_file_and_column(self, binary: Pipeline, clips: list[Path]):
        expected = binary(clips[0])
        data = clips[0].read_bytes()
        column = {"path": "missing.mp4", "bytes": data}
        inputs = (str(clips[0]), data, io.BytesIO(data), {"video": clips[0]}, column, {"video": column})
        for source in (*inputs, {"path": str(clips[0]), "bytes": None}):
            assert_same(binary(source), expected)

    def test_decoded_columns_of_a_dataset(self, binary: Pipeline, clips: list[Path], silent: Path):
        # Issue 16, point 14: what `Video()` and `Audio()` columns give, next to other columns.
        row = {"video": video_decoder(clips[0]), "label": 3}
        assert_same(binary(row), binary(clips[0]))
        assert_same(binary(row["video"]), binary(clips[0]))
        expected = binary({"video": silent, "audio": clips[0]})
        for video in (silent, video_decoder(silent)):
            assert_same(binary({"video": video, "audio": audio_decoder(clips[0]), "id": "a"}), expected)
        # Decoders without a file are read themselves.
        decoders = {
            "video": video_decoder(silent, keeps_file=False),
            "audio": audio_decoder(clips[0], keeps_file=False),
        }
        read = [frame["timestamp"] for frame in binary(decoders)]
        assert read == pytest.approx([frame["timestamp"] for frame in expected])

    @pytest.mark.parametrize("streaming", [False, True])
    def test_rows_of_avsbench(self, binary: Pipeline, tmp_path: Path, streaming: bool):
        # Issue 16, point 14: rows of our own loader, with all of their columns.
        write_trees(tmp_path, s4={"val": 2})
        rows = load_avsbench(
            tmp_path, "s4", split="validation", streaming=streaming, cache_dir=str(tmp_path / "cache")
        )
        results = list(binary(rows))
        assert [[frame["timestamp"] for frame in result] for result in results] == [
            [k + 15 / 16 for k in range(5)]
        ] * 2
        waveform, sampling_rate = read_audio(next(iter(rows))["audio"]["bytes"])
        frames = np.stack([np.asarray(frame) for frame in next(iter(rows))["frames"]])
        assert_same(results[0], binary(frames, audio=waveform, sampling_rate=sampling_rate))

    def test_frames_as_an_array(self, binary: Pipeline, clips: list[Path]):
        media = read_media(clips[0])
        given = {
            "video": media.frames,
            "audio": media.waveform,
            "sampling_rate": media.sampling_rate,
            "timestamps": media.timestamps,
        }
        assert_same(binary(given), binary(clips[0]))

    @pytest.mark.parametrize(("several", "windows"), [(False, 2), (True, 3)])
    def test_progress_bar_counts_all_windows(
        self, binary, clips, capsys, monkeypatch: pytest.MonkeyPatch, several: bool, windows: int
    ):
        monkeypatch.setattr(transformers_logging, "_tqdm_active", True)  # commands turn off all bars of transformers
        binary([str(clips[0]), str(clips[2])] if several else clips[2], frames_per_window=2, window_overlap=0)
        assert capsys.readouterr().err == ""
        settings = {"frames_per_window": 2, "window_overlap": 0, "progress_bar": True}
        binary([str(clips[0]), str(clips[2])] if several else clips[2], **settings)
        assert f"Segmenting: {windows}window" in capsys.readouterr().err.rpartition("\r")[2]

    def test_a_list_of_frames_is_one_clip(self, binary: Pipeline, clips: list[Path]):
        # Issue 16, point 15: in the pipeline as in the processor.
        media = read_media(clips[0])
        audio = {"audio": media.waveform, "sampling_rate": media.sampling_rate}
        expected = binary(media.frames, **audio)
        for frames in (
            list(media.frames),
            tuple(map(Image.fromarray, media.frames)),
            list(torch.tensor(media.frames)),
        ):
            assert_same(binary(frames, **audio), expected)
            assert_same(list(binary.stream(frames, **audio)), expected)
        several = binary([{"frames": list(media.frames), **audio}] * 2)
        assert_same(several[1], expected)

    @pytest.mark.parametrize("as_dictionary", [False, True])
    def test_silent_file_with_separate_audio(self, binary: Pipeline, silent: Path, as_dictionary: bool):
        audio = {"audio": clip_audio(2, 0), "sampling_rate": RATE}
        result = binary({"video": silent, **audio}) if as_dictionary else binary(silent, **audio)
        rows = binary({"video": silent, "audio": {"array": clip_audio(2, 0), "sampling_rate": RATE}})
        assert_same(result, rows)
        other = binary(silent, audio=np.zeros((1, 2 * RATE), np.float32), sampling_rate=RATE)
        assert other[0]["segments"][0]["score"] != result[0]["segments"][0]["score"]

    def test_audio_from_a_file(self, binary: Pipeline, silent: Path, clips: list[Path]):
        waveform, sampling_rate = read_audio(clips[0])
        expected = binary(silent, audio=waveform, sampling_rate=sampling_rate)
        assert_same(binary(silent, audio=str(clips[0])), expected)
        assert_same(binary({"video": silent, "audio": {"path": str(clips[0]), "bytes": None}}), expected)

    def test_silent_file_alone(self, binary: Pipeline, silent: Path):
        with pytest.raises(ValueError, match=r"silent\.mp4 has no audio track.*audio="):
            binary(silent)

    def test_missing_file(self, binary: Pipeline):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
            binary("nowhere.mp4")

    def test_one_audio_for_several_videos(self, binary: Pipeline, clips: list[Path]):
        with pytest.raises(ValueError, match="several videos"):
            binary([str(path) for path in clips], audio=clip_audio(2, 0), sampling_rate=RATE)

    @pytest.mark.parametrize("source", [{"bytes": None}, {"path": None, "bytes": None}])
    def test_dictionary_without_a_file(self, binary: Pipeline, clips: list[Path], source: dict):
        for given in (source, {"video": clips[0], "audio": source}):
            with pytest.raises(ValueError, match='"bytes" or "path", got'):
                binary(given)

    @pytest.mark.parametrize("given", [{"videos": "clip.mp4"}, {"label": 3}, {}])
    def test_dictionary_with_other_keys(self, binary: Pipeline, given: dict):
        with pytest.raises(ValueError, match='Expected a dictionary with "video"'):
            binary(given)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("threshold", 1.5),
            ("threshold", -0.1),
            ("minimum_area", 2),
            ("early_exit_threshold", 1.01),
            ("frames_per_window", 0),
            ("frames_per_window", 2.5),
            ("window_overlap", 1.5),
        ],
    )
    def test_arguments_out_of_range(self, binary: Pipeline, clips: list[Path], name: str, value: float):
        with pytest.raises(ValueError, match=f"`{name}` must be .*got {value}"):
            binary(clips[0], **{name: value})

    def test_overlap_is_checked_against_the_default_window(self, binary: Pipeline, clips: list[Path]):
        short = AudioVisualSegmentationPipeline(
            model=binary.model, processor=binary.processor, device="cpu", frames_per_window=4
        )
        with pytest.raises(ValueError, match=r"`window_overlap` must be less than `frames_per_window` \(4\), got 5"):
            short(clips[0], window_overlap=5)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("treshold", "Did you mean threshold?"),
            ("fps", "Did you mean frames_per_second?"),
            ("shape", "Expected one of threshold, "),
        ],
    )
    def test_unknown_argument(self, binary: Pipeline, clips: list[Path], name: str, message: str):
        with pytest.raises(TypeError, match=rf"unknown keyword {name}\. {re.escape(message)}"):
            binary(clips[0], **{name: 4})

    def test_a_video_is_the_first_argument(self, binary: Pipeline, clips: list[Path]):
        with pytest.raises(TypeError, match="unknown keyword video. Did you mean inputs, the first argument?"):
            binary(video=clips[0])
        with pytest.raises(ValueError, match="Got no video. Pass it as the first argument: inputs"):
            binary()
        with pytest.raises(ValueError, match="Expected a video as a path, .* got int"):
            binary(0)


class TestRegistrationAndSaving:
    def test_task_is_registered(self):
        _, task, _ = PIPELINE_REGISTRY.check_task("audio-visual-segmentation")
        assert task["impl"] is AudioVisualSegmentationPipeline
        assert task["pt"] == (AutoModelForSemanticSegmentation,)
        assert task["type"] == "multimodal"

    def test_default_checkpoint_and_task_of_the_hub(self, tmp_path: Path):
        segmenter = pipeline("audio-visual-segmentation", device="cpu")
        assert segmenter.model.name_or_path == find_checkpoint(DEFAULT_MODEL)
        assert PIPELINE_REGISTRY.check_task(PIPELINE_TAG)[1]["impl"] is AudioVisualSegmentationPipeline
        # No path of this machine belongs into a checkpoint.
        segmenter.save_pretrained(tmp_path)
        assert find_checkpoint(DEFAULT_MODEL) not in (tmp_path / "config.json").read_text()

    def test_a_saved_folder_says_what_to_import(self, binary: Pipeline, tmp_path: Path):
        binary.model.save_pretrained(tmp_path)
        assert "\nimport pcmanet\n" in (tmp_path / "README.md").read_text()
        (tmp_path / "README.md").write_text("mine")
        binary.model.save_pretrained(tmp_path)
        assert (tmp_path / "README.md").read_text() == "mine"

    def test_saved_pipeline_is_complete(self, semantic: Pipeline, clips: list[Path], tmp_path: Path):
        semantic.save_pretrained(tmp_path)
        names = {path.name for path in tmp_path.iterdir()}
        assert {"audio_visual_segmentation.py", "config.json", "model.safetensors", "processor_config.json"} <= names
        assert "preprocessor_config.json" not in names
        assert semantic.image_processor is not None
        processor = AutoProcessor.from_pretrained(tmp_path)
        assert processor.image_processor.size == {"height": 32, "width": 32}
        again = pipeline(
            "audio-visual-segmentation",
            model=str(tmp_path),
            pipeline_class=AudioVisualSegmentationPipeline,
            device="cpu",
        )
        assert_same(again(clips[0]), semantic(clips[0]))

    def test_half_precision(self, clips: list[Path], tmp_path: Path):
        exact = tiny_pipeline()
        exact.model.save_pretrained(tmp_path)
        exact.processor.save_pretrained(tmp_path)
        half = pipeline("audio-visual-segmentation", model=str(tmp_path), dtype=torch.bfloat16, device="cpu")
        assert half.dtype == torch.bfloat16
        for frame, reference in zip(half(clips[0]), exact(clips[0]), strict=True):
            (segment,), (twin,) = frame["segments"], reference["segments"]
            assert segment["score"] == pytest.approx(twin["score"], abs=0.05)


def test_entries_say_which_groups_of_sounds_are_heard():
    config = tiny_config(
        audio_config={
            "model_type": "audio_mobilenet",
            "width_multiplier": 0.1,
            "num_labels": 4,
            "score_groups": {"dog": [0, 1], "drums": [3], "rain": [2]},
        }
    )
    model = PCMANetForAudioVisualSegmentation(config).eval()
    encoder = model.model.audio_encoder
    torch.nn.init.zeros_(encoder.classifier.weight)
    encoder.classifier.bias.data = torch.tensor([-9.0, -9.0, 3.5, 5.0])
    processor = PCMANetProcessor(
        PCMANetImageProcessor(size={"height": 32, "width": 32}), AudioMobileNetFeatureExtractor()
    )
    segmenter = AudioVisualSegmentationPipeline(model=model, processor=processor)
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    clip = {"video": frames, "audio": np.zeros(48000, np.float32), "sampling_rate": 16000}
    expected = [{"label": "drums", "score": 5.0}, {"label": "rain", "score": 3.5}]
    for use_optimized_model in (True, False):
        entries = segmenter(clip, use_optimized_model=use_optimized_model)
        assert [entry["heard"] for entry in entries] == [expected] * 3
