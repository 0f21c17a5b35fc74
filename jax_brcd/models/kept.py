"""Logits and codes of features that a frozen backbone gave once: the head alone is applied."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_brcd.losses.codes import hash_codes
from jax_brcd.models.heads import HashModel

HEAD_ROWS = 4096


@functools.partial(jax.jit, static_argnums=0)
def _head_logits(graph, state, features: Float[Array, "rows features"]) -> Float[Array, "rows bits"]:
    return nnx.merge(graph, state)(features)


@functools.partial(jax.jit, static_argnums=0)
def _head_codes(graph, state, features: Float[Array, "rows features"]) -> Float[Array, "rows bits"]:
    return hash_codes(nnx.merge(graph, state)(features))


def head_codes(model: HashModel, features: Float[np.ndarray, "*rows features"]) -> Float[np.ndarray, "*rows bits"]:
    """Codes of kept features, float32."""
    return _in_slabs(_head_codes, model, features)


def head_logits(model: HashModel, features: Float[np.ndarray, "*rows features"]) -> Float[np.ndarray, "*rows bits"]:
    """Logits of kept features, float32."""
    return _in_slabs(_head_logits, model, features)


def codes_of(logits: Float[np.ndarray, "*rows bits"]) -> Float[np.ndarray, "*rows bits"]:
    """Codes of logits that are there already."""
    return np.asarray(hash_codes(jnp.asarray(logits)))


def _in_slabs(
    program: Callable[..., Array], model: HashModel, features: Float[np.ndarray, "*rows features"]
) -> Float[np.ndarray, "*rows bits"]:
    """A program of the head, in slabs of rows so that half-precision features are upcast a slab at a time."""
    graph, state = nnx.split(model.head)
    rows = features.reshape(-1, features.shape[-1])
    slabs = [np.asarray(program(graph, state, jnp.asarray(rows[begin : begin + HEAD_ROWS], jnp.float32)))
             for begin in range(0, len(rows), HEAD_ROWS)]
    return np.concatenate(slabs).reshape(*features.shape[:-1], -1)
