"""What is given as images: uint8 batches alone, all else refused with how to mend it; none of them; progress."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_brcd.models import create_hash_model
from jax_brcd.runtime.errors import InputError
from jax_brcd.views.augmentation import ViewConfig, apply_views, draw_view_parameters, evaluation_views, random_views
from jax_brcd.views.encoding import encode, encode_batch, streamed
from jax_brcd.views.images import check_images

BITS = 8
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 20, 28, 3), dtype=np.uint8)
KEYS = jax.random.split(jax.random.key(0), 5)
CONFIG = ViewConfig(size=16)

REFUSED = {
    "floats": (IMAGES / np.float32(255), r"float32: values from 0 to 1 become pixels by \(255 \* images\).round\(\)"),
    "double precision": (IMAGES / 255, "images of type float(64|32): values from 0 to 1 become pixels"),
    "half precision": (jnp.asarray(IMAGES / 255, jnp.bfloat16), "images of type bfloat16: values from 0 to 1 become pixels"),
    "whole numbers": (IMAGES.astype(np.int32), r"type int32: whole numbers .* become pixels by images.astype\(np.uint8\)"),
    "16 bits": (IMAGES.astype(np.uint16), r"images of type uint16: .* 16-bit ones by \(images // 257\)"),
    "black and white": (IMAGES > 99, "images of type bool: black and white become pixels"),
    "one image": (IMAGES[0], r"images of shape \(20, 28, 3\): one image, which is a batch of one as images\[None\]"),
    "gray": (IMAGES[..., 0], r"shape \(5, 20, 28\): gray, .* by np.repeat\(images\[..., None\], 3, axis=-1\)"),
    "gray with an axis": (IMAGES[..., :1], r"shape \(5, 20, 28, 1\): gray, .* by np.repeat\(images, 3, axis=-1\)"),
    "gray with transparency": (IMAGES[..., :2], "gray with transparency"),
    "transparent": (np.concatenate([IMAGES, IMAGES[..., :1]], -1), r"with transparency, which images\[..., :3\] leaves out"),
    "channels first": (np.moveaxis(IMAGES, -1, 1), r"channels first, which np.moveaxis\(images, 1, -1\) puts last"),
    "many channels": (np.zeros((2, 8, 8, 5), np.uint8), "5 channels where 3 are red, green and blue"),
    "one gray image": (IMAGES[0, ..., 0], r"images of shape \(20, 28\): one gray image"),
    "a video": (IMAGES[None], "5 axes instead of 4"),
    "no pixels": (np.zeros((2, 0, 8, 3), np.uint8), "without pixels"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_images_that_are_something_else_are_refused_everywhere_with_how_to_mend_them(case):
    images, message = REFUSED[case]
    model = create_hash_model("resnet8", BITS)
    parameters = draw_view_parameters(KEYS, 20, 28, CONFIG)
    for call in (check_images, lambda images: evaluation_views(images, 16), lambda images: random_views(KEYS, images, CONFIG),
                 lambda images: apply_views(images, parameters, CONFIG),
                 lambda images: encode(model, images, size=32, description=""),
                 jax.jit(lambda images: evaluation_views(images, 16))):
        with pytest.raises(InputError, match=message) as caught:
            call(images)
        line = str(caught.value)
        assert "\n" not in line and "give uint8 pixels from 0 to 255 of shape (images, height, width, 3)" in line


def test_mended_images_are_taken():
    gray = IMAGES[..., 0]
    for mended in ((255 * (IMAGES / 255)).round().astype(np.uint8), IMAGES[0][None], np.repeat(gray[..., None], 3, axis=-1),
                   np.moveaxis(np.moveaxis(IMAGES, -1, 1), 1, -1), jnp.asarray(IMAGES)):
        check_images(mended)
    np.testing.assert_array_equal((255 * (IMAGES / 255)).round().astype(np.uint8), IMAGES)


def test_a_list_of_images_is_refused():
    with pytest.raises(InputError, match=r"images are list and no array; .*np.stack\(images\)"):
        check_images(list(IMAGES))


def test_images_are_refused_without_type_checks_too(tmp_path):
    """As users have it: without the checks of shapes that these tests put on."""
    program = ("import numpy as np\nfrom jax_brcd.views.augmentation import evaluation_views\n"
               "try:\n    evaluation_views(np.ones((1, 4, 4, 3), np.float32), size=4)\n"
               "except ValueError as error:\n    print(type(error).__name__, error)")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("InputError images of type float32: values from 0 to 1 become pixels")


def test_no_images_give_no_rows_of_the_right_width():
    none = IMAGES[:0]
    assert encode(create_hash_model("resnet8", BITS), none, size=32, description="").shape == (0, BITS)
    assert encode(create_hash_model("resnet8", BITS).backbone, none, size=32, resize=40, description="").shape == (0, 64)
    assert evaluation_views(none, 16).shape == (0, 16, 16, 3)


def test_progress_is_told_after_each_batch_and_nothing_is_drawn(capfd, monkeypatch):
    told = []

    def progress(description, done, total):
        told.append((description, done, total))

    rows = np.arange(10.0)[:, None]
    with monkeypatch.context() as patch:
        patch.setattr("jax_brcd.views.encoding.ENCODING_BATCH", 4)
        doubled = list(streamed(lambda batch: 2 * jnp.asarray(batch), rows, description="rows", progress=progress))
    np.testing.assert_array_equal(np.concatenate(doubled), 2 * rows)
    assert told == [("rows", 4, 10), ("rows", 8, 10), ("rows", 10, 10)]
    encode(create_hash_model("resnet8", BITS), IMAGES, size=32, description="images", progress=progress)
    assert told[3:] == [("images", 5, 5)]
    list(streamed(lambda batch: jnp.asarray(batch), rows, description="rows"))
    assert capfd.readouterr() == ("", "")


def test_other_means_and_deviations_reach_the_model():
    model = create_hash_model("resnet8", BITS)
    view = {"size": 24, "resize": 26, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    expected = model(evaluation_views(IMAGES, **view))
    np.testing.assert_allclose(encode(model, IMAGES, description="", **view), expected, atol=1e-5)


def test_encoding_is_in_evaluation_mode_whatever_mode_a_model_is_in():
    model = create_hash_model("resnet8", BITS)
    expected = encode(model, IMAGES, size=32, description="")
    model.train()
    np.testing.assert_array_equal(encode(model, IMAGES, size=32, description=""), expected)
    graph, state = nnx.split(model)
    padded = np.concatenate([IMAGES, IMAGES[:3]])
    np.testing.assert_allclose(encode_batch(graph, state, jnp.asarray(padded), size=32)[:5], expected, atol=1e-5)
