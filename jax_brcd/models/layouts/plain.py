"""The layout of modules that users bring: every variable under its dotted attribute path, as it is."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from jax_brcd.models.adapt import Adapted
from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import Backbone
from jax_brcd.models.layouts.base import Loaded, Tensor, backbone_of, fill


def state(model: Backbone | HashModel) -> dict[str, np.ndarray]:
    """Copies of the variables by attribute path; those of a hash head stand under the backbone's `head_key`.

    Half precision is widened to float32, from which it comes back bit for bit.
    """
    values = {name: np.array(tensor.variable[...]) for name, tensor in _tensors(model).items()}
    return {name: value.astype(np.float32) if _narrow(value.dtype) else value for name, value in values.items()}


def load(model: Backbone | HashModel, state: Mapping[str, Any], *, any_head: bool = False) -> Loaded:
    """Puts what `state` gave into a backbone or hash model, in place; a prefix that all names share is taken off.

    Args:
        state: names to arrays or PyTorch tensors. any_head: see Layout.

    Raises:
        InputError: for missing, unknown or mis-shaped tensors, for such of another type, and for NaN and infinity; the model
            is then as it was.
    """
    return fill(model, _tensors(model), state, any_head=any_head)


def _tensors(model: Backbone | HashModel) -> dict[str, Tensor]:
    backbone = backbone_of(model)
    tensors = dict(_variables(backbone.module if isinstance(backbone, Adapted) else backbone))
    if isinstance(model, HashModel):
        tensors |= {f"{backbone.head_key}.{name}": tensor for name, tensor in _variables(model.head)}
    return tensors


def _variables(module: nnx.Module) -> Iterator[tuple[str, Tensor]]:
    """Variables but for the state of random streams and what was only recorded."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Variable) and not isinstance(node, (nnx.RngState, nnx.Intermediate)):
            yield ".".join(map(str, path)), Tensor(node, tuple(range(node.ndim)))


def _narrow(dtype: np.dtype) -> bool:
    return dtype.itemsize < 4 and np.can_cast(dtype, np.float32, "same_kind") and dtype.kind not in "biu"
