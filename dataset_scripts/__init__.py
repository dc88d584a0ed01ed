"""Datasets, collation, augmentation, metrics and evaluation for audio-visual segmentation."""

SPLITS = ("train", "val", "test")
