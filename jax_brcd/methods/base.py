"""The interface between the training loop and a distillation method: state in, state out."""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_brcd.data.dataset import CLUSTER_RANGE
from jax_brcd.views.derivations import Derivation

Tree = Any


class TeacherView(NamedTuple):
    """What the teacher says before the student's training starts."""

    codes: Float[np.ndarray, "images bits"]  # of the un-augmented training images
    cluster_range: tuple[int, int] = CLUSTER_RANGE  # numbers of clusters that a method may choose from, both included


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a method sees beside two views of a batch; the data stage provides it."""

    views: tuple[Derivation, ...] = ()  # made of view i, seen by student and teacher
    negatives: int = 0  # other training images drawn for each image of a batch
    neighbours: int = 0  # nearest training images by the teacher's codes that mixtures draw from


NOTHING = Needs()


class DistillationBatch(NamedTuple):
    """One batch as a method sees it; rows that are not `valid` are padding."""

    indices: Int[Array, "batch"]  # positions in the training set
    valid: Bool[Array, "batch"]
    student_logits_i: Float[Array, "batch bits"]
    student_logits_j: Float[Array, "batch bits"]
    student_codes_i: Float[Array, "batch bits"]  # straight-through
    student_codes_j: Float[Array, "batch bits"]
    teacher_codes_i: Float[Array, "batch bits"]
    teacher_codes_j: Float[Array, "batch bits"]
    key: Key[Array, ""]
    negatives: Int[Array, "batch negatives"] | None = None  # positions in the training set
    student_derived_codes: Float[Array, "derived batch bits"] | None = None  # straight-through; of Needs.views, in order
    teacher_derived_codes: Float[Array, "derived batch bits"] | None = None


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of settings with what it needs and these two functions.

    `init` runs once, on the host. What it returns is checkpointed and resumed: `parameters` are moved by the student's
    optimizer, `memory` is whatever else the method carries from step to step.
    """

    @property
    def needs(self) -> Needs:
        """What must be in the batch beside two views."""

    def init(self, teacher: TeacherView, *, seed: int) -> tuple[Tree, Tree]:
        """Returns (parameters, memory), pytrees of arrays."""

    def loss(
        self, parameters: Tree, memory: Tree, batch: DistillationBatch, *, temperature: float
    ) -> tuple[Float[Array, ""], Tree]:
        """Returns (loss, the memory after the step); `temperature` is the one of the contrastive objective."""


class Stateless:
    """A method that sees two views, learns nothing of its own and remembers nothing."""

    needs = NOTHING

    def init(self, teacher: TeacherView, *, seed: int) -> tuple[Tree, Tree]:
        """No parameters and no memory."""
        return {}, {}
