# Copyright 2026 The pcmanet contributors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""PCMANet: Progressive Confident Masking Attention Network for audio-visual segmentation (arXiv 2406.02345).

[`PCMANetModel`] is the network: visual backbone, neck, audio encoder and four decoder stages, coarse to fine.
[`PCMANetForAudioVisualSegmentation`] adds logits at the input size and the loss of the paper. The losses are pure functions
of logits and labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
from huggingface_hub import HfApi
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_pcmanet import NUM_STAGES, PIPELINE_TAG, PCMANetConfig
from .convolutions_pcmanet import in_chunks, resize
from .inference_pcmanet import OptimizedPCMANet, choose_dtype, find_obstacle
from .modeling_audio_encoders import (
    build_audio_encoder,
    embed_windows,
    load_audio_encoder,
    naming_damaged_weights,
)
from .modeling_backbones import build_backbone, build_pyramid, compute_feature_maps, load_backbone
from .modeling_pcmanet_decoder import (
    ClipLayout,
    ConfidenceInducedMasking,
    ConvolutionBlock,
    CrossAttention,
    DecoderStage,
    PCMANetOutput,
    audio_inputs,
    build_layout,
    validate_inputs,
)


logger = logging.get_logger(__name__)
Model = TypeVar("Model", bound=PreTrainedModel)

# Keywords that the decorators of transformers take from a forward call or add to it.
_CAPTURE_KEYWORDS = frozenset({"output_attentions", "output_hidden_states", "return_dict", "use_cache"})


# For users without this package: transformers reports only that it does not recognize the architecture.
_README = f"""---
library_name: transformers
pipeline_tag: {PIPELINE_TAG}
tags: [audio-visual-segmentation, pcmanet]
---

`import pcmanet` registers the architecture and the task of this checkpoint with transformers:

```python
import pcmanet
from transformers import pipeline

segmenter = pipeline("audio-visual-segmentation", model="path or owner/name")
```
"""


@dataclass
class PCMANetModelOutput(ModelOutput):
    """Output of [`PCMANetModel`]; all feature maps have the size of their stage.

    Padded frames are 0, except with `padded_frames="zeroed"`, which computes them.

    Attributes:
        last_hidden_state: (batch, frames, hidden_size, height / 4, width / 4), the finest fused feature map.
        stage_logits: Four tensors (batch, frames, num_labels, stage height, stage width), coarse to fine.
        confidence_masks: Three uint8 tensors (batch, frames, stage height, stage width) of the three coarser stages, 1 where
            the prediction is uncertain and the next stage selects queries, else 0.
        kept_ratios: (3,), fraction of the pixels of the computed frames that each of these masks keeps.
        hidden_states: If requested, or with labels and a `feature_distillation_weight`, the input of the decoder (the neck
            output of stage 4) and the fused feature map of every stage, (real frames, hidden_size, stage height, stage width),
            coarse to fine.
        audio_embeds: (batch, frames, windows * width), outputs of the audio encoder.
        attentions: If requested, the attention weights of QSCA in order of computation: audio to visual, then visual to
            audio, stage by stage (stage 1 has only the latter). Empty unless `attn_implementation="eager"`.
    """

    last_hidden_state: torch.Tensor | None = None
    stage_logits: tuple[torch.Tensor, ...] | None = None
    confidence_masks: tuple[torch.Tensor, ...] | None = None
    kept_ratios: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class PCMANetPreTrainedModel(PreTrainedModel):
    """Base class of both PCMANet models: initialization, loading and the class attributes of transformers."""

    config: PCMANetConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["video", "audio"]
    supports_gradient_checkpointing = True
    # The loss is a mean over frames, so Trainer must not rescale it by the number of items in a batch.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    # The modules that FSDP2 wraps.
    _no_split_modules = ["DecoderStage"]
    _can_record_outputs = {
        "hidden_states": OutputRecorder(DecoderStage, index=0),
        "attentions": OutputRecorder(CrossAttention, index=1),
    }

    def get_input_embeddings(self) -> None:
        """Return None: the inputs are frames and audio. FSDP2 in Accelerate calls this and expects no error."""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return _find_dtype(self)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Self:
        """Load a checkpoint as transformers does.

        Raises:
            ValueError: If weights are damaged, or `device_map` places parts of the network on several devices.
        """
        _check_device_map(kwargs.get("device_map"))
        with naming_damaged_weights(pretrained_model_name_or_path or "the model"):
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
        _check_device_map(getattr(model, "hf_device_map", None))  # from "auto" on a machine with several GPUs
        # transformers loads into new parameters, which are trainable.
        cast(PCMANetModel, model.base_model).freeze_audio_encoder()
        return loaded

    def _upload_modified_files(self, working_dir: str | PathLike[str], repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Upload as transformers does; a repository without a README.md gets ours, not an empty template."""
        if not HfApi(token=kwargs.get("token")).file_exists(repo_id, "README.md"):
            (Path(working_dir) / "README.md").write_text(_README, encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Save as transformers does, with a README.md unless one exists.

        If the code is saved too, both model classes are registered for the weights.
        """
        if self.is_remote_code():
            both = (PCMANetModel, PCMANetForAudioVisualSegmentation)
            names = {ours._auto_class: f"modeling_pcmanet.{ours.__name__}" for ours in both if ours._auto_class}
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **names}
        else:
            vars(self.config).pop("auto_map", None)  # from an earlier call with code
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            make_weights_readable(save_directory)
            readme = Path(save_directory) / "README.md"
            if not readme.exists():
                readme.write_text(_README, encoding="utf-8")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d | nn.Linear):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        classifier = cast(PCMANetModel, self.base_model).audio_classifier
        # CODEPATH: a new audio classifier begins with logits of 0, as if it were not there.
        if classifier is not None and module is classifier[-1]:
            init.zeros_(cast(nn.Linear, module).weight)

    def initialize_weights(self) -> None:
        """Initialize weights that were not loaded; for custom blocks, as the `__init__` of their class does."""
        stages = [module for module in self.modules() if isinstance(module, DecoderStage)]
        new = [stage for stage in stages if not getattr(stage, "_is_hf_initialized", False)]
        super().initialize_weights()
        for stage in new:
            stage.initialize_custom_blocks(self.config)


