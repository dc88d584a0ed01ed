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
"""Image processors of PCMANet: from video frames to `pixel_values`, and from masks to `labels`.

There are two backends, as in transformers. [`PCMANetImageProcessor`] uses PIL, as AVSBench does, and is the default.
[`PCMANetImageProcessorTorchvision`] processes the frames of a clip at once, also on an accelerator. To select it, pass
`backend="torchvision"` to `from_pretrained` of an Auto class or of the processor.
"""

from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
)
from transformers.utils import requires_backends

from .configuration_encoders import BACKBONE_NORMALIZATIONS, check_keywords, drop_code_entries, loading_saved


# Settings that change the values of pixels.
_NORMALIZATION = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
_SAVED_KEYWORDS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}  # of transformers


class FramesAndMasks(BaseImageProcessor):
    """Base class of the image processors of both backends: settings, and masks in addition to frames."""

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    rescale_factor = 1 / 255

    def __init__(self, **kwargs: Any) -> None:
        known = self.valid_kwargs.__annotations__.keys()
        check_keywords(type(self).__name__, kwargs, known | _SAVED_KEYWORDS, known)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build an image processor from a saved dictionary as transformers does; unknown keywords stay attributes."""
        with loading_saved():
            return super().from_dict(drop_code_entries(cls, image_processor_dict), **kwargs)

    @classmethod
    def from_backbone(cls, backbone: str | PathLike[str] | PreTrainedConfig, **settings: Any) -> Self:
        """Build the image processor for a visual backbone, with the normalization that it is trained with.

        For a pretrained backbone, mean, standard deviation and rescaling come from the image processor that is saved
        with it, or, for a timm model, from its data configuration. Size and resizing are those of this class.

        Args:
            backbone: Hub id or folder of a pretrained backbone, or the configuration of one. A configuration selects
                the normalization of its type in `BACKBONE_NORMALIZATIONS`, or else that of ImageNet.
            **settings: Any setting of the class, for example `size`; these override those of the backbone.

        Raises:
            OSError: If a pretrained backbone is not found, or neither is saved with it.
        """
        if isinstance(backbone, PreTrainedConfig):
            return cls(**BACKBONE_NORMALIZATIONS.get(backbone.model_type, {}) | settings)
        settings_of_backbone, _ = PreTrainedConfig.get_config_dict(backbone)
        timm = settings_of_backbone.get("pretrained_cfg")
        if timm is not None:
            return cls(**{"image_mean": timm["mean"], "image_std": timm["std"]} | settings)
        try:
            saved, _ = cls.get_image_processor_dict(backbone)
        except OSError as error:
            raise OSError(
                f"{backbone} has no preprocessor_config.json, which says how the backbone expects its input. Save its image "
                "processor there; for ImageNet's mean and standard deviation PCMANetImageProcessor().save_pretrained(folder)."
            ) from error
        return cls(**{key: saved[key] for key in _NORMALIZATION if key in saved} | settings)

    def preprocess(self, images: ImageInput, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Process frames and, if given, their masks.

        Args:
            images: uint8 arrays or tensors, (height, width, 3) or (3, height, width), PIL images of any mode with 8 bits per
                channel, a list of these, or a (frames, height, width, 3) array.
            segmentation_maps: One per image: (height, width) arrays of class indices 0..255 (or booleans), or
                single-channel PIL images; also one (frames, height, width) array, or the mask of a single image. 255
                means "ignore": pass a binary mask that holds 0 and 255 as `mask > 127`.
            **kwargs: Any setting of the class for this call only (`size`, `do_normalize`, ...), and `return_tensors`.

        Returns:
            `pixel_values`: (images, 3, height, width), float32, and, with masks, `labels`: (images, height, width),
            int64.

        Raises:
            ValueError: For images that are not 8-bit, masks that do not hold class indices, and a number of masks that
                differs from the number of images.
        """
        return_tensors = kwargs.pop("return_tensors", None)
        data = dict(super().preprocess(images, **kwargs))
        if segmentation_maps is not None:
            is_one = isinstance(segmentation_maps, Image.Image) or getattr(segmentation_maps, "ndim", 3) == 2
            given: Any = [segmentation_maps] if is_one else segmentation_maps
            maps = [_class_indices(segmentation_map, index) for index, segmentation_map in enumerate(given)]
            if len(maps) != len(data["pixel_values"]):
                raise ValueError(
                    f"Got {len(maps)} segmentation maps for {len(data['pixel_values'])} images. Pass one per image."
                )
            data["labels"] = self._labels(maps, **kwargs)
        return BatchFeature(data, tensor_type=return_tensors)

    def _labels(self, maps: list[np.ndarray], **kwargs: Any) -> list[np.ndarray]:
        """Resize (height, width) class indices with PIL's nearest neighbor; pixels beyond the frame become 255."""
        kwargs |= {
            "resample": PILImageResampling.NEAREST,
            "do_convert_rgb": False,
            "do_rescale": False,
            "do_normalize": False,
            "input_data_format": ChannelDimension.FIRST,
        }
        # Inverted, because `do_pad` and `do_center_crop` fill with 0.
        inverted = [~segmentation_map[None] for segmentation_map in maps]
        resized = super().preprocess(inverted, **kwargs)["pixel_values"]
        return [(~label[0].astype(np.uint8)).astype(np.int64) for label in resized]

    @staticmethod
    def to_rgb(image: Image.Image) -> Image.Image:
        """Convert a PIL image of any mode with 8 bits per channel to RGB.

        Raises:
            ValueError: If a channel has more than 8 bits.
        """
        _check_depth(image)
        return image.convert("RGB")

    def process_image(self, image: Any, **kwargs: Any) -> Any:
        """Convert one image to (channels, height, width), uint8, an array or a tensor as the backend needs it.

        Raises:
            ValueError: If an image does not hold 8-bit values.
        """
        if isinstance(image, Image.Image):
            _check_depth(image)
        elif image.dtype not in (np.uint8, torch.uint8):
            raise ValueError(
                f"Expected images with uint8 values 0..255, got {image.dtype}. Cast integers of this range; convert floats in "
                "[0, 1] with (image * 255).round() and a cast to uint8."
            )
        return super().process_image(image, **kwargs)


