"""Where a network starts, what of it learns, and its optimizer. The lesson before the pictures: the audio encoder learns, and what it was allowed before it is allowed after. The averaged weights: by hand, without average, and through a checkpoint."""

import pytest
import torch
from accelerate import Accelerator
from tiny_model import tiny_model
from torch import nn
from torch.utils.data import DataLoader
from training_runs import TINY_RUN, TRAINED_NETWORK

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetForAudioVisualSegmentation, VGGishConfig, VGGishModel
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundMixtures
from pcmanet.training.network import (
    MismatchError,
    SoundCollator,
    WeightAverage,
    build_network,
    build_optimizer,
    build_processor,
    learning_rate_factor,
    load_checkpoint,
    pretrain_audio_encoder,
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


@pytest.mark.parametrize("frozen", [True, False])
def test_the_audio_encoder_changes_and_stays_as_frozen_as_it_was(frozen):
    torch.manual_seed(0)
    encoder = VGGishModel(VGGishConfig(block_channels=[[4], [4], [4]], hidden_size=8, embedding_size=10))
    encoder.requires_grad_(not frozen)
    before = [weight.clone() for weight in encoder.parameters()]
    recipe = Recipe(**TINY_RUN, listening_sounds=5)
    pretrain_audio_encoder(encoder, PCMANetFeatureExtractor(), recipe, torch.device("cpu"), quiet=True)
    assert all(weight.requires_grad is not frozen for weight in encoder.parameters())
    assert all(weight.grad is None for weight in encoder.parameters())
    assert any(not torch.equal(weight, old) for weight, old in zip(encoder.parameters(), before, strict=True))


@pytest.mark.slow
def test_workers_need_not_be_forked():
    """As on macOS, and everywhere from Python 3.14 on."""
    loader = DataLoader(
        SoundMixtures(2, seed=0),
        batch_size=2,
        collate_fn=SoundCollator(PCMANetFeatureExtractor()),
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    ((patches, heard),) = loader
    assert len(patches) == len(heard) > 0


def test_the_same_seed_teaches_the_same():
    lessons = []
    for _ in range(2):
        torch.manual_seed(0)
        encoder = VGGishModel(VGGishConfig(block_channels=[[4], [4], [4]], hidden_size=8, embedding_size=10))
        recipe = Recipe(**TINY_RUN, listening_sounds=5)
        pretrain_audio_encoder(encoder, PCMANetFeatureExtractor(), recipe, torch.device("cpu"), quiet=True)
        lessons.append(torch.cat([weight.detach().flatten() for weight in encoder.parameters()]))
    assert torch.equal(*lessons)


def network(value: float) -> nn.Module:
    module = nn.BatchNorm1d(1)
    nn.init.constant_(module.weight, value)
    module.running_mean.fill_(10 * value)
    module.num_batches_tracked.fill_(int(value))
    return module


def test_the_first_step_replaces_and_the_others_blend():
    average = WeightAverage(network(100.0), decay=0.1)
    for value in (1.0, 3.0, 8.0):
        average.update(network(value))
    second = 1 / 11 * 1 + 10 / 11 * 3
    expected = 0.1 * second + 0.9 * 8
    assert average.network.weight.item() == pytest.approx(expected)
    assert average.network.running_mean.item() == pytest.approx(10 * expected)
    assert average.network.num_batches_tracked.item() == 8  # whole numbers are taken over


def test_a_short_run_is_not_ruled_by_its_first_step():
    average = WeightAverage(network(0.0), decay=0.998)
    average.update(network(100.0))
    for _ in range(49):
        average.update(network(1.0))
    assert average.network.weight.item() == pytest.approx(1.0, abs=1e-3)


def test_without_average_the_weights_are_taken_when_they_are_asked_for():
    average = WeightAverage(network(1.0), decay=None)
    average.update(network(2.0))
    assert average.network.weight.item() == 1.0
    assert average.synchronized(network(3.0), Accelerator(cpu=True)).weight.item() == 3.0


def test_the_copy_is_its_own_frozen_and_in_evaluation():
    model = tiny_model().train()
    average = WeightAverage(model, decay=0.9)
    assert model.training and not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    average.update(model)
    with torch.no_grad():
        next(model.model.neck.parameters()).add_(1.0)
    kept = average.network.model.neck.state_dict()
    changed = model.model.neck.state_dict()
    assert [name for name in kept if not torch.equal(kept[name], changed[name])] == ["0.0.weight"]


@pytest.mark.parametrize("decay", [0.05, None])
def test_a_state_goes_on_where_it_was_taken(decay):
    first = WeightAverage(network(1.0), decay)
    first.update(network(1.0))
    second = WeightAverage(network(7.0), decay)
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update(network(5.0))
    found = [average.synchronized(network(5.0), Accelerator(cpu=True)).weight.item() for average in (first, second)]
    assert found[0] == found[1] == pytest.approx(4.8 if decay else 5.0)
