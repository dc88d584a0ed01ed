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
"""Optimized model of PCMANet: the logits of [`PCMANetForAudioVisualSegmentation`], computed faster and without training.

`model.for_inference()` builds it; docs/benchmarks/inference.md has the measurements of each part. BatchNorms are
folded into convolutions. Feature maps are channels_last, so reading them as tokens or as groups of channels copies
nothing. Only the logits of the finest stage are resized to the input size, and padded frames are not computed. A CPU
computes one clip after the other, so its feature maps stay in the cache. With an early-exit threshold, frames leave
the decoder at the first stage that is certain of them (docs/concepts/early_exit.md). Custom blocks run unchanged
(docs/guides/custom_blocks.md).

This module is ordered from the model to its parts: model, data type, decoder stage, visual backbones, convolutions.
"""

import copy
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import logging, output_capturing

from .configuration_pcmanet import NUM_STAGES, PCMANetConfig
from .convolutions_pcmanet import (
    FoldedConvolution,
    UpsampledConvolution,
    fold_batch_norm,
    fold_block,
    in_chunks,
    resize,
)
from .modeling_audio_encoders import embed_windows
from .modeling_backbones import compute_feature_maps
from .modeling_pcmanet_decoder import (
    AudioVisualGroupAttention,
    ClipLayout,
    ConvolutionBlock,
    CrossAttention,
    DecoderStage,
    GuidedFusion,
    PCMANetOutput,
    QuerySelectedCrossAttention,
    SoundingMaps,
    audio_inputs,
    build_head,
    build_layout,
    resize_nearest,
    unit_length_eps,
    validate_inputs,
)


if TYPE_CHECKING:
    from .modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetModel


logger = logging.get_logger(__name__)


