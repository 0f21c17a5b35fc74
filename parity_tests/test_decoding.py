"""Image files become squares: exactly torchvision's, whatever the mode, in any number of processes."""

import os
import subprocess
import sys

import grain
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from image_trees import picture
from orphans import await_end
from PIL import Image
from torchvision.transforms import v2

from jax_brcd.data.decoding import decode, decode_all, square
from jax_brcd.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, evaluation_views


@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (256, 256), (300, 1000), (97, 101), (3, 7), (1, 1)])
def test_a_square_is_torchvisions_to_the_last_bit(width, height):
    image = picture(0, width, height)
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(256)])(image)
    np.testing.assert_array_equal(square(image), np.asarray(expected))


def test_the_evaluation_view_of_a_square_is_the_published_one_of_the_file():
    """Within 1e-5: uint8 pixels over 255, normalised in float32 by either library."""
    image = picture(1, 320, 240)
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                           v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(image)
    ours = evaluation_views(jnp.asarray(square(image))[None], 224, resize=256)[0]
    np.testing.assert_allclose(ours, expected.permute(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(5000, 2), (1, 3000)])
def test_a_strip_takes_no_more_memory_than_its_middle(width, height):
    """Resized whole, 5000 x 2 pixels would become 640,000 x 256."""
    gradient = np.zeros((height, width, 3), np.uint8)
    axis = 1 if width > height else 0
    gradient[...] = np.linspace(0, 255, max(width, height)).reshape((-1, 1) if axis else (-1, 1, 1))
    middle = square(Image.fromarray(gradient))
    assert middle.shape == (256, 256, 3) and abs(int(middle.mean()) - 127) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_of_a_png_becomes_rgb(tmp_path, mode):
    gray = np.repeat(np.array([[0, 255]], np.uint8), 4, axis=0).repeat(2, axis=1)
    image = (Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode))
    assert image.mode == mode
    image.save(tmp_path / "image.png")
    decoded = decode(tmp_path / "image.png")
    np.testing.assert_array_equal(decoded[0, 0], [0, 0, 0])
    np.testing.assert_array_equal(decoded[-1, -1], [255, 255, 255])


def test_a_palette_with_transparency_and_cmyk_keep_their_colours(tmp_path):
    red = Image.new("RGB", (8, 8), (250, 10, 10))
    red.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.gif", transparency=0)
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    for name in ("palette.gif", "cmyk.jpg"):
        np.testing.assert_allclose(decode(tmp_path / name)[128, 128], [250, 10, 10], atol=3)  # JPEG's rounding


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda path: path.write_bytes(path.read_bytes()[:-200]), "truncated or corrupt (image file is truncated"),
    (lambda path: path.write_bytes(path.read_bytes()[:300]), "truncated or corrupt ("),
    (lambda path: path.write_text("not an image"), "no JPEG, PNG, WebP, TIFF or other image that Pillow reads"),
    (lambda path: path.write_bytes(b""), "no JPEG, PNG, WebP, TIFF or other image that Pillow reads"),
    (lambda path: path.unlink(), "no such file"),
    (lambda path: (path.unlink(), path.mkdir()), "a folder, and no image file"),
    (lambda path: (path.unlink(), os.mkfifo(path)), "no file, but a pipe or a device"),
])
def test_what_cannot_be_decoded_says_why(tmp_path, damage, reason):
    path = tmp_path / "image.jpg"
    picture(0).save(path)
    damage(path)
    assert decode(path).startswith(reason)


