"""Rows of a table of embeddings in place of views: one for all views of an image."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jax_brcd.losses.codes import hash_codes
from jax_brcd.views.derivations import ITSELF, view_keys
from jax_brcd.views.outputs import Outputs, outputs_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowViews:
    """A ViewSource over rows, which are features: the model's head alone is applied.

    The views of a step are numbered two by two (views/batches.py). The even one is the row; the odd one is the row with features
    dropped, each with the probability `dropout` and the others scaled to keep the mean, drawn anew for each number. Without
    `dropout` all are the row.
    """

    rows: Float[Array, "images features"]
    key: Key[Array, ""]
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})

    def of(self, indices: Int[Array, "batch"], views: Int[Array, "batch"]) -> Float[Array, "batch features"]:
        """The features of the given view of each image."""
        rows = self.rows[indices]
        if self.dropout == 0:
            return rows
        keys = view_keys(self.key, indices, views)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(1 - self.dropout), rows.shape[1:]))(keys)
        dropped = jnp.where(kept, rows / (1 - self.dropout), 0.0)
        return jnp.where((views % 2 == 1)[:, None], dropped, rows)

    def outputs(self, model, indices, views, valid, derivation=ITSELF, key=None):
        """See ViewSource. There is nothing that could be derived of a row."""
        assert derivation == ITSELF
        return outputs_of(model.head, self.of(indices, views))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowTeacher:
    """A TeacherSource over rows: codes, and where they are asked for the rows with the head that is applied to them now."""

    codes: Int[Array, "images bits"]
    rows: Float[Array, "images features"] | None = None
    head_state: Any = None  # an nnx.State
    head_graph: nnx.GraphDef | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def width(self) -> int | None:
        """See TeacherSource."""
        return None if self.rows is None else self.rows.shape[1]

    def with_rows(self, rows: Float[Array, "images features"], head: nnx.Module) -> "RowTeacher":
        """The same codes with the rows that they were made of and the head that made them."""
        graph, state = nnx.split(head)
        return dataclasses.replace(self, rows=rows, head_state=state, head_graph=graph)

    def outputs(self, indices, views, valid, derivation=ITSELF):
        """See TeacherSource: the same for every view of an image."""
        assert derivation == ITSELF
        codes = hash_codes(self.codes[indices].astype(jnp.float32))
        if self.rows is None:
            return Outputs(codes=codes)
        features = self.rows[indices]
        return Outputs(features, nnx.merge(self.head_graph, self.head_state)(features), codes)
