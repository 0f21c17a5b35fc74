"""What a teacher's hash head stands on: a frozen backbone that sees images, or a table with a row of each."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from jax_brcd.encoder import TEACHER as ROLE
from jax_brcd.encoder import HashEncoder, create_encoder
from jax_brcd.models import HashModel
from jax_brcd.models.rows import EMBEDDINGS, RowFormat
from jax_brcd.runtime.digests import beyond_defaults, digest
from jax_brcd.stages.context import Context
from jax_brcd.stages.parts import measure_rows
from jax_brcd.teachers.base import Teacher
from jax_brcd.teachers.embeddings import REMARK, EmbeddingsTeacher, training_rows
from jax_brcd.teachers.hash_model import HashTeacher
from jax_brcd.teachers.objectives import Objective, Sees, seen_by
from jax_brcd.views.features import weights_digest
from jax_brcd.views.rows import RowViews
from jax_brcd.views.source import Source

DROPOUT_KEY = 0x64726F70  # keeps the randomness of dropped features apart from that of views


@runtime_checkable
class Footing(Protocol):
    """What the teacher's stage needs to know of what a head stands on.

    Attributes:
        facts: what a teacher depends on whose head is as it came. dtype: of its encoder.
    """

    facts: Mapping[str, Any]
    dtype: str

    def views(self, objective: Objective) -> int:
        """How many views of an image an objective that is learnt is shown."""

    def learning_facts(self, objective: Objective | None) -> dict[str, Any]:
        """What a head that learns by an objective depends on beside; None where it is solved."""

    def training_features(self) -> Float[np.ndarray, "images features"]:
        """Of the un-augmented training images."""

    def source(self, objective: Objective) -> Source:
        """The views that a head learns from."""

    def encoder(self, model: HashModel, space: str | None) -> HashEncoder:
        """The encoder with a model's head."""

    def teacher(self, encoder: HashEncoder, remarks: tuple[str, ...]) -> Teacher:
        """The teacher that an encoder is."""


@dataclasses.dataclass(frozen=True)
class BackboneFooting:
    """See Footing."""

    context: Context
    model: HashModel

    @property
    def facts(self) -> dict[str, Any]:
        """See Footing."""
        return {"weights": weights_digest(self.model), "preprocessing": beyond_defaults(self.context.preprocessing)}

    @property
    def dtype(self) -> str:
        """See Footing."""
        return self.context.config.run.dtype

    def views(self, objective: Objective) -> int:
        """See Footing."""
        return 2

    def learning_facts(self, objective: Objective | None) -> dict[str, Any]:
        """See Footing."""
        views = {} if objective is None else {"views": self.context.plan.facts()}
        return {**self.context.data_facts("images of train"), **views}

    def training_features(self) -> Float[np.ndarray, "images features"]:
        """See Footing."""
        return self.context.kept_parts(self._cache(self.model)).features["train"]

    def source(self, objective: Objective) -> Source:
        """See Footing. A frozen teacher always runs in evaluation mode."""
        plan = self.context.plan
        return plan.pixels(train=False) if plan.kept is None else plan.kept_features(self._cache(self.model))

    def encoder(self, model: HashModel, space: str | None) -> HashEncoder:
        """See Footing."""
        config = self.context.config
        return create_encoder(model, config.teacher.teacher, self.context.preprocessing, bits=config.objective.bits, role=ROLE,
                              space=space, dtype=self.dtype)

    def teacher(self, encoder: HashEncoder, remarks: tuple[str, ...]) -> Teacher:
        """See Footing."""
        cache = self._cache(encoder.model)
        return HashTeacher(encoder, self.context.kept_parts(cache), cache, self.context.measure, remarks)

    def _cache(self, model: HashModel):
        return self.context.cache(self.context.config.teacher.teacher, model)


@dataclasses.dataclass(frozen=True)
class TableFooting:
    """See Footing. The rows of the training images are the features of all their views."""

    context: Context
    model: HashModel
    dtype = "float32"  # a head computes in no other

    @property
    def facts(self) -> dict[str, Any]:
        """See Footing."""
        return {"weights": weights_digest(self.model), "embeddings": self._rows}

    def views(self, objective: Objective) -> int:
        """See Footing."""
        return 1 if seen_by(objective) is Sees.ONE_ROW else 2

    def learning_facts(self, objective: Objective | None) -> dict[str, Any]:
        """See Footing."""
        dropped = {} if objective is None or self.views(objective) == 1 else {"dropout": self._dropout}
        return {"embeddings": self._rows, **dropped}

    def training_features(self) -> Float[np.ndarray, "images features"]:
        """See Footing."""
        return self.context.table.parts["train"][:]

    def source(self, objective: Objective) -> Source:
        """See Footing."""
        key = jax.random.fold_in(jax.random.key(self.context.config.run.seed), DROPOUT_KEY)
        dropout = 0.0 if self.views(objective) == 1 else self._dropout
        return Source(RowViews(training_rows(self.context.table), key, dropout), len(self.context.table.parts["train"]))

    def encoder(self, model: HashModel, space: str | None) -> HashEncoder:
        """See Footing. The space is that of a head over these rows: over others the same head gives other codes."""
        own = f"{EMBEDDINGS}-{digest('space', self._rows, weights_digest(model))}"
        return create_encoder(model, EMBEDDINGS, RowFormat(self.context.table.width), bits=self.context.config.objective.bits,
                              role=ROLE, space=space or own, dtype=self.dtype)

    def teacher(self, encoder: HashEncoder, remarks: tuple[str, ...]) -> Teacher:
        """See Footing."""
        return EmbeddingsTeacher(encoder, self.context.table, lambda encoder, rows: dataclasses.asdict(
            measure_rows(encoder.model, rows)), (*remarks, REMARK))

    @property
    def _rows(self) -> str:
        return self.context.digests["embeddings of train"]

    @property
    def _dropout(self) -> float:
        return self.context.config.teacher.embeddings_dropout


def footing_of(context: Context, model: HashModel) -> Footing:
    """What the head of a run's teacher stands on: a table of embeddings where that is its teacher, else a backbone."""
    return (TableFooting if context.config.teacher.teacher == EMBEDDINGS else BackboneFooting)(context, model)
