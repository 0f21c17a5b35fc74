"""Position embeddings at other sizes of image: the grid they were learnt on, resampled as each family's reference does it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SHARP, SMOOTH = -0.75, -0.5  # the cubic's parameter in PyTorch's `interpolate`: without antialiasing, and with it


def cubic(distance: Float[np.ndarray, "..."], parameter: float) -> Float[np.ndarray, "..."]:
    """The weight of a sample at a distance, in samples (Keys, 1981); 0 from a distance of 2 on."""
    x = np.abs(distance)
    near = ((parameter + 2) * x - (parameter + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * parameter
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=64)
def bicubic_matrix(
    source: int, target: int, *, offset: float = 0.0, corners: bool = False, antialias: bool = False
) -> Float[np.ndarray, "target source"]:
    """Weights that resample `source` places to `target` along one axis, float32; each row sums to 1.

    It is `torch.nn.functional.interpolate(mode="bicubic")`.

    Args:
        offset: the step is source / (target + offset), as of PyTorch's `scale_factor` (target + offset) / source.
        corners: the first and the last places stay where they are (`align_corners`). antialias: as PyTorch's argument.
    """
    step = (source - 1) / max(target - 1, 1) if corners else source / (target + offset)
    places = np.arange(target) * step if corners else (np.arange(target) + 0.5) * step - 0.5
    samples = np.arange(source)
    if antialias:  # samples beyond the border do not count
        weights = cubic((samples - places[:, None]) / max(step, 1.0), SMOOTH)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    # beyond the border the last sample is repeated
    reach = np.floor(places)[:, None] + np.arange(-1, 3)
    weights, kept = cubic(reach - places[:, None], SHARP), np.clip(reach, 0, source - 1)
    return np.sum(weights[:, :, None] * (kept[:, :, None] == samples), axis=1).astype(np.float32)


def resampled(
    grid: Float[Array, "places width"], height: int, width: int, **settings
) -> Float[Array, "patches width"]:
    """The embeddings of a square grid, row by row, at another number of rows and columns; as they are at their own.

    Args:
        height, width: of the image, in patches. settings: of `bicubic_matrix`.
    """
    side = round(len(grid) ** 0.5)
    if (height, width) == (side, side):
        return grid
    rows, columns = (bicubic_matrix(side, count, **settings) for count in (height, width))
    square = grid.astype(jnp.float32).reshape(side, side, -1)
    # in full float32 where a device would round its operands: positions are added to every patch
    square = jnp.einsum("ij,kl,jlw->ikw", rows, columns, square, precision=jax.lax.Precision.HIGHEST)
    return square.reshape(height * width, -1)
