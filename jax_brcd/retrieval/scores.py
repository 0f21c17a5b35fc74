"""Exact rankings by scores that are real numbers: query logits against database bits, and the cosine of features.

A score is a sum of whole numbers that float64 holds, so no order of adding changes it: a query and an item score the same in
any batch and on any machine, and equal items tie. Ties are by position.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Shaped, UInt32

from jax_brcd.retrieval.packing import PackedCodes
from jax_brcd.retrieval.ranking import CHUNK, STRIDE, Database, check_lengths, on_all_cores
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.workers import cores

HELD = 1 << 22  # scores that a thread holds at once, or those of one query
QUERIES_A_TASK = 128
WHOLE = 52  # bits of the whole numbers that scores are summed from; float64 holds 53
COSINE = WHOLE // 2  # bits of a component of a direction: products of two are summed, to no more than 1
KEPT = 1 << 26  # components of database directions that are kept between queries, 4 bytes each
ROWS = 1024  # database features or codes that are looked at together
SLAB = 16 * ROWS  # items whose scores with many queries are held together
SHARED = 8  # queries that make it pay to unpack codes for a matrix product
BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float64)  # the bits of each byte

Result = TypeVar("Result")
# A matrix of floats (n, width). Kind, dtype, shape and values are checked here, which says more than a shape checker
RealMatrix = PackedCodes | Shaped[np.ndarray | Array, "..."]


@runtime_checkable
class Scoring(Protocol):
    """Queries and items to be ranked by scores, whole numbers of which the largest is the nearest."""

    queries: int
    items: int

    def fill(self, rows: range, scores: Float[np.ndarray, "rows items"]) -> None:
        """Writes the scores of some queries with all items."""


class Logits(NamedTuple):
    """Query logits as whole numbers (queries, bits), and of each query the exponent of two to multiply them by."""

    numbers: Float[np.ndarray, "queries bits"]
    exponents: Int[np.ndarray, "queries"]

    def distances(self, products: Float[np.ndarray, "queries k"]) -> Float[np.ndarray, "queries k"]:
        """The sums of |logit| over the bits that differ, of dot products with codes in {-1, +1}; exact, as the products are."""
        return (np.ldexp(np.abs(self.numbers).sum(axis=1), self.exponents)[:, None] - products) / 2

    def distances_to(self, codes: PackedCodes) -> Float[np.ndarray, "queries n"]:
        """The same numbers, straight from codes."""
        wrong = np.where(self.numbers > 0, self.numbers, 0.0).sum(axis=1)[:, None] - self.numbers @ (codes.unpack().T > 0)
        return np.ldexp(wrong, self.exponents[:, None])


def whole_logits(query_logits: RealMatrix | Logits) -> Logits:
    """Logits in units of a 2**-46th of their query's largest (at 64 bits), which changes no float32 beyond its 2**-22nd.

    Raises InputError for what is not a matrix of finite floats.
    """
    if isinstance(query_logits, Logits):
        return query_logits
    logits = _real(query_logits, "soft queries are logits, a matrix (n, bits) of floats as an encoder's `logits` gives")
    logits = _finite(logits.astype(np.float64), "query logits")
    _, exponents = np.frexp(np.abs(logits).max(axis=1, initial=0.0))
    exponents = exponents - (WHOLE - (logits.shape[1] - 1).bit_length())
    return Logits(np.rint(np.ldexp(logits, -exponents[:, None])), exponents)


@dataclasses.dataclass(frozen=True)
class SoftScoring:
    """Dot products of query logits and database codes, straight from the packed bits.

    Attributes:
        numbers: the logits as whole numbers (queries, bits). exponents: of two; what a number is to be multiplied by.
    """

    numbers: Float[np.ndarray, "queries bits"]
    exponents: Int[np.ndarray, "queries"]
    database: Database

    @classmethod
    def of(cls, query_logits: RealMatrix | Logits, database: Database) -> "SoftScoring":
        """Logits against codes. Raises InputError as `whole_logits`, and for logits of another length than the codes."""
        logits = whole_logits(query_logits)
        check_lengths(logits.numbers.shape[1], database.bits)
        return cls(*logits, database)

    @property
    def queries(self) -> int:
        """How many."""
        return len(self.numbers)

    @property
    def items(self) -> int:
        """How many."""
        return len(self.database)

    def fill(self, rows: range, scores: Float[np.ndarray, "rows items"]) -> None:
        """See Scoring. To unpack the codes pays where several queries share them."""
        (self._multiply if len(rows) >= SHARED else self._look_up)(rows, scores)

    def _multiply(self, rows: range, scores: Float[np.ndarray, "rows items"]) -> None:
        for begin, chunk in zip(range(0, self.items, CHUNK), self.database.chunks, strict=True):
            for first in range(begin, min(begin + CHUNK, self.items), ROWS):
                last = min(first + ROWS, begin + CHUNK, self.items)
                positive, decided = (self._bits(words, first - begin, last - begin) for words in chunk)
                codes = 2 * positive - (1 if decided is None else decided)
                np.matmul(self.numbers[rows.start : rows.stop], codes.T, out=scores[:, first:last])

    def _bits(self, words: UInt32[np.ndarray | Array, "words chunk"] | None, first: int, last: int,
              ) -> Float[np.ndarray, "items bits"] | None:
        """Some of a chunk's codes, a column a bit."""
        if words is None:
            return None
        columns = np.ascontiguousarray(np.asarray(words)[:, first:last].T)
        return np.unpackbits(columns.view(np.uint8), axis=1, count=self.database.bits).astype(np.float64)

    def _look_up(self, rows: range, scores: Float[np.ndarray, "rows items"]) -> None:
        """A code's sum over its set bits is read from a table a byte: q . d = 2 sum(set) - sum(decided)."""
        spare = np.empty((2, CHUNK))
        for row, own in zip(rows, scores, strict=True):
            numbers = np.pad(self.numbers[row], (0, -self.numbers.shape[1] % 8))
            table = numbers.reshape(-1, 8) @ BYTES.T
            for begin, chunk in zip(range(0, self.items, CHUNK), self.database.chunks, strict=True):
                place = own[begin : begin + CHUNK]
                decided = numbers.sum()
                if chunk.decided is not None:
                    decided = spare[1, : len(place)]
                    _add_up(table, chunk.decided, decided, spare[0, : len(place)])
                _add_up(table, chunk.positive, place, spare[0, : len(place)])
                place *= 2
                place -= decided


