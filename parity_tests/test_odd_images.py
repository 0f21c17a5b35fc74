"""Image files that Pillow warns of, and those that are none: read, or refused in one line; never a warning beside it."""

import os
import warnings

import numpy as np
import pytest
from encoders import noise, random_encoder
from image_trees import LONG, SLONG8, tiff
from PIL import Image, TiffImagePlugin

from jax_brcd.data.decoding import read_rgb, square
from jax_brcd.data.reading import read_image
from jax_brcd.runtime.errors import InputError


@pytest.fixture
def heard():
    """Every warning that is printed, where Python's own filters stand."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        yield caught


def test_an_image_that_pillow_warns_of_is_read_without_a_word(tmp_path, monkeypatch, heard):
    """Between Pillow's limit and twice that: a panorama, say."""
    image = Image.fromarray(noise(1, 300, 300)[0])
    image.save(tmp_path / "large.png")
    expected = square(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    np.testing.assert_array_equal(read_image(tmp_path / "large.png"), image)
    np.testing.assert_array_equal(square(read_rgb(tmp_path / "large.png")), expected)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    with pytest.raises(InputError, match=r"large\.png: too large, of more than 80,000 pixels; make it smaller$"):
        read_image(tmp_path / "large.png")
    assert not heard


def test_a_tile_beyond_its_image_counts_before_it_is_decoded(tmp_path, monkeypatch):
    large, hidden, in_tiles = (tmp_path / name for name in ("large.tif", "hidden.tif", "tiles.tif"))
    image, tile = noise(1, 60, 60)[0], bytes(4096 * 2048)
    canvas = np.pad(image, ((0, 4), (0, 4), (0, 0)))
    large.write_bytes(tiff(1, 1, [tile], [(322, LONG, 4096), (323, LONG, 2048)]))
    hidden.write_bytes(tiff(1, 1, [tile], [(322, SLONG8, 4096), (323, SLONG8, 2048)]))
    in_tiles.write_bytes(tiff(60, 60, [canvas[top:top + 32, left:left + 32].tobytes() for top in (0, 32) for left in (0, 32)],
                              [(322, LONG, 32), (323, LONG, 32)], bands=3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_rgb(large).size == (1, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    np.testing.assert_array_equal(read_image(in_tiles), image)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", lambda self: pytest.fail("it was decoded"))
    assert read_rgb(large) == "too large, of more than 100,000 pixels"
    assert read_rgb(hidden) == "truncated or corrupt (tiles of a size that cannot be told)"


def test_warnings_of_others_are_heard_still(tmp_path, heard):
    Image.fromarray(noise(1, 6, 9)[0]).save(tmp_path / "image.png")
    read_image(tmp_path / "image.png")
    warnings.warn("of another", UserWarning, stacklevel=1)
    assert [str(each.message) for each in heard] == ["of another"]


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: path.mkdir(), "a folder, and no image file; give the paths of the files in it"),
    (lambda path: os.mkfifo(path), "no file, but a pipe or a device; give an image file"),
    (lambda path: path.symlink_to(os.devnull), "no file, but a pipe or a device; give an image file"),
    (lambda path: None, "no such file; check the path"),
    (lambda path: path.symlink_to(path), "cannot be read (Too many levels of symbolic links); check the path"),
    (lambda path: path.write_bytes(b""), "no JPEG, PNG, WebP, TIFF or other image that Pillow reads; give an image file"),
    (lambda path: Image.fromarray(np.ones((2, 2), np.float32)).save(path, "TIFF"),
     "float pixels, whose range is not known; save it with 8 or 16 bits a channel"),
])
def test_a_path_of_no_image_says_what_it_is_and_how_to_mend_it(tmp_path, make, message):
    make(tmp_path / "image.png")
    with pytest.raises(InputError) as refused:
        random_encoder(8).encode([tmp_path / "image.png"])
    assert str(refused.value) == f"{tmp_path / 'image.png'}: {message}"


def test_a_cut_file_says_how_to_mend_it(tmp_path):
    Image.fromarray(noise(1, 60, 90)[0]).save(tmp_path / "image.png")
    (tmp_path / "image.png").write_bytes((tmp_path / "image.png").read_bytes()[:-900])
    with pytest.raises(InputError, match="image.png: truncated or corrupt .*; fetch or save the file again$"):
        read_image(tmp_path / "image.png")


def test_what_memory_does_not_hold_is_not_called_damaged(tmp_path, monkeypatch):
    Image.fromarray(noise(1, 6, 9)[0]).save(tmp_path / "image.png")

    def load(image):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert read_rgb(tmp_path / "image.png") == "too large for the memory that is free"


def test_an_image_too_elongated_is_named_by_its_place():
    with pytest.raises(InputError, match="^image number 1, counted from 0: an image of 1 x 20000000 pixels is too elongated"):
        random_encoder(8).encode([noise(1, 4, 4)[0], np.zeros((20_000_000, 1, 3), np.uint8)])


def test_an_encoder_whose_logits_are_no_numbers_gives_no_bits():
    encoder = random_encoder(8)
    encoder.model.head.bias[...] = encoder.model.head.bias[...].at[3].set(np.inf)
    with pytest.raises(InputError, match="logits that are no numbers"):
        encoder.encode(noise(2, 32, 32))


def test_an_odd_file_of_weights_is_refused_without_a_warning(tmp_path, heard):
    from jax_brcd.models.weights import read_weight_file

    torch = pytest.importorskip("torch")
    torch.save(noise, tmp_path / "whole.pth")
    with pytest.raises(InputError, match="whole.pth: truncated, or more than tensors in it"):
        read_weight_file(tmp_path / "whole.pth")
    assert not heard
