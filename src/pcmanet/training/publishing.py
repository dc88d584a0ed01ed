"""Publish a trained model on the Hub: prepare a complete folder with a model card, then upload it.

    python -m pcmanet.training.publishing runs/s4/best --to me/pcmanet-s4
    python -m pcmanet.training.publishing runs/s4/best --to me/pcmanet-s4 --code --private --evaluation s4_on_s4_test
    python -m pcmanet.training.publishing runs/s4/best --to me/pcmanet-s4 --only-prepare    # to read the card first

FOLDER contains a model with its processor, and metrics.json as training writes it. FOLDER is not changed. FOLDER-hub
receives what is uploaded: weights, processor, README.md and, with --code, our modules, so that
`pipeline("audio-visual-segmentation", model=ID, trust_remote_code=True)` works without this package. If the upload fails,
the message names the command that uploads FOLDER-hub again.
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
from typing import Any, cast

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor, save_code_with_weights
from modeling_pcmanet.configuration_pcmanet import PIPELINE_TAG
from modeling_pcmanet.hub_upload_pcmanet import WAITS, push_command, upload_folder
from modeling_pcmanet.modeling_audio_encoders import load_strict
from pcmanet.checkpoints import digest
from pcmanet.dataset_scripts.evaluation import (
    CLASS_SUBSETS,
    COUNTS,
    METRIC_NAMES,
    PROTOCOLS,
    class_table,
    markdown_table,
    metric_name,
    results_table,
)
from pcmanet.dataset_scripts.paired.settings import is_paired_data
from pcmanet.files import HUB_ID, atomic_folder
from pcmanet.pipelines import AudioVisualSegmentationPipeline

from .record import RECORD


@dataclass(frozen=True)
class Publication:
    """What is published, and how.

    Attributes:
        folder: Folder of the trained model.
        repository: Id of the repository on the Hub, as `"owner/name"`.
        with_code: Whether to upload our modules too, for users who have not installed this package.
        private: Whether a new repository is private.
        evaluations: Output folders of `pcmanet evaluate` with this model, for the card.
        license: License for the card; None uses that of the training data.
        datasets: Ids of the data on the Hub, for the card; without them, those that the training recorded.
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
        """The folder that is uploaded, next to that of the trained model."""
        folder = self.folder.resolve()
        return folder.with_name(f"{folder.name}-hub")


def publish(publication: Publication, *, waits: Sequence[float] = WAITS) -> str:
    """Prepare the folder and upload it. In a training run with several processes, call this in the main process only.

    The others do not need to wait, because nothing here communicates with them.

    Args:
        publication: What to publish.
        waits: Seconds before each further attempt.

    Returns:
        URL of the commit.

    Raises:
        HubUploadError: If the upload fails; the message names the command that uploads the prepared folder again.
        FileNotFoundError: See [`prepare`].
        ValueError: See [`prepare`].
    """
    folder = prepare(publication)
    message = f"Upload {publication.repository.rpartition('/')[2]}"
    return upload_folder(folder, publication.repository, message=message, private=publication.private, waits=waits)


def prepare(publication: Publication) -> Path:
    """Write the folder that is to be uploaded; an earlier one is replaced.

    Args:
        publication: What to publish.

    Returns:
        The folder, `FOLDER-hub`.

    Raises:
        FileNotFoundError: If the model or its processor is missing.
        ValueError: If the id of the repository, the weights, metrics.json or an evaluation is invalid.
    """
    validate_repo_id(publication.repository)
    record = read_record(publication.folder)
    evaluations = tuple(map(read_evaluation, publication.evaluations))
    model, processor = load_result(publication.folder)
    checkpoint = digest(model, processor) if evaluations else ""
    for folder, found in zip(publication.evaluations, evaluations, strict=True):
        _check_evaluation(folder, found, publication.folder, checkpoint)
    size = processor.image_processor.size
    content = CardContent(
        publication=publication,
        config=model.config,
        num_parameters=model.num_parameters(),
        frame_size=(size["height"], size["width"]),
        record=record,
        evaluations=evaluations,
    )
    card = write_card(content)
    with atomic_folder(publication.prepared, overwrite=True) as folder:
        _save(model, processor, folder, publication.with_code)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if record:
            shutil.copyfile(publication.folder / RECORD, folder / RECORD)
    return publication.prepared


