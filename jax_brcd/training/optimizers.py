"""What moves weights, by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from jax_brcd.runtime.registry import Registry
from jax_brcd.training.rates import Rate

Tree = Any
SPARED = ("bias", "scale")  # names of parameters that no decay pulls at, whatever their shape


class Optimizer(NamedTuple):
    """How an optimizer is built of a rate, a weight decay and a momentum.

    Attributes:
        decay: its weight decay unless another is told; None where it has none. momentum: whether it looks at that.
    """

    build: Callable[[Rate, float, float], optax.GradientTransformation]
    decay: float | None = None
    momentum: bool = False


def names_on(path: tuple[Any, ...]) -> tuple[str | int, ...]:
    """The names and numbers on JAX's path to a parameter, without the last step into the variable that holds it."""
    return tuple(step.key for step in path if isinstance(step, jax.tree_util.DictKey))


def decayed(parameters: Tree) -> Tree:
    """True for the parameters that are decayed: matrices and kernels, no norms and no biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, value: value.ndim > 1 and names_on(path)[-1] not in SPARED, parameters)


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
OPTIMIZERS.register("adam")(Optimizer(lambda rate, decay, momentum: optax.adam(rate)))
OPTIMIZERS.register("adamw")(Optimizer(
    lambda rate, decay, momentum: optax.adamw(rate, weight_decay=decay, mask=decayed), decay=0.01))
OPTIMIZERS.register("sgd")(Optimizer(
    lambda rate, decay, momentum: optax.chain(optax.add_decayed_weights(decay, decayed), optax.sgd(rate, momentum)),
    decay=5e-4, momentum=True))
OPTIMIZERS.register("lion")(Optimizer(
    lambda rate, decay, momentum: optax.lion(rate, weight_decay=decay, mask=decayed), decay=0.1))
OPTIMIZERS.register("lamb")(Optimizer(
    lambda rate, decay, momentum: optax.lamb(rate, weight_decay=decay, mask=decayed), decay=0.01))
