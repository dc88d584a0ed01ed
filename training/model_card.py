"""The card of a trained model: what it is for, how good it is under which protocol, what made it, how to use it.

Everything in it comes from the checkpoint, from the record of its training and from what `examples/evaluate_pcmanet.py`
has written; nothing is filled in from memory.
"""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedConfig

from pcmanet.dataset_scripts.evaluation_tables import (
    COUNTS,
    MEASURES,
    PROTOCOLS,
    SLICES,
    class_table,
    figures_table,
    markdown_table,
    measure_name,
)

from .training_record import describe_data


LINE = 119
METRIC_TYPES = {"miou": "mean_iou", "f_score": "f_score"}
CARD = """---
{metadata}
---

# {name}

{summary}

## Use

{use}

## Figures

{figures}
Ratios are taken per clip (official: as AVSBench's code with one clip per batch), per batch, or once for all pixels of the
data set (dataset). F weighs precision more, with beta squared 0.3. Figures of different protocols cannot be compared.

## Data

{data}

## Training

{training}

## Environment

{environment}

## Limits

{limits}

## Licence

{licence}

The network was proposed in
[Progressive Confident Masking Attention Network for Audio-Visual Segmentation](https://arxiv.org/abs/2406.02345).
"""

WITH_CODE = """This repository holds the code too, so that nothing of ours has to be installed:

```bash
pip install "torch>=2.11,<2.15" "torchaudio>=2.11,<2.12" "transformers>=5.17" av pillow
```

```python
from transformers import pipeline

segmenter = pipeline("audio-visual-segmentation", model="{repository}", trust_remote_code=True)
{loop}
```
"""
WITHOUT_CODE = """With the package `pcmanet` installed:

```python
import pcmanet.pipelines  # registers the task
from transformers import pipeline

segmenter = pipeline("audio-visual-segmentation", model="{repository}")
{loop}
```
"""
LOOP = """for frame in segmenter("clip.mp4"):
    print(frame["timestamp"], [(found["label"], round(found["score"], 2)) for found in frame["segments"]])"""
AFTER_USE = '`found["mask"]` is a PIL image at the size of the video, 255 where the object is.'


@dataclass(frozen=True)
class Evaluation:
    """What `examples/evaluate_pcmanet.py` found.

    Attributes:
        command: That found it.
        results: Its results.json.
    """

    command: str
    results: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Of what it is: data set, split, size."""
        found = self.results
        return f"{found['name']}, {found['split']} split: {found['clips']} clips, {found['frames']} frames"


def read_evaluation(folder: Path) -> Evaluation:
    """Read the output folder of an evaluation.

    Raises:
        ValueError: It is none, or not a finished one.
    """
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        text = (folder / "results.md").read_text(encoding="utf-8")
        (command,) = re.findall(r"^ {4}(.+)$", text, flags=re.MULTILINE)[:1]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is no finished output of examples/evaluate_pcmanet.py ({error}); give the folder that holds "
            "its results.json and results.md."
        ) from error
    return Evaluation(command, results)


@dataclass(frozen=True)
class CardContent:
    """What a card is written from.

    Attributes:
        repository: Where the model will lie, as `"owner/name"`.
        config: Of the network.
        parameters: How many numbers it has learned.
        frame_size: Height and width of the frames that the network sees, in pixels.
        record: Of the training, as `training_record` describes it.
        evaluations: On other clips than those of training.
        with_code: Whether our modules lie in the repository.
        license: As the Hub abbreviates it; None takes that of the data.
        datasets: Ids of the data on the Hub, if they are there.
    """

    repository: str
    config: PreTrainedConfig
    parameters: int
    frame_size: tuple[int, int]
    record: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...] = ()
    with_code: bool = False
    license: str | None = None
    datasets: tuple[str, ...] = ()

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the training."""
        return self.record.get("recipe") or self.record.get("arguments") or {}

    @property
    def validation(self) -> dict[str, float]:
        """The measures on the validation clips; losses, counts and stages are left out."""
        figures = self.record.get("validation", {})
        suffixes = ("", *SLICES)
        known = {f"{name}{suffix}" for name in MEASURES for suffix in suffixes}
        return {name: value for name, value in figures.items() if name in known and name not in COUNTS}


def write_card(content: CardContent) -> str:
    """Write the card as Markdown with its metadata as YAML on top."""
    data = describe_data(content.settings)
    usage = (WITH_CODE if content.with_code else WITHOUT_CODE).format(repository=content.repository, loop=LOOP)
    return CARD.format(
        metadata=_metadata(content),
        name=content.repository.rpartition("/")[2],
        summary=_summary(content),
        use=f"{usage}\n{AFTER_USE}",
        figures="\n".join(_figure_sections(content)),
        data=_wrapped(data.text),
        training=_training(content),
        environment=_environment(content.record),
        limits=_limits(content),
        licence=_wrapped(data.licence_text)
        if content.license is None
        else f"`{content.license}`, as its author chose.",
    )


