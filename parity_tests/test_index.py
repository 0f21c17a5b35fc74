"""HammingIndex: exact, laid out once, searched by k and by radius; and the same answers in JAX's 64-bit mode."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_brcd.retrieval import HammingIndex, PackedCodes, ranking
from jax_brcd.runtime.errors import InputError


def random_codes(rows, bits, seed=0):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (rows, bits))


def distances_of(queries, database):
    return (queries[:, None] != database[None]).sum(axis=2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 140), st.integers(1, 80), st.integers(1, 40), st.data())
def test_a_search_is_a_stable_sort_of_all_distances(seed, bits, items, queries, data):
    queries, database = random_codes(queries, bits, seed), random_codes(items, bits, seed + 1)
    k = data.draw(st.integers(1, items))
    distances, positions = HammingIndex(PackedCodes.of(database)).search(PackedCodes.of(queries), k)
    expected = distances_of(queries, database)
    order = np.argsort(expected, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_array_equal(distances, np.take_along_axis(expected, order, axis=1))
    assert (distances.dtype, positions.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("queries", [1, 3, 40])
@pytest.mark.parametrize("radius", [0, 3, 8, 100])
def test_a_ball_holds_all_within_its_radius_nearest_first(queries, radius):
    queries, database = random_codes(queries, 8), random_codes(ranking.CHUNK + 500, 8, 1)
    balls = HammingIndex(database).search_radius(queries, radius)
    assert len(balls) == len(queries)
    for (distances, positions), expected in zip(balls, distances_of(queries, database), strict=True):
        order = np.argsort(expected, kind="stable")
        order = order[expected[order] <= radius]
        np.testing.assert_array_equal(positions, order)
        np.testing.assert_array_equal(distances, expected[order])
        assert (distances.dtype, positions.dtype) == (np.int32, np.int64)


def test_an_index_is_laid_out_once():
    """The codes may change or go after the index is made: no search looks at them again."""
    database = np.array(PackedCodes.of(random_codes(1000, 64)).packed)
    index = HammingIndex(PackedCodes(database, 64))
    before = index.search(random_codes(5, 64, 1), 10)
    database[:] = 0
    for ours, expected in zip(index.search(random_codes(5, 64, 1), 10), before, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_mapped_codes_are_searched_like_those_in_memory(tmp_path):
    codes, queries = PackedCodes.of(random_codes(ranking.CHUNK + 5, 12), "space"), random_codes(4, 12, 1)
    codes.save(tmp_path / "codes.safetensors")
    index = HammingIndex(PackedCodes.load(tmp_path / "codes.safetensors", mapped=True))
    assert (len(index), index.bits, index.space) == (ranking.CHUNK + 5, 12, "space")
    for ours, expected in zip(index.search(queries, 20), HammingIndex(codes).search(queries, 20), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_zero_is_bit_0_in_an_index():
    distances, positions = HammingIndex(np.array([[0, 1], [-1, -1]])).search(np.array([[-1, 1], [0, -1]]), 2)
    np.testing.assert_array_equal(distances, [[0, 1], [0, 1]])
    np.testing.assert_array_equal(positions, [[0, 1], [1, 0]])


def test_an_empty_index_and_no_queries():
    empty = HammingIndex(np.ones((0, 8)))
    assert len(empty) == 0
    with pytest.raises(InputError, match="k 1: the database holds no images"):
        empty.search(np.ones((1, 8)), 1)
    ((distances, positions),) = empty.search_radius(np.ones((1, 8)), 8)
    assert distances.shape == positions.shape == (0,)
    index = HammingIndex(np.ones((3, 8)))
    assert index.search(np.ones((0, 8)), 2)[0].shape == (0, 2) and index.search_radius(np.ones((0, 8)), 2) == []


@pytest.mark.parametrize(("radius", "message"), [(-1, "radius -1: too small; give 0 or more"), (True, "radius True: not a")])
def test_a_radius_that_is_none_is_refused(radius, message):
    with pytest.raises(InputError, match=message) as error:
        HammingIndex(np.ones((3, 8))).search_radius(np.ones((1, 8)), radius)
    assert error.value.field == "radius"


X64 = """
import hashlib, jax, numpy as np
from jax_brcd.retrieval import HammingIndex, PackedCodes, evaluate_search, hamming_top_k, nearest_neighbours
random = np.random.default_rng(0)
for bits, values in ((8, (-1, 1)), (64, (-1, 0, 1)), (200, (-1, 0, 1))):
    queries, database = (random.choice(values, (rows, bits)) for rows in (40, 3000))
    labels = [np.eye(5)[random.integers(5, size=rows)] for rows in (40, 3000)]
    index = HammingIndex(database)
    scores = evaluate_search(queries, database, *labels, 100)
    found = [*hamming_top_k(queries, database, 50), nearest_neighbours(database[:200], 3), *index.search(queries, 50),
             *index.search_radius(queries[:1], bits // 3)[0], *scores.curve,
             *hamming_top_k(jax.numpy.asarray(queries), jax.numpy.asarray(database), 5),
             np.array([scores.map, scores.tie_aware_map, scores.precision]), PackedCodes.of(queries).unpack()]
    for part in found:
        print(part.dtype, part.shape, hashlib.sha256(part.tobytes()).hexdigest())
print(jax.config.jax_enable_x64)
"""


def test_jaxs_64_bit_mode_changes_no_answer():
    """In processes of their own, as the mode is one of the thread where it is set in Python."""
    said = [subprocess.run([sys.executable, "-c", X64], text=True, capture_output=True, check=True,
                           cwd=pathlib.Path(__file__).parents[1], env=os.environ | {"JAX_ENABLE_X64": mode}).stdout.split("\n")
            for mode in ("0", "1")]
    assert said[0][:-2] == said[1][:-2] and len(said[0]) > 30
    assert (said[0][-2], said[1][-2]) == ("False", "True")
