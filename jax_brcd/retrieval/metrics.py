"""Measures of a Hamming search: mAP@k as published and in expectation over ties, precision@k, precision-recall by radius."""

import dataclasses
from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped, UInt32

from jax_brcd.retrieval.packing import CodeBits, Codes, check_spaces, code_bits, is_real, pack_bits
from jax_brcd.retrieval.ranking import Database, Distances, as_words, check_search, map_queries, nearest
from jax_brcd.retrieval.ties import expected_average_precisions
from jax_brcd.runtime.errors import InputError

# Matrices (n, classes) of 0 and 1. Shape and values are checked here, which says more than a shape checker
Labels = Shaped[np.ndarray | Array, "..."]
Curve = tuple[Float[np.ndarray, "radii"], Float[np.ndarray, "radii"]]


@dataclasses.dataclass(frozen=True)
class SearchScores:
    """The quality of one search. `curve` is (precision, recall) at the Hamming radii 0..bits."""

    map: float
    tie_aware_map: float
    precision: float
    curve: Curve


@dataclasses.dataclass(frozen=True)
class _Found:
    """What some queries found: whether each of their top k is relevant and, if counted, the items at each doubled distance."""

    ranked: Bool[np.ndarray, "queries k"]
    items: Integer[np.ndarray, "queries distances"] | None = None
    relevant: Integer[np.ndarray, "queries distances"] | None = None


def evaluate_search(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    k: SupportsIndex,
) -> SearchScores:
    """All measures in one pass over the distances. Arguments and errors as `mean_average_precision`."""
    published, expected, precision, precisions, recalls = _measure(
        query_codes, database_codes, query_labels, database_labels, k,
        lambda found: (_average_precisions(found), _expected(found), found.ranked.mean(axis=1), *_curves(found)),
        counted=True)
    return SearchScores(map=float(published.mean()), tie_aware_map=float(expected.mean()), precision=float(precision.mean()),
                        curve=_mean_curve(precisions, recalls))


def mean_average_precision(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    k: SupportsIndex,
) -> float:
    """mAP@k as published: precision averaged over the relevant items among the top k, ties by database index.

    A query without a relevant item among its top k scores 0 (docs/method.md, "Search and its measure").

    Args:
        query_codes, database_codes: packed codes, or matrices (n, bits) of -1, 0 and +1 or of bool. query_labels,
            database_labels: one-hot or multi-hot (n, classes) of 0 and 1 or of bool; items that share a label are relevant
            to each other. k: ranks looked at.

    Raises:
        InputError: for k < 1 or beyond the database, where shapes or code spaces do not fit, codes or labels hold other
            values, or there is no query.
    """
    return _mean(_average_precisions, query_codes, database_codes, query_labels, database_labels, k)


def precision_at_k(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    k: SupportsIndex,
) -> float:
    """Share of relevant items among the top k, ties by database index. Arguments and errors as `mean_average_precision`."""
    return _mean(lambda found: found.ranked.mean(axis=1), query_codes, database_codes, query_labels, database_labels, k)


def tie_aware_mean_average_precision(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    k: SupportsIndex,
) -> float:
    """The exact expectation of mAP@k over all orders of items at the same distance (after McSherry and Najork, ECIR 2008).

    It does not depend on the order of the database. Arguments and errors as `mean_average_precision`.
    """
    return _mean(_expected, query_codes, database_codes, query_labels, database_labels, k, counted=True)


def precision_recall_curve(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
) -> Curve:
    """Precision and recall of the ball of each Hamming radius 0..bits, averaged over the queries.

    An empty ball has precision 0, as an empty answer found nothing; a query with no relevant item in the database has no
    recall and is left out of both. Arguments and errors as `mean_average_precision`.

    Returns:
        precision (bits + 1,), recall (bits + 1,); all 0 where every query is left out.
    """
    return _mean_curve(*_measure(query_codes, database_codes, query_labels, database_labels, 1, _curves, counted=True))


