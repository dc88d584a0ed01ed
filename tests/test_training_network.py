"""Initial weights, frozen parts, BatchNorm, optimizer, pretraining of the audio encoder, and the weight average."""

from functools import partial

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny_model import tiny_model
from torch import nn
from torch.utils.data import DataLoader
from training_runs import TINY_RUN, TRAINED_NETWORK
from transformers.image_utils import IMAGENET_DEFAULT_MEAN

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetImageProcessor, VGGishConfig, VGGishModel
from modeling_pcmanet.configuration_encoders import EFFICIENTNET_LITE_0
from pcmanet.dataset_scripts.sounding_shapes.sound import SoundMixtures
from pcmanet.training.network import (
    WeightAverage,
    _collate_audio,
    build_network,
    build_optimizer,
    build_processor,
    learning_rate_factor,
    load_checkpoint,
    prepare_for_training,
    pretrain_audio_encoder,
    set_learning_rate,
)
from pcmanet.training.recipe import Recipe


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


def test_constant_learning_rate_is_constant_from_the_first_step():
    assert {learning_rate_factor(step, 10, "constant", 0.0) for step in range(10)} == {1.0}
    assert [learning_rate_factor(step, 10, "constant", 0.2) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_optimizer_has_the_trainable_weights_only():
    network = build_network(recipe(), ["sounding"])
    optimizer = build_optimizer(network, recipe(optimizer="adam", weight_decay=0.0))
    assert type(optimizer) is torch.optim.Adam
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert held == {
        id(weight) for name, weight in network.named_parameters() if not name.startswith("model.audio_encoder.")
    }


def test_backbone_learning_rate():
    network = build_network(recipe(), ["sounding"])
    separate = recipe(learning_rate=1e-2, backbone_learning_rate=1e-3, warmup_fraction=0.5)
    optimizer = build_optimizer(network, separate)
    assert type(optimizer) is torch.optim.AdamW
    assert {id(weight) for weight in optimizer.param_groups[1]["params"]} == {
        id(weight) for weight in network.model.backbone.parameters()
    }
    set_learning_rate(optimizer, separate, 0, 4)
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
def test_batch_norm_statistics_are_frozen_as_the_recipe_says(changes, training):
    network = build_network(recipe(**changes), ["sounding"])
    assert prepare_for_training(network, recipe(**changes), Accelerator(cpu=True)) is network
    assert norms_in_training(network) == training
    assert network.training and not network.model.audio_encoder.training


@pytest.mark.parametrize("freeze", [[], ["audio_encoder"], ["backbone"], ["audio_encoder", "backbone"]])
def test_frozen_parts_require_no_gradient(freeze):
    network = build_network(recipe(freeze=freeze), ["sounding"])
    for part in ("audio_encoder", "backbone"):
        required = {weight.requires_grad for weight in getattr(network.model, part).parameters()}
        assert required == {part not in freeze}


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        network = build_network(recipe(gradient_checkpointing=enabled), ["sounding"]).train()
        assert any(getattr(part, "gradient_checkpointing", False) for part in network.modules()) is enabled
        frames = torch.randn(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        network(frames, audio_embeds=torch.ones(1, 2, 10), labels=torch.ones(1, 2, 32, 32).long()).loss.backward()
        gradients.append(torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None]))
    assert torch.equal(*gradients)


def test_synchronized_batch_norm_needs_gpus():
    network, synchronized = build_network(recipe(), ["sounding"]), recipe(batch_norm="synchronized")
    assert prepare_for_training(network, synchronized, Accelerator(cpu=True)) is network

    class Two:
        num_processes, device = 2, torch.device("cpu")

    with pytest.raises(ValueError, match="which torch supports on GPUs only"):
        prepare_for_training(network, synchronized, Two())
    Two.device = torch.device("cuda")
    converted = prepare_for_training(network, synchronized, Two())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())


