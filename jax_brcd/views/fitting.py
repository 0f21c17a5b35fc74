"""Evaluation views of images of any sizes: each on a canvas, so that one compiled program serves all sizes up to it.

What an image becomes depends on its own pixels alone, not on what is encoded beside it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jax_brcd.runtime.errors import InputError
from jax_brcd.views.augmentation import Taps, axis_taps, each_image, normalise, resize_image

SMALLEST = 32  # pixels of the smallest canvas
SQUARE = 1024  # pixels up to which a canvas is square; of larger ones most would be empty, while few sizes are so large
LONGEST = 2**31  # places in an image are counted in 32 bits, in units of half a pixel of the view
Colour = tuple[float, float, float]


def canvas_side(length: int) -> int:
    """Pixels of a canvas that holds so many: powers of two and what lies half-way between them."""
    side = SMALLEST
    while side < length:
        side = side * 3 // 2 if side & (side - 1) == 0 else side * 4 // 3
    return side


def canvas_shape(height: int, width: int) -> tuple[int, int]:
    """Height and width of the canvas of an image."""
    longer = canvas_side(max(height, width))
    return (longer, longer) if longer <= SQUARE else (canvas_side(height), canvas_side(width))


def check_fits(height: int, width: int, *, size: int, resize: int | None) -> None:
    """Raises InputError for an image so elongated that its places cannot be counted."""
    longer, shorter = max(height, width), min(height, width)
    target = size if resize is None else resize * longer // shorter
    if (2 * longer + 1) * target >= LONGEST:
        raise InputError(f"an image of {width} x {height} pixels is too elongated; cut it, or make it smaller")


def fitted_view(
    image: UInt8[np.ndarray, "height width 3"], *, size: int, resize: int | None, mean: Colour, std: Colour,
    interpolation: str = "bilinear",
) -> Float[Array, "1 size size 3"]:
    """`fitted_views` of one image, on the canvas of its size."""
    height, width = image.shape[:2]
    canvas = np.zeros((1, *canvas_shape(height, width), 3), np.uint8)
    canvas[0, :height, :width] = image
    return fitted_views(canvas, np.array([[height, width]], np.int32), size=size, resize=resize, mean=mean, std=std,
                        interpolation=interpolation)


@functools.partial(jax.jit, static_argnames=("size", "resize", "mean", "std", "interpolation"))
def fitted_views(
    canvases: UInt8[Array, "batch rows columns 3"], sizes: Int[Array, "batch 2"], *, size: int, resize: int | None,
    mean: Colour, std: Colour, interpolation: str = "bilinear",
) -> Float[Array, "batch size size 3"]:
    """What `augmentation.evaluation_views` makes of each image, which fills the upper left of its canvas.

    Args:
        sizes: height and width of each image. size, resize, interpolation: as in `evaluation_views`.
    """
    sides = canvases.shape[1:3]

    def view(canvas, lengths):
        if resize is None:
            targets, smallest = (jnp.int32(size), jnp.int32(size)), size
        else:
            targets, smallest = resize * lengths // jnp.min(lengths), resize
        rows, columns = (_central_taps(lengths[axis], targets[axis], size, most=(max(sides[axis], smallest), smallest),
                                       interpolation=interpolation) for axis in (0, 1))
        return normalise(resize_image(canvas, rows, columns), mean, std)

    return each_image(view, canvases, sizes)


def _central_taps(
    length: Int[Array, ""], target: Int[Array, ""], size: int, *, most: tuple[int, int], interpolation: str
) -> Taps:
    """The middle `size` pixels of an axis of `length` pixels resized to `target`, both known only when it runs."""
    excess = target - size
    half = excess // 2
    begin = half + (excess % 2) * (half % 2)  # halves to even, as torchvision's CenterCrop rounds
    return axis_taps(begin + jnp.arange(size, dtype=jnp.int32), length, target, most=most, interpolation=interpolation)
