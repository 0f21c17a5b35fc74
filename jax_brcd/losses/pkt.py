"""Probabilistic knowledge transfer: who is similar to whom in a batch, as probabilities (Passalis and Tefas, ECCV 2018)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_brcd.losses.contrastive import AnyArray

EPSILON = 1e-7


def neighbour_probabilities(
    codes: Float[Array, "batch bits"], valid: Bool[Array, "batch"]
) -> Float[Array, "batch batch"]:
    """Cosines scaled to [0, 1], each row over its sum over the valid columns.

    A valid row's sum has its own cosine in it. That of padding may be 0, and is not divided by: the gradient of 0/0 is NaN.
    """
    squares = jnp.sum(codes * codes, axis=-1, keepdims=True)
    norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)  # finite gradient at a zero code
    unit = codes / (norms + EPSILON)
    similarity = jnp.where(valid[None, :], (unit @ unit.T + 1.0) / 2.0, 0.0)
    return similarity / jnp.where(valid[:, None], jnp.sum(similarity, axis=1, keepdims=True), 1.0)


def pkt_loss(
    student_codes: Float[AnyArray, "batch bits"],
    teacher_codes: Float[AnyArray, "batch width"],
    *,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Mean over all pairs of p log(p / q), p the teacher's and q the student's neighbour probabilities (PKT, equation 8).

    Args:
        valid: images that count; None for all.
    """
    teacher_codes = jax.lax.stop_gradient(jnp.asarray(teacher_codes))
    valid = jnp.ones(len(teacher_codes), bool) if valid is None else jnp.asarray(valid)
    p, q = neighbour_probabilities(teacher_codes, valid), neighbour_probabilities(student_codes, valid)
    terms = jnp.where(valid[:, None] & valid[None, :], p * jnp.log((p + EPSILON) / (q + EPSILON)), 0.0)
    return jnp.sum(terms) / jnp.maximum(jnp.sum(valid), 1) ** 2