def test_checkpoint_with_other_heads_initializes_the_rest(checkpoint):
    settings = {"initialize_from": checkpoint, "configuration": {}}
    network = build_network(recipe(**settings, task="avss"), ["background", "bell", "horn"])
    assert network.config.num_labels == 3
    before = PCMANetForAudioVisualSegmentation.from_pretrained(checkpoint).state_dict()
    after = network.state_dict()
    differing = {name for name in after if not torch.equal(after[name], before[name])}
    # Only the last convolution of each stage's head depends on the number of classes.
    assert differing == {f"model.stages.{stage}.head.3.{kind}" for stage in range(4) for kind in ("weight", "bias")}


def test_checkpoint_that_does_not_fit_is_refused_with_its_keys(checkpoint):
    other = {"hidden_size": 32}
    with pytest.raises(ValueError) as caught:
        load_checkpoint(checkpoint, other)
    assert "model.audio_projection.weight is (16, 10), expected (32, 10)" in str(caught.value)
    # The Trainer's script loads checkpoints too, and has no such option.
    assert "reinitialize_mismatched" not in str(caught.value)
    with pytest.raises(ValueError, match="--set reinitialize_mismatched=true"):
        build_network(recipe(initialize_from=checkpoint, configuration=other), ["sounding"])
    network = load_checkpoint(checkpoint, other, reinitialize_mismatched=True)
    assert network.model.audio_projection.weight.shape == (32, 10)
    assert network.model.audio_projection.weight.std() > 0


@pytest.mark.parametrize("start", ["preset", "visual_backbone"])
def test_audio_encoder_with_missing_weights_is_refused(start, tmp_path):
    network, audio = build_network(recipe(), ["sounding"]), tmp_path / "audio"
    network.model.audio_encoder.save_pretrained(audio)
    weights = load_file(audio / "model.safetensors")
    del weights["features.0.weight"]
    save_file(weights, audio / "model.safetensors", metadata={"format": "pt"})
    settings = {"audio_encoder": str(audio)}
    if start == "visual_backbone":
        network.model.backbone.save_pretrained(tmp_path)
        settings |= {"visual_backbone": str(tmp_path), "configuration": {}}
    with pytest.raises(ValueError, match=rf"{audio} lacks weights of a VGGishModel, such as features.0.weight \(1 of"):
        build_network(recipe(**settings), ["sounding"])


