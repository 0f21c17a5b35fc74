"""A hash model on its devices, encoding views a batch at a time: one image alone, few, or many."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import BatchNorm
from jax_brcd.runtime import devices

View = Array | np.ndarray  # what a model sees: normalised pixels (1, size, size, 3), or a row of embeddings (1, width)
FEW, MANY = 8, 64  # images that a compiled program encodes at once; one alone has a program of its own, which decides every bit
# A logit within this part of the sum of its terms' sizes is decided anew by the program of one image: with others beside it XLA
# adds in another order, and a bit must not depend on that. Fifty times the largest difference of random models. In bfloat16
# differences are ten thousand times larger and would leave every image in doubt, so each is encoded alone.
DOUBT = {"float32": 2e-5, "bfloat16": math.inf}


class Batch(NamedTuple):
    """Logits, and of each the sum of the sizes of its terms, by which its rounding errors go."""

    logits: Float[Array, "batch bits"]
    terms: Float[Array, "batch bits"]


class Placed(NamedTuple):
    """A model on the one device that decides bits, and on all devices."""

    graph: nnx.GraphDef
    alone: nnx.State
    everywhere: nnx.State

    @classmethod
    def of(cls, model: HashModel) -> "Placed":
        """Places the model's present weights."""
        graph, state = nnx.split(model)
        alone = state if devices.count() == 1 else jax.device_put(devices.local(state), jax.local_devices()[0])
        return cls(graph, alone, devices.replicate(state))

    def logits(self, views: list[View]) -> Batch:
        """Of up to FEW views, or of MANY; rows beyond them are padding."""
        return self._of(views, _logits_alone, _logits_together)

    def features(self, views: list[View]) -> Float[Array, "batch features"]:
        """As `logits`."""
        return self._of(views, _features_alone, _features_together)

    def _of(self, views: list[View], alone: Callable[..., Any], together: Callable[..., Any]) -> Any:
        if len(views) == 1:
            return alone(self.graph, self.alone, views[0])
        size = FEW if len(views) <= FEW else MANY
        stacked = _stacked(*views, *(views[-1] for _ in range(size - len(views))))
        return together(self.graph, self.everywhere, devices.spread(stacked))


def _logits(graph: nnx.GraphDef, state: nnx.State, views: Float[View, "batch *view"]) -> Batch:
    # In full float32 where a device would round its operands, so that bits are the same on all of them
    with jax.default_matmul_precision("highest"):
        model = nnx.merge(graph, state)
        features = model.backbone(views, train=False)
        logits = model.head(features)
        return Batch(logits, _terms(model.head, features, logits))


def _features(
    graph: nnx.GraphDef, state: nnx.State, views: Float[View, "batch *view"]
) -> Float[Array, "batch features"]:
    with jax.default_matmul_precision("highest"):
        return nnx.merge(graph, state).backbone(views, train=False)


_logits_alone = jax.jit(_logits, static_argnums=0)
_logits_together = jax.jit(lambda *arguments: devices.gathered(_logits(*arguments)), static_argnums=0)
_features_alone = jax.jit(_features, static_argnums=0)
_features_together = jax.jit(lambda *arguments: devices.gathered(_features(*arguments)), static_argnums=0)
_stacked = jax.jit(lambda *views: jnp.concatenate(views))


def _terms(
    head: nnx.Module, features: Float[Array, "batch features"], logits: Float[Array, "batch bits"]
) -> Float[Array, "batch bits"]:
    """The sum of the sizes of the terms that make up each logit; of a head of unknown form, that of the image's logits."""
    layers = list(head.layers) if isinstance(head, nnx.Sequential) else [head]
    norm = layers.pop() if isinstance(layers[-1], BatchNorm) else None
    *before, last = layers
    if not isinstance(last, nnx.Linear):
        return jnp.broadcast_to(jnp.sum(jnp.abs(logits), axis=1, keepdims=True), logits.shape)
    for layer in before:
        features = layer(features)
    terms = jnp.abs(features) @ jnp.abs(last.kernel[...]) + (0 if last.bias is None else jnp.abs(last.bias[...]))
    return terms if norm is None else norm.sizes(terms)


def in_batches(views: Iterable[View], *, together: bool) -> Iterator[list[View]]:
    """MANY at a time, and what is left FEW at a time, so that little is padding; one at a time where not `together`."""
    if not together:
        yield from ([view] for view in views)
        return
    views = iter(views)
    while batch := list(itertools.islice(views, MANY)):
        size = MANY if len(batch) == MANY else FEW
        yield from (batch[begin : begin + size] for begin in range(0, len(batch), size))
