"""Measures of a search: mAP@k as published and in expectation over ties, precision@k, precision-recall by radius.

All are of Hamming rankings; mAP@k is of soft queries and of the cosine of features too (retrieval/scores.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped, UInt32

from jax_brcd.retrieval.packing import Codes, check_spaces, code_bits, is_real, pack_bits
from jax_brcd.retrieval.ranking import Database, as_words, check_counts, check_lengths, map_queries, nearest
from jax_brcd.retrieval.scores import SLAB, CosineScoring, RealMatrix, Scoring, SoftScoring, highest, map_highest, map_scores
from jax_brcd.retrieval.ties import expected_average_precisions
from jax_brcd.runtime.errors import InputError

# Matrices (n, classes) of 0 and 1. Shape and values are checked here, which says more than a shape checker
Labels = Shaped[np.ndarray | Array, "..."]
Curve = tuple[Float[np.ndarray, "radii"], Float[np.ndarray, "radii"]]


@dataclasses.dataclass(frozen=True)
class SearchScores:
    """The quality of one search.

    Attributes:
        curve: (precision, recall) at the Hamming radii 0..bits. soft_map: mAP@k by the query's logits and the database's bits.
            cosine_map: mAP@k by the cosine of features. Either is None where those were not given.
    """

    map: float
    tie_aware_map: float
    precision: float
    curve: Curve
    soft_map: float | None = None
    cosine_map: float | None = None


class _Ranking(NamedTuple):
    """What is to be measured: `visit` lends something of each query to a function, and `nearest` makes k items of that.

    `distances` is how many doubled distances there are, by which a Hamming ranking's items are counted.
    """

    queries: int
    items: int
    visit: Callable[[Callable[[range, list[Any]], Any]], list[Any]]
    nearest: Callable[[Any, int], Integer[np.ndarray, "k"]]
    distances: int = 0


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
    *,
    query_logits: RealMatrix | None = None,
    features: tuple[RealMatrix, RealMatrix] | None = None,
) -> SearchScores:
    """All measures of the Hamming ranking in one pass over the distances. Arguments and errors as `mean_average_precision`.

    Args:
        query_logits: for `soft_map`, as in `soft_mean_average_precision`. features: of queries and database, for `cosine_map`,
            as in `cosine_mean_average_precision`.
    """
    labels = query_labels, database_labels
    published, expected, precision, precisions, recalls = _measure(
        _hamming(query_codes, database_codes), *labels, k,
        lambda found: (_average_precisions(found), _expected(found), found.ranked.mean(axis=1), *_curves(found)),
        counted=True)
    soft = None if query_logits is None else soft_mean_average_precision(query_logits, database_codes, *labels, k)
    cosine = None if features is None else cosine_mean_average_precision(*features, *labels, k)
    return SearchScores(map=float(published.mean()), tie_aware_map=float(expected.mean()), precision=float(precision.mean()),
                        curve=_mean_curve(precisions, recalls), soft_map=soft, cosine_map=cosine)


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
    return _mean(_average_precisions, _hamming(query_codes, database_codes), query_labels, database_labels, k)


def average_precisions(
    query_codes: Codes, database_codes: Codes, query_labels: Labels, database_labels: Labels, k: SupportsIndex
) -> Float[np.ndarray, "queries"]:
    """Each query's average precision among its top k, of which mAP@k is the mean. Arguments and errors as
    `mean_average_precision`."""
    ranking = _hamming(query_codes, database_codes)
    (values,) = _measure(ranking, query_labels, database_labels, k, lambda found: (_average_precisions(found),), counted=False)
    return values


def soft_mean_average_precision(
    query_logits: RealMatrix,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    k: SupportsIndex,
) -> float:
    """mAP@k where items are ranked by the dot product of the query's logits and their code, ties by database index.

    Args:
        query_logits: floats (n, bits). The others and errors as `mean_average_precision`.
    """
    ranking = _scored(SoftScoring.of(query_logits, Database.of(database_codes)))
    return _mean(_average_precisions, ranking, query_labels, database_labels, k)


def cosine_mean_average_precision(
    query_features: RealMatrix,
    database_features: RealMatrix,
    query_labels: Labels,
    database_labels: Labels,
    k: SupportsIndex,
) -> float:
    """mAP@k where items are ranked by the cosine of features, ties by database index: what there is before it is binarised.

    Args:
        query_features, database_features: floats (n, width) of one backbone. The others and errors as `mean_average_precision`.
    """
    scoring = CosineScoring.of(query_features, database_features)
    ranking = _scored(scoring)
    if scoring.directions is None and check_counts(scoring.queries, scoring.items, k) <= SLAB:
        ranking = ranking._replace(visit=lambda function: map_highest(function, scoring, int(k)), nearest=lambda found, _: found)
    return _mean(_average_precisions, ranking, query_labels, database_labels, k)


def precision_at_k(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    k: SupportsIndex,
) -> float:
    """Share of relevant items among the top k, ties by database index. Arguments and errors as `mean_average_precision`."""
    ranking = _hamming(query_codes, database_codes)
    return _mean(lambda found: found.ranked.mean(axis=1), ranking, query_labels, database_labels, k)


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
    return _mean(_expected, _hamming(query_codes, database_codes), query_labels, database_labels, k, counted=True)


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
    ranking = _hamming(query_codes, database_codes)
    return _mean_curve(*_measure(ranking, query_labels, database_labels, 1, _curves, counted=True))


def _hamming(query_codes: Codes, database_codes: Codes) -> _Ranking:
    check_spaces(query_codes, database_codes)
    queries, database = code_bits(query_codes), Database.of(database_codes)
    check_lengths(queries.bits, database.bits)
    return _Ranking(len(queries.positive), len(database), lambda function: map_queries(function, queries, database), nearest,
                    distances=2 * queries.bits + 1)


def _scored(scoring: Scoring) -> _Ranking:
    return _Ranking(scoring.queries, scoring.items, lambda function: map_scores(function, scoring), highest)


def _measure(
    ranking: _Ranking,
    query_labels: Labels,
    database_labels: Labels,
    k: SupportsIndex,
    measures: Callable[[_Found], tuple[np.ndarray, ...]],
    *,
    counted: bool,
) -> list[np.ndarray]:
    """`measures` of all queries, each an array with one row a query; the counts only where they are asked for."""
    k = check_counts(ranking.queries, ranking.items, k)
    classes_of_queries, classes_of_database = _packed_labels(ranking, query_labels, database_labels)

    find = _counted if counted else _only_ranked
    found = ranking.visit(lambda rows, lent: measures(
        find(ranking, k, classes_of_queries[:, rows.start : rows.stop], classes_of_database, lent)))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _only_ranked(ranking: _Ranking, k: int, asked: UInt32[np.ndarray, "words rows"], searched: UInt32[np.ndarray, "words items"],
                 lent: list[Any]) -> _Found:
    """What some queries find, of their classes and the items'."""
    nearest = np.stack([ranking.nearest(each, k) for each in lent])
    return _Found((asked[:, :, None] & searched[:, nearest]).any(axis=0))


