"""The published views of an image, computed in batches on the device (docs/method.md, "Data as published").

Every parameter of a view is drawn from one key an image, so a view is the same whatever batch it stands in. The
operations follow torchvision's on float tensors; inside, one image is three planes of values in [0, 1]. All numbers are of 32
bits, also where JAX is told to take 64.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt8

from jax_brcd.runtime import devices
from jax_brcd.runtime.digests import later
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.registry import unknown_name
from jax_brcd.views.blur import gaussian_blur, scaled_blur
from jax_brcd.views.colour import color_jitter, grayscale, solarise
from jax_brcd.views.images import check_images

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_ATTEMPTS = 10
SOLARISE = 0x736F6C  # keeps its draw apart from the others


class Kernel(NamedTuple):
    """How a resize weighs source pixels by their distance from an output pixel, counted in the larger of both pixels."""

    reach: int  # the distance at which weights end
    weights: Callable[[Float[Array, "..."]], Float[Array, "..."]]


def _triangle(distance: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(1.0 - distance, 0.0)


def _cubic(distance: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keys' cubic with a = -1/2 (IEEE Trans. ASSP 29, 1981), in factors, so that little is lost where it is near to 0."""
    near = (distance - 1.0) * ((1.5 * distance - 1.0) * distance - 1.0)
    far = -0.5 * (distance - 1.0) * jnp.square(distance - 2.0)
    return jnp.where(distance < 1.0, near, jnp.where(distance < 2.0, far, 0.0))


INTERPOLATIONS = {"bilinear": Kernel(1, _triangle), "bicubic": Kernel(2, _cubic)}  # all with antialiasing


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
    sigma: tuple[float, float] = (0.1, 2.1)  # pixels of the output, where `blur_unit` is 1
    blur_size: int = later(3)  # pixels of the blur's window, an odd number
    solarise: float = later(0.0)  # probability
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    blur_unit: float = later(1.0)  # pixels of the output that make up one of sigma's
    padding: float = later(0.0)  # zeros around the image, as a part of its side, if the crop is of the image's size among them

    def rendered(self, size: int, mean: tuple[float, float, float], std: tuple[float, float, float]) -> "ViewConfig":
        """The same views for another model: what is drawn does not depend on the size, and the blur is as wide in the picture."""
        return dataclasses.replace(self, size=size, mean=mean, std=std, blur_unit=self.blur_unit * size / self.size)


class ViewParameters(NamedTuple):
    """What was drawn for an image, or for each image of a batch. The crop is in pixels of the source."""

    top: Int[Array, "*batch"]
    left: Int[Array, "*batch"]
    height: Int[Array, "*batch"]
    width: Int[Array, "*batch"]
    flip: Bool[Array, "*batch"]
    jitter: Bool[Array, "*batch"]
    factors: Float[Array, "*batch 4"]  # of the operations of JITTER
    order: Int[Array, "*batch 4"]  # places in JITTER, in the order they are applied
    grayscale: Bool[Array, "*batch"]
    blur: Bool[Array, "*batch"]
    sigma: Float[Array, "*batch"]
    solarise: Bool[Array, "*batch"]


class Taps(NamedTuple):
    """Where each output pixel along one axis looks in the source, and with what weights (they sum to 1)."""

    positions: Int[Array, "target taps"]
    weights: Float[Array, "target taps"]


def draw_view_parameters(
    keys: Key[Array, "batch"], height: int, width: int, config: ViewConfig
) -> ViewParameters:
    """Draws one view of each image of `height` x `width` pixels, from the distributions of torchvision's transforms."""
    return jax.vmap(lambda key: _draw_one(key, height, width, config))(keys)


