"""Exact Hamming search of 64 bits from tables (multi-index hashing) beside the flat scan: codes in clusters and without."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.results import Row, measure
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender
from jax_brcd.retrieval import HammingIndex, PackedCodes
from jax_brcd.settings.command_line import run_command

BITS = 64
OURS, FLAT = "jax_brcd, multi_index", "flat scan, NumPy or XLA"
RADII = (2, 6)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How codes are drawn: a centre, of which each bit is flipped by a chance; or no centres, all bits by chance."""

    clusters: int = 0
    flipped: float = 0.5

    def __str__(self) -> str:
        return f"{self.clusters:,} clusters, {self.flipped:.0%} flipped" if self.clusters else "no clusters"

    def draw(self, count: int, seed: int) -> PackedCodes:
        """So many codes, around the same centres whatever the seed."""
        rng = np.random.default_rng(seed)
        if not self.clusters:
            return PackedCodes(rng.integers(0, 256, (count, BITS // 8), np.uint8), BITS)
        centres = np.random.default_rng(self.clusters).integers(0, 2**64, self.clusters, np.uint64)
        codes = centres[rng.integers(self.clusters, size=count)]
        for bit in range(BITS):
            codes ^= (rng.random(count, np.float32) < self.flipped).astype(np.uint64) << np.uint64(bit)
        return PackedCodes(codes.view(np.uint8).reshape(count, -1), BITS)


@dataclasses.dataclass(frozen=True)
class Size:
    """How many codes of which kinds are searched, for how many neighbours, by how many queries at once and one at a time."""

    codes: int
    kinds: tuple[Kind, ...]
    k: tuple[int, ...] = (10, 100)
    together: int = 1_000
    alone: int = 50

    def case(self, kind: Kind, what: str) -> str:
        """What is done with the codes of a kind, as the results call it."""
        return f"{what}: {kind}, {self.codes:,} codes"

    def at_once(self, what: str) -> str:
        """So many queries together, as the results call them."""
        return f"{self.together:,} at once, {what}"


FULL = Size(10_000_000, (Kind(10_000, 0.05), Kind(10_000, 0.1), Kind(100, 0.05), Kind()))
QUICK = Size(10_000_000, (Kind(10_000, 0.1), Kind()), k=(10,))


def measure_multi_index(settings: Settings, size: Size | None = None) -> Iterator[Row]:
    """Every kind of codes in turn."""
    size = size or (QUICK if settings.quick else FULL)
    timing = {"samples": settings.samples, "budget": settings.case_seconds}
    for kind in size.kinds:
        codes, queries = kind.draw(size.codes, 0), kind.draw(size.together, 1)
        indices = {FLAT: HammingIndex(codes), OURS: HammingIndex(codes, multi_index=True)}
        note = f"{indices[OURS].table_bytes / size.codes:.1f} bytes a code"
        make = Contender(OURS, lambda codes=codes: HammingIndex(codes, multi_index=True), note=note)
        yield from measure(size.case(kind, "making tables"), [make], items=size.codes, unit="codes", samples=3, budget=0.0)
        check_agreement(indices, queries, max(size.k))
        for case, asked, search in searches(size, queries):
            contenders = [Contender(name, lambda index=index, search=search: search(index)) for name, index in indices.items()]
            yield from measure(size.case(kind, case), contenders, items=asked, unit="queries", **timing)
        del codes, indices


def one_at_a_time(k: int) -> str:
    """Queries that are asked one after the other, as the results call them."""
    return f"one at a time, k {k}"


def searches(size: Size, queries: PackedCodes) -> Iterator[tuple[str, int, Callable[[HammingIndex], Any]]]:
    """What is timed: its name, the queries that it asks, and the call."""
    single = [queries[row] for row in range(min(size.alone, size.together))]
    for k in size.k:
        yield one_at_a_time(k), len(single), lambda index, k=k: [index.search(query, k) for query in single]
        yield size.at_once(f"k {k}"), size.together, lambda index, k=k: index.search(queries, k)
    for radius in RADII:
        yield (size.at_once(f"radius {radius}"), size.together,
               lambda index, radius=radius: index.search_radius(queries, radius))


def check_agreement(indices: dict[str, HammingIndex], queries: PackedCodes, k: int) -> None:
    """Raises ArithmeticError where the tables find something else than the flat scan."""
    ours, flat = (indices[name].search(queries, k) for name in (OURS, FLAT))
    if not all(map(np.array_equal, ours, flat)):
        raise ArithmeticError(f"{OURS} finds other codes than {FLAT}")


SUITE = Suite("multi_index", __doc__, measure_multi_index)

if __name__ == "__main__":
    run_command(SUITE.main)
