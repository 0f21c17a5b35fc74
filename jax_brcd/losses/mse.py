"""Regression of what the teacher says: logits, or features as FitNets' hints (Romero et al., ICLR 2015)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_brcd.losses.contrastive import AnyArray, masked_mean


def mse_loss(
    student: Float[AnyArray, "batch width"], teacher: Float[AnyArray, "batch width"], *,
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Mean squared difference over all entries; the gradient flows through the student's alone.

    Args:
        valid: images that count; None for all.
    """
    errors = jnp.square(student - jax.lax.stop_gradient(jnp.asarray(teacher)))
    return masked_mean(jnp.mean(errors, axis=-1), valid)
