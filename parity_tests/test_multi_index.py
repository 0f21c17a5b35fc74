"""Multi-index hashing: the flat scan's own answers, for any codes, lengths, radii and filters, from few codes looked at."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jax_brcd.retrieval import HammingIndex, PackedCodes, multi_index
from jax_brcd.retrieval.multi_index import MultiIndex
from jax_brcd.retrieval.packing import code_bits
from jax_brcd.retrieval.scan import Scan
from jax_brcd.runtime.errors import InputError

NO_END = 1e9  # nothing is left to the scan


@pytest.fixture
def never_flat(monkeypatch):
    """No search gives up, however much it looks at: what is found is the tables' alone."""
    monkeypatch.setattr(multi_index, "LOOKS", NO_END)
    monkeypatch.setattr(Scan, "nearest", None)
    monkeypatch.setattr(Scan, "within", None)


def clustered(items, bits, seed, centres=5, flipped=0.05):
    """Codes around the same few centres, whatever the seed, so that some are equal and many at one distance."""
    rng, middle = np.random.default_rng(seed), np.random.default_rng(bits).random((centres, bits)) < 0.5
    return PackedCodes.of(middle[rng.integers(centres, size=items)] ^ (rng.random((items, bits)) < flipped))


def expected(query, database, mask):
    """Distances and positions of all codes in a mask, by a stable sort."""
    distances = np.bitwise_count(database.packed ^ query.packed[0]).sum(axis=1, dtype=np.int32)
    order = np.argsort(distances, kind="stable")
    order = order[mask[order]]
    return distances[order], order


def assert_same(found, distances, positions):
    np.testing.assert_array_equal(found[0], distances)
    np.testing.assert_array_equal(found[1], positions)
    assert (found[0].dtype, found[1].dtype) == (np.int32, np.int64)


# Seed, bits, codes, queries, the share of the mask, that which a query may look at, and how many are looked at together
CASES = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 150), st.sampled_from([0, 1, 2, 7, 300, 1100]),
                  st.sampled_from([1, 3, 70]), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([NO_END, 1.0, 0.25]),
                  st.sampled_from([8, 300, 1 << 18]))


@settings(max_examples=30, deadline=None)
@given(CASES, st.floats(0, 1), st.floats(0, 1))
@example((0, 64, 1100, 70, 1.0, NO_END, 300), 1.0, 1.0)
@example((0, 60, 300, 3, 0.3, 0.25, 300), 0.1, 0.1)
def test_the_tables_find_what_a_stable_sort_puts_first(case, share_asked, share_of_bits):
    seed, bits, items, queries, share, work, together = case
    database, asked = clustered(items, bits, seed), clustered(queries, bits, seed + 1)
    mask = np.random.default_rng(seed).random(items) < share
    k, radius = round(share_asked * items), round(share_of_bits * bits)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LOOKS", work), ("TOGETHER", together)):
            patch.setattr(multi_index, name, value)
        tables = MultiIndex(Scan.of(code_bits(database)))
        for filtered in (mask if share < 1 else None, mask):
            nearest, within = (search(code_bits(asked), value, filtered)
                               for search, value in ((tables.nearest, k), (tables.within, radius)))
            assert len(nearest) == len(within) == queries
            for own, ball, query in zip(nearest, within, asked, strict=True):
                distances, positions = expected(query, database, mask)
                assert_same(own, distances[:k], positions[:k])
                assert_same(ball, distances[distances <= radius], positions[distances <= radius])


@pytest.mark.parametrize("bits", [1, 8, 13, 24, 64, 100])
def test_every_radius_from_0_to_all_bits_is_exact(bits, never_flat):
    database, asked = clustered(400, bits, 0, flipped=0.2), clustered(2, bits, 1)
    tables = MultiIndex(Scan.of(code_bits(database)))
    for radius in range(min(bits, 24) + 1):
        for ball, query in zip(tables.within(code_bits(asked), radius), asked, strict=True):
            distances, positions = expected(query, database, np.ones(400, bool))
            assert_same(ball, distances[distances <= radius], positions[distances <= radius])


def test_of_many_equal_codes_the_first_are_found(never_flat):
    codes = PackedCodes(np.tile(np.arange(24, dtype=np.uint8).reshape(3, 8), (500, 1)), 64)
    distances, positions = HammingIndex(codes, multi_index=True).search(codes[1:3], 4)
    np.testing.assert_array_equal(positions, [[1, 4, 7, 10], [2, 5, 8, 11]])
    assert not distances.any()


