"""Hash heads: what stands between a backbone's features and the logits of its codes (docs/method.md, "Run settings")."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models.layers import Backbone, torch_uniform


def linear_head(features: int, bits: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """One linear layer, initialised as PyTorch's."""
    bound = features**-0.5

    def bias_init(key, shape, dtype=jnp.float32):
        return nnx.initializers.uniform(2 * bound)(key, shape, dtype) - bound

    return nnx.Linear(features, bits, kernel_init=torch_uniform, bias_init=bias_init, rngs=rngs)


def two_layer_head(features: int, bits: int, *, rngs: nnx.Rngs) -> nnx.Sequential:
    """Two linear layers and a ReLU between them: the published head over the 1000 logits of a whole classifier."""
    return nnx.Sequential(linear_head(features, features, rngs=rngs), nnx.relu, linear_head(features, bits, rngs=rngs))


class HashModel(nnx.Module):
    """A backbone and a hash head.

    Args:
        backbone: any backbone. bits: length of the codes. rngs: for the head's initial weights.
    """

    def __init__(self, backbone: Backbone, bits: int, *, rngs: nnx.Rngs):
        self.backbone = backbone
        self.head = backbone.head(backbone.features, bits, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"] | Float[Array, "batch features"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch bits"]:
        """Logits of normalised images, or of the rows that a backbone takes in their place; the arguments are the backbone's."""
        return self.head(self.backbone(images, train=train, valid=valid, key=key))