def read_record(folder: Path) -> dict[str, Any]:
    """Read metrics.json next to the weights; return an empty record if the file does not exist.

    Raises:
        ValueError: If the file is not a JSON object.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}). Correct it, or remove it to publish without metrics."
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} contains {type(record).__name__}, expected an object as training writes it.")
    return record


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Read the output folder of `pcmanet evaluate`.

    Returns:
        The content of results.json, and the `command` that wrote it.

    Raises:
        ValueError: If the folder is not the output of a finished evaluation.
    """
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        text = (folder / "results.md").read_text(encoding="utf-8")
        (command,) = re.findall(r"^ {4}(.+)$", text, flags=re.MULTILINE)[:1]
        if "evaluations" in results:
            raise ValueError("it has several evaluations, each in its own folder")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is not the output of a finished `pcmanet evaluate` ({error}). Give the folder that contains its "
            "results.json and results.md."
        ) from error
    return {**results, "command": command}


def _check_evaluation(folder: Path, found: Mapping[str, Any], model: Path, checkpoint: str) -> None:
    """Raise ValueError unless an evaluation is of the published model, on other clips than those of training.

    Args:
        folder: Folder of the evaluation.
        found: Its results, see [`read_evaluation`].
        model: Folder of the published model.
        checkpoint: Digest of the published model.
    """
    if found.get("digest") != checkpoint:
        raise ValueError(
            f"{folder} is an evaluation of {found['checkpoint']}, whose weights, settings or version of transformers are not "
            f"those of {model}. Evaluate it with `pcmanet evaluate {model}`, or leave out {folder}."
        )
    if found["split"] == "train":
        raise ValueError(
            f"{folder} is an evaluation on the train split, but a model card lists results on clips that were not trained on. "
            f"Evaluate the test split, or leave out {folder}."
        )


def load_result(folder: Path) -> tuple[PCMANetForAudioVisualSegmentation, PCMANetProcessor]:
    """Load a trained model with its processor; all weights must be in the folder.

    Args:
        folder: Folder of a model with its processor.

    Returns:
        Model and processor.

    Raises:
        FileNotFoundError: If the model or the processor is missing.
        ValueError: If weights are missing.
    """
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            inside = ", ".join(sorted(str(path.parent) for path in folder.glob(f"*/{name}")))
            remedy = f"one of {inside}" if inside else "the folder of a model with its processor"
            raise FileNotFoundError(f"{name} not found in {folder}. Give {remedy}.")
    return load_strict(PCMANetForAudioVisualSegmentation, folder), PCMANetProcessor.from_pretrained(folder)


def _save(
    model: PCMANetForAudioVisualSegmentation, processor: PCMANetProcessor, folder: Path, with_code: bool
) -> None:
    """Write weights and processor, and with the code also the entry of the pipeline.

    An entry without code would make `pipeline` fail, because it would look for the code in the repository.
    """
    if with_code:
        with save_code_with_weights():
            cpu = torch.device("cpu")
            AudioVisualSegmentationPipeline(model=model, processor=processor, device=cpu).save_pretrained(folder)
    else:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


# The model card.

LINE_LENGTH = 119
METRIC_TYPES = {"miou": "mean_iou", "f_score": "f_score"}
CARD = """---
{metadata}
---

# {name}

{summary}

## Use

{use}

## Results

{results}
Ratios are computed per clip (official: as in AVSBench's code with one clip per batch), per batch, or once for all
pixels of the dataset (dataset). F weighs precision more, with beta squared 0.3. Results of different protocols cannot
be compared.

## Data

{data}

## Training

{training}

## Environment

{environment}

## Limitations

{limitations}

## License

{license}

The network was proposed in
[Progressive Confident Masking Attention Network for Audio-Visual Segmentation](https://arxiv.org/abs/2406.02345).
"""

