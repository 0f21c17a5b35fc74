"""The exact expectation of AP@k over all orders of items at the same distance (after McSherry and Najork, ECIR 2008).

It needs no ranking, only how many items and how many relevant ones stand at each distance.
"""

import numpy as np
from jaxtyping import Float, Integer, Num

Counts = Integer[np.ndarray, "queries distances"]


def expected_average_precisions(items: Counts, relevant: Counts, k: int) -> Float[np.ndarray, "queries"]:
    """Expectation of each query's AP@k, where AP@k divides by the relevant items among the top k.

    Groups of equal distance that end within k count whole. Of the group that k cuts, the number x of relevant items that
    fall into its open places is random, and AP@k divides by what was found, so the expectation runs over x.

    Args:
        items, relevant: how many database items, and how many relevant ones, stand at each distance from each query.
    """
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, k + 1))])
    before, found = (np.cumsum(part, axis=1) - part for part in (items, relevant))
    whole = before + items <= k
    start, size = np.minimum(before, k), np.where(whole, items, 0)
    sums = _group_sums(harmonic, start, found, size, relevant).sum(axis=1, keepdims=True)
    found_whole = np.where(whole, relevant, 0).sum(axis=1, keepdims=True)
    placed = size.sum(axis=1, keepdims=True)

    # Where k cuts no group, `places` is 0 and any group stands in for the cut one
    cut = np.argmin(whole, axis=1)[:, None]
    places = k - placed
    x, chances = _relevant_draws(np.take_along_axis(items, cut, 1), np.take_along_axis(relevant, cut, 1), places)
    sums = sums + _group_sums(harmonic, placed, found_whole, places, x)
    return (chances * sums / np.maximum(found_whole + x, 1)).sum(axis=1)


def _group_sums(
    harmonic: Float[np.ndarray, "ranks"],
    before: Integer[np.ndarray, "queries #groups"],
    found: Integer[np.ndarray, "queries #groups"],
    size: Integer[np.ndarray, "queries #groups"],
    relevant: Integer[np.ndarray, "queries groups"],
) -> Float[np.ndarray, "queries groups"]:
    """Expected sum of the precisions at the relevant items of a group of `size` in random order.

    `before` items, `found` of them relevant, rank ahead of it. At place p of the group stands a relevant item with chance
    relevant / size; of the p - 1 items between, (relevant - 1) / (size - 1) are relevant then. The precisions
    (found + 1 + (p - 1) (relevant - 1) / (size - 1)) / (before + p) sum to differences of harmonic numbers.
    """
    reciprocals = harmonic[before + size] - harmonic[before]
    between = (relevant - 1) / np.maximum(size - 1, 1) * (size - (before + 1) * reciprocals)
    return relevant / np.maximum(size, 1) * ((found + 1) * reciprocals + between)


def _relevant_draws(
    size: Integer[np.ndarray, "queries 1"], relevant: Integer[np.ndarray, "queries 1"], draws: Integer[np.ndarray, "queries 1"]
) -> tuple[Integer[np.ndarray, "queries numbers"], Num[np.ndarray, "queries numbers"]]:
    """Numbers of relevant items among `draws` of `size` without replacement, and their hypergeometric chances.

    Numbers further than sqrt(20 draws) from the mean are left out: together their chance is below 2 exp(-40) = 1e-17
    (Hoeffding 1963). The chances come from the ratios of neighbours, which keeps them exact where factorials would not be.
    """
    mean, reach = draws * relevant / np.maximum(size, 1), np.sqrt(20 * draws)
    low = np.maximum.reduce([np.zeros_like(draws), draws - (size - relevant), np.floor(mean - reach).astype(int)])
    high = np.minimum.reduce([draws, relevant, np.ceil(mean + reach).astype(int)])
    x = low + np.arange((high - low).max() + 1)
    possible = x <= high
    ratios = np.divide((relevant - x + 1) * (draws - x + 1), x * (size - relevant - draws + x), out=np.ones(x.shape),
                       where=possible & (x > low))
    logs = np.cumsum(np.log(ratios), axis=1)
    chances = np.where(possible, np.exp(logs - logs.max(axis=1, keepdims=True)), 0.0)
    return x, chances / chances.sum(axis=1, keepdims=True)
