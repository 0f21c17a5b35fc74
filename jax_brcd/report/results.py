"""What a run leaves on disk: its metrics, history and codes as plain values."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_brcd.data import ImageDataset
from jax_brcd.report import RetrievalGrid
from jax_brcd.retrieval import SearchScores, hamming_top_k
from jax_brcd.retrieval.packing import pack_codes
from jax_brcd.runtime.files import atomic_path
from jax_brcd.stages.evaluation import EncoderCost

GRID_QUERIES, GRID_RESULTS = 8, 10


def metrics(
    dataset: ImageDataset, *, k: int, bits: int, seed: int, scores: Mapping[str, SearchScores],
    models: Mapping[str, EncoderCost], names: Mapping[str, str],
) -> dict[str, Any]:
    """The content of metrics.json. `scores` are of the teacher and of both searches of the student; empty
    where the data set has no labels."""

    def row(name: str) -> dict[str, float]:
        score = scores[name]
        return {"map": score.map, "tie_aware_map": score.tie_aware_map, "precision": score.precision}

    costs = {role: {"model": names[role], "parameters": cost.parameters, "flops": cost.flops,
                    "images_per_second": cost.images_per_second} for role, cost in models.items()}
    evaluated = {
        "teacher": row("teacher"),
        "student": {"symmetric": row("student symmetric"), "asymmetric": row("student asymmetric")},
    } if scores else {}
    return {
        "protocol": {"dataset": dataset.name, "split": dataset.split, "queries": len(dataset.test),
                     "database": len(dataset.database), "training": len(dataset.train), "k": k, "ties": "stable",
                     "bits": bits, "seed": seed},
        **evaluated,
        "costs": costs,
    }


def save_codes(path: pathlib.Path, codes: Mapping[str, np.ndarray], dataset: ImageDataset) -> None:
    """Writes the packed codes of every encoder and part, and the labels they are searched with."""
    packed = {name: pack_codes(values) for name, values in codes.items()}
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, bits=next(iter(codes.values())).shape[1], test_labels=dataset.test.labels,
                            database_labels=dataset.database.labels, **packed)


def write_history(path: pathlib.Path, history: list[dict[str, Any]]) -> None:
    """Writes one JSON line an epoch."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in history))


def retrieval_grid(dataset: ImageDataset, query_codes: np.ndarray, database_codes: np.ndarray) -> RetrievalGrid:
    """The first test queries, one a class in turn, with their first ten results."""
    queries = _one_a_class(dataset.test.labels, GRID_QUERIES)
    indices, _ = hamming_top_k(query_codes[queries], database_codes, min(GRID_RESULTS, len(database_codes)))
    labels = dataset.test.labels[queries]
    correct = np.einsum("qc,qrc->qr", labels.astype(int), dataset.database.labels[indices].astype(int)) > 0

    def names(rows: np.ndarray) -> list[str]:
        return [dataset.class_names[number] for number in rows.argmax(axis=-1)]

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
