"""Configurations: defaults of the paper, presets, labels and errors."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_pcmanet import (
    AudioMobileNetConfig,
    EfficientNetLiteConfig,
    PCMANetConfig,
    VGGishConfig,
    configuration_encoders,
)
from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS


def test_defaults_are_the_papers_pvt_network():
    config = PCMANetConfig()
    assert config.backbone_config.model_type == "pvt_v2"
    assert list(config.backbone_config.hidden_sizes) == [64, 128, 320, 512]
    assert list(config.backbone_config.depths) == [3, 6, 40, 3]
    assert (config.hidden_size, config.num_groups, config.num_attention_heads) == (256, 8, 8)
    assert list(config.token_grid_sizes) == [7, 7, 14, 28]
    assert config.confidence_threshold == 0.01
    assert config.freeze_audio_encoder
    assert config.audio_config.flattened_size == 12288
    assert (config.num_labels, config.id2label) == (1, {0: "sounding"})


def test_saved_configurations_name_no_folder_of_this_machine(tmp_path):
    preset = PCMANetConfig.from_preset("tiny")
    for part in ("backbone_config", "audio_config"):
        getattr(preset, part).save_pretrained(tmp_path / part)
    parts = {part: AutoConfig.from_pretrained(tmp_path / part) for part in ("backbone_config", "audio_config")}
    assert all(config._name_or_path for config in parts.values())
    PCMANetConfig.from_preset("tiny", **parts).save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


@pytest.mark.parametrize(
    ("preset", "widths"),
    [
        ("pvt_v2_b5", [64, 128, 320, 512]),
        ("resnet50", [256, 512, 1024, 2048]),
        ("tiny", [24, 48, 96, 128]),
    ],
)
def test_presets(preset, widths):
    config = PCMANetConfig.from_preset(preset, hidden_size=128)
    assert list(config.backbone_config.hidden_sizes) == widths
    assert config.hidden_size == 128


def test_configurations_share_no_state():
    given = {"block_channels": [[24], [48], [96], [96]]}
    default, tiny, custom = PCMANetConfig(), PCMANetConfig.from_preset("tiny"), PCMANetConfig(audio_config=given)
    default.backbone_config.depths[0] = tiny.backbone_config.hidden_sizes[0] = 999
    tiny.audio_config.block_channels[0][0] = custom.audio_config.block_channels[0][0] = 999
    assert PCMANetConfig().backbone_config.depths[0] == 3
    assert PCMANetConfig.from_preset("tiny").backbone_config.hidden_sizes[0] == 24
    assert PCMANetConfig.from_preset("tiny").audio_config.block_channels[0] == given["block_channels"][0] == [24]


def test_unknown_preset_raises():
    with pytest.raises(ValueError, match="pvt_v2_b5, resnet50, small, tiny"):
        PCMANetConfig.from_preset("resnet51")


def test_labels_of_the_semantic_task():
    config = PCMANetConfig.from_preset("tiny", num_labels=3)
    assert config.id2label == {0: "background", 1: "class 1", 2: "class 2"}
    assert config.label2id["class 2"] == 2
    named = PCMANetConfig.from_preset(
        "tiny", id2label={0: "background", 1: "bell"}, label2id={"background": 0, "bell": 1}
    )
    assert (named.num_labels, named.id2label[1]) == (2, "bell")


def test_both_maps_of_the_labels_agree(tmp_path):
    names = {0: "background", 1: "dog", 2: "cat"}
    indices = {"background": 0, "dog": 1, "cat": 2}
    for given in ({"id2label": names}, {"label2id": indices}, {"id2label": names, "label2id": indices}):
        config = PCMANetConfig(**given)
        assert (config.id2label, config.label2id, config.num_labels) == (names, indices, 3)
    PCMANetConfig(num_labels=2).save_pretrained(tmp_path)
    config = PCMANetConfig.from_pretrained(tmp_path, id2label=names)
    assert (config.id2label, config.label2id) == (names, indices)
    config = PCMANetConfig.from_pretrained(tmp_path, num_labels=3)
    assert config.id2label == PCMANetConfig(num_labels=3).id2label == {0: "background", 1: "class 1", 2: "class 2"}
    assert config.label2id == {"background": 0, "class 1": 1, "class 2": 2}
    assert PCMANetConfig.from_pretrained(tmp_path, num_labels=1).id2label == {0: "sounding"}


def test_avsbench_labels_are_background_and_70_names_in_ascii_order():
    assert len(AVSBENCH_SEMANTIC_LABELS) == 71
    assert AVSBENCH_SEMANTIC_LABELS[0] == "background"
    assert list(AVSBENCH_SEMANTIC_LABELS[1:]) == sorted(AVSBENCH_SEMANTIC_LABELS[1:])
    assert AVSBENCH_SEMANTIC_LABELS[70] == "woman"


def test_round_trip_through_json(tmp_path):
    config = PCMANetConfig.from_preset(
        "tiny", num_labels=4, token_layout="scrambled", stage_loss_weights=[0.1, 0.2, 0.3, 1.0]
    )
    config.save_pretrained(tmp_path)
    assert PCMANetConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PCMANetConfig)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"hidden_sise": 3}, "Did you mean `hidden_size`"),
        ({"frobnicate": 3}, "unknown keyword `frobnicate`. Accepted keywords are audio_classifier"),
        ({"audio_config": {"hidden_sizes": 4}}, "Did you mean `hidden_size`"),
    ],
)
def test_unknown_keywords_raise(keywords, message):
    with pytest.raises(ValueError, match=message):
        PCMANetConfig(**keywords)


@pytest.mark.parametrize("config_class", [VGGishConfig, AudioMobileNetConfig, EfficientNetLiteConfig])
def test_unknown_keywords_of_encoders_raise(config_class):
    with pytest.raises(ValueError, match="Did you mean `num_labels`"):
        config_class(num_lables=3)
    assert config_class(**config_class().to_dict()).to_dict() == config_class().to_dict()


@pytest.mark.parametrize("auto_class", [PCMANetConfig, AutoConfig])
def test_saved_attributes_are_loaded_with_a_warning(auto_class, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(configuration_encoders.logger, "warning_once", configuration_encoders.logger.warning)
    config = PCMANetConfig.from_preset("small", tie_word_embeddings=False)
    additions = {"training_run": "x", "initializer_range": 0.1, "pruned_heads": {}, "hidden_sise": 3}
    for part in (config, config.audio_config, config.backbone_config):
        for name, value in additions.items():
            setattr(part, name, value)
    config.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert PCMANetConfig.from_json_file(tmp_path / "config.json").training_run == "x"
    for part in ("PCMANetConfig", "AudioMobileNetConfig", "EfficientNetLiteConfig"):
        assert f"The saved {part} has the unknown keyword `training_run`, which has no effect." in caplog.text
    assert "`hidden_sise`, which has no effect. Did you mean `hidden_size`?" in caplog.text
    with pytest.raises(ValueError, match="`training_run`"):
        PCMANetConfig(training_run="x")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_groups": 7}, "`num_groups` must divide `hidden_size`, got 7 and 256"),
        ({"num_attention_heads": 3}, "`num_attention_heads` must divide"),
        ({"hidden_size": 0}, "`hidden_size` must be positive, got 0"),
        ({"hidden_size": "wide"}, "expected int, got str"),
        ({"token_grid_sizes": [7, 14]}, "must have 4 finite, non-negative values"),
        ({"token_grid_sizes": [0, 7, 7, 7]}, "must be positive"),
        ({"stage_loss_weights": [1.0, 1.0, 1.0, -1.0]}, "non-negative"),
        ({"stage_loss_weights": [1.0, 1.0, 1.0, float("nan")]}, "`stage_loss_weights` must have 4 finite"),
        ({"layer_norm_eps": -1e-5}, "`layer_norm_eps` must be finite and positive, got -1e-05"),
        ({"patch_embedding_layer_norm_eps": float("nan")}, "`patch_embedding_layer_norm_eps` must be finite"),
        ({"semantic_iou_weight": -1.0}, "`semantic_iou_weight` must be finite and at least 0, got -1.0"),
        ({"distillation_weight": -0.5}, "`distillation_weight` must be finite and at least 0, got -0.5"),
        ({"feature_distillation_weight": float("inf")}, "`feature_distillation_weight` must be finite"),
        ({"distillation_weight": "much"}, "distillation_weight"),
        ({"token_layout": "diagonal"}, "must be one of"),
        ({"padded_frames": "kept"}, "must be one of"),
        ({"confidence_threshold": 0.5}, r"must be in \[0, 0.5\)"),
        ({"backbone_config": {"model_type": "resnet"}}, "must name 4 feature maps"),
        ({"stage_loss_weights": (0, 0.0, 0, 0)}, "must not all be 0"),
        ({"num_labels": 0}, "`num_labels`, the length of `id2label`, must be positive, got 0"),
        ({"num_labels": -1}, "must be positive"),
        ({"id2label": {1: "dog", 2: "cat"}}, r"must name the classes 0 to 1 without a gap, got the indices \[1, 2\]"),
    ],
)
def test_invalid_values_raise(keywords, message):
    with pytest.raises(StrictDataclassError, match=message):
        PCMANetConfig(**keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"hidden_size": -1}, "must be positive"),
        ({"block_channels": [[64], []]}, "non-empty lists"),
        ({"num_mel_bins": 8}, "must be at least 16"),
    ],
)
def test_invalid_vggish_values_raise(keywords, message):
    with pytest.raises(StrictDataclassError, match=message):
        VGGishConfig(**keywords)