def _find_dtype(module: nn.Module) -> torch.dtype:
    """Return the data type of the weights of a module; `nn.DataParallel` makes replicas without parameters."""
    replicated = (tensor for one in module.modules() for tensor in getattr(one, "_former_parameters", {}).values())
    return next(tensor.dtype for tensor in chain(module.parameters(), replicated) if tensor.is_floating_point())


def make_weights_readable(folder: str | PathLike[str]) -> None:
    """Make the weights in a folder readable for all users who can read the folder.

    safetensors 0.8 writes files that only their owner can read (https://github.com/safetensors/safetensors/issues/782).

    Args:
        folder: The folder. Files of other types and subfolders are not changed.
    """
    readable = Path(folder).stat().st_mode & 0o444
    for path in Path(folder).glob("*.safetensors"):
        path.chmod(path.stat().st_mode | readable)


def _check_device_map(device_map: Any) -> None:
    """Raise ValueError if parts of the network are computed on several devices; those on the CPU or disk are offloaded."""
    placed = device_map.values() if isinstance(device_map, dict) else ()
    names = {f"cuda:{device}" if isinstance(device, int) else str(device) for device in placed}
    devices = sorted(names - {"cpu", "disk"})
    if len(devices) > 1:
        raise ValueError(
            f"`device_map` places parts of the network on the devices {', '.join(devices)}, but the stages share the layout of "
            'the clips on one device, and all weights fit there. Pass a single device, such as device_map="cuda:0", and start '
            "one process for each GPU."
        )


