"""Datasets, collation, augmentation, metrics and evaluation for audio-visual segmentation."""

SPLITS = ("train", "val", "test")
SHARD_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # the names that `datasets` gives them
