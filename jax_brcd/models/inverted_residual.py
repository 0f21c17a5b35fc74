"""What MobileNets and EfficientNets are made of: convolution and batch norm in one, squeeze-and-excitation, residual blocks."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models.layers import BatchNorm, convolution, stochastic_depth

Activation = Callable[[Array], Array]


def divisible(channels: int | float) -> int:
    """The multiple of 8 nearest to a number of channels, but not less than 0.9 of it (Sandler et al., CVPR 2018)."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class ConvNormActivation(nnx.Module):
    """A convolution without bias, batch norm, and an activation where one is given."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1,
                 activation: Activation | None = None, norm=BatchNorm, dtype, rngs: nnx.Rngs):
        self.convolution = convolution(inputs, outputs, size, stride=stride, groups=groups, dtype=dtype, rngs=rngs)
        self.norm = norm(outputs, dtype=dtype)
        self.activation = activation

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
    ) -> Float[Array, "batch rows columns outputs"]:
        """Activations (batch, height / stride, width / stride, outputs)."""
        x = self.norm(self.convolution(x), train=train, valid=valid)
        return x if self.activation is None else self.activation(x)


class SqueezeExcitation(nnx.Module):
    """Scales each channel by a gate that sees the image's mean of all channels (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, squeezed: int, *, activation: Activation, gate: Activation, dtype, rngs: nnx.Rngs):
        self.fc1 = convolution(channels, squeezed, 1, bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = convolution(squeezed, channels, 1, bias=True, dtype=dtype, rngs=rngs)
        self.activation, self.gate = activation, gate

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Each image for itself, so training mode is the same."""
        mean = jnp.mean(x, axis=(1, 2), keepdims=True)
        return x * self.gate(self.fc2(self.activation(self.fc1(mean))))


class ResidualBlock(nnx.Module):
    """Layers one after the other and, where the shape allows it, a shortcut around them.

    Args:
        layers: called with (x, train=..., valid=...). shortcut: whether the input is added to their output.
        drop_rate: how often stochastic depth leaves the layers out.
    """

    def __init__(self, layers: Sequence[nnx.Module], *, shortcut: bool, drop_rate: float = 0.0):
        self.block = nnx.List(layers)
        self.shortcut, self.drop_rate = shortcut, drop_rate

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch rows columns outputs"]:
        """Activations; `key` as in Backbone."""
        y = x
        for layer in self.block:
            y = layer(y, train=train, valid=valid)
        return x + stochastic_depth(y, self.drop_rate, key) if self.shortcut else y


def inverted_residual(
    inputs: int, expanded: int, outputs: int, size: int, *, stride: int, activation: Activation, squeezed: int,
    squeeze_activation: Activation, gate: Activation, drop_rate: float = 0.0, norm=BatchNorm, dtype, rngs: nnx.Rngs,
) -> ResidualBlock:
    """A block that expands, filters each channel (with the stride), gates, and projects to few channels without activation.

    Args:
        inputs, expanded, outputs: channels. size: of the kernels. squeezed: channels in the gate; 0 for no gate.
    """
    made = {"norm": norm, "dtype": dtype, "rngs": rngs}
    layers = [ConvNormActivation(expanded, expanded, size, stride=stride, groups=expanded, activation=activation, **made)]
    if expanded != inputs:
        layers.insert(0, ConvNormActivation(inputs, expanded, 1, activation=activation, **made))
    if squeezed:
        layers.append(SqueezeExcitation(expanded, squeezed, activation=squeeze_activation, gate=gate, dtype=dtype, rngs=rngs))
    layers.append(ConvNormActivation(expanded, outputs, 1, **made))
    return ResidualBlock(layers, shortcut=stride == 1 and inputs == outputs, drop_rate=drop_rate)
