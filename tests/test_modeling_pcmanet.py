"""PCMANet: invariances of clips and frames, confidence masking, gradients, precision, shapes, saving, losses, loading and errors."""

import copy
import math
import os
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_model import TINY_NETWORK, tiny_batch, tiny_config, tiny_model
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForSemanticSegmentation

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetModel,
    PCMANetProcessor,
    VGGishModel,
    convolutions_pcmanet,
    modeling_pcmanet,
)
from modeling_pcmanet.convolutions_pcmanet import resize
from modeling_pcmanet.modeling_audio_encoders import load_strict
from modeling_pcmanet.modeling_pcmanet import (
    binary_loss,
    deeply_supervised_loss,
    distillation_loss,
    feature_distance,
    prediction_divergence,
    semantic_loss,
    soft_iou_loss,
)
from modeling_pcmanet.modeling_pcmanet_decoder import ClipLayout


@pytest.fixture(scope="module")
def model() -> PCMANetForAudioVisualSegmentation:
    return tiny_model()


@torch.no_grad()
def logits_of(model: PCMANetForAudioVisualSegmentation, **batch: torch.Tensor) -> torch.Tensor:
    return model(**batch).logits


def replicate(network: torch.nn.Module) -> torch.nn.Module:
    """Replicate a network as `torch.nn.parallel.replicate` does, which needs GPUs."""
    replicas = {module: module._replicate_for_data_parallel() for module in network.modules()}
    for module, replica in replicas.items():
        replica._former_parameters = {}
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicas[child]
        for name, weight in module._parameters.items():
            setattr(replica, name, None if weight is None else weight.clone())
            if weight is not None:
                replica._former_parameters[name] = getattr(replica, name)
        for name, buffer in module._buffers.items():
            setattr(replica, name, None if buffer is None else buffer.clone())
    return replicas[network]


def stack_padded(
    short: dict[str, torch.Tensor], long: dict[str, torch.Tensor], fill: float = 7.0
) -> dict[str, torch.Tensor]:
    """Combine two one-clip batches of different lengths into one batch; the padding contains arbitrary values."""
    frames = long["pixel_values"].shape[1]
    length = short["pixel_values"].shape[1]
    batch = {}
    for name, values in short.items():
        padding = torch.full((1, frames - length, *values.shape[2:]), fill)
        batch[name] = torch.cat([torch.cat([values, padding], dim=1), long[name]])
    batch["frame_mask"] = torch.ones(2, frames, dtype=torch.bool)
    batch["frame_mask"][0, length:] = False
    return batch


class TestInvariances:
    def test_confidence_masking_is_active_in_these_tests(self, model):
        with torch.no_grad():
            ratios = model(**tiny_batch()).kept_ratios
        assert ((ratios > 0.1) & (ratios < 0.9)).all(), ratios

    def test_clip_does_not_depend_on_other_clips_of_batch(self, model):
        batch = tiny_batch(clips=3)
        together = logits_of(model, **batch)
        for clip in range(3):
            alone = logits_of(model, **{name: values[clip : clip + 1] for name, values in batch.items()})
            torch.testing.assert_close(together[clip : clip + 1], alone, atol=1e-5, rtol=0)

    def test_padding_does_not_change_real_frames(self, model):
        short, long = tiny_batch(clips=1, frames=3, seed=1), tiny_batch(clips=1, frames=7, seed=2)
        logits = logits_of(model, **stack_padded(short, long))
        torch.testing.assert_close(logits[:1, :3], logits_of(model, **short), atol=1e-5, rtol=0)
        torch.testing.assert_close(logits[1:], logits_of(model, **long), atol=1e-5, rtol=0)
        assert not logits[0, 3:].any()

    def test_padding_does_not_change_batch_norm_statistics(self):
        short, long = tiny_batch(clips=1, frames=3, seed=1), tiny_batch(clips=1, frames=7, seed=2)
        statistics = []
        for fill in (0.0, 100.0):
            model = tiny_model().train()
            model(**stack_padded(short, long, fill))
            statistics.append(model.model.neck[0][1].running_mean.clone())
        assert torch.equal(*statistics)

    def test_clip_of_padding_only_is_finite(self, model):
        batch = tiny_batch(clips=2)
        batch["frame_mask"] = torch.tensor([[True] * 3, [False] * 3])
        logits = logits_of(model, **batch)
        torch.testing.assert_close(
            logits[:1], logits_of(model, **{name: values[:1] for name, values in batch.items()}), atol=1e-5, rtol=0
        )
        assert not logits[1].any()

    def test_output_follows_frame_order(self, model):
        batch, order = tiny_batch(clips=2, frames=4), torch.tensor([2, 0, 3, 1])
        permuted = {name: values[:, order] for name, values in batch.items()}
        torch.testing.assert_close(
            logits_of(model, **permuted), logits_of(model, **batch)[:, order], atol=1e-5, rtol=0
        )

    def test_gathered_queries_equal_masked_queries(self, model):
        batch = stack_padded(tiny_batch(clips=1, frames=2, seed=1), tiny_batch(clips=1, frames=4, seed=2))
        gathering = tiny_model(gather_queries=True)
        gathering.load_state_dict(model.state_dict())
        torch.testing.assert_close(logits_of(gathering, **batch), logits_of(model, **batch), atol=1e-5, rtol=0)

    def test_audio_embeds_replace_input_features(self, model):
        batch = tiny_batch()
        features = batch["input_features"]
        with torch.no_grad():
            embeds = model.model.audio_encoder(features.flatten(0, 1)).audio_embeds.unflatten(0, features.shape[:2])
        given = logits_of(model, pixel_values=batch["pixel_values"], audio_embeds=embeds)
        torch.testing.assert_close(given, logits_of(model, **batch), atol=1e-5, rtol=0)

    def test_audio_changes_logits(self, model):
        batch = tiny_batch()
        other = {**batch, "input_features": batch["input_features"].flip(1)}
        assert (logits_of(model, **batch) - logits_of(model, **other)).abs().max() > 0.1


