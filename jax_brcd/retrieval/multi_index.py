"""Exact Hamming search that looks at few of the codes: multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming
Space with Multi-Index Hashing", CVPR 2012).

A code is cut into m substrings of about log2(n) bits, and a table for each lists the positions of all codes by the value of
their substring. Step s = m * a + b of a search (b < m) looks up in table b what differs from the query's substring by a bits.
After it no code at s bits or nearer is left unseen: it would differ by more than a bits in each substring up to b, and by a or
more in each of the others, which makes more than s. So a search ends as soon as nothing farther than s is asked for.

A query that would look at too many codes, as among codes without clusters or far from all, goes to the flat scan, and so do the
others of its call when half of those before them did.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Int, UInt, UInt32

from jax_brcd.retrieval.packing import CodeBits
from jax_brcd.retrieval.ranking import on_all_cores
from jax_brcd.retrieval.scan import Found, Mask, Scan, as_number, in_order, narrowest_words
from jax_brcd.runtime.errors import InputError

QUERIES_A_TASK = 64  # of a thread: Python, which threads take in turns, is slow beside what a query needs
LOOKS = 1 / 64  # buckets and codes that a query may look at, as a share of all codes: the flat scan is not much slower then
TOGETHER = 1 << 18  # codes, or buckets, that a thread looks at together, and up to a query's share more
NARROW = 8  # bits that no substring is cut narrower than, however few the codes
SHELLS = 256  # sets of bits to flip that are remembered


@dataclasses.dataclass(frozen=True)
class Table:
    """Positions of codes, sorted by the value of a substring.

    Attributes:
        word: the word of a code that the substring lies in. shift, width: its place there and its bits, where the first byte is
            the highest. place: the same place in a word as it lies in memory.
        starts: where each value's positions begin, and at last the end of them all.
    """

    word: int
    shift: int
    width: int
    place: np.unsignedinteger
    starts: UInt32[np.ndarray, "values_and_end"]
    positions: UInt32[np.ndarray, "items"]

    @classmethod
    def of(cls, words: UInt[np.ndarray, "words items"], word: int, shift: int, width: int) -> "Table":
        """Sorts the codes, as numbers of value and position: NumPy sorts those faster than it finds an order."""
        values = _substrings(words[word], shift, width)
        starts = np.zeros((1 << width) + 1, np.uint32)
        np.cumsum(np.bincount(values, minlength=1 << width), out=starts[1:])
        keys = values.astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= np.arange(len(keys), dtype=np.uint32)
        keys.sort()
        (place,) = _first_byte_highest(np.array([((1 << width) - 1) << shift], words.dtype))
        return cls(word, shift, width, place, starts, keys.astype(np.uint32))

    def look_up(
        self, words: UInt[np.ndarray, "words queries"], radius: int
    ) -> tuple[UInt32[np.ndarray, "queries probes"], UInt32[np.ndarray, "queries probes"]]:
        """Where the positions begin whose substrings differ from the queries' by just `radius` bits, and how many they are."""
        values = _substrings(words[self.word], self.shift, self.width)[:, None] ^ _shell(self.width, radius)
        first = self.starts[values]
        return first, self.starts[values + np.uint32(1)] - first


