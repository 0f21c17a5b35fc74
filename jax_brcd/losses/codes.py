"""Hash codes: the straight-through sign of logits (docs/method.md, "Notation")."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.custom_jvp
def hash_codes(logits: Float[Array | np.ndarray, "*batch bits"]) -> Float[Array, "*batch bits"]:
    """Codes sign(sigmoid(logits) - 0.5) in {-1, 0, +1}.

    The gradient passes the sign unchanged, so d code / d logit = p (1 - p) with p = sigmoid(logit).
    """
    return jnp.sign(jax.nn.sigmoid(logits) - 0.5)


@hash_codes.defjvp
def _hash_codes_jvp(primals, tangents):
    (logits,), (tangent,) = primals, tangents
    p = jax.nn.sigmoid(logits)
    return jnp.sign(p - 0.5), tangent * p * (1 - p)
