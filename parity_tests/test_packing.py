"""Packed codes: the bits of codes of every kind, what is refused as codes, rows, spaces, and files."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from jax_brcd.retrieval import PackedCodes, check_spaces, pack_codes, packing
from jax_brcd.retrieval.packing import whole_number
from jax_brcd.runtime.errors import InputError

DTYPES = ("int8", "int64", "float16", "float32", "float64", ml_dtypes.bfloat16)


def random_codes(rows, bits, seed=0):
    return np.random.default_rng(seed).choice([-1.0, 1.0], (rows, bits)).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 130))
def test_packing_keeps_the_codes(seed, rows, bits):
    codes = random_codes(rows, bits, seed)
    packed = pack_codes(codes)
    assert packed.shape == (rows, -(-bits // 8)) and packed.dtype == np.uint8
    np.testing.assert_array_equal(PackedCodes(packed, bits).unpack(), codes)
    np.testing.assert_array_equal(PackedCodes.of(codes).packed, packed)
    np.testing.assert_array_equal(PackedCodes.of(codes).unpack(), codes)


def test_the_first_code_is_the_highest_bit():
    np.testing.assert_array_equal(pack_codes(np.array([[1, -1, -1, -1, -1, -1, -1, 0, 1]])), [[128, 128]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_of_every_type_of_number_have_the_same_bits(dtype):
    codes = random_codes(5, 20)
    np.testing.assert_array_equal(pack_codes(codes.astype(dtype)), pack_codes(codes))


def test_bools_are_bits():
    codes = random_codes(5, 20)
    np.testing.assert_array_equal(pack_codes(codes > 0), pack_codes(codes))
    np.testing.assert_array_equal(pack_codes(np.zeros((1, 8), bool)), [[0]])


def test_codes_of_ones_alone_are_codes():
    np.testing.assert_array_equal(pack_codes(np.ones((1, 8), np.uint8)), [[255]])


def test_a_matrix_whose_only_negative_code_stands_far_from_its_zeros_is_packed():
    """The rule is about the whole matrix, which is looked at in slabs of 65,536 rows."""
    codes = np.ones((2**17, 8), np.int8)
    codes[0, 0], codes[-1, 0] = 0, -1
    np.testing.assert_array_equal(pack_codes(codes)[[0, 1, -1]], [[127], [255], [127]])


@pytest.mark.parametrize("codes", [np.array([[0, 1, 1]]), np.array([[0, 1]], np.uint8), np.zeros((2, 3)), np.eye(3)])
def test_zeros_and_ones_are_refused_with_how_to_convert_them(codes):
    with pytest.raises(InputError, match=r"0 and 1 where -1 and \+1 are meant.*2 \* codes - 1.*codes\.astype\(bool\)"):
        pack_codes(codes)


@pytest.mark.parametrize(("codes", "message"), [
    (np.array([[np.nan, -1.0]]), "holds other values"),
    (np.array([[np.inf, -1.0]]), "holds other values"),
    (np.array([[0.3, -2.0]]), "other values; of logits, give logits > 0"),
    (np.array([[2, -1]]), "holds other values"),
    (np.array([[255, 1]], np.uint8), "holds other values"),
    (np.array([[1j, -1]]), r"codes are a matrix \(n, bits\) of -1, 0 and \+1, or of bool, not complex128 \(1, 2\)"),
    (np.array([[1, -1]], object), "or of bool, not object"),
    (np.array([["1", "0"]]), "or of bool, not <U1"),
    (np.array([1.0, -1.0]), r"or of bool, not float64 \(2,\)"),
    (np.ones((2, 3, 4)), r"or of bool, not float64 \(2, 3, 4\)"),
    (np.ones((3, 0)), "bits 0: too small; give 1 or more"),
])
def test_what_is_not_codes_is_refused(codes, message):
    with pytest.raises(InputError, match=message):
        pack_codes(codes)
    with pytest.raises(InputError, match=message):
        PackedCodes.of(codes)


@pytest.mark.parametrize(("packed", "bits", "message"), [
    (np.zeros((1, 2), np.uint8), 24, r"packed codes of 24 bits are a uint8 matrix of 3 bytes a row, not uint8 \(1, 2\)"),
    (np.zeros((1, 2), np.uint8), 8, "a uint8 matrix of 1 bytes a row"),
    (np.zeros((1, 2), np.int8), 16, r"not int8 \(1, 2\)"),
    (np.zeros((1, 2)), 16, r"not float64 \(1, 2\)"),
    (np.zeros(2, np.uint8), 16, r"not uint8 \(2,\)"),
    (np.array([[0, 1]], np.uint8), 15, "packed codes of 15 bits end in 1 zero bits, but some are set"),
    (np.array([[0, 0], [0, 8]], np.uint8), 12, "end in 4 zero bits, but some are set"),
    (np.zeros((1, 1), np.uint8), 0, "bits 0: too small; give 1 or more"),
    (np.zeros((1, 1), np.uint8), True, "bits True: not a whole number"),
])
def test_bytes_that_are_not_those_of_the_length_are_refused(packed, bits, message):
    with pytest.raises(InputError, match=message):
        PackedCodes(packed, bits)


@pytest.mark.parametrize(("value", "message"), [
    (2.0, "k 2.0: not a whole number"), (True, "k True: not a whole number"), (np.True_, "k True: not a whole number"),
    ("3", "k 3: not a whole number"), (None, "not a whole number"), (np.ones(2, int), "not a whole number"),
    (0, "k 0: too small; give 1 or more"),
])
def test_whole_numbers_are_told_from_what_only_looks_like_them(value, message):
    with pytest.raises(InputError, match=message):
        whole_number(value, "k", low=1)
    assert whole_number(np.uint8(3), "k") == 3


def test_there_may_be_no_codes_at_all():
    none = PackedCodes.of(np.zeros((0, 12)))
    assert len(none) == 0 and none.bits == 12 and none.packed.shape == (0, 2) and none.unpack().shape == (0, 12)


def test_packed_codes_cannot_be_changed():
    bytes_of_codes = np.zeros((2, 1), np.uint8)
    codes = PackedCodes(bytes_of_codes, 8)
    with pytest.raises(ValueError, match="read-only"):
        codes.packed[0, 0] = 1
    with pytest.raises(AttributeError):
        codes.bits = 7
    assert np.shares_memory(codes.packed, bytes_of_codes) and bytes_of_codes.flags.writeable


def test_rows_are_taken_as_numpy_takes_them():
    codes = random_codes(7, 12)
    packed = PackedCodes.of(codes, "teacher-1")
    for rows in (slice(2, 5), slice(None, None, -2), [3, 0, 3], np.array([-1, 2]), np.arange(7) % 2 == 0, [], slice(3, 3)):
        expected = codes[np.asarray(rows, int) if isinstance(rows, list) else rows]
        np.testing.assert_array_equal(packed[rows].unpack(), expected)
        assert (packed[rows].bits, packed[rows].space) == (12, "teacher-1")
    for row in (0, -1, np.int32(4)):
        np.testing.assert_array_equal(packed[row].unpack(), codes[[row]])
    np.testing.assert_array_equal([row.unpack()[0] for row in packed], codes)
    assert np.shares_memory(packed[2:5].packed, packed.packed) and np.shares_memory(packed[4].packed, packed.packed)


@pytest.mark.parametrize("rows", [(slice(None), 3), 1.0, [0.5], np.ones((2, 2), int), np.ones(3, bool), "first", True])
def test_rows_that_are_no_rows_are_refused(rows):
    with pytest.raises(InputError, match="rows"):
        PackedCodes.of(random_codes(4, 8))[rows]


@pytest.mark.parametrize("row", [4, -5])
def test_a_row_beyond_the_last_is_an_index_error(row):
    with pytest.raises(IndexError):
        PackedCodes.of(random_codes(4, 8))[row]


def test_packed_codes_are_put_together():
    codes = random_codes(7, 12)
    whole = PackedCodes.concatenate([PackedCodes.of(codes[:3], "a"), PackedCodes.of(codes[3:], "a")])
    np.testing.assert_array_equal(whole.unpack(), codes)
    assert whole.space == "a"
    assert PackedCodes.concatenate([PackedCodes.of(codes, "a"), PackedCodes.of(codes)]).space is None


@pytest.mark.parametrize(("parts", "message"), [
    ([], "no codes to put together"),
    ([PackedCodes.of(random_codes(1, bits)) for bits in (8, 9)], "codes of 8 bits cannot be put together with codes of 9"),
    ([PackedCodes.of(random_codes(1, 8), space) for space in ("a", None, "b")], "the space 'a' .* the space 'b'"),
])
def test_parts_that_do_not_belong_together_are_refused(parts, message):
    with pytest.raises(InputError, match=message):
        PackedCodes.concatenate(parts)


def test_spaces_are_compared_where_both_are_known():
    a, b, unknown = (PackedCodes.of(random_codes(1, 8), space) for space in ("a", "b", None))
    for pair in ((a, a), (a, unknown), (unknown, b), (a, random_codes(1, 8)), (unknown, unknown)):
        check_spaces(*pair)
    with pytest.raises(InputError, match="codes of the space 'a' cannot be compared with codes of the space 'b'"):
        check_spaces(a, b)
    assert PackedCodes.of(a) is a and PackedCodes.of(unknown, "a").space == "a"
    with pytest.raises(InputError, match="space 'a' .* space 'b'"):
        PackedCodes.of(a, "b")


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("rows", "bits", "space"), [(9, 12, "teacher-1"), (3, 64, None), (0, 5, "ä/б")])
def test_a_file_gives_back_the_codes_that_were_saved(tmp_path, rows, bits, space, mapped):
    codes = PackedCodes.of(random_codes(rows, bits), space)
    codes.save(str(tmp_path / "new" / "codes.safetensors"))
    back = PackedCodes.load(tmp_path / "new" / "codes.safetensors", mapped=mapped)
    np.testing.assert_array_equal(back.packed, codes.packed)
    assert (back.bits, back.space, len(back)) == (bits, space, rows)


def test_a_path_may_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    codes = PackedCodes.of(random_codes(2, 8))
    codes.save("~/codes.safetensors")
    assert (tmp_path / "codes.safetensors").is_file() and len(PackedCodes.load("~/codes.safetensors")) == 2


@pytest.mark.parametrize("mapped", [False, True])
def test_codes_are_those_of_one_file_where_another_takes_its_place_meanwhile(tmp_path, monkeypatch, mapped):
    draw = np.random.default_rng(0)
    old, new = (PackedCodes(draw.integers(256, size=(rows, 8), dtype=np.uint8), 64, None) for rows in (5, 9))
    old.save(tmp_path / "codes")
    parse = packing.parse_json

    def replaced(header):
        new.save(tmp_path / "codes")
        return parse(header)

    monkeypatch.setattr(packing, "parse_json", replaced)
    np.testing.assert_array_equal(PackedCodes.load(tmp_path / "codes", mapped=mapped).packed, old.packed)
    np.testing.assert_array_equal(PackedCodes.load(tmp_path / "codes", mapped=mapped).packed, new.packed)


def test_mapped_codes_stay_on_disk(tmp_path):
    PackedCodes.of(random_codes(1000, 64)).save(tmp_path / "codes.safetensors")
    mapped = PackedCodes.load(tmp_path / "codes.safetensors", mapped=True)
    for part in (mapped, mapped[100:200]):
        base = part.packed
        while not isinstance(base, np.memmap):
            base = base.base
        assert np.shares_memory(part.packed, base)
    mapped.save(tmp_path / "codes.safetensors")  # over the file that is mapped
    np.testing.assert_array_equal(PackedCodes.load(tmp_path / "codes.safetensors").packed, mapped.packed)


@pytest.mark.parametrize("content", [
    lambda whole: b"",
    lambda whole: b"1234567",
    lambda whole: b"\xff" * 64,
    lambda whole: b"\x02\0\0\0\0\0\0\0{}",
    lambda whole: b"\x04\0\0\0\0\0\0\0null1234",
    lambda whole: whole[:-1],
    lambda whole: whole + b"x",
    lambda whole: safetensors.numpy.save({"codes": np.zeros((2, 2), np.uint8)}),
], ids=["nothing", "too short", "noise", "empty header", "null header", "cut", "longer", "other tensors"])
def test_a_file_that_holds_no_codes_is_refused(tmp_path, content):
    path = tmp_path / "codes.safetensors"
    PackedCodes.of(random_codes(9, 12)).save(path)
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(InputError, match=f"{path}: not a whole file of packed codes"):
        PackedCodes.load(path)
