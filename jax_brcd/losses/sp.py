"""Similarity-preserving distillation: the products of all pairs, row by row (Tung and Mori, ICCV 2019)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_brcd.losses.contrastive import AnyArray
from jax_brcd.losses.memory import unit_rows
from jax_brcd.runtime.errors import UnknownName
from jax_brcd.runtime.registry import unknown_name

SP_VARIANTS = ("batch", "released")
EPSILON = 1e-12


def unit_rows_of_products(rows: Float[Array, "rows width"]) -> Float[Array, "rows rows"]:
    """Products of every two rows, each row of that matrix over its norm."""
    products = rows @ rows.T
    squares = jnp.sum(products * products, axis=-1, keepdims=True)
    return products / jnp.sqrt(jnp.maximum(squares, EPSILON**2))


def sp_loss(
    student_codes: Float[AnyArray, "batch bits"],
    teacher_codes: Float[AnyArray, "batch width"],
    *,
    variant: str = "batch",
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Mean squared difference of the normalised similarity matrices (SP, equation 4).

    Args:
        variant: "batch" compares the similarities of the batch's images; "released" is what the published hashing code
            computes: each code is taken for a batch of one-bit rows, and the images are summed over.
        valid: images that count; None for all.

    Raises:
        InputError: for an unknown variant.
    """
    if variant not in SP_VARIANTS:
        raise UnknownName(unknown_name("variant", variant, SP_VARIANTS))
    student, teacher = jnp.asarray(student_codes), jax.lax.stop_gradient(jnp.asarray(teacher_codes))
    valid = jnp.ones(len(teacher), bool) if valid is None else jnp.asarray(valid)
    if variant == "released":
        return jnp.sum(jnp.where(valid, _bitwise_errors(student, teacher), 0.0))
    student, teacher = (jnp.where(valid[:, None], codes, 0.0) for codes in (student, teacher))
    errors = jnp.square(unit_rows_of_products(teacher) - unit_rows_of_products(student))
    return jnp.sum(errors) / jnp.maximum(jnp.sum(valid), 1) ** 2


def _bitwise_errors(student: Float[Array, "batch bits"], teacher: Float[Array, "batch bits"]) -> Float[Array, "batch"]:
    """Of each code the mean squared difference of its own matrix of products.

    Row b of that matrix is sign(code[b]) times the unit code, which is used here: computed as written, the gradient at small
    entries is the difference of large numbers.
    """
    bits = student.shape[-1]
    same_signs = jnp.sum(jnp.sign(student) * jnp.sign(teacher), axis=-1)
    squares = jnp.sum((student != 0) + (teacher != 0).astype(student.dtype), axis=-1)
    cosine = jnp.sum(unit_rows(student) * unit_rows(teacher), axis=-1)
    return (squares - 2.0 * same_signs * cosine) / bits**2
