"""How far the similarities of codes are from those of the frozen features: what Bi-half and GreedyHash minimise."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_brcd.losses.contrastive import AnyArray, normalise


def similarity_loss(
    codes: Float[AnyArray, "rows bits"],
    features: Float[AnyArray, "rows features"],
    valid: Bool[AnyArray, "rows"] | None = None,
) -> Float[Array, ""]:
    """Mean squared difference between the cosine of two rows' codes and that of their features, over all pairs of rows.

    (Su et al., NeurIPS 2018, section 3.4; Li and van Gemert, AAAI 2021, section 3.3.) The authors' code compares each row of
    a batch's first half with one row of its second half; all pairs have the same expectation with less noise.

    Args:
        valid: rows that count; None for all.
    """
    units = normalise(codes), normalise(features)
    similarities = [unit @ unit.T for unit in units]
    counts = ~jnp.eye(codes.shape[0], dtype=bool)
    if valid is not None:
        counts &= valid[:, None] & valid[None, :]
    errors = jnp.where(counts, (similarities[0] - similarities[1]) ** 2, 0.0)
    return jnp.sum(errors) / jnp.maximum(jnp.sum(counts), 1)
