"""What was found in one video, on disk: a JSON line per network frame, masks in COCO's run-length code.

    {"frame": 0, "timestamp": 0.92, "height": 256, "width": 256, "segments": [{"label": "dog", "score": 0.93,
     "segmentation": {"size": [256, 256], "counts": "..."}}]}

The stream of a pipeline is written down as it comes, and read back frame by frame as the same dictionaries, so that
whatever draws or stores results needs no more memory for an hour than for a second. `pycocotools.mask.decode` reads a
`segmentation`.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco


def encode_mask(mask: Image.Image) -> dict[str, Any]:
    """Encodes a mask in COCO's compressed run-length code.

    Args:
        mask: Picture of mode "L": 255 inside, 0 outside.

    Returns:
        `{"size": [height, width], "counts": str}`.
    """
    code = coco.encode(np.asfortranarray(np.asarray(mask) > 0, dtype=np.uint8))
    return {"size": [int(length) for length in code["size"]], "counts": code["counts"].decode("ascii")}


def decode_mask(segmentation: Mapping[str, Any]) -> Image.Image:
    """Decodes what [`encode_mask`] made.

    Args:
        segmentation: `{"size": [height, width], "counts": str}`.

    Returns:
        Picture of mode "L": 255 inside, 0 outside.
    """
    return Image.fromarray(coco.decode(dict(segmentation)) * np.uint8(255))


class RecordedResults(Sequence[dict[str, Any]]):
    """The results of a pipeline for one video, in a file, read back one network frame at a time.

    Args:
        path: The file; written by [`write`].
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Only where each line begins is held: 8 bytes per network frame.
        self._starts = array("Q")

    def write(self, results: Iterable[Mapping[str, Any]], size: tuple[int, int]) -> None:
        """Writes results down as they come.

        Args:
            results: `{"timestamp", "segments"}` dictionaries of a pipeline, in order of time.
            size: (height, width) of the video, which frames without any segment do not tell.
        """
        with self.path.open("wb") as file:
            for number, result in enumerate(results):
                record = {"frame": number, "timestamp": result["timestamp"], "height": size[0], "width": size[1]}
                record["segments"] = [_encoded(segment) for segment in result["segments"]]
                self._starts.append(file.tell())
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields the lines as they stand in the file, masks encoded."""
        with self.path.open("rb") as file:
            yield from map(json.loads, file)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            record = json.loads(file.readline())
        segments = [
            {"score": found["score"], "label": found["label"], "mask": decode_mask(found["segmentation"])}
            for found in record["segments"]
        ]
        return {"timestamp": record["timestamp"], "segments": segments}


def _encoded(segment: Mapping[str, Any]) -> dict[str, Any]:
    """Encodes a segment of a pipeline for JSON."""
    return {"label": segment["label"], "score": segment["score"], "segmentation": encode_mask(segment["mask"])}
