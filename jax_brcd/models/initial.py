"""Random weights to begin with: those of `jax.nn.initializers`, from programs of few sizes.

A program that draws numbers is compiled for each shape, and a model has dozens of shapes: that took nearly all of the time in which
a model is made. Threefry's number at a place of an array depends on the key and the place alone, so weights are the first numbers
of a row whose length is a power of four. Nothing here computes on the device but the draw, as each sum and product, each row of zeros
and each copy by `jnp.asarray` is a program for each shape, too.

What only asks for the shapes of a model draws nothing: `abstract`.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

Draw = Callable[[jax.Array, Sequence[int], type], jax.Array]
Initializer = Callable[..., jax.Array]
# Of a normal distribution that is cut at two standard deviations
CUT_DEVIATION = np.float32(0.87962566103423978)
FEWEST = 4**5  # numbers that are drawn at once


class _OneKey(nnx.RngStream):
    """A random stream that gives its key as often as it is asked, and counts nothing."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def abstract(create: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """What a function makes of random streams, with a jax.ShapeDtypeStruct for each weight.

    Streams that count would take longer than all else: in a traced function NNX asks each count where it lies, and JAX looks
    through every operation so far for its reply that this is not known.
    """
    def made() -> nnx.Module:
        rngs = nnx.Rngs(0)
        rngs.default = _OneKey(0, tag="default")
        return create(rngs)

    return nnx.eval_shape(made)


def drawn(draw: Draw, key: Key[Array, ""], shape: Sequence[int], dtype=jnp.float32) -> np.ndarray | jax.Array:
    """`draw(key, shape, dtype)`, to the last bit. In a traced function it is that call itself."""
    if isinstance(key, jax.core.Tracer) or not jax.config.jax_threefry_partitionable:
        return draw(key, tuple(shape), dtype)
    count = math.prod(shape)
    length = FEWEST
    while length < count:
        length *= 4
    return np.asarray(draw(key, (length,), dtype))[:count].reshape(shape)


def zeros(key: Key[Array, ""] | None, shape: Sequence[int], dtype=jnp.float32) -> Float[Array, "..."]:
    """An initializer: nothing but zeros."""
    return jax.device_put(np.zeros(shape, dtype))


def ones(key: Key[Array, ""] | None, shape: Sequence[int], dtype=jnp.float32) -> Float[Array, "..."]:
    """An initializer: nothing but ones."""
    return jax.device_put(np.ones(shape, dtype))


def scaled(draw: Draw, scale: Callable[[Sequence[int]], float | np.float32]) -> Initializer:
    """An initializer: what is drawn, times what the shape asks for."""
    return functools.partial(_scaled, draw, scale)


def _scaled(
    draw: Draw, scale: Callable[[Sequence[int]], float | np.float32], key: Key[Array, ""], shape: Sequence[int], dtype=jnp.float32
) -> Float[Array, "..."]:
    return jax.device_put(drawn(draw, key, shape, dtype) * np.asarray(scale(shape), dtype))


def normal(deviation: float) -> Initializer:
    """Of a normal distribution around zero."""
    return scaled(jax.random.normal, lambda shape: deviation)


def truncated_normal(deviation: float, *, lower: float, upper: float) -> Initializer:
    """Of a normal distribution around zero that is cut at `lower` and `upper` deviations."""
    return scaled(functools.partial(_truncated, lower, upper), lambda shape: deviation)


def uniform(scale: float) -> Initializer:
    """Evenly from 0 to `scale`."""
    return scaled(jax.random.uniform, lambda shape: scale)


def variance_scaling(
    scale: float, inputs: float, outputs: float, draw: Draw, times: Callable[[np.float32], np.float32]
) -> Initializer:
    """Of a variance that falls with a mean of a kernel's inputs and outputs, weighted so; `times` is the factor for a variance."""
    def factor(shape: Sequence[int]) -> np.float32:
        taps = math.prod(shape[:-2])
        return times(np.float32(scale / (taps * (inputs * shape[-2] + outputs * shape[-1]))))

    return scaled(draw, factor)


def _truncated(lower: float | int, upper: float | int, key: Key[Array, ""], shape: Sequence[int], dtype) -> Float[Array, "..."]:
    return jax.random.truncated_normal(key, lower, upper, shape, dtype)


def _symmetric(key: Key[Array, ""], shape: Sequence[int], dtype) -> Float[Array, "..."]:
    return jax.random.uniform(key, shape, dtype, -1)


def _evenly(variance: np.float32) -> np.float32:
    return np.sqrt(np.float32(3) * variance)


# PyTorch's kaiming_normal_ of the outputs; its usual linear and convolution; Flax's usual; and xavier_uniform_
he_normal = variance_scaling(2.0, 0.0, 1.0, jax.random.normal, lambda variance: np.sqrt(variance))
torch_uniform = variance_scaling(1 / 3, 1.0, 0.0, _symmetric, _evenly)
lecun_normal = variance_scaling(1.0, 1.0, 0.0, functools.partial(_truncated, -2, 2), lambda variance: np.sqrt(variance) / CUT_DEVIATION)
xavier_uniform = variance_scaling(1.0, 0.5, 0.5, _symmetric, _evenly)
classifier_uniform = variance_scaling(1 / 3, 0.0, 1.0, _symmetric, _evenly)
