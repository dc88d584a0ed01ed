"""Data sets and measures for audio-visual segmentation."""