class TestConfidenceMasking:
    @pytest.mark.parametrize("num_labels", [1, 5])
    def test_masks_follow_probabilities(self, num_labels):
        model = tiny_model(num_labels=num_labels, seed=0)
        with torch.no_grad():
            outputs = model.model(**tiny_batch())
        coarser = None
        for logits, mask, ratio in zip(
            outputs.stage_logits, outputs.confidence_masks, outputs.kept_ratios, strict=False
        ):
            confidence = logits[:, :, 0].sigmoid() if num_labels == 1 else logits.softmax(2).amax(2)
            expected = (confidence >= 0.01) & (confidence <= 0.99)
            if coarser is not None:
                resized = torch.nn.functional.interpolate(coarser.float(), size=expected.shape[-2:], mode="nearest")
                expected &= resized.bool()
            assert torch.equal(mask, expected.to(torch.uint8))
            assert ratio.item() == pytest.approx(mask.float().mean().item())
            coarser = mask

    def test_threshold_zero_masks_nothing(self):
        model = tiny_model(confidence_threshold=0.0)
        with torch.no_grad():
            assert model(**tiny_batch()).kept_ratios.tolist() == [1.0, 1.0, 1.0]

    def test_full_mask_equals_no_mask(self, model):
        attention = model.model.stages[1].cross_attention
        layout_args = self._attention_inputs(model)
        full = torch.ones(6, 2, 2, dtype=torch.bool)
        with torch.no_grad():
            unmasked, masked = (attention(*layout_args[:2], mask, layout_args[2])[0] for mask in (None, full))
        torch.testing.assert_close(masked, unmasked, atol=2e-7, rtol=0)

    @pytest.mark.parametrize("num_selected", [0, 3])
    @pytest.mark.parametrize("gather_queries", [False, True])
    def test_unselected_tokens_keep_residual_and_bias(self, gather_queries, num_selected):
        model = tiny_model(gather_queries=gather_queries)
        attention = model.model.stages[1].cross_attention
        visual, audio, layout = self._attention_inputs(model)
        visual = torch.nn.functional.adaptive_avg_pool2d(visual, 2)
        selected = torch.zeros(6, 2, 2, dtype=torch.bool)
        selected[:num_selected] = True  # of the first clip all or none, of the second none
        with torch.no_grad():
            guidance, _ = attention(visual, audio, selected, layout)
            tokens = attention.visual_embedding(visual.flatten(2).transpose(1, 2)) + attention.output_projection.bias
        difference = (guidance.flatten(2).transpose(1, 2) - tokens).abs().amax((1, 2))
        assert (difference[num_selected:] < 1e-6).all()
        assert (difference[:num_selected] > 1e-3).all()

    @staticmethod
    def _attention_inputs(model):
        generator = torch.Generator().manual_seed(5)
        channels = model.config.hidden_size
        return (
            torch.randn(6, channels, 4, 4, generator=generator),
            torch.randn(6, channels, generator=generator),
            ClipLayout(batch=2, frames=3, real=None),
        )

    @pytest.mark.parametrize("threshold", [0.0, 0.01, 0.499])
    @pytest.mark.parametrize("frames", [1, 3])
    def test_training_is_finite_for_any_masking(self, threshold, frames):
        model = tiny_model(confidence_threshold=threshold).train()
        batch = tiny_batch(frames=frames)
        loss = model(**batch, labels=torch.randint(0, 2, (2, frames, 48, 64))).loss
        loss.backward()
        assert torch.isfinite(loss)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


class TestGradients:
    def test_every_trainable_parameter_has_a_gradient(self):
        model = tiny_model(freeze_audio_encoder=False)
        outputs = model(**tiny_batch(), labels=torch.randint(0, 2, (2, 3, 48, 64)))
        assert ((outputs.kept_ratios > 0) & (outputs.kept_ratios < 1)).all()
        outputs.loss.backward()
        without = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or not torch.isfinite(parameter.grad).all() or not parameter.grad.any()
        ]
        assert without == []

    def test_masked_query_gradients_off_detaches_attention(self):
        """Stages that select queries have no gradient in their attention, only in embedding and output layers."""
        model = tiny_model(masked_query_gradients=False)
        model(**tiny_batch(), labels=torch.randint(0, 2, (2, 3, 48, 64))).loss.backward()
        cut = {
            name.removeprefix("model.stages.")
            for name, parameter in model.named_parameters()
            if "cross_attention" in name and (parameter.grad is None or not parameter.grad.any())
        }
        stage_1_to_3 = {
            f"{stage}.cross_attention.{part}"
            for stage in (1, 2, 3)
            for part in (
                "audio_embedding.weight",
                "audio_embedding.bias",
                "layer_norm.weight",
                "layer_norm.bias",
                *(f"visual_to_audio.{projection}.weight" for projection in ("query", "key", "value")),
            )
        }
        audio_to_visual = {
            f"{stage}.cross_attention.audio_to_visual.{projection}.weight"
            for stage in (0, 1, 2)
            for projection in ("query", "key", "value")
        }
        assert cut == stage_1_to_3 | audio_to_visual

    @pytest.mark.parametrize(
        "settings",
        [{}, {"feature_distillation_weight": 1.0}, {"group_attention": "sounding_maps"}, {"audio_classifier": True}],
    )
    def test_gradient_checkpointing_changes_nothing(self, settings):
        """Stages are computed twice, but their BatchNorms count a batch once."""
        batch, labels = tiny_batch(), torch.randint(0, 2, (2, 3, 48, 64))
        gradients, buffers = [], []
        for checkpointing in (False, True):
            model = tiny_model(**settings).train()
            if checkpointing:
                model.gradient_checkpointing_enable()
            for _ in range(2):
                model(**batch, labels=labels).loss.backward()
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
            buffers.append(dict(model.named_buffers()))
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)
        assert all(torch.equal(buffers[1][name], value) for name, value in buffers[0].items())

    def test_frozen_audio_encoder_has_no_gradient_and_stays_in_evaluation_mode(self):
        model = tiny_model().train()
        encoder = model.model.audio_encoder
        assert model.model.backbone.training
        assert not any(module.training for module in encoder.modules())
        model(**tiny_batch(), labels=torch.randint(0, 2, (2, 3, 48, 64))).loss.backward()
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in encoder.parameters())

    def test_frozen_audio_encoder_of_a_new_model_is_in_evaluation_mode(self):
        """A new module is in training mode, in which BatchNorms of the encoder would change until the first `train()`."""
        model = PCMANetForAudioVisualSegmentation(tiny_config())
        assert model.training and not any(module.training for module in model.model.audio_encoder.modules())
        model = PCMANetForAudioVisualSegmentation(tiny_config(freeze_audio_encoder=False))
        assert model.model.audio_encoder.training

    def test_audio_encoder_of_a_loaded_model_is_frozen(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        for frozen in (True, False):
            kwargs = {"freeze_audio_encoder": frozen, "output_loading_info": True}
            loaded, _ = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path, **kwargs)
            for network in (loaded.model, PCMANetModel.from_pretrained(tmp_path, freeze_audio_encoder=frozen)):
                assert {weight.requires_grad for weight in network.audio_encoder.parameters()} == {not frozen}
                assert all(weight.requires_grad for weight in network.backbone.parameters())

    def test_what_a_user_makes_trainable_gets_a_gradient(self, model):
        """A frozen audio encoder does not cut the gradients of its inputs, nor of weights that are unfrozen later."""
        model, batch = copy.deepcopy(model), tiny_batch()
        batch["input_features"].requires_grad_()
        labels = torch.randint(0, 2, (2, 3, 48, 64))
        model(**batch, labels=labels).loss.backward()
        assert batch["input_features"].grad.abs().max() > 0
        assert all(weight.grad is None for weight in model.model.audio_encoder.parameters())
        model.model.audio_encoder.requires_grad_(True)
        model(**batch, labels=labels).loss.backward()
        assert any(weight.grad.abs().max() > 0 for weight in model.model.audio_encoder.parameters())

    @pytest.mark.parametrize("training", [False, True])
    def test_replicas_of_data_parallel_compute_the_same(self, model, training):
        """The Trainer wraps the model in `nn.DataParallel` on a machine with several GPUs; replicas have no parameters."""
        model = copy.deepcopy(model).train(training)
        replica, batch = replicate(model), tiny_batch()
        labels = torch.randint(0, 2, (2, 3, 48, 64))
        output = replica(**batch, labels=labels)
        output.loss.backward()
        torch.testing.assert_close(output.loss, copy.deepcopy(model)(**batch, labels=labels).loss)
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        assert trainable and all(weight.grad is not None for weight in trainable)

    def test_meta_tensors_pass_through_a_training_step(self):
        with torch.device("meta"):
            model, batch = PCMANetForAudioVisualSegmentation(tiny_config()), tiny_batch()
        batch = {name: values.to("meta") for name, values in batch.items()}
        loss = model(**batch, labels=torch.zeros(2, 3, 48, 64, dtype=torch.int64, device="meta")).loss
        assert loss.shape == () and loss.is_meta

    def test_only_annotated_real_frames_are_supervised(self, model):
        batch = tiny_batch()
        labels = torch.randint(0, 2, (2, 3, 48, 64))
        batch["frame_mask"] = torch.tensor([[True, True, True], [True, True, False]])
        annotated_frames = torch.tensor([[True, False, False], [True, False, True]])
        changed = labels.clone()
        changed[:, 1:] = 1 - changed[:, 1:]
        with torch.no_grad():
            losses = [model(**batch, labels=x, annotated_frames=annotated_frames).loss for x in (labels, changed)]
            first_only = model(**batch, labels=labels, annotated_frames=torch.tensor([[True, False, False]] * 2)).loss
        assert losses[0] == losses[1] == first_only