class OptimizedPCMANet(nn.Module):
    """The network of a [`PCMANetModel`] in evaluation mode, rearranged for speed.

    Args:
        model: The model whose weights are copied; it is not modified.
        dtype: Data type of the copy.
        audio_dtype: Data type of its audio encoder.

    Raises:
        ValueError: If weights are offloaded, quantized or sharded.
    """

    def __init__(self, model: "PCMANetForAudioVisualSegmentation", dtype: torch.dtype, audio_dtype: torch.dtype):
        super().__init__()
        _check_copyable(model)
        network = model.model
        self._source = _identify_parts(network), _read_settings(network), _sum_values(network)
        self.config = copy.deepcopy(network.config)
        self.backbone = _optimize_backbone(network.backbone)
        self.pyramid = copy.deepcopy(network.pyramid)
        self.audio_encoder = _fold_sequences(copy.deepcopy(network.audio_encoder))
        self.audio_projection = copy.deepcopy(network.audio_projection)
        self.audio_classifier = copy.deepcopy(network.audio_classifier)
        self.stages = _optimize_stages(network)
        self.has_unchanged_modules = any(isinstance(module, UnchangedModule) for module in self.stages.modules())
        self.confidence_masking = copy.deepcopy(network.confidence_masking)
        self.requires_grad_(False)
        # Custom blocks may have weights of several data types, which are kept unless another one is requested.
        if dtype != network.dtype:
            self.to(dtype)
        for part in (self.backbone, self.audio_encoder, self.audio_projection):
            part.to(memory_format=torch.channels_last)
        nn.Module.to(self.audio_encoder, audio_dtype)
        super().train(False)
        for module in self.modules():
            # Winograd weights, four times the size of the weights themselves, are of no use in half precision or on a GPU.
            if (dtype.itemsize < 4 or self.device.type != "cpu") and isinstance(module, FoldedConvolution):
                module.register_buffer("transformed_weight", None, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the logits and of all weights except those of the audio encoder."""
        return self.audio_projection.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.audio_projection.weight.device

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode.

        Raises:
            RuntimeError: If `mode` is True.
        """
        if mode:
            raise RuntimeError(
                "The optimized model cannot be trained, because its BatchNorms are folded into convolutions. Train the "
                "model on which `for_inference()` was called, then call it again."
            )
        return super().train(False)

    def is_copy_of(self, network: "PCMANetModel", *, compare_values: bool = True) -> bool:
        """Return whether a network is the one that was copied and has not changed since.

        Args:
            network: A network for which `find_obstacle` returns None.
            compare_values: Whether to compare all settings and weights too, which takes one pass over the memory. This
                finds writes through `.data`, which PyTorch does not record.
        """
        parts, settings, sums = self._source
        if _identify_parts(network) != parts:
            return False
        return not compare_values or (_read_settings(network) == settings and torch.equal(_sum_values(network), sums))

    @torch.no_grad()
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        early_exit_threshold: float | None = None,
    ) -> PCMANetOutput:
        """Segment the sounding objects; without early exit the logits are those of the model.

        Args:
            pixel_values: (batch, frames, 3, height, width), from the processor, height and width of at least 32.
            input_features: (batch, frames, ...), the features of the audio of each frame, from the processor; with several
                windows per frame (batch, frames, windows, ...).
            audio_embeds: (batch, frames, windows * width), outputs of the audio encoder, instead of `input_features`.
            frame_mask: (batch, frames) bool, False for padding.
            early_exit_threshold: Largest fraction of uncertain pixels, in [0, 1], at which a frame leaves the decoder
                early. It gets the logits of that stage, and the finer stages run without it, as if it were not part of
                the clip. Uncertain pixels are counted at the size of the next stage, with the thresholds of the
                confidence masks. 0 stops frames without uncertain pixels, 1 stops all frames after the first stage.
                None computes every stage of every frame. Not supported in a compiled or exported graph, because the
                amount of computation depends on the content of the frames.

        Returns:
            `logits`, `confidence_masks`, `audio_embeds` and, with an `early_exit_threshold`, `stages_used`.

        Raises:
            ValueError: If a shape is wrong, not exactly one of the two audio inputs is given, or the early-exit threshold
                is out of range or not supported here.
        """
        validate_inputs(pixel_values, input_features, audio_embeds, frame_mask, self.config)
        if early_exit_threshold is not None:
            self._check_early_exit(early_exit_threshold)
        embeddings = self._embed_audio(input_features, audio_embeds, frame_mask)
        segment = self._segment_clip_by_clip if self._runs_clip_by_clip(pixel_values) else self._segment
        logits, masks, stages_used = segment(pixel_values, embeddings, frame_mask, early_exit_threshold)
        return PCMANetOutput(logits=logits, confidence_masks=masks, stages_used=stages_used, audio_embeds=embeddings)

    def _check_early_exit(self, threshold: float) -> None:
        """Raise a ValueError if frames cannot leave the decoder early."""
        if not 0 <= threshold <= 1:
            raise ValueError(
                f"`early_exit_threshold` is a fraction of the pixels of a frame: expected a number between 0 and 1, got "
                f"{threshold}."
            )
        # CODEPATH: only an ablated network masks nothing.
        if self.config.confidence_threshold == 0:
            raise ValueError(
                "`early_exit_threshold` counts the pixels that confidence masking keeps, but this network has "
                "`confidence_threshold` 0 and keeps all of them, so no frame would stop. Leave the argument out."
            )
        if torch.compiler.is_compiling():
            raise ValueError(
                "`early_exit_threshold` is not supported in a compiled or exported graph, because the amount of computation "
                "depends on the content of the frames. Leave it out, or call the optimized model without compiling it."
            )

    def _runs_clip_by_clip(self, pixel_values: torch.Tensor) -> bool:
        """Return whether clips run one by one; a compiled or exported graph must not depend on their number."""
        is_possible = not torch.compiler.is_compiling() and not self.has_unchanged_modules
        return is_possible and pixel_values.is_cpu and len(pixel_values) > 1

    def _embed_audio(
        self, input_features: torch.Tensor | None, audio_embeds: torch.Tensor | None, frame_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the audio embeddings (batch, frames, windows * width)."""
        if audio_embeds is not None:
            embeddings = audio_embeds.to(self.dtype)
        else:
            input_features = cast(torch.Tensor, input_features)  # `validate_inputs` requires one of the two
            # All frames of all clips at once. With the few frames of one clip, the encoder would spend its time reading
            # weights.
            layout = build_layout(input_features, frame_mask, self.config)
            features = layout.to_frames(input_features).to(self.audio_encoder.dtype)
            embeddings = embed_windows(self.audio_encoder, features, self.config.num_audio_windows)
            embeddings = layout.to_clips(embeddings.to(self.dtype))
        return embeddings if frame_mask is None else embeddings.masked_fill(~frame_mask.bool()[..., None], 0)

    def _segment_clip_by_clip(
        self,
        pixel_values: torch.Tensor,
        embeddings: torch.Tensor,
        frame_mask: torch.Tensor | None,
        early_exit_threshold: float | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor | None]:
        """Compute one clip after the other; see `_segment`."""
        logits = pixel_values.new_empty(0)
        masks, stages_used = [], []
        for index in range(len(pixel_values)):
            clip = slice(index, index + 1)
            clip_mask = None if frame_mask is None else frame_mask[clip]
            clip_logits, clip_masks, clip_stages = self._segment(
                pixel_values[clip], embeddings[clip], clip_mask, early_exit_threshold
            )
            if index == 0:
                # The largest tensor if there are many classes, so it is filled in place and not concatenated at the
                # end.
                logits = clip_logits.new_empty(len(pixel_values), *clip_logits.shape[1:])
            logits[clip] = clip_logits
            masks.append(clip_masks)
            if clip_stages is not None:
                stages_used.append(clip_stages)
        joined = tuple(torch.cat(stage) for stage in zip(*masks, strict=True))
        return logits, joined, torch.cat(stages_used) if stages_used else None

    def _segment(
        self,
        pixel_values: torch.Tensor,
        embeddings: torch.Tensor,
        frame_mask: torch.Tensor | None,
        early_exit_threshold: float | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor | None]:
        """Compute all clips at once; return logits, confidence masks and, with early exit, the stages used."""
        layout = build_layout(pixel_values, frame_mask, self.config)
        pixels = layout.to_frames(pixel_values).to(self.dtype).contiguous(memory_format=torch.channels_last)
        embeddings, zeroing = layout.to_frames(embeddings), None
        if frame_mask is not None and layout.real is None:
            zeroing = frame_mask.flatten().to(embeddings.dtype)[:, None, None, None]
        maps = list(compute_feature_maps(self.backbone, self.pyramid, pixels))
        inputs = audio_inputs(embeddings, self.config)
        audio = self.audio_projection(inputs)
        heard = None if self.audio_classifier is None else self.audio_classifier(inputs)[:, :, None, None]
        size = pixel_values.shape[-2:]
        if early_exit_threshold is None:
            logits, masks = self._decode(maps, audio, heard, layout, zeroing)
            logits, stages_used = resize(logits.contiguous(), size), None
        else:
            logits, masks, stages_used = self._decode_with_early_exit(
                maps, audio, heard, layout, zeroing, size, early_exit_threshold
            )
        clip_masks = tuple(layout.to_clips(mask.to(torch.uint8)) for mask in masks)
        return layout.to_clips(logits), clip_masks, None if stages_used is None else layout.to_clips(stages_used)

    def _decode(
        self,
        maps: list[torch.Tensor],
        audio: torch.Tensor,
        heard: torch.Tensor | None,
        layout: ClipLayout,
        zeroing: torch.Tensor | None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the stages coarse to fine; return the finest logits and the three confidence masks."""
        logits = fused = uncertain = None
        audio_token = audio
        masks: list[torch.Tensor] = []
        for stage in self.stages:
            # Popped from the list, so that each feature map is freed after its stage.
            fused, logits, audio_token = stage(maps.pop(), audio, audio_token, fused, uncertain, layout, zeroing)
            logits = logits if heard is None else logits + heard
            if not stage.is_finest:
                uncertain = self.confidence_masking(logits, uncertain)
                masks.append(uncertain)
        return cast(torch.Tensor, logits), masks

    def _decode_with_early_exit(
        self,
        maps: list[torch.Tensor],
        audio: torch.Tensor,
        heard: torch.Tensor | None,
        layout: ClipLayout,
        zeroing: torch.Tensor | None,
        size: tuple[int, ...],
        threshold: float,
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Run the stages as `_decode` does, each frame only until few enough of its pixels are uncertain.

        Separate from `_decode`, whose graph must not depend on the content of the frames.

        Returns:
            The logits at the input size, the three confidence masks, and the number of stages of each frame.
        """
        masks = [audio.new_zeros(len(audio), *coarser.shape[-2:], dtype=torch.bool) for coarser in maps[:0:-1]]
        logits = audio.new_empty(len(audio), cast(int, self.config.num_labels), *size)
        active = torch.arange(len(audio), device=audio.device)  # indices of the frames that have not stopped
        stages_used = torch.full_like(active, NUM_STAGES)
        fused = uncertain = None
        audio_token = audio
        for index, stage in enumerate(self.stages):
            inputs = (x if x is None else x[active] for x in (maps.pop(), audio, heard, zeroing))
            feature_map, active_audio, active_heard, active_zeroing = inputs
            fused, stage_logits, audio_token = stage(
                feature_map, active_audio, audio_token, fused, uncertain, layout, active_zeroing
            )
            stage_logits = stage_logits if active_heard is None else stage_logits + active_heard
            if stage.is_finest:
                logits[active] = resize(stage_logits.contiguous(), size)
                break
            uncertain = self.confidence_masking(stage_logits, uncertain)
            masks[index][active] = uncertain
            # At its own size a stage can be certain of every pixel while the outline of an object runs between them.
            resized = resize(stage_logits, maps[-1].shape[-2:])
            continues = self.confidence_masking(resized, None).float().mean(dim=(1, 2)) > threshold
            if continues.all():
                continue
            stopped = active[~continues]
            logits[stopped] = resize(stage_logits[~continues].contiguous(), size)
            stages_used[stopped] = index + 1
            layout = _keep_frames(layout, continues)
            active, fused, audio_token, uncertain = (x[continues] for x in (active, fused, audio_token, uncertain))
            if not len(active):
                break
        return logits, masks, stages_used


def _keep_frames(layout: ClipLayout, kept: torch.Tensor) -> ClipLayout:
    """Return the layout of clips that consist of the kept frames only; kept is (computed frames,) bool.

    Frames move to the front of their clip, in the same order, as if the others were not part of it.
    """
    counts = layout.to_clips(kept).sum(dim=1)
    frames = int(counts.max())
    real = torch.arange(frames, device=kept.device) < counts[:, None]
    return ClipLayout(layout.batch, frames, None if real.all() else real)


# The data type that `dtype="auto"` chooses.

MINIMUM_AGREEMENT = 0.99  # mean IoU of the masks in bfloat16 with those in float32
# Of CPUs, by PyTorch's names. Others compute bfloat16 more slowly than float32, or were not measured.
_BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")
# Backbones that bfloat16 makes slower on a GPU, measured with 8 clips on an H200 (docs/benchmarks/inference.md).
_SLOWER_ON_GPU = ("efficientnet_lite",)


def choose_dtype(config: PCMANetConfig, device: torch.device) -> tuple[torch.dtype, str]:
    """Choose bfloat16 where it is faster and gives the same masks, otherwise float32.

    Args:
        config: Configuration of a trained network, whose `bfloat16_agreement` says whether the masks are the same.
        device: Where the network is to run.

    Returns:
        The data type, and the reason in a few words.
    """
    agreement, units = config.bfloat16_agreement, _find_bfloat16_units(device)
    if agreement is None:
        return torch.float32, "the checkpoint does not say how far masks in bfloat16 agree"
    if agreement < MINIMUM_AGREEMENT:
        return torch.float32, f"masks in bfloat16 agree by mIoU {agreement:.3f}, less than {MINIMUM_AGREEMENT}"
    if units is None:
        return torch.float32, f"no units for bfloat16 are known in this {device.type} device"
    # CODEPATH: every preset is faster in bfloat16 on a CPU with units for it, but not on a GPU.
    backbone = getattr(config.backbone_config, "model_type", None)
    if device.type != "cpu" and backbone in _SLOWER_ON_GPU:
        return torch.float32, f"{backbone} is slower in bfloat16 on a GPU"
    return torch.bfloat16, f"{units}, masks agree with float32 by mIoU {agreement:.3f}"


def _find_bfloat16_units(device: torch.device) -> str | None:
    """Return the name of the units that multiply in bfloat16, None if a device has none or they were not measured."""
    if device.type == "cuda":
        return "GPU" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type != "cpu":
        return None
    capabilities = torch.cpu.get_capabilities()
    return next((name for name in _BFLOAT16_UNITS if capabilities.get(name)), None)


# Checks whether a copy still matches its model.

# The packages whose modules compute what their weights, settings and class say.
_KNOWN_PACKAGES = tuple(f"{package}." for package in (__package__, "transformers", "timm", "torch.nn"))
_SETTINGS = (int, float, str, tuple, type(None))
_SUM_PERIOD = 1021  # values; a prime, so that exchanged rows, channels or kernels do not end up in the same sum
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


def find_obstacle(model: nn.Module) -> str | None:
    """Return what prevents changes of a model from being detected, such as hooks; None if a copy can be kept.

    Args:
        model: The model, with or without its head.
    """
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        return "hooks of all modules"
    for name, module in model.named_modules():
        if _is_hooked(module):
            return f"hooks or another `forward` of {name or 'the model'}"
        if not type(module).__module__.startswith(_KNOWN_PACKAGES):
            return f"the module {name or 'model'}, a {type(module).__qualname__} of {type(module).__module__}"
    quantized = _find_quantized(model)
    return None if quantized is None else f"the quantized or sharded weight of {quantized}"


def _find_quantized(model: nn.Module) -> str | None:
    """Return the name of the first module with weights that are not plain tensors (quantized, sharded), or None."""
    for name, module in model.named_modules():
        weights = [weight for weight in module._parameters.values() if weight is not None]
        if type(module).__module__.startswith("torch.ao.") or any(
            type(one.data) is not torch.Tensor for one in weights
        ):
            return name
    return None


def _check_copyable(model: Any) -> None:
    """Raise ValueError if weights cannot be copied; warn about hooks that the copy does not call."""
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError("Weights offloaded by `device_map` cannot be copied: load the model without `device_map`.")
    if (quantized := _find_quantized(model)) is not None or getattr(model, "is_quantized", False):
        raise ValueError(
            f"The weights of {quantized or 'the model'} are quantized or sharded and cannot be optimized. Run the model itself, "
            "or optimize the unquantized model, which can have dtype=torch.bfloat16."
        )
    if _is_hooked(model) or _is_hooked(model.base_model):
        logger.warning_once("The optimized model does not call the hooks of the model as a whole.")


def _identify_parts(network: nn.Module) -> list[Any]:
    """Return the classes of all modules, the addresses of their weights, and the writes that PyTorch has counted."""
    classes = [(type(module), type(module).forward) for module in network.modules()]
    return [classes, [(tensor.data_ptr(), tensor.is_inference() or tensor._version) for tensor in _tensors(network)]]


def _read_settings(network: nn.Module) -> list[Any]:
    """Return what forward calls read besides weights: the attributes of all modules, and the configurations."""
    attributes = [value for module in network.modules() for value in vars(module).values()]
    configs = {id(value): vars(value) for value in attributes if isinstance(value, PreTrainedConfig)}
    return [[value for value in attributes if isinstance(value, _SETTINGS)], copy.deepcopy(list(configs.values()))]


def _sum_values(network: nn.Module) -> torch.Tensor:
    """Sum all weights as integers, exactly, in a way that also depends on their positions; (bytes,) uint8."""
    parts = []
    for tensor in _tensors(network):
        values = tensor.detach().flatten()
        values = values.view(_INTEGERS[values.element_size()])
        if len(values) >= _SUM_PERIOD:
            length = len(values) // _SUM_PERIOD * _SUM_PERIOD
            # Integers of the same size: the sums wrap around, and nothing is copied.
            parts.append(values[:length].view(-1, _SUM_PERIOD).sum(0, dtype=values.dtype))
            values = values[length:]
        parts.append(values)
    return torch.cat([part.view(torch.uint8) for part in parts])


def _tensors(network: nn.Module) -> Iterator[torch.Tensor]:
    """Iterate over parameters and buffers; those that modules share appear several times."""
    for module in network.modules():
        yield from (
            tensor for tensor in chain(module._parameters.values(), module._buffers.values()) if tensor is not None
        )


# Decoder stage: the modules of modeling_pcmanet_decoder.py, rearranged to compute less. A module is rearranged only if all of
# its layers are those that the library builds; any other module, such as a custom block, runs unchanged.


def _optimize_stages(network: "PCMANetModel") -> nn.ModuleList:
    """Copy neck and decoder stages, optimized; warn once about the modules that run unchanged."""
    stages = nn.ModuleList()
    blocks: Any = zip(network.feature_channels[::-1], network.neck, network.stages, strict=True)
    for index, (channels, neck, stage) in enumerate(blocks):
        neck = _optimize(neck, fold_block, ConvolutionBlock, channels, network.config.hidden_size)
        if type(stage) is DecoderStage and not _is_hooked(stage):
            stages.append(OptimizedDecoderStage(neck, stage, network.config))
        else:
            stages.append(UnchangedDecoderStage(neck, stage, index))
    unchanged = [
        f"{name.removesuffix('.stage')} ({type(module.module).__name__})"
        for name, module in stages.named_modules(prefix="stages")
        if isinstance(module, UnchangedModule)
    ]
    if unchanged:
        logger.warning_once(
            f"The optimized model runs these modules unchanged (no optimized form): {', '.join(unchanged)}."
        )
    return stages


def _optimize(
    module: nn.Module, form: Callable[[Any], nn.Module], build: Callable[..., nn.Module], *args: Any
) -> nn.Module:
    """Copy a module, in its optimized form if it has the layers of the original, which `build(*args)` returns."""
    with torch.device("meta"):
        original = build(*args)
    if _layers(module) != _layers(original):
        return UnchangedModule(module)
    return form(module).to(memory_format=torch.channels_last)


def _optimize_block(block: nn.Module, config: PCMANetConfig, index: int) -> nn.Module:
    """Copy a block of the decoder stage with this index, in its optimized form if it is from the library."""
    form = _BLOCK_FORMS.get(type(block))
    return UnchangedModule(block) if form is None else _optimize(block, form, type(block), config, index)


def _layers(module: nn.Module) -> list[tuple[Any, ...]]:
    """Return name, exact class and settings of each layer, and whether hooks may change what it computes."""
    same: dict[type[nn.Module], type[nn.Module]] = {nn.SyncBatchNorm: nn.BatchNorm2d}  # in evaluation mode
    return [
        (name, same.get(type(layer), type(layer)), layer.extra_repr(), _is_hooked(layer))
        for name, layer in module.named_modules()
    ]


def _is_hooked(layer: nn.Module) -> bool:
    """Return whether hooks or another `forward` may change a layer's results; transformers' hooks only record."""
    hooks = (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
    is_recording = (getattr(hook, "__module__", None) == output_capturing.__name__ for hook in hooks)
    return "forward" in vars(layer) or not all(is_recording)


class UnchangedModule(nn.Module):
    """Copy of a module that has no optimized form; inputs and weights have the same memory layout as in the model."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(module)

    def forward(self, *inputs: Any) -> Any:
        """Call the module."""
        return self.module(*(value.contiguous() if isinstance(value, torch.Tensor) else value for value in inputs))


class UnchangedDecoderStage(nn.Module):
    """One block of the neck and a custom decoder stage.

    Args:
        neck: The optimized block of the neck.
        stage: The decoder stage; it is not modified.
        index: Index of the stage.
    """

    def __init__(self, neck: nn.Module, stage: nn.Module, index: int):
        super().__init__()
        self.is_finest = index == NUM_STAGES - 1
        self.neck = neck
        self.stage = UnchangedModule(stage)

    def forward(
        self,
        feature_map: torch.Tensor,
        audio: torch.Tensor,
        audio_token: torch.Tensor,
        coarser: torch.Tensor | None,
        uncertain: torch.Tensor | None,
        layout: ClipLayout,
        zeroing: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Refine the fused feature map of the coarser stage at the size of this stage."""
        visual = self.neck(feature_map)
        if zeroing is not None:
            visual = visual * zeroing
        return self.stage(visual, audio, audio_token, coarser, uncertain, layout)


class OptimizedDecoderStage(nn.Module):
    """One block of the neck and its decoder stage: AVGA, QSCA, GF and a segmentation head, each unless it is replaced.

    Published modules let frames interact only in QSCA. Those before and after it run on a few frames at a time, so
    that the largest feature maps of the network never exist for all frames. Custom modules get all frames at once.

    Args:
        neck: The optimized block of the neck.
        stage: The decoder stage; it is not modified.
        config: Configuration of the network.
    """

    def __init__(self, neck: nn.Module, stage: DecoderStage, config: PCMANetConfig):
        super().__init__()
        self.is_finest = stage.index == NUM_STAGES - 1
        self.channels = config.hidden_size
        self.neck = neck
        self.group_attention = _optimize_block(stage.group_attention, config, stage.index)
        self.cross_attention = None
        # CODEPATH: only an ablated network has none.
        if stage.cross_attention is not None:
            self.cross_attention = _optimize_block(stage.cross_attention, config, stage.index)
        self.fusion = _optimize_block(stage.fusion, config, stage.index)
        self.head = _optimize(stage.head, _fold_head, build_head, config)
        # Custom modules may let frames interact.
        self.weights_all_frames = any(isinstance(x, UnchangedModule) for x in (self.neck, self.group_attention))
        self.fuses_all_frames = any(isinstance(x, UnchangedModule) for x in (self.fusion, self.head))

    def forward(
        self,
        feature_map: torch.Tensor,
        audio: torch.Tensor,
        audio_token: torch.Tensor,
        coarser: torch.Tensor | None,
        uncertain: torch.Tensor | None,
        layout: ClipLayout,
        zeroing: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Refine the fused feature map of the coarser stage at the size of this stage.

        Args:
            feature_map: (frames, backbone channels, height, width).
            audio: (frames, channels), the projected audio.
            audio_token: (frames, channels), the audio token of the previous stage; for the first, the projected audio.
            coarser: (frames, channels, coarser height, coarser width), fused map of the previous stage, or None.
            uncertain: (frames, coarser height, coarser width) bool, mask of the previous stage, or None.
            layout: The clip of each frame.
            zeroing: (frames, 1, 1, 1), 0 for frames whose neck output is set to zero as published, else 1; or None.

        Returns:
            The fused map (frames, channels, height, width), None at the finest stage; the logits (frames, num_labels,
            height, width); and the audio token (frames, channels).
        """
        values = self.channels * feature_map.shape[2] * feature_map.shape[3]
        chunk = None if self.weights_all_frames else values
        (visual,) = in_chunks(self._weight_by_audio, chunk, feature_map, audio, zeroing)
        guidance = None
        if self.cross_attention is not None:
            guidance, audio_token = self.cross_attention(visual, audio_token, uncertain, layout)
        # The fusion has nine intermediate values for each value of a map of half the height and width.
        chunk = None if self.fuses_all_frames else values * 9 // 4
        *fused, logits = in_chunks(self._fuse, chunk, visual, guidance, coarser)
        return fused[0] if fused else None, logits, audio_token

    def _weight_by_audio(
        self, feature_map: torch.Tensor, audio: torch.Tensor, zeroing: torch.Tensor | None
    ) -> tuple[torch.Tensor]:
        """Apply the neck and AVGA to a feature map of the backbone."""
        visual = self.neck(feature_map)
        if zeroing is not None:
            visual = visual * zeroing
        return (self.group_attention(visual, audio),)

    def _fuse(
        self, visual: torch.Tensor, guidance: torch.Tensor | None, coarser: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """Apply GF and the head; return the fused map, unless this is the finest stage, and the logits."""
        if guidance is not None and isinstance(self.fusion, UnchangedModule):
            guidance = resize(guidance, visual.shape[-2:])
        fused = self.fusion(visual, guidance, coarser)
        logits = self.head(fused)
        return (logits,) if self.is_finest else (fused, logits)


class OptimizedGroupAttention(nn.Module):
    """AVGA of all groups at once, as dot product divided by norm, so that no normalized feature map is stored."""

    def __init__(self, attention: AudioVisualGroupAttention):
        super().__init__()
        self.num_groups = attention.num_groups
        self.visual_projection = fold_block(attention.visual_projection)
        self.audio_projection = copy.deepcopy(attention.audio_projection)
        self.output_projection = fold_block(attention.output_projection)

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Weight a feature map (frames, channels, height, width) by the audio (frames, channels)."""
        eps = unit_length_eps(visual.dtype)
        audio_vector = functional.normalize(self.audio_projection(audio), dim=-1, eps=eps)
        # (frames, height, width, groups, channels of a group)
        groups = self.visual_projection(visual).permute(0, 2, 3, 1).unflatten(-1, (self.num_groups, -1))
        similarity = groups @ audio_vector[:, None, None, :, None]
        length = torch.linalg.vector_norm(groups, dim=-1, keepdim=True).clamp_min(eps)
        weighted = groups * (similarity / length)
        return self.output_projection(weighted.flatten(3).permute(0, 3, 1, 2))


def _fold_sounding_maps(block: SoundingMaps) -> SoundingMaps:
    """Copy a block, its output projection folded."""
    folded = copy.deepcopy(block)
    folded.register_module("output_projection", fold_block(folded.output_projection))
    return folded


class OptimizedCrossAttention(nn.Module):
    """Multi-head attention from the tokens of one modality to those of the other, with PyTorch's fused attention."""

    def __init__(self, attention: CrossAttention):
        super().__init__()
        self.head_size = attention.head_size
        self.query = copy.deepcopy(attention.query)
        self.key = copy.deepcopy(attention.key)
        self.value = copy.deepcopy(attention.value)

    def forward(self, tokens: torch.Tensor, context: torch.Tensor, key_mask: torch.Tensor | None) -> torch.Tensor:
        """Attend from (batch, queries, channels) to (batch, keys, channels), additive mask (batch, 1, 1, keys)."""
        query, key, value = (
            layer(states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for layer, states in ((self.query, tokens), (self.key, context), (self.value, context))
        )
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=key_mask)
        return output.transpose(1, 2).flatten(2)


class OptimizedQuerySelectedCrossAttention(nn.Module):
    """QSCA that returns its tokens as a small feature map, which the fusion resizes where that is cheapest."""

    def __init__(self, attention: QuerySelectedCrossAttention):
        super().__init__()
        self.token_grid_size = attention.token_grid_size
        self.token_layout = attention.token_layout
        self.audio_embedding = copy.deepcopy(attention.audio_embedding)
        self.visual_embedding = copy.deepcopy(attention.visual_embedding)
        self.layer_norm = copy.deepcopy(attention.layer_norm)
        self.audio_to_visual = None
        # CODEPATH: no stage reads the audio token of the finest stage.
        if attention.audio_to_visual is not None:
            self.audio_to_visual = OptimizedCrossAttention(attention.audio_to_visual)
        self.visual_to_audio = OptimizedCrossAttention(attention.visual_to_audio)
        self.output_projection = copy.deepcopy(attention.output_projection)

    def forward(
        self, visual: torch.Tensor, audio: torch.Tensor, uncertain: torch.Tensor | None, layout: ClipLayout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update visual tokens and audio token from each other within each clip.

        Args:
            visual: (frames, channels, height, width).
            audio: (frames, channels), the projected audio or the audio token of the previous stage.
            uncertain: (frames, height, width) bool, any size; only these pixels are queries. None selects all pixels.
            layout: The clip of each frame.

        Returns:
            The guidance (frames, channels, token grid, token grid) and the audio token (frames, channels).
        """
        grid = (self.token_grid_size, self.token_grid_size)
        pooled = functional.adaptive_avg_pool2d(visual, grid).permute(0, 2, 3, 1).flatten(1, 2)
        visual_tokens, audio_token = self.visual_embedding(pooled), self.audio_embedding(audio)
        visual_clips = layout.to_clips(self.layer_norm(visual_tokens)).flatten(1, 2)
        audio_clips = layout.to_clips(self.layer_norm(audio_token))

        update = self.visual_to_audio(visual_clips, audio_clips, layout.key_mask(1, audio_clips.dtype))
        update = layout.to_frames(update.unflatten(1, (layout.frames, -1)))
        if uncertain is not None:
            update = update * resize_nearest(uncertain, grid).flatten(1)[..., None]
        visual_tokens = visual_tokens + self.output_projection(update)
        if self.audio_to_visual is not None:
            key_mask = layout.key_mask(pooled.shape[1], audio_clips.dtype)
            audio_update = self.audio_to_visual(audio_clips, visual_clips, key_mask)
            audio_token = audio_token + self.output_projection(layout.to_frames(audio_update))
        return self._to_map(visual_tokens), audio_token

    def _to_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reshape tokens (frames, grid * grid, channels) to a feature map (frames, channels, grid, grid)."""
        frames, _, channels = tokens.shape
        grid = (self.token_grid_size, self.token_grid_size)
        if self.token_layout == "scrambled":
            return tokens.reshape(frames, channels, *grid).contiguous(memory_format=torch.channels_last)
        return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


class OptimizedGuidedFusion(nn.Module):
    """GF whose convolutions of upsampled feature maps run at the lower resolution."""

    def __init__(self, fusion: GuidedFusion):
        super().__init__()
        # CODEPATH: an ablated network has no guidance, the coarsest stage no coarser map.
        blocks = (fusion.guidance_projection, fusion.coarser_projection)
        self.guidance_projection, self.coarser_projection = (
            None if block is None else UpsampledConvolution(block) for block in blocks
        )
        self.output_projection = fold_block(fusion.output_projection)

    def forward(
        self, visual: torch.Tensor, guidance: torch.Tensor | None, coarser: torch.Tensor | None
    ) -> torch.Tensor:
        """Fuse `visual` (frames, channels, height, width) with feature maps of any smaller size."""
        size = visual.shape[-2:]
        fused = visual
        if guidance is not None and self.guidance_projection is not None:
            fused = self.guidance_projection(guidance, size).add_(fused)
        if coarser is not None and self.coarser_projection is not None:
            fused = self.coarser_projection(coarser, size).add_(fused)
        return self.output_projection(fused)


# The optimized form of each block of the library.
_BLOCK_FORMS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    AudioVisualGroupAttention: OptimizedGroupAttention,
    SoundingMaps: _fold_sounding_maps,
    QuerySelectedCrossAttention: OptimizedQuerySelectedCrossAttention,
    GuidedFusion: OptimizedGuidedFusion,
}


# Visual backbones: the same four feature maps from fewer operations and a better memory layout. ResNet has its
# BatchNorms folded. In PVT-v2, tokens keep the layout of the convolutions, (frames, height, width, channels), so
# nothing is transposed; keys and values come from one matrix product, and the attention is PyTorch's fused attention.
# Modules of transformers are `Any` here, because their attributes have no types.


_REARRANGED_BACKBONES = ("efficientnet_lite", "pvt_v2", "resnet")


def _optimize_backbone(backbone: Any) -> nn.Module:
    """Copy a backbone, rearranged for speed if it is an unchanged ResNet, PVT-v2 or EfficientNet-Lite.

    Args:
        backbone: Any `AutoBackbone` in evaluation mode; it is not modified.

    Returns:
        A module that maps (frames, 3, height, width) to a `BackboneOutput`.
    """
    model_type = backbone.config.model_type
    if find_obstacle(backbone) is not None or any(is_parametrized(module) for module in backbone.modules()):
        if model_type in _REARRANGED_BACKBONES:
            logger.warning_once(
                f"The optimized model does not rearrange the {model_type} backbone, because its layers were changed."
            )
        return _fold_sequences(copy.deepcopy(backbone))
    # CODEPATH: PVT-v2 with linear attention has other layers; no published checkpoint of PCMANet uses it.
    if model_type == "pvt_v2" and not backbone.config.linear_attention:
        stages = nn.ModuleList(OptimizedPvtV2Stage(layer) for layer in backbone.encoder.layers)
        return OptimizedBackbone(nn.Identity(), stages, backbone)
    copied = _fold_sequences(copy.deepcopy(backbone))
    # CODEPATH: the backbone of the small networks.
    if model_type == "efficientnet_lite":
        stages = nn.ModuleList(OptimizedEfficientNetLiteStage(stage) for stage in copied.stages)
        return OptimizedBackbone(copied.embedder, stages, backbone)
    # CODEPATH: the second backbone of the paper.
    if model_type == "resnet":
        for module in copied.modules():
            if isinstance(getattr(module, "normalization", None), nn.BatchNorm2d):
                module.convolution = FoldedConvolution(module.convolution, module.normalization, nn.Identity())
                module.normalization = nn.Identity()
        return OptimizedBackbone(copied.embedder, copied.encoder.stages, backbone)
    return copied


class OptimizedBackbone(nn.Module):
    """ResNet or PVT-v2 as an embedder and a chain of stages.

    Args:
        embedder: Module before the first stage.
        stages: Modules that map the feature map of one stage to that of the next.
        backbone: The backbone that says which of them are outputs.
    """

    def __init__(self, embedder: nn.Module, stages: nn.ModuleList, backbone: Any):
        super().__init__()
        self.embedder = embedder
        self.stages = stages
        self.is_output = [name in backbone.out_features for name in backbone.stage_names[-len(stages) :]]

    def forward(self, frames: torch.Tensor) -> BackboneOutput:
        """Compute the feature maps, fine to coarse, of (frames, 3, height, width)."""
        feature_map = self.embedder(frames)
        maps = []
        for stage, is_output in zip(self.stages, self.is_output, strict=True):
            feature_map = stage(feature_map)
            if is_output:
                maps.append(feature_map)
        return BackboneOutput(feature_maps=tuple(maps))


class OptimizedEfficientNetLiteStage(nn.Module):
    """Blocks of one stage of EfficientNet-Lite, a few frames at a time, as their expanded feature maps are large."""

    def __init__(self, blocks: Any):
        super().__init__()
        self.blocks = blocks
        self.expanded_channels = max(block.depthwise[0].out_channels for block in blocks)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Map the feature map of the finer stage, (frames, channels, height, width), to that of this stage."""
        values = self.expanded_channels * feature_map.shape[2] * feature_map.shape[3]
        (feature_map,) = in_chunks(lambda frames: (self.blocks(frames),), values, feature_map)
        return feature_map


class OptimizedPvtV2Stage(nn.Module):
    """Patch embedding, blocks and LayerNorm of one stage of PVT-v2."""

    def __init__(self, layer: Any):
        super().__init__()
        self.projection = copy.deepcopy(layer.patch_embedding.proj)
        self.projection_norm = copy.deepcopy(layer.patch_embedding.layer_norm)
        self.blocks = nn.ModuleList(OptimizedPvtV2Block(block) for block in layer.blocks)
        self.layer_norm = copy.deepcopy(layer.layer_norm)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Map the feature map of the finer stage, (frames, channels, height, width), to that of this stage."""
        tokens = self.projection_norm(_to_tokens(self.projection(feature_map)))
        for block in self.blocks:
            tokens = block(tokens)
        return _to_map(self.layer_norm(tokens))


class OptimizedPvtV2Block(nn.Module):
    """Attention to the spatially reduced feature map, then a feed-forward network with a depthwise convolution."""

    def __init__(self, block: Any):
        super().__init__()
        self.attention_norm = copy.deepcopy(block.layer_norm_1)
        self.attention = OptimizedPvtV2Attention(block.attention)
        self.feed_forward_norm = copy.deepcopy(block.layer_norm_2)
        self.expansion = copy.deepcopy(block.mlp.dense1)
        self.depthwise_convolution = copy.deepcopy(block.mlp.dwconv.dwconv)
        self.activation = copy.deepcopy(block.mlp.intermediate_act_fn)
        self.contraction = copy.deepcopy(block.mlp.dense2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (frames, height, width, channels) to the same shape."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        hidden = self.expansion(self.feed_forward_norm(tokens))
        # One name for all results, so that each frees the previous one: these are the largest tensors of the backbone.
        hidden = self.depthwise_convolution(_to_map(hidden))
        hidden = self.activation(hidden)
        return tokens + self.contraction(_to_tokens(hidden))


class OptimizedPvtV2Attention(nn.Module):
    """Multi-head attention from every token to a feature map that is smaller by the spatial reduction ratio."""

    def __init__(self, attention: Any):
        super().__init__()
        self.head_size = attention.attention_head_size
        self.query = copy.deepcopy(attention.query)
        self.key_value = _stack_linear(attention.key, attention.value)
        self.output_projection = copy.deepcopy(attention.proj)
        self.is_reducing = attention.spatial_reduction_ratio > 1
        if self.is_reducing:
            self.spatial_reduction = copy.deepcopy(attention.spatial_reduction)
            self.reduction_norm = copy.deepcopy(attention.layer_norm)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (frames, height, width, channels) to the same shape."""
        context = tokens
        if self.is_reducing:
            context = self.reduction_norm(_to_tokens(self.spatial_reduction(_to_map(tokens))))
        key, value = self._split_heads(self.key_value(context)).chunk(2, dim=1)
        output = functional.scaled_dot_product_attention(self._split_heads(self.query(tokens)), key, value)
        return self.output_projection(output.transpose(1, 2).reshape(tokens.shape))

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """Reshape (frames, height, width, channels) to (frames, heads, height * width, head size)."""
        return states.flatten(1, 2).unflatten(-1, (-1, self.head_size)).transpose(1, 2)


def _to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """View a channels_last map (frames, channels, height, width) as tokens (frames, height, width, channels)."""
    return feature_map.permute(0, 2, 3, 1)


def _to_map(tokens: torch.Tensor) -> torch.Tensor:
    """View tokens (frames, height, width, channels) as a channels_last map (frames, channels, height, width)."""
    return tokens.permute(0, 3, 1, 2)


def _stack_linear(*layers: nn.Linear) -> nn.Linear:
    """Combine linear layers of the same input into one that computes all their outputs, concatenated."""
    stacked = copy.deepcopy(layers[0])
    stacked.out_features = sum(layer.out_features for layer in layers)
    stacked.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
    if layers[0].bias is not None:
        stacked.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))
    return stacked


# Convolutions with their BatchNorms folded in; convolutions_pcmanet.py has their fast forms.


def _fold_sequences(network: Any) -> Any:
    """Fold, in place, every BatchNorm that follows a convolution in an `nn.Sequential`; changed layers are kept."""
    sequences = [module for module in network.modules() if type(module).forward is nn.Sequential.forward]
    for sequence in sequences:
        layers = cast(nn.Sequential, sequence)
        for index, (first, second) in enumerate(pairwise(layers)):
            is_ours = isinstance(first, nn.Conv2d) and type(first).__module__.startswith(f"{__package__}.")
            is_known = (is_ours or type(first) is nn.Conv2d) and type(second) is nn.BatchNorm2d
            if is_known and not _is_hooked(first) and not _is_hooked(second):
                folded = fold_batch_norm(cast(nn.Conv2d, first), cast(nn.BatchNorm2d, second))
                geometry = (folded.kernel_size, folded.stride, folded.padding, folded.groups)
                is_pointwise = geometry == ((1, 1), (1, 1), (0, 0), 1)
                layers[index] = PointwiseConvolution(folded) if is_pointwise else folded
                layers[index + 1] = nn.Identity()
    return network


class PointwiseConvolution(nn.Linear):
    """A 1x1 convolution as a matrix product, which for few frames copies less than PyTorch's convolution on CPUs."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__(convolution.in_channels, convolution.out_channels)
        self.weight = nn.Parameter(convolution.weight.flatten(1))
        self.bias = convolution.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve (frames, in channels, height, width)."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _fold_head(head: nn.Sequential) -> nn.Sequential:
    """Copy a segmentation head, folded."""
    return nn.Sequential(fold_block(head), copy.deepcopy(head[-1]))


__all__ = ["OptimizedPCMANet"]
