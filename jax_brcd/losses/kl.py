"""Hinton's distillation on codes: the softened distribution over bits of the student against the teacher's (arXiv
1503.02531)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from jax_brcd.losses.contrastive import AnyArray, masked_mean
from jax_brcd.losses.numbers import checked_temperature


def kl_distillation_loss(
    student_codes: Float[AnyArray, "batch bits"],
    teacher_codes: Float[AnyArray, "batch bits"],
    temperature: ScalarLike = 4.0,
    *,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Mean KL(teacher || student) of softmax(codes / temperature), times temperature squared (Hinton et al., 2015).

    Args:
        valid: images that count; None for all.

    Raises:
        InputError: for a temperature that is not above 0.
    """
    temperature = checked_temperature(temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(jnp.asarray(teacher_codes)) / temperature, axis=-1)
    student = jax.nn.log_softmax(student_codes / temperature, axis=-1)
    return temperature**2 * masked_mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1), valid)
