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
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from modeling_pcmanet.hub_upload_pcmanet import WAITS, push_command, upload_folder
from modeling_pcmanet.loading_pcmanet import load_whole
from modeling_pcmanet.remote_code_pcmanet import code_beside_weights
from pcmanet.pipelines import AudioVisualSegmentationPipeline

from .model_card import CardContent, read_evaluation, write_card
from .safe_folders import written_aside
from .training_record import RECORD, read_record


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
    return load_whole(PCMANetForAudioVisualSegmentation, folder), PCMANetProcessor.from_pretrained(folder)


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
        with code_beside_weights():
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
