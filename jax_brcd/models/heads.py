"""Hash heads: what stands between a backbone's features and the logits of its codes (docs/method.md, "Run settings").

Each backbone has a head of its own. HEADS holds others by name, which an objective may ask for.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models import initial
from jax_brcd.models.layers import Backbone, BatchNorm, gelu
from jax_brcd.runtime.registry import Registry

HashHead = Callable[..., nnx.Module]  # called with (features, bits, rngs=...)
HEADS: Registry[HashHead] = Registry("hash head")
# Of PyTorch's trunc_normal_ with a standard deviation of 0.02, which cuts at 100 deviations: there is next to nothing beyond 5,
# and a float32 uniform number that is exactly 0 stays small.
crovca_normal = initial.truncated_normal(0.02, lower=-5.0, upper=5.0)
WIDEST = 2048  # hidden units of the large HashCoder at least


def linear_head(features: int, bits: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """One linear layer, initialised as PyTorch's."""
    return nnx.Linear(features, bits, kernel_init=initial.torch_uniform,
                      bias_init=functools.partial(_evenly_within, features**-0.5), rngs=rngs)


def _evenly_within(bound: float, key, shape, dtype=jnp.float32):
    return initial.uniform(2 * bound)(key, shape, dtype) - bound


def two_layer_head(features: int, bits: int, *, rngs: nnx.Rngs) -> nnx.Sequential:
    """Two linear layers and a ReLU between them: the published head over the 1000 logits of a whole classifier."""
    return nnx.Sequential(linear_head(features, features, rngs=rngs), nnx.relu, linear_head(features, bits, rngs=rngs))


class HashCoder(nnx.Sequential):
    """CroVCA's head (Moummad et al., arXiv 2510.27584): linear layers, an activation between them, and batch norm of the logits.

    Its layers are numbered as those of PyTorch's Sequential, activations included, so a state_dict names them as that does:
    the small one's 0, 2 (linear) and 3 (batch norm), the large one's 0, 2, 4 and 5.

    Args:
        widths: of features, hidden layers and logits. activation: between the linear layers.
    """

    def __init__(self, widths: Sequence[int], activation: Callable[[Array], Array], *, rngs: nnx.Rngs):
        layers: list[Callable] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nnx.Linear(inputs, outputs, kernel_init=crovca_normal, rngs=rngs), activation]
        super().__init__(*layers[:-1], BatchNorm(widths[-1]))

    def __call__(
        self, features: Float[Array, "batch features"], *, train: bool | None = None, valid: Bool[Array, "batch"] | None = None
    ) -> Float[Array, "batch bits"]:
        """Logits; `train` and `valid` are BatchNorm's. Without `train` it is in the mode that NNX's `train` and `eval` set."""
        *before, norm = self.layers
        for layer in before:
            features = layer(features)
        return norm(features[:, None, None, :], train=train, valid=valid)[:, 0, 0, :]


@HEADS.register("hashcoder_small")
def small_hashcoder(features: int, bits: int, *, rngs: nnx.Rngs) -> HashCoder:
    """Two linear layers, the first as wide as the features, and a ReLU."""
    return HashCoder((features, features, bits), nnx.relu, rngs=rngs)


@HEADS.register("hashcoder_large")
def large_hashcoder(features: int, bits: int, *, rngs: nnx.Rngs) -> HashCoder:
    """Three linear layers, the first two twice as wide as the features or more, and GELUs."""
    hidden = max(2 * features, WIDEST)
    return HashCoder((features, hidden, hidden, bits), gelu, rngs=rngs)


class HashModel(nnx.Module):
    """A backbone and a hash head.

    Args:
        backbone: any backbone. bits: length of the codes. rngs: for the head's initial weights.
        form: of the head, a name in HEADS; None for the backbone's own.

    Raises:
        InputError: for an unknown form.
    """

    def __init__(self, backbone: Backbone, bits: int, *, rngs: nnx.Rngs, form: str | None = None):
        self.backbone, self.form = backbone, form
        build = backbone.head if form is None else HEADS[form]
        self.head = build(backbone.features, bits, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"] | Float[Array, "batch features"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch bits"]:
        """Logits of normalised images, or of the rows that a backbone takes in their place; the arguments are the backbone's. The
        head is in evaluation mode."""
        return self.head(self.backbone(images, train=train, valid=valid, key=key))


class WithFeatures(nnx.Module):
    """A hash model that gives its backbone's features with the logits behind them, in evaluation mode."""

    def __init__(self, model: HashModel):
        self.model = model

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Features and logits of normalised images, one behind the other."""
        features = self.model.backbone(images, train=train)
        return jnp.concatenate([features, self.model.head(features)], axis=1)
