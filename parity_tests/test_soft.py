"""Soft queries and the cosine of features: exact, ties by position, the same in any batch; and both references agree."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_brcd.retrieval import (
    HammingIndex,
    PackedCodes,
    cosine_mean_average_precision,
    evaluate_search,
    mean_average_precision,
    ranking,
    scores,
    soft_mean_average_precision,
)
from jax_brcd.runtime.errors import InputError
from torch_ref import retrieval as reference


def signs(rows, bits, seed=0):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (rows, bits))


def logits(rows, bits, seed=5):
    return np.random.default_rng(seed).standard_normal((rows, bits)).astype(np.float32)


def labels(rows, seed=9):
    return np.eye(3, dtype=int)[np.random.default_rng(seed).integers(3, size=rows)]


def stable(values, k):
    """Positions of the largest values of each row, ties by position."""
    return np.argsort(-values, axis=1, kind="stable")[:, :k]


def test_an_example_by_hand():
    """Four bits: a sure first bit outweighs the three others, and equal codes keep their order."""
    database = np.array([[-1, 1, 1, 1], [1, -1, -1, -1], [1, 1, 1, -1], [1, 1, 1, -1], [-1, -1, -1, -1]])
    query = np.array([[4.0, 1.0, 0.5, -0.25]], np.float32)
    products, positions = HammingIndex(database).search(query, k=5, soft=True)
    assert positions.tolist() == [[2, 3, 1, 0, 4]] and products.tolist() == [[5.75, 5.75, 2.75, -2.75, -5.25]]
    assert (products.dtype, positions.dtype) == (np.float64, np.int64)
    distances, nearest = HammingIndex(database).search(query > 0, k=5)
    assert nearest.tolist() == [[2, 3, 0, 1, 4]] and distances.tolist() == [[0, 0, 2, 2, 3]]
    # Relevant are items 1 and 4, at ranks 3 and 5 of the soft ranking and at 4 and 5 of the other
    one, of_items = np.array([[1, 0]]), np.array([[0, 1], [1, 0], [0, 1], [0, 1], [1, 0]])
    assert soft_mean_average_precision(query, database, one, of_items, 5) == pytest.approx((1 / 3 + 2 / 5) / 2)
    assert mean_average_precision(query > 0, database, one, of_items, 5) == pytest.approx((1 / 4 + 2 / 5) / 2)


def test_a_cosine_by_hand():
    """Lengths do not matter, zeros lie between what is alike and what is opposed, and equal vectors keep their order."""
    database = np.array([[-2.0, 0.0], [0.0, 0.0], [1.0, 1.0], [300.0, 0.0], [0.5, 0.5]], np.float32)
    one, of_items = np.array([[1, 0]]), np.array([[1, 0], [0, 1], [1, 0], [0, 1], [0, 1]])
    # The ranking is 3, 2, 4, 1, 0, in which relevant items stand at 2 and 5
    found = cosine_mean_average_precision(np.array([[7.0, 0.0]]), database, one, of_items, 5)
    assert found == pytest.approx((1 / 2 + 2 / 5) / 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 140), st.integers(1, 60), st.integers(1, 40), st.data())
def test_a_soft_search_is_a_stable_sort_of_all_products(seed, bits, items, queries, data):
    """Logits on a grid tie often, and float64 adds them without rounding in any order."""
    random = np.random.default_rng(seed)
    database, asked = signs(items, bits, seed), random.integers(-8, 9, (queries, bits)).astype(np.float32) / 4
    k = data.draw(st.integers(1, items))
    products, positions = HammingIndex(PackedCodes.of(database)).search(asked, k, soft=True)
    expected = asked.astype(float) @ database.T
    np.testing.assert_array_equal(positions, stable(expected, k))
    np.testing.assert_array_equal(products, np.take_along_axis(expected, positions, axis=1))


def test_a_ranking_does_not_depend_on_chunks_or_batches(monkeypatch):
    """Few codes, each many times over: equal ones score the same wherever they lie, so that they stand by position."""
    database, asked = np.tile(signs(7, 24), (200, 1))[:-3], logits(50, 24)
    whole = HammingIndex(database).search(asked, 1397, soft=True)
    expected = asked.astype(float) @ database.T.astype(float)
    np.testing.assert_array_equal(whole[1], stable(expected, 1397))
    alone = [HammingIndex(database).search(asked[row : row + 1], 1397, soft=True)[1][0] for row in (0, 31, 49)]
    np.testing.assert_array_equal(whole[1][[0, 31, 49]], alone)
    for module in (ranking, scores):
        monkeypatch.setattr(module, "CHUNK", 256)
    monkeypatch.setattr(scores, "ROWS", 100)
    monkeypatch.setattr(scores, "HELD", 3000)
    for ours, theirs in zip(HammingIndex(database).search(asked, 1397, soft=True), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_cosine_ranking_does_not_depend_on_blocks(monkeypatch):
    features = np.tile(logits(11, 33), (30, 1)) * np.float32(2.0) ** np.arange(330)[:, None].astype(np.float32).clip(0, 60)
    asked, given = logits(9, 33, 6), (labels(9), labels(330))
    scoring = scores.CosineScoring.of(asked, features)
    held = np.empty((9, 330))
    scoring.fill(range(9), held)
    np.testing.assert_array_equal(held, np.tile(held[:, :11], (1, 30)))
    lengths = [np.linalg.norm(part, axis=1) for part in (asked, logits(11, 33))]
    np.testing.assert_allclose(held[:, :11] * 2.0**-52, asked @ logits(11, 33).T / np.outer(*lengths), atol=1e-6)
    whole = cosine_mean_average_precision(asked, features, *given, 300)
    monkeypatch.setattr(scores, "ROWS", 7)
    monkeypatch.setattr(scores, "HELD", 400)
    assert cosine_mean_average_precision(asked, features, *given, 300) == whole
    monkeypatch.setattr(scores, "KEPT", 0)
    assert scores.CosineScoring.of(asked, features).directions is None and scoring.directions is not None
    for slab in (7, 50, 400):
        monkeypatch.setattr(scores, "SLAB", slab)
        assert cosine_mean_average_precision(asked, features, *given, 300) == whole
        for k in (1, 40, 330):
            found = np.concatenate(scores.map_highest(lambda _, positions: np.stack(positions), scoring, k))
            np.testing.assert_array_equal(found, [scores.highest(row, k) for row in held])


def test_logits_of_one_size_rank_as_their_bits_do():
    """Then a product is the length less twice the distance, also where a code is undecided."""
    database = np.where(np.random.default_rng(1).random((300, 20)) < 0.1, 0, signs(300, 20))
    bits, given = signs(8, 20, 2), (labels(8), labels(300))
    for items in (signs(300, 20), database):
        assert soft_mean_average_precision(0.5 * bits, items, *given, 100) == mean_average_precision(bits, items, *given, 100)


def test_tiny_and_huge_logits_are_ranked():
    database = signs(40, 16)
    asked = np.stack([logits(1, 16)[0] * np.float32(scale) for scale in (1e-38, 1.0, 1e38)] + [np.zeros(16, np.float32)])
    products, positions = HammingIndex(database).search(asked, 40, soft=True)
    np.testing.assert_array_equal(positions[3], np.arange(40))
    assert np.isfinite(products).all() and (products[3] == 0).all()
    np.testing.assert_array_equal(positions[2], stable(asked[2:3].astype(float) @ database.T, 40)[0])


@pytest.mark.parametrize("kind", [np.float16, np.float64, jnp.bfloat16])
def test_floats_of_any_width_are_logits(kind):
    database, asked = signs(60, 12), jnp.asarray(logits(4, 12), kind) if kind == jnp.bfloat16 else logits(4, 12).astype(kind)
    _, positions = HammingIndex(database).search(asked, 60, soft=True)
    np.testing.assert_array_equal(positions, stable(np.asarray(asked).astype(float) @ database.T, 60))


def test_what_is_no_logits_is_refused_in_one_line():
    index, asked = HammingIndex(PackedCodes.of(signs(9, 12))), logits(3, 12)
    packed, infinite = PackedCodes.of(signs(3, 12)), asked.copy()
    infinite[1, 4] = np.nan
    for query, message in (
            (packed, "soft queries are logits, a matrix .* not packed codes"), (packed.packed, "not uint8 \\(3, 2\\)"),
            (signs(3, 12), "not int8 \\(3, 12\\)"), (asked > 0, "not bool"), (asked[0], "not float32 \\(12,\\)"),
            (asked[:, :8], "queries of 8 bits against a database of 12 bits"),
            (infinite, "query logits must be finite numbers; row 1 holds others")):
        with pytest.raises(InputError, match=message) as error:
            index.search(query, 2, soft=True)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="k 10: the database holds 9 images"):
        index.search(asked, 10, soft=True)
    features, given = logits(9, 5), (labels(3), labels(9))
    for queries, message in ((features[:3, :4], "query features of width 4 against database features of width 5"),
                             (np.full((3, 5), np.inf), "query features must be finite"), (packed, "not packed codes"),
                             (features[:0], "at least one query")):
        with pytest.raises(InputError, match=message):
            cosine_mean_average_precision(queries, features, *given, 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 40]), st.sampled_from([8, 24, 128]), st.booleans())
def test_soft_and_cosine_map_agree_between_the_references(seed, k, bits, undecided):
    random = np.random.default_rng(seed)
    values = (-1.0, 0.0, 1.0) if undecided else (-1.0, 1.0)
    database = random.choice(values, (40, bits))
    database[0, 0] = -1.0
    asked, features = logits(6, bits, seed), [logits(rows, 9, seed + rows) for rows in (6, 40)]
    features[1][20:] = features[1][:20]  # ties
    given = random.integers(0, 2, (6, 4)), random.integers(0, 2, (40, 4))
    codes = np.where(asked > 0, 1.0, -1.0)
    ours = evaluate_search(codes, database, *given, k, query_logits=asked, features=tuple(features))
    theirs = reference.search_scores(codes, database, *given, k, logits=asked, features=tuple(features))
    for name in ("map", "tie_aware_map", "precision", "soft_map", "cosine_map"):
        assert getattr(ours, name) == pytest.approx(theirs[name], abs=1e-9), name
    plain = evaluate_search(codes, database, *given, k)
    assert (plain.soft_map, plain.cosine_map) == (None, None)
    assert (plain.map, plain.tie_aware_map, plain.precision) == (ours.map, ours.tie_aware_map, ours.precision)
