"""Positive-augmented contrastive distillation: an image and its mixtures, matched by optimal transport (PACKD, 2022)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from jax_brcd.losses.contrastive import AnyArray, masked_mean
from jax_brcd.losses.memory import update_bank
from jax_brcd.losses.numbers import checked_temperature

SINKHORN_STEPS = 100


def transport_plan(
    similarities: Float[Array, "batch rows columns"], regularisation: ScalarLike
) -> Float[Array, "batch rows columns"]:
    """Entropy-regularised transport between uniform weights (Cuturi, NeurIPS 2013); each plan sums to 1.

    The cost is the squared distance of unit rows, 2 - 2 similarity.
    """
    logits = 2.0 * (similarities - 1.0) / regularisation
    sizes = similarities.shape[1:]
    log_rows, log_columns = (jnp.log(jnp.asarray(size, logits.dtype)) for size in sizes)

    def step(_, potentials):
        _, v = potentials
        u = -log_rows - jax.nn.logsumexp(logits + v[:, None, :], axis=2)
        v = -log_columns - jax.nn.logsumexp(logits + u[:, :, None], axis=1)
        return u, v

    zeros = tuple(jnp.zeros((len(similarities), size), logits.dtype) for size in sizes)
    u, v = jax.lax.fori_loop(0, SINKHORN_STEPS, step, zeros)
    return jnp.exp(logits + u[:, :, None] + v[:, None, :])


def packd_loss(
    student_rows: Float[AnyArray, "mixtures batch width"],
    teacher_rows: Float[AnyArray, "mixtures batch width"],
    memory: Mapping[str, AnyArray],
    indices: Int[AnyArray, "batch"],
    negatives: Int[AnyArray, "batch negatives"],
    *,
    temperature: ScalarLike = 0.07,
    momentum: ScalarLike = 0.5,
    regularisation: ScalarLike = 0.1,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """InfoNCE of the student's rows: positives weighted by the transport plan, negatives from the teacher's memory.

    Args:
        student_rows, teacher_rows: unit embeddings of the image itself, then of its mixtures; the gradient flows through both.
        memory: "bank" (images, width) of the teacher's rows of the images themselves, and "seen" (images,): an image's row is
            put in whole the first time (the published code does so in the first epoch) and moved by `momentum` afterwards.
        indices: the images' places in the bank, which is updated first. negatives: those of the images contrasted with.
        regularisation: of the transport plan. valid: images that count; None for all.

    Returns:
        The loss, and the memory after the step.

    Raises:
        InputError: for a temperature that is not above 0.
    """
    temperature = checked_temperature(temperature)
    student_rows, teacher_rows, indices = jnp.asarray(student_rows), jnp.asarray(teacher_rows), jnp.asarray(indices)
    seen = jnp.asarray(memory["seen"])
    bank = update_bank(memory["bank"], teacher_rows[0], indices, jnp.where(seen[indices], momentum, 0.0), valid)
    places = indices if valid is None else jnp.where(valid, indices, len(seen))
    similarities = jnp.einsum("sbw,tbw->bst", student_rows, teacher_rows)
    plan = jax.lax.stop_gradient(transport_plan(similarities, regularisation))
    positive = jnp.sum(plan * similarities, axis=(1, 2)) / temperature
    negative = jnp.einsum("bnw,sbw->bsn", bank[negatives], student_rows).reshape(len(indices), -1) / temperature
    logits = jnp.concatenate([positive[:, None], negative], axis=1)
    loss = masked_mean(jax.nn.logsumexp(logits, axis=1) - positive, valid)
    return loss, {"bank": bank, "seen": seen.at[places].set(True, mode="drop")}
