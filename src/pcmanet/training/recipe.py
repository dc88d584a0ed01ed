"""What a training run is: one typed and checked set of values, read from a YAML file and from the command line.

    recipe = read_recipe("examples/recipes/s4.yaml", ["data=AVSBench", "preset=resnet50", "configuration.num_groups=4"])

The defaults stand here and nowhere else; a recipe file names what differs.
"""

import difflib
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from pcmanet.dataset_scripts.augmentation import Augmentation
from pcmanet.dataset_scripts.avsbench import NAMES
from pcmanet.dataset_scripts.avsbench.masks import LABEL_NOISE_RULES
from pcmanet.dataset_scripts.sounding_shapes.clips import NEGATIVE_KINDS


FREEZABLE = ("audio_encoder", "backbone")


class RecipeError(ValueError):
    """A recipe that cannot be used; the message says which value came, what was expected and what to do."""


def setting(default: Any, meaning: str, *, free: bool = False, **rules: Any) -> Any:
    """Declare a field of the recipe.

    Args:
        default: Its value unless a recipe names another.
        meaning: One line for `--help`.
        free: Whether the field may differ when a run is resumed, because it does not change the weights.
        **rules: `choices`; `least` and `most`, both allowed themselves; `above`, not allowed itself.
    """
    metadata = {"meaning": meaning, "free": free, **rules}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything on which the weights of a run depend, and how it is watched; each field says what it is.

    Raises:
        RecipeError: If a value has the wrong type, is out of its range, or does not go with another.
    """

    # Data.
    task: str = setting("ms3", "kind of data", choices=NAMES)
    data: str | None = setting(None, "folder of AVSBench or one's own clips; null: Sounding Shapes, made on the fly")
    label_noise: str = setting(
        "keep", "avss: what becomes of classes that the table does not name", choices=LABEL_NOISE_RULES
    )
    frames_per_second: float = setting(1.0, "folder: rate at which frames are taken, in hertz", above=0.0)
    log_mel_cache: str | None = setting(None, "folder that keeps log-mel features of sounds that never change")
    image_size: int = setting(224, "side of the square frames that the network sees, in pixels", least=32)
    centre_crop: bool = setting(False, "cut training frames to their middle square instead of squashing them")
    augmentation: dict[str, Any] | None = setting(
        None, "fields of dataset_scripts/augmentation.py that differ from its defaults; null: none at all"
    )
    clips: int = setting(16000, "Sounding Shapes: training clips", least=1)
    evaluation_clips: int = setting(64, "Sounding Shapes: validation clips", least=1)
    pair_sounds: bool = setting(False, "Sounding Shapes: show every picture twice, under different sounds")
    negative_fraction: float = setting(
        0.0, "Sounding Shapes: share of clips in which nothing sounds", least=0.0, most=0.5
    )
    negative_kinds: tuple[str, ...] = setting(
        NEGATIVE_KINDS, "Sounding Shapes: which sounds these have", choices=NEGATIVE_KINDS
    )
    listening_sounds: int = setting(
        0, "Sounding Shapes: sounds that teach the audio encoder before pictures come in", least=0
    )

    # Network.
    preset: str = setting("tiny", "network size", choices=("tiny", "resnet50", "pvt_v2_b5"))
    visual_backbone: str | None = setting(None, "Hub id or folder of pretrained weights, instead of the preset's size")
    audio_encoder: str | None = setting(None, "Hub id or folder of a pretrained VGGish")
    configuration: dict[str, Any] = setting({}, "fields of the network's configuration")
    initialize_from: str | None = setting(None, "checkpoint to start from; its heads may have other classes")
    reinitialize_mismatched: bool = setting(False, "start weights anew that do not fit in initialize_from")
    freeze: tuple[str, ...] = setting(("audio_encoder",), "parts that do not learn", choices=FREEZABLE)
    batch_norm: str = setting(
        "local",
        "statistics of each process, of all of them (GPU), or the running ones of the backbone or everywhere",
        choices=("local", "synchronized", "frozen_backbone", "frozen"),
    )
    gradient_checkpointing: bool = setting(
        False, "compute activations twice instead of keeping them; BatchNorm counts each batch twice"
    )
    compile: bool = setting(False, "torch.compile")
    mixed_precision: str = setting("bf16", "of forward and backward", choices=("none", "bf16", "fp16"))

    # Optimization.
    optimizer: str = setting("adamw", "which", choices=("adam", "adamw"))
    learning_rate: float = setting(2e-3, "peak, after warm-up", above=0.0)
    backbone_learning_rate: float | None = setting(None, "of the visual backbone; null: as the rest", above=0.0)
    weight_decay: float = setting(0.02, "of the optimizer", least=0.0)
    schedule: str = setting("cosine", "after warm-up", choices=("constant", "cosine"))
    warmup_fraction: float = setting(0.05, "share of the steps in which the learning rate rises", least=0.0, most=1.0)
    average_decay: float | None = setting(
        0.998, "per step, of the weight average that is evaluated and saved; null: none", least=0.0, most=0.99999
    )
    gradient_clipping: float | None = setting(1.0, "largest norm of the gradient; null: any", above=0.0)
    batch_size: int = setting(8, "clips per optimizer step, over all processes", least=1)
    gradient_accumulation: int = setting(1, "parts in which each process goes through its share of a step", least=1)
    epochs: int = setting(1, "passes over the data; Sounding Shapes needs only one", least=1)
    seed: int = setting(0, "of initial weights, order and augmentation", least=0)

    # Evaluations, checkpoints, watching.
    evaluations: int = setting(10, "how often to evaluate, evenly spaced; the last one is at the end", least=1)
    evaluate_from: float = setting(0.0, "share of the run before which evaluations are left out", least=0.0, most=1.0)
    evaluation_batch_size: int = setting(4, "clips per batch of validation", least=1)
    early_stopping: int | None = setting(None, "evaluations without a better mIoU after which to stop", least=1)
    checkpoint_steps: int = setting(500, "optimizer steps between checkpoints", free=True, least=1)
    save_total_limit: int | None = setting(2, "how many checkpoints are kept; null: all", free=True, least=1)
    num_workers: int = setting(1, "processes that make clips, for each training process", free=True, least=0)
    trackers: tuple[str, ...] = setting(("tensorboard",), "where figures go besides OUTPUT/log.jsonl", free=True)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in fields(self):
            value = convert(one.name, getattr(self, one.name), hints[one.name])
            object.__setattr__(self, one.name, value)
            _check_range(one.name, value, one.metadata)
        _check_network(self)
        _check_data(self)

    @property
    def training_augmentation(self) -> Augmentation | None:
        """What changes training clips, or None."""
        return None if self.augmentation is None else Augmentation(**self.augmentation)

    @property
    def binary(self) -> bool:
        """Whether Sounding Shapes of this task only tell sounding from silent."""
        return self.task != "avss"

    def to_dict(self) -> dict[str, Any]:
        """The fields as YAML and JSON write them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Tell in which fields on which the weights depend this recipe differs from one as `to_dict` gives it."""
        mine = self.to_dict()
        bound = [one.name for one in fields(self) if not one.metadata["free"]]
        return [
            f"{name} is {mine[name]!r}, was {other.get(name)!r}" for name in bound if mine[name] != other.get(name)
        ]


def convert(name: str, value: Any, hint: Any) -> Any:
    """Bring a value from YAML to the type of its field, without guessing.

    Args:
        name: The field.
        value: What came. A float may come as a whole number or as the text "1e-4", which YAML takes for no number.
        hint: The field's type.

    Returns:
        The value.

    Raises:
        RecipeError: If it has another type.
    """
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    kind = get_origin(kinds[0]) or kinds[0]
    if kind is tuple and isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is kind:
        return dict(value) if kind is dict else value
    words = {tuple: "a list of words", dict: "key: value pairs", float: "a number", int: "a whole number"}
    expected = words.get(kind, {str: "a word", bool: "true or false"}.get(kind))
    nothing = " or null" if types.NoneType in kinds else ""
    raise RecipeError(f"{name} is {value!r}; expected {expected}{nothing}.")


def _check_range(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    """Refuse a value that is none of its choices or out of its range."""
    if choices := rules.get("choices"):
        for one in value if isinstance(value, tuple) else (value,):
            if one not in choices:
                raise RecipeError(f"{name} is {one!r}; choose out of {', '.join(choices)}.")
    if value is None:
        return
    # NaN fails every comparison, so each asks for what is right.
    if "least" in rules and not value >= rules["least"]:
        raise RecipeError(f"{name} is {value}; it must be {rules['least']} or more.")
    if "most" in rules and not value <= rules["most"]:
        raise RecipeError(f"{name} is {value}; it must be {rules['most']} or less.")
    if "above" in rules and not rules["above"] < value < float("inf"):
        raise RecipeError(f"{name} is {value}; it must be a number above {rules['above']}.")


def _check_network(recipe: Recipe) -> None:
    """Refuse values about the network and its optimization that do not go with each other."""
    if recipe.visual_backbone is not None and recipe.audio_encoder is None:
        raise RecipeError("visual_backbone goes with audio_encoder: the network needs both; name a VGGish as well.")
    if recipe.initialize_from is not None and recipe.visual_backbone is not None:
        raise RecipeError("initialize_from and visual_backbone are both given; a run starts from one of them.")
    if recipe.reinitialize_mismatched and recipe.initialize_from is None:
        raise RecipeError("reinitialize_mismatched is about initialize_from, which is null; name a checkpoint.")
    unheard = recipe.audio_encoder is None and recipe.initialize_from is None
    if recipe.data is not None and unheard and "audio_encoder" in recipe.freeze:
        raise RecipeError(
            "freeze has audio_encoder, but nothing says where its weights come from: it would stay random for ever. Give a "
            "pretrained VGGish (audio_encoder=FOLDER, as `python -m modeling_pcmanet.convert_pcmanet_to_hf` writes it) or a "
            "checkpoint (initialize_from), or let it learn (freeze=[])."
        )
    if recipe.batch_size % recipe.gradient_accumulation:
        raise RecipeError(
            f"batch_size is {recipe.batch_size} and gradient_accumulation {recipe.gradient_accumulation}; "
            "the first must be a multiple of the second."
        )


def _check_data(recipe: Recipe) -> None:
    """Refuse values about the data that do not go with each other."""
    if recipe.task == "folder" and recipe.data is None:
        raise RecipeError("task is folder, but data is null; name the folder of your clips: --set data=FOLDER.")
    shapes_only = [name for name in ("pair_sounds", "negative_fraction", "listening_sounds") if getattr(recipe, name)]
    if recipe.data is not None and shapes_only:
        raise RecipeError(
            f"{', '.join(shapes_only)} is for Sounding Shapes, but data is {recipe.data}; for sounds that belong to "
            "nothing in the picture set augmentation.replacement."
        )
    _require_known(recipe.augmentation or {}, Augmentation, "augmentation")
    try:
        augmentation = recipe.training_augmentation
    except ValueError as error:
        raise RecipeError(f"augmentation is {recipe.augmentation}: {error}") from error
    if recipe.log_mel_cache is not None and augmentation is not None and augmentation.changes_sound:
        raise RecipeError(
            "log_mel_cache keeps features of sounds that stay as they are; set augmentation.loudness, mixing and "
            "replacement to 0, or leave the cache out."
        )


def _require_known(values: Mapping[str, Any], kind: type, source: str) -> None:
    """Refuse a key that is no field of a dataclass, naming the one that may have been meant."""
    known = [one.name for one in fields(kind)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
            raise RecipeError(f"{source} has the unknown key {key!r}; {remedy}")


def recipe_from_dict(values: Mapping[str, Any], source: str = "the recipe") -> Recipe:
    """Make a recipe from plain values.

    Args:
        values: Any of its fields.
        source: What error messages call it.

    Raises:
        RecipeError: If a key is unknown or a value cannot be used.
    """
    _require_known(values, Recipe, source)
    try:
        return Recipe(**values)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from error


def read_recipe(path: str | Path | None, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and change fields of it.

    Args:
        path: YAML file with any of the recipe's fields; None for the defaults.
        assignments: `key=value` with a value as in YAML, `key.inner=value` for a field of a field.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: If there is no such file.
        RecipeError: If the file is no mapping, a key is unknown or a value cannot be used.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except yaml.YAMLError as error:
            raise RecipeError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds {type(values).__name__}; expected key: value pairs.")
    for assignment in assignments:
        _assign(values, assignment)
    return recipe_from_dict(values, "the command line" if path is None else str(path))


def _assign(values: dict[str, Any], assignment: str) -> None:
    """Put one `key=value` or `key.inner=value` into the values of a recipe."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set got {assignment!r}; expected key=value, such as learning_rate=1e-4.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {assignment!r}: the value is no YAML; put it in quotes.") from error
    outer, dot, inner = key.partition(".")
    if not dot:
        values[key] = value
        return
    if not isinstance(values.get(outer) or {}, dict):
        raise RecipeError(f"--set {assignment!r}: {outer} is {values[outer]!r}, which has no fields.")
    values[outer] = {**(values.get(outer) or {}), inner: value}


def describe_fields() -> str:
    """List the fields with their meaning and default, for `--help`."""
    defaults = Recipe().to_dict()
    lines = [f"  {one.name}: {one.metadata['meaning']} [{json.dumps(defaults[one.name])}]" for one in fields(Recipe)]
    return "fields of a recipe [default]:\n" + "\n".join(lines)