class TestPublishedBehavior:
    def test_scrambled_tokens_change_the_guidance(self, model):
        scrambled = tiny_model(token_layout="scrambled")
        scrambled.load_state_dict(model.state_dict())
        batch = tiny_batch()
        assert (logits_of(scrambled, **batch) - logits_of(model, **batch)).abs().max() > 1e-2

    def test_zeroed_padding_changes_real_frames(self, model):
        zeroed = tiny_model(padded_frames="zeroed")
        zeroed.load_state_dict(model.state_dict())
        short, long = tiny_batch(clips=1, frames=3, seed=1), tiny_batch(clips=1, frames=7, seed=2)
        logits = logits_of(zeroed, **stack_padded(short, long))
        assert (logits[:1, :3] - logits_of(zeroed, **short)).abs().max() > 1e-4
        torch.testing.assert_close(logits[1:], logits_of(zeroed, **long), atol=1e-5, rtol=0)


class TestPrecision:
    def test_eager_equals_sdpa(self):
        batch = stack_padded(tiny_batch(clips=1, frames=2), tiny_batch(clips=1, frames=4))
        eager, sdpa = tiny_model(attn_implementation="eager"), tiny_model()
        assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
        torch.testing.assert_close(logits_of(eager, **batch), logits_of(sdpa, **batch), atol=1e-5, rtol=0)

    def test_float32_against_float64(self):
        batch, model = tiny_batch(), tiny_model(confidence_threshold=0.0)
        single = logits_of(model, **batch)
        double = logits_of(model.double(), **{name: values.double() for name, values in batch.items()})
        assert double.dtype == torch.float64
        assert (single - double).abs().max() / double.abs().max() < 1e-4

    def test_audio_encoder_may_have_another_data_type(self):
        exact, model = tiny_model(), tiny_model().bfloat16()
        model.model.audio_encoder.float()
        logits = logits_of(model, **tiny_batch())
        assert logits.dtype == torch.bfloat16
        assert (logits - logits_of(exact, **tiny_batch())).abs().mean() < 0.1

    def test_fake_tensors_leave_nothing_behind(self):
        size = {"size": (224, 224)}  # at which convolutions are rearranged
        with FakeTensorMode():
            PCMANetForAudioVisualSegmentation(tiny_config())(**tiny_batch(**size)).logits.sum().backward()
        assert tiny_model().train()(**tiny_batch(**size)).logits.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_is_close(self, dtype):
        # Without masking: in half precision a pixel near the threshold may be masked differently.
        model, batch = tiny_model(confidence_threshold=0.0), tiny_batch()
        full = logits_of(model, **batch)
        with torch.autocast("cpu", dtype):
            half = logits_of(model, **batch).float()
        assert torch.isfinite(half).all()
        assert (half - full).abs().mean() / full.abs().mean() < 0.05

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_trains(self, dtype):
        model = tiny_model().train()
        with torch.autocast("cpu", dtype):
            loss = model(**tiny_batch(), labels=torch.randint(0, 2, (2, 3, 48, 64))).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


