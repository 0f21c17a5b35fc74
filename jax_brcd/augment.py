"""The published views of an image, batched on the device (method.md, "Data as published").

Every parameter of a view is drawn from one key an image, so a view is the same whatever batch it stands in.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
CROP_ATTEMPTS = 10

# The three blends of color jitter and where hue stands among them
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """What a training view is; the defaults are the published ones. Probabilities are of one image."""

    size: int  # pixels of the square output
    scale: tuple[float, float] = (0.5, 1.0)  # area of the crop over that of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of the crop
    flip: float = 0.5  # probability
    jitter: float = 0.7  # probability
    brightness: float = 0.4  # factors are drawn from 1 -+ this
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # turns of the hue circle, drawn from -+ this
    grayscale: float = 0.2  # probability
    blur: float = 0.5  # probability
    sigma: tuple[float, float] = (0.1, 2.1)  # pixels
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class ViewParameters(NamedTuple):
    """What was drawn for each image of a batch. The crop is in pixels of the source."""

    top: Int[Array, "batch"]
    left: Int[Array, "batch"]
    height: Int[Array, "batch"]
    width: Int[Array, "batch"]
    flip: Bool[Array, "batch"]
    jitter: Bool[Array, "batch"]
    factors: Float[Array, "batch 4"]  # of brightness, contrast, saturation; shift of the hue
    order: Int[Array, "batch 4"]  # the four operations in the order they are applied
    grayscale: Bool[Array, "batch"]
    blur: Bool[Array, "batch"]
    sigma: Float[Array, "batch"]


def draw_view_parameters(
    keys: Key[Array, "batch"], height: int, width: int, config: ViewConfig
) -> ViewParameters:
    """Draws the parameters of one view of each image of `height` x `width` pixels, as torchvision's transforms draw them."""
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (4 * CROP_ATTEMPTS + 13,)))(keys)
    crops, rest = uniform[:, : 4 * CROP_ATTEMPTS].reshape(-1, 4, CROP_ATTEMPTS), uniform[:, 4 * CROP_ATTEMPTS :]
    top, left, crop_height, crop_width = _draw_crop(crops, height, width, config)
    spread = jnp.array([config.brightness, config.contrast, config.saturation, config.hue])
    centre = jnp.array([1.0, 1.0, 1.0, 0.0])
    low = jnp.where(centre > 0, jnp.maximum(centre - spread, 0.0), -spread)
    return ViewParameters(
        top=top, left=left, height=crop_height, width=crop_width,
        flip=rest[:, 0] < config.flip,
        jitter=rest[:, 1] < config.jitter,
        factors=low + rest[:, 2:6] * (centre + spread - low),
        order=jnp.argsort(rest[:, 6:10], axis=1),
        grayscale=rest[:, 10] < config.grayscale,
        blur=rest[:, 11] < config.blur,
        sigma=config.sigma[0] + rest[:, 12] * (config.sigma[1] - config.sigma[0]),
    )