@dataclasses.dataclass(frozen=True)
class CosineScoring:
    """Cosines of features in units of 2**-52. A vector of zeros has the cosine 0 with all.

    Attributes:
        directions: of the database, as `_directions` gives them; None where they would take too much memory.
    """

    query_features: Shaped[np.ndarray, "queries width"]
    database_features: Shaped[np.ndarray, "items width"]
    directions: Int32[np.ndarray, "items width"] | None

    @classmethod
    def of(cls, query_features: RealMatrix, database_features: RealMatrix) -> "CosineScoring":
        """Features of both, as they are; files may be memory-mapped.

        Raises:
            InputError: for what is not a matrix of finite floats, and for features of different widths.
        """
        matrices = []
        for features, what in ((query_features, "query features"), (database_features, "database features")):
            matrix = _real(features, f"{what} are a matrix (n, width) of floats")
            for begin in range(0, len(matrix), ROWS):
                _finite(matrix[begin : begin + ROWS].astype(np.float64), what, begin)
            matrices.append(matrix)
        widths = [matrix.shape[1] for matrix in matrices]
        if widths[0] != widths[1]:
            raise InputError(f"query features of width {widths[0]} against database features of width {widths[1]}; give both "
                             "of one backbone")
        queries, items = matrices
        if items.size > KEPT:
            return cls(queries, items, None)
        directions = np.empty(items.shape, np.int32)
        for begin in range(0, len(items), ROWS):
            directions[begin : begin + ROWS] = _directions(items[begin : begin + ROWS])
        return cls(queries, items, directions)

    @property
    def queries(self) -> int:
        """How many."""
        return len(self.query_features)

    @property
    def items(self) -> int:
        """How many."""
        return len(self.database_features)

    def fill(self, rows: range, scores: Float[np.ndarray, "rows items"]) -> None:
        """See Scoring."""
        self.fill_some(rows, range(self.items), scores)

    def fill_some(self, rows: range, items: range, scores: Float[np.ndarray, "rows some"]) -> None:
        """Writes the scores of some queries with some items."""
        queries = _directions(self.query_features[rows.start : rows.stop])
        for begin in range(items.start, items.stop, ROWS):
            part = slice(begin, min(begin + ROWS, items.stop))
            directions = (_directions(self.database_features[part]) if self.directions is None else
                          self.directions[part].astype(np.float64))
            np.matmul(queries, directions.T, out=scores[:, part.start - items.start : part.stop - items.start])


def highest(scores: Float[np.ndarray, "items"], k: int) -> Int[np.ndarray, "k"]:
    """Positions of the k largest scores, the largest first, ties by position.

    A sample says where the k-th largest lies, and all are looked at for it only if that said too little, as in `nearest`.
    """
    sample, share = scores[::STRIDE], k / STRIDE
    enough = math.ceil(share + 2 * math.sqrt(share))
    candidates = np.flatnonzero(scores >= _kth_largest(sample, min(enough, len(sample))))
    if len(candidates) < k:
        candidates = np.flatnonzero(scores >= _kth_largest(scores, k))
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def _kth_largest(scores: Float[np.ndarray, "some"], k: int) -> np.float64:
    return np.partition(scores, len(scores) - k)[len(scores) - k]


