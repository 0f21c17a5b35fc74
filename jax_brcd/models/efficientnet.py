"""EfficientNet (Tan and Le, ICML 2019) and EfficientNetV2-S (Tan and Le, ICML 2021) as torchvision builds them."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models import initial
from jax_brcd.models.heads import linear_head, two_layer_head
from jax_brcd.models.inverted_residual import ConvNormActivation, ResidualBlock, divisible, inverted_residual
from jax_brcd.models.layers import Backbone, BatchNorm, Dropping, dropout, split_key
from jax_brcd.models.variants import Variant, imagenet

CLASSES = 1000  # of ImageNet
DROP_RATE = 0.2  # of the last block; those before it have less, in proportion to their depth


def mbconv(inputs: int, outputs: int, expansion: int, size: int, **settings) -> ResidualBlock:
    """EfficientNet's block: an inverted residual with a gate of a quarter of its input channels."""
    return inverted_residual(inputs, divisible(inputs * expansion), outputs, size, activation=nnx.silu,
                             squeezed=inputs // 4, squeeze_activation=nnx.silu, gate=nnx.sigmoid, **settings)


def fused_mbconv(
    inputs: int, outputs: int, expansion: int, size: int, *, stride: int, drop_rate: float, **made
) -> ResidualBlock:
    """EfficientNetV2's early block: expansion and filter are one dense convolution, and nothing is gated."""
    if expansion == 1:
        layers = [ConvNormActivation(inputs, outputs, size, stride=stride, activation=nnx.silu, **made)]
    else:
        expanded = divisible(inputs * expansion)
        layers = [ConvNormActivation(inputs, expanded, size, stride=stride, activation=nnx.silu, **made),
                  ConvNormActivation(expanded, outputs, 1, **made)]
    return ResidualBlock(layers, shortcut=stride == 1 and inputs == outputs, drop_rate=drop_rate)


class Stage(NamedTuple):
    """Blocks of one width; the first carries the stride."""

    block: Callable[..., ResidualBlock]
    expansion: int
    size: int  # of the kernels
    stride: int
    width: int  # output channels
    depth: int  # blocks


class EfficientNet(Dropping, Backbone):
    """An EfficientNet without its classifier: features are the global average pool, after the classifier's dropout.

    EfficientNetV2 is not among the published students; its hash head stands in place of the classifier's linear layer.

    Args:
        stages: what follows the stem. stem, last: channels before and after them. image_size: pixels it is meant for.
        dropout: rate of the classifier's. norm: makes a batch norm.
    """

    name = "EfficientNet"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^stages\b", "features"), (r"\.convolution\b", ".0"), (r"\.norm\b", ".1"))
    order: ClassVar[tuple[str, ...]] = ("stages", "convolution", "norm")
    head_key: ClassVar[str] = "classifier.1"
    head = staticmethod(linear_head)

    def __init__(self, stages: Sequence[Stage], *, stem: int, last: int, image_size: int, dropout: float, norm=BatchNorm,
                 dtype=jnp.float32, rngs: nnx.Rngs):
        self.image_size, self.features, self.dropout, self.dtype = image_size, last, dropout, dtype
        self.deterministic = True
        made = {"norm": norm, "dtype": dtype, "rngs": rngs}
        layers = [ConvNormActivation(3, stem, 3, stride=2, activation=nnx.silu, **made)]
        channels, position, self.n_blocks = stem, 0, sum(stage.depth for stage in stages)
        for stage in stages:
            blocks = []
            for number in range(stage.depth):
                blocks.append(stage.block(channels, stage.width, stage.expansion, stage.size,
                                          stride=stage.stride if number == 0 else 1,
                                          drop_rate=DROP_RATE * position / self.n_blocks, **made))
                channels, position = stage.width, position + 1
            layers.append(nnx.List(blocks))
        layers.append(ConvNormActivation(channels, last, 1, activation=nnx.silu, **made))
        self.stages = nnx.List(layers)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        """Features of normalised images; the arguments are as in Backbone."""
        stem, *stages, last = self.stages
        *keys, dropout_key = split_key(self.dropping_key(train, key), self.n_blocks + 1)
        x = stem(images, train=train, valid=valid)
        for block, block_key in zip((block for stage in stages for block in stage), keys):
            x = block(x, train=train, valid=valid, key=block_key)
        x = last(x, train=train, valid=valid)
        return dropout(jnp.mean(x.astype(jnp.float32), axis=(1, 2)), self.dropout, dropout_key)


class EfficientNetClassifier(EfficientNet):
    """An EfficientNet with its classifier: features are the 1000 ImageNet logits, as the published students' hash head has
    them (docs/method.md, "Run settings")."""

    renames: ClassVar[tuple[tuple[str, str], ...]] = (*EfficientNet.renames, (r"^classifier\b", "classifier.1"))
    head_key: ClassVar[str] = "classifier.2"
    head = staticmethod(two_layer_head)

    def __init__(self, *args, dtype=jnp.float32, rngs: nnx.Rngs, **settings):
        super().__init__(*args, dtype=dtype, rngs=rngs, **settings)
        self.classifier = nnx.Linear(self.features, CLASSES, kernel_init=initial.classifier_uniform, dtype=dtype, rngs=rngs)
        self.features = CLASSES

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        """Logits of normalised images; the arguments are as in Backbone."""
        pooled = super().__call__(images, train=train, valid=valid, key=key)
        return self.classifier(pooled).astype(jnp.float32)


B0_STAGES = (
    Stage(mbconv, 1, 3, 1, 16, 1),
    Stage(mbconv, 6, 3, 2, 24, 2),
    Stage(mbconv, 6, 5, 2, 40, 2),
    Stage(mbconv, 6, 3, 2, 80, 3),
    Stage(mbconv, 6, 5, 1, 112, 3),
    Stage(mbconv, 6, 5, 2, 192, 4),
    Stage(mbconv, 6, 3, 1, 320, 1),
)
V2_S_STAGES = (
    Stage(fused_mbconv, 1, 3, 1, 24, 2),
    Stage(fused_mbconv, 4, 3, 2, 48, 4),
    Stage(fused_mbconv, 4, 3, 2, 64, 4),
    Stage(mbconv, 4, 3, 2, 128, 6),
    Stage(mbconv, 6, 3, 1, 160, 9),
    Stage(mbconv, 6, 3, 2, 256, 15),
)


def scaled(width: float, depth: float, file: str, size: int, resize: int, *, dropout: float, norm=BatchNorm) -> Variant:
    """B0 with `width` times the channels and `depth` times the blocks; see EfficientNet and `imagenet` for the rest."""
    stages = [stage._replace(width=divisible(stage.width * width), depth=math.ceil(stage.depth * depth))
              for stage in B0_STAGES]
    build = functools.partial(EfficientNetClassifier, stages, stem=divisible(32 * width), last=4 * stages[-1].width,
                              image_size=size, dropout=dropout, norm=norm)
    return imagenet(build, file, size, resize)


slow_norm = functools.partial(BatchNorm, epsilon=1e-3, momentum=0.01)
v2_s = functools.partial(EfficientNet, V2_S_STAGES, stem=24, last=1280, image_size=384, dropout=0.2,
                         norm=functools.partial(BatchNorm, epsilon=1e-3))

# Image sizes are the paper's; torchvision evaluates B2 at 288 instead of 260. Resizes are torchvision's, here bilinear: for all
# but V2-S torchvision's are bicubic.
VARIANTS = {
    "efficientnet_b0": scaled(1.0, 1.0, "efficientnet_b0_rwightman-7f5810bc.pth", 224, 256, dropout=0.2),
    "efficientnet_b1": scaled(1.0, 1.1, "efficientnet_b1_rwightman-bac287d4.pth", 240, 256, dropout=0.2),
    "efficientnet_b2": scaled(1.1, 1.2, "efficientnet_b2_rwightman-c35c1473.pth", 260, 288, dropout=0.3),
    "efficientnet_b3": scaled(1.2, 1.4, "efficientnet_b3_rwightman-b3899882.pth", 300, 320, dropout=0.3),
    "efficientnet_b4": scaled(1.4, 1.8, "efficientnet_b4_rwightman-23ab8bcd.pth", 380, 384, dropout=0.4),
    "efficientnet_b5": scaled(1.6, 2.2, "efficientnet_b5_lukemelas-1a07897c.pth", 456, 456, dropout=0.4, norm=slow_norm),
    "efficientnet_b6": scaled(1.8, 2.6, "efficientnet_b6_lukemelas-24a108a5.pth", 528, 528, dropout=0.5, norm=slow_norm),
    "efficientnet_b7": scaled(2.0, 3.1, "efficientnet_b7_lukemelas-c5b4e57e.pth", 600, 600, dropout=0.5, norm=slow_norm),
    "efficientnet_v2_s": imagenet(v2_s, "efficientnet_v2_s-dd5fe13b.pth", 384, 384),
}
