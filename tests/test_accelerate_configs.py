"""The launch configs: Accelerate reads each as its name says, cpu_processes starts two processes, FSDP2 trains exactly."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from tiny_model import tiny_model

from modeling_pcmanet import PCMANetForAudioVisualSegmentation
from pcmanet.cli.arguments import parse_arguments
from pcmanet.files import find_recipe


ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "accelerate_configs"
# Name to distributed type, number of machines and number of processes.
KINDS = {
    "one_gpu": ("NO", 1, 1),
    "ddp": ("MULTI_GPU", 1, 8),
    "fsdp2": ("FSDP", 1, 8),
    "deepspeed_zero2": ("DEEPSPEED", 1, 8),
    "several_machines": ("MULTI_GPU", 2, 16),
    "cpu_processes": ("MULTI_GPU", 1, 2),
}


def commands(name: str) -> list[list[str]]:
    """Return the `accelerate launch` commands in the comment of a config, as words."""
    comment = re.sub(r" *\\\n# *", " ", (FOLDER / f"{name}.yaml").read_text())
    lines = re.findall(r"^# .*?accelerate launch (.*)$", comment, flags=re.MULTILINE)
    return [line.split() for line in lines if "--config_file" in line]


def test_every_config_is_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_each_config_as_its_name_says(name):
    config = ClusterConfig.from_yaml_file(str(FOLDER / f"{name}.yaml"))
    kind, machines, processes = KINDS[name]
    assert (config.distributed_type.value, config.num_machines, config.num_processes) == (kind, machines, processes)
    assert config.use_cpu is (name == "cpu_processes")
    # What determines the weights is in the recipe alone.
    assert not config.mixed_precision and not config.dynamo_config


@pytest.mark.parametrize("name", KINDS)
def test_command_in_its_comment_starts_pcmanet_train_with_it(name):
    ranks = commands(name)
    assert len(ranks) == (2 if name == "several_machines" else 1)
    for rank, words in enumerate(ranks):
        options = launch_command_parser().parse_args(words)
        assert options.config_file == f"examples/accelerate_configs/{name}.yaml"
        assert options.module and options.training_script == "pcmanet"
        assert options.machine_rank == (rank if len(ranks) == 2 else None)
        parsed = parse_arguments(options.training_script_args)
        assert parsed.command == "train" and find_recipe(parsed.recipe).is_file()


@pytest.fixture
def workers_environment(monkeypatch):
    """The environment that the launcher passes to its workers, for a config."""

    def prepare(name: str, launcher: Callable) -> dict[str, str]:
        monkeypatch.chdir(ROOT)
        options, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(commands(name)[0]))
        options.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        prepared = launcher(options)
        return prepared[1] if isinstance(prepared, tuple) else prepared

    return prepare


def test_fsdp2_wraps_what_the_model_lists(workers_environment, monkeypatch):
    environment = workers_environment("fsdp2", prepare_multi_gpu_env)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    model = tiny_model()
    plugin.set_auto_wrap_policy(model)
    assert {kind.__name__ for kind in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]} >= {"DecoderStage"}
    # Accelerate calls these without expecting an error.
    assert model.get_input_embeddings() is None and model.get_output_embeddings() is None


def test_deepspeed_shards_gradients_and_optimizer_state(workers_environment):
    environment = workers_environment("deepspeed_zero2", prepare_deepspeed_cmd_env)
    expected = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    }
    assert {name: environment[name] for name in expected} == expected


@pytest.mark.slow
def test_cpu_config_starts_two_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from accelerate import Accelerator\nfrom accelerate.utils import gather_object\nwith_rank = Accelerator()\n"
        "print(*gather_object([(with_rank.process_index, with_rank.device.type)]), with_rank.num_processes)\n"
        "with_rank.end_training()\n"
    )
    command = ["accelerate.commands.launch", *commands("cpu_processes")[0][:2], str(script)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    assert result.stdout.splitlines() == ["(0, 'cpu') (1, 'cpu') 2"] * 2


@pytest.mark.slow
def test_sharded_training_equals_training_of_the_complete_network(tmp_path):
    script = Path(__file__).parent / "sharded_training.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(script.parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"DecoderStage", "PCMANetForAudioVisualSegmentation"} <= set(found["wrapped"])
    # Each process has half of the network, except for weights with an odd number of rows.
    assert 0.49 < found["local_parameters"] / found["complete_parameters"] < 0.52
    # Only the order of sums differs: float32 sums of a few hundred terms.
    assert found["largest_change"] > 1e-3
    assert found["largest_relative_difference"] < 1e-6
    assert found["weight_difference"] < 1e-7
    assert found["same_names"] and found["saved_difference"] == 0
    model = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "checkpoint")
    assert model.config.architectures == ["PCMANetForAudioVisualSegmentation"]
