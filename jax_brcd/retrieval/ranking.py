"""Exact Hamming ranking with ties in database order, from packed codes, a few queries' distances at a time.

Distances are held doubled, bits - q.d in 0..2 bits, so that codes with zeros (half a bit apart) rank exactly too. XLA counts
bits (it uses the processor's vector instructions for that, NumPy does not); NumPy picks the nearest from the counts.
"""

import dataclasses
import functools
import math
import operator
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, SupportsIndex, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, UInt, UInt8, UInt32

from jax_brcd.retrieval.packing import CodeBits, Codes, check_spaces, code_bits, whole_number
from jax_brcd.runtime import interruption
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.workers import cores

QUERIES_A_TASK = 32  # of a thread; their distances to the whole database are held at once
FEW_QUERIES = (1, 8)  # searches of so few are not padded to a whole task
CHUNK = 1 << 16  # database items that XLA compares at once; one size, so that no database compiles anew
GROUP = 64  # consecutive items whose smallest distance is noted
STRIDE = 16  # one item in so many makes the sample of a small database
WORD = 32  # bits, the widest word JAX counts in without its 64-bit mode

Result, Lent = TypeVar("Result"), TypeVar("Lent")


class Words(NamedTuple):
    """Bits of codes as 32-bit words, one row a word: `positive` for +1, `decided` for +1 and -1 (None where none is 0)."""

    positive: UInt32[np.ndarray | Array, "words n"]
    decided: UInt32[np.ndarray | Array, "words n"] | None


@dataclasses.dataclass(frozen=True)
class Database:
    """Codes to be searched, laid out for the device once: CHUNK at a time, the last chunk padded."""

    bits: int
    size: int
    chunks: tuple[Words, ...]

    @classmethod
    def of(cls, codes: Codes) -> "Database":
        """Any codes, ready to be searched. Raises InputError for what is not codes."""
        given = code_bits(codes)
        size = len(given.positive)
        return cls(given.bits, size, tuple(jax.tree.map(jnp.asarray, _words(given, begin, CHUNK))
                                           for begin in range(0, size, CHUNK)))

    def __len__(self) -> int:
        return self.size


class Distances(NamedTuple):
    """A query's doubled distances to a database, padded with more than any distance to whole groups."""

    doubled: Integer[np.ndarray, "padded"]
    smallest: Integer[np.ndarray, "groups"]  # of each GROUP of them