def _draw_crop(uniform: Float[Array, "batch 4 attempts"], height: int, width: int, config: ViewConfig):
    """The first of ten random boxes that fits, else the largest central one within the ratio."""
    area = height * width * (config.scale[0] + uniform[:, 0] * (config.scale[1] - config.scale[0]))
    low, high = jnp.log(config.ratio[0]), jnp.log(config.ratio[1])
    ratio = jnp.exp(low + uniform[:, 1] * (high - low))
    widths = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

    fallback_ratio = min(max(width / height, config.ratio[0]), config.ratio[1])
    fallback_width = min(width, round(height * fallback_ratio))
    fallback_height = min(height, round(width / fallback_ratio))
    first = jnp.argmax(fits, axis=1)[:, None]
    found = jnp.any(fits, axis=1)

    def choose(values, otherwise):
        return jnp.where(found, jnp.take_along_axis(values, first, axis=1)[:, 0], otherwise)

    crop_height, crop_width = choose(heights, fallback_height), choose(widths, fallback_width)
    top = jnp.floor(choose(uniform[:, 2], 0.0) * (height - crop_height + 1)).astype(jnp.int32)
    left = jnp.floor(choose(uniform[:, 3], 0.0) * (width - crop_width + 1)).astype(jnp.int32)
    top = jnp.where(found, top, (height - fallback_height) // 2)
    left = jnp.where(found, left, (width - fallback_width) // 2)
    return top, left, crop_height, crop_width


def resize_matrix(
    start: Float[Array, "batch"], length: Float[Array, "batch"], source: int, target: int, flip: Bool[Array, "batch"]
) -> Float[Array, "batch target source"]:
    """Row i holds the antialiased bilinear weights of output pixel i over the source pixels [start, start + length).

    A resize along one axis is the product with this matrix; `flip` mirrors the output.
    """
    pixel = jnp.arange(source, dtype=jnp.float32)
    place = jnp.arange(target, dtype=jnp.float32)
    place = jnp.where(flip[:, None], target - 1 - place, place)
    scale = (length / target)[:, None]
    centre = start[:, None] + (place + 0.5) * scale
    distance = jnp.abs(pixel + 0.5 - centre[:, :, None]) / jnp.maximum(scale, 1.0)[:, :, None]
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weight = jnp.where(inside[:, None, :], jnp.maximum(1.0 - distance, 0.0), 0.0)
    return weight / jnp.sum(weight, axis=-1, keepdims=True)


def crop_resize(
    images: Float[Array, "batch height width 3"], parameters: ViewParameters, size: int
) -> Float[Array, "batch 3 size size"]:
    """Cuts each image's box, resizes it to `size` x `size` and mirrors it where drawn; planes come first afterwards."""
    rows = resize_matrix(parameters.top.astype(jnp.float32), parameters.height.astype(jnp.float32), images.shape[1], size,
                         jnp.zeros_like(parameters.flip))
    columns = resize_matrix(parameters.left.astype(jnp.float32), parameters.width.astype(jnp.float32), images.shape[2],
                            size, parameters.flip)
    planes = jnp.moveaxis(images, -1, 1)
    return jnp.einsum("boh,bchw,bpw->bcop", rows, planes, columns, precision="highest")


def gray(planes: Float[Array, "batch 3 height width"]) -> Float[Array, "batch 1 height width"]:
    """Luma of each pixel."""
    red, green, blue = (planes[:, channel : channel + 1] for channel in range(3))
    return GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue


def blend(planes: Float[Array, "batch 3 height width"], operation: Int[Array, "batch"], factor: Float[Array, "batch"]):
    """Brightness, contrast or saturation: each mixes the image with black, its mean gray or its gray."""
    operation, factor = operation[:, None, None, None], factor[:, None, None, None]
    luma = gray(planes)
    other = jnp.where(operation == SATURATION, luma, jnp.mean(luma, axis=(2, 3), keepdims=True))
    other = jnp.where(operation == BRIGHTNESS, 0.0, other)
    return jnp.clip(factor * planes + (1.0 - factor) * other, 0.0, 1.0)


def shift_hue(
    planes: Float[Array, "batch 3 height width"], shift: Float[Array, "batch"]
) -> Float[Array, "batch 3 height width"]:
    """Turns the hue by `shift` turns at the same saturation and value (HSV)."""
    red, green, blue = planes[:, 0], planes[:, 1], planes[:, 2]
    value = jnp.max(planes, axis=1)
    chroma = value - jnp.min(planes, axis=1)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sixth = jnp.where(
        value == red, (green - blue) / safe,
        jnp.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    sixth = jnp.where(chroma > 0, sixth, 0.0) + 6.0 * shift[:, None, None]

    def channel(offset):
        position = jnp.mod(offset + sixth, 6.0)
        return value - chroma * jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=1)


def color_jitter(
    planes: Float[Array, "batch 3 height width"], factors: Float[Array, "batch 4"], order: Int[Array, "batch 4"]
) -> Float[Array, "batch 3 height width"]:
    """The four operations in each image's own order.

    Hue is the dear one, so it is computed once: the up to three blends before it, hue, the up to three after it.
    """
    place = jnp.arange(4)
    hue_at = jnp.argmax(order == HUE, axis=1)[:, None]
    blends = jnp.argsort(jnp.where(order == HUE, 4, place), axis=1)[:, :3]
    blends = jnp.take_along_axis(order, blends, axis=1)
    strength = jnp.take_along_axis(factors, blends, axis=1)

    def blend_where(planes, active):
        for slot in range(3):
            blended = blend(planes, blends[:, slot], strength[:, slot])
            planes = jnp.where(active[:, slot, None, None, None], blended, planes)
        return planes

    before = place[:3] < hue_at
    planes = shift_hue(blend_where(planes, before), factors[:, HUE])
    return blend_where(planes, ~before)


def gaussian_blur(
    planes: Float[Array, "batch channels height width"], sigma: Float[Array, "batch"]
) -> Float[Array, "batch channels height width"]:
    """3x3 Gaussian blur with each image's own sigma in pixels; edges are mirrored."""
    side = jnp.exp(-0.5 / jnp.square(sigma))
    side, middle = (part[:, None, None, None] for part in (side / (1 + 2 * side), 1 / (1 + 2 * side)))
    padded = jnp.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    rows = side * (padded[:, :, :-2] + padded[:, :, 2:]) + middle * padded[:, :, 1:-1]
    return side * (rows[..., :-2] + rows[..., 2:]) + middle * rows[..., 1:-1]


def normalise_pixels(planes: Float[Array, "batch 3 height width"], mean, std) -> Float[Array, "batch height width 3"]:
    """Pixels in [0, 1] over the data's mean and standard deviation; channels come last afterwards."""
    mean, std = (jnp.asarray(value, jnp.float32)[:, None, None] for value in (mean, std))
    return jnp.moveaxis((planes - mean) / std, 1, -1)


def apply_views(
    images: UInt8[Array, "batch height width 3"], parameters: ViewParameters, config: ViewConfig
) -> Float[Array, "batch size size 3"]:
    """Views with the given parameters, normalised."""

    def where(condition, changed, planes):
        return jnp.where(condition[:, None, None, None], changed, planes)

    planes = crop_resize(images.astype(jnp.float32) / 255.0, parameters, config.size)
    planes = where(parameters.jitter, color_jitter(planes, parameters.factors, parameters.order), planes)
    planes = where(parameters.grayscale, gray(planes), planes)
    planes = where(parameters.blur, gaussian_blur(planes, parameters.sigma), planes)
    return normalise_pixels(planes, config.mean, config.std)


def random_views(
    keys: Key[Array, "batch"], images: UInt8[Array, "batch height width 3"], config: ViewConfig
) -> Float[Array, "batch size size 3"]:
    """One random view of each image, from its own key."""
    return apply_views(images, draw_view_parameters(keys, images.shape[1], images.shape[2], config), config)


def evaluation_views(
    images: UInt8[Array, "batch height width 3"], size: int, *, resize: int | None = None
) -> Float[Array, "batch size size 3"]:
    """Images as they are evaluated: resized to a `size` square, or, for `resize`, to that shorter side and cropped centrally."""
    batch, height, width = images.shape[:3]
    target_height, target_width = (size, size) if resize is None else _shorter_side(height, width, resize)
    still = jnp.zeros(batch, bool)
    rows = resize_matrix(jnp.zeros(batch), jnp.full(batch, float(height)), height, target_height, still)
    columns = resize_matrix(jnp.zeros(batch), jnp.full(batch, float(width)), width, target_width, still)
    top, left = round((target_height - size) / 2), round((target_width - size) / 2)
    rows, columns = rows[:, top : top + size], columns[:, left : left + size]
    planes = jnp.moveaxis(images.astype(jnp.float32) / 255.0, -1, 1)
    planes = jnp.einsum("boh,bchw,bpw->bcop", rows, planes, columns, precision="highest")
    return normalise_pixels(planes, IMAGENET_MEAN, IMAGENET_STD)


def _shorter_side(height: int, width: int, target: int) -> tuple[int, int]:
    if height <= width:
        return target, int(target * width / height)
    return int(target * height / width), target
