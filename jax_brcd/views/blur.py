"""The blur of a view, and that at another size than the one it is drawn for, as wide there in the picture.

The published blur is a window of 3x3 pixels of the output, whatever its size. At a fifth of the size the same nine pixels would
cover five times as much of the picture, so what is kept is the blur's variance, in pixels of the size that the view is drawn for.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

NARROWEST = 1e-9  # variance that a Gaussian is divided by at least


def scaled_blur(
    planes: Float[Array, "3 height width"], sigma: Float[Array, ""], *, unit: float, size: int = 3
) -> Float[Array, "3 height width"]:
    """The Gaussian blur that planes `unit` times smaller have of a `size` x `size` window with `sigma` in their pixels, on these;
    edges are mirrored."""
    reach = min(blur_reach(unit, size), *(side - 1 for side in planes.shape[1:]))
    if reach < 1:
        return planes
    weights = blur_weights(unit**2 * window_variance(sigma, size), reach)
    padded = jnp.pad(planes, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")

    def along(planes, axis):
        length = planes.shape[axis] - 2 * reach
        return sum(weights[tap] * lax.slice_in_dim(planes, tap, tap + length, axis=axis) for tap in range(2 * reach + 1))

    return along(along(padded, 1), 2)


def blur_reach(unit: float, size: int) -> int:
    """Pixels that it looks at on either side: one where the window holds no more, else three deviations of the widest window."""
    return 1 if unit * (size // 2) <= 1 else math.ceil(3 * unit * math.sqrt((size**2 - 1) / 12))


def window_variance(sigma: Float[Array, ""], size: int) -> Float[Array, ""]:
    """Of a Gaussian of which a window of `size` pixels is left."""
    sides = [(place, jnp.exp(-0.5 * place**2 / jnp.square(sigma))) for place in range(1, size // 2 + 1)]
    return 2.0 * sum(place**2 * side for place, side in sides) / (1.0 + 2.0 * sum(side for _, side in sides))


def blur_weights(variance: Float[Array, ""], reach: int) -> Float[Array, "taps"]:
    """Weights of the pixels from `reach` before to `reach` behind: three that have the variance, or else a Gaussian's."""
    if reach == 1:
        variance = jnp.minimum(variance, 2 / 3)  # of three equal ones
        return jnp.stack([variance / 2.0, 1.0 - variance, variance / 2.0])
    places = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * jnp.square(places) / jnp.maximum(variance, NARROWEST))
    return weights / jnp.sum(weights)


def gaussian_blur(
    planes: Float[Array, "3 height width"], sigma: Float[Array, ""], *, size: int = 3
) -> Float[Array, "3 height width"]:
    """Gaussian blur of a `size` x `size` window, an odd number, with `sigma` in pixels; edges are mirrored."""
    reach = size // 2
    sides = [jnp.exp(-0.5 * distance**2 / jnp.square(sigma)) for distance in range(reach, 0, -1)]
    whole = 1.0 + 2.0 * sum(sides)
    sides, middle = [side / whole for side in sides], 1.0 / whole

    def along(values: Array, axis: int) -> Array:
        length = values.shape[axis] - 2 * reach
        taps = [lax.slice_in_dim(values, start, start + length, axis=axis) for start in range(size)]
        return sum(side * (taps[place] + taps[-1 - place]) for place, side in enumerate(sides)) + middle * taps[reach]

    return along(along(jnp.pad(planes, ((0, 0), (reach, reach), (reach, reach)), mode="reflect"), 1), 2)
