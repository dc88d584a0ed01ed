"""Initial weights, frozen parts, BatchNorm, optimizer, pretraining of the audio encoder, and the weight average."""

from functools import partial

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny_model import tiny_batch, tiny_model
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from training_runs import TINY_RUN, TRAINED_NETWORK, tiny_run
from transformers.image_utils import IMAGENET_DEFAULT_MEAN

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetImageProcessor, VGGishConfig, VGGishModel
from modeling_pcmanet.configuration_encoders import ALL_STAGES, EFFICIENTNET_LITE_0
from pcmanet.dataset_scripts.sounding_shapes.sound import SoundMixtures
from pcmanet.training.recipe import Recipe
from pcmanet.training.run import (
    _collate_audio,
    build_network,
    build_optimizer,
    build_processor,
    freeze_unused,
    learning_rate_factor,
    load_checkpoint,
    prepare_for_training,
    pretrain_audio_encoder,
    set_learning_rate,
    start_average,
    update_average,
)


def recipe(**changes) -> Recipe:
    return Recipe(**tiny_run(**changes))


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


SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 2}
DINO = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"masked_query_gradients": False}, {"audio_to_visual", "visual_to_audio"}),
        ({"backbone_config": {**SWIN, "out_features": ALL_STAGES}}, {"swin.layernorm"}),
        (
            {"backbone_config": {**DINO, "out_features": ["stage1"]}, "neck": "feature_pyramid"},
            {"mask_token", "layer"},
        ),
    ],
)
def test_parameters_without_gradient_are_frozen(changes, expected):
    settings = recipe(configuration={**TRAINED_NETWORK, **changes})
    torch.manual_seed(0)
    network = build_network(settings, ["sounding"])
    trainable = {name for name, weight in network.named_parameters() if weight.requires_grad}
    statistics = {name: value.clone() for name, value in network.named_buffers()}
    frozen = freeze_unused(network, build_processor(settings))
    assert all(any(part in name for name in frozen) for part in expected) and bool(frozen) == bool(expected)
    assert network.training and all(value.equal(statistics[name]) for name, value in network.named_buffers())
    batch = tiny_batch(size=(32, 32))
    batch["input_features"] = torch.randn(2, 3, 1, 96, 64)
    network(**batch, labels=torch.ones(2, 3, 32, 32, dtype=torch.long)).loss.backward()
    trained = {name for name, weight in network.named_parameters() if weight.grad is not None}
    assert trained == trainable - set(frozen)


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


@torch.no_grad()
def test_checkpoint_without_audio_classifier_gets_one_that_changes_nothing(checkpoint, tmp_path):
    """One with other classes is initialized anew, like the heads; it is not lost silently."""
    settings = {"initialize_from": checkpoint, "configuration": {"audio_classifier": True}}
    network, batch = build_network(recipe(**settings), ["sounding"]).eval(), tiny_batch(size=(32, 32))
    plain = PCMANetForAudioVisualSegmentation.from_pretrained(checkpoint).eval()
    batch = {"pixel_values": batch["pixel_values"], "audio_embeds": torch.ones(2, 3, 10)}
    torch.testing.assert_close(network(**batch).logits, plain(**batch).logits)
    network.save_pretrained(tmp_path)
    other = build_network(recipe(initialize_from=str(tmp_path), configuration={}, task="avss"), ["background", "bell"])
    assert torch.equal(other.model.audio_classifier[0].weight, network.model.audio_classifier[0].weight)
    assert other.model.audio_classifier[2].weight.shape == (2, 16)
    with pytest.raises(ValueError, match="audio_classifier.2.bias is not part of the network"):
        load_checkpoint(str(tmp_path), {"audio_classifier": False})


@pytest.mark.parametrize(("size", "expected"), [(None, (48, 64)), (32, (32, 32))])
def test_frames_have_the_size_of_the_checkpoint_unless_the_recipe_sets_another(size, expected, tmp_path):
    processor = build_processor(recipe(image_size=None))
    assert processor.image_processor.size == {"height": 224, "width": 224}
    processor.image_processor.size = {"height": 48, "width": 64}
    processor.save_pretrained(tmp_path)
    found = build_processor(recipe(initialize_from=str(tmp_path), image_size=size)).image_processor.size
    assert (found["height"], found["width"]) == expected