class PCMANetModel(PCMANetPreTrainedModel):
    """Backbone, neck, audio encoder and four decoder stages: maps frames and audio to the logits of every stage."""

    def __init__(self, config: PCMANetConfig):
        super().__init__(config)
        config.validate()  # fields may have been assigned since, as by `from_pretrained(..., field=value)`
        self.backbone = build_backbone(cast(PreTrainedConfig, config.backbone_config))
        self._set_backbone_norm_eps()
        audio_config = cast(PreTrainedConfig, config.audio_config)
        self.audio_encoder = build_audio_encoder(audio_config)
        self.audio_projection = nn.Linear(config.audio_inputs_size, config.hidden_size)
        self.audio_classifier = _build_audio_classifier(config)
        self.pyramid = build_pyramid(self.backbone, config.neck)
        self.neck = nn.ModuleList(
            ConvolutionBlock(channels, config.hidden_size) for channels in self.feature_channels[::-1]
        )
        self.stages = nn.ModuleList(DecoderStage(config, index) for index in range(NUM_STAGES))
        self.confidence_masking = ConfidenceInducedMasking(config)
        self.freeze_audio_encoder()
        self.post_init()

    def freeze_audio_encoder(self) -> None:
        """Freeze the audio encoder if the configuration says so."""
        # CODEPATH: published networks keep the audio encoder frozen; one with random weights is trained as well.
        if self.config.freeze_audio_encoder:
            self.audio_encoder.requires_grad_(False).eval()  # a training loop may start without calling `train()`

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a frozen audio encoder and frozen BatchNorms stay in evaluation mode.

        The statistics of a frozen BatchNorm belong to its weights. Adapters (LoRA) are saved without them, so
        statistics that changed in training would be lost. `config.bfloat16_agreement` is set to None, because it was
        measured with other weights.
        """
        super().train(mode)
        if mode:
            self.config.bfloat16_agreement = None
        for module in self.modules():
            is_frozen = not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            if isinstance(module, _BatchNorm) and module.affine and is_frozen:
                module.eval()
        # CODEPATH: as in freeze_audio_encoder.
        if self.config.freeze_audio_encoder:
            self.audio_encoder.eval()
        return self

    @property
    def feature_channels(self) -> list[int]:
        """Channels of the four feature maps that the neck receives, fine to coarse."""
        return self.backbone.channels if self.pyramid is None else self.pyramid.channels

    def _set_backbone_norm_eps(self) -> None:
        """Set the epsilon with which published PVT-v2 weights were trained (see [`PCMANetConfig`])."""
        # CODEPATH: only PVT-v2 has these norms.
        if self.backbone.config.model_type != "pvt_v2":
            return
        for name, module in self.backbone.named_modules():
            if name.endswith(("patch_embedding.layer_norm", "attention.layer_norm")):
                module.eps = self.config.patch_embedding_layer_norm_eps

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> PCMANetModelOutput:
        """Run the network.

        Args:
            pixel_values: (batch, frames, 3, height, width), from the processor, height and width of at least 32; converted
                to the data type of the model.
            input_features: (batch, frames, ...), the features of the audio of each frame, from the processor; with several
                windows per frame (batch, frames, windows, ...).
            audio_embeds: (batch, frames, windows * width), outputs of the audio encoder, instead of `input_features`.
            frame_mask: (batch, frames) bool, False for padding.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: If a shape is wrong, or not exactly one of the two audio inputs is given.
            TypeError: If a keyword is unknown.
        """
        if unknown := set(kwargs) - _CAPTURE_KEYWORDS:
            raise TypeError(
                f"The model got the unknown keywords {sorted(unknown)}. If they come from a processor call with "
                "`return_metadata=True`, pop the metadata (timestamps, original_sizes, frames) from the batch first."
            )
        validate_inputs(pixel_values, input_features, audio_embeds, frame_mask, self.config)
        attention = self.config._attn_implementation
        if kwargs.get("output_attentions") and attention != "eager":
            logger.warning_once(
                f"`attentions` stays empty, because {attention} attention does not return its weights: load the model with "
                '`attn_implementation="eager"` or call `set_attn_implementation("eager")`.'
            )
        pixel_values = pixel_values.to(self.dtype)  # the Trainer's `bf16_full_eval` converts weights, but not inputs
        layout = build_layout(pixel_values, frame_mask, self.config)
        embeddings = self._embed_audio(input_features, audio_embeds, layout)
        maps = compute_feature_maps(self.backbone, self.pyramid, layout.to_frames(pixel_values))[::-1]
        maps = [neck(feature_map) for neck, feature_map in zip(self.neck, maps, strict=True)]
        if frame_mask is not None and layout.real is None:
            # As published, the embeddings are zeroed before the projection, so that its bias remains in padded frames.
            real = frame_mask.flatten().to(embeddings.dtype)
            embeddings, maps = embeddings * real[:, None], [x * real[:, None, None, None] for x in maps]
        inputs = audio_inputs(embeddings, self.config)
        heard = None if self.audio_classifier is None else self.audio_classifier(inputs)[:, :, None, None]

        fused, stage_logits, masks = self._decode(maps, self.audio_projection(inputs), heard, layout)
        return PCMANetModelOutput(
            last_hidden_state=layout.to_clips(fused),
            stage_logits=tuple(layout.to_clips(logits) for logits in stage_logits),
            # Not bool, because bool does not support arithmetic on outputs, such as that of transformers' own tests.
            confidence_masks=tuple(layout.to_clips(mask.to(torch.uint8)) for mask in masks),
            kept_ratios=torch.stack([mask.float().mean() for mask in masks]),
            audio_embeds=layout.to_clips(embeddings),
        )

    def _embed_audio(
        self, input_features: torch.Tensor | None, audio_embeds: torch.Tensor | None, layout: ClipLayout
    ) -> torch.Tensor:
        """Return the audio embeddings of the computed frames, (computed frames, windows * width)."""
        if audio_embeds is not None:
            return layout.to_frames(audio_embeds.to(self.dtype))
        input_features = cast(torch.Tensor, input_features)  # `validate_inputs` requires one of the two
        features = layout.to_frames(input_features).to(_find_dtype(self.audio_encoder))
        return embed_windows(self.audio_encoder, features, self.config.num_audio_windows).to(self.dtype)

    def _decode(
        self, maps: list[torch.Tensor], audio: torch.Tensor, heard: torch.Tensor | None, layout: ClipLayout
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Run the stages coarse to fine; return the finest fused map, all logits and the three confidence masks.

        Args:
            maps: Outputs of the neck, coarse to fine.
            audio: (frames, channels), the projected audio.
            heard: (frames, num_labels, 1, 1), logits of the audio classifier, or None.
            layout: The clip of each frame.
        """
        fused = uncertain = None
        audio_token = audio
        stage_logits, masks = [], []
        for index, (stage, visual) in enumerate(zip(self.stages, maps, strict=True)):
            fused, logits, audio_token = stage(visual, audio, audio_token, fused, uncertain, layout)
            logits = logits if heard is None else logits + heard
            stage_logits.append(logits)
            if index < NUM_STAGES - 1:
                uncertain = self.confidence_masking(logits, uncertain)
                masks.append(uncertain)
        return cast(torch.Tensor, fused), stage_logits, masks


