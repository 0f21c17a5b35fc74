"""Codes of a data set's parts and what encoding them costs: the edge between models and retrieval."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_brcd.losses.codes import hash_codes
from jax_brcd.models import HashModel
from jax_brcd.runtime import devices
from jax_brcd.views.encoding import encode, encode_batch, encoding_batch

TIMED_BATCHES = 5
HEAD_ROWS = 4096


@runtime_checkable
class Parts(Protocol):
    """Codes of a named part of a data set ("train", "database", "validation", "test") under a model."""

    def codes(self, model: HashModel, part: str) -> Float[np.ndarray, "images bits"]:
        """Codes of the part's un-augmented images."""


@dataclasses.dataclass(frozen=True)
class PixelParts:
    """Parts that are encoded from pixels each time, for models whose backbone moves."""

    images: Mapping[str, np.ndarray]
    size: int
    resize: int | None = None  # see encoding.encode

    def codes(self, model: HashModel, part: str) -> Float[np.ndarray, "images bits"]:
        """See Parts."""
        logits = encode(model, self.images[part], size=self.size, resize=self.resize, description=f"encode {part}")
        return np.asarray(hash_codes(jnp.asarray(logits)))


@dataclasses.dataclass(frozen=True)
class KeptParts:
    """Parts whose features a frozen backbone gave once; the head is applied each time."""

    features: Mapping[str, np.ndarray]

    def codes(self, model: HashModel, part: str) -> Float[np.ndarray, "images bits"]:
        """See Parts."""
        return head_codes(model, self.features[part])


@functools.partial(jax.jit, static_argnums=0)
def _head_codes(graph, state, features: Float[Array, "rows features"]) -> Float[Array, "rows bits"]:
    return hash_codes(nnx.merge(graph, state)(features))


def head_codes(model: HashModel, features: Float[np.ndarray, "*rows features"]) -> Float[np.ndarray, "*rows bits"]:
    """Codes of kept features, float32, in slabs of rows so that half-precision features are upcast a slab at a time."""
    graph, state = nnx.split(model.head)
    rows = features.reshape(-1, features.shape[-1])
    slabs = [np.asarray(_head_codes(graph, state, jnp.asarray(rows[begin : begin + HEAD_ROWS], jnp.float32)))
             for begin in range(0, len(rows), HEAD_ROWS)]
    return np.concatenate(slabs).reshape(*features.shape[:-1], -1)


@dataclasses.dataclass(frozen=True)
class EncoderCost:
    """What an encoder weighs. `flops` are XLA's count for one image; `images_per_second` is the median of timed batches."""

    parameters: int
    flops: float
    images_per_second: float


def measure_cost(model: HashModel, images: np.ndarray, *, size: int, resize: int | None = None) -> EncoderCost:
    """Parameters, FLOPs an image and encoding speed of a hash model on this machine, evaluation views included."""
    graph, state = devices.replicate(nnx.split(model))
    batch = jnp.asarray(devices.spread(images[np.arange(encoding_batch(len(images))) % len(images)]))
    compiled = encode_batch.lower(graph, state, batch, size=size, resize=resize).compile()
    seconds = []
    for _ in range(TIMED_BATCHES + 1):
        began = time.perf_counter()
        jax.block_until_ready(encode_batch(graph, state, batch, size=size, resize=resize))
        seconds.append(time.perf_counter() - began)
    return EncoderCost(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        flops=float(compiled.cost_analysis()["flops"]) * devices.count() / len(batch),  # XLA counts one device's part
        images_per_second=len(batch) / float(np.median(seconds[1:])),
    )