class PCMANetImageProcessor(FramesAndMasks, PilBackend):
    """Resize frames to 224x224 and normalize them as AVSBench does; resize masks without creating new classes.

    Frames are resized bilinearly with antialiasing, masks to the nearest pixel. The aspect ratio is not kept
    (AVSBench's test protocol). Set `size` for a different height and width. This class uses PIL whether or not
    torchvision is installed.
    """


class PCMANetImageProcessorTorchvision(FramesAndMasks, TorchvisionBackend):
    """Do the same as [`PCMANetImageProcessor`] with torchvision: the frames of a clip at once, on any `device`.

    Frames differ from those of PIL by at most one level of 255, which is 0.02 after normalization; labels are equal.

    Raises:
        ImportError: If torchvision is not installed.
    """

    def __init__(self, **kwargs: Any) -> None:
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)

    def _labels(self, maps: list[np.ndarray], **kwargs: Any) -> list[np.ndarray]:
        """Resize (height, width) class indices with PIL, as torchvision breaks ties between pixels differently."""
        settings = {name: getattr(self, name) for name in self._valid_kwargs_names}
        return PCMANetImageProcessor(**settings)._labels(maps, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings; the backend is chosen again when they are loaded."""
        return super().to_dict() | {"image_processor_type": PCMANetImageProcessor.__name__}


def _check_depth(image: Image.Image) -> None:
    """Raise ValueError if a channel has more than 8 bits: PIL does not scale such values but clips them at 255."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"Expected images with 8 bits per channel, got a PIL image of mode {image.mode!r}. Scale its values to 0..255 and "
            "cast them to uint8."
        )


def _class_indices(segmentation_map: Any, index: int) -> np.ndarray:
    """Convert one mask to (height, width), uint8, or raise ValueError if it does not hold class indices."""
    array = np.asarray(segmentation_map)
    if array.ndim != 2:
        raise ValueError(
            f"Segmentation map {index}: expected (height, width) with one class index per pixel, got shape {array.shape}. "
            "Decode color-coded maps to class indices first."
        )
    if array.dtype != np.bool_ and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"Segmentation map {index}: expected integers or booleans, got {array.dtype}. Convert it.")
    if array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError(
            f'Segmentation map {index}: expected class indices 0..255, where 255 means "ignore", got values from '
            f"{array.min()} to {array.max()}."
        )
    return array.astype(np.uint8)
