"""Codes as bits, search by Hamming distance or soft queries, and its measures (docs/method.md, "Search and its measure")."""

from jax_brcd.retrieval.index import HammingIndex
from jax_brcd.retrieval.metrics import (
    SearchScores,
    average_precisions,
    cosine_mean_average_precision,
    evaluate_search,
    mean_average_precision,
    precision_at_k,
    precision_recall_curve,
    soft_mean_average_precision,
    tie_aware_mean_average_precision,
)
from jax_brcd.retrieval.neighbours import candidates, cosine_neighbours, nearest_neighbours
from jax_brcd.retrieval.packing import PackedCodes, check_spaces, pack_codes
from jax_brcd.retrieval.ranking import hamming_top_k

__all__ = ["HammingIndex", "PackedCodes", "SearchScores", "average_precisions", "candidates", "check_spaces",
           "cosine_mean_average_precision", "cosine_neighbours", "evaluate_search", "hamming_top_k", "mean_average_precision",
           "nearest_neighbours", "pack_codes", "precision_at_k", "precision_recall_curve", "soft_mean_average_precision",
           "tie_aware_mean_average_precision"]
