"""benchmarks/training_step.py: both kinds of step have the same gradients and train, and the table has a row for each."""

import sys

import inference
import pytest
import torch
import training_step


def test_steps_have_equal_gradients_and_train():
    setting = inference.Setting("tiny", 1, 1, 2, 2, 64, "cpu", 1, True)
    model, batch = inference.build_model(setting).double(), inference.build_batch(setting)
    batch = {name: values.double() for name, values in batch.items()}
    steps = {kind: training_step.build_step(kind, model, batch) for kind in training_step.KINDS}
    differences = training_step.gradient_differences(steps, model, batch)
    assert differences.keys() == steps.keys()
    assert max(differences.values()) < 1e-9
    for step in steps.values():
        weights = [weight.detach().clone() for weight in step.model.parameters()]
        loss = step()
        assert step() < loss
        assert any(not torch.equal(old, new) for old, new in zip(weights, step.model.parameters(), strict=True))


@pytest.mark.slow
def test_table(monkeypatch, capsys):
    arguments = ["--presets", "tiny", "--dtypes", "float32", "--size", "64", "--threads", "1", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["training_step.py", *arguments])
    training_step.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [line.split("|")[5].strip() for line in lines] == ["plain", "training"]