def _counted(ranking: _Ranking, k: int, asked: UInt32[np.ndarray, "words rows"], searched: UInt32[np.ndarray, "words items"],
             lent: list[Any]) -> _Found:
    """The same, and how many items lie at each distance."""
    counts = np.empty((len(lent), ranking.distances, 2), np.int64)
    for row, distances in enumerate(lent):
        # The last bit tells relevant items apart, so that one count over the database serves both
        relevant = (asked[:, row, None] & searched).any(axis=0)
        place = 2 * distances.doubled[: ranking.items].astype(np.min_scalar_type(2 * ranking.distances)) + relevant
        counts[row] = np.bincount(place, minlength=2 * ranking.distances).reshape(ranking.distances, 2)
    ranked = _only_ranked(ranking, k, asked, searched, lent).ranked
    return _Found(ranked, items=counts.sum(axis=2), relevant=counts[:, :, 1])


def _mean(measure: Callable[[_Found], Float[np.ndarray, "queries"]], *search: Any, counted: bool = False) -> float:
    (values,) = _measure(*search, lambda found: (measure(found),), counted=counted)
    return float(values.mean())


def _packed_labels(
    ranking: _Ranking, query_labels: Labels, database_labels: Labels
) -> tuple[UInt32[np.ndarray, "words n"], ...]:
    """Labels as words, checked against the items they belong to."""
    words, classes = [], []
    for count, labels, what in ((ranking.queries, query_labels, "query"), (ranking.items, database_labels, "database")):
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
