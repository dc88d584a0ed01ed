"""Recipes: the typed and validated settings of a training run, from a YAML file and the command line.

    recipe = read_recipe("s4", ["preset=resnet50", "configuration.num_groups=4"], data="AVSBench")

All defaults are here. A recipe file contains the fields that differ.
"""

import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from modeling_pcmanet.configuration_pcmanet import PCMANetConfig
from pcmanet.dataset_scripts.augmentation import Augmentation
from pcmanet.dataset_scripts.avsbench.layouts import NAMES, SECONDS_OF_SUBSET
from pcmanet.dataset_scripts.avsbench.masks import LABEL_NOISE_RULES
from pcmanet.dataset_scripts.avsbench.rows import MISSING_AUDIO_RULES, RowSettings
from pcmanet.dataset_scripts.paired.settings import is_paired_data
from pcmanet.dataset_scripts.problems import ON_ERROR, suggest
from pcmanet.dataset_scripts.sounding_shapes.clips import NEGATIVE_KINDS
from pcmanet.files import find_recipe


# What must be unchanged in the data to resume a run, in addition to the recipe.
FILES = "the names and sizes of the clips' files"
PLACE = "the place and times of the clips' files"
FREEZABLE = ("audio_encoder", "backbone")
DEFAULT_IMAGE_SIZE = 224  # of a network that is not initialized from a checkpoint, as published
# Fields that apply to some sources of data only, in addition to those of `RowSettings`.
SHAPES_ONLY = ("pair_audio", "negative_fraction", "negative_kinds", "audio_pretraining_clips")
GENERATED_ONLY = ("clips", "evaluation_clips")
# Fields of the network's configuration that a recipe must not set, and what determines them.
DETERMINED = {
    **dict.fromkeys(("num_labels", "id2label", "label2id"), "the data"),
    "freeze_audio_encoder": "freeze",
    "num_audio_windows": "audio_windows",
    "bfloat16_agreement": "the end of the training",
}
LARGEST_SEED = 2**32 - 1  # that NumPy accepts
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # a number such as 1e-4, which YAML reads as text


