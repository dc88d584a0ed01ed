"""Write the page of app.py as a Hugging Face Space: one folder with all required files, including our packages.

    python -m pcmanet.examples.app_space --output space
    hf repos create you/pcmanet --type space --space-sdk gradio
    hf upload you/pcmanet space . --repo-type space

The Space runs `python app.py` in that folder, with the bundled model. For another model, set the variable
`PCMANET_MODEL` of the Space to its Hub id.
"""

import argparse
import re
import shutil
from importlib import metadata
from pathlib import Path

import gradio

import modeling_pcmanet
import pcmanet
import pcmanet.pipelines
from pcmanet.files import atomic_folder


HERE = Path(__file__).resolve().parent
APP_FILES = (
    "__init__.py",
    "app.py",
    "app_analysis.py",
    "uploads.py",
    "app_views.py",
    "app.css",
    "app.js",
    "app_upload.js",
    "real_world.mp4",
    "demo.mp4",
    "demo_trio.mp4",
)
MODEL = "real_world_model"
PACKAGES = {"modeling_pcmanet": modeling_pcmanet, "pcmanet": pcmanet, "pcmanet/pipelines": pcmanet.pipelines}
EXAMPLES = "pcmanet/examples"
LAUNCHER = "from pcmanet.examples.app import main\n\n\nmain()\n"

CARD = f"""---
title: Segment what you hear
emoji: 👂
colorFrom: red
colorTo: yellow
sdk: gradio
sdk_version: {gradio.__version__}
app_file: app.py
license: apache-2.0
---

Upload a video to see which objects make sound, and when. Written by `examples/app_space.py` of pcmanet.
"""


def requirements() -> str:
    """Return the dependencies in the versions of this environment. The Space installs gradio itself."""
    needed = [line.split(";")[0] for line in metadata.requires("pcmanet") or [] if "extra ==" not in line]
    names = [re.split(r"[<>=~!\[ ]", requirement)[0].strip() for requirement in needed]
    # The local version after a plus sign, such as that of a CPU build, is not on package indices.
    return "".join(f"{name}=={metadata.version(name).split('+')[0]}\n" for name in names)


def write_space(output: Path) -> None:
    """Write the folder, completely or not at all.

    Args:
        output: The folder.

    Raises:
        FileExistsError: If it is a file or a folder that is not empty.
    """
    with atomic_folder(output, durable=False) as space:
        for folder, package in PACKAGES.items():
            (space / folder).mkdir()
            for module in sorted(Path(package.__file__).parent.glob("*.py")):
                shutil.copyfile(module, space / folder / module.name)
        shutil.copytree(HERE / MODEL, space / EXAMPLES / MODEL)
        for name in APP_FILES:
            shutil.copyfile(HERE / name, space / EXAMPLES / name)
        (space / "app.py").write_text(LAUNCHER, encoding="utf-8")
        (space / "requirements.txt").write_text(requirements(), encoding="utf-8")
        (space / "README.md").write_text(CARD, encoding="utf-8")


def main() -> None:
    """Write the folder of a Space."""
    parser = argparse.ArgumentParser(
        description="Write the page of app.py as a Hugging Face Space.", allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="new or empty folder to write")
    args = parser.parse_args()
    try:
        write_space(args.output)
    except OSError as error:
        parser.error(str(error))
    print(f"{args.output}: now `hf upload OWNER/NAME {args.output} . --repo-type space`")


if __name__ == "__main__":
    main()
