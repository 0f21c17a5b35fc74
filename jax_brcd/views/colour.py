"""What views do to the colours of an image, given as three planes of values in [0, 1]."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def gray(planes: Float[Array, "3 height width"]) -> Float[Array, "height width"]:
    """Luma of each pixel."""
    red, green, blue = planes
    return GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue


def blend(
    planes: Float[Array, "3 height width"], other: Float[Array, "..."] | float, factor: Float[Array, ""]
) -> Float[Array, "3 height width"]:
    """`factor` of the image and 1 - `factor` of the other, kept in [0, 1]."""
    return jnp.clip(factor * planes + (1.0 - factor) * other, 0.0, 1.0)


def adjust_brightness(
    planes: Float[Array, "3 height width"], factor: Float[Array, ""]
) -> Float[Array, "3 height width"]:
    """Blends with black."""
    return blend(planes, 0.0, factor)


def adjust_contrast(
    planes: Float[Array, "3 height width"], factor: Float[Array, ""]
) -> Float[Array, "3 height width"]:
    """Blends with the mean gray of the image."""
    return blend(planes, jnp.mean(gray(planes)), factor)


def adjust_saturation(
    planes: Float[Array, "3 height width"], factor: Float[Array, ""]
) -> Float[Array, "3 height width"]:
    """Blends with the gray of each pixel."""
    return blend(planes, gray(planes), factor)


def adjust_hue(planes: Float[Array, "3 height width"], turns: Float[Array, ""]) -> Float[Array, "3 height width"]:
    """Turns the hue circle at the same saturation and value (HSV)."""
    red, green, blue = planes
    # Not jnp.max over the channels: XLA's CPU reduction over three planes costs more than the rest of the view
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    sixth = jnp.where(
        value == red, (green - blue) / divisor,
        jnp.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    position = jnp.array([5.0, 3.0, 1.0], jnp.float32)[:, None, None] + sixth + 6.0 * turns
    position = position - 6.0 * jnp.floor(position / 6.0)  # jnp.mod is a call for every pixel on a CPU
    return value - chroma * jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)


JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def color_jitter(
    planes: Float[Array, "3 height width"], factors: Float[Array, "4"], order: Int[Array, "4"]
) -> Float[Array, "3 height width"]:
    """The operations of JITTER, each with its own factor, one after the other in the given order."""
    return lax.fori_loop(
        0, len(JITTER), lambda place, planes: lax.switch(order[place], JITTER, planes, factors[order[place]]), planes
    )


def grayscale(planes: Float[Array, "3 height width"]) -> Float[Array, "3 height width"]:
    """Every channel the gray of the pixel."""
    return jnp.broadcast_to(gray(planes), planes.shape)


def solarise(planes: Float[Array, "3 height width"]) -> Float[Array, "3 height width"]:
    """Values from a half on are turned over."""
    return jnp.where(planes >= 0.5, 1.0 - planes, planes)