def _setting(default: Any, text: str, *, affects_weights: bool = True, **rules: Any) -> Any:
    """Declare a field of the recipe.

    Args:
        default: Its value if a recipe does not contain it.
        text: One line of help.
        affects_weights: Whether the weights depend on it. Other fields may change when a run is resumed.
        **rules: `choices`; `minimum` and `maximum`, both inclusive; `above`, exclusive.
    """
    metadata = {"help": text, "affects_weights": affects_weights, **rules}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the weights of a run, and how the run is evaluated and logged.

    Each field has a line of help, see [`describe_fields`].

    Raises:
        ValueError: If a value has the wrong type, is out of range, or contradicts another.
    """

    # Data.
    task: str = _setting("ms3", "layout of the data", choices=NAMES)
    data: str | None = _setting(
        None, "folder of AVSBench or of your own clips, or YAML file of paired data; null: generated Sounding Shapes"
    )
    label_noise: str = _setting(
        "keep", "avss: what to do with classes that the label table does not name", choices=LABEL_NOISE_RULES
    )
    subsets: tuple[str, ...] = _setting((), "avss: subsets to use; empty: all", choices=tuple(SECONDS_OF_SUBSET))
    binary: bool = _setting(False, "avss, folder: binary masks in place of classes")
    frames_per_second: float = _setting(1.0, "folder: sampling rate of the frames, in hertz", above=0.0)
    missing_audio: str = _setting(
        "raise",
        "folder: reject videos without an audio track, or use them as silent clips with empty masks",
        choices=MISSING_AUDIO_RULES,
    )
    log_mel: bool = _setting(False, "s4, ms3: use the published log-mel features in place of the wav files")
    on_error: str = _setting("raise", "stop at clips with problems, or skip them and list them once", choices=ON_ERROR)
    audio_cache: str | None = _setting(
        None, "folder that caches the features of unchanged audio, or the outputs of a frozen audio encoder"
    )
    image_size: int | None = _setting(
        None,
        f"side of the square frames that the network receives, in pixels; null: as in initialize_from, else {DEFAULT_IMAGE_SIZE}",
        minimum=32,
    )
    center_crop: bool = _setting(False, "crop training frames to their central square instead of squashing them")
    augmentation: dict[str, Any] | None = _setting(
        None, "fields of dataset_scripts/augmentation.py that differ from its defaults; null: no augmentation"
    )
    clips: int = _setting(16000, "Sounding Shapes, paired data: number of training clips", minimum=1)
    evaluation_clips: int = _setting(64, "Sounding Shapes, paired data: number of validation clips", minimum=1)
    paired_clips: dict[str, Any] = _setting(
        {}, "paired data: settings of `clips` that differ from those in its file, in training and validation"
    )
    pair_audio: bool = _setting(False, "Sounding Shapes: use every video twice, with different audio")
    negative_fraction: float = _setting(
        0.0, "Sounding Shapes: fraction of clips without a sounding object", minimum=0.0, maximum=0.5
    )
    negative_kinds: tuple[str, ...] = _setting(
        NEGATIVE_KINDS, "Sounding Shapes: kinds of audio of these clips", choices=NEGATIVE_KINDS
    )
    audio_pretraining_clips: int = _setting(
        0, "Sounding Shapes: audio clips on which the audio encoder is trained to classify sounds first", minimum=0
    )

    # Network.
    preset: str = _setting(
        "tiny",
        "widths of the decoder, and the backbone and audio encoder that are not given; ignored with initialize_from",
        choices=("tiny", "small", "resnet50", "pvt_v2_b5"),
    )
    visual_backbone: str | None = _setting(
        None, "Hub id or folder of a pretrained backbone, in place of the preset's backbone"
    )
    audio_encoder: str | None = _setting(
        None, "Hub id or folder of a pretrained audio encoder, in place of the preset's audio encoder"
    )
    audio_windows: list[list[float]] | None = _setting(
        None,
        "seconds before and after the frame, for each window that the audio encoder receives; not for log-mel patches",
    )
    configuration: dict[str, Any] = _setting({}, "fields of the network's configuration")
    initialize_from: str | None = _setting(None, "checkpoint to initialize from; its heads may have other classes")
    reinitialize_mismatched: bool = _setting(False, "reinitialize weights of initialize_from that do not fit")
    freeze: tuple[str, ...] = _setting(("audio_encoder",), "parts that are not trained", choices=FREEZABLE)
    batch_norm: str = _setting(
        "local",
        "batch statistics of each process or of all (GPU), or running statistics in the backbone or everywhere",
        choices=("local", "synchronized", "frozen_backbone", "frozen"),
    )
    gradient_checkpointing: bool = _setting(
        False, "recompute activations instead of storing them; BatchNorm counts each batch twice"
    )
    compile: bool = _setting(False, "use torch.compile")
    mixed_precision: str = _setting("bf16", "precision of forward and backward", choices=("none", "bf16", "fp16"))

    # Optimization.
    optimizer: str = _setting("adamw", "optimizer", choices=("adam", "adamw"))
    learning_rate: float = _setting(2e-3, "peak learning rate, after warm-up", above=0.0)
    backbone_learning_rate: float | None = _setting(
        None, "peak learning rate of the visual backbone, unless it is frozen; null: same as the rest", above=0.0
    )
    weight_decay: float = _setting(0.02, "weight decay of the optimizer", minimum=0.0)
    schedule: str = _setting("cosine", "learning rate schedule after warm-up", choices=("constant", "cosine"))
    warmup_fraction: float = _setting(0.05, "fraction of the steps used for warm-up", minimum=0.0, maximum=1.0)
    average_decay: float | None = _setting(
        0.998,
        "decay per step of the weight average that is evaluated and saved; null: no average",
        minimum=0.0,
        maximum=0.99999,
    )
    gradient_clipping: float | None = _setting(1.0, "maximum norm of the gradient; null: no limit", above=0.0)
    batch_size: int = _setting(8, "clips per optimizer step, over all processes", minimum=1)
    gradient_accumulation: int = _setting(1, "batches into which each process divides its clips of a step", minimum=1)
    epochs: int = _setting(1, "passes over the data; generated clips need only one", minimum=1)
    seed: int = _setting(0, "seed of initial weights, order and augmentation", minimum=0, maximum=LARGEST_SEED)

    # Evaluation, checkpoints, logging.
    evaluations: int = _setting(10, "number of evaluations, evenly spaced; the last is at the end", minimum=1)
    evaluate_from: float = _setting(
        0.0, "fraction of the run before which evaluations are skipped", minimum=0.0, maximum=1.0
    )
    evaluation_batch_size: int = _setting(4, "clips per validation batch", minimum=1)
    early_stopping_patience: int | None = _setting(
        None, "evaluations without a better mIoU after which to stop; null: never", minimum=1
    )
    checkpoint_steps: int = _setting(500, "optimizer steps between checkpoints", affects_weights=False, minimum=1)
    save_total_limit: int | None = _setting(
        2, "number of checkpoints to keep; null: all", affects_weights=False, minimum=1
    )
    num_workers: int = _setting(
        1, "processes that prepare and load data, for each training process", affects_weights=False, minimum=0
    )
    trackers: tuple[str, ...] = _setting(
        ("tensorboard",), "where to log in addition to OUTPUT/log.jsonl", affects_weights=False
    )

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in fields(self):
            value = _convert(one.name, getattr(self, one.name), hints[one.name], one.metadata.get("choices", ()))
            object.__setattr__(self, one.name, value)
            _check_finite(one.name, value)
            _check_range(one.name, value, one.metadata)
        _check_network(self)
        _check_source(self)
        _check_negative_clips(self)
        _check_augmentation(self)
        _check_early_stopping(self)

    @property
    def paired_data(self) -> str | None:
        """The settings file of the paired data; None for other data."""
        return self.data if self.data is not None and is_paired_data(self.data) else None

    @property
    def audio_encoder_is_fixed(self) -> bool:
        """Whether the audio encoder keeps the weights that it has before any training."""
        return "audio_encoder" in self.freeze and not self.audio_pretraining_clips

    @property
    def row_settings(self) -> RowSettings:
        """Options for reading the rows of the dataset."""
        return RowSettings(**{one.name: getattr(self, one.name) for one in fields(RowSettings)})

    @property
    def training_augmentation(self) -> Augmentation | None:
        """Augmentation of training clips, or None."""
        return None if self.augmentation is None else Augmentation(**self.augmentation)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that YAML and JSON support."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def settings(self) -> dict[str, Any]:
        """Return the fields on which the weights depend, as values that YAML and JSON support."""
        values = self.to_dict()
        return {one.name: values[one.name] for one in fields(self) if one.metadata["affects_weights"]}


def _convert(name: str, value: Any, hint: Any, choices: Sequence[str]) -> Any:
    """Convert a value from YAML to the type of its field.

    Args:
        name: The field.
        value: The value. A float may be given as an integer or as the text "1e-4", which YAML does not read as a number.
        hint: The type of the field.
        choices: The allowed values of a string, for the error; YAML reads `no` as false.

    Raises:
        ValueError: If the value has another type.
    """
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    kind = get_origin(kinds[0]) or kinds[0]
    if kind is tuple and isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    if kind is dict and isinstance(value, dict):
        return _read_exponents(value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    words = {
        tuple: f"a list of strings, such as [{value if isinstance(value, str) else ''}]",
        list: "a list",
        dict: "key: value pairs",
        float: "a number",
        int: "an integer",
    }
    text = f"one of {', '.join(choices)}" if choices else "a string"
    expected = words.get(kind, {str: text, bool: "true or false"}.get(kind))
    or_null = " or null" if types.NoneType in kinds else ""
    raise ValueError(f"{name} is {value!r}, expected {expected}{or_null}.")


def _read_exponents(value: Any) -> Any:
    """Convert numbers with an exponent inside a YAML value, which YAML reads as text."""
    if isinstance(value, dict):
        return {key: _read_exponents(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_read_exponents(one) for one in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _check_range(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    """Check that a value is one of its choices or in its range."""
    if choices := rules.get("choices"):
        for one in value if isinstance(value, tuple) else (value,):
            if one not in choices:
                raise ValueError(f"{name} is {one!r}, expected one of {', '.join(choices)}.")
    if value is None or isinstance(value, tuple):
        return
    if "minimum" in rules and value < rules["minimum"]:
        raise ValueError(f"{name} is {value}, expected {rules['minimum']} or more.")
    if "maximum" in rules and value > rules["maximum"]:
        raise ValueError(f"{name} is {value}, expected {rules['maximum']} or less.")
    if "above" in rules and value <= rules["above"]:
        raise ValueError(f"{name} is {value}, expected a number above {rules['above']}.")


def _check_finite(name: str, value: Any) -> None:
    """Check that a value, and every value inside it, is neither infinite nor NaN."""
    if isinstance(value, dict):
        for key, one in value.items():
            _check_finite(f"{name}.{key}", one)
    elif isinstance(value, list | tuple):
        for one in value:
            _check_finite(name, one)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, expected a finite number.")


def _check_network(recipe: Recipe) -> None:
    """Check values of the network and its optimization that depend on each other."""
    fixed = [
        name for name in ("visual_backbone", "audio_encoder", "audio_windows") if getattr(recipe, name) is not None
    ]
    if recipe.initialize_from is not None and fixed:
        raise ValueError(
            f"initialize_from is set, so {' and '.join(fixed)} come from that checkpoint. Leave out one or the other."
        )
    if recipe.reinitialize_mismatched and recipe.initialize_from is None:
        raise ValueError(
            "reinitialize_mismatched is set without initialize_from. Set initialize_from to a checkpoint."
        )
    if determined := [name for name in DETERMINED if name in recipe.configuration]:
        name = determined[0]
        raise ValueError(f"configuration has {name}, which is determined by {DETERMINED[name]}. Leave it out.")
    _check_known(recipe.configuration, PCMANetConfig, "configuration")
    untrained = recipe.audio_encoder is None and recipe.initialize_from is None
    if recipe.data is not None and untrained and "audio_encoder" in recipe.freeze:
        raise ValueError(
            "freeze contains audio_encoder, but its weights are not given, so it would stay random. Set audio_encoder to a "
            "pretrained audio encoder (such as a folder that `python -m modeling_pcmanet.convert_pcmanet_to_hf` writes), set "
            "initialize_from to a checkpoint, or train it (freeze=[])."
        )
    if recipe.batch_size % recipe.gradient_accumulation:
        raise ValueError(
            f"batch_size is {recipe.batch_size} and gradient_accumulation is {recipe.gradient_accumulation}. "
            "Set batch_size to a multiple of gradient_accumulation."
        )


def _check_source(recipe: Recipe) -> None:
    """Check that the data settings apply to the source of the data."""
    if recipe.task == "folder" and recipe.data is None:
        raise ValueError("task is folder, but data is not set. Give the folder of your clips: --data FOLDER.")
    for_files = recipe.row_settings.given + ["on_error"] * (recipe.on_error != "raise")
    wrong = ["task"] * (recipe.task == "folder") + for_files
    if recipe.paired_data is not None and wrong:
        listed = ", ".join(f"{name}={getattr(recipe, name)}" for name in wrong)
        raise ValueError(f"data is the paired data {recipe.data}, to which {listed} does not apply. Leave it out.")
    if recipe.data is None and for_files:
        raise ValueError(
            f"data is not set, and Sounding Shapes has no {', '.join(for_files)}. Set data or leave it out."
        )
    if recipe.paired_clips and recipe.paired_data is None:
        raise ValueError(
            f"paired_clips needs paired data, but data is {recipe.data}. Set data to a YAML file of paired data."
        )
    shapes_only, generated_only = _given(recipe, SHAPES_ONLY), _given(recipe, GENERATED_ONLY)
    if recipe.data is not None and shapes_only:
        raise ValueError(
            f"{', '.join(shapes_only)} needs Sounding Shapes, but data is {recipe.data}. For audio that matches no visible "
            "object, set augmentation.replacement."
        )
    if recipe.data is not None and recipe.paired_data is None and generated_only:
        raise ValueError(
            f"{', '.join(generated_only)} needs generated clips, but data is {recipe.data}, whose table lists the clips. "
            "Leave it out."
        )


def _given(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Return which of these fields differ from their defaults."""
    defaults = {one.name: one.default for one in fields(recipe)}
    return [name for name in names if getattr(recipe, name) != defaults[name]]


