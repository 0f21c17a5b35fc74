"""Ranking and its measures against the published numbers, the published loop, and enumeration of ties."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_brcd.retrieval import (
    evaluate_search,
    hamming_top_k,
    mean_average_precision,
    precision_at_k,
    precision_recall_curve,
    ranking,
    tie_aware_mean_average_precision,
)
from jax_brcd.runtime.errors import InputError


def published_map(queries, database, query_labels, labels, k):
    """The published loop: each query's distances sorted (here stably), precision averaged over what is found in the top k."""
    scores = []
    for query, label in zip(queries, query_labels, strict=True):
        distances = 0.5 * (database.shape[1] - database @ query)
        relevant = (labels @ label > 0)[np.argsort(distances, kind="stable")][:k]
        places = np.flatnonzero(relevant) + 1
        scores.append(np.mean(np.arange(1, len(places) + 1) / places) if len(places) else 0.0)
    return np.mean(scores)


@st.composite
def searches(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = draw(st.sampled_from([(-1.0, 1.0), (-1.0, 0.0, 1.0), (1.0,)]))
    bits, items, classes = draw(st.integers(8, 128)), draw(st.integers(1, 60)), draw(st.integers(1, 5))
    labels = [random.random((rows, classes)) < draw(st.sampled_from([0.1, 0.5])) for rows in (4, items)]
    codes = [random.choice(values, (rows, bits)) for rows in (4, items)]
    for part in codes:
        part[0, 0] = values[0]  # a matrix with a 0 and no -1 is no code matrix
    return (*codes, *(part.astype(int) for part in labels), draw(st.integers(1, items)))


@settings(max_examples=100, deadline=None)
@given(searches())
def test_map_is_the_published_loops(search):
    assert mean_average_precision(*search) == pytest.approx(published_map(*search), abs=1e-12)


def test_map_is_the_published_number(golden):
    for k in (10, 100, 200):
        for prefix, queries, database in (("map", "map_query_labels", "map_database_labels"),
                                          ("map_multilabel", "map_multi_query", "map_multi_database")):
            score = mean_average_precision(golden["map_query_codes"], golden["database_codes"], golden[queries],
                                           golden[database], k)
            np.testing.assert_allclose(score, golden[f"{prefix}_{k}"], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_tie_aware_value_is_the_mean_over_all_orders(seed, k):
    random = np.random.default_rng(seed)
    query, database = np.ones((1, 2)), random.choice([-1.0, 1.0], (6, 2))
    label, labels = np.ones((1, 1)), random.integers(0, 2, (6, 1))
    scores = [published_map(query, database[list(order)], label, labels[list(order)], k)
              for order in itertools.permutations(range(6))]
    assert tie_aware_mean_average_precision(query, database, label, labels, k) == pytest.approx(np.mean(scores), abs=1e-10)


def test_the_tie_aware_value_is_the_mean_of_many_shuffles():
    random = np.random.default_rng(0)
    queries, database = random.choice([-1.0, 1.0], (3, 8)), random.choice([-1.0, 1.0], (400, 8))
    query_labels, labels = np.eye(4)[random.integers(4, size=3)], np.eye(4)[random.integers(4, size=400)]
    scores = []
    for _ in range(300):
        order = random.permutation(400)
        scores.append(published_map(queries, database[order], query_labels, labels[order], 50))
    expected = tie_aware_mean_average_precision(queries, database, query_labels, labels, 50)
    assert abs(np.mean(scores) - expected) < 4 * np.std(scores) / np.sqrt(len(scores))  # four standard errors


def test_the_tie_aware_value_does_not_depend_on_the_databases_order():
    random = np.random.default_rng(1)
    queries, database = random.choice([-1.0, 1.0], (5, 8)), random.choice([-1.0, 1.0], (200, 8))
    query_labels, labels = np.eye(3)[random.integers(3, size=5)], np.eye(3)[random.integers(3, size=200)]
    order = random.permutation(200)
    values = [tie_aware_mean_average_precision(queries, database[rows], query_labels, labels[rows], 30)
              for rows in (slice(None), order)]
    assert values[0] == pytest.approx(values[1], abs=1e-12)


def test_without_ties_both_maps_are_the_same():
    bits = 12
    database = np.where(np.arange(bits)[None, :] < np.arange(bits + 1)[:, None], -1.0, 1.0)  # distances 0, 1, ..., 12
    labels = np.eye(2)[np.arange(bits + 1) % 2]
    arguments = np.ones((1, bits)), database, np.eye(2)[:1], labels, 7
    assert tie_aware_mean_average_precision(*arguments) == pytest.approx(mean_average_precision(*arguments), abs=1e-12)


def test_ties_rank_in_database_order():
    indices, distances = hamming_top_k(np.ones((2, 4)), np.array([[1, 1, 1, -1], [1, 1, 1, 1], [1, 1, 1, -1], [1, 1, 1, 1]]), 4)
    np.testing.assert_array_equal(indices, [[1, 3, 0, 2]] * 2)
    np.testing.assert_array_equal(distances, [[0, 0, 1, 1]] * 2)


@pytest.mark.parametrize("sampled_bits", [0, 8])
@pytest.mark.parametrize("k", [1, 40, 63, 64, 70, 200, 1000])
def test_a_sample_unlike_the_database_changes_no_ranking(sampled_bits, k):
    """Every STRIDE-th item is nearer or further than all others, so that the sample bounds the k-th distance wrongly."""
    random = np.random.default_rng(k)
    differ = np.where(np.arange(1000) % ranking.STRIDE == 0, sampled_bits, random.integers(2, 7, 1000))
    database = np.where(np.arange(16) < differ[:, None], -1.0, 1.0)
    indices, distances = hamming_top_k(np.ones((1, 16)), database, k)
    np.testing.assert_array_equal(indices[0], np.argsort(differ, kind="stable")[:k])
    np.testing.assert_array_equal(distances[0], np.sort(differ)[:k])


def test_blocks_of_queries_change_nothing(monkeypatch):
    random = np.random.default_rng(2)
    search = (random.choice([-1.0, 1.0], (23, 16)), random.choice([-1.0, 1.0], (50, 16)),
              random.integers(0, 2, (23, 3)), random.integers(0, 2, (50, 3)), 10)
    whole = evaluate_search(*search)
    monkeypatch.setattr(ranking, "QUERIES_A_TASK", 3)
    blocked = evaluate_search(*search)
    assert (whole.map, whole.tie_aware_map, whole.precision) == (blocked.map, blocked.tie_aware_map, blocked.precision)


@pytest.mark.parametrize("bits", [127, 128, 300])
def test_distances_of_long_codes_do_not_wrap(bits):
    """Doubled distances of up to 127 bits fit a byte; longer codes need two."""
    database = np.array([-np.ones(bits), np.ones(bits), np.zeros(bits), np.ones(bits)])
    indices, distances = hamming_top_k(np.ones((1, bits)), database, 4)
    np.testing.assert_array_equal(indices, [[1, 3, 2, 0]])
    np.testing.assert_array_equal(distances, [[0, 0, bits / 2, bits]])


@pytest.mark.parametrize("bits", [16_383, 20_000, 32_768])
def test_measures_of_long_codes_do_not_wrap(bits):
    """The one relevant item is the farthest: every bit of it differs."""
    query = np.ones((1, bits), np.int8)
    database = np.stack([-query[0], np.where(np.arange(bits) % 2, 1, -1).astype(np.int8), query[0]])
    labels = np.array([[1, 0]], np.uint8), np.array([[1, 0], [0, 1], [0, 1]], np.uint8)
    assert hamming_top_k(query, database, 3)[0].tolist() == [[2, 1, 0]]
    assert tie_aware_mean_average_precision(query, database, *labels, 3) == pytest.approx(1 / 3)
    _, recalls = precision_recall_curve(query, database, *labels)
    assert recalls[bits - 1] == 0 and recalls[bits] == 1


def test_precision_counts_the_relevant_among_k():
    database = np.array([[1, 1], [1, 1], [-1, -1], [1, -1]])
    labels = np.array([[1, 0], [0, 1], [1, 0], [1, 0]])
    assert precision_at_k(np.ones((1, 2)), database, np.array([[1, 0]]), labels, 3) == pytest.approx(2 / 3)


def test_the_precision_recall_curve_is_that_of_each_ball():
    random = np.random.default_rng(3)
    queries, database = random.choice([-1.0, 1.0], (6, 8)), random.choice([-1.0, 1.0], (80, 8))
    query_labels, labels = np.eye(4)[random.integers(3, size=6)], np.eye(4)[random.integers(3, size=80)]
    query_labels[0] = [0, 0, 0, 1]  # nothing in the database is relevant to it
    precision, recall = precision_recall_curve(queries, database, query_labels, labels)
    for radius in range(9):
        precisions, recalls = [], []
        for query, label in list(zip(queries, query_labels, strict=True))[1:]:
            ball, relevant = (database != query).sum(axis=1) <= radius, labels @ label > 0
            precisions.append((ball & relevant).sum() / max(ball.sum(), 1))
            recalls.append((ball & relevant).sum() / relevant.sum())
        assert precision[radius] == pytest.approx(np.mean(precisions))
        assert recall[radius] == pytest.approx(np.mean(recalls))


def test_jax_arrays_are_searched_like_numpys():
    random = np.random.default_rng(4)
    search = [random.choice([-1.0, 1.0], (3, 8)), random.choice([-1.0, 1.0], (9, 8)), np.eye(3), np.eye(3)[[0, 1, 2] * 3]]
    assert mean_average_precision(*map(jnp.asarray, search), 4) == mean_average_precision(*search, 4)


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_that_the_database_cannot_serve_is_refused(k):
    with pytest.raises(InputError, match=f"k {k}: the database holds 4 images; give 1 to 4"):
        mean_average_precision(np.ones((1, 2)), np.ones((4, 2)), np.ones((1, 1)), np.ones((4, 1)), k)


@pytest.mark.parametrize(("arguments", "message"), [
    ((np.ones((1, 3)), np.ones((4, 2)), np.ones((1, 1)), np.ones((4, 1))), "3 bits against a database of 2 bits"),
    ((np.ones((1, 2)), np.ones((4, 2)), np.ones((2, 1)), np.ones((4, 1))), "1 query codes, but 2 rows of labels"),
    ((np.ones((1, 2)), np.ones((4, 2)), np.ones((1, 2)), np.ones((4, 1))), "query labels of 2 classes"),
    ((np.ones((1, 2)), np.ones((4, 2)), np.ones((1, 1)), np.full((4, 1), 0.5)), "database labels must be a one-hot"),
    ((np.ones((0, 2)), np.ones((4, 2)), np.ones((0, 1)), np.ones((4, 1))), "at least one query"),
])
def test_inputs_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        mean_average_precision(*arguments, 1)
