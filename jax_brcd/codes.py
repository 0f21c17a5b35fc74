"""Hash codes: the straight-through sign of logits, and their packing into bits (method.md, "Notation")."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8


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


def pack_codes(codes: Num[np.ndarray | Array, "n bits"]) -> UInt8[np.ndarray, "n bytes"]:
    """Bits of codes, eight a byte, the first code the highest bit; +1 is 1, -1 and 0 are 0. The last byte is zero-padded."""
    return np.packbits(np.asarray(codes) > 0, axis=1)


def unpack_codes(packed: UInt8[np.ndarray, "n bytes"], bits: int) -> Float[np.ndarray, "n bits"]:
    """The {-1, +1} codes of `bits` bits that were packed."""
    return np.where(np.unpackbits(packed, axis=1, count=bits), 1.0, -1.0).astype(np.float32)
