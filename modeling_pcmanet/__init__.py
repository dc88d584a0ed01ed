"""PCMANet for audio-visual segmentation: the masks of the objects that sound in a video."""

__version__ = "0.1.0"
