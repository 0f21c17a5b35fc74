"""Exact Hamming search by looking at every code, in the order they lie in, from packed bits as they are.

NumPy counts bits of whole words at the speed of memory, and no distance outlives its block. So a search needs little memory
beside the codes, which may lie in a file that is mapped, and starts at once (docs/stores.md, "Speed", has what was measured).
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt, UInt8

from jax_brcd.retrieval.packing import CodeBits
from jax_brcd.retrieval.ranking import on_all_cores

BLOCK = 1 << 16  # codes whose distances are held at once: with their words they stay in a core's own cache
QUERIES_A_TASK = 16  # of a thread, which share a block while it is in the cache
WORD = 8  # bytes of the widest word that NumPy counts in
HEAD = 1 << 11  # codes that say where the search begins to look
SLACK = 64  # candidates beyond twice k that are kept before the nearest are picked from them

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
        return cls(codes.bits, _words(codes.positive))

    def __len__(self) -> int:
        return self.words.shape[1]

    def packed(self) -> UInt8[np.ndarray, "items bytes"]:
        """The bytes of the codes again."""
        return np.ascontiguousarray(self.words.T).view(np.uint8)[:, : -(-self.bits // 8)]

    def nearest(self, queries: CodeBits, k: int, mask: Mask = None) -> list[Found]:
        """Of each query the k nearest codes (of those in `mask`), nearest first, ties by position; fewer where there are fewer."""
        return self._map(queries, functools.partial(_Nearest, k, self.bits), mask)

    def within(self, queries: CodeBits, radius: int, mask: Mask = None) -> list[Found]:
        """Of each query all codes (of those in `mask`) at no more than `radius` bits, nearest first, ties by position."""
        return self._map(queries, functools.partial(_Within, radius), mask)

    def _map(self, queries: CodeBits, collector: Callable[[], "_Within"], mask: Mask) -> list[Found]:
        """What a new collector each finds for the queries: a few at a time on all cores, and one alone on one."""
        words = _words(queries.positive)

        def task(rows: range, lent: _Spare) -> list[Found]:
            collectors = [collector() for _ in rows]
            for begin in range(0, len(self), BLOCK):
                block = self.words[:, begin : begin + BLOCK]
                allowed = None if mask is None else mask[begin : begin + BLOCK]
                for query, own in zip(rows, collectors, strict=True):
                    own.look(begin, lent.distances(block, words[:, query], self.bits), allowed)
            return [own.found() for own in collectors]

        parts = on_all_cores(task, words.shape[1], QUERIES_A_TASK, lambda: _Spare.of(self.words.dtype, self.bits))
        return [found for part in parts for found in part]


@dataclasses.dataclass(frozen=True)
class _Spare:
    """Memory of one thread for the distances of a block."""

    differ: UInt[np.ndarray, "block"]
    ones: UInt8[np.ndarray, "block"]
    total: UInt[np.ndarray, "block"]

    @classmethod
    def of(cls, word: np.dtype, bits: int) -> "_Spare":
        return cls(np.empty(BLOCK, word), np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.min_scalar_type(bits)))

    def distances(
        self, block: UInt[np.ndarray, "words codes"], query: UInt[np.ndarray, "words"], bits: int
    ) -> UInt[np.ndarray, "codes"]:
        """In bits; lent until the next are asked for."""
        differ, ones, total = (part[: block.shape[1]] for part in (self.differ, self.ones, self.total))
        for number, (codes, word) in enumerate(zip(block, query, strict=True)):
            np.bitwise_xor(codes, word, out=differ)
            if len(block) == 1:
                return np.bitwise_count(differ, out=ones)
            np.bitwise_count(differ, out=ones)
            np.add(total, ones, out=total) if number else np.copyto(total, ones)
        return total


class _Within:
    """Collects all codes at no more than some bits."""

    def __init__(self, radius: int):
        self.limit = radius  # the largest distance that is looked for
        self.distances: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.count = 0

    def look(self, begin: int, distances: UInt[np.ndarray, "codes"], allowed: Mask) -> None:
        """Sees the next codes, which begin at that position."""
        if distances.min() > self.limit:
            return
        positions = np.flatnonzero(distances <= self.limit if allowed is None else (distances <= self.limit) & allowed)
        if len(positions):
            self._keep(distances[positions].astype(np.int32), positions + begin)

    def found(self) -> Found:
        """Distances and positions, nearest first."""
        if not self.count:
            return np.empty(0, np.int32), np.empty(0, np.int64)
        distances, positions = np.concatenate(self.distances), np.concatenate(self.positions)
        order = np.argsort(distances, kind="stable")
        return distances[order], positions[order]

    def _keep(self, distances: Int[np.ndarray, "some"], positions: Int[np.ndarray, "some"]) -> None:
        self.distances.append(distances)
        self.positions.append(positions)
        self.count += len(positions)


class _Nearest(_Within):
    """Collects the k nearest codes. Once k are picked a later one must be nearer than the last of them, so ties are by position."""

    def __init__(self, k: int, bits: int):
        super().__init__(bits)
        self.k = k
        self.begun = self.picked = False

    def look(self, begin: int, distances: UInt[np.ndarray, "codes"], allowed: Mask) -> None:
        """See _Within."""
        if not self.begun:  # a few codes bound the k-th distance of all, so that the first block need not be kept whole
            self.begun = True
            head = distances[:HEAD] if allowed is None else distances[:HEAD][allowed[:HEAD]]
            self.limit = _kth_smallest(head, self.k) if len(head) >= self.k else self.limit
        super().look(begin, distances, allowed)

    def found(self) -> Found:
        """See _Within."""
        distances, positions = super().found()
        return distances[: self.k], positions[: self.k]

    def _keep(self, distances: Int[np.ndarray, "some"], positions: Int[np.ndarray, "some"]) -> None:
        if len(positions) > self.k:
            near = distances <= _kth_smallest(distances, self.k)
            distances, positions = distances[near], positions[near]
        super()._keep(distances, positions)
        if self.count >= (2 * self.k + SLACK if self.picked else self.k):
            distances, positions = self.found()
            self.distances, self.positions, self.count = [distances], [positions], len(positions)
            self.limit, self.picked = int(distances[-1]) - 1, True


def _kth_smallest(distances: Integer[np.ndarray, "some"], k: int) -> int:
    return int(np.searchsorted(np.cumsum(np.bincount(distances)), k))


def _words(packed: UInt8[np.ndarray, "n bytes"]) -> UInt[np.ndarray, "words n"]:
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
