"""To and from torchvision's state_dicts, without loss: names by each family's `renames`, layouts by the table below."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_brcd.errors import InputError
from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import BatchNorm

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
SHOWN_TENSORS = 3


def _variables(module: Any, prefix: str = "") -> Iterator[tuple[str, nnx.Variable, tuple[int, ...]]]:
    """(dotted PyTorch name before renaming, variable, axes in PyTorch's order), in the order of definition."""
    if isinstance(module, nnx.List):
        for position, child in enumerate(module):
            yield from _variables(child, f"{prefix}{position}.")
        return
    for name, child in vars(module).items():
        if isinstance(child, nnx.Variable):
            foreign, axes = LAYOUT.get((type(module), name), (name, tuple(range(child[...].ndim))))
            yield prefix + foreign, child, axes
        elif isinstance(child, nnx.Module):
            yield from _variables(child, f"{prefix}{name}.")


def _named(model: nnx.Module) -> dict[str, tuple[nnx.Variable, tuple[int, ...]]]:
    """torchvision's name of every variable of a backbone or hash model."""
    backbone = model.backbone if isinstance(model, HashModel) else model
    named = {}
    for name, variable, axes in _variables(backbone):
        for pattern, replacement in backbone.renames:
            name = re.sub(pattern, replacement, name)
        named[name] = variable, axes
    if isinstance(model, HashModel):
        named |= {name: (variable, axes) for name, variable, axes in _variables(model.head, f"{backbone.head_key}.")}
    return named


def torchvision_state(model: nnx.Module) -> dict[str, np.ndarray]:
    """A backbone's or hash model's weights as torchvision names, orders and shapes them; float32, counters int64."""
    state = {}
    for name, (variable, axes) in _named(model).items():
        value = np.asarray(variable[...])
        dtype = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float32
        state[name] = np.ascontiguousarray(value.transpose(axes), dtype).reshape(value.transpose(axes).shape)
    return state


def load_torchvision_state(model: nnx.Module, state: Mapping[str, Any]) -> nnx.Module:
    """Puts a torchvision state_dict into a backbone or hash model, in place, and returns the model.

    Half-precision tensors are upcast. A backbone ignores the classifier's tensors; a hash model takes them for its head
    where there are any (`heads.head.*` is read as `heads.*`) and otherwise keeps the head it has.

    Args:
        state: torchvision's names to NumPy arrays or CPU tensors.

    Raises:
        InputError: for missing, unknown or mis-shaped tensors; the model is then as it was.
    """
    backbone = model.backbone if isinstance(model, HashModel) else model
    named, prefix = _named(model), f"{backbone.head_key}."
    given = {re.sub(r"^heads\.head\.", "heads.", name): value for name, value in state.items()}
    if not any(name.startswith(prefix) for name in given) or model is backbone:
        given = {name: value for name, value in given.items() if not name.startswith(prefix)}
        named = {name: value for name, value in named.items() if not name.startswith(prefix)}
    arrays = {name: _array(value) for name, value in given.items()}
    optional = {name for name in named if name.endswith("num_batches_tracked")}
    _refuse("lack", sorted(set(named) - set(arrays) - optional))
    _refuse("have unknown", sorted(set(arrays) - set(named)))
    expected = {name: tuple(np.array(variable.shape, int)[list(axes)]) for name, (variable, axes) in named.items()}
    _refuse("have mis-shaped", [f"{name} {arrays[name].shape} instead of {tuple(map(int, expected[name]))}"
                                for name in named if name in arrays and arrays[name].shape != expected[name]])
    for name, (variable, axes) in named.items():
        if name in arrays:
            value = arrays[name].transpose(np.argsort(axes)) if axes else arrays[name]
            variable[...] = jnp.asarray(value, variable[...].dtype)
    return model


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach()
        value = (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)


def _refuse(verb: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
        raise InputError(f"the weights {verb} {', '.join(names[:SHOWN_TENSORS])}{more}; "
                         "give the weights of the model that was named, or name theirs")
