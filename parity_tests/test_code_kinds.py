"""What searches and measures take for codes: signs, bits, JAX's arrays and packed codes give the same answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_brcd.retrieval import (
    HammingIndex,
    PackedCodes,
    evaluate_search,
    hamming_top_k,
    mean_average_precision,
    nearest_neighbours,
    precision_at_k,
    precision_recall_curve,
    tie_aware_mean_average_precision,
)
from jax_brcd.runtime.errors import InputError

MEASURES = (mean_average_precision, precision_at_k, tie_aware_mean_average_precision)
KINDS = {
    "int8": lambda codes: codes.astype(np.int8),
    "bool": lambda codes: codes > 0,
    "jax": jnp.asarray,
    "jax bool": lambda codes: jnp.asarray(codes) > 0,
    "jax bfloat16": lambda codes: jnp.asarray(codes, jnp.bfloat16),
    "column by column": np.asfortranarray,
    "packed": PackedCodes.of,
    "packed, column by column": lambda codes: PackedCodes(np.asfortranarray(PackedCodes.of(codes).packed), codes.shape[1]),
    "packed, a view": lambda codes: PackedCodes.of(np.repeat(codes, 2, axis=0))[::2],
}


def search_of(bits=20, queries=6, database=50, classes=4):
    random = np.random.default_rng(0)
    codes = [random.choice([-1.0, 1.0], (rows, bits)).astype(np.float32) for rows in (queries, database)]
    return (*codes, *(np.eye(classes)[random.integers(classes, size=rows)] for rows in (queries, database)))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_of_every_kind_are_searched_alike(kind):
    search = queries, database, query_labels, labels = search_of()
    made = KINDS[kind]
    for other in (database, made(database)):
        for ours, expected in zip(hamming_top_k(made(queries), other, 7), hamming_top_k(queries, database, 7), strict=True):
            np.testing.assert_array_equal(ours, expected)
        for measure in MEASURES:
            assert measure(made(queries), other, query_labels, labels, 7) == measure(*search, 7)
        ours, expected = evaluate_search(made(queries), other, query_labels, labels, 7), evaluate_search(*search, 7)
        assert (ours.map, ours.tie_aware_map, ours.precision) == (expected.map, expected.tie_aware_map, expected.precision)
        np.testing.assert_array_equal(precision_recall_curve(made(queries), other, query_labels, labels),
                                      precision_recall_curve(*search))
    np.testing.assert_array_equal(nearest_neighbours(made(database), 3), nearest_neighbours(database, 3))


def test_distances_of_bits_are_the_counts_of_bits_that_differ():
    queries, database, _, _ = search_of(bits=8, queries=2, database=5)
    counts = np.sort(((queries > 0)[:, None] != (database > 0)[None]).sum(axis=2), axis=1)
    np.testing.assert_array_equal(hamming_top_k(queries > 0, database > 0, 5)[1], counts)


SEARCHES = {
    "hamming_top_k": lambda queries, database, *labels: hamming_top_k(queries, database, 2),
    "index": lambda queries, database, *labels: HammingIndex(database).search(queries, 2),
    "index, radius": lambda queries, database, *labels: HammingIndex(database).search_radius(queries, 2),
    "nearest_neighbours": lambda queries, database, *labels: (nearest_neighbours(queries, 1), nearest_neighbours(database, 1)),
    "evaluate_search": lambda *search: evaluate_search(*search, 2),
    "precision_recall_curve": lambda *search: precision_recall_curve(*search),
    **{measure.__name__: lambda *search, measure=measure: measure(*search, 2) for measure in MEASURES},
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("side", ["queries", "database"])
@pytest.mark.parametrize(("spoil", "message"), [
    (lambda codes: (codes > 0).astype(np.uint8), r"2 \* codes - 1 .*codes\.astype\(bool\)"),
    (lambda codes: (codes > 0).astype(np.float32), r"2 \* codes - 1"),
    (lambda codes: jnp.asarray(codes > 0, jnp.int32), r"2 \* codes - 1"),
    (lambda codes: codes * np.nan, "holds other values"),
    (lambda codes: codes * 0.5, "holds other values"),
    (lambda codes: codes * (1 + 0j), "not complex"),
    (lambda codes: codes.astype(object), "not object"),
    (lambda codes: codes[0], r"codes are a matrix \(n, bits\)"),
    (lambda codes: codes[:, :0], "bits 0: too small"),
], ids=["0/1 uint8", "0/1 float", "0/1 jax", "NaN", "halves", "complex", "object", "1-D", "no bits"])
def test_what_is_not_codes_is_refused_by_every_search(search, side, spoil, message):
    queries, database, *labels = search_of()
    queries, database = (spoil(queries), database) if side == "queries" else (queries, spoil(database))
    with pytest.raises(InputError, match=message):
        SEARCHES[search](queries, database, *labels)


@pytest.mark.parametrize("search", [name for name in SEARCHES if name != "nearest_neighbours"])
def test_codes_of_different_spaces_or_lengths_are_never_compared(search):
    queries, database, *labels = search_of()
    with pytest.raises(InputError, match="codes of the space 'one' cannot be compared with codes of the space 'two'"):
        SEARCHES[search](PackedCodes.of(queries, "one"), PackedCodes.of(database, "two"), *labels)
    SEARCHES[search](PackedCodes.of(queries, "one"), PackedCodes.of(database, "one"), *labels)
    SEARCHES[search](queries, PackedCodes.of(database, "two"), *labels)
    with pytest.raises(InputError, match="queries of 19 bits against a database of 20 bits"):
        SEARCHES[search](queries[:, :19], database, *labels)


@pytest.mark.parametrize("search", [
    hamming_top_k,
    lambda queries, database, k: HammingIndex(database).search(queries, k),
    lambda queries, database, k: mean_average_precision(queries, database, *search_of()[2:], k),
], ids=["hamming_top_k", "index", "mean_average_precision"])
@pytest.mark.parametrize(("k", "message"), [
    (0, "k 0: the database holds 50 images; give 1 to 50"), (-1, "k -1: the database"), (51, "k 51: the database"),
    (True, "k True: not a whole number"),
])
def test_a_k_that_is_no_number_of_items_is_refused(search, k, message):
    with pytest.raises(InputError, match=message) as error:
        search(*search_of()[:2], k)
    assert (error.value.field, error.value.value) == ("k", k)


def test_numpys_whole_numbers_are_numbers_of_items():
    queries, database, *_ = search_of()
    assert hamming_top_k(queries, database, np.int64(3))[0].shape == (6, 3)


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_neighbours_below_one_is_refused(count):
    with pytest.raises(InputError, match=f"count {count}: "):
        nearest_neighbours(search_of()[1], count)


def test_neighbours_of_no_codes_are_refused_and_one_item_is_its_own():
    with pytest.raises(InputError, match="at least one query"):
        nearest_neighbours(np.ones((0, 8)), 1)
    np.testing.assert_array_equal(nearest_neighbours(np.ones((1, 8)), 5), [[0]])
    np.testing.assert_array_equal(nearest_neighbours(np.ones((3, 8)), 5), [[1, 2], [0, 2], [0, 1]])


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(("spoil", "message"), [
    (lambda labels: labels * np.nan, "must be a one-hot or multi-hot matrix"),
    (lambda labels: labels * 2, "must be a one-hot"),
    (lambda labels: -labels, "must be a one-hot"),
    (lambda labels: labels.argmax(axis=1), r"of class numbers make one by np\.eye\(classes\)\[numbers\]"),
    (lambda labels: labels.astype(object), "must be a one-hot"),
    (lambda labels: labels * (1 + 0j), "must be a one-hot"),
    (lambda labels: labels[:, :0], "labels of no classes"),
    (lambda labels: labels[1:], "codes, but .* rows of labels"),
    (lambda labels: labels[:, 1:], "labels of . classes, database labels of"),
], ids=["NaN", "twos", "negative", "class numbers", "object", "complex", "no classes", "other length", "other classes"])
def test_labels_that_do_not_fit_are_refused(side, spoil, message):
    queries, database, *labels = search_of()
    labels[side] = spoil(labels[side])
    with pytest.raises(InputError, match=message):
        evaluate_search(queries, database, *labels, 2)


def test_labels_may_be_bools():
    queries, database, query_labels, labels = search_of()
    assert mean_average_precision(queries, database, query_labels > 0, jnp.asarray(labels > 0), 7) == mean_average_precision(
        queries, database, query_labels, labels, 7)
