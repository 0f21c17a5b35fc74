"""Search of large databases: exact order where only a few groups of items are looked into, and memory that stays flat."""

import tracemalloc

import numpy as np
import pytest

from jax_brcd.retrieval import HammingIndex, PackedCodes, evaluate_search, hamming_top_k, mean_average_precision, ranking
from jax_brcd.runtime.workers import cores


def brute_force(queries, database, k):
    """The k nearest by a stable sort of all distances."""
    distances = (database.shape[1] - queries.astype(np.float32) @ database.astype(np.float32).T) / 2
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


@pytest.mark.parametrize(("bits", "values"), [(8, (-1, 1)), (16, (-1, 0, 1)), (64, (-1, 1)), (128, (-1, 0, 1))])
@pytest.mark.parametrize("k", [1, 100, 1500])
def test_the_nearest_of_many_are_those_of_a_stable_sort(bits, values, k):
    """Codes of 8 bits tie by the hundred; items of two chunks, the last group of which is partial."""
    random = np.random.default_rng(bits)
    queries, database = (random.choice(np.array(values, np.int8), (rows, bits)) for rows in (5, ranking.CHUNK + 1000))
    for ours, expected in zip(hamming_top_k(queries, database, k), brute_force(queries, database, k), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_the_whole_of_a_large_database_can_be_ranked():
    random = np.random.default_rng(1)
    queries, database = random.choice([-1, 1], (2, 16)), random.choice([-1, 1], (ranking.CHUNK + 7, 16))
    np.testing.assert_array_equal(hamming_top_k(queries, database, len(database))[0],
                                  brute_force(queries, database, len(database))[0])


def test_the_map_of_a_large_database_is_that_of_its_ranking():
    random = np.random.default_rng(2)
    queries, database = random.choice([-1, 1], (4, 16)), random.choice([-1, 1], (20_000, 16))
    labels = [np.eye(10, dtype=np.uint8)[random.integers(10, size=rows)] for rows in (4, 20_000)]
    order, _ = brute_force(queries, database, 50)
    relevant = (labels[0].argmax(1)[:, None] == labels[1].argmax(1)[order])
    precisions = np.cumsum(relevant, axis=1) / np.arange(1, 51)
    expected = np.mean([row[hits].mean() if hits.any() else 0.0 for row, hits in zip(precisions, relevant, strict=True)])
    search = queries, database, *labels, 50
    assert mean_average_precision(*search) == pytest.approx(expected, abs=1e-12)
    assert evaluate_search(*search).map == mean_average_precision(*search)


def peak_bytes(run) -> int:
    """The most that `run` held at once in NumPy arrays and Python objects beyond what was there before."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_index_of_mapped_codes_holds_one_layout_of_them(tmp_path):
    """Beside the chunks it keeps, which take what the codes take, there is never more than one chunk in the making."""
    packed = np.random.default_rng(4).integers(256, size=(2**20, 8), dtype=np.uint8)
    PackedCodes(packed, 64).save(tmp_path / "codes.safetensors")
    codes = PackedCodes.load(tmp_path / "codes.safetensors", mapped=True)
    kept = []
    assert peak_bytes(lambda: kept.append(HammingIndex(codes))) < packed.nbytes + 4 * ranking.CHUNK * 8 + 2**20


@pytest.mark.parametrize("search", [
    lambda codes, labels, database, database_labels: hamming_top_k(codes, database, 100),
    lambda *codes_and_labels: evaluate_search(codes_and_labels[0], codes_and_labels[2], codes_and_labels[1],
                                              codes_and_labels[3], 100),
], ids=["hamming_top_k", "evaluate_search"])
def test_the_memory_of_a_search_does_not_grow_with_the_queries(search):
    """Each thread holds the distances of a few queries and their results; a matrix of all of them would take 500 MB."""
    random, n_queries, n_database, bits = np.random.default_rng(3), 1024, 2**18, 64
    codes, database = (random.choice(np.array([-1, 1], np.int8), (rows, bits)) for rows in (n_queries, n_database))
    labels, database_labels = (np.eye(10, dtype=np.uint8)[random.integers(10, size=rows)] for rows in (n_queries, n_database))
    few, many = (peak_bytes(lambda rows=rows: search(codes[:rows], labels[:rows], database, database_labels))
                 for rows in (128, n_queries))
    results = n_queries * 100 * (8 + 4) + n_queries * 4 * (2 * bits + 1) * 8
    distances = cores() * ranking.QUERIES_A_TASK * n_database * (1 + 1 / ranking.GROUP)
    packed_and_chunks = 4 * n_database * bits // 8
    slabs = 6 * ranking.CHUNK * bits
    a_query = cores() * 24 * n_database  # what a thread holds of one query: its places, counted as 64-bit integers
    assert many < few + results + a_query
    assert many < results + distances + packed_and_chunks + slabs + a_query
