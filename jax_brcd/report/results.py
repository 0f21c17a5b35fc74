"""What an evaluation leaves on disk: its metrics, codes and curves as plain values."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_brcd.data import ImageDataset
from jax_brcd.report.grid import RetrievalGrid
from jax_brcd.retrieval import SearchScores, hamming_top_k
from jax_brcd.retrieval.packing import PackedCodes
from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.runtime.files import atomic_path

GRID_QUERIES, GRID_RESULTS = 8, 10
MEASURES = ("map", "tie_aware_map", "soft_map", "cosine_map", "precision")


def metrics(
    protocol: Mapping[str, Any], *, scores: Mapping[str, SearchScores], costs: Mapping[str, Mapping[str, Any]],
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        scores: of the teacher ("teacher") and of the student's searches ("student symmetric", ...), as far as there are; empty
            where the data set has no labels. A measure is None where there is nothing to measure. costs: of each role, with its
            model's name. remarks: on the teacher.
    """
    def row(score: SearchScores) -> dict[str, float | None]:
        return {measure: getattr(score, measure) for measure in MEASURES}

    found = {"teacher": row(scores["teacher"])} if "teacher" in scores else {}
    searches = {str(search): row(scores[f"student {search}"]) for search in SEARCHES if f"student {search}" in scores}
    if searches:
        found["student"] = searches
    return {"protocol": dict(protocol), **found, "costs": {role: dict(cost) for role, cost in costs.items()},
            "remarks": list(remarks)}


def save_codes(path: pathlib.Path, codes: Mapping[str, np.ndarray], dataset: ImageDataset) -> None:
    """Writes the packed codes of every encoder and part, and the labels they are searched with."""
    packed = {name: PackedCodes.of(values).packed for name, values in codes.items()}
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, bits=next(iter(codes.values())).shape[1], test_labels=dataset.test.labels,
                            database_labels=dataset.database.labels, **packed)


def save_curves(path: pathlib.Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes the precision and recall of each search, as (2, radii)."""
    with atomic_path(path) as temporary:
        np.savez(temporary, **{name: np.stack(curve) for name, curve in curves.items()})


def retrieval_grid(dataset: ImageDataset, path: pathlib.Path, encoder: str) -> RetrievalGrid:
    """The first test queries, one a class in turn, with their first ten results.

    Args:
        path: of the codes that `save_codes` wrote. encoder: whose codes of queries and database are searched.
    """
    with np.load(path, allow_pickle=False) as arrays:
        test, database = (PackedCodes(arrays[f"{encoder}_{part}"], int(arrays["bits"])) for part in ("test", "database"))
    queries = _one_a_class(dataset.test.labels, GRID_QUERIES)
    indices, _ = hamming_top_k(test[queries], database, min(GRID_RESULTS, len(database)))
    labels = dataset.test.labels[queries]
    correct = np.einsum("qc,qrc->qr", labels.astype(int), dataset.database.labels[indices].astype(int)) > 0

    def names(rows: np.ndarray) -> list[str]:
        return [dataset.class_names[row.argmax()] if row.any() else "no label" for row in rows]

    return RetrievalGrid(
        query_images=dataset.test.images[queries], query_names=names(labels),
        result_images=dataset.database.images[indices], correct=correct,
        result_names=[names(dataset.database.labels[row]) for row in indices])


def _one_a_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of up to `count` images: the first of each class, then the second, and so on."""
    order = np.lexsort((labels.argmax(axis=1), _occurrence(labels.argmax(axis=1))))
    return order[:count]


def _occurrence(numbers: np.ndarray) -> np.ndarray:
    """How often each entry's value stood before it."""
    seen = np.zeros_like(numbers)
    for value in np.unique(numbers):
        where = np.flatnonzero(numbers == value)
        seen[where] = np.arange(len(where))
    return seen
