"""Search by Hamming distance, by soft queries and by the cosine of features, measured query by query."""

import numpy as np
from scipy.stats import hypergeom


def ranked_relevance(query: np.ndarray, query_label: np.ndarray, database: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which database items are relevant to one query, nearest first, ties by index."""
    distances = 0.5 * (database.shape[1] - database @ query)
    return (labels @ query_label > 0)[np.argsort(distances, kind="stable")]


def average_precision(relevant: np.ndarray) -> float:
    """Precision averaged over the relevant items; 0 where there is none."""
    if not relevant.any():
        return 0.0
    precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
    return float(precision[relevant].mean())


def expected_average_precision(distances: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """Expectation of AP@k over random orders within each distance, one group after the other.

    An item at place p of a group of m items, r of them relevant, is relevant with chance r / m and then has
    (p - 1) (r - 1) / (m - 1) relevant ones of its group before it on average. The group that k cuts is taken for each number
    x of relevant items that may fall before the cut, with its hypergeometric chance.
    """

    def group(before: int, found: int, m: int, r: int) -> float:
        p = np.arange(1, m + 1)
        return float(np.sum(r / m * (found + 1 + (p - 1) * (r - 1) / max(m - 1, 1)) / (before + p)))

    before = found = 0
    total = 0.0
    for distance in np.unique(distances):
        m, r = int((distances == distance).sum()), int(relevant[distances == distance].sum())
        if before == k:
            break
        if before + m > k:
            places = k - before
            draws = hypergeom(m, r, places)
            return float(sum(draws.pmf(x) * (total + group(before, found, places, x)) / (found + x)
                             for x in range(min(r, places) + 1) if found + x))
        total += group(before, found, m, r)
        before, found = before + m, found + r
    return total / found if found else 0.0


def rank(queries, database, query_labels, labels, k: int) -> list[np.ndarray]:
    """Relevance of the top k of every query."""
    database, labels = np.asarray(database, np.float32), np.asarray(labels, np.float32)
    return [ranked_relevance(np.asarray(query, np.float32), np.asarray(label, np.float32), database, labels)[:k]
            for query, label in zip(queries, query_labels, strict=True)]


def mean_average_precision(queries, database, query_labels, labels, k: int) -> float:
    """mAP@k as published. Codes (n, bits), labels one-hot or multi-hot (n, classes)."""
    return float(np.mean([average_precision(row) for row in rank(queries, database, query_labels, labels, k)]))


def similarity_map(similarity: np.ndarray, query_labels, labels, k: int) -> float:
    """mAP@k where each query (n, items) ranks by similarity, the largest first, ties by index."""
    query_labels, labels = np.asarray(query_labels), np.asarray(labels)
    ranked = [(labels @ label > 0)[np.argsort(-row, kind="stable")][:k]
              for row, label in zip(similarity, query_labels, strict=True)]
    return float(np.mean([average_precision(row) for row in ranked]))


def soft_map(logits, database, query_labels, labels, k: int) -> float:
    """mAP@k by the dot product of query logits (n, bits) and database codes; float64 adds float32 logits without rounding."""
    return similarity_map(np.asarray(logits, np.float64) @ np.asarray(database, np.float64).T, query_labels, labels, k)


def cosine_map(features, database_features, query_labels, labels, k: int) -> float:
    """mAP@k by the cosine of features (n, width). What differs by rounding alone is made equal, so that equal vectors tie."""
    def directions(vectors) -> np.ndarray:
        vectors = np.asarray(vectors, np.float64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)

    return similarity_map(np.round(directions(features) @ directions(database_features).T, 12), query_labels, labels, k)


def search_scores(queries, database, query_labels, labels, k: int, *, logits=None, features=None) -> dict[str, float | None]:
    """mAP@k as published, its expectation over ties, and precision@k.

    Args:
        logits: of the queries, for the mAP@k of soft queries. features: of queries and database, for the mAP@k of their cosine.
            Without them either is None.
    """
    ranked = rank(queries, database, query_labels, labels, k)
    database, labels = np.asarray(database, np.float32), np.asarray(labels, np.float32)
    expected = [expected_average_precision(0.5 * (database.shape[1] - database @ query), labels @ label > 0, k)
                for query, label in zip(queries, query_labels, strict=True)]
    return {"map": float(np.mean([average_precision(row) for row in ranked])), "tie_aware_map": float(np.mean(expected)),
            "precision": float(np.mean(ranked)),
            "soft_map": None if logits is None else soft_map(logits, database, query_labels, labels, k),
            "cosine_map": None if features is None else cosine_map(*features, query_labels, labels, k)}
