"""Exact Hamming search of 64 bits in an index and in a store on disk, beside faiss and XLA: one query, many, opening, adding."""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.memory import peak_in_child
from benchmarks.results import Row, Skipped, measure
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender
from jax_brcd.retrieval import HammingIndex, PackedCodes
from jax_brcd.retrieval.packing import code_bits
from jax_brcd.retrieval.ranking import Database, rank
from jax_brcd.search import open_store
from jax_brcd.settings.command_line import run_command

BITS, K = 64, 10
OURS, FAISS, XLA = "jax_brcd", "faiss, one thread", "XLA, all distances"
ADDED_AT_ONCE = 100_000  # as an indexing run does, and more


@dataclasses.dataclass(frozen=True)
class Size:
    """How many codes are searched, by how many queries at once, and how many there are where memory is measured (0: nowhere)."""

    codes: int
    queries: int
    memory: int

    @property
    def cases(self) -> dict[str, int]:
        """How many queries are asked at once, by what the results call it."""
        return {f"{told}, {self.codes:,} codes": count
                for told, count in (("1 query", 1), (f"{self.queries:,} queries", self.queries))}


SIZE = Size(1_000_000, 1_000, 10_000_000)  # quick or not: fewer would say nothing of memory's speed


def random_codes(count: int, seed: int) -> PackedCodes:
    """Codes of coins tossed."""
    return PackedCodes(np.random.default_rng(seed).integers(0, 256, (count, BITS // 8), np.uint8), BITS)


def searches(codes: PackedCodes, queries: PackedCodes) -> dict[str, Callable[[], Any]]:
    """What is timed, by contender; each returns distances and positions."""
    index, database = HammingIndex(codes), Database.of(codes)

    def by_xla() -> tuple[np.ndarray, np.ndarray]:
        positions, doubled = rank(code_bits(queries), database, K)
        return doubled // 2, positions

    calls = {OURS: lambda: index.search(queries, K), XLA: by_xla}
    if machine.installed("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)
        flat = faiss.IndexBinaryFlat(BITS)
        flat.add(np.ascontiguousarray(codes.packed))
        calls[FAISS] = lambda: flat.search(np.ascontiguousarray(queries.packed), K)
    return calls


def check_agreement(calls: dict[str, Callable[[], Any]]) -> None:
    """Raises ArithmeticError where contenders find items at other distances."""
    expected = calls[OURS]()[0]
    for name, call in calls.items():
        if not np.array_equal(call()[0], expected):
            raise ArithmeticError(f"{name} finds other distances than {OURS}")


def filled_store(folder: pathlib.Path, codes: PackedCodes) -> str:
    """The path of a new SQLite store that holds the codes, with attributes as those of photos."""
    path = str(folder / "photos.brcd")
    with contextlib.closing(open_store(path, create_for=codes)) as store:
        for begin in range(0, len(codes), ADDED_AT_ONCE):
            numbers = range(begin, min(begin + ADDED_AT_ONCE, len(codes)))
            ids = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in numbers]  # in no order, as digests are
            store.add(ids, codes[numbers.start : numbers.stop],
                      [{"path": f"/photos/2024/{number}.jpg", "folder": "/photos/2024", "size": number} for number in numbers])
    return path


def opened(path: str, query: PackedCodes) -> None:
    """A store is opened and asked once."""
    with contextlib.closing(open_store(path)) as store:
        store.search(query, K)


def memory_call(file: str):
    """What the child process that measures memory runs: an index of mapped codes that is asked once."""
    query = random_codes(1, 1)
    return lambda: HammingIndex(PackedCodes.load(file, mapped=True)).search(query, K)


def measure_search(settings: Settings, size: Size = SIZE) -> Iterator[Row | Skipped]:
    """Every case in turn."""
    timing = {"samples": settings.samples, "budget": settings.case_seconds}
    codes = random_codes(size.codes, 0)
    for case, count in size.cases.items():
        calls = searches(codes, random_codes(count, 1))
        check_agreement(calls)
        if FAISS not in calls:
            yield Skipped(FAISS, "pip install faiss-cpu")
        yield from measure(case, [Contender(name, call) for name, call in calls.items()], items=count, unit="queries", **timing)
        del calls
    folder = pathlib.Path(tempfile.mkdtemp(prefix="benchmark"))
    try:
        yield from _of_store(folder, codes, timing)
        if size.memory:
            yield from _of_memory(folder, size)
    finally:
        shutil.rmtree(folder)


def _of_store(folder: pathlib.Path, codes: PackedCodes, timing: Mapping[str, Any]) -> Iterator[Row]:
    """Adding to a SQLite store, and opening it."""
    numbers = iter(range(1000))

    def add() -> None:
        place = folder / str(next(numbers))
        place.mkdir()
        filled_store(place, codes)

    yield from measure(f"adding {len(codes):,} codes to a SQLite store", [Contender(OURS, add)], items=len(codes), unit="codes",
                       samples=1, budget=0.0)
    path, query = str(folder / "0" / "photos.brcd"), random_codes(1, 1)
    yield from measure(f"opening a SQLite store of {len(codes):,} codes, with a search",
                       [Contender(OURS, lambda: opened(path, query))], **timing)


def _of_memory(folder: pathlib.Path, size: Size) -> Iterator[Row | Skipped]:
    file = folder / "codes.safetensors"
    random_codes(size.memory, 2).save(file)
    peak, reason = peak_in_child("search", file)
    case = f"memory of 1 query, {size.memory:,} codes ({size.memory * BITS // 8 / 2**20:.0f} MiB)"
    yield Skipped(case, reason) if peak is None else Row(case, OURS, peak_bytes=peak)


SUITE = Suite("search", __doc__, measure_search)

if __name__ == "__main__":
    run_command(SUITE.main)
