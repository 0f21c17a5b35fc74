"""Where a step's logits come from: pixels augmented and encoded now, or what was encoded once and kept.

Every source answers `logits(model, indices, views, valid)`; view number v of image i is the same pixels whichever source
and batch it stands in.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jax_brcd.augment import ViewConfig, random_views
from jax_brcd.models import HashModel


def view_keys(
    key: Key[Array, ""], indices: Int[Array, "batch"], views: Int[Array, "batch"]
) -> Key[Array, "batch"]:
    """The key of view number `views[b]` of image `indices[b]`."""
    return jax.vmap(lambda index, view: jax.random.fold_in(jax.random.fold_in(key, view), index))(indices, views)


@runtime_checkable
class ViewSource(Protocol):
    """What a training step asks for logits."""

    def logits(
        self, model: HashModel, indices: Int[Array, "batch"], views: Int[Array, "batch"], valid: Bool[Array, "batch"]
    ) -> Float[Array, "batch bits"]:
        """Logits of the given view of each image; may move the model's batch-norm statistics."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PixelViews:
    """Views drawn from pixels and encoded by the whole model. `train` puts batch norm into training mode."""

    images: UInt8[Array, "images height width 3"]
    key: Key[Array, ""]
    config: ViewConfig = dataclasses.field(metadata={"static": True})
    train: bool = dataclasses.field(metadata={"static": True})

    def logits(self, model, indices, views, valid):
        """See ViewSource."""
        pixels = random_views(view_keys(self.key, indices, views), self.images[indices], self.config)
        return model(pixels, train=self.train, valid=valid)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptFeatures:
    """Features that a frozen backbone gave for each view; the head is applied now."""

    features: Float[Array, "views images features"]

    def logits(self, model, indices, views, valid):
        """See ViewSource."""
        return model.head(self.features[views, indices].astype(jnp.float32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptCodes:
    """Codes that a frozen model gave for each view; as logits they hash to themselves."""

    codes: Int[Array, "views images bits"]

    def logits(self, model, indices, views, valid):
        """See ViewSource."""
        return self.codes[views, indices].astype(jnp.float32)
