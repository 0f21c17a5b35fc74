"""Rows of a table of embeddings in place of views: one for all views of an image."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_brcd.views.derivations import ITSELF, view_keys
from jax_brcd.views.outputs import outputs_of


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
