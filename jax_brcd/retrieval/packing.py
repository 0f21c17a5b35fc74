"""Codes as bits: what may stand for codes, how they are packed, and packed codes that know their length and code space."""

import dataclasses
import operator
import os
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, atomic_path, parse_json

SLAB = 1 << 16  # rows of a code matrix that are looked at together, so that little is needed beside it
FORMAT = "jax_brcd packed codes"
TENSOR = "codes"

# A matrix (n, bits) of -1, 0, +1 or of bool. Dtype, shape and values are checked here, which says more than a shape checker
CodeMatrix = Shaped[np.ndarray | Array, "..."]


@dataclasses.dataclass(frozen=True, eq=False)
class PackedCodes:
    """Codes of many images as bits, eight a byte. A bit is 1 for the code +1, that is where the logit is above 0.

    Indexing with a slice, positions or a mask gives the packed codes of those rows, and with a number those of the one row;
    nothing is copied where NumPy copies nothing, so the rows of a memory-mapped file stay on disk until they are used.

    Attributes:
        packed: uint8 (n, ceil(bits / 8)), read only; the first code is the highest bit and the last byte ends in zeros.
        bits: the length of a code. space: the id of the code space, or None where it is not known.

    Raises:
        InputError: where the bytes are not those of codes of `bits` bits.
    """

    packed: Shaped[np.ndarray | Array, "..."]
    bits: int
    space: str | None = None

    def __post_init__(self):
        bits, packed = _length(self.bits), np.asarray(self.packed)
        if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != -(-bits // 8):
            raise InputError(f"packed codes of {bits} bits are a uint8 matrix of {-(-bits // 8)} bytes a row, not "
                             f"{packed.dtype} {packed.shape}; pack_codes makes them, and the length must be that of the codes")
        if bits % 8 and (packed[:, -1] & (0xFF >> bits % 8)).any():
            raise InputError(f"packed codes of {bits} bits end in {-bits % 8} zero bits, but some are set; give the length "
                             "that they were packed with")
        packed = packed.view()
        packed.flags.writeable = False
        for name, value in (("packed", packed), ("bits", bits)):
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, codes: "Codes", space: str | None = None) -> "PackedCodes":
        """Packs a code matrix (see `pack_codes`); packed codes come back as they are, in `space` where it is given.

        Raises:
            InputError: for what is not codes, and for packed codes of another space.
        """
        if not isinstance(codes, PackedCodes):
            positive, _, bits = code_bits(codes)
            return cls(positive, bits, space)
        if space is None or space == codes.space:
            return codes
        packed = cls(codes.packed, codes.bits, space)
        check_spaces(codes, packed)
        return packed

    @classmethod
    def concatenate(cls, parts: Sequence["PackedCodes"]) -> "PackedCodes":
        """The codes of all parts in turn. Their space is the one they share, and not known where that of a part is not.

        Raises:
            InputError: for no parts, and for parts of different lengths or spaces.
        """
        if not parts:
            raise InputError("no codes to put together; give at least one part")
        known = [part for part in parts if part.space is not None]
        for part in parts:
            if part.bits != parts[0].bits:
                raise InputError(f"codes of {parts[0].bits} bits cannot be put together with codes of {part.bits} bits")
            if known:
                check_spaces(known[0], part)
        return cls(np.concatenate([part.packed for part in parts]), parts[0].bits,
                   known[0].space if len(known) == len(parts) else None)

    def unpack(self) -> Float[np.ndarray, "n bits"]:
        """The codes as {-1, +1}, float32."""
        return np.where(np.unpackbits(self.packed, axis=1, count=self.bits), np.float32(1), np.float32(-1))

    def save(self, path: os.PathLike | str) -> None:
        """Writes one safetensors file, whole or not at all: the bytes as `codes`, length and space in its metadata.

        Raises OSError where it cannot be written.
        """
        import safetensors.numpy

        about = {"format": FORMAT, "bits": str(self.bits)} | ({} if self.space is None else {"space": self.space})
        with atomic_path(as_path(path)) as temporary:
            safetensors.numpy.save_file({TENSOR: np.ascontiguousarray(self.packed)}, temporary, metadata=about)

    @classmethod
    def load(cls, path: os.PathLike | str, *, mapped: bool = False) -> "PackedCodes":
        """Reads what `save` wrote.

        Args:
            mapped: leave the codes on disk and map them into memory, so that opening costs nothing and pages come when used.

        Raises:
            InputError: for a file that does not hold packed codes. OSError: where there is none.
        """
        path = as_path(path)
        with open(path, "rb") as file:  # once, as `save` may put another file in its place at any time
            bits, space, shape, begin = _read_header(file, path)
            if mapped and shape[0]:
                return cls(np.memmap(file, np.uint8, "r", begin, shape), bits, space)
            file.seek(begin)
            return cls(np.fromfile(file, np.uint8, shape[0] * shape[1]).reshape(shape), bits, space)

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, rows: Any) -> "PackedCodes":
        if isinstance(rows, tuple):
            raise InputError("packed codes are indexed by rows alone; unpack them to take bits")
        return PackedCodes(self.packed[rows if isinstance(rows, slice) else self._positions(rows)], self.bits, self.space)

    def _positions(self, rows: Any) -> slice | np.ndarray:
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape == (len(self),):
            return rows
        if rows.shape == (0,) and rows.dtype != bool:
            return rows.astype(np.intp)  # NumPy takes an empty list for floats
        if rows.ndim > 1 or not np.issubdtype(rows.dtype, np.integer):
            raise InputError(f"rows of packed codes are named by a number, a slice, positions or a mask of {len(self)} rows")
        return rows if rows.ndim else _row(int(rows), len(self))

    def __repr__(self) -> str:
        return f"PackedCodes({len(self)} codes of {self.bits} bits, space={self.space!r})"


