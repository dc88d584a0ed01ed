"""Conversion of published weights: every variant and backbone, leftover keys, reading of files, the command line."""

import os
import re
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from published_backbones import PublishedPvtV2, PublishedResNet, published_vggish
from published_weights import published_shapes, section_shapes, seeded_state_dict, vggish_shapes
from safetensors.torch import save_file
from tiny_model import tiny_model
from transformers import AutoConfig, AutoProcessor, PvtV2Backbone, ResNetBackbone
from transformers.image_utils import IMAGENET_DEFAULT_MEAN

from modeling_pcmanet import (
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
    VGGishConfig,
    VGGishModel,
    convert_pcmanet_to_hf,
)
from modeling_pcmanet.convert_pcmanet_to_hf import Conversion, convert_state_dict, main, read_state_dict


def meta_weights(shapes):
    """Return weights without values, for tests of names and shapes."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def tagged_weights(shapes):
    """Fill every weight with a different number, without using memory."""
    return {key: torch.tensor(float(index)).expand(shape) for index, (key, shape) in enumerate(shapes.items())}


def backbone_shapes(backbone):
    """Return the keys of a published backbone file with its classification head."""
    prefix = {"pvt": "encoder_backbone.", "resnet": "resnet."}[backbone]
    shapes = {k.removeprefix(prefix): s for k, s in published_shapes("S4", backbone).items() if k.startswith(prefix)}
    shapes = {re.sub(r"^layer([34])_1", r"layer\1", key): shape for key, shape in shapes.items() if "_2." not in key}
    head = {"pvt": "head", "resnet": "fc"}[backbone]
    return shapes | {f"{head}.weight": [1000, 512 if backbone == "pvt" else 2048], f"{head}.bias": [1000]}


# The six variants.


@pytest.mark.parametrize("backbone", ["pvt", "resnet"])
@pytest.mark.parametrize("setting", ["S4", "MS3", "AVSS"])
def test_every_variant_is_recognized_and_every_key_accounted_for(setting, backbone):
    shapes = published_shapes(setting, backbone)
    conversion = convert_state_dict(meta_weights(shapes), meta_weights(vggish_shapes()))

    assert conversion.title == f"PCMANet for {setting} with {'PVT-v2-B5' if backbone == 'pvt' else 'ResNet-50'}"
    config = conversion.model.config
    assert config.num_groups == (4 if (setting, backbone) == ("S4", "resnet") else 8)
    assert config.backbone_config.model_type == {"pvt": "pvt_v2", "resnet": "resnet"}[backbone]
    assert (config.token_layout, config.masked_query_gradients) == ("scrambled", False)
    assert config.padded_frames == ("zeroed" if setting == "AVSS" else "excluded")
    assert config.num_labels == (71 if setting == "AVSS" else 1)
    assert config.id2label[0] == ("background" if setting == "AVSS" else "sounding")
    assert config.id2label[config.num_labels - 1] == ("woman" if setting == "AVSS" else "sounding")

    attention = "qsca1.attn.transformer.layers.0.0.fn."
    dropped = {key for key in shapes if key.startswith(("gf4.seq2.", "resnet.layer3_2.", "resnet.layer4_2."))}
    dropped |= {f"{attention}v_to_kv.weight", f"{attention}a_to_qkv.weight (slice 1 of 3)"}
    assert set(conversion.dropped) == dropped
    # The parameters of file and model differ by exactly the dropped ones.
    lost = {key: shapes[key] for key in dropped if key in shapes and "running_" not in key and "num_" not in key}
    count = sum(
        torch.Size(shape).numel() for key, shape in shapes.items() if "running_" not in key and "num_" not in key
    )
    count -= sum(torch.Size(shape).numel() for shape in lost.values()) + 256 * 256
    ours = conversion.model.num_parameters() - conversion.model.model.audio_encoder.num_parameters()
    assert ours == count


def test_fused_matrices_are_split_in_published_order():
    state_dict = tagged_weights(published_shapes("S4", "resnet"))
    attention = "qsca3.attn.transformer.layers.0.0.fn."
    state_dict[f"{attention}a_to_qkv.weight"] = torch.arange(768.0)[:, None].expand(768, 256)
    state_dict[f"{attention}v_to_kv.weight"] = torch.arange(512.0)[:, None].expand(512, 256)
    model = convert_state_dict(state_dict, tagged_weights(vggish_shapes())).model
    cross_attention = model.model.stages[1].cross_attention
    first_rows = {
        name: parameter[0, 0].item() for name, parameter in cross_attention.named_parameters() if "_to_" in name
    }
    first_rows.pop("visual_to_audio.query.weight")
    assert first_rows == {
        "audio_to_visual.query.weight": 0,
        "visual_to_audio.key.weight": 256,
        "visual_to_audio.value.weight": 512,
        "audio_to_visual.key.weight": 0,
        "audio_to_visual.value.weight": 256,
    }


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_are_removed(prefix):
    shapes = {prefix + key: shape for key, shape in published_shapes("S4", "resnet").items()}
    assert (
        convert_state_dict(meta_weights(shapes), without_audio_encoder=True).title == "PCMANet for S4 with ResNet-50"
    )


# Leftover keys.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"avga3.extra.weight": [3]}, r"1 unknown keys:\n  avga3\.extra\.weight"),
        (
            {"resnet.layer2.9.conv1.weight": [128, 512, 1, 1], "gf2.seq3.4.bias": [256]},
            r"2 keys without a weight in the model:\n(  resnet\.layer2\.9\.conv1\.weight|  gf2\.seq3\.4\.bias|\n)+$",
        ),
        (
            {"conv4.0.bias": None, "gf1.seq2.1.running_var": None},
            r"2 missing weights:\n  model\.neck\.0\.0\.bias\n"
            r"  model\.stages\.3\.fusion\.guidance_projection\.1\.running_var",
        ),
        (
            {"gf3.seq1.0.weight": [256, 256, 1, 1]},
            r"1 keys of another shape:\n  gf3\.seq1\.0\.weight \(256, 256, 1, 1\), expected model\.stages\.1\.fusion",
        ),
        ({"aud_fc.bias": [256]}, r"1 keys with the same name in the model as another key:\n  aud_fc\.bias"),
        (
            {"avga4.seq1.0.weight": None},
            r"1 missing weights:\n  model\.stages\.0\.group_attention",
        ),
    ],
    ids=["unknown", "leftover", "missing", "shape", "twice", "missing-size"],
)
def test_leftover_keys_on_either_side_are_listed(change, message):
    shapes = published_shapes("S4", "resnet") | change
    state_dict = meta_weights({key: shape for key, shape in shapes.items() if shape is not None})
    with pytest.raises(ValueError, match=message):
        convert_state_dict(state_dict, meta_weights(vggish_shapes()))


def test_unknown_format_and_incomplete_backbone_raise():
    with pytest.raises(
        ValueError, match="VGGish, AudioMobileNet, EfficientNet-Lite0, PVT-v2, ResNet-50, got keys such as a.b"
    ):
        convert_state_dict({"a.b": torch.zeros(1)})
    shapes = backbone_shapes("pvt")
    shortened = {key: shape for key, shape in shapes.items() if not key.startswith("block3.39.")}
    with pytest.raises(ValueError, match=r"depths \[3, 6, 39, 3\]. Check that the file is complete"):
        convert_state_dict(meta_weights(shortened))


# The audio encoder.


def test_audio_encoder_has_exactly_one_source():
    pcmanet, vggish = meta_weights(published_shapes("S4", "resnet")), meta_weights(vggish_shapes())
    with_audio = pcmanet | {f"audio_backbone.{key}": tensor for key, tensor in vggish.items()}
    with pytest.raises(ValueError, match="without VGGish, no --audio-checkpoint and no --without"):
        convert_state_dict(pcmanet)
    with pytest.raises(ValueError, match="without VGGish, an --audio-checkpoint and --without"):
        convert_state_dict(pcmanet, vggish, without_audio_encoder=True)
    with pytest.raises(ValueError, match="with VGGish, an --audio-checkpoint and no --without"):
        convert_state_dict(with_audio, vggish)
    with pytest.raises(ValueError, match="Expected VGGish weights in the audio checkpoint, got ResNet-50"):
        convert_state_dict(pcmanet, meta_weights(backbone_shapes("resnet")))
    with pytest.raises(ValueError, match="options are for a PCMANet file, got a VGGish file"):
        convert_state_dict(vggish, vggish)
    assert convert_state_dict(with_audio).has_audio_encoder


def test_published_vggish_gives_equal_embeddings():
    weights = seeded_state_dict(vggish_shapes())
    conversion = convert_state_dict(weights | {"pproc.pca_means": torch.zeros(128, 1)})
    patches = torch.randn(2, 1, 96, 64)
    with torch.no_grad():
        assert torch.equal(conversion.model(patches).audio_embeds, published_vggish(weights, patches))
    assert list(conversion.dropped) == ["pproc.pca_means"]


# The visual backbones.


@pytest.mark.parametrize(
    ("shapes", "published_network", "backbone_class", "title"),
    [
        (backbone_shapes("resnet"), PublishedResNet, ResNetBackbone, "ResNet-50"),
        (section_shapes("pvt_v2_b0"), PublishedPvtV2, PvtV2Backbone, "PVT-v2-B0"),
        pytest.param(backbone_shapes("pvt"), PublishedPvtV2, PvtV2Backbone, "PVT-v2-B5", marks=pytest.mark.slow),
    ],
    ids=["resnet-50", "pvt-v2-b0", "pvt-v2-b5"],
)
def test_published_backbone_file_gives_equal_feature_maps(shapes, published_network, backbone_class, title, tmp_path):
    weights = seeded_state_dict(shapes)
    conversion = convert_state_dict(weights)
    assert conversion.title == title
    conversion.save(tmp_path / "visual")
    assert PCMANetImageProcessor.from_backbone(tmp_path / "visual").image_mean == tuple(IMAGENET_DEFAULT_MEAN)
    converted = conversion.model.state_dict()
    for name, weight in backbone_class.from_pretrained(tmp_path / "visual").state_dict().items():
        assert torch.equal(weight, converted[name])

    VGGishModel(VGGishConfig(block_channels=[[4]] * 4, hidden_size=8)).save_pretrained(tmp_path / "audio")
    model = PCMANetForAudioVisualSegmentation.from_pretrained_backbones(tmp_path / "visual", tmp_path / "audio").eval()
    frames = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = model.model.backbone(frames).feature_maps
        for ours, published in zip(maps, published_network(weights).maps(frames), strict=True):
            assert torch.equal(ours, published)


TIMM_NAMES = [
    (r"^patch_embed1\.", "patch_embed."),
    (r"^patch_embed(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.downsample."),
    (r"^block(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks."),
    (r"^norm(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.norm."),
    (r"dwconv\.dwconv", "dwconv"),
]


def timm_name(key):
    for pattern, replacement in TIMM_NAMES:
        key = re.sub(pattern, replacement, key)
    return key


def assert_equal_backbones(first, second):
    first, second = first.model.state_dict(), second.model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_timm_and_transformers_names_of_pvt_give_the_same_backbone():
    weights = tagged_weights(backbone_shapes("pvt"))
    conversion = convert_state_dict(weights)
    assert_equal_backbones(convert_state_dict({timm_name(key): weight for key, weight in weights.items()}), conversion)
    ours = {f"pvt_v2.{name}": weight for name, weight in conversion.model.state_dict().items()}
    renamed = convert_state_dict(ours | {"classifier.weight": torch.zeros(1000, 512)})
    assert_equal_backbones(renamed, conversion)
    assert list(renamed.dropped) == ["classifier.weight"]


def test_transformers_names_and_old_files_of_resnet_give_the_same_backbone():
    weights = tagged_weights(backbone_shapes("resnet"))
    weights |= {key: torch.tensor(0) for key in weights if key.endswith("num_batches_tracked")}
    conversion = convert_state_dict(weights)
    ours = {f"resnet.{name}": weight for name, weight in conversion.model.state_dict().items()}
    assert_equal_backbones(convert_state_dict(ours | {"classifier.1.weight": torch.zeros(1000, 2048)}), conversion)
    # The first ResNet-50 of torchvision is older than the count of batches.
    old = {key: weight for key, weight in weights.items() if not key.endswith("num_batches_tracked")}
    assert_equal_backbones(convert_state_dict(old), conversion)


# Reading files.


@pytest.mark.parametrize(
    "nest",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3, "best_miou": 0.8},
        lambda weights: {"net": {"model": weights}, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
    ],
    ids=["bare", "named", "nested"],
)
def test_state_dict_is_found_at_any_depth(nest, tmp_path):
    weights = {"a.weight": torch.arange(3.0), "b.bias": torch.ones(2)}
    torch.save(nest(weights), tmp_path / "weights.pth")
    found = read_state_dict(tmp_path / "weights.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_safetensors_files_are_read(tmp_path):
    save_file({"a.weight": torch.arange(3.0)}, tmp_path / "weights.safetensors")
    assert read_state_dict(tmp_path / "weights.safetensors")["a.weight"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"ema": {"a.b": torch.zeros(1)}, "model": {"a.b": torch.zeros(1)}},
            r"found the file\['ema'\], the file\['model'\]",
        ),
        ({"epoch": 3}, "found none"),
        ([torch.zeros(1)], "found none"),
    ],
)
def test_file_with_several_state_dicts_or_none_raises(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_file_raises(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} (is damaged or not a checkpoint|was rejected)"):
        read_state_dict(tmp_path / name)


class Malicious:
    """An object whose unpickling would create a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_malicious_pickle_raises_and_is_not_executed(tmp_path):
    torch.save(
        {"state_dict": {"a.b": torch.zeros(1)}, "config": Malicious(tmp_path / "executed")}, tmp_path / "bad.pth"
    )
    message = r"bad\.pth was rejected and nothing in it was executed: it contains objects other than tensors \(posix\.mkdir\)"
    with pytest.raises(SystemExit, match=message):
        main(["--checkpoint", str(tmp_path / "bad.pth"), "--output", str(tmp_path / "output")])
    assert os.listdir(tmp_path) == ["bad.pth"]


