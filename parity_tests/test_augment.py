"""Each operation of a view against torchvision's functional transform with the same parameters.

Both compute in float32 from the same uint8 pixels; 1e-5 in [0, 1] (5e-5 after normalisation divides by 0.225) is the rounding
of a dozen operations. Hue is compared where it is continuous: two channels that tie for the maximum up to rounding may take
another branch, but the colour they give is the same.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from jax_brcd import augment

ADJUST = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue)


def random_images(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def planes(images):
    """Images in [0, 1], planes first, as both frameworks take them."""
    return images.transpose(0, 3, 1, 2).astype(np.float32) / 255


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def reference_view(image, parameters, row, config):
    view = torch.tensor(planes(image[None])[0])
    box = [int(getattr(parameters, name)[row]) for name in ("top", "left", "height", "width")]
    view = reference.resized_crop(view, *box, [config.size, config.size], antialias=True)
    if parameters.flip[row]:
        view = reference.horizontal_flip(view)
    if parameters.jitter[row]:
        for operation in parameters.order[row]:
            view = ADJUST[int(operation)](view, float(parameters.factors[row, int(operation)]))
    if parameters.grayscale[row]:
        view = reference.rgb_to_grayscale(view, 3)
    if parameters.blur[row]:
        view = reference.gaussian_blur(view, [3, 3], [float(parameters.sigma[row])] * 2)
    return reference.normalize(view, config.mean, config.std).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 30, 32), (32, 32, 64), (64, 48, 24)])
def test_a_whole_view_is_torchvisions(height, width, size):
    config = augment.ViewConfig(size=size)
    images = random_images(24, height, width)
    parameters = augment.draw_view_parameters(keys(24), height, width, config)
    views = augment.apply_views(jnp.asarray(images), parameters, config)
    for row in range(24):
        np.testing.assert_allclose(views[row], reference_view(images[row], parameters, row, config), atol=5e-5)


@pytest.mark.parametrize("operation", [augment.BRIGHTNESS, augment.CONTRAST, augment.SATURATION])
def test_a_blend_is_torchvisions(operation):
    images = planes(random_images(3, 8, 8))
    factors = np.array([0.6, 1.0, 1.4], np.float32)
    ours = augment.blend(jnp.asarray(images), jnp.full(3, operation), jnp.asarray(factors))
    for row in range(3):
        theirs = ADJUST[operation](torch.tensor(images[row]), float(factors[row]))
        np.testing.assert_allclose(ours[row], theirs, atol=1e-6)


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_is_torchvisions(shift):
    images = planes(random_images(2, 16, 16))
    images[1, :, :8] = images[1, :1, :8]  # gray pixels have no hue and stay
    ours = augment.shift_hue(jnp.asarray(images), jnp.full(2, shift))
    np.testing.assert_allclose(ours, reference.adjust_hue(torch.tensor(images), shift), atol=1e-5)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_every_order_of_color_jitter_is_torchvisions(order):
    images = planes(random_images(1, 8, 8))
    factors = np.array([1.35, 0.65, 1.3, -0.08], np.float32)
    ours = augment.color_jitter(jnp.asarray(images), jnp.asarray(factors)[None], jnp.asarray(order)[None])
    theirs = torch.tensor(images[0])
    for operation in order:
        theirs = ADJUST[operation](theirs, float(factors[operation]))
    np.testing.assert_allclose(ours[0], theirs, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.1])
def test_blur_is_torchvisions(sigma):
    images = planes(random_images(2, 9, 7))
    ours = augment.gaussian_blur(jnp.asarray(images), jnp.full(2, sigma))
    np.testing.assert_allclose(ours, reference.gaussian_blur(torch.tensor(images), [3, 3], [sigma, sigma]), atol=1e-6)


@pytest.mark.parametrize(("height", "width", "size", "resize"),
                         [(32, 32, 224, None), (32, 32, 32, None), (60, 40, 32, None), (60, 40, 32, 36), (41, 77, 24, 30)])
def test_evaluation_views_are_torchvisions(height, width, size, resize):
    images = random_images(2, height, width)
    target = [size, size] if resize is None else resize
    view = v2.Compose([v2.Resize(target, antialias=True), v2.CenterCrop(size),
                       v2.Normalize(augment.IMAGENET_MEAN, augment.IMAGENET_STD)])
    ours = augment.evaluation_views(jnp.asarray(images), size, resize=resize)
    np.testing.assert_allclose(ours, view(torch.tensor(planes(images))).permute(0, 2, 3, 1), atol=5e-5)


def test_a_view_does_not_depend_on_its_batch():
    config = augment.ViewConfig(size=16)
    images, own = random_images(6, 16, 16), keys(6)
    together = augment.random_views(own, jnp.asarray(images), config)
    reversed_ = augment.random_views(own[::-1], jnp.asarray(images[::-1]), config)
    np.testing.assert_allclose(together, reversed_[::-1], atol=1e-6)


def test_another_key_gives_another_view():
    config = augment.ViewConfig(size=16)
    images = jnp.asarray(random_images(1, 16, 16))
    first, second = (augment.random_views(keys(1, seed), images, config) for seed in (0, 1))
    assert np.abs(first - second).max() > 0.01


def test_parameters_are_drawn_as_published():
    """Frequencies lie within four standard errors of 4,000 draws."""
    config, count = augment.ViewConfig(size=32), 4000
    drawn = augment.draw_view_parameters(keys(count), 32, 32, config)
    for name, probability in (("flip", 0.5), ("jitter", 0.7), ("grayscale", 0.2), ("blur", 0.5)):
        error = np.sqrt(probability * (1 - probability) / count)
        assert abs(np.mean(getattr(drawn, name)) - probability) < 4 * error, name
    factors = np.asarray(drawn.factors)
    for column, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.1, 0.1)]):
        assert low <= factors[:, column].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < factors[:, column].max() <= high
    assert 0.1 <= drawn.sigma.min() < 0.12 and 2.08 < drawn.sigma.max() <= 2.1
    orders, times = np.unique(np.asarray(drawn.order), axis=0, return_counts=True)
    assert len(orders) == 24 and times.min() > 100
    area = np.asarray(drawn.height * drawn.width) / 32**2
    assert 0.47 < area.min() and area.max() <= 1  # rounding to pixels moves the area by up to 3 %
    ratio = np.asarray(drawn.width / drawn.height)
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.39
    assert (np.asarray(drawn.top + drawn.height) <= 32).all() and (np.asarray(drawn.left + drawn.width) <= 32).all()
    assert drawn.top.min() == 0 and drawn.left.min() == 0


def test_a_box_that_never_fits_falls_back_to_the_centre():
    config = augment.ViewConfig(size=8, scale=(0.9, 1.0), ratio=(0.9, 1.1))
    drawn = augment.draw_view_parameters(keys(3), 10, 40, config)  # no box of 360 pixels is 10 high and nearly square
    np.testing.assert_array_equal(drawn.height, [10] * 3)
    np.testing.assert_array_equal(drawn.width, [11] * 3)
    np.testing.assert_array_equal(drawn.top, [0] * 3)
    np.testing.assert_array_equal(drawn.left, [14] * 3)


def test_a_flip_of_zero_never_flips():
    drawn = augment.draw_view_parameters(keys(50), 8, 8, augment.ViewConfig(size=8, flip=0.0))
    assert not drawn.flip.any()
