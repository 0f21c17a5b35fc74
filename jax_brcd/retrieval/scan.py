"""Exact Hamming search by looking at every code, in the order they lie in, from packed bits as they are.

A million distances are held at once by each thread, or a few more, so a search needs little memory beside the codes, which may
lie in a file that is mapped. For a few queries NumPy counts the bits of whole words, at the speed of memory and with nothing to
compile; for many XLA does, which keeps no words in between and so is faster. The near ones are then picked for all queries of a
task together: a look at each query's would hold the interpreter longer than counting (docs/stores.md, "Speed", has what was
measured).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer, UInt, UInt8

from jax_brcd.retrieval.packing import CodeBits
from jax_brcd.retrieval.ranking import on_all_cores

BLOCK = 1 << 16  # codes that are compared at once: their words stay in a core's own cache
QUERIES_A_TASK, FEW_A_TASK = 64, 8  # of a thread, by XLA and by NumPy
BLOCKS_A_LOOK = 16  # of distances that NumPy counts before the near ones are picked, since Python is slow beside it
FEW = 32  # queries that NumPy is faster for
WORD = 8  # bytes of the widest word that NumPy counts in
SLACK = 64  # codes of a query beyond twice k that are kept before the nearest are picked from them
GROUP = 64  # codes whose smallest distance says whether they are looked at
FOLD = 1 << 10  # groups of groups that say where the search begins to look
HEAD = 8  # codes for each that is asked for that say so where there are not enough groups
POSITION = 40  # bits of a position, more than memory has codes

Found = tuple[Int[np.ndarray, "found"], Int[np.ndarray, "found"]]  # distances in bits int32, positions int64
Mask = Bool[np.ndarray, "items"] | None


@dataclasses.dataclass(frozen=True)
class Scan:
    """Codes as words, one row a word. Where a file is mapped and a code is one word, they are the file's own bytes."""

    bits: int
    words: UInt[np.ndarray, "words items"]

    @classmethod
    def of(cls, codes: CodeBits) -> "Scan":
        """Codes without zeros, ready to be searched."""
        return cls(codes.bits, narrowest_words(codes.positive))

    def __len__(self) -> int:
        return self.words.shape[1]

    def packed(self) -> UInt8[np.ndarray, "items bytes"]:
        """The bytes of the codes again."""
        return np.ascontiguousarray(self.words.T).view(np.uint8)[:, : -(-self.bits // 8)]

    def nearest(self, queries: CodeBits, k: int, mask: Mask = None) -> list[Found]:
        """Of each query the k nearest codes (of those in `mask`), nearest first, ties by position; fewer where there are fewer."""
        return self._map(queries, functools.partial(_Nearest, self.bits, k), mask)

    def within(self, queries: CodeBits, radius: int, mask: Mask = None) -> list[Found]:
        """Of each query all codes (of those in `mask`) at no more than `radius` bits, nearest first, ties by position."""
        return self._map(queries, functools.partial(_Within, self.bits, radius), mask)

    def _map(self, queries: CodeBits, collector: Callable[[int], "_Within"], mask: Mask) -> list[Found]:
        """What a new collector finds for a few queries at a time, on all cores; one query alone on one."""
        words = narrowest_words(queries.positive)
        counter, together = (_ByNumPy, FEW_A_TASK) if words.shape[1] <= FEW else (_ByXLA, QUERIES_A_TASK)

        def task(rows: range, lent: _ByNumPy | _ByXLA) -> list[Found]:
            own, asked = collector(len(rows)), words[:, rows.start : rows.stop]
            for begin in range(0, len(self), lent.codes):
                allowed = None if mask is None else mask[begin : begin + lent.codes]
                own.look(begin, lent.distances(self.words[:, begin : begin + lent.codes], asked, allowed))
            return own.found()

        parts = on_all_cores(task, words.shape[1], together, lambda: counter(self.words.dtype, self.bits, words.shape[1]))
        return [found for part in parts for found in part]


def _distance_type(bits: int) -> np.dtype:
    """The narrowest type for distances and, above all of them, a bound that none reaches."""
    return np.min_scalar_type(bits + 1)


def _hidden(allowed: Bool[np.ndarray, "codes"], dtype: np.dtype) -> UInt[np.ndarray, "codes"]:
    """0, or all ones for codes that are not allowed: or-ed to their distances these are the largest number there is."""
    return np.subtract(allowed, 1, dtype=dtype)


class _ByNumPy:
    """Distances of a query and a block at a time; the memory for them is one thread's own.

    Attributes:
        codes: how many are looked at together, fewer for more queries, so that their distances take as much memory.
    """

    def __init__(self, word: np.dtype, bits: int, queries: int):
        together = min(queries, FEW_A_TASK)
        self.codes = max(1, BLOCKS_A_LOOK // together) * BLOCK
        self.differ, self.ones = np.empty(BLOCK, word), np.empty(BLOCK, np.uint8)
        self.total = np.empty((together, self.codes), _distance_type(bits))

    def distances(
        self, words: UInt[np.ndarray, "words codes"], queries: UInt[np.ndarray, "words queries"], allowed: Mask
    ) -> UInt[np.ndarray, "queries codes"]:
        """In bits, of `codes` at most, and of those that are not allowed the largest number; lent until the next call."""
        found = self.total[: queries.shape[1], : words.shape[1]]
        for begin in range(0, words.shape[1], BLOCK):
            for query, whole in zip(queries.T, found, strict=True):
                self._count(words[:, begin : begin + BLOCK], query, whole[begin : begin + BLOCK])
        if allowed is not None:
            np.bitwise_or(found, _hidden(allowed, found.dtype), out=found)
        return found

    def _count(
        self, block: UInt[np.ndarray, "words codes"], query: UInt[np.ndarray, "words"], total: UInt[np.ndarray, "codes"]
    ) -> None:
        differ = self.differ[: len(total)]
        np.bitwise_count(np.bitwise_xor(block[0], query[0], out=differ), out=total)
        for codes, word in zip(block[1:], query[1:], strict=True):
            ones = np.bitwise_count(np.bitwise_xor(codes, word, out=differ), out=self.ones[: len(total)])
            np.add(total, ones, out=total)


class _ByXLA:
    """Distances of all queries of a task and a block at once."""

    def __init__(self, word: np.dtype, bits: int, queries: int):
        self.codes, self.type = BLOCK, _distance_type(bits)

    def distances(
        self, block: UInt[np.ndarray, "words codes"], queries: UInt[np.ndarray, "words queries"], allowed: Mask
    ) -> UInt[np.ndarray, "queries codes"]:
        """As by NumPy. Codes are padded to a whole block, queries to a whole task, so that no number of them compiles anew."""
        count, codes = queries.shape[1], block.shape[1]
        hidden = np.zeros(BLOCK, self.type)
        if allowed is not None:
            hidden[:codes] = _hidden(allowed, self.type)
        found = _distances(_narrow(queries, QUERIES_A_TASK), _narrow(block, BLOCK), hidden)
        return np.asarray(found)[:count, :codes]


@jax.jit
def _distances(
    queries: UInt[Array, "words queries"], codes: UInt[Array, "words codes"], hidden: UInt[Array, "codes"]
) -> UInt[Array, "queries codes"]:
    ones = jax.lax.population_count(queries[:, :, None] ^ codes[:, None, :]).astype(hidden.dtype)
    return jnp.sum(ones, axis=0, dtype=hidden.dtype) | hidden


def _narrow(words: UInt[np.ndarray, "words n"], size: int) -> UInt[np.ndarray, "halves size"]:
    """Words of no more than JAX's 32 bits, `size` of them a row."""
    halves = max(1, words.dtype.itemsize // 4)
    narrow = np.zeros((len(words), halves, size), np.uint32 if halves > 1 else words.dtype)
    narrow[:, :, : words.shape[1]] = np.ascontiguousarray(words).view(narrow.dtype).reshape(len(words), -1, halves).swapaxes(1, 2)
    return narrow.reshape(-1, size)


class _Within:
    """Collects of each query of a task all codes at no more than some bits."""

    most: int | None = None  # codes of a query that are asked for

    def __init__(self, bits: int, radius: int, queries: int):
        self.bits, self.queries = bits, queries
        self.bound = np.full(queries, radius + 1, _distance_type(bits))  # of each query; what is looked for is nearer
        self.kept: list[Int[np.ndarray, "some"]] = []

    def look(self, begin: int, distances: UInt[np.ndarray, "queries codes"]) -> None:
        """Sees the next codes, which begin at that position."""
        smallest = _groups(distances).min(axis=1)
        self._tighten(smallest, distances)
        rows, columns = _nearer(distances, smallest, self.bound, self.most)
        if len(rows):
            self.kept.append(as_number(rows, distances[rows, columns], columns + begin, self.bits))

    def found(self) -> list[Found]:
        """Of each query distances and positions, nearest first."""
        return in_order(self.kept, self.queries, self.bits)

    def _tighten(self, smallest: UInt[np.ndarray, "queries groups"], distances: UInt[np.ndarray, "queries codes"]) -> None:
        """Lowers the bounds by what is seen next."""


class _Nearest(_Within):
    """Collects the k nearest codes. Once k are found a later one must be nearer than the last of them, so ties are by position."""

    def __init__(self, bits: int, k: int, queries: int):
        super().__init__(bits, bits if k else -1, queries)
        self.most, self.counted, self.full = k, 0, not k
        self.table = np.zeros((queries, bits + 1), np.int64)  # how many codes were kept at each distance

    def look(self, begin: int, distances: UInt[np.ndarray, "queries codes"]) -> None:
        """See _Within."""
        if len(self.kept) > self.counted:
            self._count_kept()
        super().look(begin, distances)

    def found(self) -> list[Found]:
        """See _Within."""
        return [(distances[: self.most], positions[: self.most]) for distances, positions in super().found()]

    def _tighten(self, smallest: UInt[np.ndarray, "queries groups"], distances: UInt[np.ndarray, "queries codes"]) -> None:
        """The k-th smallest of the groups' smallest distances bounds the k-th smallest of all, and so does larger groups'."""
        if self.full:
            return
        wide = smallest.shape[1] // FOLD * FOLD
        folded = smallest[:, :wide].reshape(len(smallest), -1, FOLD).min(axis=1) if wide else smallest
        seen = next((some for some in (folded, smallest) if some.shape[1] >= 2 * self.most), distances[:, : HEAD * self.most])
        if seen.shape[1] >= self.most:
            last = np.partition(seen, self.most - 1)[:, self.most - 1]
            self.bound = np.where(last < self.bound, last + 1, self.bound)

    def _count_kept(self) -> None:
        """Bounds what is looked for by what was kept since the last time, of which the nearest stay."""
        places = np.concatenate(self.kept[self.counted :]) >> POSITION
        self.table += np.bincount(places, minlength=self.table.size).reshape(self.table.shape)
        reached = np.cumsum(self.table, axis=1) >= self.most
        self.bound = np.where(reached[:, -1], reached.argmax(axis=1), self.bound).astype(self.bound.dtype)
        self.full = bool(reached[:, -1].all())
        if sum(map(len, self.kept)) > self.queries * (2 * self.most + SLACK):
            kept, ranges = _sorted(self.kept, self.queries, self.bits)
            ranks = np.concatenate([np.arange(end - begin) for begin, end in ranges])
            self.kept = [kept[ranks < self.most]]
        self.counted = len(self.kept)


def as_number(
    rows: Int[np.ndarray, "some"], distances: UInt[np.ndarray, "some"], positions: Integer[np.ndarray, "some"], bits: int
) -> Int[np.ndarray, "some"]:
    """Codes that queries have found as one number each: the query's row, the distance and, in the last bits, the position.

    So sorting them puts each query's in order, nearest first, ties by position.
    """
    return (rows * (bits + 1) + distances) << POSITION | positions


def in_order(found: list[Int[np.ndarray, "_"]], queries: int, bits: int) -> list[Found]:
    """Of each query distances and positions, nearest first, from such numbers."""
    numbers, ranges = _sorted(found, queries, bits)
    distances = ((numbers >> POSITION) % (bits + 1)).astype(np.int32)
    positions = numbers & ((1 << POSITION) - 1)
    return [(distances[begin:end], positions[begin:end]) for begin, end in ranges]


def _sorted(
    found: list[Int[np.ndarray, "_"]], queries: int, bits: int
) -> tuple[Int[np.ndarray, "all"], Iterator[tuple[int, int]]]:
    """All numbers in order, and where each query's begin and end among them."""
    numbers = np.sort(np.concatenate([np.empty(0, np.int64), *found]))
    return numbers, itertools.pairwise(np.searchsorted(numbers, np.arange(queries + 1) * (bits + 1) << POSITION).tolist())


def _nearer(
    distances: UInt[np.ndarray, "queries codes"], smallest: UInt[np.ndarray, "queries groups"],
    bound: UInt[np.ndarray, "queries"], most: int | None,
) -> tuple[Int[np.ndarray, "some"], Int[np.ndarray, "some"]]:
    """Rows and columns of the distances below their row's bound, of which the groups' smallest mostly leave few to look into.

    Where they leave many, rows are looked at one by one, for the `most` nearest.
    """
    count = smallest.shape[1]
    near, last = np.flatnonzero(smallest < bound[:, None]), distances[:, count * GROUP :]
    if len(near) * GROUP > smallest.size:
        found = [_nearest_below(own, below, most) for own, below in zip(distances, bound, strict=True)]
        return np.repeat(np.arange(len(found)), [len(columns) for columns in found]), np.concatenate(found)
    rows, columns = np.divmod(near, count)
    hits, members = np.nonzero(_groups(distances)[rows, :, columns] < bound[rows, None])
    rows, columns = rows[hits], members * count + columns[hits]
    if last.shape[1]:
        others, beyond = np.nonzero(last < bound[:, None])
        rows, columns = np.concatenate([rows, others]), np.concatenate([columns, beyond + count * GROUP])
    return rows, columns


def _nearest_below(
    distances: UInt[np.ndarray, "codes"], bound: np.unsignedinteger, most: int | None
) -> Int[np.ndarray, "some"]:
    """Columns of the distances below a bound, and where there are more, of the `most` smallest, ties by column."""
    columns = np.flatnonzero(distances < bound)
    if most is None or len(columns) <= most:
        return columns
    return columns[np.argsort(distances[columns], kind="stable")[:most]]


def _groups(distances: UInt[np.ndarray, "queries codes"]) -> UInt[np.ndarray, "queries members groups"]:
    """GROUP distances each, which lie far apart so that whole vectors are compared; without the last, too few for all."""
    count = distances.shape[1] // GROUP
    return distances[:, : count * GROUP].reshape(len(distances), GROUP, count)


def narrowest_words(packed: UInt8[np.ndarray, "n bytes"]) -> UInt[np.ndarray, "words n"]:
    """Packed bits as the narrowest word that holds them, or as several of the widest, zero-padded; a copy, but for what is mapped."""
    width = packed.shape[1]
    word = next((size for size in (1, 2, 4) if width <= size), WORD)
    whole = width == word and packed.flags.c_contiguous and packed.ctypes.data % word == 0
    if not (whole and _is_mapped(packed)):
        padded = np.zeros((len(packed), width + -width % word), np.uint8)
        padded[:, :width] = packed
        packed = padded
    return np.ascontiguousarray(packed.view(f"u{word}").T)


def _is_mapped(array: np.ndarray | None) -> bool:
    """Whether an array's memory is a file that was mapped to be read."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return array.mode == "r"
        array = array.base
    return False
