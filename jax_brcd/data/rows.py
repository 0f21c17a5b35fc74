"""Rows of embeddings, one an image: what they may be and what they become, float32."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from jax_brcd.runtime.errors import InputError

SLAB = 1 << 14  # rows that are looked at together, so that little is needed beside a table on disk
BROKEN = "holds NaN, infinity or numbers too large for float32"
WANTED = "give numbers of shape (images, width)"


def check_matrix(rows: Any, what: str) -> None:
    """Raises InputError for what is no matrix of real numbers; `what` it is begins the line."""
    if rows.dtype.kind == "O":
        raise InputError(f"{what}: objects and no numbers (rows of different lengths, say); {WANTED}")
    if rows.dtype.kind == "V" and rows.dtype.names is None and not is_number(rows.dtype):
        raise InputError(f"{what}: raw bytes of type {rows.dtype} (NumPy's files forget what bfloat16 is); save it as float32, or "
                         "as safetensors")
    if not is_number(rows.dtype):
        raise InputError(f"{what}: {rows.dtype} and no real numbers; {WANTED}")
    if rows.ndim != 2:
        axes = "1 axis" if rows.ndim == 1 else f"{rows.ndim} axes"
        raise InputError(f"{what}: shape {tuple(rows.shape)}, {axes} instead of 2; {WANTED}")
    if rows.shape[1] == 0:
        raise InputError(f"{what}: shape {tuple(rows.shape)}, rows without numbers; {WANTED}")


def is_number(dtype: np.dtype) -> bool:
    """Whether values of a type are real numbers; those of machine learning (bfloat16) that NumPy only knows by extension too."""
    if dtype.kind in "biuf":
        return True
    import ml_dtypes

    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return dtype.kind == "V" and dtype.names is None


def float_rows(rows: Shaped[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
    """Rows of any real type as float32, which rounds float64 and large whole numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(rows, np.float32)


def broken_rows(rows: Float[np.ndarray, "rows width"]) -> np.ndarray:
    """Positions of rows that hold NaN or infinity."""
    return np.flatnonzero(~np.isfinite(rows).all(axis=1))


def as_rows(rows: Any, width: int) -> Float[np.ndarray, "rows width"]:
    """Rows as users give them to an encoder, as they are but for their type's check: an array, a list of rows, or one row.

    Raises:
        InputError: for what is no matrix of numbers with rows of `width`.
    """
    try:
        array = rows if isinstance(rows, np.ndarray) else np.asarray(rows)
    except ValueError:
        raise InputError(f"rows of different lengths; give rows of {width} numbers each") from None
    if array.shape == (0,):
        array = np.zeros((0, width), np.float32)
    if array.shape == (width,):
        array = array[None]
    check_matrix(array, "rows")
    if array.shape[1] != width:
        raise InputError(f"rows of {array.shape[1]} numbers; this encoder takes {width}, those of the table that it was made of")
    return array


def one_by_one(rows: Shaped[np.ndarray, "rows width"]) -> Iterator[Float[np.ndarray, "1 width"]]:
    """Each row as float32; of rows on disk a slab is in memory at a time. Raises InputError for NaN and infinity."""
    for begin in range(0, len(rows), SLAB):
        slab = float_rows(rows[begin : begin + SLAB])
        broken = broken_rows(slab)
        if len(broken):
            raise InputError(f"row {begin + broken[0]}, counted from 0, {BROKEN}; mend it, or leave it out")
        yield from (slab[number : number + 1] for number in range(len(slab)))
