"""The interface between the training loop and a distillation method: state in, state out."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Tree = Any


class TeacherView(NamedTuple):
    """What the teacher says before the student's training starts."""

    codes: Float[np.ndarray, "images bits"]  # of the un-augmented training images


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


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of settings with these two functions.

    `init` runs once, on the host. What it returns is checkpointed and resumed: `parameters` are moved by the student's
    optimizer, `memory` is whatever else the method carries from step to step.
    """

    def init(self, teacher: TeacherView, *, seed: int) -> tuple[Tree, Tree]:
        """Returns (parameters, memory), pytrees of arrays."""

    def loss(
        self, parameters: Tree, memory: Tree, batch: DistillationBatch, *, temperature: float
    ) -> tuple[Float[Array, ""], Tree]:
        """Returns (loss, the memory after the step); `temperature` is the one of the contrastive objective."""