# Command line.


def run_converter(*arguments):
    command = [sys.executable, "-m", "modeling_pcmanet.convert_pcmanet_to_hf", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory):
    """Write a PVT-v2-B0 file, the smallest published one."""
    path = tmp_path_factory.mktemp("published") / "pvt_v2_b0.pth"
    torch.save(seeded_state_dict(section_shapes("pvt_v2_b0")), path)
    return path


def test_command_line_converts_backbone_file(small_checkpoint, tmp_path, capsys):
    main(["--checkpoint", str(small_checkpoint), "--output", str(tmp_path / "output")])
    assert capsys.readouterr().out.startswith("Recognized: PVT-v2-B0.\nNote: PVT-v2 expects eps 1e-5")
    assert PvtV2Backbone.from_pretrained(tmp_path / "output").channels == [32, 64, 160, 256]
    # Who can read one file can read the others.
    modes = {(tmp_path / "output" / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


@pytest.mark.slow
def test_command_line_converts_published_checkpoint_bit_identically(tmp_path):
    weights = seeded_state_dict(published_shapes("AVSS", "resnet"))
    torch.save({f"module.{key}": weight for key, weight in weights.items()}, tmp_path / "AVSS_resnet.pth")
    run = run_converter(
        "--checkpoint", tmp_path / "AVSS_resnet.pth", "--output", tmp_path / "output", "--without-audio-encoder"
    )
    assert run.returncode == 0, run.stderr
    assert "Recognized: PCMANet for AVSS with ResNet-50." in run.stdout
    assert "Dropped 174 (unused copy of a ResNet stage): resnet.layer3_2.0.conv1.weight, " in run.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["AVSS_resnet.pth", "output"]

    model, report = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "output", output_loading_info=True)
    assert all(name.startswith("model.audio_encoder.") for name in report["missing_keys"])
    assert not report["unexpected_keys"]
    expected = convert_state_dict(weights, without_audio_encoder=True).model.state_dict()
    for name, weight in model.state_dict().items():
        assert "audio_encoder" in name or torch.equal(weight, expected[name])
    assert AutoConfig.from_pretrained(tmp_path / "output").id2label[2] == "airplane"
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "output"), PCMANetProcessor)


