"""What is done to the updates of an optimizer, and what is remembered of the weights they make."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jax_brcd.training.optimizers import names_on

Tree = Any
Names = tuple[str | int, ...]


def scaled(factor: Callable[[Names], float]) -> optax.GradientTransformation:
    """Each parameter's update times the factor of its path."""
    return optax.stateless(lambda updates, parameters: jax.tree_util.tree_map_with_path(
        lambda path, update: update * factor(names_on(path)), updates))


class Thawing(NamedTuple):
    """How many steps have been taken."""

    count: jax.Array


def held(holds: Callable[[Names], bool], steps: int) -> optax.GradientTransformation:
    """No updates of the parameters that it holds, for so many steps. Their moments go on meanwhile, so that they start warm."""

    def update(updates, state, parameters=None):
        free = (state.count >= steps).astype(jnp.float32)
        updates = jax.tree_util.tree_map_with_path(
            lambda path, update: update * free if holds(names_on(path)) else update, updates)
        return updates, Thawing(optax.safe_increment(state.count))

    return optax.GradientTransformation(lambda parameters: Thawing(jnp.int32(0)), update)


class Averaging(NamedTuple):
    """The moving average of the parameters, and of how many steps."""

    average: Tree
    count: jax.Array


def moved(average: Tree, values: Tree, count: jax.Array, decay: float) -> Tree:
    """The average after one more step, `count` of them behind it: at first it is nearly the plain mean. Whole numbers are taken
    as they are."""
    share = 1 - jnp.minimum(decay, (1 + count) / (10 + count))

    def move(old, new):
        return old + share * (new - old) if jnp.issubdtype(new.dtype, jnp.inexact) else new

    return jax.tree.map(move, average, values)


def averaging(decay: float) -> optax.GradientTransformation:
    """Leaves updates as they are and follows the parameters that they make; the last link of a chain."""

    def init(parameters):
        return Averaging(jax.tree.map(jnp.array, parameters), jnp.int32(0))  # copies: a step takes over the parameters' buffers

    def update(updates, state, parameters):
        made = optax.apply_updates(parameters, updates)
        return updates, Averaging(moved(state.average, made, state.count, decay), optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def average_in(optimizer_state: Tree) -> Tree | None:
    """The average that an optimizer's state holds; None where it holds none."""
    parts = jax.tree.leaves(optimizer_state, is_leaf=lambda part: isinstance(part, Averaging))
    return next((part.average for part in parts if isinstance(part, Averaging)), None)
