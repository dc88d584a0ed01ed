"""Recipes: invalid values and their messages, the command line, and the published settings."""

import re
from pathlib import Path

import pytest
import yaml
from training_runs import RECIPES

from pcmanet.files import find_recipe
from pcmanet.training.recipe import Recipe, describe_fields, read_recipe, recipe_from_dict


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lerning_rate": 1e-3}, "unknown key 'lerning_rate'. Did you mean 'learning_rate'?"),
        ({"flavor": 1}, "unknown key 'flavor'. Expected one of task, data,"),
        ({"task": "s5"}, "task is 's5', expected one of s4, ms3, avss, folder."),
        ({"batch_size": "many"}, "batch_size is 'many', expected an integer."),
        ({"batch_size": 2.5}, "batch_size is 2.5, expected an integer."),
        ({"epochs": True}, "epochs is True, expected an integer."),
        ({"pair_audio": 1}, "pair_audio is 1, expected true or false."),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', expected a number."),
        ({"learning_rate": 0}, "learning_rate is 0.0, expected a number above 0.0."),
        ({"learning_rate": float("nan")}, "learning_rate is nan, expected a finite number."),
        ({"learning_rate": "-inf"}, "learning_rate is -inf, expected a finite number."),
        ({"weight_decay": float("inf")}, "weight_decay is inf, expected a finite number."),
        ({"weight_decay": float("nan")}, "weight_decay is nan, expected a finite number."),
        ({"weight_decay": -1}, "weight_decay is -1.0, expected 0.0 or more."),
        ({"audio_windows": [[1.0, float("inf")]]}, "audio_windows is inf, expected a finite number."),
        (
            {"configuration": {"backbone_config": {"drop_path_rate": float("nan")}}},
            "configuration.backbone_config.drop_path_rate is nan, expected a finite number.",
        ),
        ({"backbone_learning_rate": "slow"}, "backbone_learning_rate is 'slow', expected a number or null."),
        ({"negative_fraction": 0.6}, "negative_fraction is 0.6, expected 0.5 or less."),
        (
            {"negative_kinds": ["whistle"]},
            "negative_kinds is 'whistle', expected one of silence, noise, absent_class.",
        ),
        ({"freeze": "backbone"}, "freeze is 'backbone', expected a list of strings, such as [backbone]."),
        ({"mixed_precision": False}, "mixed_precision is False, expected one of none, bf16, fp16."),
        ({"seed": 2**32}, "seed is 4294967296, expected 4294967295 or less."),
        ({"data": 3}, "data is 3, expected a string or null."),
        ({"configuration": ["hidden_size"]}, "configuration is ['hidden_size'], expected key: value pairs."),
        (
            {"configuration": {"num_group": 4}, "initialize_from": "x"},
            "unknown key 'num_group'. Did you mean 'num_groups'?",
        ),
        ({"configuration": {"freeze_audio_encoder": False}}, "freeze_audio_encoder, which is determined by freeze."),
        ({"configuration": {"num_labels": 3}}, "configuration has num_labels, which is determined by the data."),
        ({"task": "folder"}, "task is folder, but data is not set. Give the folder of your clips: --data FOLDER."),
        (
            {"initialize_from": "x", "visual_backbone": "y", "audio_encoder": "z"},
            "visual_backbone and audio_encoder come from that checkpoint",
        ),
        ({"reinitialize_mismatched": True}, "reinitialize_mismatched is set without initialize_from"),
        ({"data": "x"}, "freeze contains audio_encoder, but its weights are not given"),
        ({"batch_size": 4, "gradient_accumulation": 3}, "Set batch_size to a multiple of gradient_accumulation"),
        ({"augmentation": {"flips": 2}}, "augmentation is {'flips': 2}: Expected a finite number"),
        ({"augmentation": {"flip": 1}}, "augmentation has the unknown key 'flip'. Did you mean 'flips'?"),
        ({"augmentation": {"spins": 1}}, "augmentation has the unknown key 'spins'. Expected one of flips, crops,"),
        ({"augmentation": {}, "audio_cache": "x"}, "Set augmentation.loudness, mixing and replacement to 0"),
        (
            {"augmentation": {}, "log_mel": True, "data": "x", "freeze": []},
            "log_mel features are those of unchanged audio",
        ),
        ({"subsets": ["v3"]}, "subsets is 'v3', expected one of v1s, v1m, v2."),
        ({"missing_audio": "noise"}, "missing_audio is 'noise', expected one of raise, silence."),
        ({"on_error": "ignore"}, "on_error is 'ignore', expected one of raise, skip."),
        ({"binary": True, "on_error": "skip"}, "Sounding Shapes has no binary, on_error"),
        *(
            ({"data": "x", "freeze": [], name: value}, f"{name} needs generated clips, but data is x")
            for name, value in (("clips", 10), ("evaluation_clips", 10))
        ),
        *(
            ({"data": data, "freeze": [], name: value}, f"{name} needs Sounding Shapes, but data is {data}")
            for data in ("x", "x.yaml")
            for name, value in (
                ("pair_audio", True),
                ("negative_fraction", 0.1),
                ("negative_kinds", ["noise"]),
                ("audio_pretraining_clips", 9),
            )
        ),
        ({"negative_kinds": ["noise"]}, "negative_kinds is set, but negative_fraction is 0"),
        (
            {"pair_audio": True, "clips": 15},
            "clips is 15, but pair_audio uses every video twice. Set clips to an even",
        ),
        (
            {"early_stopping_patience": 3, "evaluations": 4},
            "early_stopping_patience is 3, which cannot end a run of 4 evaluations early. Set at least 5 evaluations",
        ),
        (
            {"early_stopping_patience": 3, "evaluations": 10, "evaluate_from": 0.7},
            "early_stopping_patience is 3, which cannot end a run of 4 evaluations early",
        ),
    ],
)
def test_invalid_values_are_refused(values, message):
    with pytest.raises(ValueError) as caught:
        recipe_from_dict(values, "my.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("my.yaml")


def test_options_that_can_apply_are_accepted():
    assert Recipe(early_stopping_patience=3, evaluations=5).early_stopping_patience == 3
    assert Recipe(early_stopping_patience=3, evaluations=10, evaluate_from=0.6).early_stopping_patience == 3
    assert Recipe(data="x.yaml", freeze=(), clips=10, evaluation_clips=10).clips == 10


def test_values_are_converted_to_the_types_of_their_fields():
    # YAML reads 1e-4 as text and 1 as an integer, and has no tuples.
    recipe = recipe_from_dict({"learning_rate": "1e-4", "weight_decay": 1, "freeze": [], "average_decay": None})
    assert (recipe.learning_rate, recipe.weight_decay, recipe.freeze, recipe.average_decay) == (1e-4, 1.0, (), None)
    assert isinstance(recipe.weight_decay, float)
    text = {
        "augmentation": {"flips": "1e-1"},
        "configuration": {"stage_loss_weights": ["1E0", 2, 1.5, 1], "neck": "1e"},
    }
    recipe = recipe_from_dict(text)
    assert recipe.training_augmentation.flips == 0.1
    assert recipe.configuration == {"stage_loss_weights": [1.0, 2, 1.5, 1], "neck": "1e"}


def test_command_line_changes_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("clips: 10\nconfiguration:\n  num_groups: 2\n")
    changes = ["clips=20", "configuration.hidden_size=32", "augmentation.flips=1.0", "freeze=[backbone]", "data=null"]
    recipe = read_recipe(path, changes)
    assert recipe.clips == 20
    assert recipe.configuration == {"num_groups": 2, "hidden_size": 32}
    assert recipe.training_augmentation.flips == 1.0
    assert recipe.freeze == ("backbone",)
    assert read_recipe(None, ["task=folder", "data=other", "freeze=[]"], data="clips").data == "clips"
    assert read_recipe(None, []) == Recipe()


@pytest.mark.parametrize(
    ("text", "assignment", "message"),
    [
        ("- 1\n", "clips=2", "contains list, expected key: value pairs."),
        ("clips: [", "clips=2", "is not valid YAML"),
        ("", "clips", "--set got 'clips', expected key=value"),
        ("", "clips=[", "the value is not valid YAML"),
        ("clips: 3", "clips.inner=2", "clips is 3, which has no fields."),
    ],
)
def test_invalid_files_and_assignments_are_refused(text, assignment, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_recipe(path, [assignment])
    assert message in str(caught.value)


def test_recipe_is_the_same_after_a_round_trip_through_yaml():
    recipe = recipe_from_dict({"freeze": ["audio_encoder", "backbone"], "augmentation": {"flips": 0.0}})
    assert recipe_from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


def test_settings_are_the_fields_that_change_the_weights():
    assert Recipe(num_workers=4, checkpoint_steps=20, trackers=()).settings() == Recipe().settings()
    other = Recipe(learning_rate=1e-3, seed=5).settings()
    assert {name for name, value in other.items() if value != Recipe().settings()[name]} == {"learning_rate", "seed"}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_file_is_valid(path: Path):
    paired = str(RECIPES.parent / "paired_data" / "real_world.yaml")
    changes = {
        "own_folder": ["data=my_clips", "audio_encoder=vggish"],
        "real_world": [f"data={paired}", "audio_encoder=vggish"],
        "real_world_second": [f"data={paired}", "initialize_from=runs/real_world/last"],
    }
    recipe = read_recipe(path, changes.get(path.stem, []))
    assert recipe.seed in (0, 1, 2, 10, 123)
    assert f"pcmanet train --recipe {path.stem} " in path.read_text()


@pytest.mark.parametrize(
    ("task", "epochs", "center_crop", "evaluate_from"),
    [("s4", 15, False, 0.0), ("ms3", 30, False, 0.0), ("avss", 60, True, 0.25)],
)
def test_published_recipes_have_the_published_settings(task, epochs, center_crop, evaluate_from):
    recipe = read_recipe(RECIPES / f"{task}.yaml")
    assert (recipe.task, recipe.epochs, recipe.center_crop) == (task, epochs, center_crop)
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("adam", 1e-4, 0.0)
    assert (recipe.schedule, recipe.warmup_fraction, recipe.backbone_learning_rate) == ("constant", 0.0, None)
    assert (recipe.batch_size, recipe.seed, recipe.image_size, recipe.preset) == (4, 123, 224, "pvt_v2_b5")
    assert (recipe.augmentation, recipe.average_decay, recipe.gradient_clipping) == (None, None, None)
    assert (recipe.freeze, recipe.evaluate_from) == (("audio_encoder",), evaluate_from)
    # Validation after every epoch; AVSS after every second one.
    assert recipe.evaluations == epochs // (2 if task == "avss" else 1)


ROOT = RECIPES.parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "docs/reference/recipes.md", "examples/train_pcmanet.py")),
    *sorted(RECIPES.glob("*.yaml")),
    *sorted((ROOT / "examples" / "accelerate_configs").glob("*.yaml")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_documented_command_is_valid(page):
    text = re.sub(r" *\\\n#? *", " ", page.read_text())
    for name, value in re.findall(r"^ *(\w+)=\"(.*)\"$", text, flags=re.MULTILINE):
        text = text.replace(f"${name}", value)
    commands = re.findall(r"^.*pcmanet train .*--recipe (?!\.\.\.).*$", text, flags=re.MULTILINE)
    assert commands
    for command in commands:
        path = find_recipe(re.search(r"--recipe (\S+)", command)[1])
        given = re.search(r"--set ((?:\"?[\w.]+=\S+ ?)+)", command)
        data = re.search(r"--data (\S+)", command)
        assignments = [word.strip('"') for word in given[1].split()] if given else []
        recipe = read_recipe(path, assignments, data=data[1] if data else None)
        if path.stem in ("s4", "ms3", "avss", "own_folder"):
            pretrained = recipe.initialize_from or (recipe.visual_backbone and recipe.audio_encoder)
            assert recipe.data and pretrained, command
            assert recipe.initialize_from or recipe.preset != "tiny", "a decoder of 64 channels for a large backbone"
        processes = re.search(r"--num_processes (\d+)", command)
        assert recipe.batch_size % int(processes[1] if processes else 1) == 0, command


def test_description_lists_every_field_with_its_default():
    text = describe_fields()
    assert "learning_rate: peak learning rate, after warm-up [0.002]" in text
    assert 'freeze: parts that are not trained [["audio_encoder"]]' in text