@pytest.mark.parametrize(("num_labels", "short_clip"), [(1, "repeat_last"), (71, "zeros")])
def test_processor_follows_the_task(num_labels, short_clip, tmp_path):
    Conversion("PCMANet", tiny_model(num_labels=num_labels), {}).save(tmp_path / "output")
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    assert processor.feature_extractor.short_clip == short_clip


def test_output_may_be_an_empty_folder_only(small_checkpoint, tmp_path):
    arguments = ["--checkpoint", str(small_checkpoint), "--output", str(tmp_path / "output")]
    (tmp_path / "output").mkdir()
    main(arguments)
    files = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(os.listdir(tmp_path / "output")) == files
    card = ModelCard.load(tmp_path / "output" / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("other", None)
    assert "# PVT-v2-B0, converted" in card.text
    assert "Note: PVT-v2 expects eps 1e-5" in card.text
    with pytest.raises(SystemExit, match="output already exists and is not an empty folder"):
        main(arguments)
    with pytest.raises(SystemExit, match="Checkpoint file missing.pth not found"):
        main(["--checkpoint", "missing.pth", "--output", str(tmp_path / "other")])


def test_failed_save_leaves_no_folder(small_checkpoint, tmp_path, monkeypatch):
    def fail(_model, folder, **_options):
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fail)
    with pytest.raises(SystemExit, match="disk full"):
        main(["--checkpoint", str(small_checkpoint), "--output", str(tmp_path / "output")])
    assert os.listdir(tmp_path) == []