WITH_CODE = """This repository contains the code, so that the package `pcmanet` is not needed:

```bash
pip install "torch>=2.11,<2.15" "torchaudio>=2.11,<2.12" "transformers>=5.17" av pillow
```

```python
from transformers import pipeline

segmenter = pipeline("audio-visual-segmentation", model="{repository}", trust_remote_code=True)
{loop}
```

Where `pcmanet` is installed, `import pcmanet` replaces `trust_remote_code=True`.
"""
WITHOUT_CODE = """With the package `pcmanet` installed:

```python
import pcmanet  # registers the architecture and the task with transformers
from transformers import pipeline

segmenter = pipeline("audio-visual-segmentation", model="{repository}")
{loop}
```
"""
LOOP = """for frame in segmenter("clip.mp4"):
    print(frame["timestamp"], [(found["label"], round(found["score"], 2)) for found in frame["segments"]])"""
AFTER_USE = '`found["mask"]` is a PIL image of the size of the video, 255 inside the object.'

OTHER_LICENSE = (
    "The code that produced these weights is under Apache-2.0. Their use also depends on the data: see the terms under "
    "which you received it."
)
PRETRAINED_LICENSE = (
    "The code and the data that it generates are under Apache-2.0. The use of these weights also depends on the licenses of "
    "the weights that training started from."
)
PRETRAINED = ("initialize_from", "checkpoint", "visual_backbone", "audio_encoder")  # settings that name weights
SOUNDING_SHAPES = (
    "Sounding Shapes, generated by `pcmanet.dataset_scripts.sounding_shapes`: moving shapes of twelve kinds, each "
    "with its own kind of sound; only the audio tells which of them are active. It contains no real-world data."
)
SUBSETS = {
    "s4": "its single-source clips: five seconds, masks of the one sounding object, in training only of the first second",
    "ms3": "its multi-source clips: five seconds, one mask per second of all sounding objects",
    "avss": "its semantic clips: five or ten seconds, one map per second with the class of all sounding objects",
}


@dataclass(frozen=True)
class CardContent:
    """What a card is written from.

    Attributes:
        publication: What is published.
        config: Configuration of the network.
        num_parameters: Number of parameters of the network.
        frame_size: Height and width of the frames that the network receives, in pixels.
        record: Record of the training run, see `pcmanet.training.record`.
        evaluations: Evaluations on clips other than the training clips, see [`read_evaluation`].
    """

    publication: Publication
    config: PreTrainedConfig
    num_parameters: int
    frame_size: tuple[int, int]
    record: Mapping[str, Any]
    evaluations: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Name of the repository without its owner."""
        return self.publication.repository.rpartition("/")[2]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the training."""
        return self.record.get("recipe") or self.record.get("arguments") or {}

    @property
    def datasets(self) -> Sequence[str]:
        """Ids of the data on the Hub: those given, or those of the training."""
        return self.publication.datasets or self.record.get("datasets", ())

    @property
    def validation(self) -> dict[str, float]:
        """The metrics on the validation clips, without losses, counts and stages; empty if of earlier weights."""
        is_of_these_weights = self.record.get("validation_step") == self.record.get("step")
        metrics = self.record.get("validation", {}) if is_of_these_weights else {}
        suffixes = ("", *CLASS_SUBSETS)
        known = {f"{name}{suffix}" for name in METRIC_NAMES for suffix in suffixes}
        return {name: value for name, value in metrics.items() if name in known and name not in COUNTS}


def write_card(content: CardContent) -> str:
    """Write the card as Markdown with its metadata as YAML on top."""
    publication, data = content.publication, describe_data(content.settings)
    usage = (WITH_CODE if publication.with_code else WITHOUT_CODE).format(repository=publication.repository, loop=LOOP)
    license_text = data["license_text"]
    return CARD.format(
        metadata=_metadata(content),
        name=content.name,
        summary=_summary(content),
        use=f"{usage}\n{AFTER_USE}",
        results="\n".join(_result_sections(content)),
        data=_wrapped(data["text"]),
        training=_training(content),
        environment=_environment(content.record),
        limitations=_limitations(content),
        license=_wrapped(license_text) if publication.license is None else f"`{publication.license}`.",
    )


