"""What the contrastive methods with a memory share: embeddings, banks of them, and noise-contrastive estimation (CRD, section
3)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from jax_brcd.losses.contrastive import AnyArray, masked_mean

NORM_EPSILON = 1e-12
NOISE_EPSILON = 1e-7


def unit_rows(rows: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """Rows over their norms; a zero row stays zero and passes no gradient."""
    squares = jnp.sum(rows * rows, axis=-1, keepdims=True)
    nonzero = squares > NORM_EPSILON**2
    return jnp.where(nonzero, rows / jnp.sqrt(jnp.where(nonzero, squares, 1.0)), 0.0)


def embed(
    codes: Float[AnyArray, "*rows bits"], kernel: Float[AnyArray, "bits width"], bias: Float[AnyArray, "width"]
) -> Float[Array, "*rows width"]:
    """Codes mapped linearly to unit rows."""
    return unit_rows(jnp.asarray(codes) @ kernel + bias)


def update_bank(
    bank: Float[AnyArray, "images width"],
    rows: Float[AnyArray, "batch width"],
    indices: Int[AnyArray, "batch"],
    momentum: Float[AnyArray, "batch"] | ScalarLike,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, "images width"]:
    """The bank with the images' rows moved to unit(momentum * old + (1 - momentum) * new); no gradient passes.

    Padding, where `valid` is False, is written nowhere.
    """
    bank, rows, indices = jnp.asarray(bank), jax.lax.stop_gradient(jnp.asarray(rows)), jnp.asarray(indices)
    momentum = jnp.broadcast_to(jnp.asarray(momentum, rows.dtype), indices.shape)[:, None]
    moved = unit_rows(momentum * bank[indices] + (1.0 - momentum) * rows)
    places = indices if valid is None else jnp.where(valid, indices, len(bank))
    return bank.at[places].set(moved, mode="drop")


def settle_normaliser(
    scores: Float[Array, "rows choices"], previous: Float[AnyArray, ""], n_images: int,
    valid: Bool[AnyArray, "rows"] | None,
) -> Float[Array, ""]:
    """CRD's normalisation constant: the first batch's mean score times the images; `previous` unless that is negative."""
    mean = masked_mean(jnp.mean(scores, axis=1), valid)
    return jax.lax.stop_gradient(jnp.where(previous < 0, mean * n_images, previous))


def noise_contrastive_loss(
    scores: Float[Array, "rows choices"], n_images: int, valid: Bool[AnyArray, "rows"] | None = None
) -> Float[Array, ""]:
    """Noise-contrastive estimation with the true choice first, noise uniform over the images (CRD, equation 18; Wu et al.,
    2018).

    Args:
        scores: positive and normalised; the first of a row is its own image's, the others are noise.
    """
    noise = (scores.shape[1] - 1) / n_images
    true = jnp.log(scores[:, 0] / (scores[:, 0] + noise + NOISE_EPSILON))
    false = jnp.sum(jnp.log(noise / (scores[:, 1:] + noise + NOISE_EPSILON)), axis=1)
    return -masked_mean(true + false, valid)


def contrast_with_memories(
    scores_of: Callable[[Array, Array], Array],
    student_rows: Float[AnyArray, "batch width"],
    teacher_rows: Float[AnyArray, "batch width"],
    memory: Mapping[str, AnyArray],
    indices: Int[AnyArray, "batch"],
    *,
    momentum: ScalarLike,
    valid: Bool[AnyArray, "batch"] | None,
    counted: Bool[AnyArray, "rows"] | None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Noise-contrastive estimation of the student's rows over the teacher's bank, and of the teacher's over the student's.

    Args:
        scores_of: (an encoder's rows, the other's bank) to positive scores (rows, choices), the true choice first.
        memory: "student" and "teacher", banks (images, width), and "normalisers" (2,), negative before the first step.
        valid: images that count. counted: rows of scores that count.

    Returns:
        The sum of both losses, and the memory after the step.
    """
    student_rows, teacher_rows = jnp.asarray(student_rows), jnp.asarray(teacher_rows)
    banks = {name: jnp.asarray(memory[name]) for name in ("student", "teacher")}
    n_images = len(banks["student"])
    scores = scores_of(student_rows, banks["teacher"]), scores_of(teacher_rows, banks["student"])
    normalisers = [settle_normaliser(part, previous, n_images, counted)
                   for part, previous in zip(scores, jnp.asarray(memory["normalisers"]), strict=True)]
    loss = sum(noise_contrastive_loss(part / normaliser, n_images, counted)
               for part, normaliser in zip(scores, normalisers, strict=True))
    return loss, {
        "student": update_bank(banks["student"], student_rows, indices, momentum, valid),
        "teacher": update_bank(banks["teacher"], teacher_rows, indices, momentum, valid),
        "normalisers": jnp.stack(normalisers),
    }