def test_a_search_among_clusters_looks_at_few_codes_and_leaves_none_to_the_scan(never_flat, monkeypatch):
    looked, look = [], multi_index._Within._look
    monkeypatch.setattr(multi_index._Within, "_look", lambda self, *about: looked.append(len(about[2])) or look(self, *about))
    database, asked = clustered(40_000, 64, 0, centres=400), clustered(40, 64, 1, centres=400)
    distances, _ = HammingIndex(database, multi_index=True).search(asked, 10)
    assert 0 < sum(looked) < 40 * 40_000 / 50
    np.testing.assert_array_equal(distances[7], expected(asked[7], database, np.ones(40_000, bool))[0][:10])


@pytest.mark.parametrize("queries", [1, 40])
def test_a_query_that_would_look_at_too_much_is_left_to_the_scan(queries, monkeypatch):
    """Codes without clusters, beside one query that has its like among them."""
    packed = np.random.default_rng(0).integers(0, 256, (20_000 + queries, 8), np.uint8)
    database, asked = PackedCodes(packed[queries:], 64), PackedCodes(packed[: queries + 1][::-1], 64)
    scanned, nearest = [], Scan.nearest
    monkeypatch.setattr(Scan, "nearest", lambda self, far, *of: scanned.append(len(far.positive)) or nearest(self, far, *of))
    _, positions = HammingIndex(database, multi_index=True).search(asked, 1)
    assert scanned == [queries] and positions[0, 0] == 0
    scanned.clear()
    np.testing.assert_array_equal(positions, HammingIndex(database).search(asked, 1)[1])


def test_when_most_of_a_call_give_up_the_rest_do_not_try(monkeypatch):
    """Nor where it is known before, as of a large radius."""
    packed = np.random.default_rng(0).integers(0, 256, (20_500, 8), np.uint8)
    database, asked, tried = PackedCodes(packed[500:], 64), PackedCodes(packed[:500], 64), []
    monkeypatch.setattr(multi_index, "on_all_cores", lambda task, count, block, lend: [
        task(range(begin, min(begin + block, count)), None) for begin in range(0, count, block)])
    probe = multi_index._Within._probe
    monkeypatch.setattr(multi_index._Within, "_probe", lambda self, *about: tried.append(len(about[2])) or probe(self, *about))
    index = HammingIndex(database, multi_index=True)
    np.testing.assert_array_equal(index.search(asked, 5)[1], HammingIndex(database).search(asked, 5)[1])
    assert tried and set(tried) == {multi_index.QUERIES_A_TASK}
    tried.clear()
    assert len(index.search_radius(asked, 30)) == 500 and not tried


def test_an_index_says_what_memory_its_tables_take():
    database = clustered(5000, 64, 0)
    index = HammingIndex(database, multi_index=True)
    assert HammingIndex(database).table_bytes == 0
    widths = [table.width for table in index._searched.tables]
    assert sum(widths) == 64 and max(widths) <= 12  # of 2^12 codes and more
    assert index.table_bytes == sum(4 * (2**width + 1 + 5000) for width in widths)


def test_an_index_with_tables_answers_as_one_without_in_every_way(tmp_path):
    clustered(3000, 40, 0).save(tmp_path / "codes.safetensors")
    database, asked = PackedCodes.load(tmp_path / "codes.safetensors", mapped=True), clustered(5, 40, 1)
    plain, index = HammingIndex(database), HammingIndex(database, multi_index=True)
    logits, mask = np.random.default_rng(0).normal(size=(3, 40)), np.arange(3000) % 3 > 0
    for search in (lambda index: [index.search(asked, 3000)], lambda index: [index.search(logits, 9, soft=True)],
                   lambda index: index.search_radius(asked, 2), lambda index: index.search_radius(asked, 400),
                   lambda index: index.among(asked, 9, mask), lambda index: index.ball_among(asked, 3, mask)):
        for ours, theirs in zip(search(index), search(plain), strict=True):
            for part, same in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(part, same)


def test_no_codes_and_no_queries():
    empty, index = (HammingIndex(clustered(items, 16, 0), multi_index=True) for items in (0, 3))
    ((distances, positions),) = empty.search_radius(clustered(1, 16, 1), 16)
    assert distances.shape == positions.shape == (0,)
    assert index.search_radius(clustered(0, 16, 1), 2) == [] and index.search(clustered(0, 16, 1), 2)[0].shape == (0, 2)
    with pytest.raises(InputError, match="k 4: the database holds 3 images"):
        index.search(clustered(1, 16, 1), 4)


def test_more_codes_than_a_table_counts_are_refused():
    many = Scan(8, np.broadcast_to(np.zeros((1, 1), np.uint8), (1, 2**32)))
    with pytest.raises(InputError, match="4,294,967,295 codes at most, not 4,294,967,296; search without"):
        MultiIndex(many)