def _build_audio_classifier(config: PCMANetConfig) -> nn.Sequential | None:
    """Build the layers that score the classes from the audio of a frame alone; None if the configuration has none.

    Not in the paper. The blocks compare the audio with every pixel by cosine similarity, which does not express how
    certain the audio is. For example, a saxophone in view got a mask while a clarinet sounded, although the audio
    encoder distinguished the two. docs/benchmarks/ablation.md measures the gain from the classifier.
    """
    # CODEPATH: published networks have none.
    if not config.audio_classifier:
        return None
    # trf-ignore: TRF036 a plain chain, called once
    return nn.Sequential(
        nn.Linear(config.audio_inputs_size, config.hidden_size),
        nn.ReLU(),
        nn.Linear(config.hidden_size, cast(int, config.num_labels)),
    )


class PCMANetForAudioVisualSegmentation(PCMANetPreTrainedModel):
    """PCMANet with logits at the input size and the paper's loss over all four stages.

    Example:
    ```python
    model = PCMANetForAudioVisualSegmentation.from_pretrained("examples/demo_model")
    outputs = model(**processor(videos="clip.mp4", return_tensors="pt"))
    masks = processor.post_process_semantic_segmentation(outputs)
    ```

    The default attention is sdpa. To select it explicitly, pass `attn_implementation={"": "sdpa"}`: a plain string also
    applies to the backbone, and neither PVT-v2 nor ResNet supports sdpa.
    """

    def __init__(self, config: PCMANetConfig):
        super().__init__(config)
        self.model = PCMANetModel(config)
        self.post_init()

    @classmethod
    def from_pretrained_backbones(
        cls,
        visual: str | PathLike[str] | None = None,
        audio: str | PathLike[str] | None = None,
        *,
        preset: str | None = None,
        **config: Any,
    ) -> Self:
        """Build a new model from pretrained backbone and audio encoder weights; all other weights are random.

        [`PCMANetProcessor.from_pretrained_backbones`] builds the matching processor.

        Args:
            visual: Hub id or folder of a backbone that `AutoBackbone` loads, for example `OpenGVLab/pvt_v2_b5`, or of
                a timm model, for example `timm/tf_efficientnet_lite0.in1k`. A plain vision transformer (DINOv2,
                DINOv3) gets a feature pyramid (see `neck` of [`PCMANetConfig`]).
            audio: Hub id or folder of an audio encoder: one of this package or any audio model of transformers.
            preset: Name of a preset (see [`PCMANetConfig.from_preset`]) for everything that is not given, including a
                backbone or audio encoder, which then has random weights; the default is the network of the paper.
            **config: Fields of [`PCMANetConfig`], for example `num_labels=71`.

        Raises:
            OSError: If weights are not found.
            ValueError: If `visual` is not a visual backbone, weights are missing, or they do not fit a configuration that is
                given for their part.
        """
        parts: dict[str, PreTrainedModel] = {}
        if visual is not None:
            parts["backbone"] = load_backbone(visual)
        if audio is not None:
            parts["audio_encoder"] = load_audio_encoder(audio)
        names = {"backbone": "backbone_config", "audio_encoder": "audio_config"}
        settings: dict[str, Any] = {names[part]: loaded.config for part, loaded in parts.items()}
        # CODEPATH: a plain vision transformer has one feature map.
        if visual is not None and len(cast(Any, parts["backbone"]).channels) == 1:
            settings["neck"] = "feature_pyramid"
        settings |= config
        model = cls(PCMANetConfig(**settings) if preset is None else PCMANetConfig.from_preset(preset, **settings))
        for part, loaded in parts.items():
            try:
                getattr(model.model, part).load_state_dict(loaded.state_dict())
            except RuntimeError as error:
                raise ValueError(
                    f"The weights {loaded.name_or_path!r} do not fit the given `{names[part]}`. Leave it out: they have their own "
                    f"configuration.\n{error}"
                ) from error
        return model

    def for_inference(
        self, dtype: torch.dtype | None = None, audio_dtype: torch.dtype | None = None
    ) -> OptimizedPCMANet:
        """Return an optimized copy of the network that computes the same logits faster and cannot be trained.

        Args:
            dtype: Data type of the copy, for example `torch.bfloat16`; defaults to that of this model.
            audio_dtype: Data type of the audio encoder only; defaults to `dtype`. See docs/benchmarks/inference.md.

        Returns:
            A module that takes the same frames, audio and `frame_mask` and whose output has the same `logits`.

        Raises:
            TypeError: If a data type is not a floating-point `torch.dtype`.
            ValueError: If weights are offloaded, quantized or sharded.
        """
        dtype = dtype or self.dtype
        for given in (dtype, audio_dtype or dtype):
            if not (isinstance(given, torch.dtype) and given.is_floating_point and given.itemsize > 1):
                raise TypeError(f"Expected a floating-point data type such as torch.bfloat16, got {given!r}.")
        return OptimizedPCMANet(self, dtype, audio_dtype or dtype)

    def choose_inference_dtype(self) -> tuple[torch.dtype, str]:
        """Choose the data type in which an optimized copy is fastest with the same masks, for [`for_inference`].

        Returns:
            `torch.bfloat16` if `config.bfloat16_agreement` is at least 0.99 and the device of the weights has units for it that
            are known to be faster (AMX or avx512_bf16 in a CPU, or a GPU), otherwise the data type of this model; and the reason.
        """
        if self.dtype != torch.float32:
            return self.dtype, "the data type of the weights"
        return choose_dtype(self.config, self.device)

    def find_optimization_obstacle(self) -> str | None:
        """Return why an optimized copy should not be kept for this model, such as hooks, adapters or custom modules.

        These can change what the model computes without a trace that [`OptimizedPCMANet.is_copy_of`] can detect. The
        pipeline then runs the model itself.

        Returns:
            The reason, or None.
        """
        return find_obstacle(self)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        annotated_frames: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> PCMANetOutput:
        """Segment the sounding objects.

        Args:
            pixel_values: (batch, frames, 3, height, width), from the processor, height and width of at least 32.
            input_features: (batch, frames, ...), the features of the audio of each frame, from the processor; with several
                windows per frame (batch, frames, windows, ...).
            audio_embeds: (batch, frames, windows * width), outputs of the audio encoder, instead of `input_features`.
            frame_mask: (batch, frames) bool, False for padding.
            labels: (batch, frames, height, width), 0/1 or class indices, `config.ignore_index` (255) = ignore.
            annotated_frames: (batch, frames) bool, which frames are annotated; defaults to all real frames.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: If a shape or a label is wrong, or not exactly one of the two audio inputs is given.
            TypeError: If a keyword is unknown.
        """
        # CODEPATH: published networks are trained without distillation; new ones if their configuration asks for it.
        if labels is not None and self.config.feature_distillation_weight > 0:
            kwargs["output_hidden_states"] = True
        outputs = self.model(pixel_values, input_features, audio_embeds, frame_mask, return_dict=True, **kwargs)
        *coarser, logits = outputs.stage_logits
        size = pixel_values.shape[-2:]
        logits = _resize_logits(logits, size)
        stage_logits = None
        if labels is None or not self.training:
            stage_logits = (*(_resize_logits(one, size) for one in coarser), logits)
        loss = None
        if labels is not None:
            annotated = _supervised_frames(logits, labels, frame_mask, annotated_frames)
            loss = self._loss(stage_logits or outputs.stage_logits, labels, annotated)
            loss = loss + self._distillation_loss(outputs, frame_mask, annotated)
        return PCMANetOutput(
            loss=loss,
            logits=logits,
            stage_logits=stage_logits,
            confidence_masks=outputs.confidence_masks,
            kept_ratios=outputs.kept_ratios,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_embeds=outputs.audio_embeds,
        )

    def _loss(
        self, stage_logits: tuple[torch.Tensor, ...], labels: torch.Tensor, annotated: torch.Tensor
    ) -> torch.Tensor:
        """Compute the loss of the paper, with the configured `semantic_iou_weight`, over the annotated real frames."""
        config = self.config
        return deeply_supervised_loss(
            stage_logits, labels, annotated, config.stage_loss_weights, config.ignore_index, config.semantic_iou_weight
        )

    def _distillation_loss(
        self, outputs: PCMANetModelOutput, frame_mask: torch.Tensor | None, annotated: torch.Tensor
    ) -> torch.Tensor | float:
        """Compute the weighted losses that distill the finest stage into the others, over the same frames."""
        loss, config = 0.0, self.config
        # CODEPATH: as in forward, and for predictions and features by themselves.
        if config.distillation_weight > 0:
            stages = [logits.flatten(0, 1) for logits in cast(tuple[torch.Tensor, ...], outputs.stage_logits)]
            loss = config.distillation_weight * distillation_loss(stages, annotated.flatten(), prediction_divergence)
        # CODEPATH: as above.
        if config.feature_distillation_weight > 0:
            _, *stages = cast(tuple[torch.Tensor, ...], outputs.hidden_states)
            computed = build_layout(annotated, frame_mask, config).to_frames(annotated)
            loss = loss + config.feature_distillation_weight * distillation_loss(stages, computed, feature_distance)
        return loss


