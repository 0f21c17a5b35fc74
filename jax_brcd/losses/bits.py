"""The teacher's bits as labels: each of the student's logits is a classifier of one bit."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jax_brcd.losses.contrastive import AnyArray, masked_mean


def teacher_bits(teacher_codes: Float[AnyArray, "batch bits"]) -> Float[Array, "batch bits"]:
    """1 where the code is +1, else 0; no gradient passes."""
    return (jax.lax.stop_gradient(jnp.asarray(teacher_codes)) > 0).astype(jnp.float32)


def bits_loss(
    student_logits: Float[AnyArray, "batch bits"], teacher_codes: Float[AnyArray, "batch bits"], *,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Mean binary cross-entropy, in nats a bit, of sigmoid(logits) against the teacher's bits.

    Args:
        valid: images that count; None for all.
    """
    errors = optax.sigmoid_binary_cross_entropy(jnp.asarray(student_logits), teacher_bits(teacher_codes))
    return masked_mean(jnp.mean(errors, axis=-1), valid)


def soft_bits_loss(
    student_logits: Float[AnyArray, "batch bits"], teacher_logits: Float[AnyArray, "batch bits"], temperature: float, *,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Mean binary cross-entropy, in nats a bit, of sigmoid(logits) against the teacher's sigmoid(logits / temperature).

    Args:
        valid: images that count; None for all.
    """
    chances = jax.nn.sigmoid(jax.lax.stop_gradient(jnp.asarray(teacher_logits)) / temperature)
    errors = optax.sigmoid_binary_cross_entropy(jnp.asarray(student_logits), chances)
    return masked_mean(jnp.mean(errors, axis=-1), valid)


def bit_agreement(
    student_logits: Float[AnyArray, "batch bits"], teacher_codes: Float[AnyArray, "batch bits"], *,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """The share of bits that are the teacher's: a student's bit is 1 where its logit is above 0."""
    same = (jnp.asarray(student_logits) > 0) == (teacher_bits(teacher_codes) > 0)
    return masked_mean(jnp.mean(same.astype(jnp.float32), axis=-1), valid)