def test_the_audio_encoder_of_a_checkpoint_can_be_used(checkpoint):
    source = PCMANetForAudioVisualSegmentation.from_pretrained(checkpoint)
    network = build_network(recipe(audio_encoder=checkpoint), ["sounding"])
    pairs = zip(network.model.audio_encoder.parameters(), source.model.audio_encoder.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere not found"):
        load_checkpoint(str(tmp_path / "nowhere"), {})


@pytest.mark.parametrize(
    "task, data, rule", [("avss", "x", "zeros"), ("avss", None, "repeat_last"), ("s4", "x", "repeat_last")]
)
def test_missing_audio_is_filled_as_published(task, data, rule):
    settings = {"task": task, "data": data, "negative_fraction": 0.0, "freeze": []}
    processor = build_processor(recipe(**settings))
    assert processor.feature_extractor.short_clip == rule
    assert processor.image_processor.size == {"height": 32, "width": 32}
    assert TRAINED_NETWORK["hidden_size"] == 16


@pytest.mark.parametrize(("preset", "mean"), [("small", 0.5), ("tiny", IMAGENET_DEFAULT_MEAN[0])])
def test_normalization_is_that_of_the_backbone(preset, mean, tmp_path):
    preset_only = {"preset": preset, "configuration": {}}
    assert build_processor(recipe(**preset_only)).image_processor.image_mean[0] == mean
    other = {"backbone_config": {**EFFICIENTNET_LITE_0, "width_multiplier": 0.25}}
    assert build_processor(recipe(preset=preset, configuration=other)).image_processor.image_mean[0] == 0.5
    build_network(recipe(), ["sounding"]).model.backbone.save_pretrained(tmp_path)
    # Fields of the configuration may go with the pretrained backbone alone.
    pretrained = {"visual_backbone": str(tmp_path), "configuration": {"neck": "feature_pyramid"}}
    with pytest.raises(OSError, match="no preprocessor_config.json"):
        build_processor(recipe(preset=preset, **pretrained))
    PCMANetImageProcessor(image_mean=[0.3] * 3).save_pretrained(tmp_path)
    assert build_processor(recipe(preset=preset, **pretrained)).image_processor.image_mean[0] == 0.3


@pytest.mark.parametrize("frozen", [True, False])
def test_pretraining_changes_the_audio_encoder_but_not_what_is_frozen(frozen):
    torch.manual_seed(0)
    encoder = VGGishModel(VGGishConfig(block_channels=[[4], [4], [4]], hidden_size=8, embedding_size=10))
    encoder.requires_grad_(not frozen)
    before = [weight.clone() for weight in encoder.parameters()]
    recipe = Recipe(**TINY_RUN, audio_pretraining_clips=5)
    pretrain_audio_encoder(encoder, build_processor(recipe), recipe, torch.device("cpu"), quiet=True)
    assert all(weight.requires_grad is not frozen for weight in encoder.parameters())
    assert all(weight.grad is None for weight in encoder.parameters())
    assert any(not torch.equal(weight, old) for weight, old in zip(encoder.parameters(), before, strict=True))


@pytest.mark.slow
def test_workers_of_pretraining_need_not_be_forked():
    """As on macOS, and everywhere from Python 3.14 on."""
    loader = DataLoader(
        SoundMixtures(2, seed=0),
        batch_size=2,
        collate_fn=partial(_collate_audio, build_processor(recipe())),
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    ((patches, classes),) = loader
    assert len(patches) == len(classes) > 0


def test_pretraining_with_the_same_seed_gives_the_same_weights():
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        encoder = VGGishModel(VGGishConfig(block_channels=[[4], [4], [4]], hidden_size=8, embedding_size=10))
        recipe = Recipe(**TINY_RUN, audio_pretraining_clips=5)
        pretrain_audio_encoder(encoder, build_processor(recipe), recipe, torch.device("cpu"), quiet=True)
        results.append(torch.cat([weight.detach().flatten() for weight in encoder.parameters()]))
    assert torch.equal(*results)


def network(value: float) -> nn.Module:
    module = nn.BatchNorm1d(1)
    nn.init.constant_(module.weight, value)
    module.running_mean.fill_(10 * value)
    module.num_batches_tracked.fill_(int(value))
    return module


def test_first_step_replaces_the_average_and_the_others_blend():
    average = WeightAverage(network(100.0), decay=0.1)
    for value in (1.0, 3.0, 8.0):
        average.update(network(value))
    second = 1 / 11 * 1 + 10 / 11 * 3
    expected = 0.1 * second + 0.9 * 8
    assert average.network.weight.item() == pytest.approx(expected)
    assert average.network.running_mean.item() == pytest.approx(10 * expected)
    assert average.network.num_batches_tracked.item() == 8  # integers are copied


def test_average_of_a_short_run_forgets_its_first_step():
    average = WeightAverage(network(0.0), decay=0.998)
    average.update(network(100.0))
    for _ in range(49):
        average.update(network(1.0))
    assert average.network.weight.item() == pytest.approx(1.0, abs=1e-3)


def test_without_average_the_weights_are_copied_on_request():
    average = WeightAverage(network(1.0), decay=None)
    average.update(network(2.0))
    assert average.network.weight.item() == 1.0
    assert average.synchronized(network(3.0), Accelerator(cpu=True)).weight.item() == 3.0


def test_copy_is_independent_frozen_and_in_evaluation_mode():
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
def test_loaded_average_continues_as_the_saved_one(decay):
    first = WeightAverage(network(1.0), decay)
    first.update(network(1.0))
    second = WeightAverage(network(7.0), decay)
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update(network(5.0))
    found = [average.synchronized(network(5.0), Accelerator(cpu=True)).weight.item() for average in (first, second)]
    assert found[0] == found[1] == pytest.approx(4.8 if decay else 5.0)
