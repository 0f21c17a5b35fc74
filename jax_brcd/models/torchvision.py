"""To and from torchvision's state_dicts, without loss: names by each family's table, layouts by the one below."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import Backbone, BatchNorm
from jax_brcd.runtime.errors import InputError

# (layer, variable) -> (PyTorch's name, axes of ours in PyTorch's order)
LAYOUT = {
    (nnx.Linear, "kernel"): ("weight", (1, 0)),
    (nnx.Conv, "kernel"): ("weight", (3, 2, 0, 1)),
    (nnx.LayerNorm, "scale"): ("weight", (0,)),
    (BatchNorm, "scale"): ("weight", (0,)),
    (BatchNorm, "mean"): ("running_mean", (0,)),
    (BatchNorm, "var"): ("running_var", (0,)),
    (BatchNorm, "batches"): ("num_batches_tracked", ()),
}
LEAF_ORDER = ("kernel", "scale", "bias", "mean", "var", "batches")
SHOWN_TENSORS = 3


class Tensor(NamedTuple):
    """A variable of a model as PyTorch sees it."""

    variable: nnx.Variable
    axes: tuple[int, ...]  # of ours, in PyTorch's order

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in PyTorch's order."""
        return tuple(self.variable.shape[axis] for axis in self.axes)


def torchvision_tensors(model: Backbone | HashModel) -> dict[str, Tensor]:
    """Every variable by torchvision's name, in torchvision's order; of abstract models (nnx.eval_shape) too."""
    backbone = _backbone(model)
    tensors = {}
    for name, tensor in _walk(backbone, (*backbone.order, *LEAF_ORDER)):
        for pattern, replacement in backbone.renames:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    if isinstance(model, HashModel):
        tensors |= _walk(model.head, LEAF_ORDER, f"{backbone.head_key}.")
    return tensors


def torchvision_state(model: Backbone | HashModel) -> dict[str, np.ndarray]:
    """The weights as torchvision names, orders and shapes them: copies, float32, counters int64."""
    state = {}
    for name, (variable, axes) in torchvision_tensors(model).items():
        value = np.asarray(variable[...])
        dtype = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float32
        state[name] = np.array(value.transpose(axes), dtype, order="C")
    return state


def load_torchvision_state(model: Backbone | HashModel, state: Mapping[str, Any]) -> Backbone | HashModel:
    """Puts a torchvision state_dict into a backbone or hash model, in place, and returns the model.

    Tensors are copied and half precision is upcast. A backbone ignores the classifier's tensors; a hash model takes them
    for its head where there are any (`heads.head.*` is read as `heads.*`) and otherwise keeps the head it has. Counters
    `num_batches_tracked` may be missing, as they are from torchvision's older files, and then stay as they are.

    Args:
        state: torchvision's names to NumPy arrays or CPU tensors.

    Raises:
        InputError: for missing, unknown or mis-shaped tensors; the model is then as it was.
    """
    backbone = _backbone(model)
    expected, prefix = torchvision_tensors(model), f"{backbone.head_key}."
    given = {re.sub(r"^heads\.head\.", "heads.", name): _array(value) for name, value in state.items()}
    if model is backbone or not any(name.startswith(prefix) for name in given):
        expected, given = ({name: value for name, value in tensors.items() if not name.startswith(prefix)}
                           for tensors in (expected, given))
    shared = {name: tensor for name, tensor in expected.items() if name in given}
    problems = {
        "missing": [name for name in expected if name not in given and not name.endswith("num_batches_tracked")],
        "unknown": [name for name in given if name not in expected],
        "mis-shaped": [f"{name} {given[name].shape} instead of {tensor.shape}"
                       for name, tensor in shared.items() if given[name].shape != tensor.shape],
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
            raise InputError(f"the weights do not fit {backbone.name}: {problem} {', '.join(names[:SHOWN_TENSORS])}{more}; "
                             f"give weights of {backbone.name}, or name the model they are of")
    for name, (variable, axes) in shared.items():
        # a copy: jnp.asarray would share memory with a PyTorch model that may go on training
        variable.set_value(jnp.array(given[name].transpose(np.argsort(axes).astype(int)), variable.dtype))
    return model


def _backbone(model: Backbone | HashModel) -> Backbone:
    return model.backbone if isinstance(model, HashModel) else model


def _walk(module: nnx.Module, order: Sequence[str], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Variables by dotted path, the attributes in `order` first and the others by name; a Sequential's by number."""
    module = module.layers if isinstance(module, nnx.Sequential) else module
    rank = {name: position for position, name in enumerate(order)}
    children = (enumerate(module) if isinstance(module, nnx.List) else
                sorted(vars(module).items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))
    for name, child in children:
        if isinstance(child, nnx.Variable):
            key, axes = LAYOUT.get((type(module), name), (name, tuple(range(child.ndim))))
            yield prefix + key, Tensor(child, axes)
        elif isinstance(child, nnx.Module):
            yield from _walk(child, order, f"{prefix}{name}.")


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach()
        value = (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)
