"""Exact Hamming ranking with ties in database order, from packed codes, a few queries' distances at a time.

Distances are held doubled, bits - q.d in 0..2 bits, so that codes with zeros (half a bit apart) rank exactly too. XLA counts
bits (it uses the processor's vector instructions for that, NumPy does not); NumPy picks the nearest from the counts.
"""

import dataclasses
import functools
import math
import os
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Num, UInt8, UInt32

from jax_brcd.runtime.errors import InputError

QUERIES_A_TASK = 32  # of a thread; their distances to the whole database are held at once
CHUNK = 1 << 16  # database items that XLA compares at once; one size, so that no database compiles anew
GROUP = 64  # consecutive items whose smallest distance is noted
STRIDE = 16  # one item in so many makes the sample of a small database
WORD = 32  # bits, the widest word JAX counts in without its 64-bit mode
NOT_CODES = "codes must be a matrix (n, bits) of -1, 0 and +1"

# Lengths are compared by check_search, which says more than a shape checker
QueryCodes = Num[np.ndarray | Array, "queries query_bits"]
DatabaseCodes = Num[np.ndarray | Array, "database database_bits"]

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class PackedCodes:
    """Codes as 32-bit words, one row a word. A bit is `positive` for +1, and `decided` for +1 and -1."""

    bits: int
    positive: UInt32[np.ndarray, "words n"]
    decided: UInt32[np.ndarray, "words n"]
    has_zeros: bool

    def __len__(self) -> int:
        return self.positive.shape[1]


class Distances(NamedTuple):
    """A query's doubled distances to a database, padded with more than any distance to whole groups."""

    doubled: Integer[np.ndarray, "padded"]
    smallest: Integer[np.ndarray, "groups"]  # of each GROUP of them


def packed(codes: Num[np.ndarray | Array, "n bits"]) -> PackedCodes:
    """Codes ready to be compared, packed in slabs so that little is needed beside them.

    Raises:
        ValueError: for anything but a matrix of -1, 0 and +1.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2:
        raise ValueError(NOT_CODES)
    positive, decided = (np.empty((-(-codes.shape[1] // WORD), len(codes)), np.uint32) for _ in range(2))
    has_zeros = False
    for begin in range(0, len(codes), CHUNK):
        slab = slice(begin, begin + CHUNK)
        if not np.array_equal(codes[slab], np.sign(codes[slab])):
            raise ValueError(NOT_CODES)
        positive[:, slab] = as_words(np.packbits(codes[slab] > 0, axis=1))
        decided[:, slab] = as_words(np.packbits(codes[slab] != 0, axis=1))
        has_zeros |= not codes[slab].all()
    return PackedCodes(codes.shape[1], positive, decided, has_zeros)


def as_words(packed_bits: UInt8[np.ndarray, "n bytes"]) -> UInt32[np.ndarray, "words n"]:
    """Packed bits as words, the last one zero-padded."""
    padded = np.pad(packed_bits, ((0, 0), (0, -packed_bits.shape[1] % (WORD // 8))))
    return np.ascontiguousarray(padded.view(np.uint32).T)


def check_search(queries: PackedCodes, database: PackedCodes, k: int) -> None:
    """Raises InputError for a k that the database cannot serve, ValueError for codes that cannot be compared."""
    if queries.bits != database.bits:
        raise ValueError(f"queries of {queries.bits} bits against a database of {database.bits} bits")
    if len(queries) == 0:
        raise ValueError("a search needs at least one query")
    if not 1 <= k <= len(database):
        raise InputError(f"--k {k}: the database holds {len(database)} images; give 1 to {len(database)}")


@functools.partial(jax.jit, static_argnames=("bits", "has_zeros"))
def _chunk_distances(
    query: UInt32[Array, "sides words queries"], database: UInt32[Array, "sides words chunk"], count: Int[Array, ""], *,
    bits: int, has_zeros: bool,
):
    """Doubled distances (queries, chunk) and each group's smallest; items from `count` on are padding."""
    dtype = _distance_type(bits)

    def ones(words):
        return jnp.sum(jax.lax.population_count(words).astype(jnp.int32), axis=0)

    differ = query[0, :, :, None] ^ database[0, :, None, :]
    if has_zeros:
        both = query[1, :, :, None] & database[1, :, None, :]
        doubled = bits - ones(both) + 2 * ones(differ & both)
    else:
        doubled = 2 * ones(differ)
    doubled = jnp.where(jnp.arange(doubled.shape[1]) < count, doubled, np.iinfo(dtype).max).astype(dtype)
    return doubled, jnp.min(doubled.reshape(len(doubled), -1, GROUP), axis=2)


