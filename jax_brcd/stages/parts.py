"""What a model says of a data set's parts, and what encoding costs."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jax_brcd.models import HashModel
from jax_brcd.models.heads import WithFeatures
from jax_brcd.models.kept import codes_of, head_codes, head_logits
from jax_brcd.runtime import devices, interruption
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.teachers.base import Encoded
from jax_brcd.views.encoding import encode, encode_batch, encoding_batch

TIMED_BATCHES = 5


@dataclasses.dataclass(frozen=True)
class PixelParts:
    """Parts that are encoded from pixels each time, for models whose backbone moves."""

    images: Mapping[str, np.ndarray]
    view: Mapping[str, Any]  # how they are prepared, see encoding.encode
    progress: Progress = silent

    def codes(self, model: HashModel, part: str) -> Float[np.ndarray, "images bits"]:
        """See teachers.base.Parts."""
        return codes_of(self._encode(model, part))

    def outputs(self, model: HashModel, part: str) -> Encoded:
        """See teachers.base.Parts."""
        both = self._encode(WithFeatures(model), part)
        features, logits = np.split(both, [model.backbone.features], axis=1)
        return Encoded.of(features, logits)

    def _encode(self, module: nnx.Module, part: str) -> Float[np.ndarray, "images outputs"]:
        return encode(module, self.images[part], **self.view, description=f"encode {part}", progress=self.progress)


@dataclasses.dataclass(frozen=True)
class KeptParts:
    """Parts whose features a frozen backbone gave once; the head is applied each time."""

    features: Mapping[str, np.ndarray]

    def codes(self, model: HashModel, part: str) -> Float[np.ndarray, "images bits"]:
        """See teachers.base.Parts."""
        return head_codes(model, self.features[part])

    def outputs(self, model: HashModel, part: str) -> Encoded:
        """See teachers.base.Parts."""
        return Encoded.of(self.features[part], head_logits(model, self.features[part]))


@dataclasses.dataclass(frozen=True)
class EncoderCost:
    """What an encoder weighs. `flops` are XLA's count for one image of the program of one CPU, before it compiles, wherever the
    encoder runs; None where JAX has no CPU or several accelerators share a batch. `images_per_second` is the median of timed
    batches."""

    parameters: int
    flops: float | None
    images_per_second: float


def measure_rows(model: HashModel, rows: Float[np.ndarray, "rows width"]) -> EncoderCost:
    """Parameters, FLOPs a row and rows a second on this machine of a hash head over embeddings."""
    batch = jnp.asarray(devices.spread(rows[np.arange(encoding_batch(len(rows))) % len(rows)]))
    return _measured(_row_logits, model, batch)


@functools.partial(jax.jit, static_argnums=0)
def _row_logits(graph: nnx.GraphDef, state: nnx.State, rows: Float[jax.Array, "rows width"]) -> Float[jax.Array, "rows bits"]:
    return devices.gathered(nnx.merge(graph, state)(rows))


def measure_cost(model: HashModel, images: np.ndarray, **view: Any) -> EncoderCost:
    """Parameters, FLOPs an image and encoding speed of a hash model on this machine, evaluation views included.

    Args:
        view: how images are prepared, see encoding.encode.
    """
    batch = jnp.asarray(devices.spread(images[np.arange(encoding_batch(len(images))) % len(images)]))
    return _measured(encode_batch, model, batch, **view)


def parameters(model: HashModel) -> int:
    """How many numbers a hash model learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _measured(encode: Any, model: HashModel, batch: jax.Array, **view: Any) -> EncoderCost:
    """What a compiled function of a split model and a batch costs."""
    graph, state = devices.replicate(nnx.split(model))
    operations = _operations(functools.partial(encode.lower, graph, **view), state, batch)
    seconds = []
    for _ in range(TIMED_BATCHES + 1):
        interruption.check()
        began = time.perf_counter()
        jax.block_until_ready(encode(graph, state, batch, **view))
        seconds.append(time.perf_counter() - began)
    return EncoderCost(
        parameters=parameters(model),
        flops=None if operations is None else operations / len(batch),
        images_per_second=len(batch) / float(np.median(seconds[1:])),
    )


def _operations(lower: Callable[..., jax.stages.Lowered], *arguments: Any) -> float | None:
    """Floating point operations of a program for a CPU: XLA counts none of the programs of other devices before it compiles them,
    and none of what their libraries compute afterwards."""
    if jax.default_backend() == "cpu":
        return float(lower(*arguments).cost_analysis()["flops"])  # of the very program that is timed
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            counted = lower(*shapes).cost_analysis()
    except RuntimeError:  # a JAX that was told to leave CPUs alone
        return None
    return None if counted is None else float(counted["flops"])
