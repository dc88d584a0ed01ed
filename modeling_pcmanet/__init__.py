"""PCMANet for audio-visual segmentation: the masks of the objects that sound in a video."""

from transformers import AutoConfig, AutoModel, AutoModelForUniversalSegmentation

from .configuration_pcmanet import PCMANetConfig, VGGishConfig
from .modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetModel
from .modeling_vggish import VGGishModel


__version__ = "0.1.0"

__all__ = [
    "PCMANetConfig",
    "PCMANetForAudioVisualSegmentation",
    "PCMANetModel",
    "VGGishConfig",
    "VGGishModel",
]

AutoConfig.register("vggish", VGGishConfig)
AutoConfig.register("pcmanet", PCMANetConfig)
AutoModel.register(VGGishConfig, VGGishModel)
AutoModel.register(PCMANetConfig, PCMANetModel)
AutoModelForUniversalSegmentation.register(PCMANetConfig, PCMANetForAudioVisualSegmentation)
