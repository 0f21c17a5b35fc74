"""Layers that the convolutional backbones share."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
torch_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


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


def convolution(
    inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1, dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """A square convolution without bias that keeps the size at stride 1, padded as PyTorch pads it."""
    return nnx.Conv(
        inputs, outputs, (size, size), strides=stride, padding=(size - 1) // 2, feature_group_count=groups,
        use_bias=False, kernel_init=he_normal, dtype=dtype, rngs=rngs,
    )
