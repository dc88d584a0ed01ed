import os
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcmanet.dataset_scripts.avsbench.files import fingerprint, picture_problem, read_picture, read_wav_seconds


def picture(form):
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file, form)
    return file.getvalue()


def wav(seconds=2.0, *, announced=None, extra=b"", rate=16000, form=1, bits=16):
    """A wav by hand: header, chunks before the sound, sound."""
    data = bytes(round(seconds * rate) * bits // 8)
    fmt = struct.pack("<HHIIHH", form, 1, rate, rate * bits // 8, bits // 8, bits)
    length = len(data) if announced is None else announced
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + extra + b"data" + struct.pack("<I", length) + data
    return b"RIFF" + struct.pack("<I", (4 + len(chunks)) & 0xFFFFFFFF) + b"WAVE" + chunks


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (picture("PNG"), None),
        (picture("JPEG"), None),
        (picture("BMP"), None),
        (picture("PNG") + b"something after the end", None),
        (picture("JPEG") + b"\0\0\0", None),
        (b"", "is empty"),
        (b"\x89P", "truncated or no picture"),
        (picture("PNG")[:-3], "truncated or no picture"),
        (picture("JPEG")[:-200], "truncated or no picture"),
        (b"<html>Please sign in</html>", "truncated or no picture"),
    ],
)
def test_pictures_are_judged_by_their_ends(tmp_path, content, problem):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    found = picture_problem(str(path))
    assert found is None if problem is None else problem in found


def test_read_picture_gives_bytes_and_size_and_checks_sums(tmp_path):
    path = tmp_path / "picture.png"
    content = picture("PNG")
    path.write_bytes(content)
    assert read_picture(str(path)) == (content, (30, 40))
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(ValueError, match="damaged or no picture"):
        read_picture(str(path))


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (wav(2.0), 2.0),
        (wav(0.5, form=3, bits=32, rate=48000), 0.5),
        (wav(1.0, extra=b"LIST" + struct.pack("<I", 3) + b"abc\0"), 1.0),
        (wav(1.0, announced=0xFFFFFFFF), 1.0),
        (wav(1.0) + b"LIST" + struct.pack("<I", 4) + b"tail", 1.0),
        (wav(0.0), 0.0),
    ],
    ids=["16 bit", "float", "odd chunk before", "streamed", "chunk after", "no sample"],
)
def test_durations_of_wavs(content, seconds):
    assert read_wav_seconds(BytesIO(content)) == seconds


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"RIFF", "is no wav"),
        (b"ID3" + bytes(40), "is no wav"),
        (wav()[:30], "no sound follows its header"),
        (wav()[:-1000], "64000 bytes of sound announced, 63000 there"),
    ],
)
def test_damaged_wavs(content, problem):
    with pytest.raises(ValueError, match=problem):
        read_wav_seconds(BytesIO(content))


def test_the_fingerprint_follows_table_sizes_times_and_presence(tmp_path):
    table, path = tmp_path / "table.csv", tmp_path / "file"
    table.write_text("a")
    path.write_text("x")
    seen = {fingerprint(table, [str(path)])}
    assert fingerprint(table, [str(path)]) in seen
    for change in (
        lambda: os.utime(path, ns=(1, 1)),
        lambda: path.write_text("xy"),
        lambda: table.write_text("b"),
        path.unlink,
    ):
        change()
        state = fingerprint(table, [str(path)])
        assert state not in seen and len(state) == 32
        seen.add(state)
    assert fingerprint(Path(table), []) not in seen
