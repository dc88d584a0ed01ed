"""Transformers' own common model tests on tiny configurations of ours, with both backbones of the paper."""

import unittest
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_model import MEL_SHAPE, TINY_NETWORK, tiny_config
from transformers_suite import load_suite

from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, PCMANetModel


pytestmark = pytest.mark.slow
common = load_suite("test_modeling_common")

TINY_PVT_V2 = {
    "model_type": "pvt_v2",
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "mlp_ratios": [2, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
# Why a test of the suite does not apply. It skips further ones itself, with its own reason, such as those of accelerators.
NOT_APPLICABLE = {
    "test_attention_outputs": "expects one square map per layer; cross-attention of two modalities has seven of other shapes, "
    "which test_output_hidden_states_and_attentions compares",
    "test_hidden_states_output": "expects (tokens, width); ours are feature maps, which "
    "test_output_hidden_states_and_attentions compares",
    "test_model_get_set_embeddings": "expects an nn.Embedding; frames and audio have no vocabulary",
}


class ModelTester:
    """What the suite asks for: a configuration and a batch."""

    is_training = True
    batch_size = 2

    def __init__(self, backbone: dict[str, Any]) -> None:
        self.backbone = backbone

    def get_config(self) -> PCMANetConfig:
        return tiny_config(backbone_config=self.backbone)

    def prepare_config_and_inputs_for_common(self) -> tuple[PCMANetConfig, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        batch = {
            "pixel_values": torch.randn(2, 3, 3, 64, 64, generator=generator),
            "input_features": torch.randn(2, 3, *MEL_SHAPE, generator=generator),
        }
        return self.get_config(), batch


class TestWithResNet(common.ModelTesterMixin, unittest.TestCase):
    backbone = TINY_NETWORK["backbone_config"]
    not_applicable = NOT_APPLICABLE
    all_model_classes = (PCMANetModel, PCMANetForAudioVisualSegmentation)
    additional_model_inputs = ("input_features",)
    test_resize_embeddings = False  # there is no vocabulary

    def setUp(self) -> None:
        if reason := self.not_applicable.get(self._testMethodName):
            self.skipTest(reason)
        self.model_tester = ModelTester(self.backbone)
        # The suite leaves out models without a head from its tests of training, by the table of transformers' own models.
        without_head = patch.dict(common.MODEL_MAPPING_NAMES, pcmanet=PCMANetModel.__name__)
        without_head.start()
        self.addCleanup(without_head.stop)

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False
    ) -> dict[str, Any]:
        """Add labels to the batch of the model with a head."""
        batch = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels and model_class is PCMANetForAudioVisualSegmentation:
            frames = batch["pixel_values"]
            batch["labels"] = (frames[:, :, 0] > 0).long()
        return batch


class TestWithPvtV2(TestWithResNet):
    backbone = TINY_PVT_V2
    not_applicable = {
        **NOT_APPLICABLE,
        "test_training_gradient_checkpointing_use_reentrant_true": "PyTorch gives a reentrant checkpoint no gradients if none "
        "of its inputs needs any, and the first layer of PVT-v2 receives the frames; use_reentrant=False is the default",
    }
