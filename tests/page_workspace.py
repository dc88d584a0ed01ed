"""Run the code of a documentation page where a reader would: in an empty folder, with the built wheel, without the clone.

What a reader has and we have not, such as AVSBench, published weights and the Hub, are stand-ins of the same layout. Recipes
are shortened: a file with the name of a recipe in the working folder takes the place of the installed one.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_runs import save_checkpoint, write_clip
from huggingface_hub import HfApi
from isolated_python import WITHOUT_EDITABLE_INSTALL
from loopback_hub import TOKEN, LoopbackHub
from paired_files import write_paired_data
from PIL import Image
from published_weights import seeded_state_dict, vggish_shapes
from training_runs import RECIPES
from transformers import ConvNextImageProcessor, PvtV2Backbone, PvtV2Config
from written_trees import write_trees


ROOT = Path(__file__).parent.parent
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
SHORT = {
    "epochs": 1,
    "evaluations": 1,
    "early_stopping_patience": None,
    "image_size": 64,
    "batch_size": 2,
    "gradient_accumulation": 1,
    "num_workers": 0,
    "mixed_precision": "none",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its code, and why it is not run, if it is not."""

    language: str
    code: str
    reason: str | None


def read_blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, given by its path in the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [Block(match["language"], match["code"], match["reason"]) for match in FENCE.finditer(text)]
    assert 2 * len(blocks) == len(re.findall(r"^ *```", text, flags=re.MULTILINE)), (
        f"{page}: a block was not understood"
    )
    return blocks


def code_of(page: str, language: str) -> str:
    """Return all code of a language that is run, in one program."""
    return "\n".join(block.code for block in read_blocks(page) if block.language == language and not block.reason)


def commands_of(page: str) -> list[str]:
    """Return the commands of a page, with continuation lines joined, and without comments."""
    lines = "\n".join(block.code for block in read_blocks(page) if block.language == "bash")
    joined = re.sub(r" *\\\n *", " ", lines)
    return [command for line in joined.splitlines() if (command := re.sub(r"(^| +)#.*", "", line).strip())]


def build_wheel(folder: Path) -> Path:
    """Build the wheel from the files that git knows, and unpack it."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, folder, folder / "source"], check=True)
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder / "site")
    (folder / "site" / "sitecustomize.py").write_text(WITHOUT_EDITABLE_INSTALL)
    return folder / "site"


def write_program(path: Path, text: str) -> None:
    """Write an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def make_environment(hub: LoopbackHub, site: Path, folder: Path) -> Mapping[str, str]:
    """Return the environment of a reader who has installed the wheel."""
    programs = folder / "bin"
    write_program(programs / "pcmanet", f'#!/bin/sh\nexec "{sys.executable}" -m pcmanet "$@"\n')
    # It copies stand-ins in place of downloads.
    write_program(programs / "curl", f'#!/bin/sh\nfor last; do :; done\ncp "{folder}/downloads/${{last##*/}}" .\n')
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return hub.environment(folder / "home") | {
        "PATH": path,
        "PYTHONPATH": str(site),
        "ACCELERATE_USE_CPU": "true",
        "HOME": str(folder / "home"),
    }


def write_downloads(folder: Path) -> None:
    """Write the published weight files that pages download, with random weights."""
    folder.mkdir(parents=True)
    torch.save(seeded_state_dict(vggish_shapes()), folder / "vggish-10086976.pth")


def write_own_clips(root: Path) -> None:
    """Write a custom folder with a clip for each split."""
    lines = ["video,split,masks"]
    for number, (name, split) in enumerate((("dog", "train"), ("cat", "val"), ("cow", "test"))):
        write_clip(root / "videos" / f"{name}.mp4", seed=number)
        for second in range(3):
            mask = np.zeros((48, 64), np.uint8)
            mask[:, :32] = 255 * (second > 0)
            (root / "masks" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / name / f"{second}.png")
        lines.append(f"videos/{name}.mp4,{split},masks/{name}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")


def write_recipes(root: Path) -> None:
    """Write shortened recipes under the names of the installed ones."""
    for path in RECIPES.glob("*.yaml"):
        recipe = yaml.safe_load(path.read_text()) | SHORT
        recipe |= {"clips": 4} if "clips" in recipe else {}
        recipe |= {"evaluation_clips": 2} if "evaluation_clips" in recipe else {}
        (root / path.stem).write_text(yaml.safe_dump(recipe))


def write_backbone(folder: Path) -> None:
    """Write a small PVT-v2 with its image processor."""
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
    config = PvtV2Config(**sizes, num_attention_heads=[1, 2, 3, 4], out_features=[f"stage{k}" for k in (1, 2, 3, 4)])
    PvtV2Backbone(config).save_pretrained(folder)
    ConvNextImageProcessor().save_pretrained(folder)


def fill_hub(hub: LoopbackHub, folder: Path) -> None:
    """Upload what pages download from the Hub: a backbone, and a checkpoint as owner/name."""
    write_backbone(folder / "backbone")
    save_checkpoint(folder / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        hub.connect(patch, folder / "home")
        api = HfApi(endpoint=hub.url, token=TOKEN)
        for name, local in (("OpenGVLab/pvt_v2_b5", "backbone"), ("owner/name", "checkpoint")):
            api.create_repo(name)
            api.upload_folder(repo_id=name, folder_path=folder / local)


def fill_working_folder(folder: Path) -> None:
    """Write the data that the commands of the pages name."""
    write_clip(folder / "clip.mp4")
    for number in range(2):
        write_clip(folder / "videos" / f"{number}.mp4", seed=number)
    (folder / "list.txt").write_text("clip.mp4\nvideos/0.mp4\n")
    write_trees(folder / "AVSBench", **{task: {"train": 2, "val": 1, "test": 2} for task in ("s4", "ms3", "avss")})
    write_own_clips(folder / "my_clips")
    write_paired_data(folder, clips={"seconds": 5})
    write_recipes(folder)


def run_page(page: str, environment: Mapping[str, str], folder: Path) -> str:
    """Run the shell commands of a page, then its Python, and return what they print."""
    printed = ""
    for words in (
        ["bash", "-euxo", "pipefail", "-c", code_of(page, "bash")],
        [sys.executable, "-c", code_of(page, "python")],
    ):
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page}: {done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        printed += done.stdout
    return printed
