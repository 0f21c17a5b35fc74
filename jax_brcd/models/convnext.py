"""ConvNeXt (Liu et al., CVPR 2022) as torchvision builds it."""

import functools
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models import initial
from jax_brcd.models.heads import linear_head
from jax_brcd.models.layers import Backbone, Dropping, convolution, gelu, layer_norm, split_key, stochastic_depth
from jax_brcd.models.variants import imagenet

LAYER_SCALE = 1e-6
normal = initial.normal(0.02)


def patches(inputs: int, outputs: int, size: int, *, dtype, rngs: nnx.Rngs) -> nnx.Conv:
    """A linear map of patches of `size` pixels squared that do not overlap."""
    return nnx.Conv(inputs, outputs, (size, size), strides=size, padding="VALID", kernel_init=normal, dtype=dtype, rngs=rngs)


class Stem(nnx.Module):
    """Patches of 4 pixels squared, then a norm over channels."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        self.patches = patches(3, width, 4, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows columns outputs"]:
        """Activations of a quarter of the size."""
        return self.norm(self.patches(x))


class Downsample(nnx.Module):
    """A norm over channels, then patches of 2 pixels squared."""

    def __init__(self, inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs):
        self.before = layer_norm(inputs, dtype=dtype, rngs=rngs)
        self.halve = patches(inputs, outputs, 2, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch rows columns outputs"]:
        """Activations of half the size."""
        return self.halve(self.before(x))


class Block(nnx.Module):
    """A 7x7 filter of each channel, a norm and an MLP over channels, scaled, on a residual path."""

    def __init__(self, width: int, drop_rate: float, *, dtype, rngs: nnx.Rngs):
        self.layer_scale = nnx.Param(jnp.full((width, 1, 1), LAYER_SCALE, jnp.float32))
        self.filter = convolution(width, width, 7, groups=width, bias=True, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.linear_1 = nnx.Linear(width, 4 * width, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.linear_2 = nnx.Linear(4 * width, width, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.drop_rate = drop_rate

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch height width channels"]:
        """One block; `key` as in Backbone."""
        y = self.linear_2(gelu(self.linear_1(self.norm(self.filter(x)))))
        y = y * self.layer_scale[...].reshape(-1).astype(y.dtype)
        return x + stochastic_depth(y, self.drop_rate, key)


class ConvNeXt(Dropping, Backbone):
    """A ConvNeXt without its classifier's linear layer: features are the global average pool after the classifier's norm.

    It is not among the published students; its hash head stands in place of the linear layer.

    Args:
        widths, depths: channels and blocks of each stage. drop_rate: of the last block; those before it have less, in
            proportion to their depth, down to 0 for the first.
    """

    name = "ConvNeXt"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^stages\.(\d+)\.(patches|before)\b", r"stages.\1.0"),
        (r"^stages\.0\.norm\b", "stages.0.1"),
        (r"\.halve\b", ".1"),
        (r"\.filter\b", ".block.0"),
        (r"\.norm\b", ".block.2"),
        (r"\.linear_1\b", ".block.3"),
        (r"\.linear_2\b", ".block.5"),
        (r"^stages\b", "features"),
        (r"^norm\b", "classifier.0"),
    )
    order: ClassVar[tuple[str, ...]] = ("stages", "layer_scale", "patches", "before", "filter", "norm")
    head_key: ClassVar[str] = "classifier.2"
    head = staticmethod(linear_head)

    def __init__(self, widths: Sequence[int], depths: Sequence[int], drop_rate: float, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.image_size, self.features, self.dtype, self.deterministic = 224, widths[-1], dtype, True
        made = {"dtype": dtype, "rngs": rngs}
        layers, position, self.n_blocks = [], 0, sum(depths)
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            layers.append(Downsample(widths[number - 1], width, **made) if number else Stem(width, **made))
            rates = [drop_rate * (position + block) / (self.n_blocks - 1) for block in range(depth)]
            layers.append(nnx.List([Block(width, rate, **made) for rate in rates]))
            position += depth
        self.stages = nnx.List(layers)
        self.norm = layer_norm(self.features, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        """Features of normalised images; `key` as in Backbone. Nothing here looks across a batch."""
        keys = iter(split_key(self.dropping_key(train, key), self.n_blocks))
        x = images
        for resize, blocks in zip(self.stages[::2], self.stages[1::2], strict=True):
            x = resize(x)
            for block in blocks:
                x = block(x, key=next(keys))
        return self.norm(jnp.mean(x.astype(jnp.float32), axis=(1, 2))).astype(jnp.float32)


VARIANTS = {
    "convnext_tiny": imagenet(functools.partial(ConvNeXt, (96, 192, 384, 768), (3, 3, 9, 3), 0.1), "convnext_tiny-983f1562.pth",
                              resize=236),
}
