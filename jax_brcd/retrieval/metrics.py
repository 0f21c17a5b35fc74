"""Measures of a Hamming search: mAP@k as published and in expectation over ties, precision@k, precision-recall by radius."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float, Integer, Num
from scipy.special import gammaln

from jax_brcd.retrieval.ranking import (
    DatabaseCodes,
    QueryCodes,
    as_codes,
    check_search,
    doubled_distances,
    map_blocks,
    nearest,
)

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
class _Histograms:
    """How many items, and how many relevant ones, stand at each doubled distance from each query."""

    items: Integer[np.ndarray, "queries distances"]
    relevant: Integer[np.ndarray, "queries distances"]


def evaluate_search(
    query_codes: QueryCodes,
    database_codes: DatabaseCodes,
    query_labels: QueryLabels,
    database_labels: DatabaseLabels,
    k: int,
) -> SearchScores:
    """All measures in one pass over the distances. Arguments and errors as `mean_average_precision`."""
    ranked, histograms = _pass(query_codes, database_codes, query_labels, database_labels, k)
    return SearchScores(
        map=float(np.mean(_average_precisions(ranked))),
        tie_aware_map=float(np.mean(_expected_average_precisions(histograms, k))),
        precision=float(np.mean(ranked)),
        curve=_curve(histograms),
    )


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
        ValueError: where shapes do not fit or codes hold other values.
    """
    ranked, _ = _pass(query_codes, database_codes, query_labels, database_labels, k, histograms=False)
    return float(np.mean(_average_precisions(ranked)))


def precision_at_k(
    query_codes: QueryCodes,
    database_codes: DatabaseCodes,
    query_labels: QueryLabels,
    database_labels: DatabaseLabels,
    k: int,
) -> float:
    """Share of relevant items among the top k, ties by database index. Arguments and errors as `mean_average_precision`."""
    ranked, _ = _pass(query_codes, database_codes, query_labels, database_labels, k, histograms=False)
    return float(np.mean(ranked))


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
    _, histograms = _pass(query_codes, database_codes, query_labels, database_labels, k, ranking=False)
    return float(np.mean(_expected_average_precisions(histograms, k)))


def precision_recall_curve(
    query_codes: QueryCodes,
    database_codes: DatabaseCodes,
    query_labels: QueryLabels,
    database_labels: DatabaseLabels,
) -> Curve:
    """Precision and recall of the ball of each Hamming radius 0..bits, averaged over the queries.

    An empty ball has precision 0, as an empty answer found nothing; a query with no relevant item in the database has no
    recall and is left out of both.

    Returns:
        precision (bits + 1,), recall (bits + 1,).
    """
    _, histograms = _pass(query_codes, database_codes, query_labels, database_labels, 1, ranking=False)
    return _curve(histograms)


def _pass(query_codes, database_codes, query_labels, database_labels, k, *, ranking=True, histograms=True):
    """Relevance of each query's top k (queries, k), and the distance histograms; only what is asked for."""
    queries, database = as_codes(query_codes), as_codes(database_codes)
    query_labels, database_labels = (np.asarray(labels, np.float32) for labels in (query_labels, database_labels))
    check_search(queries, database, k)
    if len(queries) != len(query_labels) or len(database) != len(database_labels):
        raise ValueError("as many rows of labels as of codes are needed")
    if query_labels.shape[1] != database_labels.shape[1]:
        raise ValueError(f"query labels of {query_labels.shape[1]} classes, database labels of {database_labels.shape[1]}")
    bins = 2 * queries.shape[1] + 1

    def block(rows: slice):
        distances = doubled_distances(queries[rows], database)
        relevant = query_labels[rows] @ database_labels.T > 0
        ranked = np.take_along_axis(relevant, nearest(distances, k), axis=1) if ranking else None
        return ranked, _histograms(distances, relevant, bins) if histograms else None

    ranked, counted = zip(*map_blocks(block, len(queries), len(database)), strict=True)
    merged = None
    if histograms:
        merged = _Histograms(np.concatenate([part.items for part in counted]),
                             np.concatenate([part.relevant for part in counted]))
    return (np.concatenate(ranked) if ranking else None), merged


