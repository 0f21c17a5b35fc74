"""Images made of views: quarter turns (SSKD) and mixtures with a neighbour (PACKD), which a distillation method may ask for.

A derivation is known by its name and its numbers alone, so what it makes of view v of image i is the same whether the pixels
are encoded now or were encoded once and kept.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

MIXTURES = 0x6D6978  # keeps the numbers of mixtures apart from those of views

Pixels = Float[Array, "batch height width 3"]


def view_keys(
    key: Key[Array, ""], indices: Int[Array, "batch"], views: Int[Array, "batch"]
) -> Key[Array, "batch"]:
    """The key of view number `views[b]` of image `indices[b]`."""
    return jax.vmap(lambda index, view: jax.random.fold_in(jax.random.fold_in(key, view), index))(indices, views)


@runtime_checkable
class Derivation(Protocol):
    """What is made of a view before it is encoded; a hashable description without arrays."""

    name: str

    def sources(
        self, key: Key[Array, ""], indices: Int[Array, "batch"], views: Int[Array, "batch"],
        partners: Int[Array, "images neighbours"] | None,
    ) -> tuple[Int[Array, "batch"], ...]:
        """The images whose view it is made of, each the view of the same number. `key` is that of the run's views."""

    def combine(
        self, pixels: tuple[Pixels, ...], key: Key[Array, ""], indices: Int[Array, "batch"], views: Int[Array, "batch"]
    ) -> Pixels:
        """What the views of the sources, drawn and normalised, are made into."""


@dataclasses.dataclass(frozen=True)
class Itself:
    """The view as it is."""

    name = "itself"

    def sources(self, key, indices, views, partners):
        """See Derivation."""
        return (indices,)

    def combine(self, pixels, key, indices, views):
        """See Derivation."""
        return pixels[0]


ITSELF = Itself()


@dataclasses.dataclass(frozen=True)
class Rotation(Itself):
    """The view turned by `turns` quarters, counterclockwise."""

    turns: int

    @property
    def name(self) -> str:
        """See Derivation."""
        return f"rotation{self.turns}"

    def combine(self, pixels, key, indices, views):
        """See Derivation."""
        return jnp.rot90(pixels[0], self.turns, axes=(1, 2))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """w times the view plus 1 - w times that of one of the image's partners, w uniform in [0, 1) (mixup, Zhang et al., 2018).

    `number` tells several mixtures of a view apart.
    """

    number: int

    @property
    def name(self) -> str:
        """See Derivation."""
        return f"mixture{self.number}"

    def _draw(self, key, indices, views):
        keys = view_keys(jax.random.fold_in(key, MIXTURES + self.number), indices, views)
        return jax.vmap(lambda key: jax.random.uniform(key, (2,), jnp.float32), out_axes=1)(keys)

    def sources(self, key, indices, views, partners):
        """See Derivation."""
        place, _ = self._draw(key, indices, views)
        neighbours = partners.shape[1]
        place = jnp.minimum((place * neighbours).astype(jnp.int32), neighbours - 1)
        return indices, partners[indices, place]

    def combine(self, pixels, key, indices, views):
        """See Derivation."""
        _, weight = self._draw(key, indices, views)
        weight = weight[:, None, None, None]
        return weight * pixels[0] + (1.0 - weight) * pixels[1]
