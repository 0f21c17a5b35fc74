"""The training views of a run: of which images, how drawn, how many are kept, and whether their pixels travel with a step."""

import dataclasses
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from jax_brcd.runtime.digests import beyond_defaults
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.derivations import Derivation
from jax_brcd.views.encoding import Colour
from jax_brcd.views.features import FeatureCache
from jax_brcd.views.source import Source
from jax_brcd.views.sources import KeptFeatures, PixelViews
from jax_brcd.views.streaming import StepImages, Stream


class Placed:
    """Images on the device: once, however many sources draw from them, and for as long as one does. Several devices
    hold a copy for each source of a stage, as `devices.replicate` places every leaf by itself."""

    def __init__(self):
        self._images: np.ndarray | None = None
        self._held: Callable[[], jax.Array | None] = lambda: None

    def of(self, images: UInt8[np.ndarray, "images height width 3"]) -> UInt8[jax.Array, "images height width 3"]:
        """These images there."""
        held = self._held() if images is self._images else None
        if held is None:
            held = jnp.asarray(images)
            self._images, self._held = images, weakref.ref(held)
        return held


@dataclasses.dataclass(frozen=True)
class ViewPlan:
    """What sources of the same views share: teacher and student see the same views, each at its own size (see `rendered`).

    Attributes:
        seed: of the views; view number v of an image is the same for every run of a seed, so kept views serve them all.
        kept: how many views an image are kept; None where views are new each epoch. resident_bytes: images of more than
            that travel with each step. placed: where those of this plan and of all that are made of it lie on the device.
    """

    images: UInt8[np.ndarray, "images height width 3"]
    config: ViewConfig
    seed: int
    kept: int | None
    resident_bytes: int
    placed: Placed = dataclasses.field(default_factory=Placed, repr=False, compare=False)

    @property
    def key(self) -> jax.Array:
        """The key of the views."""
        return jax.random.key(self.seed)

    @property
    def stream(self) -> Stream | None:
        """What gives each step its images; None where all of them fit on the device."""
        return Stream(self.images) if self.images.nbytes > self.resident_bytes else None

    def rendered(self, size: int, mean: Colour, std: Colour) -> "ViewPlan":
        """The same views of the same images as another model sees them."""
        return dataclasses.replace(self, config=self.config.rendered(size, mean, std))

    def pixels(self, *, train: bool, partners: Int[np.ndarray, "images neighbours"] | None = None) -> Source:
        """Views drawn from pixels, which lie on the device or travel with each step. Kept views are drawn again.

        Args:
            train: puts batch norm into training mode. partners: the images that each may be mixed with.
        """
        stream = self.stream
        held = self.placed.of(self.images) if stream is None else StepImages()
        views = PixelViews(held, self.key, self.config, train, None if partners is None else jnp.asarray(partners))
        return Source(views, len(self.images), self.kept, stream)

    def kept_features(
        self, cache: FeatureCache, derivations: Iterable[Derivation] = (),
        partners: Int[np.ndarray, "images neighbours"] | None = None,
    ) -> Source:
        """The features that a frozen backbone gives for every kept view, and for what is derived of them."""
        derived = {derivation.name: jnp.asarray(self.features(cache, derivation=derivation, partners=partners))
                   for derivation in derivations}
        return Source(KeptFeatures(jnp.asarray(self.features(cache)), derived), len(self.images), self.kept)

    def features(self, cache: FeatureCache, **made: Any) -> np.ndarray:
        """The features that a frozen backbone gives for every kept view, or for what is `made` of it (see
        FeatureCache.views)."""
        return cache.views(self.images, self.kept, key=self.key, config=self.config, **made)

    def facts(self) -> dict[str, Any]:
        """What the views depend on beside the images, for the names of stages: as JSON holds it."""
        return {"kept": self.kept, "seed": self.seed, **beyond_defaults(self.config)}
