"""Where a step's outputs come from: pixels augmented and encoded now, or what was encoded once and kept.

A `ViewSource` is asked for the outputs of a model that learns, a `TeacherSource` for those of one that does not and that it
holds itself. View number v of image i is the same pixels whichever source and batch it stands in.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jax_brcd.losses.codes import hash_codes
from jax_brcd.views.augmentation import ViewConfig, random_views
from jax_brcd.views.derivations import ITSELF, Derivation, view_keys
from jax_brcd.views.mixing import Mix
from jax_brcd.views.outputs import Outputs, outputs_of
from jax_brcd.views.streaming import StepImages


@runtime_checkable
class ViewSource(Protocol):
    """What a training step asks for the outputs of its model, anything with a `backbone` and a `head`."""

    def outputs(
        self, model: Any, indices: Int[Array, "batch"], views: Int[Array, "batch"], valid: Bool[Array, "batch"],
        derivation: Derivation = ITSELF, key: Key[Array, ""] | None = None, mix: Mix | None = None,
    ) -> Outputs:
        """All outputs of the given view of each image, or of what is derived of it; may move batch-norm statistics.

        `key` is the randomness of the backbone's dropout; without one it is off. `mix` is how the views are mixed with each
        other, for sources that have their pixels.
        """


@runtime_checkable
class TeacherSource(Protocol):
    """What a student's step asks for the outputs of the teacher; a pytree, so that its arrays stay out of the program."""

    @property
    def width(self) -> int | None:
        """Features of an image; None where the source gives none."""

    def outputs(
        self, indices: Int[Array, "batch"], views: Int[Array, "batch"], valid: Bool[Array, "batch"],
        derivation: Derivation = ITSELF,
    ) -> Outputs:
        """The outputs of the given view of each image, or of what is derived of it, as far as the source has them."""


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

    def outputs(self, model, indices, views, valid, derivation=ITSELF, key=None, mix=None):
        """See ViewSource."""
        sources = derivation.sources(self.key, indices, views, self.partners)
        drawn = tuple(random_views(view_keys(self.key, source, views), self.images[source], self.config)
                      for source in sources)
        pixels = derivation.combine(drawn, self.key, indices, views)
        if mix is not None:
            pixels = mix.rows(pixels)
        return outputs_of(model.head, model.backbone(pixels, train=self.train, valid=valid, key=key))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptFeatures:
    """Features that a frozen backbone gave for each view, and by name for what is derived of it; the head is applied now."""

    features: Float[Array, "views images features"]
    derived: Mapping[str, Float[Array, "views images features"]] = dataclasses.field(default_factory=dict)

    def of(self, indices, views, derivation=ITSELF) -> Float[Array, "batch features"]:
        """The features of the given view of each image, or of what is derived of it."""
        features = self.features if derivation == ITSELF else self.derived[derivation.name]
        return features[views, indices].astype(jnp.float32)

    def outputs(self, model, indices, views, valid, derivation=ITSELF, key=None):
        """See ViewSource."""
        return outputs_of(model.head, self.of(indices, views, derivation))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LiveTeacher:
    """A teacher that encodes each view as it comes, its weights frozen. `LiveTeacher.of` takes it apart."""

    state: Any  # an nnx.State
    views: ViewSource
    graph: nnx.GraphDef = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, model: nnx.Module, views: ViewSource) -> "LiveTeacher":
        """The teacher `model`, a `backbone` and a `head`, over the pixels or features of `views`."""
        graph, state = nnx.split(model)
        return cls(state, views, graph)

    @property
    def width(self) -> int:
        """See TeacherSource."""
        return nnx.merge(self.graph, self.state).backbone.features

    def outputs(self, indices, views, valid, derivation=ITSELF):
        """See TeacherSource."""
        return self.views.outputs(nnx.merge(self.graph, self.state), indices, views, valid, derivation)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptTeacher:
    """What a frozen teacher gave for each view, and by name for what is derived of it.

    Codes, and where features and logits are asked for too, the features with the head (graph and state, as nnx.split gives
    them) that is applied to them now.
    """

    codes: Int[Array, "views images bits"]
    derived: Mapping[str, Int[Array, "views images bits"]] = dataclasses.field(default_factory=dict)
    features: KeptFeatures | None = None
    head_state: Any = None  # an nnx.State
    head_graph: nnx.GraphDef | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def width(self) -> int | None:
        """See TeacherSource."""
        return None if self.features is None else self.features.features.shape[-1]

    def with_features(self, features: KeptFeatures, head: nnx.Module) -> "KeptTeacher":
        """The same codes with the features that they were made of and the head that made them."""
        graph, state = nnx.split(head)
        return dataclasses.replace(self, features=features, head_state=state, head_graph=graph)

    def outputs(self, indices, views, valid, derivation=ITSELF):
        """See TeacherSource. The codes are the kept ones, which hash to themselves."""
        kept = self.codes if derivation == ITSELF else self.derived[derivation.name]
        codes = hash_codes(kept[views, indices].astype(jnp.float32))
        if self.features is None:
            return Outputs(codes=codes)
        features = self.features.of(indices, views, derivation)
        return Outputs(features, nnx.merge(self.head_graph, self.head_state)(features), codes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StillTeacher:
    """What a frozen teacher gave for the un-augmented training images, the same for every view of each."""

    codes: Int[Array, "images bits"]
    logits: Float[Array, "images bits"] | None = None
    features: Float[Array, "images features"] | None = None

    @property
    def width(self) -> int | None:
        """See TeacherSource."""
        return None if self.features is None else self.features.shape[1]

    def outputs(self, indices, views, valid, derivation=ITSELF):
        """See TeacherSource. There is nothing that could be derived of an output."""
        assert derivation == ITSELF
        features, logits = (None if part is None else part[indices] for part in (self.features, self.logits))
        return Outputs(features, logits, hash_codes(self.codes[indices].astype(jnp.float32)))
