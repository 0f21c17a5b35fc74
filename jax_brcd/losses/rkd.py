"""Relational knowledge distillation: distances between pairs and angles between triples of a batch (Park et al., CVPR 2019)."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, ScalarLike

from jax_brcd.losses.contrastive import AnyArray, masked_mean

SQUARE_EPSILON = 1e-12


def relative_distances(
    codes: Float[Array, "batch bits"], valid: Bool[Array, "batch"]
) -> Float[Array, "batch batch"]:
    """Euclidean distances over the mean distance of two different valid images; 0 on the diagonal."""
    squares = jnp.sum(codes * codes, axis=-1)
    squares = squares[:, None] + squares[None, :] - 2.0 * codes @ codes.T
    others = ~jnp.eye(len(codes), dtype=bool)
    distances = jnp.where(others, jnp.sqrt(jnp.maximum(squares, SQUARE_EPSILON)), 0.0)
    pairs = others & valid[:, None] & valid[None, :]
    mean = masked_mean(distances, pairs)
    return distances / jnp.where(mean > 0, mean, 1.0)


def angles(codes: Float[Array, "batch bits"]) -> Float[Array, "batch batch batch"]:
    """Cosine at image a between the directions to images b and c, as [a, b, c].

    Two equal codes have no direction: their cosine is 0 and passes no gradient, because codes of few bits are often equal
    and the limit's gradient is infinite.
    """
    difference = codes[None, :, :] - codes[:, None, :]
    squares = jnp.sum(difference * difference, axis=-1, keepdims=True)
    distinct = squares > SQUARE_EPSILON**2
    direction = jnp.where(distinct, difference / jnp.sqrt(jnp.where(distinct, squares, 1.0)), 0.0)
    return jnp.einsum("abk,ack->abc", direction, direction)


def rkd_loss(
    student_codes: Float[AnyArray, "batch bits"],
    teacher_codes: Float[AnyArray, "batch width"],
    distance_weight: ScalarLike = 25.0,
    angle_weight: ScalarLike = 50.0,
    *,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Weighted Huber losses between the student's and the teacher's relative distances and angles (RKD, equations 5 to 9).

    Args:
        distance_weight, angle_weight: of the means over all pairs and all triples.
        valid: images that count; None for all.
    """
    teacher_codes = jax.lax.stop_gradient(jnp.asarray(teacher_codes))
    valid = jnp.ones(len(teacher_codes), bool) if valid is None else jnp.asarray(valid)
    pairs = valid[:, None] & valid[None, :]
    distance = optax.losses.huber_loss(relative_distances(student_codes, valid), relative_distances(teacher_codes, valid))
    angle = optax.losses.huber_loss(angles(student_codes), angles(teacher_codes))
    return (distance_weight * masked_mean(distance, pairs)
            + angle_weight * masked_mean(angle, pairs[:, :, None] & valid[None, None, :]))
