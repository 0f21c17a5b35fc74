"""What the backbones share: the contract of a backbone, and the layers of the convolutional ones."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models import initial
from jax_brcd.runtime.errors import InputError

layer_norm = functools.partial(nnx.LayerNorm, epsilon=1e-6, use_fast_variance=False)
gelu = functools.partial(nnx.gelu, approximate=False)  # PyTorch's default
FEW_PIXELS = 4  # of an output, up to which a convolution is a matrix product
WIDE = 128  # channels from which it is one for each of these pixels; fewer are summed as ever, for the default run's numbers
MANY_PIXELS = 256  # of an input, beyond which it is written out for the kernel's gradient
DIMENSIONS = ("NHWC", "HWIO", "NHWC")  # of images, kernels and outputs


class Backbone(nnx.Module):
    """Normalised images (batch, height, width, 3) to float32 features (batch, `features`).

    Called with (images, train=None, valid=None, key=None). `train` normalises by the statistics of the batch's `valid` rows.
    Without it each layer is in the mode that NNX's `model.train()` or `model.eval()` put it into; all begin in evaluation mode.
    `key` is the randomness of dropout and stochastic depth in training mode, where a family has them; without one both are
    off. So a frozen backbone, which batch norm may still move, drops nothing, and the same key drops the same.

    Attribute names are torchvision's but for those in `renames`, so that state_dicts convert by name. A family declares:

    Attributes:
        renames: (pattern, replacement) from a dotted attribute path to torchvision's key, applied in turn.
        order: the attributes that stand before the others, as in torchvision; `nnx.merge` forgets the order of definition.
        head: builds its hash head from (features, bits, rngs=...). head_key: where the head stands in a state_dict.
        name: what users call it. features: width of the features. image_size: pixels of the square it is meant for.
        fixed_size: whether it takes no other size. layout: of its saved weights, a name in LAYOUTS: of a family's own, or that
            which its weights came in.
        signs: further layouts that its weights may come in, each with a pattern that names in it alone have.
        beyond: of the first part of a deeper model, a pattern of the tensors of the rest, which it leaves out of that one's weights.
        patch_size: pixels of the squares that it cuts images into, of which it takes whole numbers; 1: it takes any size.
        own_size: pixels of the square that its position embedding was made for, which it takes in any case.
    """

    layout: str = "torchvision"
    signs: ClassVar[Mapping[str, str]] = {}
    beyond: str | None = None
    renames: ClassVar[tuple[tuple[str, str], ...]] = ()
    order: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[Callable[..., nnx.Module]]
    head_key: ClassVar[str]
    fixed_size: bool = False
    patch_size: int = 1
    own_size: int | None = None
    name: str
    features: int
    image_size: int

    @property
    def sizes(self) -> str:
        """In words, which sizes it takes."""
        if self.fixed_size:
            return f"{self.image_size} pixels"
        if self.patch_size == 1:
            return "any size"
        other = f" or {self.own_size}" if self.own_size and self.own_size % self.patch_size else ""
        return f"multiples of {self.patch_size} pixels{other}"

    def fits(self, size: int) -> bool:
        """Whether it takes images of `size` pixels squared."""
        if self.fixed_size:
            return size == self.image_size
        return size > 0 and (size % self.patch_size == 0 or size == self.own_size)

    def check_size(self, size: int) -> None:
        """Raises InputError, in one line, where `fits` is false."""
        if self.fits(size):
            return
        below = size // self.patch_size * self.patch_size
        others = [str(near) for near in (below, below + self.patch_size) if self.fits(near)]
        advice = "give that" if self.fixed_size else f"give {' or '.join(others) or 'another'}"
        raise InputError(f"{self.name} takes {self.sizes}; {advice}", field="size", value=size)


class Dropping:
    """For modules that drop: the mode that NNX's `train` and `eval` set, with an explicit argument before it.

    Each sets `deterministic` to True when it is made, so that modules in one mode have one structure and compile once.
    """

    deterministic: bool

    def dropping_key(self, train: bool | None, key: Key[Array, ""] | None) -> Key[Array, ""] | None:
        """`key` in training mode, else None."""
        return key if (not self.deterministic if train is None else train) else None


def split_key(key: Key[Array, ""] | None, count: int) -> Sequence[Key[Array, ""] | None]:
    """`count` keys, or as many times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: Float[Array, "batch *rest"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "batch *rest"]:
    """Zeroes each entry with probability `rate` and scales the others to keep the mean; without a key, `x` itself."""
    return _drop(x, rate, key, x.shape)


