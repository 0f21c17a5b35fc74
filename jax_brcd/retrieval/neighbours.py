"""The nearest other items of a collection, by codes or by features."""

import dataclasses
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int, Integer

from jax_brcd.retrieval.packing import Codes, whole_number
from jax_brcd.retrieval.ranking import hamming_top_k
from jax_brcd.retrieval.scores import CosineScoring, RealMatrix, rank_scores
from jax_brcd.runtime.progress import Progress, silent

TOGETHER = 4096  # items between two words on how far it is
CANDIDATES = 2**16  # items that neighbours are looked for among, where there are more


def nearest_neighbours(codes: Codes, count: SupportsIndex) -> Integer[np.ndarray, "n neighbours"]:
    """Of each item the `count` others at the smallest Hamming distance, nearest first, ties by position.

    All the others where there are fewer; an item alone is its own neighbour.

    Raises:
        InputError: for count < 1, for what is not codes, and for no codes.
    """
    wanted = _wanted(count, len(codes))
    found, _ = hamming_top_k(codes, codes, min(wanted + 1, max(len(codes), 1)))
    return _others(found, 0, wanted)


def cosine_neighbours(
    features: RealMatrix, count: SupportsIndex, progress: Progress = silent, *,
    among: Int[np.ndarray, "candidates"] | None = None,
) -> Integer[np.ndarray, "n neighbours"]:
    """The same by the largest cosines of features (n, width), exactly; it takes time with n times those that are looked among.

    Args:
        among: ascending positions of the items that may be neighbours; all, unless told.

    Raises:
        InputError: for count < 1, and for what is not a matrix of finite floats.
    """
    scoring = CosineScoring.of(features, features if among is None else features[among])
    items, wanted = scoring.queries, _wanted(count, scoring.items)
    neighbours = np.empty((items, wanted), np.int32)
    for begin in range(0, items, TOGETHER):
        progress("nearest images", begin, items)
        part = dataclasses.replace(scoring, query_features=scoring.query_features[begin : begin + TOGETHER])
        found, _ = rank_scores(part, min(wanted + 1, scoring.items))
        neighbours[begin : begin + TOGETHER] = _others(found if among is None else among[found], begin, wanted)
    progress("nearest images", items, items)
    return neighbours


def candidates(items: int, seed: int) -> Int[np.ndarray, "candidates"] | None:
    """Ascending positions of as many items as can be looked among in a time that grows with their number alone, drawn by a seed;
    None where all can be."""
    if items <= CANDIDATES:
        return None
    return np.sort(np.random.default_rng(seed).choice(items, CANDIDATES, replace=False))


def _wanted(count: SupportsIndex, items: int) -> int:
    return min(whole_number(count, "count", low=1), max(items - 1, 1))


def _others(found: Integer[np.ndarray, "rows ranks"], first: int, wanted: int) -> Integer[np.ndarray, "rows neighbours"]:
    """Of what was found of items from `first` on, all but the item itself. One that is all that there is keeps itself."""
    if found.shape[1] == 1:
        return found.astype(np.int32)
    own = found == np.arange(first, first + len(found))[:, None]
    own[~own.any(axis=1), -1] = True  # it was not looked among, or behind more equal items than are `wanted`: the last one goes
    return found[~own].reshape(len(found), wanted).astype(np.int32)
