"""mAP@1000 of exact Hamming searches at 64 bits, over databases of 10,000 to 1,000,000 codes: queries a second."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks import published
from benchmarks.memory import peak_in_child
from benchmarks.results import Row, Skipped, measure
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender
from jax_brcd.retrieval import mean_average_precision
from jax_brcd.settings.command_line import run_command
from torch_ref import retrieval as reference

BITS, K, CLASSES = 64, 1000, 10
OURS, BATCHED, PUBLISHED, REFERENCE = "jax_brcd", "PyTorch, batched top-k", "NumPy, published style", "torch_ref"
QUERIES_A_BATCH = 128


@dataclasses.dataclass(frozen=True)
class Size:
    """One case. The slower contenders search with `sampled` of the queries and are projected to all."""

    queries: int
    database: int
    sampled: int
    memory: bool = False

    @property
    def name(self) -> str:
        """What the results call it."""
        return f"{self.queries:,} queries, {self.database:,} codes"


QUICK = (Size(5_000, 10_000, 200), Size(5_000, 50_000, 100), Size(200, 1_000_000, 8))
FULL = (Size(5_000, 10_000, 1_000), Size(5_000, 50_000, 500), Size(5_000, 200_000, 100),
        Size(10_000, 1_000_000, 32, memory=True))

Search = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def search_of(queries: int, database: int) -> Search:
    """Codes of ten classes with a fifth of the bits wrong, as trained codes are, and their one-hot labels."""
    draw = np.random.default_rng(0)
    means = draw.choice((-1.0, 1.0), (CLASSES, BITS)).astype(np.float32)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        classes = draw.integers(CLASSES, size=count)
        kept = draw.random((count, BITS), dtype=np.float32) < 0.8
        return np.where(kept, means[classes], -means[classes]), np.eye(CLASSES, dtype=np.float32)[classes]

    (query_codes, query_labels), (codes, labels) = part(queries), part(database)
    return query_codes, codes, query_labels, labels


@torch.inference_mode()
def batched(query_codes, codes, query_labels, labels, k: int) -> float:
    """mAP@k with PyTorch, many queries at once: a matrix product for distances, torch.topk (ties in any order)."""
    query_codes, codes, query_labels, labels = map(torch.from_numpy, (query_codes, codes, query_labels, labels))
    total = 0.0
    for rows, row_labels in zip(query_codes.split(QUERIES_A_BATCH), query_labels.split(QUERIES_A_BATCH), strict=True):
        nearest = torch.topk(rows @ codes.T, k, dim=1).indices
        relevant = torch.einsum("qc,qkc->qk", row_labels, labels[nearest]) > 0
        hits = relevant.cumsum(dim=1)
        precision = torch.where(relevant, hits / torch.arange(1, k + 1), 0.0)
        total += float((precision.sum(dim=1) / hits[:, -1].clamp(min=1)).sum())
    return total / len(query_codes)


def contenders_of(size: Size) -> list[Contender]:
    """The contenders of a case."""
    query_codes, codes, query_labels, labels = search_of(size.queries, size.database)

    def contender(name: str, function, count: int) -> Contender:
        whole = count >= size.queries
        note = "" if whole else f"{name} projected from {count:,} of {size.queries:,} queries"
        return Contender(name, lambda: function(query_codes[:count], codes, query_labels[:count], labels, K),
                         share=1.0 if whole else count / size.queries, note=note)

    return [contender(OURS, mean_average_precision, size.queries),
            contender(BATCHED, batched, min(size.queries, 8 * size.sampled)),
            contender(PUBLISHED, published.mean_average_precision, size.sampled),
            contender(REFERENCE, reference.mean_average_precision, size.sampled)]


def memory_call(queries: str, database: str):
    """What the child process that measures memory runs."""
    query_codes, codes, query_labels, labels = search_of(int(queries), int(database))
    return lambda: mean_average_precision(query_codes, codes, query_labels, labels, K)


def measure_evaluate(settings: Settings, sizes: tuple[Size, ...] | None = None) -> Iterator[Row | Skipped]:
    """Every size in turn."""
    for size in sizes or (QUICK if settings.quick else FULL):
        peaks = {}
        if size.memory:
            peaks[OURS], reason = peak_in_child("evaluate", size.queries, size.database)
            if peaks[OURS] is None:
                yield Skipped(f"peak memory, {size.name}", reason)
        yield from measure(size.name, contenders_of(size), items=size.queries, unit="queries", peaks=peaks,
                           sweep=(f"{BITS} bits, mAP@{K}, {size.queries:,} queries", "database items", size.database),
                           samples=settings.samples, budget=settings.case_seconds)


SUITE = Suite("evaluate", __doc__, measure_evaluate)

if __name__ == "__main__":
    run_command(SUITE.main)