def stochastic_depth(
    x: Float[Array, "batch *rest"], rate: float, key: Key[Array, ""] | None
) -> Float[Array, "batch *rest"]:
    """Dropout of whole images: a residual branch is left out for some of them (Huang et al., ECCV 2016)."""
    return _drop(x, rate, key, (x.shape[0], *(1 for _ in x.shape[1:])))


def _drop(x, rate, key, shape):
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, jnp.float32(1 - rate), shape)  # which takes as many bits as its argument has
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation over (batch, height, width) with PyTorch's bookkeeping.

    The running variance is unbiased, the running averages move by `momentum`, and images that are not `valid` (the padding
    of a partial batch) count in neither. Statistics are float32 whatever the activations' dtype.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, momentum: float = 0.1, dtype=jnp.float32):
        self.scale = nnx.Param(initial.ones(None, (features,)))
        self.bias = nnx.Param(initial.zeros(None, (features,)))
        self.mean = nnx.BatchStat(initial.zeros(None, (features,)))
        self.var = nnx.BatchStat(initial.ones(None, (features,)))
        self.batches = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.epsilon, self.momentum, self.dtype = epsilon, momentum, dtype
        self.use_running_average = True  # what NNX's `train` and `eval` set

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Normalised activations; in training mode by the batch's statistics, which also move the running ones."""
        train = not self.use_running_average if train is None else train
        mean, var = self._batch_statistics(x, valid) if train else (self.mean[...], self.var[...])
        factor = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return (x * factor + (self.bias[...] - mean * factor)).astype(self.dtype)

    def sizes(self, terms: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """In evaluation mode: the sum of the sizes of what makes up an output, of that of what makes up its input."""
        factor = jnp.abs(self.scale[...]) * jax.lax.rsqrt(self.var[...] + self.epsilon)
        return (terms + jnp.abs(self.mean[...])) * factor + jnp.abs(self.bias[...])

    def _batch_statistics(self, x, valid):
        x = x.astype(jnp.float32)
        weight = jnp.ones(x.shape[0], jnp.float32) if valid is None else valid.astype(jnp.float32)
        count = jnp.maximum(jnp.sum(weight), 1) * x.shape[1] * x.shape[2]
        weight = weight[:, None, None, None]
        mean = jnp.sum(x * weight, axis=(0, 1, 2)) / count
        var = jnp.sum(jnp.square(x - mean) * weight, axis=(0, 1, 2)) / count
        unbiased = var * count / jnp.maximum(count - 1, 1)
        # not by `[...] =`, for which flax asks a tracer for its sharding: the error it then catches takes JAX time in
        # proportion to the program so far, 17 of the 19 seconds of tracing EfficientNet-B7
        self.mean.set_value(self.mean[...] + self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...]))
        self.var.set_value(self.var[...] + self.momentum * (jax.lax.stop_gradient(unbiased) - self.var[...]))
        self.batches.set_value(self.batches[...] + 1)
        return mean, var