def _draw_one(key: Key[Array, ""], height: int, width: int, config: ViewConfig) -> ViewParameters:
    # One call for all numbers: on a CPU the generator costs more by the call than by the number.
    uniform = jax.random.uniform(key, (4 * CROP_ATTEMPTS + 13,), jnp.float32)
    crop, rest = uniform[: 4 * CROP_ATTEMPTS].reshape(4, CROP_ATTEMPTS), uniform[4 * CROP_ATTEMPTS :]
    top, left, crop_height, crop_width = _draw_crop(crop, height, width, config)
    spread = jnp.array([config.brightness, config.contrast, config.saturation], jnp.float32)
    low = jnp.append(jnp.maximum(1.0 - spread, 0.0), jnp.float32(-config.hue))
    high = jnp.append(1.0 + spread, jnp.float32(config.hue))
    return ViewParameters(
        top=top, left=left, height=crop_height, width=crop_width,
        flip=rest[0] < config.flip,
        jitter=rest[1] < config.jitter,
        factors=_between(low, high, rest[2:6]),
        order=jnp.argsort(rest[6:10]).astype(jnp.int32),
        grayscale=rest[10] < config.grayscale,
        blur=rest[11] < config.blur,
        sigma=_between(*config.sigma, rest[12]),
        solarise=_draw_solarise(key, config),
    )


def _draw_solarise(key: Key[Array, ""], config: ViewConfig) -> Bool[Array, ""]:
    # Of a key of its own: more numbers in the one call would change the others
    if config.solarise == 0:
        return jnp.array(False)
    return jax.random.uniform(jax.random.fold_in(key, SOLARISE), (), jnp.float32) < config.solarise


def _draw_crop(uniform: Float[Array, "4 attempts"], height: int, width: int, config: ViewConfig):
    """Top, left, height and width of the first random box that fits, else of the largest central one in ratio; of a padded
    image any box of its size."""
    if config.padding:
        return _draw_move(uniform[2:, 0], height, width, config.padding)
    area = height * width * _between(*config.scale, uniform[0])
    ratio = jnp.exp(_between(math.log(config.ratio[0]), math.log(config.ratio[1]), uniform[1]))
    widths = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    tops = jnp.floor(uniform[2] * (height - heights + 1)).astype(jnp.int32)
    lefts = jnp.floor(uniform[3] * (width - widths + 1)).astype(jnp.int32)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

    nearest_ratio = min(max(width / height, config.ratio[0]), config.ratio[1])
    central_height, central_width = min(height, round(width / nearest_ratio)), min(width, round(height * nearest_ratio))
    central = (height - central_height) // 2, (width - central_width) // 2, central_height, central_width
    drawn = jnp.stack([tops, lefts, heights, widths])[:, jnp.argmax(fits)]
    return jnp.where(jnp.any(fits), drawn, jnp.array(central, jnp.int32))


def _draw_move(uniform: Float[Array, "2"], height: int, width: int, padding: float) -> Int[Array, "4"]:
    """Top, left, height and width of a box of the image's size that reaches at most `padding` of a side beyond it."""
    most = [round(padding * side) for side in (height, width)]
    top, left = (jnp.floor(uniform[axis] * (2 * most[axis] + 1)).astype(jnp.int32) - most[axis] for axis in (0, 1))
    return jnp.stack([top, left, jnp.int32(height), jnp.int32(width)])


def _between(low, high, uniform):
    return low + uniform * (high - low)


def resize_taps(
    start: Int[Array, ""], length: Int[Array, ""], flip: Bool[Array, ""], *, source: int, target: int,
    interpolation: str = "bilinear",
) -> Taps:
    """Antialiased resize of the source pixels [start, start + length) of an axis to `target` pixels.

    `flip` mirrors the output. `source` is the length of the whole axis, which bounds how many pixels are averaged.
    """
    place = jnp.arange(target, dtype=jnp.int32)
    place = jnp.where(flip, target - 1 - place, place)
    taps = axis_taps(place, jnp.asarray(length, jnp.int32), target, most=(max(source, target), target),
                     interpolation=interpolation)
    return taps._replace(positions=jnp.asarray(start, jnp.int32) + taps.positions)


