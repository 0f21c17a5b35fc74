"""The variables of a model as PyTorch names and shapes them: names by a family's table, axes by the one below."""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from flax import nnx

from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import Backbone, BatchNorm
from jax_brcd.models.layouts.base import Tensor, backbone_of

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
PARTS = re.compile(r"\{(.*)\}")


def named_tensors(model: Backbone | HashModel, renames: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Every variable by PyTorch's name, in its order; of abstract models (nnx.eval_shape) too.

    Args:
        renames: (pattern, replacement) from a dotted attribute path to a key, applied in turn. A key with `{a,b}` in it stands
            for several, equal parts of one variable.
    """
    backbone = backbone_of(model)
    tensors = {}
    for name, tensor in _walk(backbone, (*backbone.order, *LEAF_ORDER)):
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        several = PARTS.search(name)
        names = [name.replace(several[0], each) for each in several[1].split(",")] if several else [name]
        tensors |= {each: tensor._replace(part=part, parts=len(names)) for part, each in enumerate(names)}
    if isinstance(model, HashModel):
        tensors |= _walk(model.head, LEAF_ORDER, f"{backbone.head_key}.")
    return tensors


def tensor_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copies of tensors as PyTorch shapes them, float32, counters int64."""
    arrays = {}
    for name, tensor in tensors.items():
        value = tensor.array()
        arrays[name] = np.array(value, np.int64 if np.issubdtype(value.dtype, np.integer) else np.float32, order="C")
    return arrays


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