def convolve(inputs: Array, kernel: Array, strides, padding, **settings) -> Array:
    """`jax.lax.conv_general_dilated`, but on a CPU by simpler means for what XLA's backend is slow at there.

    Which platform it is is known when the program is lowered and not before: a program traced here may be exported for another.

    Measured on two cores, forward: 3x3 convolutions to 2x2 outputs and smaller run at 3 GFLOP/s, as a matrix product at 80, and over
    one pixel without the eight ninths that meet padding alone a step of resnet18 at 32 pixels takes 0.78 of the time, and by a
    product for each of up to four pixels, without any padding, 0.83 of that;
    a kernel for each channel (3x3, 5x5, 7x7; 112 to 7 pixels squared; batch 32) is 4 to 20 times faster as a sum of shifted
    images and 200 times at 2 pixels, and the gradient that JAX derives of that sum 4 to 11 times. With the gradient written out a
    step of efficientnet_b0 at 224 pixels went from 6.6 to 11.5 images/s. For the gradient of a kernel XLA turns the inputs round, and
    makes them anew for that from what stands before them, each entry by itself; where they are read from memory instead, a step of
    resnet18 at 224 pixels takes 0.9 of the time.
    """
    plain = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **settings)
    size, channels, outputs = kernel.shape[0], *kernel.shape[2:]
    height, width = ((inputs.shape[axis] + sum(padding[axis - 1]) - size) // strides[0] + 1 for axis in (1, 2))
    if channels == 1 and inputs.shape[-1] == outputs:
        simpler = _sum_of_shifts
    elif channels != inputs.shape[-1]:
        return plain(inputs, kernel)
    elif height * width <= FEW_PIXELS:
        simpler = _product_of_each if channels >= WIDE else _product
    elif inputs.shape[1] * inputs.shape[2] > MANY_PIXELS:
        simpler = _dense
    else:
        return plain(inputs, kernel)
    places = tuple(strides), tuple(padding), height, width
    return jax.lax.platform_dependent(inputs, kernel, cpu=lambda *given: simpler(*given, *places), default=plain)


def _taps(inputs, size, strides, padding, height, width) -> list[Array]:
    """What each entry of the kernel is multiplied with, row by row."""
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    return [padded[:, row : row + (height - 1) * strides[0] + 1 : strides[0],
                   column : column + (width - 1) * strides[1] + 1 : strides[1]]
            for row in range(size) for column in range(size)]


def _product(inputs, kernel, strides, padding, height, width) -> Array:
    size = kernel.shape[0]
    taps = _taps(inputs, size, strides, padding, height, width)
    rows, columns = (_that_see(size, inputs.shape[1 + axis], strides[axis], padding[axis][0], count)
                     for axis, count in enumerate((height, width)))
    seen = jnp.concatenate([taps[size * row + column] for row in rows for column in columns], axis=-1)
    return seen @ kernel[rows.start : rows.stop, columns.start : columns.stop].reshape(-1, kernel.shape[-1])


def _product_of_each(inputs, kernel, strides, padding, height, width) -> Array:
    """Of each pixel of the output what it sees of the image by the part of the kernel that meets it."""
    size, batch = kernel.shape[0], inputs.shape[0]
    rows, columns = ([_that_meets(size, inputs.shape[1 + axis], place * strides[axis] - padding[axis][0]) for place in range(count)]
                     for axis, count in enumerate((height, width)))
    products = []
    for row, of_row in rows:
        for column, of_column in columns:
            part = kernel[of_row, of_column].reshape(-1, kernel.shape[-1])
            products.append(inputs[:, row, column].reshape(batch, part.shape[0]) @ part)
    return jnp.stack(products, axis=1).reshape(batch, height, width, kernel.shape[-1])


def _that_meets(size: int, length: int, first: int) -> tuple[slice, slice]:
    """What a kernel's row or column whose entries begin at pixel `first`, before the image where that is negative, has in common
    with the `length` pixels of the image: the pixels, and the entries."""
    seen = slice(max(0, first), min(length, first + size))
    return seen, slice(seen.start - first, seen.stop - first)


def _that_see(size: int, length: int, stride: int, before: int, count: int) -> range:
    """The entries of a kernel's row or column that meet the image at all, of `length` pixels behind `before` of padding, in `count`
    places; the others meet zeros alone. Of a 3x3 kernel over one pixel it is the middle one."""
    seen = [entry for entry in range(size) if any(0 <= stride * place + entry - before < length for place in range(count))]
    return range(seen[0], seen[-1] + 1)


def _weighted(taps: list[Array], kernel, dtype) -> Array:
    weights = kernel.astype(jnp.float32).reshape(len(taps), -1)  # half precision would lose more with every summand
    return sum(tap * weight for tap, weight in zip(taps, weights, strict=True)).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _sum_of_shifts(inputs, kernel, strides, padding, height, width) -> Array:
    return _weighted(_taps(inputs, kernel.shape[0], strides, padding, height, width), kernel, inputs.dtype)


def _sum_of_shifts_forward(inputs, kernel, *places):
    return _sum_of_shifts(inputs, kernel, *places), (inputs, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sum_of_shifts_backward(strides, padding, height, width, seen, gradient):
    """The gradient of the inputs is a sum of shifts of the output's, by the kernel turned round; that of the kernel is summed over one
    image after the other, whose taps stay in the cache. Else XLA would write and read each tap of the batch, as large as the batch."""
    inputs, kernel = jax.lax.optimization_barrier(seen)  # or what the sum made of them would be kept for here
    size = kernel.shape[0]

    def add(total, one):
        image, gradient_of_one = (each[None].astype(jnp.float32) for each in one)
        taps = _taps(image, size, strides, padding, height, width)
        return total + jnp.stack([jnp.sum(tap * gradient_of_one, axis=(0, 1, 2)) for tap in taps]), None

    of_kernel, _ = jax.lax.scan(add, jnp.zeros((size * size, kernel.shape[-1])), (inputs, gradient))
    margins = []
    for length, count, stride, (before, _) in zip(inputs.shape[1:3], (height, width), strides, padding, strict=True):
        first = size - 1 - before
        margins.append((first, length + size - 1 - first - ((count - 1) * stride + 1), stride - 1))
    spread = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *margins, (0, 0, 0)))
    shifted = _taps(spread, size, (1, 1), ((0, 0), (0, 0)), *inputs.shape[1:3])
    return _weighted(shifted, kernel[::-1, ::-1], inputs.dtype), of_kernel.reshape(kernel.shape).astype(kernel.dtype)