def _metadata(content: CardContent) -> str:
    """Write what the Hub reads."""
    chosen = content.license or describe_data(content.settings).license
    results = list(_results(content))
    card = ModelCardData(
        license=chosen,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["audio-visual-segmentation", "pcmanet"],
        datasets=list(content.datasets) or None,
        metrics=list(METRIC_TYPES.values()) if results else None,
        model_name=content.repository.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def _results(content: CardContent) -> Iterator[EvalResult]:
    """Yield mIoU and F under each protocol, as the Hub's list of results wants them."""
    validation = describe_data(content.settings).name, "val", {PROTOCOLS[0]: content.validation}
    tests = [
        (found.results["name"], found.results["split"], found.results["figures"]) for found in content.evaluations
    ]
    for name, split, figures in (validation, *tests):
        for protocol, values in figures.items():
            for measure in (known for known in METRIC_TYPES if known in values):
                yield EvalResult(
                    task_type="image-segmentation",
                    task_name="Audio-visual segmentation",
                    dataset_type=name.lower().replace(", ", "-").replace(" ", "-"),
                    dataset_name=name,
                    dataset_split=split,
                    metric_type=METRIC_TYPES[measure],
                    metric_name=f"{measure_name(measure)} ({protocol} protocol)",
                    metric_value=round(values[measure], 4),
                )


def _summary(content: CardContent) -> str:
    """Say what it is in one paragraph."""
    config, (height, width) = content.config, content.frame_size
    if config.num_labels == 1:
        task = "what sounds and what does not (binary masks)"
    else:
        names = [config.id2label[index] for index in range(config.num_labels)]
        listed = ", ".join(names[1:]) if len(names) <= 40 else f"{', '.join(names[1:6])} and so on, see config.json"
        task = f"what sounds, and of which of {len(names) - 1} classes it is: {listed}"
    return _wrapped(
        "PCMANet for audio-visual segmentation: from a video with sound to the masks of the objects that are sounding, "
        f"second by second. It tells {task}. Visual backbone: {config.backbone_config.model_type}; "
        f"{content.parameters / 1e6:.1f} million parameters; frames of {height}x{width} pixels; trained on "
        f"{describe_data(content.settings).name}."
    )


def _figure_sections(content: CardContent) -> Iterator[str]:
    """Yield a section per measurement."""
    if content.validation:
        rows = [[measure_name(name), f"{value:.4f}"] for name, value in content.validation.items()]
        yield (
            "### Validation\n\nOn clips from which it did not learn, but by which it may have been chosen; the training command\n"
            f"below prints them.\n\n{markdown_table(['', PROTOCOLS[0]], rows)}"
        )
    for found in content.evaluations:
        table = figures_table(found.results["figures"])
        if "classes" in found.results:
            table += f"\n{class_table(found.results['classes'])}"
        yield f"### {found.title}\n\nPrinted by\n\n```bash\n{found.command}\n```\n\n{table}"
    if not content.validation and not content.evaluations:
        yield "None were recorded.\n"


def _training(content: CardContent) -> str:
    """Say how it was trained."""
    record, parts = content.record, []
    if "command" in record:
        parts.append(f"```bash\n{record['command']}\n```")
    amounts = [f"{record[unit]:,} {unit}" for unit in ("clips", "minutes") if unit in record]
    if amounts:
        parts.append(f"The weights are those after {' and '.join(amounts)} of training.")
    if content.settings:
        settings = yaml.safe_dump(json.loads(json.dumps(content.settings)), sort_keys=False).rstrip()
        parts.append(f"All settings:\n\n```yaml\n{settings}\n```")
    return "\n\n".join(parts) or "How it was trained was not recorded."


def _environment(record: Mapping[str, Any]) -> str:
    """List versions and machine."""
    environment = record.get("environment")
    if not environment:
        return "It was not recorded."
    return markdown_table(["", "training"], [[name, str(value)] for name, value in environment.items()]).rstrip()


def _limits(content: CardContent) -> str:
    """Say what it cannot do, as far as that follows from what it is."""
    height, width = content.frame_size
    data = describe_data(content.settings)
    limits = [
        f"It knows what it was trained on ({data.name}) and has been measured on nothing but what stands above.",
        "One mask per second by default: a sound that starts or stops within a second is given to the whole second or to "
        "none of it.",
        f"Frames are brought to {height}x{width} pixels whatever their shape; small things get lost.",
    ]
    if not any("false_positive_rate" in found.results["figures"]["official"] for found in content.evaluations):
        limits.append(
            "What it claims in silence, in noise or when something sounds that is not in the picture has not been measured "
            "here (`examples/evaluate_pcmanet.py --negative-audio` does)."
        )
    return "\n".join(_wrapped(f"- {limit}", indent="  ") for limit in limits)


def _wrapped(text: str, indent: str = "") -> str:
    """Break a paragraph into lines, so that the card also reads well as it is."""
    return textwrap.fill(text, LINE, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
