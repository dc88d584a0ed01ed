"""Writes the page of app.py as a Space of Hugging Face: one folder with all it needs, our packages among it.

    python examples/app_space.py --output space
    hf repos create you/pcmanet --type space --space-sdk gradio
    hf upload you/pcmanet space . --repo-type space

`python app.py` in that folder is what the Space then runs. It shows the semantic demo model; for another one, set the
Space's variable `PCMANET_MODEL` to its id on the Hub.
"""

import argparse
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import gradio

import modeling_pcmanet
import pcmanet.pipelines


HERE = Path(__file__).resolve().parent
APP_FILES = (
    "app.py",
    "app_analysis.py",
    "app_probe.py",
    "app_views.py",
    "app.css",
    "app.js",
    "app_upload.js",
    "demo.mp4",
    "demo_trio.mp4",
)
MODEL = "demo_model_semantic"
PACKAGES = {"modeling_pcmanet": modeling_pcmanet, "pcmanet/pipelines": pcmanet.pipelines}

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

Drop a video: see which objects make the sound, and when. Written by `examples/app_space.py` of pcmanet.
"""


def requirements() -> str:
    """Lists what our packages need, in the versions of this environment. The Space brings gradio itself."""
    needed = [line.split(";")[0] for line in metadata.requires("pcmanet") or [] if "extra ==" not in line]
    names = [needed_line.split("<")[0].split(">")[0].split("[")[0].strip() for needed_line in needed]
    # What follows a plus names a build, such as the one for CPUs, that package indexes do not hold.
    return "".join(f"{name}=={metadata.version(name).split('+')[0]}\n" for name in names)


def write_space(output: Path) -> None:
    """Writes the folder, whole or not at all.

    Args:
        output: The folder.

    Raises:
        FileExistsError: If it is there already.
    """
    if output.exists():
        raise FileExistsError(f"{output} is there already. Remove it or give another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as aside:
        space = Path(aside) / output.name
        space.mkdir()
        for name in APP_FILES:
            shutil.copyfile(HERE / name, space / name)
        shutil.copytree(HERE / MODEL, space / MODEL)
        for place, package in PACKAGES.items():
            (space / place).mkdir(parents=True)
            for module in sorted(Path(package.__file__).parent.glob("*.py")):
                shutil.copyfile(module, space / place / module.name)
        (space / "requirements.txt").write_text(requirements(), encoding="utf-8")
        (space / "README.md").write_text(CARD, encoding="utf-8")
        space.rename(output)


def main() -> None:
    """Writes the folder of a Space."""
    parser = argparse.ArgumentParser(description="Writes the page of app.py as a Space of Hugging Face.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    args = parser.parse_args()
    try:
        write_space(args.output)
    except OSError as error:
        parser.error(str(error))
    print(f"{args.output}: now `hf upload OWNER/NAME {args.output} . --repo-type space`")


if __name__ == "__main__":
    main()