_sum_of_shifts.defvjp(_sum_of_shifts_forward, _sum_of_shifts_backward)


def _dense(inputs, kernel, strides, padding, height, width) -> Array:
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):  # the other pixels are not seen: none is dilated in the gradients
        inputs, strides = inputs[:, :: strides[0], :: strides[1]], (1, 1)
    return _convolved(inputs, kernel, strides, padding)


def _over(strides, padding) -> Callable[[Array, Array], Array]:
    return functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=DIMENSIONS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolved(inputs, kernel, strides, padding) -> Array:
    return _over(strides, padding)(inputs, kernel)


def _convolved_forward(inputs, kernel, *places):
    return _convolved(inputs, kernel, *places), (inputs, kernel)


def _convolved_backward(strides, padding, seen, gradient):
    inputs, kernel = seen
    _, of_inputs = jax.vjp(lambda inputs: _over(strides, padding)(inputs, kernel), inputs)
    _, of_kernel = jax.vjp(functools.partial(_over(strides, padding), _written_out(inputs)), kernel)
    return *of_inputs(gradient), *of_kernel(gradient)


_convolved.defvjp(_convolved_forward, _convolved_backward)


def _written_out(x: Array) -> Array:
    """The same, copied by a loop, whose operands XLA must have in memory: an optimization barrier is gone when it fuses."""
    half = -(-x.shape[1] // 2)  # of the rows: images may lie on several devices

    def copy(number, copied):
        part = jax.lax.dynamic_slice_in_dim(x, number * half, half, axis=1)  # the last begins where it fits
        return jax.lax.dynamic_update_slice_in_dim(copied, part, number * half, 1)

    return jax.lax.fori_loop(0, 2, copy, jnp.zeros_like(x))


def convolution(
    inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1, bias: bool = False, dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """A square convolution that keeps the size at stride 1, padded as PyTorch pads it."""
    margin = (size - 1) // 2
    return nnx.Conv(
        inputs, outputs, (size, size), strides=(stride, stride), padding=((margin, margin), (margin, margin)),
        feature_group_count=groups, use_bias=bias, kernel_init=initial.he_normal, bias_init=initial.zeros, dtype=dtype, rngs=rngs,
        conv_general_dilated=convolve,
    )