def test_processes_and_threads_decode_alike_and_in_order(tmp_path):
    paths = [str(tmp_path / f"{number}.jpg") for number in range(7)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    (tmp_path / "3.jpg").write_bytes(b"")
    expected = [decode(path) for path in paths]
    for workers in (0, 2):
        found = list(decode_all(paths, workers=workers))
        assert len(found) == 7 and found[3] == decode(paths[3])
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


DECODES_AND_WAITS = """
import multiprocessing, sys, time
from jax_brcd.data.decoding import decode_all
squares = decode_all(sys.argv[1:] * 1000, workers=1)
next(squares)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""


def test_workers_end_with_a_run_that_is_killed(tmp_path, started):
    picture(0).save(tmp_path / "image.jpg")
    running = started([sys.executable, "-c", DECODES_AND_WAITS, tmp_path / "image.jpg"], stdout=subprocess.PIPE, text=True)
    workers = running.stdout.readline().split()
    assert len(workers) == 1 and os.path.exists(f"/proc/{workers[0]}")
    running.kill()
    running.wait()
    await_end(workers)


def test_few_images_do_not_start_processes(monkeypatch):
    monkeypatch.setattr(grain, "MultiprocessingOptions", None)
    assert list(decode_all(["absent.jpg"] * 3, workers=None)) == ["no such file"] * 3


@pytest.mark.parametrize(("name", "values"), [
    ("image.tif", np.array([[0, 65535], [0, 65535]], np.uint16)),
    ("image.png", np.array([[0, 65535], [0, 65535]], np.uint16)),
    ("image.pgm", np.array([[0, 65535], [0, 65535]], np.uint16)),
    ("image.tif", np.array([[0, 65535], [0, 65535]], np.int32)),
])
def test_of_16_bits_the_upper_8_are_kept_in_any_format(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    decoded = decode(tmp_path / name)
    np.testing.assert_array_equal(decoded[:, 0], np.zeros((256, 3)))
    np.testing.assert_array_equal(decoded[:, -1], np.full((256, 3), 255))


def test_16_bits_the_other_way_round_are_the_same(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    for name, mode in (("little.tif", "I;16"), ("big.tif", "I;16B")):
        kind = "<u2" if mode == "I;16" else ">u2"
        Image.frombytes(mode, (8, 8), values.astype(kind).tobytes()).save(tmp_path / name)
    np.testing.assert_array_equal(decode(tmp_path / "little.tif"), decode(tmp_path / "big.tif"))
    assert decode(tmp_path / "big.tif").max() == 63000 >> 8


@pytest.mark.parametrize(("values", "reason"), [
    (np.array([[0.0, 1.0]], np.float32), "float pixels, whose range is not known; save it with 8 or 16 bits a channel"),
    (np.array([[0, 70000]], np.int32), "pixels from 0 to 70000; save it with 8 or 16 bits a channel"),
    (np.array([[-5, 7]], np.int32), "pixels from -5 to 7; save it with 8 or 16 bits a channel"),
])
def test_pixels_of_an_unknown_range_are_refused_and_not_clipped(tmp_path, values, reason):
    Image.fromarray(values).save(tmp_path / "image.tif")
    assert decode(tmp_path / "image.tif") == reason


def test_colours_of_other_spaces_are_converted_and_never_called_damage(tmp_path, monkeypatch):
    """CIE L*a*b* of lightness 100 * 138 / 255 without colour is the gray of sRGB at 129."""
    Image.new("LAB", (4, 4), (138, 128, 128)).save(tmp_path / "image.tif")
    np.testing.assert_allclose(decode(tmp_path / "image.tif")[9, 9].astype(int), 129, atol=2)

    def convert(*_):
        raise ValueError("conversion from LAB to RGB not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)
    assert decode(tmp_path / "image.tif") == "conversion from LAB to RGB not supported"


@pytest.mark.parametrize("name", ["film.gif", "film.webp", "film.apng", "pages.tif", "pair.mpo"])
def test_the_first_picture_of_several_counts(tmp_path, name):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ((250, 10, 10), (10, 10, 250)))
    red.save(tmp_path / name, save_all=True, append_images=[blue, blue])
    # WebP and MPO lose a little
    np.testing.assert_allclose(decode(tmp_path / name)[128, 128].astype(int), [250, 10, 10], atol=8)


def test_orientation_tags_are_ignored_as_by_torchvision(tmp_path):
    image = picture(2, 60, 40)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "image.png", exif=turned)
    np.testing.assert_array_equal(decode(tmp_path / "image.png"), square(image))


def test_alpha_is_dropped_and_what_lay_under_it_shows(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., :3] = (250, 10, 10)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    np.testing.assert_array_equal(decode(tmp_path / "image.png")[5, 5], [250, 10, 10])


def test_an_image_called_otherwise_than_its_format_is_read(tmp_path):
    picture(1).save(tmp_path / "image.webp", lossless=True)
    os.rename(tmp_path / "image.webp", tmp_path / "image.jpg")
    np.testing.assert_array_equal(decode(tmp_path / "image.jpg"), square(picture(1)))


def test_documents_are_not_read_whatever_they_are_called(tmp_path):
    (tmp_path / "image.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    assert decode(tmp_path / "image.jpg").startswith("no JPEG, PNG")


def test_an_image_beyond_what_pillow_reads_safely_says_so(tmp_path, monkeypatch):
    Image.new("L", (200, 200)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert decode(tmp_path / "image.png") == "too large, of more than 20,000 pixels"