def _measure(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    k: SupportsIndex,
    measures: Callable[[_Found], tuple[np.ndarray, ...]],
    *,
    counted: bool,
) -> list[np.ndarray]:
    """`measures` of all queries, each an array with one row a query; the counts only where they are asked for."""
    check_spaces(query_codes, database_codes)
    queries, database = code_bits(query_codes), Database.of(database_codes)
    k = check_search(queries, database, k)
    classes_of_queries, classes_of_database = _packed_labels(queries, query_labels, database, database_labels)
    n_distances = 2 * queries.bits + 1

    def relevance(query: Any, items: Any) -> Bool[np.ndarray, "*items"]:
        return (classes_of_queries[:, query, None] & classes_of_database[:, items]).any(axis=0)

    def search(rows: range, lent: list[Distances]) -> tuple[np.ndarray, ...]:
        ranked = relevance(rows, np.stack([nearest(distances, k) for distances in lent]))
        if not counted:
            return measures(_Found(ranked))
        counts = np.empty((len(rows), n_distances, 2), np.int64)
        for row, query in enumerate(rows):
            # The last bit tells relevant items apart, so that one count over the database serves both
            place = 2 * lent[row].doubled[: len(database)].astype(np.uint16) + relevance(query, slice(None))
            counts[row] = np.bincount(place, minlength=2 * n_distances).reshape(n_distances, 2)
        return measures(_Found(ranked, items=counts.sum(axis=2), relevant=counts[:, :, 1]))

    return [np.concatenate(parts) for parts in zip(*map_queries(search, queries, database), strict=True)]


def _mean(measure: Callable[[_Found], Float[np.ndarray, "queries"]], *search, counted: bool = False) -> float:
    (values,) = _measure(*search, lambda found: (measure(found),), counted=counted)
    return float(values.mean())


def _packed_labels(
    queries: CodeBits, query_labels: Labels, database: Database, database_labels: Labels
) -> tuple[UInt32[np.ndarray, "words n"], ...]:
    """Labels as words, checked against the codes they belong to."""
    words, classes = [], []
    for count, labels, what in ((len(queries.positive), query_labels, "query"), (len(database), database_labels, "database")):
        labels = np.asarray(labels)
        if labels.ndim != 2 or not (labels.dtype == bool or is_real(labels)) or not np.array_equal(labels, labels > 0):
            raise InputError(f"{what} labels must be a one-hot or multi-hot matrix (n, classes) of 0 and 1; of class numbers "
                             "make one by np.eye(classes)[numbers]")
        if labels.shape[1] == 0:
            raise InputError(f"{what} labels of no classes tell nothing apart; give at least one class")
        if len(labels) != count:
            raise InputError(f"{count} {what} codes, but {len(labels)} rows of labels; give one row a code")
        words.append(as_words(pack_bits(labels > 0)))
        classes.append(labels.shape[1])
    if classes[0] != classes[1]:
        raise InputError(f"query labels of {classes[0]} classes, database labels of {classes[1]}; give both the same classes")
    return tuple(words)


def _average_precisions(found: _Found) -> Float[np.ndarray, "queries"]:
    hits = np.cumsum(found.ranked, axis=1)
    precisions = np.where(found.ranked, hits / np.arange(1, hits.shape[1] + 1), 0.0)
    return precisions.sum(axis=1) / np.maximum(hits[:, -1], 1)


def _expected(found: _Found) -> Float[np.ndarray, "queries"]:
    return expected_average_precisions(found.items, found.relevant, found.ranked.shape[1])


def _curves(found: _Found) -> tuple[Float[np.ndarray, "queries radii"], Float[np.ndarray, "queries radii"]]:
    """Precision and recall of the ball of each radius; recall is NaN for a query with no relevant item."""
    items, relevant = (np.cumsum(part, axis=1)[:, ::2] for part in (found.items, found.relevant))
    total = relevant[:, -1:]
    return relevant / np.maximum(items, 1), relevant / np.where(total > 0, total, np.nan)


def _mean_curve(precisions: Float[np.ndarray, "queries radii"], recalls: Float[np.ndarray, "queries radii"]) -> Curve:
    counted = ~np.isnan(recalls[:, 0])
    if not counted.any():
        return np.zeros(precisions.shape[1]), np.zeros(precisions.shape[1])
    return precisions[counted].mean(axis=0), recalls[counted].mean(axis=0)
