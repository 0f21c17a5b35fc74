"""CroVCA: two views agree on every bit, and the logits fill their space (Moummad et al., arXiv 2510.27584)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from jax_brcd.losses.bits import bits_loss
from jax_brcd.losses.contrastive import AnyArray
from jax_brcd.losses.memory import unit_rows
from jax_brcd.losses.numbers import checked_positive


def code_alignment(
    logits_i: Float[AnyArray, "batch bits"], logits_j: Float[AnyArray, "batch bits"], *,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Mean binary cross-entropy, in nats a bit, of each view's logits against the other's bits, which pass no gradient.

    Args:
        valid: images that count; None for all.
    """
    return (bits_loss(logits_i, logits_j, valid=valid) + bits_loss(logits_j, logits_i, valid=valid)) / 2


def coding_rate(
    logits: Float[AnyArray, "batch bits"], epsilon: ScalarLike = 0.05, *, valid: Bool[AnyArray, "batch"] | None = None
) -> Float[Array, ""]:
    """Minus the rate at which the directions of B images' K logits are coded up to `epsilon`: lower where they fill more of it.

    -(K + B) / (K B) * 1/2 logdet(I + K / (B epsilon) P^T P), where P has the logits over their norms as rows.

    Args:
        epsilon: the distortion. valid: images that count; None for all.

    Raises:
        InputError: for an epsilon that is not above 0.
    """
    epsilon, logits = checked_positive(epsilon, "epsilon"), jnp.asarray(logits)
    valid = jnp.ones(len(logits), bool) if valid is None else jnp.asarray(valid)
    rows, bits = unit_rows(jnp.where(valid[:, None], logits, 0.0)), logits.shape[1]
    count = jnp.maximum(jnp.sum(valid), 1).astype(logits.dtype)
    # Both products have the same determinant, and padding adds rows of zeros. In full float32 where a device would round
    # its operands: what the largest eigenvalues lose may be more than the 1 of the identity.
    sides = (rows.T, rows) if bits <= len(logits) else (rows, rows.T)
    identity = jnp.eye(len(sides[0]), dtype=rows.dtype)
    factor = jnp.linalg.cholesky(identity + bits / (count * epsilon) * jnp.matmul(*sides, precision="highest"))
    half = jnp.sum(jnp.log(jnp.sum(factor * identity, axis=1)))  # of the logarithm of the determinant
    return -(bits + count) / (bits * count) * half
