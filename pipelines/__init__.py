"""The audio-visual-segmentation pipeline and the pictures it draws."""
