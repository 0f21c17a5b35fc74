"""What the backbones share: the contract of a backbone, and the layers of the convolutional ones."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
FEW_PIXELS = 4
torch_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Backbone(nnx.Module):
    """Normalised images (batch, height, width, 3) to float32 features (batch, `features`).

    Attribute names are torchvision's but for those in `renames`, so that state_dicts convert by name. A family declares:

    Attributes:
        renames: (pattern, replacement) from a dotted attribute path to torchvision's key, applied in turn.
        order: the attributes that stand before the others, as in torchvision; `nnx.merge` forgets the order of definition.
        head: builds its hash head from (features, bits, rngs=...). head_key: where the head stands in a state_dict.
        name: what users call it. features: width of the features. image_size: pixels of the square it is meant for.
    """

    renames: ClassVar[tuple[tuple[str, str], ...]] = ()
    order: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[Callable[..., nnx.Module]]
    head_key: ClassVar[str]
    name: str
    features: int
    image_size: int


class BatchNorm(nnx.Module):
    """Batch normalisation over (batch, height, width) with PyTorch's bookkeeping.

    The running variance is unbiased, the running averages move by `momentum`, and images that are not `valid` (the padding
    of a partial batch) count in neither. Statistics are float32 whatever the activations' dtype.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, momentum: float = 0.1, dtype=jnp.float32):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.batches = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.epsilon, self.momentum, self.dtype = epsilon, momentum, dtype

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        valid: Bool[Array, "batch"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Normalised activations; in training mode by the batch's statistics, which also move the running ones."""
        mean, var = self._batch_statistics(x, valid) if train else (self.mean[...], self.var[...])
        factor = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return (x * factor + (self.bias[...] - mean * factor)).astype(self.dtype)

    def _batch_statistics(self, x, valid):
        x = x.astype(jnp.float32)
        weight = jnp.ones(x.shape[0]) if valid is None else valid.astype(jnp.float32)
        count = jnp.maximum(jnp.sum(weight), 1) * x.shape[1] * x.shape[2]
        weight = weight[:, None, None, None]
        mean = jnp.sum(x * weight, axis=(0, 1, 2)) / count
        var = jnp.sum(jnp.square(x - mean) * weight, axis=(0, 1, 2)) / count
        unbiased = var * count / jnp.maximum(count - 1, 1)
        self.mean[...] += self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += self.momentum * (jax.lax.stop_gradient(unbiased) - self.var[...])
        self.batches[...] += 1
        return mean, var


def convolve(inputs: Array, kernel: Array, strides, padding, **settings) -> Array:
    """`jax.lax.conv_general_dilated`, but as a matrix product where the output is a few pixels and nothing is grouped.

    XLA's CPU backend runs 3x3 convolutions to 2x2 outputs and smaller at 3 GFLOP/s, the product at 80 (two cores).
    """
    size, channels = kernel.shape[0], kernel.shape[2]
    height, width = ((inputs.shape[axis] + sum(padding[axis - 1]) - size) // strides[0] + 1 for axis in (1, 2))
    if height * width > FEW_PIXELS or channels != inputs.shape[-1] or jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, **settings)
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    taps = [padded[:, row : row + (height - 1) * strides[0] + 1 : strides[0],
                   column : column + (width - 1) * strides[1] + 1 : strides[1]]
            for row in range(size) for column in range(size)]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def convolution(
    inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1, dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """A square convolution without bias that keeps the size at stride 1, padded as PyTorch pads it."""
    margin = (size - 1) // 2
    return nnx.Conv(
        inputs, outputs, (size, size), strides=(stride, stride), padding=((margin, margin), (margin, margin)),
        feature_group_count=groups, use_bias=False, kernel_init=he_normal, dtype=dtype, rngs=rngs,
        conv_general_dilated=convolve,
    )
