"""Short names of contents: two things share a digest where they are the same values, and otherwise never."""

import dataclasses
import hashlib
import mmap
import os
import time
import weakref
from typing import Any

import jax
import numpy as np

from jax_brcd.runtime.errors import InputError

PIECE_BYTES = 2**24
LENGTH = 20  # hexadecimal digits
LATER = "later"  # marks a dataclass field, see `later`


def digest(*parts: object) -> str:
    """A digest of strings, numbers, None, containers and dataclasses of these, and arrays.

    An array counts by its type, its shape and its values in order, wherever and however it lies: a slice of a memory-mapped
    file, a copy of it and a transposed array of the same values are one. Memory-mapped arrays may be larger than memory.

    Raises:
        InputError: for arrays of objects, and for values that are named only by where they lie in memory.
    """
    sha = hashlib.sha256()
    for part in parts:
        sha.update(_content(part))
    return sha.hexdigest()[:LENGTH]


def beyond_defaults(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass instance that differ from their defaults: what tells it apart, whatever is added later."""
    return {field.name: value for field in dataclasses.fields(settings)
            if (value := getattr(settings, field.name)) != field.default}


def later(default: Any) -> Any:
    """A dataclass field that was added after digests were made: at its default it is left out of them, so that they stay the same."""
    return dataclasses.field(default=default, metadata={LATER: True})


def _content(part: Any) -> bytes:
    """What tells `part` from every other value: its kind, its size, and either itself or a digest of it."""
    if isinstance(part, jax.Array) and jax.dtypes.issubdtype(part.dtype, jax.dtypes.prng_key):
        return _field("key", f"{jax.random.key_impl(part)}".encode() + _content(jax.random.key_data(part)))
    if isinstance(part, np.ndarray | np.generic | jax.Array):
        return _field("array", _array_digest(part))
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        names = [field.name for field in dataclasses.fields(part)
                 if not (LATER in field.metadata and getattr(part, field.name) == field.default)]
        return _field(type(part).__qualname__, *(_content((name, getattr(part, name))) for name in names))
    if isinstance(part, dict):
        return _field("dict", *(_content(item) for item in part.items()))
    if isinstance(part, list | tuple):
        return _field("sequence", *map(_content, part))
    if part is None or isinstance(part, bool | int | float | complex | str | bytes | os.PathLike):
        kind = "path" if isinstance(part, os.PathLike) else type(part).__name__
        return _field(kind, (os.fspath(part) if kind == "path" else repr(part)).encode())
    raise InputError(f"a {type(part).__name__} has no digest; give strings, numbers, arrays or dataclasses of these")


def _field(kind: str, *contents: bytes) -> bytes:
    """Lengths go before contents, so that no two lists of contents run together to the same bytes."""
    return b"".join([f"{kind} {len(contents)}:".encode(), *(b"%d:%b" % (len(content), content) for content in contents)])


def _array_digest(array: np.ndarray | np.generic | jax.Array) -> bytes:
    place = _place(array) if isinstance(array, np.memmap) else None
    if place is None:
        return _values_digest(np.asarray(array))
    mapping, view = place
    kept = _KEPT.setdefault(mapping, {})
    if view not in kept:
        kept[view] = _values_digest(array)
    return kept[view]


def _values_digest(array: np.ndarray) -> bytes:
    if array.dtype.hasobject:
        raise InputError("an array of objects has no digest; give numbers or strings of one type")
    sha = hashlib.sha256(f"{array.dtype.str}{array.dtype}{array.shape}".encode())
    for piece in _pieces(array):
        sha.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    return sha.digest()


# Large files are read once a run. What is kept lives as long as the mapping that it was read through
_KEPT: weakref.WeakKeyDictionary[mmap.mmap, dict[tuple, bytes]] = weakref.WeakKeyDictionary()
SETTLED_SECONDS = 2.0  # a file that changed later than this may change again without its times telling


def _place(array: np.memmap) -> tuple[mmap.mmap, tuple] | None:
    """The mapping an array lies in, and what of it the array sees; None where that may change or is no file of its own."""
    root = array
    while isinstance(root.base, np.memmap):
        root = root.base
    if array.flags.writeable or not isinstance(root.base, mmap.mmap) or root.filename is None:
        return None
    try:
        file = os.stat(root.filename)
    except OSError:
        return None
    if time.time() - file.st_ctime < SETTLED_SECONDS:
        return None
    begin = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return root.base, (begin, array.strides, array.shape, array.dtype, file.st_ino, file.st_size, file.st_mtime_ns,
                       file.st_ctime_ns)


def _pieces(array: np.ndarray):
    """The array in order, some rows at a time, so that a copy in that order is never larger than a piece."""
    if array.nbytes <= PIECE_BYTES or array.ndim == 0 or not len(array):
        yield array
        return
    rows = max(1, PIECE_BYTES // max(1, array[0].nbytes))
    for begin in range(0, len(array), rows):
        yield array[begin : begin + rows]
