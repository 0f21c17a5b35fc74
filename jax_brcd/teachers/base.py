"""What a teacher is to the stages: outputs of views, codes of images, a code space, and a form to be saved in."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_brcd.encoder import HashEncoder, space_of
from jax_brcd.methods import Needs
from jax_brcd.models.kept import codes_of
from jax_brcd.views.plan import ViewPlan
from jax_brcd.views.sources import StillTeacher, TeacherSource

TOGETHER = 4096  # images whose outputs are averaged at once


class Encoded(NamedTuple):
    """What a model says of the un-augmented images of a part of a data set."""

    features: Float[np.ndarray, "images features"]  # of the backbone
    logits: Float[np.ndarray, "images bits"]  # of the hash head
    codes: Float[np.ndarray, "images bits"]  # in {-1, 0, +1}

    @classmethod
    def of(cls, features: Float[np.ndarray, "images features"], logits: Float[np.ndarray, "images bits"]) -> "Encoded":
        """With the codes of the logits."""
        return cls(features, logits, codes_of(logits))


def average(
    outputs: Float[np.ndarray, "images width"], neighbours: Int[np.ndarray, "images neighbours"]
) -> Float[np.ndarray, "images width"]:
    """The mean of each image's outputs and its neighbours'.

    What an image has in common with those nearest to it stays, what sets it apart from them goes: database-side feature
    augmentation (Turcot and Lowe, ICCV workshops 2009; docs/training.md).
    """
    means = np.empty(outputs.shape, np.float32)
    for begin in range(0, len(outputs), TOGETHER):
        rows = slice(begin, begin + TOGETHER)
        total = outputs[rows].astype(np.float64)
        for column in neighbours[rows].T:
            total += outputs[column]
        means[rows] = total / (neighbours.shape[1] + 1)
    return means


@runtime_checkable
class Parts(Protocol):
    """What a model says of a named part of a data set ("train", "database", "validation", "test")."""

    def codes(self, model: Any, part: str) -> Float[np.ndarray, "images bits"]:
        """Codes of the part's un-augmented images."""

    def outputs(self, model: Any, part: str) -> Encoded:
        """The same codes with the features and logits behind them."""


@runtime_checkable
class Teacher(Protocol):
    """A hash model that was trained or solved here, one that was brought along, or a table of embeddings with a hash head.

    Attributes:
        name: of its model. bits: length of its codes. space: the id of its code space. identity: what stages that depend on it
            know it by. remarks: what a reader must know of it.
    """

    name: str
    bits: int
    space: str
    identity: str
    remarks: tuple[str, ...]

    def codes(self, part: str) -> Float[np.ndarray, "images bits"]:
        """Codes in {-1, 0, +1} of the un-augmented images of a part of the data set."""

    def outputs(self, part: str) -> Encoded:
        """The same codes with the features and logits behind them."""

    def source(
        self, plan: ViewPlan, needs: Needs, partners: Int[np.ndarray, "images neighbours"] | None = None
    ) -> TeacherSource:
        """The teacher's outputs of the plan's views, and of what `needs` asks to be made of them.

        Args:
            partners: the images that each may be mixed with.
        """

    def still_source(self, needs: Needs, neighbours: Int[np.ndarray, "images neighbours"] | None = None) -> TeacherSource:
        """The teacher's outputs of the un-augmented training images, computed once, as those of all their views.

        Args:
            neighbours: the images whose outputs are averaged with those of each.
        """

    def cost(self, images: np.ndarray) -> Mapping[str, int | float]:
        """Parameters, FLOPs an image and images a second on this machine."""

    def save(self, folder: os.PathLike | str, **provenance: Any) -> pathlib.Path:
        """Writes it as an encoder's folder, with further facts of where it comes from."""


class OfEncoder:
    """What a teacher that has an `encoder`, and codes and outputs of the parts, says of itself by these."""

    encoder: HashEncoder

    def still_source(self, needs: Needs, neighbours: Int[np.ndarray, "images neighbours"] | None = None) -> TeacherSource:
        """See Teacher. Only what is needed is computed, and lies on the device."""
        asked = [name for name in ("logits", "features") if name in needs.teacher]
        if not asked and neighbours is None:
            return StillTeacher(jnp.asarray(self.codes("train"), jnp.int8))
        found = self.outputs("train")
        if neighbours is not None:
            features = average(found.features, neighbours) if "features" in needs.teacher else found.features
            found = Encoded.of(features, average(found.logits, neighbours))
        return StillTeacher(jnp.asarray(found.codes, jnp.int8), **{name: jnp.asarray(getattr(found, name)) for name in asked})

    @property
    def name(self) -> str:
        """Of the backbone, or of what stands in its place."""
        return self.encoder.backbone

    @property
    def bits(self) -> int:
        """Length of the codes."""
        return self.encoder.bits

    @property
    def space(self) -> str:
        """The id of the code space."""
        return self.encoder.space

    @functools.cached_property
    def identity(self) -> str:
        """See Teacher. A space is shared by a teacher and the students that meet its bits, each of which may teach again."""
        own = space_of(self.encoder.model, self.encoder.backbone, self.encoder.preprocessing)
        return own if own == self.space else f"{self.space} of {own}"

    def save(self, folder: os.PathLike | str, **provenance: Any) -> pathlib.Path:
        """See Teacher."""
        return self.encoder.with_provenance(**provenance).save(folder)
