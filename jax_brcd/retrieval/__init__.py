"""Search by Hamming distance and its measures (method.md, "Search and its measure")."""

from jax_brcd.retrieval.metrics import (
    SearchScores,
    evaluate_search,
    mean_average_precision,
    precision_at_k,
    precision_recall_curve,
    tie_aware_mean_average_precision,
)
from jax_brcd.retrieval.neighbours import nearest_neighbours
from jax_brcd.retrieval.ranking import hamming_top_k

__all__ = ["SearchScores", "evaluate_search", "hamming_top_k", "mean_average_precision", "nearest_neighbours",
           "precision_at_k", "precision_recall_curve", "tie_aware_mean_average_precision"]
