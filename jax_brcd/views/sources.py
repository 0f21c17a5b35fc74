"""Where a step's logits come from: pixels augmented and encoded now, or what was encoded once and kept.

Every source answers `logits(model, indices, views, valid)`, of the views themselves or of what is derived of them; those that a
teacher learns from answer `features_of` too. View number v of image i is the same pixels whichever source and batch it stands in.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jax_brcd.models import HashModel
from jax_brcd.views.augmentation import ViewConfig, random_views
from jax_brcd.views.derivations import ITSELF, Derivation, view_keys
from jax_brcd.views.streaming import StepImages


@runtime_checkable
class ViewSource(Protocol):
    """What a training step asks for logits."""

    def logits(
        self, model: HashModel, indices: Int[Array, "batch"], views: Int[Array, "batch"], valid: Bool[Array, "batch"],
        derivation: Derivation = ITSELF, key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch bits"]:
        """Logits of the given view of each image, or of what is derived of it; may move the model's batch-norm statistics.

        `key` is the randomness of the backbone's dropout; without one it is off.
        """


@runtime_checkable
class FeatureSource(ViewSource, Protocol):
    """A source that also gives what the head is applied to."""

    def features_of(
        self, model: HashModel, indices: Int[Array, "batch"], views: Int[Array, "batch"], valid: Bool[Array, "batch"],
        derivation: Derivation = ITSELF, key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        """The backbone's features of what `logits` is asked for; `model.head` of them are its logits."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PixelViews:
    """Views drawn from pixels and encoded by the whole model.

    `train` puts batch norm into training mode. `partners` are the images that each may be mixed with.
    """

    images: UInt8[Array, "images height width 3"] | StepImages  # all of them, or those that travel with a step
    key: Key[Array, ""]
    config: ViewConfig = dataclasses.field(metadata={"static": True})
    train: bool = dataclasses.field(metadata={"static": True})
    partners: Int[Array, "images neighbours"] | None = None

    def logits(self, model, indices, views, valid, derivation=ITSELF, key=None):
        """See ViewSource."""
        return model.head(self.features_of(model, indices, views, valid, derivation, key))

    def features_of(self, model, indices, views, valid, derivation=ITSELF, key=None):
        """See FeatureSource."""
        sources = derivation.sources(self.key, indices, views, self.partners)
        drawn = tuple(random_views(view_keys(self.key, source, views), self.images[source], self.config)
                      for source in sources)
        pixels = derivation.combine(drawn, self.key, indices, views)
        return model.backbone(pixels, train=self.train, valid=valid, key=key)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptFeatures:
    """Features that a frozen backbone gave for each view, and by name for what is derived of it; the head is applied now."""

    features: Float[Array, "views images features"]
    derived: Mapping[str, Float[Array, "views images features"]] = dataclasses.field(default_factory=dict)

    def logits(self, model, indices, views, valid, derivation=ITSELF, key=None):
        """See ViewSource."""
        return model.head(self.features_of(model, indices, views, valid, derivation, key))

    def features_of(self, model, indices, views, valid, derivation=ITSELF, key=None):
        """See FeatureSource."""
        features = self.features if derivation == ITSELF else self.derived[derivation.name]
        return features[views, indices].astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptCodes:
    """Codes that a frozen model gave for each view, and by name for what is derived of it.

    As logits they hash to themselves.
    """

    codes: Int[Array, "views images bits"]
    derived: Mapping[str, Int[Array, "views images bits"]] = dataclasses.field(default_factory=dict)

    def logits(self, model, indices, views, valid, derivation=ITSELF, key=None):
        """See ViewSource."""
        codes = self.codes if derivation == ITSELF else self.derived[derivation.name]
        return codes[views, indices].astype(jnp.float32)
