"""From a finished training to the Hub: first a folder that is complete with its card, then the upload.

    python -m pcmanet.training.publishing runs/s4/best --to me/pcmanet-s4
    python -m pcmanet.training.publishing runs/s4/best --to me/pcmanet-s4 --code --private --evaluation s4_on_s4_test
    python -m pcmanet.training.publishing runs/s4/best --to me/pcmanet-s4 --only-prepare    # to look at the card first

FOLDER holds a model with its processor, and metrics.json as training writes it; it is left as it is. FOLDER-hub receives
what is uploaded: weights, processor, README.md and, with --code, our modules, so that
`pipeline("audio-visual-segmentation", model=ID, trust_remote_code=True)` works where this package is not installed. If the
upload fails, the message names the command that pushes FOLDER-hub again.
"""

import argparse
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor, save_code_with_weights
from modeling_pcmanet.hub_upload_pcmanet import WAITS, push_command, upload_folder
from modeling_pcmanet.modeling_pcmanet import load_strict
from pcmanet.dataset_scripts.evaluation import (
    COUNTS,
    MEASURES,
    PROTOCOLS,
    SLICES,
    class_table,
    figures_table,
    markdown_table,
    measure_name,
)
from pcmanet.files import written_aside
from pcmanet.pipelines import AudioVisualSegmentationPipeline

from .record import RECORD, describe_data, read_record


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


@dataclass(frozen=True)
class Publication:
    """What is published, and how.

    Attributes:
        folder: Of the finished training.
        repository: Where it goes, as `"owner/name"`.
        with_code: Whether our modules go along, for those who have not installed us.
        private: Whether a new repository is private.
        evaluations: Output folders of `examples/evaluate_pcmanet.py`, for the card.
        license: For the card; None takes that of the training data.
        datasets: Ids of the data on the Hub, for the card.
    """

    folder: Path
    repository: str
    with_code: bool = False
    private: bool = False
    evaluations: tuple[Path, ...] = ()
    license: str | None = None
    datasets: tuple[str, ...] = ()

    @property
    def prepared(self) -> Path:
        """The folder that is uploaded, beside that of the training."""
        folder = self.folder.resolve()
        return folder.with_name(f"{folder.name}-hub")


def load_result(folder: Path) -> tuple[PCMANetForAudioVisualSegmentation, PCMANetProcessor]:
    """Load what a training has left, and take nothing that is not whole.

    Args:
        folder: Of a model with its processor.

    Returns:
        Model and processor.

    Raises:
        FileNotFoundError: There is no model or no processor in the folder.
        ValueError: The model lacks weights.
    """
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            inside = ", ".join(sorted(str(path.parent) for path in folder.glob(f"*/{name}")))
            remedy = f"one of {inside}" if inside else "the folder of a model with its processor"
            raise FileNotFoundError(f"{folder} has no {name}: give {remedy}.")
    return load_strict(PCMANetForAudioVisualSegmentation, folder), PCMANetProcessor.from_pretrained(folder)


def prepare(publication: Publication) -> Path:
    """Complete the folder that is to be uploaded; one of an earlier time is replaced.

    Args:
        publication: What to publish.

    Returns:
        The folder, `FOLDER-hub`.

    Raises:
        FileNotFoundError: There is no model or no processor.
        ValueError: The name of the repository, the weights, the record or an evaluation cannot be used.
    """
    validate_repo_id(publication.repository)
    record = read_record(publication.folder)
    evaluations = tuple(map(read_evaluation, publication.evaluations))
    model, processor = load_result(publication.folder)
    size = processor.image_processor.size
    content = CardContent(
        repository=publication.repository,
        config=model.config,
        parameters=model.num_parameters(),
        frame_size=(size["height"], size["width"]),
        record=record,
        evaluations=evaluations,
        with_code=publication.with_code,
        license=publication.license,
        datasets=publication.datasets,
    )
    card = write_card(content)
    with written_aside(publication.prepared) as aside:
        _save(model, processor, aside, publication.with_code)
        (aside / "README.md").write_text(card, encoding="utf-8")
        if record:
            shutil.copyfile(publication.folder / RECORD, aside / RECORD)
    return publication.prepared


def _save(
    model: PCMANetForAudioVisualSegmentation, processor: PCMANetProcessor, folder: Path, with_code: bool
) -> None:
    """Write weights and processor, with the entry of the pipeline where its code goes along.

    An entry without code would stop `pipeline` for everybody: it is then looked for in the repository.
    """
    for part in (model.config, processor, processor.image_processor, processor.feature_extractor):
        for name in ("auto_map", "custom_pipelines"):  # of a checkpoint that once came with code
            part.__dict__.pop(name, None)
    if with_code:
        with save_code_with_weights():
            AudioVisualSegmentationPipeline(model=model, processor=processor, device="cpu").save_pretrained(folder)
    else:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def publish(publication: Publication, *, waits: Sequence[float] = WAITS) -> str:
    """Prepare the folder and upload it; in a training of several processes the main one alone calls this.

    The others need not wait for it: nothing here speaks to them.

    Args:
        publication: What to publish.
        waits: Seconds before each further attempt.

    Returns:
        Address of the commit.

    Raises:
        HubUploadError: The Hub did not take it; the message names the command that pushes the prepared folder again.
        FileNotFoundError: As `prepare`.
        ValueError: As `prepare`.
    """
    folder = prepare(publication)
    message = f"Upload {publication.repository.rpartition('/')[2]}"
    return upload_folder(folder, publication.repository, message=message, private=publication.private, waits=waits)


def parse_args(arguments: Sequence[str] | None = None) -> tuple[Publication, bool]:
    """Read the command line: what to publish, and whether only to prepare it."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmanet.training.publishing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="of a model with its processor, as training leaves it"
    )
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository, made if there is none")
    parser.add_argument("--code", action="store_true", help="also upload our modules, for use without this package")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--evaluation", type=Path, nargs="+", default=[], help="output folders of examples/evaluate_pcmanet.py"
    )
    parser.add_argument("--license", help="of the weights (default: apache-2.0 for Sounding Shapes, else other)")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="ID", help="Hub ids of the data, for the card")
    parser.add_argument("--only-prepare", action="store_true", help="write FOLDER-hub and upload nothing")
    args = parser.parse_args(arguments)
    publication = Publication(
        folder=args.folder,
        repository=args.to,
        with_code=args.code,
        private=args.private,
        evaluations=tuple(args.evaluation),
        license=args.license,
        datasets=tuple(args.dataset),
    )
    return publication, args.only_prepare


def main(arguments: Sequence[str] | None = None) -> None:
    """Publish as the command line says."""
    publication, only_prepare = parse_args(arguments)
    try:
        if only_prepare:
            folder = prepare(publication)
            command = push_command(folder, publication.repository, private=publication.private)
            sys.stdout.write(f"Prepared {folder}; push it with: {command}\n")
        else:
            sys.stdout.write(f"Pushed to {publish(publication)}\n")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
