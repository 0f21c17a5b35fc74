"""The interface between the teacher's stage and a hashing objective: learnt by gradient, or solved in closed form."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float


class HashingBatch(NamedTuple):
    """Two views of a batch under the teacher; rows that are not `valid` are padding."""

    valid: Bool[Array, "batch"]
    features_i: Float[Array, "batch features"]  # of the frozen backbone
    features_j: Float[Array, "batch features"]
    logits_i: Float[Array, "batch bits"]
    logits_j: Float[Array, "batch bits"]


@runtime_checkable
class LearntObjective(Protocol):
    """A frozen dataclass of settings whose loss the head minimises."""

    def loss(
        self, batch: HashingBatch, *, temperature: float, kl_weight: float
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns (loss, its terms by name); temperature and KL weight are those that teacher and student share."""


@runtime_checkable
class ClosedFormObjective(Protocol):
    """A frozen dataclass of settings that gives a linear head at once."""

    def check(self, *, images: int, features: int, bits: int) -> None:
        """Raises InputError where these sizes allow no solution."""

    def solve(
        self, features: Float[np.ndarray, "images features"], bits: int, *, seed: int
    ) -> tuple[Float[np.ndarray, "features bits"], Float[np.ndarray, "bits"], list[dict[str, float]]]:
        """From the features of the un-augmented training images: the head's weights and bias, and a record an iteration."""
