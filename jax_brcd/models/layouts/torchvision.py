"""To and from torchvision's state_dicts, without loss: names by each family's table."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import Backbone
from jax_brcd.models.layouts.base import Loaded, Tensor, backbone_of, fill
from jax_brcd.models.layouts.named import named_tensors, tensor_arrays


def torchvision_tensors(model: Backbone | HashModel) -> dict[str, Tensor]:
    """Every variable by torchvision's name, in torchvision's order; of abstract models (nnx.eval_shape) too."""
    return named_tensors(model, backbone_of(model).renames)


def state(model: Backbone | HashModel) -> dict[str, np.ndarray]:
    """The weights as torchvision names, orders and shapes them: copies, float32, counters int64."""
    return tensor_arrays(torchvision_tensors(model))


def load(model: Backbone | HashModel, state: Mapping[str, Any], *, any_head: bool = False) -> Loaded:
    """Puts a torchvision state_dict into a backbone or hash model, in place.

    Tensors are copied and half precision is upcast. A prefix that all names share is taken off. A backbone ignores the
    classifier's tensors; a hash model takes them for its head where there are any (`heads.head.*` is read as `heads.*`) and
    otherwise keeps the head it has. Counters `num_batches_tracked` may be missing, as they are from torchvision's older files,
    and then stay as they are.

    Args:
        state: torchvision's names to arrays or PyTorch tensors. any_head: see Layout.

    Raises:
        InputError: for missing, unknown or mis-shaped tensors, for such of another type, and for NaN and infinity; the model
            is then as it was.
    """
    return fill(model, torchvision_tensors(model), state, any_head=any_head,
                rename=lambda name: re.sub(r"^heads\.head\.", "heads.", name),
                optional=lambda name: name.endswith("num_batches_tracked"))