def axis_taps(
    place: Int[Array, "places"], length: Int[Array, ""], target: Int[Array, ""] | int, *, most: tuple[int, int],
    interpolation: str,
) -> Taps:
    """Where the pixels at `place` of an axis of `length` pixels, resized to `target` with antialiasing, look in it.

    `most` is a source and a target length whose quotient, 1 or more, bounds that of the axis: so many pixels are averaged.
    """
    kernel = INTERPOLATIONS[interpolation]
    taps = -(-2 * kernel.reach * most[0] // most[1])
    # Places are counted in integers, in units of 1 / (2 * target) of a source pixel: in float32 the weights in an image
    # of 256 pixels would be off by 1e-5.
    centre = length * (2 * place + 1)
    unit = 2 * jnp.maximum(length, target)
    first = jnp.maximum((centre - kernel.reach * unit + target) // (2 * target), 0)
    position = first[:, None] + jnp.arange(taps, dtype=jnp.int32)
    distance = jnp.abs((2 * position + 1) * target - centre[:, None]).astype(jnp.float32)
    weights = jnp.where(position < length, kernel.weights(distance / unit.astype(jnp.float32)), 0.0)
    return Taps(jnp.minimum(position, length - 1), weights / jnp.sum(weights, axis=1, keepdims=True))


def over_zeros(taps: Taps, length: int) -> Taps:
    """The same taps of an axis of `length` pixels that has zeros on both sides."""
    inside = (taps.positions >= 0) & (taps.positions < length)
    return Taps(jnp.clip(taps.positions, 0, length - 1), jnp.where(inside, taps.weights, 0.0))


def resample(values: Shaped[Array, "source columns channels"], taps: Taps) -> Float[Array, "target columns channels"]:
    """Weighted sums along the first axis."""

    # A loop and not a sum over a gathered axis: XLA would merge that with its consumer and compute it once a reader
    def add_tap(tap, total):
        return total + taps.weights[:, tap, None, None] * values[taps.positions[:, tap]]

    total = jnp.zeros_like(values, jnp.float32, shape=(len(taps.positions), *values.shape[1:]))
    return lax.fori_loop(0, taps.positions.shape[1], add_tap, total)


def resize_image(image: UInt8[Array, "height width 3"], rows: Taps, columns: Taps) -> Float[Array, "3 rows columns"]:
    """Resamples both axes of an image and turns it into planes in [0, 1]."""
    narrowed = resample(jnp.swapaxes(image, 0, 1), columns)
    planes = resample(jnp.transpose(narrowed, (1, 2, 0)), rows)
    return jnp.swapaxes(planes, 0, 1) / 255.0


def normalise(
    planes: Float[Array, "3 height width"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Array, "height width 3"]:
    """Values over the data's mean and standard deviation; channels come last afterwards."""
    mean, std = (jnp.array(value, jnp.float32)[:, None, None] for value in (mean, std))
    return jnp.moveaxis((planes - mean) / std, 0, -1)


def apply_view(
    image: UInt8[Array, "height width 3"], parameters: ViewParameters, config: ViewConfig
) -> Float[Array, "size size 3"]:
    """One view of one image with the given parameters, normalised."""
    rows = resize_taps(parameters.top, parameters.height, jnp.array(False), source=image.shape[0], target=config.size)
    columns = resize_taps(parameters.left, parameters.width, parameters.flip, source=image.shape[1], target=config.size)
    if config.padding:
        rows, columns = (over_zeros(taps, side) for taps, side in ((rows, image.shape[0]), (columns, image.shape[1])))
    planes = resize_image(image, rows, columns)
    if config.jitter:
        planes = _when(parameters.jitter, color_jitter, planes, parameters.factors, parameters.order)
    if config.grayscale:
        planes = _when(parameters.grayscale, grayscale, planes)
    if config.blur:
        blur = (functools.partial(gaussian_blur, size=config.blur_size) if config.blur_unit == 1
                else functools.partial(scaled_blur, unit=config.blur_unit, size=config.blur_size))
        planes = _when(parameters.blur, blur, planes, parameters.sigma)
    if config.solarise:
        planes = _when(parameters.solarise, solarise, planes)
    return normalise(planes, config.mean, config.std)


def _when(condition: Bool[Array, ""], operation: Callable, planes: Array, *settings: Array) -> Array:
    return lax.cond(condition, operation, lambda planes, *settings: planes, planes, *settings)


def apply_views(
    images: Shaped[Array | np.ndarray, "..."], parameters: ViewParameters, config: ViewConfig
) -> Float[Array, "batch size size 3"]:
    """Views of a batch with the given parameters, normalised.

    Args:
        images: uint8 (batch, height, width, 3).

    Raises:
        InputError: for images that are something else, with how to convert them.
    """
    check_images(images)
    return each_image(lambda image, parameters: apply_view(image, parameters, config), jnp.asarray(images), parameters)


def random_views(
    keys: Key[Array, "batch"], images: Shaped[Array | np.ndarray, "..."], config: ViewConfig
) -> Float[Array, "batch size size 3"]:
    """One random view of each image, from its own key.

    Args:
        images: uint8 (batch, height, width, 3).

    Raises:
        InputError: for images that are something else, with how to convert them.
    """
    check_images(images)
    return apply_views(images, draw_view_parameters(keys, images.shape[1], images.shape[2], config), config)


def evaluation_views(
    images: Shaped[Array | np.ndarray, "..."], size: int, *, resize: int | None = None,
    mean: tuple[float, float, float] = IMAGENET_MEAN, std: tuple[float, float, float] = IMAGENET_STD,
    interpolation: str = "bilinear",
) -> Float[Array, "batch size size 3"]:
    """Images as they are evaluated, normalised: the whole image resized to a `size` square.

    Args:
        images: uint8 (batch, height, width, 3). resize: pixels to which the shorter side is resized, whereupon a central `size`
            square is cut out, instead. interpolation: a name of INTERPOLATIONS; "bicubic" may overshoot [0, 1] before it is
            normalised, as torchvision's does on float tensors.

    Raises:
        InputError: for images that are something else, with how to convert them; for a `resize` below `size`; for an unknown
            interpolation.
    """
    check_images(images)
    check_interpolation(interpolation)
    if resize is not None and resize < size:
        raise InputError(f"a {size} pixel square cannot be cut from images resized to {resize} pixels; give {size} or more")
    height, width = images.shape[1:3]
    target_height, target_width = (size, size) if resize is None else _shorter_side(height, width, resize)
    rows, columns = (_central_taps(source, target, size, interpolation)
                     for source, target in ((height, target_height), (width, target_width)))
    return each_image(lambda image: normalise(resize_image(image, rows, columns), mean, std), jnp.asarray(images))


def check_interpolation(name: str) -> None:
    """Raises InputError for a name that INTERPOLATIONS does not hold."""
    if not isinstance(name, str) or name not in INTERPOLATIONS:
        raise InputError(unknown_name("interpolation", str(name), INTERPOLATIONS), field="interpolation")


def _shorter_side(height: int, width: int, target: int) -> tuple[int, int]:
    if height <= width:
        return target, int(target * width / height)
    return int(target * height / width), target


def _central_taps(source: int, target: int, size: int, interpolation: str) -> Taps:
    """Resizes the whole axis to `target` pixels and keeps the middle `size` of them."""
    taps = resize_taps(jnp.int32(0), jnp.int32(source), jnp.array(False), source=source, target=target,
                       interpolation=interpolation)
    begin = round((target - size) / 2)
    return Taps(*(part[begin : begin + size] for part in taps))


def each_image(view: Callable[..., Array], *batch: Array | ViewParameters) -> Array:
    """`view` of each image. A CPU takes them in turn: each stays in its cache, and operations not drawn are skipped.

    A loop cannot run over a batch that is spread over devices: each takes its own part.
    """
    def of_each(*batch):
        return lax.platform_dependent(
            *batch, cpu=lambda *batch: lax.map(lambda image: view(*image), batch), default=jax.vmap(view)
        )

    return devices.map_shards(of_each, *batch)
