"""Mixtures of the views of a batch, and of what a teacher says of them (mixup, Zhang et al., ICLR 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_brcd.losses.codes import hash_codes
from jax_brcd.views.outputs import Outputs

MIXING = 0x6D6978  # keeps the draw of the weights apart from a step's others


class Mix(NamedTuple):
    """How each row of a batch is mixed."""

    weight: Float[Array, "batch"]  # of the row itself
    partner: Int[Array, "batch"]  # the row that it is mixed with

    def rows(self, values: Float[Array, "batch *rest"]) -> Float[Array, "batch *rest"]:
        """`weight` times each row and the rest of its partner."""
        weight = self.weight.reshape(-1, *(1 for _ in values.shape[1:]))
        return weight * values + (1.0 - weight) * values[self.partner]

    def outputs(self, outputs: Outputs) -> Outputs:
        """Mixed features and logits, and the codes of the mixed logits.

        Raises:
            ValueError: for outputs without logits, whose mixture would have no codes.
        """
        logits = outputs.only(("logits",)).logits
        mixed = self.rows(logits)
        features = None if outputs.features is None else self.rows(outputs.features)
        return Outputs(features, mixed, hash_codes(mixed))


def draw_mix(key: Key[Array, ""], valid: Bool[Array, "batch"], concentration: float) -> Mix:
    """Each row's weight of a symmetric Beta distribution; its partner is the next valid row, as a batch is in no order."""
    count = jnp.maximum(jnp.sum(valid), 1)
    row = jnp.arange(len(valid))
    weight = jax.random.beta(jax.random.fold_in(key, MIXING), concentration, concentration, valid.shape, jnp.float32)
    return Mix(weight, jnp.where(valid, (row + 1) % count, row))
