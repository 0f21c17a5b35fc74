"""SSKD's transfer of self-supervised similarities: turned images against upright ones (Xu et al., ECCV 2020)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from jax_brcd.losses.contrastive import AnyArray, masked_mean, normalise
from jax_brcd.losses.numbers import checked_temperature
from jax_brcd.runtime.errors import InputError

VIEWS_A_SAMPLE = 4  # the upright one and three turned ones
EXCLUDED = -1e30  # a logit of no probability; finite, so that differences of two are too


def sskd_loss(
    student_codes: Float[AnyArray, "rows bits"],
    teacher_codes: Float[AnyArray, "rows bits"],
    temperature: ScalarLike = 0.5,
    *,
    valid: Bool[AnyArray, "rows"] | None = None,
) -> Float[Array, ""]:
    """Mean KL(teacher || student) over the turned images of the softmax of their cosines with all upright ones, times
    temperature squared (SSKD, equation 6; no wrong answer of the teacher is left out, as the published hashing code has it).

    Args:
        student_codes, teacher_codes: four rows a sample, the upright image first.
        valid: rows that count; None for all.

    Raises:
        InputError: for a number of rows that is no multiple of four, and a temperature that is not above 0.
    """
    temperature = checked_temperature(temperature)
    if len(student_codes) % VIEWS_A_SAMPLE:
        raise InputError(f"{len(student_codes)} rows: not four a sample", field="student_codes")
    valid = jnp.ones(len(student_codes), bool) if valid is None else jnp.asarray(valid)
    grouped = valid.reshape(-1, VIEWS_A_SAMPLE)
    student, teacher = (_log_similarities(jnp.asarray(codes), temperature, grouped[:, 0])
                        for codes in (student_codes, jax.lax.stop_gradient(jnp.asarray(teacher_codes))))
    divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    return temperature**2 * masked_mean(divergence, grouped[:, 1:].reshape(-1))


def _log_similarities(codes, temperature, valid) -> Float[Array, "turned upright"]:
    unit = normalise(codes).reshape(-1, VIEWS_A_SAMPLE, codes.shape[-1])
    cosines = jnp.einsum("svk,uk->svu", unit[:, 1:], unit[:, 0]).reshape(-1, len(unit))
    return jax.nn.log_softmax(jnp.where(valid[None, :], cosines / temperature, EXCLUDED), axis=-1)
