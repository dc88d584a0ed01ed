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
"""Weights that are all there: what a checkpoint lacks, `from_pretrained` starts at random with no more than a warning."""

from os import PathLike
from typing import Any, TypeVar

from transformers.modeling_utils import PreTrainedModel


Model = TypeVar("Model", bound=PreTrainedModel)


def load_whole(model_class: type[Model], name: str | PathLike, **settings: Any) -> Model:
    """Load pretrained weights, and refuse them if some are missing or have another shape.

    Args:
        model_class: Of the network.
        name: Hub id or folder.
        **settings: As for `from_pretrained`.

    Returns:
        The network, in evaluation mode.

    Raises:
        OSError: If there are no weights under this name.
        ValueError: If they are not all there.
    """
    model, loading = model_class.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **settings
    )
    lacking = sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])])
    if lacking:
        raise ValueError(
            f"{name} lacks weights of a {model_class.__name__}, such as {lacking[0]} ({len(lacking)} of "
            f"{len(model.state_dict())}). Give a folder or Hub id that has them all, as `save_pretrained` and "
            "`python -m modeling_pcmanet.convert_pcmanet_to_hf` write them."
        )
    return model.eval()


__all__ = ["load_whole"]
