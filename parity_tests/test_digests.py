"""Digests: one for the same values however they lie, another for anything else; and features that are kept under them."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jax_brcd.models import create_hash_model
from jax_brcd.runtime import digests
from jax_brcd.runtime.digests import digest
from jax_brcd.runtime.errors import InputError
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.features import FeatureCache

SLICES = {"whole": np.s_[:], "first": np.s_[:8], "last": np.s_[8:], "even": np.s_[::2], "reversed": np.s_[::-1],
          "columns": np.s_[:, 1:], "channel": np.s_[..., 0]}


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(256, size=(16, 5, 4, 3), dtype=np.uint8)


def mapped(path, pixels):
    """A read-only map of the pixels, which a new file holds."""
    np.save(path, pixels)
    return np.load(path, mmap_mode="r")


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files of these tests count as old from the start, so that their digests are kept."""
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1.0)


def test_parts_of_a_memory_mapped_file_have_digests_of_their_own_and_share_them_with_copies(pixels, tmp_path):
    file = mapped(tmp_path / "images.npy", pixels)
    found = {name: digest(file[part]) for name, part in SLICES.items()}
    assert len(set(found.values())) == len(SLICES)
    for name, part in SLICES.items():
        assert found[name] == digest(pixels[part]) == digest(pixels[part].copy()) == digest(file[part])
        assert found[name] == digest(np.asfortranarray(pixels[part])) == digest(jnp.asarray(pixels[part]))


def test_a_fortran_ordered_map_is_digested_by_its_values(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    file = mapped(tmp_path / "values.npy", np.asfortranarray(values))
    assert file.flags.f_contiguous and not file.flags.c_contiguous
    assert digest(file) == digest(values) != digest(values.T)


def test_large_arrays_are_read_in_pieces_to_the_same_digest(pixels, tmp_path, monkeypatch):
    expected = {name: digest(pixels[part]) for name, part in SLICES.items()}
    monkeypatch.setattr(digests, "PIECE_BYTES", 50)  # less than an image
    file = mapped(tmp_path / "images.npy", pixels)
    assert {name: digest(file[part]) for name, part in SLICES.items()} == expected


@pytest.mark.parametrize("seconds", [-1.0, 2.0])
def test_a_file_that_changed_has_another_digest_even_with_the_same_time_and_name(pixels, tmp_path, seconds, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_SECONDS", seconds)
    path = tmp_path / "images.npy"
    before = digest(mapped(path, pixels))
    times = path.stat()
    file = mapped(path, 255 - pixels)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest(file) == digest(255 - pixels) != before


def test_a_map_of_a_file_that_was_replaced_is_what_it_still_shows(pixels, tmp_path):
    path = tmp_path / "images.npy"
    old = mapped(path, pixels)
    np.save(tmp_path / "new.npy", 255 - pixels)
    (tmp_path / "new.npy").replace(path)
    assert digest(old) == digest(pixels) and digest(np.load(path, mmap_mode="r")) == digest(255 - pixels)
    path.unlink()
    assert digest(old) == digest(pixels)


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_a_map_that_can_be_written_is_digested_as_it_is_now(pixels, tmp_path, mode):
    mapped(tmp_path / "images.npy", pixels)
    file = np.load(tmp_path / "images.npy", mmap_mode=mode)
    assert digest(file) == digest(pixels)
    file[3, 2, 1] = 255 - file[3, 2, 1]
    changed = pixels.copy()
    changed[3, 2, 1] = 255 - changed[3, 2, 1]
    assert digest(file) == digest(changed) != digest(pixels)


def test_a_map_is_read_once(pixels, tmp_path, monkeypatch):
    file, read, original = mapped(tmp_path / "images.npy", pixels), [], digests._values_digest
    monkeypatch.setattr(digests, "_values_digest", lambda array: (read.append(array.shape), original(array))[1])
    assert len({digest(file) for _ in range(3)} | {digest(file[:])}) == 1 and len(read) == 1
    assert digest(file[:8]) != digest(file[8:]) and len(read) == 3
    assert digest(file.view(ml_dtypes.float8_e5m2)) != digest(file.view(ml_dtypes.float8_e4m3)) and len(read) == 5


def test_types_shapes_and_places_of_parts_count():
    zeros = np.zeros(4, np.uint8)
    different = [zeros, zeros.astype(np.int8), zeros.astype(bool), zeros.reshape(2, 2), np.zeros(1, np.uint32), np.uint8(0),
                 np.zeros((0, 4)), np.zeros((4, 0)), np.zeros(4, ">u2"), np.zeros(4, "<u2"), np.zeros(4, np.float16),
                 np.zeros(4, ml_dtypes.bfloat16), zeros.tolist(), "0", b"0", 0, 0.0, False, None, {"a": 0}, [("a", 0)],
                 pathlib.PurePosixPath("0")]
    assert len({digest(part) for part in different}) == len(different)
    assert digest("ab", "c") != digest("a", "bc") != digest("abc") and digest(["a"], "b") != digest(["a", "b"])
    assert digest(1, 2) != digest(2, 1) and digest() != digest(None)


def test_keys_and_scalars_are_digested_by_value():
    assert digest(jax.random.key(3)) == digest(jax.random.key(3)) != digest(jax.random.key(4))
    assert digest(np.float32(0.5)) == digest(jnp.float32(0.5))


def test_dataclasses_are_digested_by_their_fields_and_arrays_in_them_whole():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        name: str
        values: np.ndarray

    many = np.arange(5000)
    changed = many.copy()
    changed[2500] = 0  # which NumPy does not print
    assert digest(Settings("a", many)) == digest(Settings("a", many.copy())) != digest(Settings("a", changed))
    assert digest(ViewConfig(size=32)) == digest(ViewConfig(size=32)) != digest(ViewConfig(size=33))


@pytest.mark.parametrize("part", [np.array(["a", None], object), object(), lambda: None])
def test_what_is_known_only_by_its_place_in_memory_is_refused(part):
    with pytest.raises(InputError, match="has no digest; give"):
        digest(part)


def test_features_of_both_halves_of_a_file_are_their_own(tmp_path):
    """The second half got the first one's features, for both begin where the file's map begins."""
    images = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    file = mapped(tmp_path / "images.npy", images)
    cache = FeatureCache(tmp_path, "resnet8", create_hash_model("resnet8", 8).backbone, "float32")
    whole = cache.evaluation(images, size=8)
    for half in (np.s_[:2], np.s_[2:]):
        np.testing.assert_allclose(cache.evaluation(file[half], size=8), whole[half], rtol=1e-5, atol=1e-5)
    assert np.abs(whole[:2] - whole[2:]).max() > 1e-3
    told = []
    told_of = dataclasses.replace(cache, directory=str(tmp_path / "text"), progress=lambda *what: told.append(what))
    told_of.evaluation(images, size=8)
    assert told == [("resnet8 images", 4, 4)]
