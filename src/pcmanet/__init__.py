"""Audio-visual segmentation: get the masks of the objects that are sounding in a video.

    import pcmanet
    from transformers import pipeline

    segmenter = pipeline("audio-visual-segmentation", model="owner/name")

Importing this package registers the model type `pcmanet` and the task `audio-visual-segmentation` with transformers. The
registration runs as soon as transformers is imported, and public names are imported on first use, so
`import pcmanet`, `pcmanet --help` and `pcmanet.__version__` do not wait for torch.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from modeling_pcmanet import (
        AudioMobileNetConfig,
        AudioMobileNetFeatureExtractor,
        AudioMobileNetModel,
        EfficientNetLiteBackbone,
        EfficientNetLiteConfig,
        PCMANetConfig,
        PCMANetFeatureExtractor,
        PCMANetForAudioVisualSegmentation,
        PCMANetImageProcessor,
        PCMANetImageProcessorTorchvision,
        PCMANetModel,
        PCMANetProcessor,
        VGGishConfig,
        VGGishModel,
        register_block,
    )
    from pcmanet.dataset_scripts.avsbench import load_avsbench
    from pcmanet.dataset_scripts.metrics import (
        BinaryMetrics,
        FalsePositiveMetrics,
        RobustnessMetrics,
        SemanticMetrics,
        TrainerMetrics,
    )
    from pcmanet.dataset_scripts.sounding_shapes import SoundingShapes
    from pcmanet.pipelines import AudioVisualSegmentationPipeline


__version__ = "0.1.0"

__all__ = [
    "AudioMobileNetConfig",
    "AudioMobileNetFeatureExtractor",
    "AudioMobileNetModel",
    "AudioVisualSegmentationPipeline",
    "BinaryMetrics",
    "EfficientNetLiteBackbone",
    "EfficientNetLiteConfig",
    "FalsePositiveMetrics",
    "PCMANetConfig",
    "PCMANetFeatureExtractor",
    "PCMANetForAudioVisualSegmentation",
    "PCMANetImageProcessor",
    "PCMANetImageProcessorTorchvision",
    "PCMANetModel",
    "PCMANetProcessor",
    "RobustnessMetrics",
    "SemanticMetrics",
    "SoundingShapes",
    "TrainerMetrics",
    "VGGishConfig",
    "VGGishModel",
    "load_avsbench",
    "register_block",
]

# The module in which each public name is found. A type checker reads the imports above instead.
_MODULES = {
    "pcmanet.pipelines": ("AudioVisualSegmentationPipeline",),
    "pcmanet.dataset_scripts.avsbench": ("load_avsbench",),
    "pcmanet.dataset_scripts.metrics": (
        "BinaryMetrics",
        "FalsePositiveMetrics",
        "RobustnessMetrics",
        "SemanticMetrics",
        "TrainerMetrics",
    ),
    "pcmanet.dataset_scripts.sounding_shapes": ("SoundingShapes",),
}
_MODULE_OF_NAME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF_NAME.get(name, "modeling_pcmanet")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, whether or not they have been imported."""
    return sorted({*globals(), *__all__})


class _RegisterAfterTransformers(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Register our classes right after the first import of transformers.

    Registration needs the classes themselves, and with them torch and transformers, which take seconds to import.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find transformers with the other finders, and load it with this one.

        Other libraries look for transformers without importing it, so this finder stays until it is imported.
        """
        if fullname != "transformers":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Create the module as transformers' own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run transformers, then register our classes with it."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        importlib.import_module("pcmanet.pipelines")


if "transformers" in sys.modules:
    importlib.import_module("pcmanet.pipelines")
else:
    sys.meta_path.insert(0, _RegisterAfterTransformers())