class MultiIndex:
    """Tables of the codes of a scan. It answers as the scan does.

    Attributes:
        codes: the scan. tables: one a substring. nbytes: their memory, beside that of the codes.

    Raises:
        InputError: for more codes than a table's 32 bits count.
    """

    def __init__(self, codes: Scan):
        if len(codes) > np.iinfo(np.uint32).max:
            raise InputError(f"tables hold 4,294,967,295 codes at most, not {len(codes):,}; search without them",
                             field="multi_index", value=True)
        self.codes = codes
        self.tables = [Table.of(codes.words, *place) for place in _cut(codes)]
        self.nbytes = sum(table.starts.nbytes + table.positions.nbytes for table in self.tables)

    def step(self, number: int) -> tuple[int, int, int]:
        """A step of a search: which table, how many bits differ, and how many buckets those are."""
        radius, table = divmod(number, len(self.tables))
        return table, radius, math.comb(self.tables[table].width, radius)

    def expected(self, number: int) -> int:
        """The buckets and codes that a query looks at in a step among codes without clusters; more, as a rule, among others."""
        table, _, buckets = self.step(number)
        return buckets + (buckets * len(self.codes) >> self.tables[table].width)

    def nearest(self, queries: CodeBits, k: int, mask: Mask = None) -> list[Found]:
        """See `Scan.nearest`."""
        return self._map(queries, functools.partial(_Nearest, k), mask, lambda far: self.codes.nearest(far, k, mask))

    def within(self, queries: CodeBits, radius: int, mask: Mask = None) -> list[Found]:
        """See `Scan.within`."""
        return self._map(queries, functools.partial(_Within, radius), mask, lambda far: self.codes.within(far, radius, mask))

    def _map(
        self, queries: CodeBits, search: Callable[..., "_Within"], mask: Mask, flat: Callable[[CodeBits], list[Found]]
    ) -> list[Found]:
        """What searches of some queries at a time find, on all cores, and the flat scan for those that they give up."""
        words = narrowest_words(queries.positive)
        most, asked, given_up = int(len(self.codes) * LOOKS), 0, 0

        def task(rows: range, lent: None) -> list[Found | None]:
            nonlocal asked, given_up
            if 2 * given_up > asked:  # the rest are like those before
                return [None] * len(rows)
            found = search(self, words[:, rows.start : rows.stop], mask, most).run()
            asked, given_up = asked + len(rows), given_up + sum(each is None for each in found)
            return found

        parts = on_all_cores(task, words.shape[1], QUERIES_A_TASK, lambda: None)
        found = [each for part in parts for each in part]
        far = [row for row, each in enumerate(found) if each is None]
        if far:
            for row, each in zip(far, flat(queries._replace(positive=queries.positive[far])), strict=True):
                found[row] = each
        return found