def as_words(packed_bits: UInt8[np.ndarray, "n bytes"]) -> UInt32[np.ndarray, "words n"]:
    """Packed bits as words, the last one zero-padded."""
    padded = np.pad(np.ascontiguousarray(packed_bits), ((0, 0), (0, -packed_bits.shape[1] % (WORD // 8))))
    return np.ascontiguousarray(padded.view(np.uint32).T)


def check_search(queries: CodeBits, database: Database, k: SupportsIndex) -> int:
    """k as an int. Raises InputError for a k that the database cannot serve, for codes of other lengths and for no query."""
    check_lengths(queries.bits, database.bits)
    return check_counts(len(queries.positive), len(database), k)


def check_lengths(bits: int, database_bits: int) -> None:
    """Raises InputError where queries and a database of so many bits have different lengths."""
    if bits != database_bits:
        raise InputError(f"queries of {bits} bits against a database of {database_bits} bits; encode both alike")


def check_counts(queries: int, items: int, k: SupportsIndex) -> int:
    """k as an int. Raises InputError for no query, and for a k that so many items cannot serve."""
    if queries == 0:
        raise InputError("a search needs at least one query")
    return check_k(k, items)


def check_k(k: SupportsIndex, items: int) -> int:
    """k as an int. Raises InputError for k < 1 and where there are not so many items."""
    if items == 0:
        raise InputError("the database holds no images; there is nothing to find", field="k", value=k)
    k = whole_number(k, "k")
    if not 1 <= k <= items:
        raise InputError(f"the database holds {items} images; give 1 to {items}", field="k", value=k)
    return k


@functools.partial(jax.jit, static_argnames="bits")
def _chunk_distances(
    queries: Words, database: Words, count: Int[Array, ""], *, bits: int
) -> tuple[Integer[Array, "queries chunk"], Integer[Array, "queries groups"]]:
    """Doubled distances and each group's smallest; items from `count` on are padding."""
    dtype = _distance_type(bits)

    def ones(words):
        return jnp.sum(jax.lax.population_count(words).astype(jnp.int32), axis=0, dtype=jnp.int32)

    differ = queries.positive[:, :, None] ^ database.positive[:, None, :]
    masks = ([] if queries.decided is None else [queries.decided[:, :, None]]) + (
        [] if database.decided is None else [database.decided[:, None, :]])
    if masks:
        both = functools.reduce(operator.and_, masks)
        doubled = bits - ones(both) + 2 * ones(differ & both)
    else:
        doubled = 2 * ones(differ)
    doubled = jnp.where(jnp.arange(doubled.shape[1]) < count, doubled, 2 * bits + 1).astype(dtype)
    return doubled, jnp.min(doubled.reshape(len(doubled), -1, GROUP), axis=2)


def _distance_type(bits: int) -> np.dtype:
    """The narrowest type for doubled distances and, above all of them, a value for padding."""
    return np.min_scalar_type(2 * bits + 1)


def _words(codes: CodeBits, begin: int, size: int) -> Words:
    """Words of the `size` codes from `begin` on, padded beyond the last."""
    decided = None if codes.decided is None else _padded_words(codes.decided, begin, size)
    return Words(_padded_words(codes.positive, begin, size), decided)


def _padded_words(packed: UInt8[np.ndarray, "n bytes"], begin: int, size: int) -> UInt[np.ndarray, "words size"]:
    words = as_words(packed[begin : begin + size])
    return np.pad(words, ((0, 0), (0, size - words.shape[1])))


def nearest(distances: Distances, k: int) -> Integer[np.ndarray, "k"]:
    """Positions of the k smallest distances in order, ties by position.

    The k-th smallest of the groups' smallest distances bounds the k-th smallest of all, so where there are many groups only
    a few are looked into. Where there are few, a sample says where the k-th smallest lies, and all distances are counted only
    if it said too little. What is left is sorted by radix, as distances take one or two bytes.
    """
    doubled, smallest = distances
    if len(smallest) > 2 * k:
        bound = _kth_smallest(smallest, k)
        groups = np.flatnonzero(smallest <= bound)
        within = np.flatnonzero(doubled.reshape(-1, GROUP)[groups] <= bound)
        candidates = groups[within // GROUP] * GROUP + within % GROUP
    else:
        sample, share = doubled[::STRIDE], k / STRIDE
        enough = math.ceil(share + 2 * math.sqrt(share))  # two standard deviations above what k items give a sample
        candidates = np.flatnonzero(doubled <= _kth_smallest(sample, min(enough, len(sample))))
        if len(candidates) < k:
            candidates = np.flatnonzero(doubled <= _kth_smallest(doubled, k))
    near = doubled[candidates]
    return candidates[np.argsort(near, kind="stable")[:k]]


def _kth_smallest(distances: Integer[np.ndarray, "some"], k: int) -> int:
    return int(np.searchsorted(np.cumsum(np.bincount(distances)), k))


def map_queries(
    function: Callable[[range, list[Distances]], Result], queries: CodeBits, database: Database
) -> list[Result]:
    """`function` of consecutive queries' numbers and distances, a few at a time, on all cores.

    Distances are only lent: their memory serves the next queries. So a search needs the same memory for any number of them.
    """
    count, dtype = len(queries.positive), _distance_type(queries.bits)
    block = next((size for size in FEW_QUERIES if count <= size), QUERIES_A_TASK)
    groups = -(-len(database) // GROUP)
    return on_all_cores(functools.partial(_of_distances, function, queries, database), count, block,
                        lambda: (np.empty((block, groups * GROUP), dtype), np.empty((block, groups), dtype)))


def _of_distances(function: Callable[[range, list[Distances]], Result], queries: CodeBits, database: Database, rows: range,
                  lent: tuple[np.ndarray, np.ndarray]) -> Result:
    """`function` of some queries' numbers and distances, which are written to what is lent for one block of queries."""
    words = jax.tree.map(jnp.asarray, _words(queries, rows.start, len(lent[0])))
    for begin, chunk in zip(range(0, len(database), CHUNK), database.chunks, strict=True):
        found = _chunk_distances(words, chunk, len(database) - begin, bits=queries.bits)
        for whole, part, first in zip(lent, found, (begin, begin // GROUP), strict=True):
            place = whole[:, first : first + part.shape[1]]
            place[:] = np.asarray(part)[:, : place.shape[1]]
    return function(rows, [Distances(*row) for row in zip(*(part[: len(rows)] for part in lent), strict=True)])


def on_all_cores(function: Callable[[range, Lent], Result], count: int, block: int, lend: Callable[[], Lent]) -> list[Result]:
    """`function` of consecutive numbers below `count`, a `block` at a time, and of memory that it is lent meanwhile.

    Each thread makes its memory once by `lend`, however many blocks there are.
    """
    starts, memory = range(0, count, block), queue.SimpleQueue()
    for _ in range(threads := min(cores(), len(starts))):
        memory.put(lend())
    parts = (range(start, min(start + block, count)) for start in starts)
    task = functools.partial(_borrowing, function, memory)
    if len(starts) <= 1:
        return list(map(task, parts))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(task, parts))


def _borrowing(function: Callable[[range, Lent], Result], memory: queue.SimpleQueue, part: range) -> Result:
    interruption.check()
    lent = memory.get()
    try:
        return function(part, lent)
    finally:
        memory.put(lent)


def rank(
    queries: CodeBits, database: Database, k: int
) -> tuple[Integer[np.ndarray, "queries k"], Integer[np.ndarray, "queries k"]]:
    """Positions (int64) and doubled distances (int32) of the k nearest database items of each query, ties by position."""
    positions, doubled = (np.empty((len(queries.positive), k), dtype) for dtype in (np.int64, np.int32))

    def search(rows: range, found: list[Distances]) -> None:
        for query, lent in zip(rows, found, strict=True):
            positions[query] = nearest(lent, k)
            doubled[query] = lent.doubled[positions[query]]

    map_queries(search, queries, database)
    return positions, doubled


def hamming_top_k(
    query_codes: Codes, database_codes: Codes, k: SupportsIndex
) -> tuple[Integer[np.ndarray, "queries k"], Float[np.ndarray, "queries k"]]:
    """The k nearest database items of each query, ties by database index. A `HammingIndex` serves many such searches.

    Args:
        query_codes, database_codes: packed codes, or matrices (n, bits) of -1, 0 and +1 or of bool; a 0 is half a bit away
            from everything.

    Returns:
        Indices (queries, k) int64 and Hamming distances in bits (queries, k) float32, nearest first.

    Raises:
        InputError: for k < 1 or beyond the database, for what is not codes, for codes of different lengths or code spaces,
            and for no query.
    """
    check_spaces(query_codes, database_codes)
    queries, database = code_bits(query_codes), Database.of(database_codes)
    positions, doubled = rank(queries, database, check_search(queries, database, k))
    return positions, np.float32(0.5) * doubled.astype(np.float32)
