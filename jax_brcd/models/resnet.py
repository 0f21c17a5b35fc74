"""ResNet (He et al., CVPR 2016) as torchvision builds it, and the small ones of its section 4.2 for images of 32 pixels."""

import functools
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models.heads import linear_head
from jax_brcd.models.layers import Backbone, BatchNorm, convolution
from jax_brcd.models.pooling import max_pool
from jax_brcd.models.variants import Preprocessing, Variant, imagenet


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, width: int, stride: int, *, dtype, rngs: nnx.Rngs):
        self.conv1 = convolution(inputs, width, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, dtype=dtype)
        self.conv2 = convolution(width, width, 3, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, dtype=dtype)
        self.downsample = shortcut(inputs, width, stride, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
    ) -> Float[Array, "batch rows columns outputs"]:
        """Activations (batch, height / stride, width / stride, width)."""
        y = nnx.relu(self.bn1(self.conv1(x), train=train, valid=valid))
        y = self.bn2(self.conv2(y), train=train, valid=valid)
        return nnx.relu(y + apply_shortcut(self.downsample, x, train, valid))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (which carries the stride), 1x1 convolutions and a shortcut."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, width: int, stride: int, *, dtype, rngs: nnx.Rngs):
        outputs = width * self.expansion
        self.conv1 = convolution(inputs, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, dtype=dtype)
        self.conv2 = convolution(width, width, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, dtype=dtype)
        self.conv3 = convolution(width, outputs, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(outputs, dtype=dtype)
        self.downsample = shortcut(inputs, outputs, stride, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
    ) -> Float[Array, "batch rows columns outputs"]:
        """Activations (batch, height / stride, width / stride, 4 width)."""
        y = nnx.relu(self.bn1(self.conv1(x), train=train, valid=valid))
        y = nnx.relu(self.bn2(self.conv2(y), train=train, valid=valid))
        y = self.bn3(self.conv3(y), train=train, valid=valid)
        return nnx.relu(y + apply_shortcut(self.downsample, x, train, valid))


def shortcut(inputs: int, outputs: int, stride: int, *, dtype, rngs: nnx.Rngs) -> Sequence[nnx.Module]:
    """The projection of a block whose output differs in shape from its input; empty where it does not."""
    if stride == 1 and inputs == outputs:
        return nnx.List([])
    return nnx.List([convolution(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs),
                     BatchNorm(outputs, dtype=dtype)])


def apply_shortcut(layers: Sequence[nnx.Module], x, train: bool | None, valid):
    """`x` through the projection, or `x` itself."""
    if not layers:
        return x
    project, normalise = layers
    return normalise(project(x), train=train, valid=valid)


class ResNet(Backbone):
    """A ResNet without its classifier; features are the global average pool.

    Args:
        block: BasicBlock or Bottleneck. depths: blocks a stage. width: channels of the first stage, doubled each stage.
        image_size: pixels it is meant for. small_stem: a 3x3 stem at stride 1 instead of 7x7 at stride 2 and a max pool.
        cut: these are the first stages of a deeper ResNet, and take what they need of its weights.
    """

    name = "ResNet"
    order: ClassVar[tuple[str, ...]] = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
    head_key: ClassVar[str] = "fc"
    head = staticmethod(linear_head)

    def __init__(
        self, block, depths, *, width=64, image_size=224, small_stem=False, cut=False, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.image_size, self.small_stem, self.n_stages, self.dtype = image_size, small_stem, len(depths), dtype
        size, stride = (3, 1) if small_stem else (7, 2)
        self.conv1 = convolution(3, width, size, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, dtype=dtype)
        channels = width
        for number, depth in enumerate(depths):
            blocks = []
            for position in range(depth):
                first_stride = 2 if position == 0 and number > 0 else 1
                blocks.append(block(channels, width * 2**number, first_stride, dtype=dtype, rngs=rngs))
                channels = width * 2**number * block.expansion
            setattr(self, f"layer{number + 1}", nnx.List(blocks))
        self.features = channels
        self.beyond = rf"layer[{self.n_stages + 1}-9]\." if cut else None

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        """Features of normalised images; nothing is dropped."""
        x = nnx.relu(self.bn1(self.conv1(images), train=train, valid=valid))
        if not self.small_stem:
            x = max_pool(x)
        for number in range(self.n_stages):
            for block in getattr(self, f"layer{number + 1}"):
                x = block(x, train=train, valid=valid)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


resnet = functools.partial(functools.partial, ResNet)

VARIANTS = {
    "resnet18": imagenet(resnet(BasicBlock, (2, 2, 2, 2)), "resnet18-f37072fd.pth"),
    "resnet34": imagenet(resnet(BasicBlock, (3, 4, 6, 3)), "resnet34-b627a593.pth"),
    "resnet50": imagenet(resnet(Bottleneck, (3, 4, 6, 3)), "resnet50-0676ba61.pth"),
    "resnet101": imagenet(resnet(Bottleneck, (3, 4, 23, 3)), "resnet101-63fe2227.pth"),
    "resnet152": imagenet(resnet(Bottleneck, (3, 8, 36, 3)), "resnet152-394f9c45.pth"),
}
# The first two of resnet18's four stages: a sixteenth of its weights, about half of its operations at 224 pixels
VARIANTS["resnet18_layer2"] = imagenet(resnet(BasicBlock, (2, 2), cut=True), "resnet18-f37072fd.pth")
# He et al. section 4.2: 6n + 2 layers; a shortcut that changes shape is a projection, which is their option B
VARIANTS |= {f"resnet{6 * n + 2}": Variant(resnet(BasicBlock, (n, n, n), width=16, image_size=32, small_stem=True),
                                           Preprocessing(32)) for n in (1, 3, 9)}
