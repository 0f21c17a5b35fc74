"""What stores on servers share: filters as tokens, rows as items, and exact soft search by Hamming searches."""

import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jax_brcd.retrieval import PackedCodes
from jax_brcd.retrieval.scores import Logits
from jax_brcd.runtime.errors import InputError
from jax_brcd.search.stores.base import Hit, Item

FIRST = 8  # times k: how many items at the nearest Hamming distances a soft search looks at first


class Found(NamedTuple):
    """An item that a server found, and its distance in bits."""

    item: Item
    distance: int

    @property
    def hit(self) -> Hit:
        """As searches give it."""
        return Hit(self.item.id, self.distance, self.item.attributes)


def without_password(url: str) -> str:
    """A URL as errors show it."""
    return re.sub(r"([?&]password=)[^&]+", r"\1***", re.sub(r"://([^/@:]*):[^/]+@", r"://\1:***@", url))


def split_url(url: str) -> urllib.parse.SplitResult:
    """The parts of a store's URL. Raises InputError for one that has no such parts."""
    try:
        return urllib.parse.urlsplit(url)
    except ValueError as error:
        raise InputError(f"no URL of a server ({error}); give SCHEME://USER:PASSWORD@HOST:PORT/NAME", field="url", value=url) from None


def token(name: str, value: Any) -> str:
    """A short text that two attributes share only where `matches` says that they are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return hashlib.sha256(json.dumps([name, value], allow_nan=False).encode()).hexdigest()[:24]


def tokens(attributes: dict[str, Any]) -> list[str]:
    """Those of all attributes."""
    return [token(name, value) for name, value in attributes.items()]


def nearest_first(found: list[Found]) -> list[Hit]:
    """Hits by distance, ties by id."""
    return sorted((each.hit for each in found), key=lambda hit: (hit.distance, hit.id))


def soft_hits(
    logits: Logits, k: int, bits: int, nearest: Callable[[PackedCodes, int], list[Found]],
    within: Callable[[PackedCodes, int], list[Found]],
) -> list[list[Hit]]:
    """The k items of the smallest soft distance to each query, exactly, from Hamming searches around the query's own bits.

    An item at h bits is at least the sum of the h smallest |logit| away. So the k-th best of the items that are nearest in bits
    says within how many bits the k best of all lie.

    Args:
        nearest: the items of the k smallest distances to one code. within: all items within a radius of it.
    """
    return [_soft_hits(Logits(logits.numbers[row : row + 1], logits.exponents[row : row + 1]), k, bits, nearest, within)
            for row in range(len(logits.numbers))]


def _soft_hits(logits: Logits, k: int, bits: int, nearest: Callable, within: Callable) -> list[Hit]:
    code = PackedCodes.of(logits.numbers > 0)
    found = nearest(code, FIRST * k)
    if len(found) == FIRST * k:  # there may be others
        least = np.concatenate([[0.0], np.cumsum(np.sort(np.abs(logits.numbers[0])))])
        kth = np.sort(_distances(logits, found, bits))[k - 1]
        found = within(code, int(np.searchsorted(np.ldexp(least, logits.exponents[0]), kth, side="right")) - 1)
    hits = [Hit(each.item.id, distance, each.item.attributes)
            for each, distance in zip(found, _distances(logits, found, bits).tolist(), strict=True)]
    return sorted(hits, key=lambda hit: (hit.distance, hit.id))[:k]


def _distances(logits: Logits, found: list[Found], bits: int) -> Float[np.ndarray, "found"]:
    packed = np.array([each.item.packed for each in found], np.uint8).reshape(len(found), -(-bits // 8))
    return logits.distances_to(PackedCodes(packed, bits))[0]