class TestShapes:
    @pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 32), (50, 101)])
    @pytest.mark.parametrize("num_labels", [1, 3])
    def test_any_size_and_number_of_frames(self, size, num_labels):
        model = tiny_model(num_labels=num_labels)
        with torch.no_grad():
            outputs = model(**tiny_batch(clips=1, frames=1, size=size))
        assert outputs.logits.shape == (1, 1, num_labels, *size)
        assert [logits.shape for logits in outputs.stage_logits] == [outputs.logits.shape] * 4
        assert outputs.stage_logits[-1] is outputs.logits
        assert torch.isfinite(outputs.logits).all()

    def test_pvt_v2_backbone(self):
        backbone = {
            "model_type": "pvt_v2",
            "hidden_sizes": [8, 8, 10, 16],
            "depths": [1, 1, 1, 1],
            "mlp_ratios": [2, 2, 2, 2],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        }
        model = tiny_model(backbone_config=backbone)
        assert logits_of(model, **tiny_batch(size=(50, 70))).shape == (2, 3, 1, 50, 70)
        eps = {
            name.rsplit(".", 2)[-2]: module.eps
            for name, module in model.model.backbone.named_modules()
            if name.endswith(("patch_embedding.layer_norm", "attention.layer_norm"))
        }
        assert eps == {"patch_embedding": 1e-5, "attention": 1e-5}
        assert model.model.backbone.encoder.layers[0].layer_norm.eps == 1e-6

    def test_output_hidden_states_and_attentions(self):
        model = tiny_model(attn_implementation="eager")
        with torch.no_grad():
            outputs = model(**tiny_batch(), output_hidden_states=True, output_attentions=True)
        sizes = [tuple(states.shape[-2:]) for states in outputs.hidden_states]
        assert sizes == [(2, 2), (2, 2), (3, 4), (6, 8), (12, 16)]
        # Both directions in three stages, one in the finest; 3 frames with 4, 4, 9 and 16 visual tokens each.
        shapes = [tuple(weights.shape[-2:]) for weights in outputs.attentions]
        assert shapes == [(3, 12), (12, 3), (3, 12), (12, 3), (3, 27), (27, 3), (48, 3)]
        for weights in outputs.attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))

    def test_without_cross_attention(self):
        model = tiny_model(cross_attention=None)
        assert not any("cross_attention" in name for name in model.state_dict())
        assert logits_of(model, **tiny_batch()).shape == (2, 3, 1, 48, 64)

    def test_tuple_output(self, model):
        batch = tiny_batch()
        with torch.no_grad():
            values = model(**batch, return_dict=False)
        assert torch.equal(values[0], logits_of(model, **batch))
        configured = tiny_model(return_dict=False)
        configured.config.audio_config.return_dict = False
        with torch.no_grad():
            assert torch.equal(configured(**batch)[0], values[0])
            assert isinstance(configured.model(**batch), tuple)

    def test_output_attentions_are_empty_with_sdpa(self, caplog):
        model = tiny_model()
        assert model(**tiny_batch(), output_attentions=True).attentions == ()
        assert "`attentions` stays empty, because sdpa attention does not return its weights" in caplog.text
        model.set_attn_implementation("eager")
        assert len(model(**tiny_batch(), output_attentions=True).attentions) == 7
        model.set_attn_implementation({"": "sdpa"})
        assert model.config._attn_implementation == "sdpa"

    @pytest.mark.slow
    def test_one_compiled_graph_for_any_number_of_clips_and_frames(self):
        """No graph breaks, with the loss, and no recompilation after the first batch.

        No clip has three frames: the compiler identifies equal sizes, and every frame has three color channels.
        """
        model = tiny_model().double()
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
        for clips, frames in ((2, 5), (3, 7), (4, 6)):
            batch = {name: values.double() for name, values in tiny_batch(clips, frames).items()}
            batch["labels"] = torch.ones(clips, frames, 48, 64, dtype=torch.long)
            with torch.compiler.set_stance("default" if clips == 2 else "fail_on_recompile"):
                given, expected = compiled(**batch), model(**batch)
            torch.testing.assert_close(given.logits, expected.logits, atol=1e-12, rtol=0)
            torch.testing.assert_close(given.loss, expected.loss, atol=1e-12, rtol=0)

    @pytest.mark.slow
    @pytest.mark.parametrize(("lengths", "annotated"), [((3,), None), ((3,), 1), ((3, 2), 3)])
    def test_batch_of_the_processor_is_exported_and_compiled_to_one_graph(self, lengths, annotated):
        audio_config = {**TINY_NETWORK["audio_config"], "num_mel_frames": 96, "num_mel_bins": 64}
        model = tiny_model(audio_config=audio_config)
        images = PCMANetImageProcessor(size={"height": 32, "width": 32})
        processor = PCMANetProcessor(images, PCMANetFeatureExtractor())
        frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        masks = [mask if number < (annotated or 0) else None for number, mask in enumerate(frames[..., 0] // 128)]
        batch = processor(
            videos=[frames[:length] for length in lengths],
            audio=[np.zeros(16000 * length, dtype=np.float32) for length in lengths],
            sampling_rate=16000,
            segmentation_maps=None if annotated is None else [masks[:length] for length in lengths],
            return_tensors="pt",
        )
        torch.compiler.reset()
        expected = model(**batch)
        exported = torch.export.export(model, (), dict(batch)).module()(**batch)
        compiled = torch.compile(model, fullgraph=True, backend="eager")(**batch)
        for outputs in (exported, compiled):
            torch.testing.assert_close(outputs.logits, expected.logits)
            torch.testing.assert_close(outputs.loss, expected.loss)


class SynchronizationCounter(TorchDispatchMode):
    """Count the operations for whose result a GPU makes the host wait: a number, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            index is not None and index.dtype == torch.bool
            for indices in args
            if isinstance(indices, list | tuple)
            for index in indices
            if index is None or isinstance(index, torch.Tensor)
        )
        if by_mask or name in ("nonzero", "_local_scalar_dense", "masked_select", "is_nonzero"):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


class TestSynchronization:
    @pytest.mark.parametrize(("padded", "expected"), [(False, 0), (True, 1)])
    @pytest.mark.parametrize("num_labels", [1, 5])
    def test_training_step_asks_for_no_value(self, num_labels, padded, expected, monkeypatch):
        """Only the number of frames that are not padding is a value on which shapes depend, and it is asked for once."""
        model, batch = tiny_model(num_labels=num_labels).train(), tiny_batch()
        batch["labels"] = torch.zeros(2, 3, 48, 64, dtype=torch.long)
        batch["annotated_frames"] = torch.tensor([[True, False, False]] * 2)
        if padded:
            batch["frame_mask"] = torch.tensor([[True, True, True], [True, True, False]])
        monkeypatch.setattr(modeling_pcmanet, "_validate_labels", lambda *_: None)  # on a GPU a device-side assert
        with SynchronizationCounter() as counter:
            model(**batch).loss.backward()
        assert counter.counts.total() == expected, counter.counts


class TestLoading:
    def test_save_and_load_is_bit_identical(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").is_file()
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert isinstance(loaded, PCMANetForAudioVisualSegmentation)
        assert not loaded.training
        batch = tiny_batch()
        assert torch.equal(logits_of(loaded, **batch), logits_of(model, **batch))
        assert isinstance(AutoConfig.from_pretrained(tmp_path), PCMANetConfig)
        base = AutoModel.from_pretrained(tmp_path)
        assert isinstance(base, PCMANetModel)
        with torch.no_grad():
            assert torch.equal(base(**batch).stage_logits[0], model.model(**batch).stage_logits[0])

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
    @pytest.mark.parametrize(("folder", "weights"), [(0o755, 0o644), (0o750, 0o640), (0o700, 0o600)])
    def test_who_can_read_a_folder_can_read_the_weights(self, model, tmp_path, folder, weights):
        tmp_path.chmod(folder)
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == weights

    def test_device_map_over_several_devices_is_refused(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        parts = {"model.backbone": 0, "model.stages": "cuda:1", "model.neck": "cpu"}
        with pytest.raises(
            ValueError, match=r"parts of the network on the devices cuda:0, cuda:1, but .* single device"
        ):
            PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path, device_map={**parts, "": 0})
        for one in ("cpu", "auto", {"": "cpu"}):
            loaded = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path, device_map=one)
            assert torch.equal(logits_of(loaded, **tiny_batch()), logits_of(model, **tiny_batch()))

    def test_from_pretrained_backbones(self, tmp_path):
        config = tiny_config()
        visual, audio = AutoBackbone.from_config(config.backbone_config), VGGishModel(config.audio_config)
        visual.save_pretrained(tmp_path / "visual")
        audio.save_pretrained(tmp_path / "audio")
        model = PCMANetForAudioVisualSegmentation.from_pretrained_backbones(
            tmp_path / "visual", tmp_path / "audio", hidden_size=16, num_groups=2, num_labels=3
        )
        assert model.config.num_labels == 3
        for ours, theirs in ((model.model.backbone, visual), (model.model.audio_encoder, audio)):
            for name, weight in theirs.state_dict().items():
                assert torch.equal(ours.state_dict()[name], weight), name

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_encoders_in_half_precision_give_a_network_in_one_data_type(self, tmp_path, dtype):
        config = tiny_config()
        visual, audio = AutoBackbone.from_config(config.backbone_config), VGGishModel(config.audio_config)
        visual.to(dtype).save_pretrained(tmp_path / "visual")
        audio.to(dtype).save_pretrained(tmp_path / "audio")
        model = PCMANetForAudioVisualSegmentation.from_pretrained_backbones(
            tmp_path / "visual", tmp_path / "audio", hidden_size=16, num_groups=2
        )
        configs = {"backbone_config": AutoConfig.from_pretrained(tmp_path / "visual")}
        for network in (model, PCMANetForAudioVisualSegmentation(tiny_config(**configs))):
            assert {weight.dtype for weight in network.parameters()} == {torch.float32}
            assert logits_of(network, **tiny_batch()).isfinite().all()
        name, weight = next(iter(visual.named_parameters()))
        assert torch.equal(model.model.backbone.get_parameter(name), weight.float())

    def test_weights_that_do_not_fit_a_given_configuration(self, tmp_path):
        config = tiny_config()
        VGGishModel(config.audio_config).save_pretrained(tmp_path)
        other = config.audio_config.to_dict() | {"embedding_size": 24}
        with pytest.raises(ValueError, match=r"The weights '.*' do not fit the given `audio_config`. Leave it out"):
            PCMANetForAudioVisualSegmentation.from_pretrained_backbones(audio=tmp_path, audio_config=other)

    def test_from_pretrained_backbones_raises_for_incomplete_or_other_models(self, model, tmp_path):
        config = tiny_config()
        visual, audio = AutoBackbone.from_config(config.backbone_config), VGGishModel(config.audio_config)
        kept = {name: values for name, values in visual.state_dict().items() if "stages.3" not in name}
        assert len(kept) < len(visual.state_dict())
        visual.save_pretrained(tmp_path / "visual", state_dict=kept)
        audio.save_pretrained(tmp_path / "audio")
        with pytest.raises(ValueError, match=r"visual lacks weights of a ResNetBackbone, such as encoder\.stages\.3"):
            PCMANetForAudioVisualSegmentation.from_pretrained_backbones(tmp_path / "visual", tmp_path / "audio")
        model.save_pretrained(tmp_path / "complete")
        with pytest.raises(
            ValueError, match="Expected the Hub id or folder of a visual backbone.* got .*complete, which is a pcmanet"
        ):
            PCMANetForAudioVisualSegmentation.from_pretrained_backbones(tmp_path / "complete", tmp_path / "audio")

    def test_another_number_of_classes_needs_ignore_mismatched_sizes(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        labels = {"id2label": {0: "background", 1: "bell"}, "label2id": {"background": 0, "bell": 1}}
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path, **labels)
        loaded = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **labels)
        assert loaded.model.stages[0].head[-1].weight.shape[0] == 2
        assert torch.equal(loaded.model.neck[0][0].weight, model.model.neck[0][0].weight)


class TestErrors:
    def test_assigned_configuration_fields_are_validated(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        with pytest.raises(StrictDataclassError, match=r"must be in \[0, 0.5\), got 0.9"):
            PCMANetModel.from_pretrained(tmp_path, confidence_threshold=0.9)
        config = tiny_config()
        config.num_groups = 3
        with pytest.raises(StrictDataclassError, match="`num_groups` must divide"):
            PCMANetForAudioVisualSegmentation(config)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"pixel_values": torch.zeros(2, 3, 48, 64)},
                r"must be \(batch, frames, 3, height, width\).*got \(2, 3, 48, 64\)",
            ),
            ({"pixel_values": torch.zeros(2, 3, 3, 31, 64)}, "at least 32"),
            ({"input_features": None}, "Expected exactly one of .* got neither"),
            ({"audio_embeds": torch.zeros(2, 3, 10)}, "Expected exactly one of .* got both"),
            ({"pixel_values": None}, r"`pixel_values` must be \(batch.* got NoneType"),
            (
                {"pixel_values": torch.zeros(0, 3, 3, 48, 64)},
                r"at least one clip, one frame.* got \(0, 3, 3, 48, 64\)",
            ),
            ({"pixel_values": torch.zeros(2, 0, 3, 48, 64)}, "at least one clip, one frame"),
            (
                {"input_features": torch.zeros(2, 4, 1, 16, 8)},
                r"`input_features` must be \(batch, frames, ...\) = \(2, 3, ...\).* got \(2, 4, 1, 16, 8\)",
            ),
            ({"input_features": torch.zeros(2, 3, 16, 8)}, r"`input_features` must be .* got \(6, 16, 8\)"),
            ({"input_features": torch.zeros(2, 3)}, r"`input_features` must be .* got \(2, 3\)"),
            ({"input_features": torch.zeros(2, 3, 1, 16, 8).numpy()}, "`input_features` must be .* got ndarray"),
            (
                {"input_features": None, "audio_embeds": torch.zeros(2, 3, 8)},
                r"`audio_embeds` must be \(batch, frames, embedding size\) = \(2, 3, 10\).* got \(2, 3, 8\)",
            ),
            ({"frame_mask": torch.ones(2, 2)}, r"`frame_mask` must be \(batch, frames\) = \(2, 3\).* got \(2, 2\)"),
            ({"frame_mask": torch.ones(2, 3, 1)}, r"`frame_mask` must be .* got \(2, 3, 1\)"),
            ({"labels": torch.zeros(2, 3, 24, 32, dtype=torch.long)}, r"`labels` must be .* = \(2, 3, 48, 64\), got"),
        ],
    )
    def test_invalid_inputs_raise(self, model, change, message):
        with pytest.raises(ValueError, match=message):
            model(**{**tiny_batch(), **change})

    @pytest.mark.parametrize("shape", [(2, 1), (3,), (2, 3, 1)])
    def test_annotated_frames_are_not_broadcast(self, model, shape):
        labels = torch.zeros(2, 3, 48, 64, dtype=torch.long)
        with pytest.raises(ValueError, match=r"`annotated_frames` must be \(batch, frames\) = \(2, 3\) like `labels`"):
            model(**tiny_batch(), labels=labels, annotated_frames=torch.ones(shape, dtype=torch.bool))

    @pytest.mark.parametrize("types", [("bfloat16",), (torch.int8,), (None, "float16")])
    def test_for_inference_raises_for_other_data_types(self, model, types):
        with pytest.raises(TypeError, match=r"Expected a floating-point data type .*, got ('b?float16'|torch.int8)"):
            model.for_inference(*types)

    def test_for_inference_raises_for_offloaded_weights(self):
        with torch.device("meta"):
            offloaded = PCMANetForAudioVisualSegmentation(tiny_config())
        with pytest.raises(ValueError, match="Weights offloaded .* load the model without"):
            offloaded.for_inference()

    def test_unknown_keywords_raise(self, model):
        with pytest.raises(TypeError, match=r"unknown keywords \['frame_masks'\]"):
            model(**tiny_batch(), frame_masks=torch.ones(2, 3))
        with pytest.raises(
            TypeError, match=r"unknown keywords \['timestamps'\].* pop the metadata \(timestamps, original_sizes"
        ):
            model(**tiny_batch(), timestamps=[])


class TestLosses:
    def test_soft_iou_of_2x2_frame_by_hand(self):
        # Probabilities 1/2 everywhere, one of four pixels is foreground: I = 1/2, S = 2 + 1 = 3.
        labels = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        loss = soft_iou_loss(torch.full((1, 2, 2), 0.5), labels, torch.ones(1, 2, 2))
        assert loss.item() == pytest.approx(1 - (0.5 + 1) / (3 - 0.5 + 1))

    def test_binary_loss_of_2x2_frame_by_hand(self):
        labels = torch.tensor([[[1, 0], [0, 0]]])
        loss = binary_loss(torch.zeros(1, 1, 2, 2), labels)
        assert loss.tolist() == pytest.approx([math.log(2) + 1 - 1.5 / 3.5])

    def test_ignored_pixels_do_not_count(self):
        labels = torch.tensor([[[1, 255], [0, 255]]])
        logits = torch.randn(1, 1, 2, 2)
        other = logits.clone()
        other[..., 1] = 100.0
        torch.testing.assert_close(binary_loss(logits, labels), binary_loss(other, labels))
        # Two valid pixels, one of them foreground, at p = 1/2: I = 1/2, S = 2.
        assert binary_loss(torch.zeros(1, 1, 2, 2), labels).item() == pytest.approx(math.log(2) + 1 - 1.5 / 2.5)

    def test_semantic_loss_is_the_mean_of_minus_log_probability(self):
        torch.manual_seed(0)
        logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
        labels[1, :2] = 255
        probabilities = logits.softmax(1)
        expected = []
        for frame in range(2):
            values = [
                -probabilities[frame, labels[frame, row, column], row, column].log().item()
                for row in range(4)
                for column in range(4)
                if labels[frame, row, column] != 255
            ]
            expected.append(sum(values) / len(values))
        assert semantic_loss(logits, labels).tolist() == pytest.approx(expected, rel=1e-6)

    def test_soft_iou_loss_of_classes_by_hand(self):
        # The background has probability 1/2 and each of two classes 1/4. Of three valid pixels two sound, each in another
        # class: I = 2/2, S = 3/2 + 2.
        logits = torch.tensor([math.log(2), 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
        labels = torch.tensor([[[1, 2], [0, 255]]])
        expected = (2 * math.log(4) + math.log(2)) / 3
        assert semantic_loss(logits, labels).item() == pytest.approx(expected)
        weighted = semantic_loss(logits, labels, iou_weight=0.5).item()
        assert weighted == pytest.approx(expected + 0.5 * (1 - (1 + 1) / (3.5 - 1 + 1)))

    def test_soft_iou_loss_of_one_class_is_that_of_binary_masks(self):
        torch.manual_seed(0)
        logits, labels = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
        labels[0, 0] = 255
        two_classes = torch.cat([torch.zeros_like(logits), logits], dim=1)
        torch.testing.assert_close(semantic_loss(two_classes, labels, iou_weight=1.0), binary_loss(logits, labels))

    @pytest.mark.parametrize("num_labels", [1, 5])
    def test_weight_of_the_configuration_changes_the_loss_of_classes_alone(self, num_labels):
        plain, weighted = (tiny_model(num_labels=num_labels, semantic_iou_weight=weight) for weight in (0.0, 2.0))
        batch, labels = tiny_batch(), torch.randint(0, max(2, num_labels), (2, 3, 48, 64))
        stages = plain(**batch).stage_logits
        annotated = torch.ones(2, 3, dtype=torch.bool)
        expected = deeply_supervised_loss(stages, labels, annotated, [1.0] * 4, semantic_iou_weight=2.0)
        loss = weighted(**batch, labels=labels).loss
        torch.testing.assert_close(loss, expected)
        assert (loss > plain(**batch, labels=labels).loss) == (num_labels > 1)

    def test_loss_is_sum_over_stages_of_mean_over_annotated_frames(self):
        torch.manual_seed(0)
        stages = [torch.randn(2, 3, 1, 4, 4) for _ in range(4)]
        labels = torch.randint(0, 2, (2, 3, 4, 4))
        annotated = torch.tensor([[True, False, False], [True, True, False]])
        weights = [0.5, 1.0, 1.5, 2.0]
        frames = [(0, 0), (1, 0), (1, 1)]
        expected = sum(
            weight
            * sum(binary_loss(logits[clip, frame][None], labels[clip, frame][None]).item() for clip, frame in frames)
            / 3
            for weight, logits in zip(weights, stages, strict=True)
        )
        assert deeply_supervised_loss(stages, labels, annotated, weights).item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("num_labels", [1, 5])
    def test_loss_of_annotated_frames_does_not_depend_on_others(self, num_labels):
        torch.manual_seed(0)
        stages = [torch.randn(2, 3, num_labels, 4, 4, requires_grad=True) for _ in range(4)]
        labels = torch.randint(0, max(2, num_labels), (2, 3, 4, 4))
        weights = [0.5, 1.0, 1.5, 2.0]
        alone = deeply_supervised_loss(stages, labels, torch.ones(2, 3, dtype=torch.bool), weights)
        padded = [torch.nn.functional.pad(logits, (0, 0, 0, 0, 0, 0, 0, 1), value=7.0) for logits in stages]
        annotated = torch.tensor([[True, True, True, False]] * 2)
        selected = deeply_supervised_loss(
            padded, torch.nn.functional.pad(labels, (0, 0, 0, 0, 0, 1)), annotated, weights
        )
        assert selected.item() == pytest.approx(alone.item(), rel=1e-6)
        for one, other in zip(torch.autograd.grad(alone, stages), torch.autograd.grad(selected, stages), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-8)
            assert one.abs().max() > 0

    @pytest.mark.parametrize(("num_labels", "iou_weight"), [(1, 0.0), (5, 0.0), (5, 0.7)])
    @pytest.mark.parametrize("chunk_values", [1, 10_000_000])
    def test_gradients_are_those_of_resized_logits_for_any_number_of_frames_at_a_time(
        self, num_labels, iou_weight, chunk_values, monkeypatch
    ):
        monkeypatch.setattr(convolutions_pcmanet, "CHUNK_VALUES", chunk_values)
        torch.manual_seed(0)
        stages = [torch.randn(2, 3, num_labels, size, size).double().requires_grad_() for size in (2, 4, 8, 16)]
        labels = torch.randint(0, max(2, num_labels), (2, 3, 16, 16))
        labels[0, 0, :4] = 255
        annotated = torch.tensor([[True, False, True], [True, True, True]])
        weights = [0.5, 1.0, 1.5, 2.0]
        frame_loss = binary_loss if num_labels == 1 else partial(semantic_loss, iou_weight=iou_weight)
        expected = sum(
            weight * frame_loss(resize(logits[annotated], (16, 16)), labels[annotated]).sum() / 5
            for weight, logits in zip(weights, stages, strict=True)
        )
        loss = deeply_supervised_loss(stages, labels, annotated, weights, semantic_iou_weight=iou_weight)
        torch.testing.assert_close(loss, expected)
        for one, other in zip(
            torch.autograd.grad(3 * loss, stages), torch.autograd.grad(3 * expected, stages), strict=True
        ):
            torch.testing.assert_close(one, other)

    def test_scaled_gradients_of_float16_logits_are_exact(self):
        logits = torch.randn(1, 1, 1, 8, 8)
        labels, annotated = torch.randint(0, 2, (1, 1, 512, 512)), torch.ones(1, 1, dtype=torch.bool)
        gradients = []
        for dtype in (torch.float16, torch.float32):
            stage = logits.half().to(dtype).requires_grad_()
            (deeply_supervised_loss([stage], labels, annotated, [1e-4]) * 2**16).backward()
            gradients.append(stage.grad.float())
        torch.testing.assert_close(*gradients, rtol=2e-3, atol=1e-6)

    def test_stage_of_weight_0_is_not_supervised(self):
        model = tiny_model(stage_loss_weights=(0.0, 1.0, 0.0, 1.0)).train()
        model(**tiny_batch(), labels=torch.randint(0, 2, (2, 3, 48, 64))).loss.backward()
        supervised = [stage.head[-1].weight.grad is not None for stage in model.model.stages]
        assert supervised == [False, True, False, True]

    def test_coarser_outputs_are_resized_unless_only_the_loss_needs_them(self):
        model, batch, labels = tiny_model().train(), tiny_batch(), torch.randint(0, 2, (2, 3, 48, 64))
        trained = model(**batch, labels=labels)
        assert trained.stage_logits is None
        assert trained.logits.shape == (2, 3, 1, 48, 64) and trained.logits.requires_grad
        assert len(model(**batch).stage_logits) == len(model.eval()(**batch, labels=labels).stage_logits) == 4

    @pytest.mark.parametrize(("num_labels", "iou_weight"), [(1, 0.0), (5, 0.0), (5, 1.0)])
    def test_no_annotated_frames_give_zero_loss_and_gradient(self, num_labels, iou_weight):
        stages = [torch.randn(1, 2, num_labels, 4, 4, requires_grad=True) for _ in range(4)]
        labels = torch.full((1, 2, 4, 4), 255)
        annotated = torch.zeros(1, 2, dtype=torch.bool)
        loss = deeply_supervised_loss(stages, labels, annotated, [1.0] * 4, semantic_iou_weight=iou_weight)
        loss.backward()
        assert loss.item() == 0.0
        assert all(not logits.grad.any() for logits in stages)

    @pytest.mark.parametrize("num_labels", [1, 5])
    def test_loss_of_frame_with_only_ignored_pixels_is_finite(self, num_labels):
        stages = [torch.randn(1, 1, num_labels, 4, 4, requires_grad=True) for _ in range(4)]
        labels = torch.full((1, 1, 4, 4), 255)
        loss = deeply_supervised_loss(stages, labels, torch.ones(1, 1, dtype=torch.bool), [1.0] * 4)
        loss.backward()
        assert math.isfinite(loss.item())
        assert all(torch.isfinite(logits.grad).all() for logits in stages)

    def test_half_precision_logits_are_summed_in_float32(self):
        logits = torch.zeros(1, 1, 300, 300, dtype=torch.float16)
        labels = torch.zeros(1, 300, 300, dtype=torch.long)
        # 90,000 pixels of p = 1/2 sum to 45,000; in float16 the sums would be coarse or overflow at 65,504.
        assert binary_loss(logits, labels).item() == pytest.approx(math.log(2) + 1 - 1 / 45001, rel=1e-5)

    @pytest.mark.parametrize(
        ("num_labels", "wrong", "message"),
        [
            (1, 254, r"contains 254, expected 0\.\.1 or ignore_index 255; convert a 0/255 mask with mask > 127"),
            (1, -1, r"contains -1, expected 0\.\.1"),
            (1, 0.5, r"contains 0\.5, expected 0\.\.1"),
            (5, 5, r"contains 5, expected 0\.\.4"),
        ],
    )
    def test_invalid_labels_raise_only_in_annotated_frames(self, num_labels, wrong, message):
        stages = [torch.zeros(1, 2, num_labels, 4, 4)] * 4
        labels = torch.zeros(1, 2, 4, 4, dtype=torch.float if isinstance(wrong, float) else torch.long)
        labels[0, 1, 2, 3], labels[0, 0, 0, 0] = wrong, 255
        with pytest.raises(ValueError, match=message):
            deeply_supervised_loss(stages, labels, torch.tensor([[True, True]]), [1.0] * 4)
        assert deeply_supervised_loss(stages, labels, torch.tensor([[True, False]]), [1.0] * 4).isfinite()

    @pytest.mark.parametrize("num_labels", [1, 5])
    @pytest.mark.parametrize(
        ("dtype", "ignore_index"), [("int8", 255), ("uint16", 255), ("uint8", -100), ("bool", 255)]
    )
    def test_labels_of_any_type_give_the_same_loss(self, num_labels, dtype, ignore_index):
        """Frames without annotations get the ignore index, which some types cannot hold."""
        stages = [torch.randn(1, 2, num_labels, 4, 4)] * 4
        labels, annotated = torch.randint(0, 2, (1, 2, 4, 4)), torch.tensor([[True, False]])
        expected = deeply_supervised_loss(stages, labels, annotated, [1.0] * 4, ignore_index)
        converted = labels.to(getattr(torch, dtype))
        assert deeply_supervised_loss(stages, converted, annotated, [1.0] * 4, ignore_index) == expected


class TestDistillation:
    def test_prediction_divergence_of_one_pixel_by_hand(self):
        # Probabilities of the teacher 1/2, 3/4, 1/2 and 3/4, on average 5/8; of the student 1/2.
        teacher = torch.tensor([[[[0.0, math.log(3)], [0.0, math.log(3)]]]])
        expected = 5 / 8 * math.log(5 / 4) + 3 / 8 * math.log(3 / 4)
        assert prediction_divergence(torch.zeros(1, 1, 1, 1), teacher).tolist() == pytest.approx([expected])
        two_classes = torch.cat([torch.zeros_like(teacher), teacher], dim=1)
        assert prediction_divergence(torch.zeros(1, 2, 1, 1), two_classes).tolist() == pytest.approx([expected])

    def test_feature_distance_of_two_pixels_by_hand(self):
        # The angle is 45 degrees in the first pixel and 0 in the second, whatever the lengths.
        student = torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]])
        teacher = torch.tensor([[[[4.0, 0.0, 6.0, 6.0]], [[0.0, 4.0, 8.0, 8.0]]]])
        assert feature_distance(student, teacher).tolist() == pytest.approx([(1 - math.sqrt(0.5)) / 2])

    def test_gradient_of_features_of_no_length_is_finite(self):
        student = torch.full((1, 2, 1, 1), 1e-20, requires_grad=True)
        feature_distance(student, torch.ones(1, 2, 1, 1)).sum().backward()
        assert student.grad.abs().max() < 1e3

    @pytest.mark.parametrize("divergence", [prediction_divergence, feature_distance])
    def test_loss_is_a_sum_over_stages_of_annotated_frames_and_teaches_only_the_coarser_ones(self, divergence):
        torch.manual_seed(0)
        stages = [torch.rand(3, 2, size, size, requires_grad=True) for size in (1, 2, 4, 8)]
        annotated = torch.tensor([True, False, True])
        expected = sum(divergence(stage, stages[-1])[[0, 2]].sum().item() / 2 for stage in stages[:3])
        loss = distillation_loss(stages, annotated, divergence)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-6) and expected > 0
        assert stages[-1].grad is None
        for stage in stages[:3]:
            assert stage.grad[[0, 2]].abs().min() > 0 and not stage.grad[1].any()

    def test_nothing_annotated_gives_zero(self):
        stages = [torch.rand(2, 3, size, size) for size in (1, 2)]
        assert distillation_loss(stages, torch.zeros(2, dtype=torch.bool), prediction_divergence) == 0

    @pytest.mark.parametrize("padded", [False, True])
    @pytest.mark.parametrize("weights", [(0.5, 0.0), (0.0, 0.25), (0.5, 0.25)])
    def test_weighted_losses_are_added_and_do_not_teach_the_finest_stage(self, weights, padded):
        batch = tiny_batch()
        labels = torch.randint(0, 2, (2, 3, 48, 64))
        if padded:
            batch["frame_mask"] = torch.tensor([[True, True, True], [True, False, False]])
        annotated = torch.tensor([[True, False, True], [True, True, True]])
        plain, distilled = tiny_model(), tiny_model()
        distilled.config.distillation_weight, distilled.config.feature_distillation_weight = weights
        given = {"labels": labels, "annotated_frames": annotated}
        outputs = plain(**batch, **given, output_hidden_states=True)
        counted = annotated & batch.get("frame_mask", torch.ones_like(annotated))
        computed = batch.get("frame_mask", torch.ones_like(annotated))
        stages = [logits.flatten(0, 1) for logits in plain.model(**batch).stage_logits]
        expected = outputs.loss + weights[0] * distillation_loss(stages, counted.flatten(), prediction_divergence)
        expected += weights[1] * distillation_loss(outputs.hidden_states[1:], counted[computed], feature_distance)
        loss = distilled(**batch, **given).loss
        torch.testing.assert_close(loss, expected)
        assert loss > outputs.loss
        loss.backward()
        outputs.loss.backward()
        finest, coarsest = (
            [model.model.stages[index].head[-1].weight.grad for model in (plain, distilled)] for index in (3, 0)
        )
        torch.testing.assert_close(*finest)
        assert weights[0] == 0 or not torch.allclose(*coarsest)

    def test_without_labels_and_in_the_optimized_model_nothing_changes(self):
        batch, changed = tiny_batch(), {"distillation_weight": 1.0, "feature_distillation_weight": 1.0}
        plain, distilled = tiny_model(), tiny_model(**changed)
        assert plain.state_dict().keys() == distilled.state_dict().keys()
        distilled.load_state_dict(plain.state_dict())
        with torch.no_grad():
            outputs = distilled(**batch)
            assert torch.equal(outputs.logits, plain(**batch).logits)
            assert torch.equal(distilled.for_inference()(**batch).logits, plain.for_inference()(**batch).logits)
        assert outputs.hidden_states is None


class TestStrictLoading:
    @pytest.fixture
    def encoder(self) -> VGGishModel:
        torch.manual_seed(0)
        return VGGishModel(tiny_config().audio_config)

    def test_complete_weights_load(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        loaded = load_strict(VGGishModel, tmp_path)
        assert all(torch.equal(values, loaded.state_dict()[name]) for name, values in encoder.state_dict().items())
        assert not loaded.training

    @pytest.mark.parametrize("problem", ["missing", "reshaped"])
    def test_incomplete_weights_raise(self, problem, encoder, tmp_path):
        weights = encoder.state_dict()
        name = sorted(weights)[-1]
        if problem == "missing":
            del weights[name]
        else:
            weights[name] = torch.cat([weights[name]] * 2)
        encoder.save_pretrained(tmp_path, state_dict=weights)
        message = (
            f"lacks weights of a VGGishModel, such as {name} \\(1 of {len(encoder.state_dict())}\\). Give a folder"
        )
        with pytest.raises(ValueError, match=message):
            load_strict(VGGishModel, tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer, .* `git lfs pull`"),
            (b"", "is damaged or incomplete: .*header too small. Download or copy it again"),
            (None, "is damaged or incomplete: .*incomplete metadata"),
        ],
    )
    def test_damaged_files_are_named(self, model, encoder, tmp_path, content, message):
        for part, name in ((model, "network"), (encoder, "encoder")):
            part.save_pretrained(tmp_path / name)
            file = tmp_path / name / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-10] if content is None else content)
        for load in (
            lambda: AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "network"),
            lambda: PCMANetModel.from_pretrained(pretrained_model_name_or_path=tmp_path / "network"),
        ):
            with pytest.raises(ValueError, match=f"network.model.safetensors {message}"):
                load()
        with pytest.raises(ValueError, match=f"encoder.model.safetensors {message}"):
            PCMANetForAudioVisualSegmentation.from_pretrained_backbones(audio=tmp_path / "encoder")

    def test_missing_folder_raises(self, tmp_path):
        with pytest.raises(OSError, match="missing"):
            load_strict(VGGishModel, tmp_path / "missing")