Codes = PackedCodes | CodeMatrix


class CodeBits(NamedTuple):
    """Bits of codes, packed: `positive` where a code is +1, and `decided` where it is not 0 (None where none is)."""

    positive: UInt8[np.ndarray, "n bytes"]
    decided: UInt8[np.ndarray, "n bytes"] | None
    bits: int


def code_bits(codes: Codes) -> CodeBits:
    """The bits of codes of any kind. Those of packed codes are not copied.

    Raises:
        InputError: for anything but packed codes, a matrix of -1, 0 and +1 with at least one -1 or no 0, or a bool matrix.
    """
    if isinstance(codes, PackedCodes):
        return CodeBits(codes.packed, None, codes.bits)
    codes = np.asarray(codes)
    if codes.ndim != 2 or not (codes.dtype == bool or is_real(codes)):
        raise InputError(f"codes are a matrix (n, bits) of -1, 0 and +1, or of bool, not {codes.dtype} {codes.shape}")
    bits = _length(codes.shape[1])
    if codes.dtype == bool:
        return CodeBits(pack_bits(codes), None, bits)
    return _signed_bits(codes, bits)


def _signed_bits(codes: Shaped[np.ndarray, "n bits"], bits: int) -> CodeBits:
    """The bits of a matrix of numbers, in slabs."""
    positive, decided = (np.empty((len(codes), -(-bits // 8)), np.uint8) for _ in range(2))
    has_zeros = has_negatives = False
    for begin in range(0, len(codes), SLAB):
        rows = slice(begin, begin + SLAB)
        above, below = codes[rows] == 1, codes[rows] == -1
        set_apart = above | below
        if not (set_apart | (codes[rows] == 0)).all():
            raise InputError("codes are a matrix (n, bits) of -1, 0 and +1, but this one holds other values; of logits, give "
                             "logits > 0")
        positive[rows], decided[rows] = pack_bits(above), pack_bits(set_apart)
        has_zeros |= not set_apart.all()
        has_negatives |= bool(below.any())
    if has_zeros and not has_negatives:
        raise InputError("these codes are 0 and 1 where -1 and +1 are meant: a 0 among codes is an undecided bit; give "
                         "2 * codes - 1 (of a signed type), or codes.astype(bool)")
    return CodeBits(positive, decided if has_zeros else None, bits)


def pack_bits(bits: Bool[np.ndarray, "n bits"]) -> UInt8[np.ndarray, "n bytes"]:
    """Eight bits a byte, the first the highest; the last byte is zero-padded."""
    return np.packbits(bits, axis=1)


def pack_codes(codes: CodeMatrix) -> UInt8[np.ndarray, "n bytes"]:
    """Bits of codes, eight a byte, the first code the highest bit; +1 and True are 1, -1, 0 and False are 0.

    The last byte is zero-padded.

    Raises:
        InputError: for anything but a matrix (n, bits) of -1, 0 and +1, or of bool. A matrix of 0 and 1 is none.
    """
    return code_bits(codes).positive


def check_spaces(a: Any, b: Any) -> None:
    """Raises InputError where the code spaces of both are known and differ.

    Args:
        a, b: anything that may have a `.space`: packed codes, an index, a store, an encoder. A matrix has none.
    """
    spaces = [getattr(each, "space", None) for each in (a, b)]
    if None not in spaces and spaces[0] != spaces[1]:
        raise InputError(f"codes of the space '{spaces[0]}' cannot be compared with codes of the space '{spaces[1]}': their "
                         "bits mean different things; encode both by encoders of one space")


def is_real(values: np.ndarray) -> bool:
    """Whether an array holds integers or floats of any width, JAX's own among them."""
    return any(jnp.issubdtype(values.dtype, kind) for kind in (np.integer, np.floating))


def whole_number(value: Any, field: str, *, low: int | None = None) -> int:
    """`value` as an int of at least `low`. Raises InputError for a bool, a float, an array and anything smaller."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise InputError("not a whole number; give one such as 10", field=field, value=value)
    if low is not None and number < low:
        raise InputError(f"too small; give {low} or more", field=field, value=value)
    return number


def _length(bits: Any) -> int:
    return whole_number(bits, "bits", low=1)


def _row(number: int, rows: int) -> slice:
    """The one row of that number, counted from either end. IndexError ends a loop over the rows."""
    if not -rows <= number < rows:
        raise IndexError(f"row {number} of {rows} packed codes")
    return slice(number % rows, number % rows + 1)


def _read_header(file: BinaryIO, path: os.PathLike) -> tuple[int, str | None, tuple[int, int], int]:
    """Length, space, shape and the place of the bytes in a file that `PackedCodes.save` wrote."""
    size = os.fstat(file.fileno()).st_size
    start = 8 + int.from_bytes(file.read(8), "little")
    try:
        header = parse_json(file.read(start - 8)) if 8 < start <= size else {}
        about, tensor = header["__metadata__"], header[TENSOR]
        (rows, width), (begin, end) = tensor["shape"], tensor["data_offsets"]
        whole = min(rows, width) >= 0 and end - begin == rows * width and start + end == size
        if about["format"] != FORMAT or tensor["dtype"] != "U8" or not whole:
            raise ValueError
        return int(about["bits"]), about.get("space"), (rows, width), start + begin
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a whole file of packed codes, as PackedCodes.save and `save_codes` write; an "
                         "encoder is given by its folder") from error
