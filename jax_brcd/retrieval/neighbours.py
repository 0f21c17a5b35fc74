"""The nearest other items of a collection of codes."""

from typing import SupportsIndex

import numpy as np
from jaxtyping import Integer

from jax_brcd.retrieval.packing import Codes, whole_number
from jax_brcd.retrieval.ranking import hamming_top_k


def nearest_neighbours(codes: Codes, count: SupportsIndex) -> Integer[np.ndarray, "n neighbours"]:
    """Of each item the `count` others at the smallest Hamming distance, nearest first, ties by position.

    All the others where there are fewer; an item alone is its own neighbour.

    Raises:
        InputError: for count < 1, for what is not codes, and for no codes.
    """
    wanted = min(whole_number(count, "count", low=1), max(len(codes) - 1, 1))
    found, _ = hamming_top_k(codes, codes, min(wanted + 1, max(len(codes), 1)))
    if len(codes) == 1:
        return np.zeros((1, 1), np.int32)
    own = found == np.arange(len(codes))[:, None]
    own[~own.any(axis=1), -1] = True  # more than `count` equal codes stand before the item itself: the last one goes
    return found[~own].reshape(len(codes), wanted).astype(np.int32)
