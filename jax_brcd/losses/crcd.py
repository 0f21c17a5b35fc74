"""Complementary relation contrastive distillation: relations to anchors instead of rows (Zhu et al., CVPR 2021)."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from jax_brcd.losses.contrastive import AnyArray
from jax_brcd.losses.memory import contrast_with_memories, unit_rows
from jax_brcd.losses.numbers import checked_temperature

OFFSET = 1e-6  # added to every relation, so that an anchor's relation to itself has a direction
# Squared distances of unit rows below this are rounding of float32 products
SAME_SQUARE = 1e-5


def relation_cosines(
    rows: Float[Array, "batch width"], anchors: Float[Array, "anchors width"], choices: Float[Array, "batch choices width"]
) -> Float[Array, "batch anchors choices"]:
    """Cosine between the relations row - anchor and choice - anchor of unit rows, each offset by 1e-6 an entry.

    The relations of the choices, a tensor of batch * anchors * choices * width entries, are never held: their products and
    norms follow from those of the rows. A choice that is the anchor itself has the direction of the offset.
    """
    relations = unit_rows(rows[:, None, :] - anchors[None, :, :] + OFFSET)
    shifted = anchors - OFFSET
    products = (jnp.einsum("baw,bcw->bac", relations, choices, precision=Precision.HIGHEST)
                - jnp.einsum("baw,aw->ba", relations, shifted, precision=Precision.HIGHEST)[:, :, None])
    squares = (jnp.sum(choices * choices, axis=-1)[:, None, :] + jnp.sum(shifted * shifted, axis=-1)[None, :, None]
               - 2.0 * jnp.einsum("bcw,aw->bac", choices, shifted, precision=Precision.HIGHEST))
    same = squares < SAME_SQUARE
    along_offset = jnp.sum(relations, axis=-1, keepdims=True) / jnp.sqrt(jnp.asarray(rows.shape[-1], rows.dtype))
    return jnp.where(same, along_offset, products / jnp.sqrt(jnp.where(same, 1.0, squares)))


def crcd_loss(
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
    """CRD's estimation over relations: every image of the batch is an anchor (CRCD, equations 4 to 11).

    Arguments, returns and refusals as `crd_loss`.
    """
    temperature = checked_temperature(temperature)
    indices = jnp.asarray(indices)
    choices = jnp.concatenate([indices[:, None], negatives], axis=1)
    pairs = None if valid is None else (valid[:, None] & valid[None, :]).reshape(-1)

    def scores_of(rows, bank):
        cosines = relation_cosines(rows, bank[indices], bank[choices])
        return jnp.exp(cosines / temperature).reshape(-1, choices.shape[1])

    return contrast_with_memories(scores_of, student_rows, teacher_rows, memory, indices, momentum=momentum, valid=valid,
                                  counted=pairs)