def test_push_to_hub_uploads_the_output(small_checkpoint, tmp_path, monkeypatch, capsys):
    def record(folder, repository, *, message):
        return f"{repository}: {message}: {' '.join(sorted(os.listdir(folder)))}"

    monkeypatch.setattr(convert_pcmanet_to_hf, "upload_folder", record)
    output = tmp_path / "output"
    main(["--checkpoint", str(small_checkpoint), "--output", str(output), "--push-to-hub", "somebody/pvt"])
    # The backbone is a class of transformers; its image processor is ours, so its code is uploaded.
    code = "configuration_encoders.py image_processing_pcmanet.py"
    uploaded = f"README.md config.json {code} model.safetensors preprocessor_config.json"
    pushed = f"Pushed to somebody/pvt: Convert PVT-v2-B0: {uploaded}"
    assert capsys.readouterr().out.endswith(f"Written to {output}\n{pushed}\n")


def test_invalid_repository_id_raises_before_the_conversion(small_checkpoint, tmp_path):
    command = ["--checkpoint", str(small_checkpoint), "--output", str(tmp_path / "output")]
    with pytest.raises(SystemExit, match="error: Repo id must .*'me/my model'"):
        main([*command, "--push-to-hub", "me/my model"])
    assert not (tmp_path / "output").exists()