@torch.no_grad()
def test_classes_in_another_order_keep_their_weights(checkpoint, tmp_path, caplog):
    """Classes that the checkpoint does not know get those of classes that the data do not have."""
    before, changes = ["background", "bell", "horn", "drum"], {"audio_classifier": True}
    network = build_network(recipe(initialize_from=checkpoint, configuration=changes), before)
    network.model.audio_classifier[-1].weight.normal_()
    network.save_pretrained(tmp_path)
    for names, order, moved in (
        (before, [0, 1, 2, 3], []),
        (["background", "drum", "bell", "horn"], [0, 3, 1, 2], ["drum", "bell", "horn"]),
        (["background", "cello", "horn", "bell"], [0, 3, 2, 1], ["bell"]),
        (["a", "b", "c", "d"], [0, 1, 2, 3], []),
    ):
        caplog.clear()
        other = build_network(recipe(initialize_from=str(tmp_path), configuration={}), names)
        assert list(other.config.id2label.values()) == names
        layers = [*(f"model.stages.{stage}.head.3" for stage in range(4)), "model.audio_classifier.2"]
        for name, values in network.state_dict().items():
            expected = values[order] if name.rpartition(".")[0] in layers else values
            assert torch.equal(other.state_dict()[name], expected), name
        message = f"weights of {', '.join(moved)} moved to the class of that name"
        assert [message in one for one in caplog.messages if "class of that name" in one] == [True] * bool(moved)


def test_description_of_a_checkpoint_is_not_that_of_the_trained_network(checkpoint, tmp_path):
    source = PCMANetForAudioVisualSegmentation.from_pretrained(checkpoint)
    source.config.description = "knows dogs"
    source.save_pretrained(tmp_path)
    settings = {"initialize_from": str(tmp_path), "configuration": {}}
    assert build_network(recipe(**settings), ["sounding"]).config.description is None
    settings["configuration"] = {"description": "knows cats"}
    assert build_network(recipe(**settings), ["sounding"]).config.description == "knows cats"


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


def average_of(*values: float, decay: float | None) -> AveragedModel:
    """Average networks of these values, the first of which is the initial one."""
    average = start_average(network(values[0]), decay, torch.device("cpu"))
    for value in values[1:]:
        update_average(average, network(value))
    return average


def test_first_step_replaces_the_average_and_the_others_blend():
    average = average_of(100.0, 1.0, 3.0, 8.0, decay=0.1).module
    second = 1 / 11 * 1 + 10 / 11 * 3
    expected = 0.1 * second + 0.9 * 8
    assert average.weight.item() == pytest.approx(expected)
    assert average.running_mean.item() == pytest.approx(10 * expected)
    assert average.num_batches_tracked.item() == 8  # integers are copied


def test_average_of_a_short_run_forgets_its_first_step():
    assert average_of(0.0, 100.0, *[1.0] * 49, decay=0.998).module.weight.item() == pytest.approx(1.0, abs=1e-3)


def test_without_average_the_weights_are_copied():
    assert average_of(1.0, 2.0, 3.0, decay=None).module.weight.item() == 3.0


def test_average_is_bit_equal_to_the_formula_in_weights_and_buffers():
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)) for _ in range(30)]
    for number, each in enumerate(networks):
        each[1].running_var.uniform_(0, 2)
        each[1].num_batches_tracked.fill_(number)
    average = start_average(networks[0], 0.7, torch.device("cpu"))
    expected = networks[0].state_dict()
    for step, each in enumerate(networks[1:]):
        update_average(average, each)
        keep = min(0.7, step / (step + 10))
        for name, new in each.state_dict().items():
            expected[name] = torch.lerp(expected[name], new, 1 - keep) if new.is_floating_point() else new.clone()
    assert all(value.equal(expected[name]) for name, value in average.module.state_dict().items())


def test_copy_is_independent_frozen_and_in_evaluation_mode():
    model = tiny_model().train()
    average = start_average(model, 0.9, torch.device("cpu"))
    assert model.training and not average.module.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
    update_average(average, model)
    with torch.no_grad():
        next(model.model.neck.parameters()).add_(1.0)
    kept = average.module.model.neck.state_dict()
    changed = model.model.neck.state_dict()
    assert [name for name in kept if not torch.equal(kept[name], changed[name])] == ["0.0.weight"]


def test_loaded_average_continues_as_the_saved_one():
    first = average_of(1.0, 1.0, decay=0.05)
    second = start_average(network(7.0), 0.05, torch.device("cpu"))
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        update_average(average, network(5.0))
    assert first.module.weight.item() == second.module.weight.item() == pytest.approx(4.8)
