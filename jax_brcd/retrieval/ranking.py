"""Exact Hamming ranking with ties in database order, from packed codes, one query's distances at a time.

Distances are held doubled, bits - q.d in 0..2 bits, so that codes with zeros (half a bit apart) rank exactly too.
"""

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Array, Float, Integer, Num, UInt8, UInt64

from jax_brcd.codes import pack_codes
from jax_brcd.errors import InputError

QUERIES_A_TASK = 32  # of a thread; what it makes of them is small beside the database

# Lengths are compared by check_search, which says more than a shape checker
QueryCodes = Num[np.ndarray | Array, "queries query_bits"]
DatabaseCodes = Num[np.ndarray | Array, "database database_bits"]

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class PackedCodes:
    """Codes as 64-bit words, one row a word. A bit is `positive` for +1, and `decided` for +1 and -1."""

    bits: int
    positive: UInt64[np.ndarray, "words n"]
    decided: UInt64[np.ndarray, "words n"]
    has_zeros: bool

    def __len__(self) -> int:
        return self.positive.shape[1]


def packed(codes: Num[np.ndarray | Array, "n bits"]) -> PackedCodes:
    """Codes ready for `doubled_distances`.

    Raises:
        ValueError: for anything but a matrix of -1, 0 and +1.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not np.array_equal(codes, np.sign(codes)):
        raise ValueError("codes must be a matrix (n, bits) of -1, 0 and +1")
    positive, negative = as_words(pack_codes(codes)), as_words(pack_codes(-codes))
    return PackedCodes(codes.shape[1], positive, positive | negative, has_zeros=not codes.all())


def as_words(packed_bits: UInt8[np.ndarray, "n bytes"]) -> UInt64[np.ndarray, "words n"]:
    """Packed bits as 64-bit words, the last one zero-padded."""
    padded = np.pad(packed_bits, ((0, 0), (0, -packed_bits.shape[1] % 8)))
    return np.ascontiguousarray(padded.view(np.uint64).T)


def check_search(queries: PackedCodes, database: PackedCodes, k: int) -> None:
    """Raises InputError for a k that the database cannot serve, ValueError for codes that cannot be compared."""
    if queries.bits != database.bits:
        raise ValueError(f"queries of {queries.bits} bits against a database of {database.bits} bits")
    if len(queries) == 0:
        raise ValueError("a search needs at least one query")
    if not 1 <= k <= len(database):
        raise InputError(f"--k {k}: the database holds {len(database)} images; give 1 to {len(database)}")


def doubled_distances(queries: PackedCodes, query: int, database: PackedCodes) -> Integer[np.ndarray, "database"]:
    """bits - q.d of one query, twice the Hamming distance for codes without zeros, in the narrowest type that holds it."""
    dtype = np.min_scalar_type(2 * queries.bits)

    def count(words: np.ndarray) -> np.ndarray:
        return np.bitwise_count(words).sum(axis=0, dtype=dtype)

    differ = queries.positive[:, query, None] ^ database.positive
    if not (queries.has_zeros or database.has_zeros):
        return 2 * count(differ)
    both = queries.decided[:, query, None] & database.decided
    return queries.bits - count(both) + 2 * count(differ & both)


def nearest(
    distances: Integer[np.ndarray, "database"], counts: Integer[np.ndarray, "distances"], k: int
) -> Integer[np.ndarray, "k"]:
    """Positions of the k smallest distances in order, ties by position.

    Args:
        counts: how many items stand at each distance. It gives the distance of the k-th item, so that only the few items up
            to there are sorted (by radix, as distances take one or two bytes).
    """
    last = int(np.searchsorted(np.cumsum(counts), k))
    candidates = np.flatnonzero(distances <= last)
    return candidates[np.argsort(distances[candidates], kind="stable")[:k]]


def map_queries(function: Callable[[range], Result], n_queries: int) -> list[Result]:
    """`function` of consecutive queries, a few at a time, on all cores (NumPy lets other threads run while it works)."""
    starts = range(0, n_queries, QUERIES_A_TASK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda start: function(range(start, min(start + QUERIES_A_TASK, n_queries))), starts))


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

    def search(rows: range) -> None:
        for query in rows:
            doubled = doubled_distances(queries, query, database)
            indices[query] = nearest(doubled, np.bincount(doubled), k)
            distances[query] = doubled[indices[query]] / 2

    map_queries(search, len(queries))
    return indices, distances
