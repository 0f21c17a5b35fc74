"""Views of images on canvases: those of `evaluation_views`, and so torchvision's (tolerance: test_augment.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from jax_brcd.runtime.errors import InputError
from jax_brcd.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, evaluation_views
from jax_brcd.views.fitting import SQUARE, canvas_shape, canvas_side, check_fits, fitted_view, fitted_views

TORCHVISION_TOLERANCE = 1e-5 / min(IMAGENET_STD)
COLOUR = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
# Adding in another order, in [0, 1]; times 5 where normalised, which divides by 0.224
TOLERANCE = 2e-6


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = [(1, 1), (1, 90), (33, 31), (41, 77), (280, 375), (301, 200)]
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
evaluation_view = jax.jit(evaluation_views, static_argnames=("size", "resize", "mean", "std"))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("size", "resize"), [(32, None), (24, 31), (64, 73)])
def test_a_fitted_view_is_the_evaluation_view(height, width, size, resize):
    image = noise(height, width)
    ours = fitted_view(image, size=size, resize=resize, **PLAIN)
    theirs = evaluation_view(jnp.asarray(image[None]), size=size, resize=resize, **PLAIN)
    assert ours.shape == theirs.shape == (1, size, size, 3) and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 96), st.integers(1, 96), st.sampled_from([(32, None), (32, 32), (32, 37)]))
def test_a_fitted_view_is_torchvisions_for_every_size(height, width, view):
    size, resize = view
    image = noise(height, width, height * 97 + width)
    shrink = [v2.Resize([size, size])] if resize is None else [v2.Resize(resize), v2.CenterCrop(size)]
    theirs = v2.Compose([*shrink, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(torch.tensor(np.moveaxis(image, -1, 0) / 255))
    ours = fitted_view(image, size=size, resize=resize, **COLOUR)
    np.testing.assert_allclose(ours[0], theirs.permute(1, 2, 0), rtol=0, atol=TORCHVISION_TOLERANCE)


def test_what_fills_the_rest_of_a_canvas_makes_no_difference():
    canvas, image = np.full((1, 64, 64, 3), 255, np.uint8), noise(40, 50)
    canvas[0, :40, :50] = image
    filled = fitted_views(canvas, np.array([[40, 50]], np.int32), size=32, resize=36, **COLOUR)
    np.testing.assert_array_equal(filled, fitted_view(image, size=32, resize=36, **COLOUR))


def test_images_of_several_sizes_share_a_batch():
    images, canvases = [noise(40, 50), noise(64, 3, 1)], np.zeros((2, 64, 64, 3), np.uint8)
    for canvas, image in zip(canvases, images):
        canvas[: image.shape[0], : image.shape[1]] = image
    views = fitted_views(canvases, np.array([[40, 50], [64, 3]], np.int32), size=24, resize=None, **COLOUR)
    for view, image in zip(views, images):
        np.testing.assert_allclose(view, fitted_view(image, size=24, resize=None, **COLOUR)[0], rtol=0, atol=5 * TOLERANCE)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40000), st.integers(1, 40000))
def test_a_canvas_holds_its_image_and_wastes_less_than_half_of_a_side(height, width):
    shape = canvas_shape(height, width)
    assert height <= shape[0] and width <= shape[1]
    longer = max(height, width)
    assert canvas_side(longer) in shape and (longer <= 32 or canvas_side(longer) <= 1.5 * longer)
    assert shape[0] == shape[1] <= SQUARE or shape == (canvas_side(height), canvas_side(width))


def test_there_are_few_canvases():
    assert sorted({canvas_side(length) for length in range(1, 1025)}) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]


@pytest.mark.parametrize(("height", "width", "resize"), [
    (3000, 4000, None), (3000, 4000, 36), (1, 6000, None), (2300, 1100, 40)])
def test_large_and_elongated_images_are_seen_whole(height, width, resize):
    """A black left or upper half, a white rest: what is seen is the same of any size."""
    image = np.full((height, width, 3), 255, np.uint8)
    (image[: height // 2] if height > width else image[:, : width // 2])[:] = 0
    check_fits(height, width, size=32, resize=resize)
    view = np.asarray(fitted_view(image, size=32, resize=resize, **PLAIN))[0]
    view = view if height > width else np.swapaxes(view, 0, 1)
    np.testing.assert_allclose(view[:15], 0, atol=1e-6)
    np.testing.assert_allclose(view[17:], 1, atol=1e-6)


def test_an_image_too_elongated_to_be_counted_is_refused():
    check_fits(1, 100_000, size=224, resize=None)
    check_fits(4, 4000, size=224, resize=256)
    with pytest.raises(InputError, match="an image of 20000 x 2 pixels is too elongated; cut it"):
        check_fits(2, 20000, size=224, resize=256)