def _supervised_frames(
    logits: torch.Tensor, labels: torch.Tensor, frame_mask: torch.Tensor | None, annotated_frames: torch.Tensor | None
) -> torch.Tensor:
    """Return the annotated real frames, (batch, frames) bool; raise ValueError if a shape does not fit the logits."""
    expected = (*logits.shape[:2], *logits.shape[3:])
    if labels.shape != expected:
        raise ValueError(
            f"`labels` must be (batch, frames, height, width) = {tuple(expected)}, got {tuple(labels.shape)}."
        )
    if annotated_frames is not None and annotated_frames.shape != labels.shape[:2]:
        raise ValueError(
            f"`annotated_frames` must be (batch, frames) = {tuple(labels.shape[:2])} like `labels`, got "
            f"{tuple(annotated_frames.shape)}."
        )
    annotated = torch.ones(labels.shape[:2], dtype=torch.bool, device=labels.device)
    for mask in (frame_mask, annotated_frames):
        annotated = annotated if mask is None else annotated & mask.bool()
    return annotated


def _resize_logits(logits: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Resize (batch, frames, num_labels, height, width) bilinearly to (height, width)."""
    return resize(logits.flatten(0, 1), size).unflatten(0, logits.shape[:2])


# Losses.


def soft_iou_loss(probabilities: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Compute one minus the soft intersection over union of every frame.

    With I the sum of p t and S the sum of p + t over the valid pixels, the loss is `1 - (I + 1) / (S - I + 1)`.

    Args:
        probabilities: (frames, height, width), the probability that something sounds.
        labels: (frames, height, width) in {0, 1}, float.
        valid: (frames, height, width), 1.0 for pixels that count, else 0.0.

    Returns:
        (frames,), each in [0, 1).
    """
    probabilities = probabilities * valid
    targets = labels * valid
    intersection = (probabilities * targets).sum((1, 2))
    total = (probabilities + targets).sum((1, 2))
    return 1 - (intersection + 1) / (total - intersection + 1)


def binary_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """Compute mean binary cross-entropy plus soft IoU loss of every frame.

    Args:
        logits: (frames, 1, height, width), before the sigmoid.
        labels: (frames, height, width), 0 silent, 1 sounding, `ignore_index` ignored.
        ignore_index: Label of pixels that do not count.

    Returns:
        (frames,).
    """
    logits = logits.squeeze(1).to(torch.promote_types(logits.dtype, torch.float32))
    valid = (labels != ignore_index).to(logits.dtype)
    targets = labels.to(logits.dtype) * valid
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none") * valid
    per_frame = cross_entropy.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
    return per_frame + soft_iou_loss(logits.sigmoid(), targets, valid)


def semantic_loss(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255, iou_weight: float = 0.0
) -> torch.Tensor:
    """Compute the per-pixel cross-entropy of every frame, averaged within the frame, and the weighted soft IoU loss.

    The soft IoU loss merges all classes: its probability is that of any class except the background. Cross-entropy
    alone, as published, counts a missing small object only by its few pixels.

    Args:
        logits: (frames, num_labels, height, width), before the softmax.
        labels: (frames, height, width), class indices, `ignore_index` ignored.
        ignore_index: Label of pixels that do not count.
        iou_weight: Weight of the soft IoU loss.

    Returns:
        (frames,).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probabilities = logits.log_softmax(dim=1)
    cross_entropy = functional.nll_loss(log_probabilities, labels.long(), ignore_index=ignore_index, reduction="none")
    valid = labels != ignore_index
    per_frame = cross_entropy.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
    # CODEPATH: the published loss is cross-entropy alone.
    if iou_weight > 0:
        sounding = 1 - log_probabilities[:, 0].exp()
        targets = ((labels > 0) & valid).to(sounding.dtype)
        per_frame = per_frame + iou_weight * soft_iou_loss(sounding, targets, valid.to(sounding.dtype))
    return per_frame


def _validate_labels(labels: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """Check that every label is a class or `ignore_index`; binary cross-entropy accepts any number as its target.

    On a GPU, the check does not synchronize, so it fails later, as a device-side assert. Compiled graphs have no
    check.

    Args:
        labels: Any shape.
        num_labels: Number of classes, 1 for binary labels.
        ignore_index: Label of pixels that do not count.

    Raises:
        ValueError: If a label is neither a class nor `ignore_index`.
    """
    if torch.compiler.is_compiling() or labels.is_meta:
        return
    highest = max(num_labels, 2) - 1
    unexpected = (labels != ignore_index) & ((labels < 0) | (labels > highest) | (labels != labels.long()))
    expected = f"expected 0..{highest} or ignore_index {ignore_index}; convert a 0/255 mask with mask > 127"
    if labels.is_cuda:
        torch._assert_async(~unexpected.any(), f"`labels`: {expected}.")
    elif unexpected.any():
        raise ValueError(f"`labels` contains {labels[unexpected][0].item()}, {expected}.")


def deeply_supervised_loss(
    stage_logits: Sequence[torch.Tensor],
    labels: torch.Tensor,
    annotated: torch.Tensor,
    stage_weights: Sequence[float],
    ignore_index: int = 255,
    semantic_iou_weight: float = 0.0,
) -> torch.Tensor:
    """Compute the weighted sum of the losses of the four supervised outputs, averaged over the annotated frames.

    Args:
        stage_logits: Four tensors (batch, frames, num_labels, any height, any width), coarse to fine. They are resized to the
            size of the labels a few frames at a time, so that only their gradients at their own size stay in memory.
        labels: (batch, frames, height, width), binary or class indices.
        annotated: (batch, frames) bool, the frames whose labels count. Without annotated frames the loss is 0.
        stage_weights: Four weights; nothing is computed for a stage of weight 0.
        ignore_index: Label of pixels that do not count.
        semantic_iou_weight: Weight of the soft IoU loss in [`semantic_loss`].

    Returns:
        Scalar, float32, or float64 for float64 logits.

    Raises:
        ValueError: If a label that counts is neither a class nor `ignore_index`.
    """
    num_labels = stage_logits[0].shape[2]
    # Integers that cannot hold `ignore_index` are converted; uint8 is kept, because it is an eighth of the size.
    keeps_type = labels.is_floating_point() or (labels.dtype == torch.uint8 and 0 <= ignore_index <= 255)
    labels = labels if keeps_type else labels.long()
    # Ignored, not left out: their loss is 0, and no shape depends on values, for which a GPU would have to wait.
    labels = torch.where(annotated[..., None, None], labels, ignore_index).flatten(0, 1)
    _validate_labels(labels, num_labels, ignore_index)
    num_annotated = annotated.sum().clamp(min=1)
    frame_loss = binary_loss if num_labels == 1 else partial(semantic_loss, iou_weight=semantic_iou_weight)
    frame_loss = partial(frame_loss, ignore_index=ignore_index)
    losses = [
        weight * _frame_losses(logits.flatten(0, 1), labels, frame_loss).sum() / num_annotated
        for logits, weight in zip(stage_logits, stage_weights, strict=True)
        if weight
    ]
    return torch.stack(losses).sum() if losses else torch.zeros((), device=labels.device)


# Computes the loss of every frame (frames,) for logits at the size of their labels, and labels.
_FrameLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _frame_losses(logits: torch.Tensor, labels: torch.Tensor, frame_loss: _FrameLoss) -> torch.Tensor:
    """Compute the loss of every frame (frames,) for logits (frames, num_labels, any height, any width)."""
    if torch.is_grad_enabled() and logits.requires_grad and not torch.compiler.is_compiling():
        return cast(torch.Tensor, _FrameLosses.apply(logits, labels, frame_loss))
    return _losses_at_label_size(logits, labels, frame_loss)


def _losses_at_label_size(logits: torch.Tensor, labels: torch.Tensor, frame_loss: _FrameLoss) -> torch.Tensor:
    """Resize logits to the size of their labels and compute the loss of every frame."""
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = resize(logits, labels.shape[-2:])
    return frame_loss(logits, labels)


class _FrameLosses(torch.autograd.Function):
    """`_losses_at_label_size`; computes gradients at once, a few frames at a time, and keeps them at the logits' size.

    Otherwise, the logits of all stages and their probabilities would be kept at the size of the labels until the
    backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, frame_loss: _FrameLoss) -> torch.Tensor:
        """Return the losses (frames,)."""

        def compute(part: torch.Tensor, part_labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                losses = _losses_at_label_size(leaf, part_labels, frame_loss)
                (gradients,) = torch.autograd.grad(losses.sum(), leaf)
            return losses.detach(), gradients

        # In float32, because a gradient that is not yet scaled may be too small for float16.
        single = logits.to(torch.promote_types(logits.dtype, torch.float32))
        values_per_frame = logits.shape[1] * labels.shape[1] * labels.shape[2]
        losses, gradients = in_chunks(compute, values_per_frame, single, labels)
        ctx.save_for_backward(gradients)
        ctx.dtype = logits.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the logits, given that of the losses."""
        (gradients,) = ctx.saved_tensors
        return (gradients * gradient[:, None, None, None]).to(ctx.dtype), None, None


# Multi-stage distillation. Summaries of the paper mention it, but its abstract and its published code do not. It is
# off by default. docs/benchmarks/ablation.md shows what it changes.


def distillation_loss(
    stages: Sequence[torch.Tensor],
    annotated: torch.Tensor,
    divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Compute the summed divergence of the coarser stages from the finest one, averaged over the annotated frames.

    The finest stage is the teacher and gets no gradient.

    Args:
        stages: Logits or feature maps of the stages, (frames, channels, stage height, stage width), coarse to fine.
        annotated: (frames,) bool, the frames that count. Without annotated frames the loss is 0.
        divergence: [`prediction_divergence`] of logits, or [`feature_distance`] of feature maps.

    Returns:
        Scalar, float32.
    """
    *students, teacher = stages
    losses = [divergence(student, teacher.detach()) for student in students]
    return (torch.stack(losses).sum(0) * annotated).sum() / annotated.sum().clamp(min=1)


def prediction_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Compute the Kullback-Leibler divergence of the probabilities of the teacher from those of the student.

    Args:
        student: Logits (frames, num_labels, height, width), before the sigmoid (one label) or the softmax.
        teacher: Logits (frames, num_labels, larger height, larger width); its probabilities are averaged over the pixels of the
            teacher in each pixel of the student.

    Returns:
        (frames,), the mean over the pixels, in nats.
    """
    if student.shape[1] == 1:  # the sigmoid as the softmax of two classes
        student, teacher = (torch.cat([torch.zeros_like(logits), logits], dim=1) for logits in (student, teacher))
    probabilities = _average_pixels(teacher.float().softmax(1), student)
    divergence = functional.kl_div(student.float().log_softmax(1), probabilities, reduction="none")
    return divergence.sum(1).mean((1, 2))


def feature_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Compute the cosine distance of feature maps.

    Args:
        student: (frames, channels, height, width).
        teacher: (frames, channels, larger height, larger width), averaged over the pixels in each pixel of the student.

    Returns:
        (frames,), the mean over the pixels of one minus the cosine of the angle between the two vectors.
    """
    pooled = _average_pixels(teacher.float(), student)
    # A smaller `eps` lets the gradient of vectors of almost zero length grow without limit.
    similarity = functional.cosine_similarity(student.float(), pooled, dim=1, eps=1e-2)
    return 1 - similarity.mean((1, 2))


def _average_pixels(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Reduce a map to the height and width of another one."""
    height, width = student.shape[2:]
    return functional.adaptive_avg_pool2d(teacher, (height, width))


__all__ = [
    "PCMANetForAudioVisualSegmentation",
    "PCMANetModel",
    "PCMANetModelOutput",
    "PCMANetOutput",
    "binary_loss",
    "deeply_supervised_loss",
    "distillation_loss",
    "feature_distance",
    "make_weights_readable",
    "prediction_divergence",
    "semantic_loss",
    "soft_iou_loss",
]
