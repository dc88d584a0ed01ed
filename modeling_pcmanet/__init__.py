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
"""PCMANet for audio-visual segmentation: the masks of the objects that sound in a video."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForUniversalSegmentation,
    AutoProcessor,
)

from .configuration_pcmanet import PCMANetConfig, VGGishConfig
from .feature_extraction_pcmanet import PCMANetFeatureExtractor
from .image_processing_pcmanet import PCMANetImageProcessor
from .modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetModel
from .modeling_vggish import VGGishModel
from .processing_pcmanet import PCMANetProcessor


__version__ = "0.1.0"

__all__ = [
    "PCMANetConfig",
    "PCMANetFeatureExtractor",
    "PCMANetForAudioVisualSegmentation",
    "PCMANetImageProcessor",
    "PCMANetModel",
    "PCMANetProcessor",
    "VGGishConfig",
    "VGGishModel",
]

AutoConfig.register("vggish", VGGishConfig)
AutoConfig.register("pcmanet", PCMANetConfig)
AutoModel.register(VGGishConfig, VGGishModel)
AutoModel.register(PCMANetConfig, PCMANetModel)
AutoModelForUniversalSegmentation.register(PCMANetConfig, PCMANetForAudioVisualSegmentation)
AutoFeatureExtractor.register(PCMANetConfig, PCMANetFeatureExtractor)
AutoImageProcessor.register(PCMANetConfig, image_processor_classes={"pil": PCMANetImageProcessor})
AutoProcessor.register(PCMANetConfig, PCMANetProcessor)