def describe_data(settings: Mapping[str, Any]) -> dict[str, str]:
    """Describe the training data.

    Args:
        settings: `task` and `data` as in a recipe.

    Returns:
        `name` for headings, such as `"AVSBench, s4"`; `text`, a description; `license` of the weights, as the Hub
        abbreviates it; `license_text`, the same in sentences.
    """
    task, data = settings.get("task"), settings.get("data")
    if task is None:
        return _other_data("unrecorded data", "The training data was not recorded.")
    if data is None:
        text = "Apache-2.0, like the code and the data that it generates."
        name = f"Sounding Shapes, {task}"
        if _pretrained(settings):
            return _other_data(name, SOUNDING_SHAPES) | {"license_text": PRETRAINED_LICENSE}
        return {"name": name, "text": SOUNDING_SHAPES, "license": "apache-2.0", "license_text": text}
    if task == "folder":
        name = Path(data).name
        return _other_data(
            f"custom clips, {name}", f"Clips of the author, in the folder `{name}`, with a `clips.csv`."
        )
    if is_paired_data(data):
        name = Path(data).name
        text = (
            "Generated clips: photos with masks and labeled recordings, paired by class as specified in the file "
            f"`{name}` (paired data of `pcmanet.dataset_scripts.paired`). No photo or recording is in more than one "
            "of the training, validation and test splits."
        )
        return _other_data(f"paired data, {name}, {task}", text)
    text = (
        f"[AVSBench](https://github.com/OpenNLPLab/AVSBench), {SUBSETS[task]}. It is available on request, for "
        "research, and is not part of this repository."
    )
    return _other_data(f"AVSBench, {task}", text)


def _other_data(name: str, text: str) -> dict[str, str]:
    """Describe data whose license is not ours."""
    return {"name": name, "text": text, "license": "other", "license_text": OTHER_LICENSE}


def _pretrained(settings: Mapping[str, Any]) -> list[str]:
    """Return the weights that training started from: Hub ids, the name of the bundled model, and names of folders."""
    given = [settings[key] for key in PRETRAINED if settings.get(key)]
    return [Path(name).name if Path(name).is_dir() else name for name in given]


