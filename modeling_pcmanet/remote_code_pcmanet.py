"""Our modules beside saved weights, so that they load with `trust_remote_code=True` where this package is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from .configuration_pcmanet import PCMANetConfig, VGGishConfig
from .feature_extraction_pcmanet import PCMANetFeatureExtractor
from .image_processing_pcmanet import PCMANetImageProcessor
from .modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetModel
from .modeling_vggish import VGGishModel
from .processing_pcmanet import PCMANetProcessor


# The classes whose code goes to the Hub, and the Auto class that finds each there.
AUTO_CLASSES: dict[type, str] = {
    PCMANetConfig: "AutoConfig",
    VGGishConfig: "AutoConfig",
    PCMANetModel: "AutoModel",
    PCMANetForAudioVisualSegmentation: "AutoModelForUniversalSegmentation",
    VGGishModel: "AutoModel",
    PCMANetImageProcessor: "AutoImageProcessor",
    PCMANetFeatureExtractor: "AutoFeatureExtractor",
    PCMANetProcessor: "AutoProcessor",
}


@contextmanager
def code_beside_weights(wanted: bool = True) -> Iterator[None]:
    """Let `save_pretrained` and `push_to_hub` write our modules too, until the end of the `with` block.

    The choice is one of the whole process in transformers, so it is taken back: left on, every checkpoint of a training
    would hold the code.

    Args:
        wanted: False changes nothing.
    """
    before = {ours: ours._auto_class for ours in AUTO_CLASSES}
    try:
        for ours, auto_class in AUTO_CLASSES.items() if wanted else ():
            ours.register_for_auto_class(auto_class)
        yield
    finally:
        for ours, auto_class in before.items():
            ours._auto_class = auto_class


__all__ = ["AUTO_CLASSES", "code_beside_weights"]
