"""Where a network starts, what of it learns, and its optimizer."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from training_runs import TINY_RUN, TRAINED_NETWORK

from modeling_pcmanet import PCMANetForAudioVisualSegmentation
from pcmanet.training.networks import (
    MismatchError,
    build_network,
    build_optimizer,
    build_processor,
    learning_rate_factor,
    load_checkpoint,
    set_learning_rate,
    set_training_mode,
    synchronize_norms,
)
from pcmanet.training.recipe import Recipe, RecipeError


def recipe(**changes) -> Recipe:
    return Recipe(**{**TINY_RUN, **changes})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    build_network(recipe(), ["sounding"]).save_pretrained(folder)
    return str(folder)


def test_learning_rate_rises_then_falls_to_zero():
    factors = [learning_rate_factor(step, 100, "cosine", 0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)


def test_a_constant_learning_rate_is_constant_from_the_first_step():
    assert {learning_rate_factor(step, 10, "constant", 0.0) for step in range(10)} == {1.0}
    assert [learning_rate_factor(step, 10, "constant", 0.2) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_the_optimizer_has_what_learns_and_nothing_else():
    network = build_network(recipe(), ["sounding"])
    optimizer = build_optimizer(network, recipe(optimizer="adam", weight_decay=0.0))
    assert type(optimizer) is torch.optim.Adam
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert held == {
        id(weight) for name, weight in network.named_parameters() if not name.startswith("model.audio_encoder.")
    }


def test_the_backbone_may_learn_at_its_own_pace():
    network = build_network(recipe(), ["sounding"])
    mine = recipe(learning_rate=1e-2, backbone_learning_rate=1e-3, warmup_fraction=0.5)
    optimizer = build_optimizer(network, mine)
    assert type(optimizer) is torch.optim.AdamW
    assert {id(weight) for weight in optimizer.param_groups[1]["params"]} == {
        id(weight) for weight in network.model.backbone.parameters()
    }
    set_learning_rate(optimizer, mine, 0, 4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-3, 5e-4])


def norms_in_training(network: nn.Module) -> set[str]:
    modules = network.named_modules()
    found = {name.split(".")[1] for name, part in modules if isinstance(part, nn.BatchNorm2d) and part.training}
    return found & {"backbone", "neck", "stages"}


@pytest.mark.parametrize(
    ("changes", "training"),
    [
        ({}, {"backbone", "neck", "stages"}),
        ({"batch_norm": "frozen_backbone"}, {"neck", "stages"}),
        ({"freeze": ["audio_encoder", "backbone"]}, {"neck", "stages"}),
        ({"batch_norm": "frozen"}, set()),
    ],
)
def test_norms_keep_their_statistics_where_the_recipe_says_so(changes, training):
    network = build_network(recipe(**changes), ["sounding"])
    set_training_mode(network, recipe(**changes))
    assert norms_in_training(network) == training
    assert network.training and not network.model.audio_encoder.training


@pytest.mark.parametrize("freeze", [[], ["audio_encoder"], ["backbone"], ["audio_encoder", "backbone"]])
def test_what_is_frozen_does_not_learn(freeze):
    network = build_network(recipe(freeze=freeze), ["sounding"])
    for part in ("audio_encoder", "backbone"):
        learns = {weight.requires_grad for weight in getattr(network.model, part).parameters()}
        assert learns == {part not in freeze}


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for switched in (False, True):
        torch.manual_seed(0)
        network = build_network(recipe(gradient_checkpointing=switched), ["sounding"]).train()
        assert any(getattr(part, "gradient_checkpointing", False) for part in network.modules()) is switched
        pictures = torch.randn(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        network(pictures, audio_embeds=torch.ones(1, 2, 10), labels=torch.ones(1, 2, 32, 32).long()).loss.backward()
        gradients.append(torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None]))
    assert torch.equal(*gradients)


def test_norms_over_processes_need_gpus():
    network = build_network(recipe(), ["sounding"])
    alone = Accelerator(cpu=True)
    assert synchronize_norms(network, recipe(batch_norm="synchronized"), alone) is network

    class Two:
        num_processes, device = 2, torch.device("cpu")

    with pytest.raises(RecipeError, match="which torch has for GPUs only"):
        synchronize_norms(network, recipe(batch_norm="synchronized"), Two())
    Two.device = torch.device("cuda")
    converted = synchronize_norms(network, recipe(batch_norm="synchronized"), Two())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())


def test_a_checkpoint_with_other_heads_is_a_start(checkpoint):
    settings = {"initialize_from": checkpoint, "configuration": {}}
    network = build_network(recipe(**settings, task="avss"), ["background", "bell", "horn"])
    assert network.config.num_labels == 3
    before = PCMANetForAudioVisualSegmentation.from_pretrained(checkpoint).state_dict()
    after = network.state_dict()
    differing = {name for name in after if not torch.equal(after[name], before[name])}
    # Only the last convolution of each stage's head depends on the number of classes.
    assert differing == {f"model.stages.{stage}.head.3.{kind}" for stage in range(4) for kind in ("weight", "bias")}


def test_a_checkpoint_that_does_not_fit_is_refused_with_its_keys(checkpoint):
    other = {"hidden_size": 32}
    with pytest.raises(MismatchError) as caught:
        load_checkpoint(checkpoint, other)
    assert "model.audio_projection.weight is (16, 10), expected (32, 10)" in str(caught.value)
    # The Trainer's script loads as well; only a recipe has this field.
    assert "reinitialize_mismatched" not in str(caught.value)
    with pytest.raises(MismatchError, match="--set reinitialize_mismatched=true"):
        build_network(recipe(initialize_from=checkpoint, configuration=other), ["sounding"])
    network = load_checkpoint(checkpoint, other, reinitialize_mismatched=True)
    assert network.model.audio_projection.weight.shape == (32, 10)
    assert network.model.audio_projection.weight.std() > 0


@pytest.mark.parametrize("start", ["preset", "visual_backbone"])
def test_an_audio_encoder_that_is_not_all_there_is_refused(start, checkpoint, tmp_path):
    settings = {"audio_encoder": checkpoint}
    if start == "visual_backbone":
        build_network(recipe(), ["sounding"]).model.backbone.save_pretrained(tmp_path)
        settings |= {"visual_backbone": str(tmp_path), "configuration": {}}
    with pytest.raises(ValueError, match=f"{checkpoint} lacks weights of a VGGishModel, such as embeddings"):
        build_network(recipe(**settings), ["sounding"])


def test_there_must_be_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="Give a folder, or a Hub id as owner/name"):
        load_checkpoint(str(tmp_path / "nowhere"), {})


@pytest.mark.parametrize(
    "task, data, rule", [("avss", "x", "zeros"), ("avss", None, "repeat_last"), ("s4", "x", "repeat_last")]
)
def test_missing_sound_is_filled_as_published(task, data, rule):
    settings = {"task": task, "data": data, "negative_fraction": 0.0, "freeze": []}
    processor = build_processor(recipe(**settings))
    assert processor.feature_extractor.short_clip == rule
    assert processor.image_processor.size == {"height": 32, "width": 32}
    assert TRAINED_NETWORK["hidden_size"] == 16