def _check_negative_clips(recipe: Recipe) -> None:
    """Check the settings of Sounding Shapes that depend on each other."""
    if _given(recipe, ["negative_kinds"]) and not recipe.negative_fraction:
        raise ValueError(
            "negative_kinds is set, but negative_fraction is 0, so no clip is negative. Set both or neither of them."
        )
    if recipe.pair_audio and recipe.clips % 2:
        raise ValueError(
            f"clips is {recipe.clips}, but pair_audio uses every video twice. Set clips to an even number."
        )


def _check_early_stopping(recipe: Recipe) -> None:
    """Check that early stopping can end a run before its last evaluation."""
    patience, total = recipe.early_stopping_patience, recipe.evaluations
    evaluations = sum(number / total >= recipe.evaluate_from for number in range(1, total + 1))
    if patience is not None and patience + 2 > evaluations:
        raise ValueError(
            f"early_stopping_patience is {patience}, which cannot end a run of {evaluations} evaluations early. Set at least "
            f"{patience + 2} evaluations, or set early_stopping_patience to a lower number or to null."
        )


def _check_augmentation(recipe: Recipe) -> None:
    """Check the augmentation, and that nothing needs the audio that it changes."""
    _check_known(recipe.augmentation or {}, Augmentation, "augmentation")
    try:
        augmentation = recipe.training_augmentation
    except ValueError as error:
        raise ValueError(f"augmentation is {recipe.augmentation}: {error}") from error
    if recipe.audio_cache is not None and augmentation is not None and augmentation.changes_audio:
        raise ValueError(
            "audio_cache needs audio that does not change. Set augmentation.loudness, mixing and replacement to 0, or "
            "audio_cache to null."
        )
    if recipe.log_mel and augmentation is not None and augmentation.changes_audio:
        raise ValueError(
            "log_mel features are those of unchanged audio. Set augmentation.loudness, mixing and replacement to 0, or log_mel "
            "to false."
        )


