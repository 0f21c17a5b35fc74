"""The nearest other items of a collection of codes."""

import numpy as np
from jaxtyping import Integer, Num

from jax_brcd.retrieval.ranking import hamming_top_k


def nearest_neighbours(codes: Num[np.ndarray, "n bits"], count: int) -> Integer[np.ndarray, "n neighbours"]:
    """Of each item the `count` others at the smallest Hamming distance, nearest first, ties by position.

    All the others where there are fewer; an item alone is its own neighbour.
    """
    if len(codes) == 1:
        return np.zeros((1, 1), np.int32)
    count = min(count, len(codes) - 1)
    found, _ = hamming_top_k(codes, codes, count + 1)
    own = found == np.arange(len(codes))[:, None]
    own[~own.any(axis=1), -1] = True  # more than `count` equal codes stand before the item itself: the last one goes
    return found[~own].reshape(len(codes), count).astype(np.int32)
