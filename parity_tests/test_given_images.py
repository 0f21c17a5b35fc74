"""Images as users give them: arrays, Pillow images and files in any mix, and what is refused with how to mend it."""

import pathlib

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from jax_brcd.encoder import create_encoder
from jax_brcd.images import AHEAD, as_items, read_ahead
from jax_brcd.models import create_hash_model
from jax_brcd.models.variants import Preprocessing
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.workers import cores


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def encoder():
    return create_encoder(create_hash_model("resnet8", 16), "resnet8", Preprocessing(32), bits=16, role="student", space="s")


def pixels(images):
    return list(read_ahead(as_items(images)))


def equal(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def files(tmp_path):
    """Images and the files that hold them."""
    images = [noise(20 + number, 30, seed=number) for number in range(5)]
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for image, path in zip(images, paths):
        PIL.Image.fromarray(image).save(path)
    return images, paths


def test_arrays_are_taken_alone_stacked_and_listed():
    stack = noise(3, 10, 12)
    for images in (stack, list(stack), tuple(stack), iter(stack), (image for image in stack), jnp.asarray(stack),
                   [jnp.asarray(image) for image in stack], stack[::-1][::-1]):
        equal(pixels(images), stack)
    equal(pixels(stack[0]), stack[:1])
    equal(pixels(jnp.asarray(stack[0])), stack[:1])
    sizes = np.empty(2, object)
    sizes[:] = [noise(4, 5), noise(6, 7)]
    equal(pixels(sizes), list(sizes))


def test_a_memory_mapped_stack_is_taken_row_by_row(tmp_path):
    np.save(tmp_path / "images.npy", noise(3, 10, 12))
    equal(pixels(np.load(tmp_path / "images.npy", mmap_mode="r")), noise(3, 10, 12))


def test_files_are_named_by_text_or_path_also_at_home(files, tmp_path, monkeypatch):
    images, paths = files
    monkeypatch.setenv("HOME", str(tmp_path))
    equal(pixels(paths), images)
    equal(pixels([str(path) for path in paths]), images)
    equal(pixels(np.array([str(path) for path in paths])), images)
    equal(pixels("~/2.png"), images[2:3])
    equal(pixels(pathlib.Path("~/3.png")), images[3:4])


def test_many_files_come_in_their_order(files):
    images, paths = files
    numbers = np.random.default_rng(0).integers(0, 5, 3 * AHEAD * cores())
    equal(pixels(paths[number] for number in numbers), [images[number] for number in numbers])


def test_kinds_and_sizes_may_be_mixed(files):
    images, paths = files
    mixed = [images[0], paths[1], PIL.Image.fromarray(images[2]), str(paths[3]), jnp.asarray(images[4])]
    equal(pixels(mixed), images)
    equal(pixels(PIL.Image.open(paths[4])), images[4:])


def test_files_and_arrays_of_the_same_pixels_have_the_same_codes(encoder, files):
    images, paths = files
    np.testing.assert_array_equal(encoder.encode(paths).packed, encoder.encode(images).packed)
    np.testing.assert_array_equal(encoder.encode(paths[1]).packed, encoder.encode(images).packed[1:2])


def test_pillow_images_of_other_modes_become_rgb():
    gray = np.random.default_rng(0).integers(0, 256, (6, 7), dtype=np.uint8)
    spread = np.repeat(gray[..., None], 3, axis=2)
    with_alpha = np.concatenate([spread, gray[..., None]], axis=2)
    for image in (PIL.Image.fromarray(gray), PIL.Image.fromarray(with_alpha)):
        equal(pixels(image), [spread])
    equal(pixels(PIL.Image.fromarray(gray > 127)), [np.where(spread > 127, 255, 0)])


def test_every_size_is_encoded(encoder):
    images = [noise(*size) for size in ((1, 1), (1, 700), (500, 2), (33, 31), (1500, 1100))]
    codes = encoder.encode(images)
    assert len(codes) == 5
    for row, image in enumerate(images):
        np.testing.assert_array_equal(codes[row].packed, encoder.encode(image).packed)


@pytest.mark.parametrize(("images", "message"), [
    (np.zeros((4, 8, 9, 3), np.float32), "image float32 (8, 9, 3): values from 0 to 1 become pixels by (255 * image)"),
    (np.zeros((8, 9, 3), np.float64), "image float64 (8, 9, 3): values from 0 to 1 become pixels"),
    (jnp.zeros((8, 9, 3)), "image float32 (8, 9, 3): values from 0 to 1"),
    (np.zeros((8, 9, 3), bool), "image bool (8, 9, 3): black and white become pixels by 255 * image"),
    (np.zeros((8, 9, 3), np.int64), "image int64 (8, 9, 3): whole numbers from 0 to 255 become pixels by image.astype"),
    (np.zeros((8, 9, 3), np.uint16), "16-bit ones by (image // 257).astype(np.uint8)"),
    (np.zeros((8, 9), np.uint8), "image uint8 (8, 9): gray, which becomes colour by np.repeat(image[..., None], 3, axis=-1)"),
    (np.zeros((8, 9, 1), np.uint8), "image uint8 (8, 9, 1): gray, which becomes colour by np.repeat(image, 3, axis=-1)"),
    (np.zeros((4, 8, 9, 1), np.uint8), "image uint8 (8, 9, 1): gray"),
    (np.zeros((5, 28, 28), np.uint8), "a stack of gray images becomes colour by np.repeat(images[..., None], 3, axis=-1)"),
    (np.zeros((8, 9, 2), np.uint8), "gray with transparency"),
    (np.zeros((8, 9, 4), np.uint8), "image uint8 (8, 9, 4): with transparency, which image[..., :3] leaves out"),
    (np.zeros((3, 8, 9), np.uint8), "channels first, which np.moveaxis(image, 0, -1) puts last"),
    (np.zeros((4, 3, 8, 9), np.uint8), "channels first, which np.moveaxis(images, 1, -1) puts last"),
    (np.zeros((0, 9, 3), np.uint8), "image uint8 (0, 9, 3): without pixels"),
    (np.zeros((2, 0, 9, 3), np.uint8), "image uint8 (0, 9, 3): without pixels"),
    (np.zeros((2, 2, 8, 9, 3), np.uint8), "5 axes instead of 3"),
    (np.uint8(3), "uint8 is no image"),
    (np.zeros(4, np.uint8), "1 axes instead of 3"),
    (3, "int is no image and no list of images; give a uint8 array"),
    (None, "NoneType is no image"),
    (b"\xff\xd8", "bytes is no image"),
    ({"a": 1}, "dict is no image"),
    ([1, 2], "int is no image; give a uint8 array (height, width, 3), a Pillow image or the path of a file"),
    ([[noise(4, 4)]], "list is no image"),
    ([noise(4, 4), np.zeros((4, 4), np.uint8)], "image number 1, counted from 0: image uint8 (4, 4): gray"),
    ([noise(4, 4)] * 40 + [None], "image number 40, counted from 0: NoneType is no image"),
    (PIL.Image.fromarray(np.zeros((4, 4), np.float32)), "Pillow image of mode F: float pixels, whose range is not known"),
    ("/absent/x.png", "/absent/x.png: no such file"),
    ([noise(4, 4), pathlib.Path("/absent/y.png")], "/absent/y.png: no such file"),
])
def test_what_is_no_image_is_refused_in_one_line_with_how_to_mend_it(encoder, images, message):
    for answer in (encoder.encode, encoder.logits):
        with pytest.raises(InputError) as refusal:
            answer(images)
        assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_damaged_files_are_refused_by_name(encoder, files, tmp_path):
    _, paths = files
    whole = paths[0].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder").mkdir()
    refused = {paths[1]: "truncated or corrupt", tmp_path / "text.png": "no JPEG, PNG", tmp_path / "folder": ""}
    for path, message in refused.items():
        with pytest.raises(InputError) as refusal:
            encoder.encode([paths[0], path])
        assert str(refusal.value).startswith(f"{path}: {message}") and "\n" not in str(refusal.value)
    lazy = PIL.Image.open(paths[1])
    with pytest.raises(InputError, match="Pillow image of mode RGB: .*; give one that can be read"):
        encoder.encode(lazy)


def test_what_follows_a_refused_image_is_not_asked_for(encoder):
    taken = []

    def images():
        for number in range(10_000):
            taken.append(number)
            yield None if number == 3 else noise(4, 4)

    with pytest.raises(InputError, match="image number 3"):
        encoder.encode(images())
    assert len(taken) < 10_000