def map_scores(
    function: Callable[[range, list[Float[np.ndarray, "items"]]], Result], scoring: Scoring
) -> list[Result]:
    """`function` of consecutive queries' numbers and scores, a few at a time, on all cores.

    Scores are only lent: their memory serves the next queries. So a search needs the same memory for any number of them.
    """
    block = max(1, min(QUERIES_A_TASK, -(-scoring.queries // cores()), HELD // max(scoring.items, 1)))

    return on_all_cores(functools.partial(_of_scores, function, scoring), scoring.queries, block,
                        lambda: np.empty((block, scoring.items)))


def map_highest(
    function: Callable[[range, list[Int[np.ndarray, "k"]]], Result], scoring: CosineScoring, k: int
) -> list[Result]:
    """`function` of consecutive queries' numbers and the positions of their k highest scores, as `highest` gives them.

    The items are gone through a `SLAB` at a time for many queries together: where their directions are not kept, finding these
    anew for few queries takes longer than all else.
    """
    block = max(1, min(QUERIES_A_TASK, -(-scoring.queries // cores()), HELD // (k + SLAB)))
    return on_all_cores(functools.partial(_of_highest, function, scoring, k), scoring.queries, block,
                        lambda: np.empty((block, SLAB)))


def _of_highest(
    function: Callable[[range, list[Int[np.ndarray, "k"]]], Result], scoring: CosineScoring, k: int, rows: range,
    lent: Float[np.ndarray, "block slab"],
) -> Result:
    scores, positions = np.empty((len(rows), 0)), np.empty((len(rows), 0), np.int64)
    for begin in range(0, scoring.items, SLAB):
        items = range(begin, min(begin + SLAB, scoring.items))
        of_slab = lent[: len(rows), : len(items)]
        scoring.fill_some(rows, items, of_slab)
        scores = np.concatenate([scores, of_slab], axis=1)  # those of earlier items first, so that ties stay by position
        positions = np.concatenate([positions, np.broadcast_to(np.array(items), of_slab.shape)], axis=1)
        best = np.stack([highest(each, min(k, scores.shape[1])) for each in scores])
        scores, positions = (np.take_along_axis(each, best, axis=1) for each in (scores, positions))
    return function(rows, list(positions))


def _of_scores(
    function: Callable[[range, list[Float[np.ndarray, "items"]]], Result], scoring: Scoring, rows: range,
    lent: Float[np.ndarray, "block items"],
) -> Result:
    scoring.fill(rows, lent[: len(rows)])
    return function(rows, list(lent[: len(rows)]))


def soft_rank(
    scoring: SoftScoring, k: int, mask: Bool[np.ndarray, "items"] | None = None
) -> tuple[Int[np.ndarray, "queries k"], Float[np.ndarray, "queries k"]]:
    """Positions (int64) and dot products (float64) of the k database codes that score highest with each query's logits.

    Only codes in `mask` are looked at, where one is given; it holds k at least.
    """
    positions, numbers = rank_scores(scoring, k, mask)
    return positions, np.ldexp(numbers, scoring.exponents[:, None])


def rank_scores(
    scoring: Scoring, k: int, mask: Bool[np.ndarray, "items"] | None = None
) -> tuple[Int[np.ndarray, "queries k"], Float[np.ndarray, "queries k"]]:
    """Positions (int64) and scores (float64) of the k items, of those in `mask`, that score highest with each query."""
    positions, numbers = (np.empty((scoring.queries, k), dtype) for dtype in (np.int64, np.float64))

    def search(rows: range, lent: list[Float[np.ndarray, "items"]]) -> None:
        for query, scores in zip(rows, lent, strict=True):
            if mask is not None:
                scores[~mask] = -np.inf
            positions[query] = highest(scores, k)
            numbers[query] = scores[positions[query]]

    map_scores(search, scoring)
    return positions, numbers


def _add_up(
    table: Float[np.ndarray, "bytes 256"], words: UInt32[np.ndarray | Array, "words chunk"], total: Float[np.ndarray, "items"],
    spare: Float[np.ndarray, "items"],
) -> None:
    """The sums of the table's entries for the bytes of each code, into `total`."""
    columns = np.asarray(words).view(np.uint8)  # four bytes of a code side by side
    for number, entries in enumerate(table):
        column = columns[number // 4, number % 4 :: 4][: len(total)]
        np.take(entries, column, out=spare if number else total, mode="clip")
        if number:
            total += spare


def _directions(features: Shaped[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
    """Vectors of length 1 as whole numbers of 2**-26."""
    values = np.ascontiguousarray(features, np.float64)
    lengths = np.sqrt(np.square(values).sum(axis=1, keepdims=True))
    return np.rint(values / np.where(lengths > 0, lengths, 1.0) * 2.0**COSINE)


def _real(values: RealMatrix, wanted: str) -> Shaped[np.ndarray, "rows width"]:
    if isinstance(values, PackedCodes):
        raise InputError(f"{wanted}, not packed codes")
    values = np.asarray(values)
    if values.ndim != 2 or not values.shape[1] or not jnp.issubdtype(values.dtype, np.floating):
        raise InputError(f"{wanted}, not {values.dtype} {values.shape}")
    return values


def _finite(values: Float[np.ndarray, "rows width"], what: str, first: int = 0) -> Float[np.ndarray, "rows width"]:
    rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(rows):
        raise InputError(f"{what} must be finite numbers; row {first + rows[0]} holds others")
    return values
