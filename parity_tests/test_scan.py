"""Scanning packed codes: any length of code, of all or of some, in blocks that are smaller than the database."""

import numpy as np
import pytest

from jax_brcd.retrieval import HammingIndex, PackedCodes, scan
from jax_brcd.retrieval.packing import code_bits


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(scan, "BLOCK", 256)
    monkeypatch.setattr(scan, "BLOCKS_A_LOOK", 2)
    monkeypatch.setattr(scan, "GROUP", 4)
    monkeypatch.setattr(scan, "FOLD", 16)


def random_packed(count, bits, seed):
    return PackedCodes.of(np.random.default_rng(seed).random((count, bits)) < 0.5)


@pytest.mark.parametrize("queries", [1, 3, 70])
@pytest.mark.parametrize("bits", [5, 16, 20, 64, 72, 300])
@pytest.mark.parametrize("share", [None, 0.3, 0.0])
def test_the_nearest_and_all_within_a_radius_are_those_of_a_stable_sort(queries, bits, share):
    database, asked = random_packed(1000, bits, 0), random_packed(queries, bits, 1)
    mask = None if share is None else np.random.default_rng(2).random(1000) < share
    there = np.arange(1000) if mask is None else np.flatnonzero(mask)
    scanned = scan.Scan.of(code_bits(database))
    np.testing.assert_array_equal(scanned.packed(), database.packed)
    radius = bits // 3
    for k in (0, 1, 10, 400, 2000):
        found = scanned.nearest(code_bits(asked), k, mask)
        for (distances, positions), query in zip(found, asked, strict=True):
            expected = np.bitwise_count(database.packed[there] ^ query.packed[0]).sum(axis=1)
            order = np.argsort(expected, kind="stable")[:k]
            np.testing.assert_array_equal(positions, there[order])
            np.testing.assert_array_equal(distances, expected[order])
    for (distances, positions), query in zip(scanned.within(code_bits(asked), radius, mask), asked, strict=True):
        expected = np.bitwise_count(database.packed[there] ^ query.packed[0]).sum(axis=1)
        order = np.argsort(expected, kind="stable")
        np.testing.assert_array_equal(positions, there[order[expected[order] <= radius]])
        assert (distances <= radius).all()


@pytest.mark.parametrize("queries", [2, 40])
@pytest.mark.parametrize("bits", [254, 255])  # the longest code whose distances and what is beyond them fit a byte, and the next
@pytest.mark.parametrize("masked", [False, True])
def test_of_many_equal_codes_the_first_are_found(queries, bits, masked):
    few = random_packed(3, bits, 0)
    database = few[np.random.default_rng(1).integers(0, 3, 1500)]
    mask = np.arange(1500) >= 700 if masked else None
    there = np.arange(1500) if mask is None else np.flatnonzero(mask)
    asked = few[np.arange(queries) % 3]
    scanned = scan.Scan.of(code_bits(database))
    for k, found in ((4, scanned.nearest(code_bits(asked), 4, mask)), (1500, scanned.within(code_bits(asked), bits, mask))):
        for (distances, positions), query in zip(found, asked, strict=True):
            expected = np.bitwise_count(database.packed[there] ^ query.packed[0]).sum(axis=1)
            order = np.argsort(expected, kind="stable")[:k]
            np.testing.assert_array_equal(positions, there[order])
            np.testing.assert_array_equal(distances, expected[order])


def test_mapped_codes_of_a_word_stay_in_their_file_and_others_are_copied(tmp_path):
    for bits, mapped in ((64, True), (72, False)):
        random_packed(10, bits, 0).save(tmp_path / "codes")
        words = HammingIndex(PackedCodes.load(tmp_path / "codes", mapped=True))._scan.words
        assert scan._is_mapped(words) is mapped
    assert not scan._is_mapped(HammingIndex(random_packed(10, 64, 0))._scan.words)