def _histograms(distances: np.ndarray, relevant: np.ndarray, bins: int) -> _Histograms:
    queries = len(distances)
    place = (distances + np.arange(queries, dtype=np.uint32)[:, None] * np.uint32(bins)).ravel()
    items = np.bincount(place, minlength=queries * bins)
    hits = np.bincount(place[relevant.ravel()], minlength=queries * bins)
    return _Histograms(items.reshape(queries, bins), hits.reshape(queries, bins))


def _average_precisions(ranked: np.ndarray) -> Float[np.ndarray, "queries"]:
    found = np.cumsum(ranked, axis=1)
    precision = np.where(ranked, found / np.arange(1, ranked.shape[1] + 1), 0.0)
    return precision.sum(axis=1) / np.maximum(found[:, -1], 1)


def _expected_average_precisions(histograms: _Histograms, k: int) -> Float[np.ndarray, "queries"]:
    """Expectation of AP@k from the histograms.

    Groups of equal distance that end within k count whole. Of the group that k cuts, the number x of relevant items that
    fall into its open places is hypergeometric, and AP@k divides by what was found, so the expectation runs over x.
    """
    items, relevant = histograms.items, histograms.relevant
    before, found = (np.cumsum(part, axis=1) - part for part in (items, relevant))
    whole = before + items <= k
    sums = np.where(whole, _group_sum(before, found, items, relevant), 0.0).sum(axis=1)
    found_whole = np.where(whole, relevant, 0).sum(axis=1)

    cut = np.argmin(whole, axis=1)
    rows = np.arange(len(items))
    start, size, hits = before[rows, cut], items[rows, cut], relevant[rows, cut]
    places = np.where(whole.all(axis=1), 0, k - start)
    most = int(np.minimum(places, hits).max(initial=0))
    expectation = np.zeros(len(items))
    for x in range(most + 1):
        chance = _hypergeometric(x, size, hits, places)
        total = found_whole + x
        inside = _group_sum(start, found_whole, places, np.full(len(items), x))
        expectation += np.where(total > 0, chance * (sums + inside) / np.maximum(total, 1), 0.0)
    return expectation


def _group_sum(before, found, size, relevant):
    """Expected sum of precisions at the relevant items of a group of `size` in random order, behind `before` items.

    At place p of the group an item is relevant with probability relevant / size, and then (relevant - 1) / (size - 1) of
    the p - 1 items before it in the group are.
    """
    size_or_one = np.maximum(size, 1)
    harmonic = _harmonic(before + size) - _harmonic(before)
    density = (relevant - 1) / np.maximum(size - 1, 1)
    earlier = size - (before + 1) * harmonic
    return np.where(size > 0, relevant / size_or_one * ((found + 1) * harmonic + density * earlier), 0.0)


def _harmonic(n: np.ndarray) -> np.ndarray:
    table = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(n.max(initial=0)) + 1))])
    return table[n]


def _hypergeometric(x: int, size, hits, places):
    """Chance that `places` draws without replacement out of `size` items with `hits` relevant give x relevant ones."""
    possible = (x <= hits) & (x <= places) & (places - x <= size - hits)

    def log_choose(n, m):
        return gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)

    size, hits, places = (np.where(possible, part, other) for part, other in ((size, x), (hits, x), (places, x)))
    log_chance = log_choose(hits, x) + log_choose(size - hits, places - x) - log_choose(size, places)
    return np.where(possible, np.exp(log_chance), 0.0)


def _curve(histograms: _Histograms) -> Curve:
    radii = slice(0, None, 2)
    items, relevant = (np.cumsum(part, axis=1)[:, radii] for part in (histograms.items, histograms.relevant))
    total = relevant[:, -1:]
    counted = total[:, 0] > 0
    if not counted.any():
        return np.zeros(items.shape[1]), np.zeros(items.shape[1])
    precision = (relevant / np.maximum(items, 1))[counted].mean(axis=0)
    return precision, (relevant[counted] / total[counted]).mean(axis=0)
