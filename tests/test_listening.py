"""The lesson before the pictures: the audio encoder learns, and what it was allowed before it is allowed after."""

import pytest
import torch
from torch.utils.data import DataLoader
from training_runs import TINY_RUN

from modeling_pcmanet import PCMANetFeatureExtractor, VGGishConfig, VGGishModel
from pcmanet.dataset_scripts.synthetic_listening import SoundMixtures
from pcmanet.training.listening import SoundCollator, teach_listening
from pcmanet.training.recipe import Recipe


@pytest.mark.parametrize("frozen", [True, False])
def test_the_audio_encoder_changes_and_stays_as_frozen_as_it_was(frozen):
    torch.manual_seed(0)
    encoder = VGGishModel(VGGishConfig(block_channels=[[4], [4], [4]], hidden_size=8, embedding_size=10))
    encoder.requires_grad_(not frozen)
    before = [weight.clone() for weight in encoder.parameters()]
    recipe = Recipe(**TINY_RUN, listening_sounds=5)
    teach_listening(encoder, PCMANetFeatureExtractor(), recipe, torch.device("cpu"), quiet=True)
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
        teach_listening(encoder, PCMANetFeatureExtractor(), recipe, torch.device("cpu"), quiet=True)
        lessons.append(torch.cat([weight.detach().flatten() for weight in encoder.parameters()]))
    assert torch.equal(*lessons)