class _Within:
    """A search of some queries for all codes at no more than some bits.

    Attributes:
        most: the buckets and codes that a query may look at. work: those that each has looked at; too many where it gave up.
        bound: of each query the largest distance that is still asked for.
    """

    def __init__(self, radius: int, index: MultiIndex, words: UInt[np.ndarray, "words queries"], mask: Mask, most: int):
        self.index, self.codes, self.bits = index, index.codes.words, index.codes.bits
        self.words, self.mask, self.most = words, mask, most
        self.bound, self.work = (np.full(words.shape[1], value, np.int64) for value in (radius, 0))
        if sum(map(index.expected, range(radius + 1))) > most:
            self.work[:] = most + 1
        self.kept: list[Int[np.ndarray, "some"]] = []

    def run(self) -> list[Found | None]:
        """Of each query distances and positions, nearest first, ties by position; None where it is too much work."""
        left = np.flatnonzero(self.work <= self.most)
        for number in range(self.bits + 1):
            left = self._going_on(left, number)
            if not len(left):
                break
            table, radius, buckets = self.index.step(number)
            some = max(1, TOGETHER // max(1, buckets))
            for begin in range(0, len(left) if buckets else 0, some):
                self._probe(table, radius, left[begin : begin + some])
        return [None if work > self.most else found for work, found in zip(self.work, self._found(), strict=True)]

    def _going_on(self, rows: Int[np.ndarray, "some"], number: int) -> Int[np.ndarray, "fewer"]:
        """The queries that a step is for: what they ask for may be so far, and they may look at so many more."""
        rows = rows[self.bound[rows] >= number]
        fine = self.work[rows] + self.index.expected(number) <= self.most
        self.work[rows[~fine]] = self.most + 1
        return rows[fine]

    def _probe(self, number: int, radius: int, rows: Int[np.ndarray, "some"]) -> None:
        """Looks some queries up in a table."""
        table = self.index.tables[number]
        first, counts = table.look_up(self.words[:, rows], radius)
        looks = counts.sum(axis=1, dtype=np.int64)
        self.work[rows] += looks + counts.shape[1]
        looking = np.flatnonzero((self.work[rows] <= self.most) & (looks > 0))
        cuts = np.flatnonzero(np.diff(np.cumsum(looks[looking]) // TOGETHER)) + 1
        for begin, end in itertools.pairwise([0, *cuts.tolist(), len(looking)]):
            part = looking[begin:end]
            if len(part):
                positions = table.positions[_ranges(first[part].ravel(), counts[part].ravel())]
                self._look(number, radius, rows[part], looks[part], positions)

    def _look(
        self, number: int, radius: int, rows: Int[np.ndarray, "part"], looks: Int[np.ndarray, "part"],
        positions: UInt32[np.ndarray, "looks"],
    ) -> None:
        """Keeps the near ones of the codes that each of some queries looks at, but for those that an earlier step has seen."""
        differ = self.codes[:, positions]
        differ ^= np.repeat(self.words[:, rows], looks, axis=1)
        distances = np.add.reduce(np.bitwise_count(differ), axis=0, dtype=np.min_scalar_type(self.bits))
        near = np.flatnonzero(distances <= np.repeat(self.bound[rows].astype(distances.dtype), looks))
        for other, table in enumerate(self.index.tables):
            seen = radius - (other > number)  # bits in the other substring, up to which its table has given the code before
            if other != number and seen >= 0:
                near = near[np.bitwise_count(differ[table.word, near] & table.place) > seen]
        if self.mask is not None:
            near = near[self.mask[positions[near]]]
        if len(near):
            self._keep(rows[np.searchsorted(np.cumsum(looks), near, side="right")], distances[near], positions[near])

    def _keep(
        self, rows: Int[np.ndarray, "near"], distances: UInt[np.ndarray, "near"], positions: UInt32[np.ndarray, "near"]
    ) -> None:
        self.kept.append(as_number(rows, distances, positions, self.bits))

    def _found(self) -> list[Found]:
        return in_order(self.kept, len(self.bound), self.bits)


class _Nearest(_Within):
    """A search for the k nearest codes. The k-th of those that were found bounds what is still asked for."""

    def __init__(self, k: int, index: MultiIndex, words: UInt[np.ndarray, "words queries"], mask: Mask, most: int):
        super().__init__(-1, index, words, mask, most)
        self.k = k
        if k:
            self.bound[:] = self.bits
        self.counts = np.zeros((len(self.bound), self.bits + 1), np.int64)  # how many were found at each distance

    def _keep(
        self, rows: Int[np.ndarray, "near"], distances: UInt[np.ndarray, "near"], positions: UInt32[np.ndarray, "near"]
    ) -> None:
        places = rows * (self.bits + 1) + distances
        self.counts += np.bincount(places, minlength=self.counts.size).reshape(self.counts.shape)
        reached = np.cumsum(self.counts, axis=1) >= self.k
        self.bound = np.where(reached[:, -1], reached.argmax(axis=1), self.bound)
        near = np.flatnonzero(distances <= self.bound[rows])
        super()._keep(rows[near], distances[near], positions[near])

    def _found(self) -> list[Found]:
        return [(distances[: self.k], positions[: self.k]) for distances, positions in super()._found()]


def _cut(scan: Scan) -> list[tuple[int, int, int]]:
    """Word, shift and width of the substrings: as few as have no more values than there are codes, alike in width."""
    size, longest = scan.words.dtype.itemsize * 8, max(NARROW, len(scan).bit_length() - 1)
    places = []
    for word in range(len(scan.words)):
        bits = min(size, scan.bits - word * size)
        ends = np.linspace(size, size - bits, -(-bits // longest) + 1).astype(int).tolist()
        places += [(word, low, high - low) for high, low in itertools.pairwise(ends)]
    return places


def _ranges(first: UInt32[np.ndarray, "ranges"], counts: UInt32[np.ndarray, "ranges"]) -> Int[np.ndarray, "total"]:
    """The numbers of all ranges in turn."""
    ends = np.cumsum(counts, dtype=np.int64)
    return np.repeat(first - (ends - counts), counts) + np.arange(ends[-1])


@functools.lru_cache(maxsize=SHELLS)
def _shell(width: int, radius: int) -> UInt32[np.ndarray, "shell"]:
    """All numbers of `width` bits with `radius` ones."""
    ones = np.array(list(itertools.combinations(range(width), radius)), np.uint32)
    return np.bitwise_or.reduce(np.uint32(1) << ones, axis=1, dtype=np.uint32)


def _substrings(words: UInt[np.ndarray, "n"], shift: int, width: int) -> UInt32[np.ndarray, "n"]:
    kind = words.dtype.type
    return ((_first_byte_highest(words) >> kind(shift)) & kind((1 << width) - 1)).astype(np.uint32)


def _first_byte_highest(words: UInt[np.ndarray, "n"]) -> UInt[np.ndarray, "n"]:
    """Words as numbers whose highest byte is the first in memory, so that no bits of padding lie among those of a code."""
    return words.view(words.dtype.newbyteorder(">")).astype(words.dtype)