def _distance_type(bits: int) -> np.dtype:
    """The narrowest type for doubled distances and, above all of them, a value for padding."""
    return np.min_scalar_type(2 * bits + 1)


def _sides(codes: PackedCodes, begin: int, size: int) -> UInt32[np.ndarray, "sides words size"]:
    """Both kinds of words of the `size` codes from `begin` on, padded beyond the last."""
    words = np.stack([part[:, begin : begin + size] for part in (codes.positive, codes.decided)])
    return np.pad(words, ((0, 0), (0, 0), (0, size - words.shape[2])))


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
    function: Callable[[range, list[Distances]], Result], queries: PackedCodes, database: PackedCodes
) -> list[Result]:
    """`function` of consecutive queries' numbers and distances, a few at a time, on all cores.

    Distances are only lent: their memory serves the next queries. So a search needs the same memory for any number of them.
    """
    chunks = [(begin, jnp.asarray(_sides(database, begin, CHUNK))) for begin in range(0, len(database), CHUNK)]
    zeros, dtype = queries.has_zeros or database.has_zeros, _distance_type(queries.bits)
    groups, memory = -(-len(database) // GROUP), queue.SimpleQueue()
    for _ in range(threads := os.cpu_count() or 1):
        memory.put((np.empty((QUERIES_A_TASK, groups * GROUP), dtype), np.empty((QUERIES_A_TASK, groups), dtype)))

    def task(start: int) -> Result:
        rows = range(start, min(start + QUERIES_A_TASK, len(queries)))
        words = jnp.asarray(_sides(queries, start, QUERIES_A_TASK))
        lent = memory.get()
        try:
            for begin, chunk in chunks:
                found = _chunk_distances(words, chunk, len(database) - begin, bits=queries.bits, has_zeros=zeros)
                for whole, part, first in zip(lent, found, (begin, begin // GROUP), strict=True):
                    place = whole[:, first : first + part.shape[1]]
                    place[:] = np.asarray(part)[:, : place.shape[1]]
            return function(rows, [Distances(*row) for row in zip(*(part[: len(rows)] for part in lent), strict=True)])
        finally:
            memory.put(lent)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(task, range(0, len(queries), QUERIES_A_TASK)))


def hamming_top_k(
    query_codes: QueryCodes, database_codes: DatabaseCodes, k: int
) -> tuple[Integer[np.ndarray, "queries k"], Float[np.ndarray, "queries k"]]:
    """The k nearest database items of each query, ties by database index.

    Returns:
        Indices (queries, k) int64 and Hamming distances in bits (queries, k) float32, nearest first.

    Raises:
        InputError: for k < 1 or beyond the database.
        ValueError: for codes of different lengths or of other values than -1, 0, +1, and for no query.
    """
    queries, database = packed(query_codes), packed(database_codes)
    check_search(queries, database, k)
    indices = np.empty((len(queries), k), np.int64)
    distances = np.empty((len(queries), k), np.float32)

    def search(rows: range, found: list[Distances]) -> None:
        for query, lent in zip(rows, found, strict=True):
            indices[query] = nearest(lent, k)
            distances[query] = lent.doubled[indices[query]] / 2

    map_queries(search, queries, database)
    return indices, distances
