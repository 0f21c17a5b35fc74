"""To and from torchvision's state_dicts, without loss: names by each family's table, axes by the one below."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import Backbone, BatchNorm
from jax_brcd.models.layouts.base import Loaded, Tensor, backbone_of, fill

# (layer, variable) -> (PyTorch's name, axes of ours in PyTorch's order)
AXES = {
    (nnx.Linear, "kernel"): ("weight", (1, 0)),
    (nnx.Conv, "kernel"): ("weight", (3, 2, 0, 1)),
    (nnx.LayerNorm, "scale"): ("weight", (0,)),
    (BatchNorm, "scale"): ("weight", (0,)),
    (BatchNorm, "mean"): ("running_mean", (0,)),
    (BatchNorm, "var"): ("running_var", (0,)),
    (BatchNorm, "batches"): ("num_batches_tracked", ()),
}
LEAF_ORDER = ("kernel", "scale", "bias", "mean", "var", "batches")


def torchvision_tensors(model: Backbone | HashModel) -> dict[str, Tensor]:
    """Every variable by torchvision's name, in torchvision's order; of abstract models (nnx.eval_shape) too."""
    backbone = backbone_of(model)
    tensors = {}
    for name, tensor in _walk(backbone, (*backbone.order, *LEAF_ORDER)):
        for pattern, replacement in backbone.renames:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    if isinstance(model, HashModel):
        tensors |= _walk(model.head, LEAF_ORDER, f"{backbone.head_key}.")
    return tensors


def state(model: Backbone | HashModel) -> dict[str, np.ndarray]:
    """The weights as torchvision names, orders and shapes them: copies, float32, counters int64."""
    tensors = {}
    for name, (variable, axes) in torchvision_tensors(model).items():
        value = np.asarray(variable[...])
        dtype = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float32
        tensors[name] = np.array(value.transpose(axes), dtype, order="C")
    return tensors


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


def _walk(module: nnx.Module, order: Sequence[str], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Variables by dotted path, the attributes in `order` first and the others by name; a Sequential's by number."""
    module = module.layers if isinstance(module, nnx.Sequential) else module
    rank = {name: position for position, name in enumerate(order)}
    children = (enumerate(module) if isinstance(module, nnx.List) else
                sorted(vars(module).items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))
    for name, child in children:
        if isinstance(child, nnx.Variable):
            key, axes = AXES.get((type(module), name), (name, tuple(range(child.ndim))))
            yield prefix + key, Tensor(child, axes)
        elif isinstance(child, nnx.Module):
            yield from _walk(child, order, f"{prefix}{name}.")
