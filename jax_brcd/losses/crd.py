"""Contrastive representation distillation: each encoder's row against the other's memory (Tian et al., ICLR 2020)."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from jax_brcd.losses.contrastive import AnyArray
from jax_brcd.losses.memory import contrast_with_memories
from jax_brcd.losses.numbers import checked_temperature


def crd_loss(
    student_rows: Float[AnyArray, "batch width"],
    teacher_rows: Float[AnyArray, "batch width"],
    memory: Mapping[str, AnyArray],
    indices: Int[AnyArray, "batch"],
    negatives: Int[AnyArray, "batch negatives"],
    *,
    temperature: ScalarLike = 0.05,
    momentum: ScalarLike = 0.5,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """CRD over memory banks (equations 17 to 19), the student's rows as anchors and then the teacher's.

    Args:
        student_rows, teacher_rows: unit embeddings of the same images; the gradient flows through both.
        memory: "student" and "teacher", banks (images, width), and "normalisers" (2,), negative before the first step.
        indices: the images' places in the banks. negatives: those of the images that they are contrasted with.
        momentum: of the banks. valid: images that count; None for all.

    Returns:
        The loss, and the memory after the step.

    Raises:
        InputError: for a temperature that is not above 0.
    """
    temperature = checked_temperature(temperature)
    choices = jnp.concatenate([jnp.asarray(indices)[:, None], negatives], axis=1)

    def scores_of(rows, bank):
        return jnp.exp(jnp.einsum("bcw,bw->bc", bank[choices], rows) / temperature)

    return contrast_with_memories(scores_of, student_rows, teacher_rows, memory, indices, momentum=momentum, valid=valid,
                                  counted=valid)
