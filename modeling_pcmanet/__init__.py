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
"""PCMANet for audio-visual segmentation. Importing this package registers its Auto classes with transformers."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)
from transformers.models.auto.image_processing_auto import DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS

from .configuration_encoders import AudioMobileNetConfig, EfficientNetLiteConfig, VGGishConfig
from .configuration_pcmanet import PCMANetConfig
from .feature_extraction_pcmanet import AudioMobileNetFeatureExtractor, PCMANetFeatureExtractor
from .image_processing_pcmanet import PCMANetImageProcessor, PCMANetImageProcessorTorchvision
from .modeling_audio_encoders import AudioMobileNetModel, VGGishModel
from .modeling_backbones import EfficientNetLiteBackbone
from .modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetModel
from .modeling_pcmanet_decoder import register_block
from .processing_pcmanet import PCMANetProcessor


__all__ = [
    "AudioMobileNetConfig",
    "AudioMobileNetFeatureExtractor",
    "AudioMobileNetModel",
    "EfficientNetLiteBackbone",
    "EfficientNetLiteConfig",
    "PCMANetConfig",
    "PCMANetFeatureExtractor",
    "PCMANetForAudioVisualSegmentation",
    "PCMANetImageProcessor",
    "PCMANetImageProcessorTorchvision",
    "PCMANetModel",
    "PCMANetProcessor",
    "VGGishConfig",
    "VGGishModel",
    "register_block",
    "save_code_with_weights",
]

# All classes: (our class, the Auto class that builds it, the configuration that selects it). This table drives the
# registration below and the code that is saved next to weights.
AUTO_CLASSES = (
    (PCMANetConfig, AutoConfig, PCMANetConfig),
    (VGGishConfig, AutoConfig, VGGishConfig),
    (AudioMobileNetConfig, AutoConfig, AudioMobileNetConfig),
    (EfficientNetLiteConfig, AutoConfig, EfficientNetLiteConfig),
    (PCMANetModel, AutoModel, PCMANetConfig),
    (PCMANetForAudioVisualSegmentation, AutoModelForSemanticSegmentation, PCMANetConfig),
    (VGGishModel, AutoModel, VGGishConfig),
    (AudioMobileNetModel, AutoModel, AudioMobileNetConfig),
    (EfficientNetLiteBackbone, AutoBackbone, EfficientNetLiteConfig),
    (PCMANetImageProcessor, AutoImageProcessor, PCMANetConfig),
    (PCMANetFeatureExtractor, AutoFeatureExtractor, PCMANetConfig),
    (AudioMobileNetFeatureExtractor, AutoFeatureExtractor, AudioMobileNetConfig),
    (PCMANetProcessor, AutoProcessor, PCMANetConfig),
)


def _register_auto_classes() -> None:
    """Register every class of the table with transformers."""
    for ours, auto_class, config_class in AUTO_CLASSES:
        if auto_class is AutoConfig:
            AutoConfig.register(config_class.model_type, ours)
        elif auto_class is AutoImageProcessor:
            backends = {"pil": ours, "torchvision": PCMANetImageProcessorTorchvision}
            AutoImageProcessor.register(config_class, image_processor_classes=backends)
            # Auto classes prefer torchvision if it is installed. Checkpoints are trained and evaluated with PIL.
            DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS.append(ours.__name__)
        else:
            auto_class.register(config_class, ours)


@contextmanager
def save_code_with_weights(enabled: bool = True) -> Iterator[None]:
    """Make `save_pretrained` and `push_to_hub` also write our modules, until the end of the `with` block.

    Checkpoints saved this way load with `trust_remote_code=True` even if this package is not installed. transformers
    keeps this choice per class for the whole process, so it is undone afterwards. Otherwise every training checkpoint
    would contain the code.

    Args:
        enabled: If False, change nothing.
    """
    before = {ours: ours._auto_class for ours, *_ in AUTO_CLASSES}
    try:
        for ours, auto_class, _ in AUTO_CLASSES if enabled else ():
            ours.register_for_auto_class(auto_class.__name__)
        yield
    finally:
        for ours, auto_class in before.items():
            ours._auto_class = auto_class


_register_auto_classes()
