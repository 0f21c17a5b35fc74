"""Packing of codes into bits."""

import numpy as np
from jaxtyping import Array, Float, Num, UInt8


def pack_codes(codes: Num[np.ndarray | Array, "n bits"]) -> UInt8[np.ndarray, "n bytes"]:
    """Bits of codes, eight a byte, the first code the highest bit; +1 is 1, -1 and 0 are 0. The last byte is zero-padded."""
    return np.packbits(np.asarray(codes) > 0, axis=1)


def unpack_codes(packed: UInt8[np.ndarray, "n bytes"], bits: int) -> Float[np.ndarray, "n bits"]:
    """The {-1, +1} codes of `bits` bits that were packed."""
    return np.where(np.unpackbits(packed, axis=1, count=bits), 1.0, -1.0).astype(np.float32)