def _metadata(content: CardContent) -> str:
    """Write the metadata that the Hub reads."""
    results = list(_eval_results(content))
    card = ModelCardData(
        base_model=[name for name in _pretrained(content.settings) if HUB_ID.fullmatch(name)] or None,
        license=content.publication.license or describe_data(content.settings)["license"],
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=["audio-visual-segmentation", "pcmanet"],
        datasets=list(content.datasets) or None,
        metrics=list(METRIC_TYPES.values()) if results else None,
        model_name=content.name if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def _eval_results(content: CardContent) -> Iterator[EvalResult]:
    """Yield mIoU and F under each protocol, for the metadata."""
    validation = describe_data(content.settings)["name"], "val", {PROTOCOLS[0]: content.validation}
    tests = [(_evaluated_data(found), found["split"], found["metrics"]) for found in content.evaluations]
    for name, split, metrics in (validation, *tests):
        for protocol, values in metrics.items():
            for metric in (known for known in METRIC_TYPES if known in values):
                yield EvalResult(
                    task_type=PIPELINE_TAG,
                    task_name="Audio-visual segmentation",
                    dataset_type=name.lower().replace(", ", "-").replace(" ", "-"),
                    dataset_name=name,
                    dataset_split=split,
                    metric_type=METRIC_TYPES[metric],
                    metric_name=f"{metric_name(metric)} ({protocol} protocol)",
                    metric_value=round(values[metric], 4),
                )


def _summary(content: CardContent) -> str:
    """Describe the model in one paragraph."""
    config, (height, width) = content.config, content.frame_size
    id2label = cast(dict[int, str], config.id2label)
    if len(id2label) == 1:
        task = "binary masks of the sounding objects"
    else:
        names = [id2label[index] for index in range(len(id2label))]
        listed = ", ".join(names[1:]) if len(names) <= 40 else f"{', '.join(names[1:6])} and so on, see config.json"
        task = f"masks of the sounding objects with their class, one of {len(names) - 1} classes: {listed}"
    return _wrapped(
        "PCMANet for audio-visual segmentation: from a video with audio to the masks of the objects that are sounding, "
        f"second by second. It predicts {task}. Visual backbone: {config.backbone_config.model_type}; "
        f"{content.num_parameters / 1e6:.1f} million parameters; frames of {height}x{width} pixels; trained on "
        f"{describe_data(content.settings)['name']}."
    )


def _result_sections(content: CardContent) -> Iterator[str]:
    """Yield a section for each evaluation."""
    if content.validation:
        rows = [[metric_name(name), f"{value:.4f}"] for name, value in content.validation.items()]
        yield (
            "### Validation\n\nOn clips that were not trained on, but may have been used to choose the weights; the training\n"
            f"command below prints these values.\n\n{markdown_table(['', PROTOCOLS[0]], rows)}"
        )
    for found in content.evaluations:
        table = results_table(found["metrics"])
        if "classes" in found:
            table += f"\n{class_table(found['classes'])}"
        title = f"{_evaluated_data(found)}, {found['split']} split: {found['clips']} clips, {found['frames']} frames"
        yield f"### {title}\n\nPrinted by\n\n```bash\n{found['command']}\n```\n\n{table}"
    if not content.validation and not content.evaluations:
        yield "Not recorded.\n"


def _evaluated_data(found: Mapping[str, Any]) -> str:
    """Return the name of the evaluated data. Paired data and custom clips have names other than those of AVSBench."""
    name, data = found["name"], found.get("data", "")
    return describe_data({"task": name, "data": data})["name"] if is_paired_data(data) or name == "folder" else name


def _training(content: CardContent) -> str:
    """Describe the training."""
    record, parts = content.record, []
    if "command" in record:
        parts.append(f"```bash\n{record['command']}\n```")
    amounts = [f"{record[unit]:,} {unit}" for unit in ("clips", "minutes") if unit in record]
    if amounts:
        parts.append(f"The weights are those after {' and '.join(amounts)} of training.")
    if names := _pretrained(content.settings):
        parts.append(f"Training started from the weights of {', '.join(f'`{name}`' for name in names)}.")
    if content.settings:
        settings = yaml.safe_dump(json.loads(json.dumps(content.settings)), sort_keys=False).rstrip()
        parts.append(f"All settings:\n\n```yaml\n{settings}\n```")
    return "\n\n".join(parts) or "Not recorded."


def _environment(record: Mapping[str, Any]) -> str:
    """List versions and machine."""
    environment = record.get("environment")
    if not environment:
        return "Not recorded."
    return markdown_table(["", "training"], [[name, str(value)] for name, value in environment.items()]).rstrip()


def _limitations(content: CardContent) -> str:
    """Describe the limitations, as far as they follow from the model and its evaluations."""
    height, width = content.frame_size
    data = describe_data(content.settings)
    limitations = [
        f"It was trained on {data['name']} and evaluated on nothing but the datasets above.",
        "It predicts one mask per second by default: a sound that starts or stops within a second is assigned to the entire "
        "second or to none of it.",
        f"Frames are resized to {height}x{width} pixels whatever their aspect ratio; small objects get lost.",
    ]
    if not any("false_positive_rate" in found["metrics"]["official"] for found in content.evaluations):
        limitations.append(
            "The false-positive rate on silence, on noise and on sounds whose source is not visible has not been measured "
            "here (`pcmanet evaluate --negative-audio` measures it)."
        )
    return "\n".join(_wrapped(f"- {limitation}", indent="  ") for limitation in limitations)


def _wrapped(text: str, indent: str = "") -> str:
    """Wrap a paragraph, so that the source of the card is also readable."""
    return textwrap.fill(text, LINE_LENGTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def parse_args(arguments: Sequence[str] | None = None) -> tuple[Publication, bool]:
    """Parse the command line: what to publish, and whether only to prepare it."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmanet.training.publishing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of a model with its processor, as training writes it"
    )
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository, created if it does not exist")
    parser.add_argument("--code", action="store_true", help="also upload our modules, for use without this package")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--evaluation", type=Path, nargs="+", default=[], help="output folders of `pcmanet evaluate FOLDER`"
    )
    parser.add_argument(
        "--license", help="license of the weights (default: apache-2.0 for Sounding Shapes, else other)"
    )
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
    """Prepare or publish a model as the command line says."""
    publication, only_prepare = parse_args(arguments)
    try:
        if only_prepare:
            folder = prepare(publication)
            command = push_command(folder, publication.repository, private=publication.private)
            sys.stdout.write(f"Prepared {folder}. Upload it with: {command}\n")
        else:
            sys.stdout.write(f"Uploaded to {publish(publication)}\n")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
