"""BRCD's distillation term: bit-masked robust contrast of student and teacher (docs/method.md, "The student objective")."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, ScalarLike

from jax_brcd.clusters.kmeans import check_variant, nearest_center
from jax_brcd.losses.contrastive import AnyArray, normalise, paired_cross_entropy
from jax_brcd.losses.numbers import checked_temperature


def brcd_distillation_loss(
    student_codes: Float[AnyArray, "batch bits"],
    teacher_codes_i: Float[AnyArray, "batch bits"],
    teacher_codes_j: Float[AnyArray, "batch bits"],
    clusters: Int[AnyArray, "batch"],
    centers: Float[AnyArray, "clusters bits"],
    bit_mask: Num[AnyArray, "clusters bits"],
    *,
    alpha: ScalarLike = 0.8,
    temperature: ScalarLike = 0.3,
    robust: bool = True,
    mask_bits: bool = True,
    remove_false_negatives: bool = False,
    variant: str = "corrected",
    valid: Bool[AnyArray, "batch"] | None = None,
    block_rows: int | None = None,
) -> Float[Array, ""]:
    """Contrast of student codes (view i) with teacher codes (view j), anchored in individual space.

    Args:
        student_codes: the student's codes of view i; the gradient flows through them alone.
        teacher_codes_i, teacher_codes_j: the teacher's codes of both views.
        clusters: each image's cluster. centers: mean code of each cluster. bit_mask: 1 where a cluster's bit steers.
        alpha: weight of the individual-space term; 1 leaves the structural positives out.
        robust: drop structural positives whose view j falls to another cluster, and remove false negatives.
        mask_bits: multiply codes by the mask of the image's cluster before they are compared.
        remove_false_negatives: remove negatives of the row's own cluster without the rest of `robust`.
        variant: "corrected" (as meant) or "released" (as the published code computes it; docs/method.md's last table).
        valid: images that count; None for all. block_rows: of `paired_cross_entropy`.

    Raises:
        InputError: for an unknown variant and a temperature that is not above 0.
    """
    check_variant(variant)
    temperature = checked_temperature(temperature)
    clusters, centers, bit_mask = map(jnp.asarray, (clusters, centers, bit_mask))
    teacher_codes_i, teacher_codes_j = jax.lax.stop_gradient((jnp.asarray(teacher_codes_i), jnp.asarray(teacher_codes_j)))
    mask = bit_mask[clusters] if mask_bits else 1.0
    student, teacher = student_codes * mask, teacher_codes_j * mask

    anchor = jnp.sum(normalise(student_codes) * normalise(teacher_codes_i), axis=-1) / temperature
    structural = jnp.sum(normalise(student) * normalise(teacher), axis=-1) / temperature
    weight = jnp.full(anchor.shape, alpha, anchor.dtype)
    row_clusters = column_clusters = None
    if robust:
        clusters_j = nearest_center(teacher if variant == "released" else teacher_codes_j, centers)
        weight = jnp.where(clusters_j != clusters, 1.0, weight)
        column_clusters = jnp.concatenate([clusters, clusters_j])
        row_clusters = jnp.tile(clusters, 2) if variant == "released" else column_clusters
    elif remove_false_negatives:
        row_clusters = column_clusters = jnp.tile(clusters, 2)

    positive = weight * anchor + (1.0 - weight) * structural
    return paired_cross_entropy(
        jnp.concatenate([student, teacher]),
        temperature,
        positive_logits=jnp.tile(positive, 2),
        row_clusters=row_clusters,
        column_clusters=column_clusters,
        valid=None if valid is None else jnp.tile(valid, 2),
        block_rows=block_rows,
    )
