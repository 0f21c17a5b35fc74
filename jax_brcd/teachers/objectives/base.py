"""The interface between the teacher's stage and a hashing objective: learnt by gradient, or solved in closed form.

An objective that is learnt may bring more than its loss: a `head` (see `head_of`), an `optimizer` (see `optimizer_of`), and in
`proposes`, an attribute of its class, what it takes for the run's defaults. In `sees` it says what it must see of an image, and in
`reads_temperature` whether its loss looks at the temperature or the weight of the KL term.
"""

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float


class Sees(enum.Enum):
    """What an objective must see of an image, which it declares as its attribute `sees`; TWO_VIEWS where it declares nothing."""

    ONE_ROW = enum.auto()  # features of the image; a second view is one more row to it
    TWO_VIEWS = enum.auto()  # two random views, which it contrasts
    TWO_ROWS = enum.auto()  # the same, and features with some dropped may stand in for a second view


def seen_by(objective: Any) -> Sees:
    """What an objective declares."""
    return getattr(objective, "sees", Sees.TWO_VIEWS)


class HashingBatch(NamedTuple):
    """Two views of a batch under the teacher, or one, without those of j; rows that are not `valid` are padding."""

    valid: Bool[Array, "batch"]
    features_i: Float[Array, "batch features"]  # of the frozen backbone, or of a table of embeddings
    features_j: Float[Array, "batch features"] | None
    logits_i: Float[Array, "batch bits"]
    logits_j: Float[Array, "batch bits"] | None

    @property
    def rows(self) -> tuple[Bool[Array, "rows"], Float[Array, "rows features"], Float[Array, "rows bits"]]:
        """Validity, features and logits of all views, one below the other."""
        if self.logits_j is None:
            return self.valid, self.features_i, self.logits_i
        return (jnp.concatenate([self.valid, self.valid]), jnp.concatenate([self.features_i, self.features_j]),
                jnp.concatenate([self.logits_i, self.logits_j]))


@runtime_checkable
class LearntObjective(Protocol):
    """A frozen dataclass of settings whose loss the head minimises. See Sees for what it may declare."""

    def loss(
        self, batch: HashingBatch, *, temperature: float, kl_weight: float
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns (loss, its terms by name); temperature and KL weight are the teacher's own."""


def head_of(objective: Any) -> str | None:
    """The form of the head that an objective learns, its `head`, a name in models.HEADS; None for the backbone's own."""
    return getattr(objective, "head", None)


def brings_optimizer(objective: Any) -> bool:
    """Whether an objective is learnt by another optimizer than Adam at one rate."""
    return hasattr(objective, "optimizer")


def optimizer_of(objective: Any, learning_rate: float, steps: int) -> optax.GradientTransformation:
    """What an objective's `optimizer(learning_rate, steps)` gives, or the published one.

    It is made of the rate that is told and the number of steps there will be, and of nothing else: a training that goes on
    makes it anew. As it may end with the last step, another number of epochs is another training.
    """
    return objective.optimizer(learning_rate, steps) if brings_optimizer(objective) else optax.adam(learning_rate)


def proposals(kind: Any) -> Mapping[str, Any]:
    """The settings by name for which an objective has other defaults than the run."""
    return getattr(kind, "proposes", {})


@runtime_checkable
class ClosedFormObjective(Protocol):
    """A frozen dataclass of settings that gives a linear head at once."""

    def check(self, *, images: int, features: int, bits: int) -> None:
        """Raises InputError where these sizes allow no solution."""

    def solve(
        self, features: Float[np.ndarray, "images features"], bits: int, *, seed: int
    ) -> tuple[Float[np.ndarray, "features bits"], Float[np.ndarray, "bits"], list[dict[str, float]]]:
        """From the features of the un-augmented training images: the head's weights and bias, and a record an iteration."""
