"""MobileNetV2 (Sandler et al., CVPR 2018) and MobileNetV3 (Howard et al., ICCV 2019) as torchvision builds them."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models import initial
from jax_brcd.models.heads import linear_head, two_layer_head
from jax_brcd.models.inverted_residual import ConvNormActivation, divisible, inverted_residual
from jax_brcd.models.layers import Backbone, BatchNorm, Dropping, convolution, dropout
from jax_brcd.models.variants import imagenet

CLASSES = 1000  # of ImageNet
DROPOUT = 0.2
linear = functools.partial(nnx.Linear, kernel_init=initial.normal(0.01))


class InvertedResidual(nnx.Module):
    """MobileNetV2's block: expand, filter each channel, project, all under batch norm; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, *, dtype, rngs: nnx.Rngs):
        made = {"activation": jax.nn.relu6, "dtype": dtype, "rngs": rngs}
        expanded = inputs * expansion
        expand = [] if expansion == 1 else [ConvNormActivation(inputs, expanded, 1, **made)]
        self.conv = nnx.List([
            *expand,
            ConvNormActivation(expanded, expanded, 3, stride=stride, groups=expanded, **made),
            convolution(expanded, outputs, 1, dtype=dtype, rngs=rngs),
            BatchNorm(outputs, dtype=dtype),
        ])
        self.shortcut = stride == 1 and inputs == outputs

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
    ) -> Float[Array, "batch rows columns outputs"]:
        """Activations (batch, height / stride, width / stride, outputs)."""
        *layers, project, normalise = self.conv
        y = x
        for layer in layers:
            y = layer(y, train=train, valid=valid)
        y = normalise(project(y), train=train, valid=valid)
        return x + y if self.shortcut else y


class MobileNetV2(Dropping, Backbone):
    """MobileNetV2 with its classifier: features are the 1000 ImageNet logits, as the published students' hash head has them
    (docs/method.md, "Run settings")."""

    name = "MobileNetV2"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^stages\b", "features"), (r"\.convolution\b", ".0"), (r"\.norm\b", ".1"), (r"^classifier\b", "classifier.1"))
    order: ClassVar[tuple[str, ...]] = ("stages", "convolution", "norm")
    head_key: ClassVar[str] = "classifier.2"
    head = staticmethod(two_layer_head)
    # expansion, output channels, blocks, stride of the first
    stage_table: ClassVar[tuple[tuple[int, int, int, int], ...]] = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.image_size, self.features, self.dropout, self.dtype = 224, CLASSES, DROPOUT, dtype
        self.deterministic = True
        made = {"dtype": dtype, "rngs": rngs}
        layers = [ConvNormActivation(3, 32, 3, stride=2, activation=jax.nn.relu6, **made)]
        channels = 32
        for expansion, width, depth, stride in self.stage_table:
            for number in range(depth):
                layers.append(InvertedResidual(channels, width, expansion, stride if number == 0 else 1, **made))
                channels = width
        layers.append(ConvNormActivation(channels, 1280, 1, activation=jax.nn.relu6, **made))
        self.stages = nnx.List(layers)
        self.classifier = linear(1280, CLASSES, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        """Logits of normalised images; the arguments are as in Backbone."""
        x = images
        for stage in self.stages:
            x = stage(x, train=train, valid=valid)
        pooled = dropout(jnp.mean(x.astype(jnp.float32), axis=(1, 2)), self.dropout, self.dropping_key(train, key))
        return self.classifier(pooled).astype(jnp.float32)


class MobileNetV3(Dropping, Backbone):
    """MobileNetV3-Large without its classifier's last layer: features are the 1280 activations before it, after dropout.

    It is not among the published students; its hash head stands in place of the classifier's last linear layer.
    """

    name = "MobileNetV3"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^stages\b", "features"), (r"\.convolution\b", ".0"), (r"\.norm\b", ".1"), (r"^classifier\b", "classifier.0"))
    order: ClassVar[tuple[str, ...]] = ("stages", "convolution", "norm")
    head_key: ClassVar[str] = "classifier.3"
    head = staticmethod(linear_head)
    # kernel size, expanded and output channels, with a gate, activation, stride
    block_table: ClassVar[tuple[tuple, ...]] = (
        (3, 16, 16, False, nnx.relu, 1),
        (3, 64, 24, False, nnx.relu, 2),
        (3, 72, 24, False, nnx.relu, 1),
        (5, 72, 40, True, nnx.relu, 2),
        (5, 120, 40, True, nnx.relu, 1),
        (5, 120, 40, True, nnx.relu, 1),
        (3, 240, 80, False, nnx.hard_swish, 2),
        (3, 200, 80, False, nnx.hard_swish, 1),
        (3, 184, 80, False, nnx.hard_swish, 1),
        (3, 184, 80, False, nnx.hard_swish, 1),
        (3, 480, 112, True, nnx.hard_swish, 1),
        (3, 672, 112, True, nnx.hard_swish, 1),
        (5, 672, 160, True, nnx.hard_swish, 2),
        (5, 960, 160, True, nnx.hard_swish, 1),
        (5, 960, 160, True, nnx.hard_swish, 1),
    )

    def __init__(self, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.image_size, self.features, self.dropout, self.dtype = 224, 1280, DROPOUT, dtype
        self.deterministic = True
        made = {"norm": functools.partial(BatchNorm, epsilon=1e-3, momentum=0.01), "dtype": dtype, "rngs": rngs}
        layers = [ConvNormActivation(3, 16, 3, stride=2, activation=nnx.hard_swish, **made)]
        channels = 16
        for size, expanded, width, gated, activation, stride in self.block_table:
            layers.append(inverted_residual(
                channels, expanded, width, size, stride=stride, activation=activation,
                squeezed=divisible(expanded // 4) if gated else 0, squeeze_activation=nnx.relu, gate=nnx.hard_sigmoid, **made))
            channels = width
        layers.append(ConvNormActivation(channels, 6 * channels, 1, activation=nnx.hard_swish, **made))
        self.stages = nnx.List(layers)
        self.classifier = linear(6 * channels, self.features, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        """Features of normalised images; the arguments are as in Backbone."""
        x = images
        for stage in self.stages:
            x = stage(x, train=train, valid=valid)
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        hidden = nnx.hard_swish(self.classifier(pooled).astype(jnp.float32))
        return dropout(hidden, self.dropout, self.dropping_key(train, key))


VARIANTS = {
    "mobilenet_v2": imagenet(MobileNetV2, "mobilenet_v2-b0353104.pth"),
    "mobilenet_v3_large": imagenet(MobileNetV3, "mobilenet_v3_large-8738ca79.pth"),
}
