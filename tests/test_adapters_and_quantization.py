"""Tests with what changes a loaded model: adapters (LoRA of `peft`), quantized weights (`torchao`), half precision."""

import copy
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_batch, tiny_model
from torch import nn
from transformers import AutoModelForSemanticSegmentation, Trainer, TrainingArguments


PROJECTIONS = r".*cross_attention\.(audio|visual)_to_(audio|visual)\.(query|value)"
QUANTIZED = "are quantized or sharded and cannot be optimized. Run the model itself"
# Deprecated in favor of torchao, but the only quantization in PyTorch itself.
quantize_dynamic = pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning")


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_batch()).logits.float()


def train_one_step(model: nn.Module) -> None:
    """Compute a loss in training mode and change the weights that are trained."""
    labels = torch.randint(0, 2, (2, 3, 48, 64), generator=torch.Generator().manual_seed(0))
    model.train()
    model(**tiny_batch(), labels=labels).loss.backward()
    torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.1).step()
    model.eval()


def test_frozen_batch_norms_keep_their_statistics():
    model = tiny_model()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.requires_grad_(False)
    model.model.audio_projection.requires_grad_(True)
    train_one_step(model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    neck = model.model.neck[0]
    neck.requires_grad_(True)
    train_one_step(model)
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed and all(name.startswith("model.neck.0.") for name in changed)


@pytest.mark.parametrize("as_method", [False, True])
def test_lora(tmp_path: Path, as_method: bool):
    import peft

    config = peft.LoraConfig(r=2, target_modules=PROJECTIONS)
    model = tiny_model()
    expected = logits_of(model)
    if as_method:
        model.add_adapter(config)
        tuned = model
    else:
        tuned = peft.get_peft_model(model, config)
    torch.testing.assert_close(logits_of(tuned), expected)
    train_one_step(tuned)
    trained = logits_of(tuned)
    assert (trained - expected).abs().max() > 1e-4
    assert "lora" in str(model.find_optimization_obstacle())

    # The file of the adapter is complete: on the original weights it gives the same logits.
    tuned.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    again = tiny_model()
    if as_method:
        again.load_adapter(str(tmp_path))
    else:
        again = peft.PeftModel.from_pretrained(again, str(tmp_path))
    torch.testing.assert_close(logits_of(again.eval()), trained)


@pytest.mark.parametrize("target_modules", ["all-linear", r".*fusion.*projection\.0", r".*head\.[03]"])
def test_every_adapter_is_trained(target_modules: str):
    import peft

    tuned = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=2, target_modules=target_modules))
    labels = torch.randint(0, 2, (2, 3, 48, 64), generator=torch.Generator().manual_seed(0))
    tuned.train()(**tiny_batch(), labels=labels).loss.backward()
    adapters = {name: weight for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert adapters
    assert not [name for name, weight in adapters.items() if weight.grad is None]


@quantize_dynamic
def test_dynamic_quantization_runs_the_model_itself():
    model = tiny_model()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    exact = logits_of(model)
    assert (logits_of(quantized) - exact).abs().mean() < 0.02 * exact.abs().max()
    assert "torch.ao.nn.quantized.dynamic" in str(quantized.find_optimization_obstacle())
    with pytest.raises(ValueError, match=QUANTIZED):
        quantized.for_inference()


class OtherTensor(torch.Tensor):
    """A tensor that is not a plain one, as quantized and sharded weights are."""


def test_weights_that_are_not_plain_tensors_are_not_optimized():
    model = tiny_model()
    linear = model.model.audio_projection
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(OtherTensor))
    assert model.find_optimization_obstacle() == "the quantized or sharded weight of model.audio_projection"
    with pytest.raises(ValueError, match=f"The weights of model.audio_projection {QUANTIZED}"):
        model.for_inference()


@pytest.mark.parametrize("while_loading", [False, True])
def test_torchao(tmp_path: Path, while_loading: bool):
    # Not installed for the tests: transformers then imports it at every start, where torchao 0.18 prints warnings of torch 2.14.
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_model()
    exact = logits_of(model)
    if while_loading:
        from transformers import TorchAoConfig

        model.save_pretrained(tmp_path)
        config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
        model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, quantization_config=config)
    else:
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert 0 < (logits_of(model) - exact).abs().mean() < 0.02 * exact.abs().max()
    assert "quantized" in str(model.find_optimization_obstacle())
    with pytest.raises(ValueError, match=QUANTIZED):
        model.for_inference()


class Clips(torch.utils.data.Dataset):
    """Two clips with labels."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = {name: tensor[index] for name, tensor in tiny_batch().items()}
        return {**batch, "labels": torch.zeros(3, 48, 64, dtype=torch.int64)}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_evaluation_in_half_precision(tmp_path: Path, dtype: str):
    settings = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "per_device_eval_batch_size": 2}
    exact = Trainer(tiny_model(), TrainingArguments(**settings), eval_dataset=Clips()).evaluate()["eval_loss"]
    arguments = TrainingArguments(**settings, **{f"{dtype}_full_eval": True})
    half = Trainer(tiny_model(), arguments, eval_dataset=Clips()).evaluate()["eval_loss"]
    assert half == pytest.approx(exact, rel=0.02) and half != exact
