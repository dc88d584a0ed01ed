"""What does a user wait for between `pcmanet segment clip.mp4` and the first masks?

    python benchmarks/startup.py
    python benchmarks/startup.py --model examples/demo_model --rounds 5

Runs the parts of the command in order, each round in a new process, and counts processor time of one thread, so that other
processes on the machine matter little: the interpreter, `import torch, transformers`, the parts of transformers that any
model with a processor and a pipeline needs and that transformers imports on first use (with torchvision, if it is
installed), our modules, the checkpoint, and the first masks. "network alone" is the first masks again, with everything
loaded. The files are in the page cache. Prints Markdown, medians.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pcmanet.files import demo_file


ROOT = Path(__file__).parent.parent
# Each part with the code that it runs; later parts need the names of earlier ones.
PARTS = {
    "interpreter": "",
    "import torch, transformers": "import torch, transformers",
    "parts of transformers": "import transformers.image_processing_utils, transformers.modeling_utils, "
    "transformers.pipelines.base, transformers.processing_utils",
    "our modules": "import pcmanet.cli.segment",
    "checkpoint": "from pcmanet.checkpoints import load_segmenter; segmenter = load_segmenter({model!r}, 'cpu')",
    "first masks": "next(segmenter.stream({clip!r}))",
    "network alone": "next(segmenter.stream({clip!r}))",
}
LIMIT = 1.5  # times what is unavoidable: torch, transformers and the network


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default=str(ROOT / "examples" / "demo_model"), help="folder or Hub id")
    parser.add_argument("--clip", default=str(demo_file("demo.mp4")), help="video with audio")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each in a new process")
    return parser.parse_args()


def measure(model: str, clip: str) -> dict[str, float]:
    """Return the seconds of processor time of each part, in a new process."""
    lines = ["import json, time", "started, seconds = 0.0, {}"]
    for name, code in PARTS.items():
        lines += [code.format(model=model, clip=clip), "now = time.process_time()"]
        lines += [f"seconds[{name!r}] = now - started", "started = now"]
    lines.append("print(json.dumps(seconds))")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "\n".join(lines)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def table(rounds: list[dict[str, float]]) -> list[str]:
    """Return the lines of the table: medians of the parts, their sum, and the sum as a multiple of what is unavoidable."""
    medians = {name: statistics.median(seconds[name] for seconds in rounds) for name in PARTS}
    alone = medians.pop("network alone")
    total = sum(medians.values())
    unavoidable = medians["interpreter"] + medians["import torch, transformers"] + alone
    return [
        "| part | seconds | fraction |",
        "|---|---|---|",
        *(f"| {name} | {seconds:.2f} | {seconds / total:.1%} |" for name, seconds in medians.items()),
        f"| all | {total:.2f} | |",
        f"| interpreter, torch, transformers and network alone | {unavoidable:.2f} | |",
        "",
        f"The total is {total / unavoidable:.2f} times the last row; the goal is at most {LIMIT}.",
    ]


def main() -> None:
    """Print the table."""
    options = parse_args()
    started = time.perf_counter()
    rounds = [measure(options.model, options.clip) for _ in range(options.rounds)]
    print(f"`python {shlex.join(sys.argv)}`, {time.perf_counter() - started:.0f} s\n")
    print("\n".join(table(rounds)))


if __name__ == "__main__":
    main()
