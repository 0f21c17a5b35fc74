"""Measures of a Hamming search: mAP@k as published and in expectation over ties, precision@k, precision-recall by radius."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Num, UInt32

from jax_brcd.retrieval.packing import pack_codes
from jax_brcd.retrieval.ranking import (
    DatabaseCodes,
    Distances,
    QueryCodes,
    as_words,
    check_search,
    map_queries,
    nearest,
    packed,
)
from jax_brcd.retrieval.ties import expected_average_precisions

QueryLabels = Num[np.ndarray | Array, "query_rows query_classes"]
DatabaseLabels = Num[np.ndarray | Array, "database_rows database_classes"]
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
    query_codes: QueryCodes,
    database_codes: DatabaseCodes,
    query_labels: QueryLabels,
    database_labels: DatabaseLabels,
    k: int,
) -> SearchScores:
    """All measures in one pass over the distances. Arguments and errors as `mean_average_precision`."""
    published, expected, precision, precisions, recalls = _measure(
        query_codes, database_codes, query_labels, database_labels, k,
        lambda found: (_average_precisions(found), _expected(found), found.ranked.mean(axis=1), *_curves(found)),
        counted=True)
    return SearchScores(map=float(published.mean()), tie_aware_map=float(expected.mean()), precision=float(precision.mean()),
                        curve=_mean_curve(precisions, recalls))


def mean_average_precision(
    query_codes: QueryCodes,
    database_codes: DatabaseCodes,
    query_labels: QueryLabels,
    database_labels: DatabaseLabels,
    k: int,
) -> float:
    """mAP@k as published: precision averaged over the relevant items among the top k, ties by database index.

    A query without a relevant item among its top k scores 0 (method.md, "Search and its measure").

    Args:
        query_codes, database_codes: {-1, 0, +1} (n, bits). query_labels, database_labels: one-hot or multi-hot
            (n, classes); items that share a label are relevant to each other. k: ranks looked at.

    Raises:
        InputError: for k < 1 or beyond the database.
        ValueError: where shapes do not fit, codes or labels hold other values, or there is no query.
    """
    return _mean(_average_precisions, query_codes, database_codes, query_labels, database_labels, k)


def precision_at_k(
    query_codes: QueryCodes,
    database_codes: DatabaseCodes,
    query_labels: QueryLabels,
    database_labels: DatabaseLabels,
    k: int,
) -> float:
    """Share of relevant items among the top k, ties by database index. Arguments and errors as `mean_average_precision`."""
    return _mean(lambda found: found.ranked.mean(axis=1), query_codes, database_codes, query_labels, database_labels, k)


def tie_aware_mean_average_precision(
    query_codes: QueryCodes,
    database_codes: DatabaseCodes,
    query_labels: QueryLabels,
    database_labels: DatabaseLabels,
    k: int,
) -> float:
    """The exact expectation of mAP@k over all orders of items at the same distance (after McSherry and Najork, ECIR 2008).

    It does not depend on the order of the database. Arguments and errors as `mean_average_precision`.
    """
    return _mean(_expected, query_codes, database_codes, query_labels, database_labels, k, counted=True)


def precision_recall_curve(
    query_codes: QueryCodes,
    database_codes: DatabaseCodes,
    query_labels: QueryLabels,
    database_labels: DatabaseLabels,
) -> Curve:
    """Precision and recall of the ball of each Hamming radius 0..bits, averaged over the queries.

    An empty ball has precision 0, as an empty answer found nothing; a query with no relevant item in the database has no
    recall and is left out of both. Arguments and errors as `mean_average_precision`.

    Returns:
        precision (bits + 1,), recall (bits + 1,); all 0 where every query is left out.
    """
    return _mean_curve(*_measure(query_codes, database_codes, query_labels, database_labels, 1, _curves, counted=True))


def _measure(
    query_codes: QueryCodes,
    database_codes: DatabaseCodes,
    query_labels: QueryLabels,
    database_labels: DatabaseLabels,
    k: int,
    measures: Callable[[_Found], tuple[np.ndarray, ...]],
    *,
    counted: bool,
) -> list[np.ndarray]:
    """`measures` of all queries, each an array with one row a query; the counts only where they are asked for."""
    queries, database = packed(query_codes), packed(database_codes)
    check_search(queries, database, k)
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


def _packed_labels(queries, query_labels, database, database_labels) -> tuple[UInt32[np.ndarray, "words n"], ...]:
    """Labels as words, checked against the codes they belong to."""
    query_labels, database_labels = np.asarray(query_labels), np.asarray(database_labels)
    for codes, labels, what in ((queries, query_labels, "query"), (database, database_labels, "database")):
        if labels.ndim != 2 or not np.array_equal(labels, labels > 0):
            raise ValueError(f"{what} labels must be a one-hot or multi-hot matrix (n, classes) of 0 and 1")
        if len(labels) != len(codes):
            raise ValueError(f"{len(codes)} {what} codes, but {len(labels)} rows of labels")
    if query_labels.shape[1] != database_labels.shape[1]:
        raise ValueError(f"query labels of {query_labels.shape[1]} classes, database labels of {database_labels.shape[1]}")
    return tuple(as_words(pack_codes(labels)) for labels in (query_labels, database_labels))


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