def _check_known(values: Mapping[str, Any], kind: type, source: str) -> None:
    """Check that all keys are fields of a dataclass; the error suggests the closest one."""
    known = [one.name for one in fields(kind)]
    for key in values:
        if key not in known:
            raise ValueError(f"{source} has the unknown key {key!r}. {suggest(str(key), known)}")


def recipe_from_dict(values: Mapping[str, Any], source: str = "The recipe") -> Recipe:
    """Create a recipe from plain values.

    Args:
        values: Any of its fields.
        source: Its name in error messages.

    Raises:
        ValueError: If a key is unknown or a value is invalid.
    """
    _check_known(values, Recipe, source)
    try:
        return Recipe(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def read_recipe(path: str | Path | None, assignments: Sequence[str] = (), *, data: str | None = None) -> Recipe:
    """Read a recipe file and override some of its fields.

    Args:
        path: YAML file with any of the recipe's fields, or the name of an installed recipe; None for the defaults.
        assignments: `key=value` with a value as in YAML, `key.inner=value` for a nested field.
        data: Value of the field `data`, which takes precedence.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file does not contain key: value pairs, a key is unknown or a value is invalid.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(find_recipe(path).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} contains {type(values).__name__}, expected key: value pairs.")
    for assignment in assignments:
        _assign(values, assignment)
    if data is not None:
        values["data"] = data
    return recipe_from_dict(values, "The command line" if path is None else str(path))


def _assign(values: dict[str, Any], assignment: str) -> None:
    """Apply one `key=value` or `key.inner=value` to the values of a recipe."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ValueError(f"--set got {assignment!r}, expected key=value, such as learning_rate=1e-4.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {assignment!r}: the value is not valid YAML. Put it in quotes.") from error
    outer, dot, inner = key.partition(".")
    if not dot:
        values[key] = value
        return
    if not isinstance(values.get(outer) or {}, dict):
        raise ValueError(f"--set {assignment!r}: {outer} is {values[outer]!r}, which has no fields.")
    values[outer] = {**(values.get(outer) or {}), inner: value}


def describe_fields() -> str:
    """Return a line for every field with its help and default."""
    defaults = Recipe().to_dict()
    return "\n".join(
        f"  {one.name}: {one.metadata['help']} [{json.dumps(defaults[one.name])}]" for one in fields(Recipe)
    )
