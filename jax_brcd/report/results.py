"""What an evaluation leaves on disk: its metrics, codes and curves as plain values."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_brcd.data import ImageDataset
from jax_brcd.report.grid import RetrievalGrid
from jax_brcd.retrieval import SearchScores, average_precisions, hamming_top_k
from jax_brcd.retrieval.packing import PackedCodes
from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.runtime.files import atomic_path

GRID_QUERIES, GRID_RESULTS = 8, 10
MEASURES = ("map", "tie_aware_map", "soft_map", "cosine_map", "precision")


def metrics(
    protocol: Mapping[str, Any], *, scores: Mapping[str, SearchScores], costs: Mapping[str, Mapping[str, Any]],
    remarks: Sequence[str] = (), validation: float | None = None,
) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        scores: of the teacher ("teacher") and of the student's searches ("student symmetric", ...), as far as there are; empty
            where the data set has no labels. A measure is None where there is nothing to measure. costs: of each role, with its
            model's name. remarks: on the teacher. validation: its mAP of the validation queries, beside which a student's stand.
    """
    def row(score: SearchScores) -> dict[str, float | None]:
        return {measure: getattr(score, measure) for measure in MEASURES}

    found = {"teacher": row(scores["teacher"])} if "teacher" in scores else {}
    searches = {str(search): row(scores[f"student {search}"]) for search in SEARCHES if f"student {search}" in scores}
    if searches:
        found["student"] = searches
    if validation is not None:
        found["validation"] = {"teacher": {"map": validation}}
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
    test, database = _codes(path, encoder, "test"), _codes(path, encoder, "database")
    queries = _one_a_class(dataset.test.labels, GRID_QUERIES)
    indices, _ = hamming_top_k(test[queries], database, min(GRID_RESULTS, len(database)))
    return _grid(dataset, queries, indices, _names(dataset, dataset.test.labels[queries]),
                 f"Queries and their first {indices.shape[1]} results by Hamming distance")


def lost_grids(dataset: ImageDataset, path: pathlib.Path, k: int) -> dict[str, RetrievalGrid]:
    """For each search the test queries whose average precision fell most from the teacher's to the student's, with what either
    found first; without the searches in which none fell.

    Args:
        path: of the codes that `save_codes` wrote. k: ranks that average precision looks at.
    """
    labels = dataset.test.labels, dataset.database.labels
    teacher = _codes(path, "teacher", "test"), _codes(path, "teacher", "database")
    known, first, grids = average_precisions(*teacher, *labels, k), min(GRID_RESULTS // 2, len(dataset.database)), {}
    for search in SEARCHES:
        encoders = {"teacher": "teacher", "student": str(search)}
        student = _codes(path, str(search), "test"), _codes(path, encoders[search.database], "database")
        found = average_precisions(*student, *labels, k)
        queries = np.argsort(found - known, kind="stable")[:GRID_QUERIES]
        queries = queries[found[queries] < known[queries]]
        if len(queries):
            indices = [hamming_top_k(test[queries], database, first)[0] for test, database in (teacher, student)]
            names = [f"{name}\n{known[query]:.2f}, then {found[query]:.2f}"
                     for name, query in zip(_names(dataset, dataset.test.labels[queries]), queries, strict=True)]
            grids[str(search)] = _grid(dataset, queries, np.concatenate(indices, axis=1), names,
                                       f"Average precision that the student lost in {search} search",
                                       (("teacher", first), ("student", first)))
    return grids


def bit_agreement(path: pathlib.Path) -> dict[str, np.ndarray]:
    """For each search's encoder and each bit (bits,) the share of test queries of which student and teacher give the same.

    Args:
        path: of the codes that `save_codes` wrote.
    """
    teacher = _codes(path, "teacher", "test").unpack()
    return {f"student {search}": (_codes(path, str(search), "test").unpack() == teacher).mean(axis=0) for search in SEARCHES}


def _codes(path: pathlib.Path, encoder: str, part: str) -> PackedCodes:
    with np.load(path, allow_pickle=False) as arrays:
        return PackedCodes(arrays[f"{encoder}_{part}"], int(arrays["bits"]))


def _names(dataset: ImageDataset, labels: np.ndarray) -> list[str]:
    return [dataset.class_names[row.argmax()] if row.any() else "no label" for row in labels]


def _grid(dataset: ImageDataset, queries: np.ndarray, indices: np.ndarray, names: list[str], title: str,
          columns: tuple[tuple[str, int], ...] = ()) -> RetrievalGrid:
    """Queries by number with the database's images (queries, results) that were found for them."""
    labels = dataset.test.labels[queries]
    correct = np.einsum("qc,qrc->qr", labels.astype(int), dataset.database.labels[indices].astype(int)) > 0
    return RetrievalGrid(
        query_images=dataset.test.images[queries], query_names=names, result_images=dataset.database.images[indices],
        correct=correct, result_names=[_names(dataset, dataset.database.labels[row]) for row in indices], title=title,
        columns=columns)


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
