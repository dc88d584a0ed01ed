"""`pcmanet demo`: the clip that comes with the package, segmented by the model that comes with it."""

from argparse import Namespace

from .arguments import parse_arguments
from .checkpoint import demo_file
from .segmentation import run as run_segmentation


OVERLAY_RATE = "4"  # masks per second of the overlay: the shapes of the clip move


def run(arguments: Namespace) -> bool:
    """Segments the clip, anew each time.

    Args:
        arguments: Of `pcmanet demo`.

    Returns:
        Whether it failed.
    """
    clip = str(demo_file("demo.mp4"))
    options = ["--output", str(arguments.output), "--overwrite"]
    pictures = ["--overlay", "--overlay-frames-per-second", OVERLAY_RATE, "--contact-sheet"]
    failed = run_segmentation(parse_arguments(["segment", clip, *options, *pictures]))
    folder = arguments.output / "demo"
    print(f"\noverlay        {folder / 'overlay.mp4'}")
    print(f"masks          {folder / 'masks'}")
    print(f"contact sheet  {folder / 'contact_sheet.png'}")
    return failed
