"""Exact Hamming search by looking at every code, in the order they lie in, from packed bits as they are.

No distance outlives its block, so a search needs little memory beside the codes, which may lie in a file that is mapped. For a
few queries NumPy counts the bits of whole words, at the speed of memory and with nothing to compile; for many XLA does, which
keeps no words in between and so is faster (docs/stores.md, "Speed", has what was measured).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer, UInt, UInt8

from jax_brcd.retrieval.packing import CodeBits
from jax_brcd.retrieval.ranking import on_all_cores

BLOCK = 1 << 16  # codes whose distances are held at once: with their words they stay in a core's own cache
QUERIES_A_TASK, FEW_A_TASK = 64, 8  # of a thread, by XLA and by NumPy
FEW = 32  # queries that NumPy is faster for
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
        counter, together = (_ByNumPy, FEW_A_TASK) if words.shape[1] <= FEW else (_ByXLA, QUERIES_A_TASK)

        def task(rows: range, lent: _ByNumPy | _ByXLA) -> list[Found]:
            collectors = [collector() for _ in rows]
            for begin in range(0, len(self), BLOCK):
                block = self.words[:, begin : begin + BLOCK]
                allowed = None if mask is None else mask[begin : begin + BLOCK]
                for own, distances in zip(collectors, lent.distances(block, words[:, rows.start : rows.stop]), strict=True):
                    own.look(begin, distances, allowed)
            return [own.found() for own in collectors]

        parts = on_all_cores(task, words.shape[1], together, lambda: counter(self.words.dtype, self.bits))
        return [found for part in parts for found in part]


class _ByNumPy:
    """Distances of a query at a time; the memory for a block is one thread's own."""

    def __init__(self, word: np.dtype, bits: int):
        self.differ, self.ones = np.empty(BLOCK, word), np.empty(BLOCK, np.uint8)
        self.total = np.empty(BLOCK, np.min_scalar_type(bits))

    def distances(
        self, block: UInt[np.ndarray, "words codes"], queries: UInt[np.ndarray, "words queries"]
    ) -> Iterator[UInt[np.ndarray, "codes"]]:
        """Of each query in bits, lent until the next are asked for."""
        differ, ones, total = (part[: block.shape[1]] for part in (self.differ, self.ones, self.total))
        for query in queries.T:
            for number, (codes, word) in enumerate(zip(block, query, strict=True)):
                np.bitwise_xor(codes, word, out=differ)
                np.bitwise_count(differ, out=ones)
                if len(block) > 1:
                    np.add(total, ones, out=total) if number else np.copyto(total, ones)
            yield ones if len(block) == 1 else total


class _ByXLA:
    """Distances of all queries of a task at once."""

    def __init__(self, word: np.dtype, bits: int):
        self.type = np.min_scalar_type(bits)

    def distances(
        self, block: UInt[np.ndarray, "words codes"], queries: UInt[np.ndarray, "words queries"]
    ) -> UInt[np.ndarray, "queries codes"]:
        """In bits. Codes are padded to a whole block and queries to a whole task, so that no number of them compiles anew."""
        count, codes = queries.shape[1], block.shape[1]
        found = _distances(_narrow(queries, QUERIES_A_TASK), _narrow(block, BLOCK), dtype=self.type)
        return np.asarray(found)[:count, :codes]


@functools.partial(jax.jit, static_argnames="dtype")
def _distances(
    queries: UInt[Array, "words queries"], codes: UInt[Array, "words codes"], *, dtype: np.dtype
) -> UInt[Array, "queries codes"]:
    return jnp.sum(jax.lax.population_count(queries[:, :, None] ^ codes[:, None, :]).astype(dtype), axis=0, dtype=dtype)


def _narrow(words: UInt[np.ndarray, "words n"], size: int) -> UInt[np.ndarray, "halves size"]:
    """Words of no more than JAX's 32 bits, `size` of them a row."""
    halves = max(1, words.dtype.itemsize // 4)
    narrow = np.zeros((len(words), halves, size), np.uint32 if halves > 1 else words.dtype)
    narrow[:, :, : words.shape[1]] = np.ascontiguousarray(words).view(narrow.dtype).reshape(len(words), -1, halves).swapaxes(1, 2)
    return narrow.reshape(-1, size)


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
