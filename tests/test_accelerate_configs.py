"""The launch configs: Accelerate reads each as what its name says, the CPU's starts two processes, FSDP2's way is exact."""

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


ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "accelerate_configs"
# Name to the kind that Accelerate makes of it, its machines and its processes.
KINDS = {
    "one_gpu": ("NO", 1, 1),
    "ddp": ("MULTI_GPU", 1, 8),
    "fsdp2": ("FSDP", 1, 8),
    "deepspeed_zero2": ("DEEPSPEED", 1, 8),
    "several_machines": ("MULTI_GPU", 2, 16),
    "cpu_processes": ("MULTI_GPU", 1, 2),
}


def commands(name: str) -> list[list[str]]:
    """The `accelerate launch` commands in the comment of a config, as words."""
    comment = re.sub(r" *\\\n# *", " ", (FOLDER / f"{name}.yaml").read_text())
    lines = re.findall(r"^# .*?accelerate launch (.*)$", comment, flags=re.MULTILINE)
    return [line.split() for line in lines if "--config_file" in line]


def test_every_config_is_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_each_as_what_it_is(name):
    config = ClusterConfig.from_yaml_file(str(FOLDER / f"{name}.yaml"))
    kind, machines, processes = KINDS[name]
    assert (config.distributed_type.value, config.num_machines, config.num_processes) == (kind, machines, processes)
    assert config.use_cpu is (name == "cpu_processes")
    # What the weights depend on is in the recipe alone.
    assert not config.mixed_precision and not config.dynamo_config


@pytest.mark.parametrize("name", KINDS)
def test_the_command_in_its_comment_starts_the_script_with_it(name):
    ranks = commands(name)
    assert len(ranks) == (2 if name == "several_machines" else 1)
    for rank, words in enumerate(ranks):
        options = launch_command_parser().parse_args(words)
        assert options.config_file == f"examples/accelerate_configs/{name}.yaml"
        assert options.training_script == "examples/train_pcmanet.py"
        assert options.machine_rank == (rank if len(ranks) == 2 else None)
        script = options.training_script_args
        assert (ROOT / script[script.index("--recipe") + 1]).is_file()


@pytest.fixture
def workers_environment(monkeypatch):
    """What the launcher hands to its workers, for a config."""

    def prepare(name: str, launcher: Callable) -> dict[str, str]:
        monkeypatch.chdir(ROOT)
        options, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(commands(name)[0]))
        options.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        prepared = launcher(options)
        return prepared[1] if isinstance(prepared, tuple) else prepared

    return prepare


def test_fsdp2_splits_what_the_model_names(workers_environment, monkeypatch):
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
    # Accelerate asks for these without expecting an error.
    assert model.get_input_embeddings() is None and model.get_output_embeddings() is None


def test_deepspeed_splits_gradients_and_optimizer(workers_environment):
    environment = workers_environment("deepspeed_zero2", prepare_deepspeed_cmd_env)
    wanted = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    }
    assert {name: environment[name] for name in wanted} == wanted


@pytest.mark.slow
def test_the_cpu_config_starts_two_processes(tmp_path):
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
def test_two_processes_that_split_the_network_train_it_as_one_that_has_it_whole(tmp_path):
    script = Path(__file__).parent / "sharded_training.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(script.parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"DecoderStage", "PCMANetForAudioVisualSegmentation"} <= set(found["wrapped"])
    # Half of the network lies in each process, but for weights with an odd number of rows.
    assert 0.49 < found["local_parameters"] / found["whole_parameters"] < 0.52
    # Only the order of sums differs: float32 sums of a few hundred terms, and steps of about 1e-3.
    assert found["largest_move"] > 1e-3
    assert found["largest_relative_difference"] < 1e-6
    assert found["weight_difference"] < 1e-7
    assert found["same_names"] and found["saved_difference"] == 0
    model = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "checkpoint")
    assert model.config.architectures == ["PCMANetForAudioVisualSegmentation"]
