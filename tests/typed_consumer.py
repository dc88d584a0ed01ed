"""A user's program with type annotations: it must type-check against the installed package (test_packaging.py).

Every `assert_type` fails where the package gives `Any`. Lines marked `error:` must be reported, and no others.
"""

from typing import assert_type

import torch

import pcmanet
from modeling_pcmanet.modeling_pcmanet import PCMANetOutput
from pcmanet import (
    AudioVisualSegmentationPipeline,
    BinaryMetrics,
    PCMANetConfig,
    PCMANetForAudioVisualSegmentation,
    PCMANetProcessor,
    SoundingShapes,
    load_avsbench,
)


assert_type(pcmanet.__version__, str)

config = PCMANetConfig.from_preset("tiny")
assert_type(config, PCMANetConfig)
assert_type(config.hidden_size, int)

model = PCMANetForAudioVisualSegmentation(config)
outputs = model.forward(pixel_values=torch.zeros(1, 1, 3, 64, 64), input_features=torch.zeros(1, 1, 1, 96, 64))
assert_type(outputs, PCMANetOutput)
if outputs.logits is not None:
    assert_type(outputs.logits, torch.Tensor)


def segment(pipe: AudioVisualSegmentationPipeline, processor: PCMANetProcessor, path: str) -> list[torch.Tensor]:
    """Use the pipeline and the processor as README does."""
    for frame in pipe.stream(path):  # dictionaries, whose values depend on the keys
        assert frame["timestamp"] >= 0
    return processor.post_process_semantic_segmentation(outputs, target_sizes=(224, 224))


clip = SoundingShapes("ms3", "test", length=1)[0]
assert_type(clip.sampling_rate, int)

metrics = BinaryMetrics()
assert_type(metrics.compute("official"), dict[str, float])

PCMANetConfig.from_preset(3)  # error: a name
model.for_inference(threads=2)  # error: no such argument
load_avsbench("AVSBench", split=1)  # error: a name or None
SoundingShapes(length="many")  # error: a number
