"""Tests of dataset_scripts/avsbench/rows.py: checking files, log-mel pickles, wavs."""

import os
import pickle
import struct
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_pcmanet.media_pcmanet import read_audio
from modeling_pcmanet.media_writing_pcmanet import encode_wav
from pcmanet.dataset_scripts.avsbench.rows import (
    MAX_FILE_BYTES,
    RowSettings,
    fingerprint,
    image_problem,
    read_image,
    read_log_mel,
    read_wav_seconds,
)


def image(format):
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file, format)
    return file.getvalue()


def wav(seconds=2.0, *, announced=None, extra=b"", rate=16000, sample_format=1, bits=16):
    """Build a wav: header, chunks before the audio, audio."""
    data = bytes(round(seconds * rate) * bits // 8)
    fmt = struct.pack("<HHIIHH", sample_format, 1, rate, rate * bits // 8, bits // 8, bits)
    length = len(data) if announced is None else announced
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + extra + b"data" + struct.pack("<I", length) + data
    return b"RIFF" + struct.pack("<I", (4 + len(chunks)) & 0xFFFFFFFF) + b"WAVE" + chunks


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (image("PNG"), None),
        (image("JPEG"), None),
        (image("BMP"), None),
        (image("PNG") + b"something after the end", None),
        (image("JPEG") + b"\0\0\0", None),
        (b"", "Empty file"),
        (b"\x89P", "Truncated file or not an image"),
        (image("PNG")[:-3], "Truncated file or not an image"),
        (image("JPEG")[:-200], "Truncated file or not an image"),
        (b"<html>Please sign in</html>", "Truncated file or not an image"),
    ],
)
def test_image_problem_checks_both_ends(tmp_path, content, problem):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    found = image_problem(str(path))
    assert found is None if problem is None else problem in found


def test_read_image_returns_bytes_and_size_and_verifies_checksums(tmp_path):
    path = tmp_path / "image.png"
    content = image("PNG")
    path.write_bytes(content)
    assert read_image(str(path)) == (content, (30, 40))
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(ValueError, match="Damaged file or not an image"):
        read_image(str(path))


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (wav(2.0), 2.0),
        (wav(0.5, sample_format=3, bits=32, rate=48000), 0.5),
        (wav(1.0, extra=b"LIST" + struct.pack("<I", 3) + b"abc\0"), 1.0),
        (wav(1.0, announced=0xFFFFFFFF), 1.0),
        (wav(1.0) + b"LIST" + struct.pack("<I", 4) + b"tail", 1.0),
        (wav(0.0), 0.0),
    ],
    ids=["16 bit", "float", "odd chunk before", "streamed", "chunk after", "no sample"],
)
def test_read_wav_seconds(content, seconds):
    assert read_wav_seconds(BytesIO(content)) == seconds


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Empty file"),
        (b"RIFF", "Not a wav"),
        (b"ID3" + bytes(40), "Not a wav"),
        (wav()[:30], "no audio after the header"),
        (wav()[:-1000], "expected 64000 bytes of audio, got 63000"),
    ],
)
def test_read_wav_seconds_rejects_damaged_files(content, problem):
    with pytest.raises(ValueError, match=problem):
        read_wav_seconds(BytesIO(content))


def test_fingerprint_depends_on_tables_sizes_times_and_presence(tmp_path):
    table, path = tmp_path / "table.csv", tmp_path / "file"
    table.write_text("a")
    path.write_text("x")
    seen = {fingerprint(table, [str(path)])}
    assert fingerprint(table, [str(path)]) in seen
    for change in (
        lambda: os.utime(path, ns=(1, 1)),
        lambda: path.write_text("xy"),
        lambda: table.write_text("b"),
        lambda: (tmp_path / "classes.txt").write_text("background\ndog\n"),
        lambda: (tmp_path / "classes.txt").write_text("background\ncat\n"),
        path.unlink,
    ):
        change()
        state = fingerprint(table, [str(path)])
        assert state not in seen and len(state) == 32
        seen.add(state)
    assert fingerprint(Path(table), []) not in seen


def test_encode_wav_rounds_to_the_nearest_sample():
    waveform = np.array([[0.0, 0.5, -1.0, 1.0, 2.0], [0.25, 0.0, 0.0, 0.0, -2.0]], np.float32)
    decoded, rate = read_audio(encode_wav(waveform, 44100))
    assert rate == 44100
    np.testing.assert_allclose(decoded, np.clip(waveform, -1, 32767 / 32768), atol=1e-6)


@pytest.mark.parametrize("options", [{"label_noise": "drop"}, {"frames_per_second": 0}, {"frames_per_second": np.inf}])
def test_row_settings_reject_unknown_values(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RowSettings(**options)


TENSOR = torch.arange(5 * 96 * 64, dtype=torch.float32).reshape(5, 1, 96, 64)


class Call:
    """Object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def read(tmp_path):
    def read(content, frames=5):
        path = tmp_path / "clip.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        return read_log_mel(path, frames)

    return read


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_read_log_mel_reads_pickled_tensors(read, protocol):
    features = read(pickle.dumps(TENSOR, protocol=protocol))
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, TENSOR.numpy())


def test_read_log_mel_reads_views_and_other_precisions(read):
    np.testing.assert_array_equal(read(TENSOR.flip(0)), TENSOR.flip(0))
    np.testing.assert_array_equal(read(torch.cat([TENSOR, TENSOR])[2:7]), torch.cat([TENSOR, TENSOR])[2:7])
    np.testing.assert_array_equal(read(TENSOR.double().requires_grad_()), TENSOR)


def storage(content):
    file = BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_pickles_execute_nothing(read, tmp_path):
    touch = Call(os.system, f"touch {tmp_path}/executed")
    rebuilt = Call(torch._utils._rebuild_tensor_v2, touch, 0, (5,), (1,), False, OrderedDict())
    for content in (
        touch,
        {"features": touch},
        rebuilt,
        Call(torch.storage._load_from_bytes, storage(touch)),
        Call(eval, f"open('{tmp_path}/executed', 'w')"),
        Call(torch.load, f"{tmp_path}/other.pkl"),
        b"cos\nsystem\n(S'touch executed'\ntR.",
    ):
        with pytest.raises(ValueError, match="Nothing was executed"):
            read(content)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("size", [(5, 1, 96, 65), (2**40, 1, 1, 1)])
def test_tensors_cannot_exceed_their_storage(read, size):
    content = Call(
        torch._utils._rebuild_tensor_v2,
        Call(torch.storage._load_from_bytes, storage(TENSOR.untyped_storage())),
        0,
        size,
    )
    content.call = content.call[0], (*content.call[1], (6240, 6240, 65, 1), False, OrderedDict())
    with pytest.raises(ValueError, match="Nothing was executed"):
        read(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Expected a pickled tensor"),
        (pickle.dumps(TENSOR)[:-40], "Expected a pickled tensor"),
        (pickle.dumps([1, 2]), "got a list"),
        (pickle.dumps(TENSOR[:4]), r"Expected a tensor \(5, 1, 96, 64\), got a tensor \(4, 1, 96, 64\)"),
        (pickle.dumps(TENSOR / 0), "not finite"),
        (bytes(MAX_FILE_BYTES + 1), "got more than"),
    ],
)
def test_read_log_mel_rejects_other_content(read, content, problem):
    with pytest.raises(ValueError, match=problem):
        read(content)
