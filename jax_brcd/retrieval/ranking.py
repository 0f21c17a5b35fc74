"""Exact Hamming ranking with ties in database order, in blocks of queries so that memory stays flat.

Distances are held doubled, bits - q.d in 0..2 bits, so that codes with zeros (half a bit apart) rank exactly too.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Array, Float, Integer, Num

from jax_brcd.errors import InputError

BLOCK_BYTES = 32 * 2**20  # of one block's distances

# Lengths are compared by check_search, which says more than a shape checker
QueryCodes = Num[np.ndarray | Array, "queries query_bits"]
DatabaseCodes = Num[np.ndarray | Array, "database database_bits"]


def as_codes(codes: Num[np.ndarray | Array, "n bits"]) -> Float[np.ndarray, "n bits"]:
    """Codes as the float32 matrix that products run on.

    Raises:
        ValueError: for values other than -1, 0 and +1.
    """
    codes = np.asarray(codes, np.float32)
    if not np.isin(codes, (-1.0, 0.0, 1.0)).all():
        raise ValueError("codes hold values other than -1, 0 and +1")
    return codes


def check_search(query_codes: np.ndarray, database_codes: np.ndarray, k: int) -> None:
    """Raises InputError for a k that the database cannot serve, ValueError for codes of different lengths."""
    if query_codes.shape[1] != database_codes.shape[1]:
        raise ValueError(f"queries of {query_codes.shape[1]} bits against a database of {database_codes.shape[1]} bits")
    if not 1 <= k <= len(database_codes):
        raise InputError(f"--k {k}: the database holds {len(database_codes)} images; give 1 to {len(database_codes)}")


def doubled_distances(query_codes: np.ndarray, database_codes: np.ndarray) -> Integer[np.ndarray, "queries database"]:
    """bits - q.d, twice the Hamming distance for codes without zeros."""
    return (query_codes.shape[1] - query_codes @ database_codes.T).astype(np.uint32)


def query_blocks(n_queries: int, n_database: int) -> Iterator[slice]:
    """Slices of the queries whose distances take BLOCK_BYTES each."""
    rows = max(1, BLOCK_BYTES // (4 * n_database))
    for begin in range(0, n_queries, rows):
        yield slice(begin, min(begin + rows, n_queries))


def map_blocks(function: Callable[[slice], object], n_queries: int, n_database: int) -> list:
    """`function` of every block of queries, on all cores (NumPy releases the interpreter while it works)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, query_blocks(n_queries, n_database)))


def nearest(distances: Integer[np.ndarray, "queries database"], k: int) -> Integer[np.ndarray, "queries k"]:
    """Columns of the k smallest entries of each row in order, ties by column.

    Distance and column make one key, so that an unstable selection gives the stable order.
    """
    n_database = distances.shape[1]
    wide = (int(distances.max(initial=0)) + 1) * n_database > np.iinfo(np.uint32).max
    keys = distances.astype(np.uint64 if wide else np.uint32) * n_database + np.arange(n_database, dtype=np.uint32)
    if k < n_database:
        keys.partition(k - 1, axis=1)
        keys = keys[:, :k]
    keys.sort(axis=1)
    return (keys % n_database).astype(np.int64)


def hamming_top_k(
    query_codes: QueryCodes, database_codes: DatabaseCodes, k: int
) -> tuple[Integer[np.ndarray, "queries k"], Float[np.ndarray, "queries k"]]:
    """The k nearest database items of each query, ties by database index.

    Returns:
        Indices (queries, k) and Hamming distances in bits (queries, k), nearest first.

    Raises:
        InputError: for k < 1 or beyond the database.
        ValueError: for codes of different lengths or of other values than -1, 0, +1.
    """
    queries, database = as_codes(query_codes), as_codes(database_codes)
    check_search(queries, database, k)

    def block(rows: slice):
        distances = doubled_distances(queries[rows], database)
        indices = nearest(distances, k)
        return indices, np.take_along_axis(distances, indices, axis=1) / 2

    indices, distances = zip(*map_blocks(block, len(queries), len(database)), strict=True)
    return np.concatenate(indices), np.concatenate(distances)
