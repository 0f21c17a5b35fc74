"""Views against torchvision with the same parameters, and the parameters against torchvision's distributions.

Ours is float32 and torchvision's float64 (but for hue, which it computes in float32), because torchvision's own
float32 places a pixel of a 256 pixel image only to 1e-5. From the same uint8 pixels, 1e-5 in [0, 1] is then ten times
the rounding of a dozen float32 operations; normalisation divides by at least 0.224, so the tolerance after it is
4.5e-5. Hue needs no exception: where channels tie, rounding may take another sixth of the colour circle, but
neighbouring sixths give the same colour there.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from jax_brcd.views import augmentation as augment
from jax_brcd.views import colour
from jax_brcd.views.augmentation import ViewConfig

TOLERANCE = 1e-5
NORMALISED_TOLERANCE = TOLERANCE / min(augment.IMAGENET_STD)
ADJUST = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue)
ORDERS = list(itertools.permutations(range(4)))


def random_images(count, height, width, seed=0):
    """Noise, the hardest case of a resize: neighbouring pixels share nothing."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def as_planes(images):
    """Images in [0, 1] with the planes first, as both frameworks compute on them; float64."""
    return np.moveaxis(images, -1, -3) / 255


def as_float32(array):
    return jnp.asarray(array, jnp.float32)


draw_view_parameters = jax.jit(augment.draw_view_parameters, static_argnames=("height", "width", "config"))
apply_views = jax.jit(augment.apply_views, static_argnames=("config",))
random_views = jax.jit(augment.random_views, static_argnames=("config",))
evaluation_views = jax.jit(augment.evaluation_views, static_argnames=("size", "resize", "mean", "std"))
color_jitter = jax.jit(augment.color_jitter)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def assert_close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=tolerance)


def reference_view(image, parameters, config):
    view = torch.tensor(as_planes(image))
    box = [int(side) for side in (parameters.top, parameters.left, parameters.height, parameters.width)]
    view = reference.resized_crop(view, *box, [config.size, config.size], antialias=True)
    if parameters.flip:
        view = reference.horizontal_flip(view)
    if parameters.jitter:
        for operation in parameters.order:
            view = ADJUST[operation](view, float(parameters.factors[operation]))
    if parameters.grayscale:
        view = reference.rgb_to_grayscale(view, 3)
    if parameters.blur:
        view = reference.gaussian_blur(view, [3, 3], [float(parameters.sigma)] * 2)
    return reference.normalize(view, config.mean, config.std).permute(1, 2, 0)


@pytest.mark.parametrize(
    ("height", "width", "size", "count"),
    [(32, 32, 32, 24), (8, 8, 20, 12), (150, 90, 24, 12), (32, 32, 224, 6), (256, 300, 224, 4)],
)
def test_a_view_is_torchvisions_with_the_same_parameters(height, width, size, count):
    config = ViewConfig(size=size)
    images = random_images(count, height, width)
    parameters = draw_view_parameters(keys(count), height, width, config)
    views = apply_views(jnp.asarray(images), parameters, config)
    assert views.shape == (count, size, size, 3) and views.dtype == jnp.float32
    for row in range(count):
        own = jax.tree.map(lambda values: np.asarray(values)[row], parameters)
        assert_close(views[row], reference_view(images[row], own, config), NORMALISED_TOLERANCE)


def test_the_parameters_of_a_test_reach_every_branch_of_a_view():
    drawn = draw_view_parameters(keys(24), 32, 32, ViewConfig(size=32))
    for name in ("flip", "jitter", "grayscale", "blur"):
        assert set(np.asarray(getattr(drawn, name)).tolist()) == {False, True}, name


@pytest.mark.parametrize(
    ("source", "box", "size"),
    [
        ((32, 32), (0, 0, 32, 32), 32),
        ((32, 32), (3, 5, 24, 27), 32),
        ((32, 48), (31, 0, 1, 1), 16),
        ((32, 32), (4, 2, 28, 26), 224),
        ((256, 256), (0, 0, 256, 256), 224),
        ((256, 341), (17, 60, 201, 255), 224),
        ((300, 200), (0, 0, 300, 200), 7),
    ],
)
def test_a_resized_crop_is_torchvisions_also_when_flipped(source, box, size):
    image = random_images(1, *source)[0]
    top, left, height, width = box

    @jax.jit
    def resized_crop(flip):
        rows = augment.resize_taps(jnp.array(top), jnp.array(height), jnp.array(False), source=source[0], target=size)
        columns = augment.resize_taps(jnp.array(left), jnp.array(width), flip, source=source[1], target=size)
        return augment.resize_image(jnp.asarray(image), rows, columns)

    theirs = reference.resized_crop(torch.tensor(as_planes(image)), *box, [size, size], antialias=True)
    assert_close(resized_crop(False), theirs)
    assert_close(resized_crop(True), reference.horizontal_flip(theirs))


@pytest.mark.parametrize(("source", "target"), [(1, 5), (6, 6), (7, 32), (33, 4), (32, 24)])
@pytest.mark.parametrize("flip", [False, True])
def test_every_output_pixel_averages_pixels_of_its_crop_whatever_the_crop(source, target, flip):
    start, end = np.array(list(itertools.combinations(range(source + 1), 2))).T
    of_crop = jax.vmap(
        lambda start, length: augment.resize_taps(start, length, jnp.array(flip), source=source, target=target)
    )
    taps = jax.jit(of_crop)(start, end - start)
    assert (taps.weights >= 0).all()
    assert_close(taps.weights.sum(axis=2), np.ones((len(start), target)), 1e-6)
    assert (taps.positions >= start[:, None, None]).all() and (taps.positions < end[:, None, None]).all()


# Values on a coarse grid, so that channels tie, clip and vanish as often as they differ
GRID = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=3 * 4 * 5, max_size=3 * 4 * 5)
adjust_by_number = jax.jit(lambda operation, planes, factor: jax.lax.switch(operation, colour.JITTER, planes, factor))


@pytest.mark.parametrize(("operation", "low", "high"), [(0, 0.0, 2.0), (1, 0.0, 2.0), (2, 0.0, 2.0), (3, -0.5, 0.5)])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_operation_of_color_jitter_is_torchvisions(operation, low, high, data):
    planes = np.array(data.draw(GRID)).reshape(3, 4, 5)
    factor = data.draw(st.floats(low, high, width=32))
    theirs = ADJUST[operation](torch.tensor(planes), factor)
    assert_close(adjust_by_number(operation, as_float32(planes), jnp.float32(factor)), theirs)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_color_jitter_is_torchvisions(order):
    planes = as_planes(random_images(1, 16, 12)[0])
    factors = np.array([1.35, 0.65, 1.3, -0.08], np.float32)
    theirs = torch.tensor(planes)
    for operation in order:
        theirs = ADJUST[operation](theirs, float(factors[operation]))
    assert_close(color_jitter(as_float32(planes), as_float32(factors), jnp.array(order)), theirs)


def test_grayscale_is_torchvisions():
    planes = as_planes(random_images(1, 9, 7)[0])
    assert_close(augment.grayscale(as_float32(planes)), reference.rgb_to_grayscale(torch.tensor(planes), 3))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.1])
def test_blur_is_torchvisions(sigma):
    planes = as_planes(random_images(1, 9, 7)[0])
    theirs = reference.gaussian_blur(torch.tensor(planes), [3, 3], [sigma, sigma])
    assert_close(augment.gaussian_blur(as_float32(planes), jnp.float32(sigma)), theirs)


def test_normalisation_is_torchvisions():
    planes, mean, std = as_planes(random_images(1, 9, 7)[0]), (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    theirs = reference.normalize(torch.tensor(planes), mean, std).permute(1, 2, 0)
    assert_close(augment.normalise(as_float32(planes), mean, std), theirs)


@pytest.mark.parametrize(
    ("height", "width", "size", "resize"),
    [
        (32, 32, 224, None), (32, 32, 32, None), (60, 40, 32, None), (1, 1, 8, None),
        (60, 40, 32, 36), (41, 77, 24, 30), (20, 33, 32, 32), (280, 375, 224, 256),
    ],
)
def test_evaluation_views_are_torchvisions(height, width, size, resize):
    images = random_images(2, height, width)
    shrink = [v2.Resize([size, size])] if resize is None else [v2.Resize(resize), v2.CenterCrop(size)]
    theirs = v2.Compose([*shrink, v2.Normalize(augment.IMAGENET_MEAN, augment.IMAGENET_STD)])(
        torch.tensor(as_planes(images))
    )
    ours = evaluation_views(jnp.asarray(images), size, resize=resize)
    assert_close(ours, theirs.permute(0, 2, 3, 1), NORMALISED_TOLERANCE)


def test_evaluation_views_take_another_mean_and_standard_deviation():
    images = random_images(1, 8, 8)
    ours = evaluation_views(jnp.asarray(images), 8, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    assert_close(ours, (images / 255.0 - [0.0, 0.5, 1.0]) / [1.0, 0.5, 2.0])


def test_a_centre_larger_than_the_resized_image_is_refused():
    with pytest.raises(ValueError, match="32 pixel square cannot be cut from images resized to 30"):
        evaluation_views(jnp.asarray(random_images(1, 40, 40)), 32, resize=30)


def test_a_view_does_not_depend_on_its_batch():
    config = ViewConfig(size=16)
    own, images = keys(6), jnp.asarray(random_images(6, 20, 20))
    together = random_views(own, images, config)
    np.testing.assert_array_equal(random_views(own[::-1], images[::-1], config)[::-1], together)
    for row in range(6):
        alone = random_views(own[row : row + 1], images[row : row + 1], config)
        assert_close(alone[0], together[row], 1e-6)  # XLA may contract the same sums otherwise in another program


def test_views_computed_at_once_are_those_computed_in_turn():
    """An accelerator computes all images of a batch at once, a CPU one after the other."""
    config = ViewConfig(size=24)
    images = jnp.asarray(random_images(24, 20, 28))
    parameters = draw_view_parameters(keys(24), 20, 28, config)
    at_once = jax.jit(jax.vmap(lambda image, parameters: augment.apply_view(image, parameters, config)))
    assert_close(at_once(images, parameters), apply_views(images, parameters, config), NORMALISED_TOLERANCE)


def test_the_shards_of_a_batch_can_be_mapped():
    config, shard = ViewConfig(size=16), jax.sharding.PartitionSpec("data")
    own, images = keys(6), jnp.asarray(random_images(6, 20, 20))
    mesh = jax.make_mesh((1,), ("data",))
    spread = jax.device_put((own, images), jax.sharding.NamedSharding(mesh, shard))
    of_shard = jax.shard_map(
        lambda own, images: augment.random_views(own, images, config), mesh=mesh, in_specs=shard, out_specs=shard
    )
    assert_close(jax.jit(of_shard)(*spread), random_views(own, images, config), 1e-6)


def test_one_key_gives_one_view_and_another_key_another():
    config = ViewConfig(size=16)
    images = jnp.asarray(random_images(6, 20, 20))
    first, again, other = (random_views(keys(6, seed), images, config) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max(axis=(1, 2, 3)).min() > 0.1


DRAWS = 4000


@pytest.fixture(scope="module")
def drawn():
    """Many draws of the published parameters for an image that is not square."""
    parameters = draw_view_parameters(keys(DRAWS), 48, 64, ViewConfig(size=32))
    return jax.tree.map(np.asarray, parameters)


@pytest.mark.parametrize(
    ("name", "probability"), [("flip", 0.5), ("jitter", 0.7), ("grayscale", 0.2), ("blur", 0.5)]
)
def test_an_operation_is_drawn_as_often_as_published(drawn, name, probability):
    standard_error = np.sqrt(probability * (1 - probability) / DRAWS)
    assert abs(getattr(drawn, name).mean() - probability) < 4 * standard_error


def test_every_order_of_color_jitter_is_equally_likely(drawn):
    orders, times = np.unique(drawn.order, axis=0, return_counts=True)
    assert [tuple(order) for order in orders] == ORDERS
    standard_error = np.sqrt(DRAWS * (1 / 24) * (23 / 24))
    assert np.abs(times - DRAWS / 24).max() < 4 * standard_error


def test_factors_and_sigma_fill_the_published_ranges_evenly(drawn):
    ranges = [(0.6, 1.4)] * 3 + [(-0.1, 0.1), (0.1, 2.1)]
    for values, (low, high) in zip([*drawn.factors.T, drawn.sigma], ranges, strict=True):
        assert low <= values.min() and values.max() <= np.float32(high)
        assert ks_2samp(values, np.linspace(low, high, DRAWS)).pvalue > 1e-3


def test_a_factor_is_never_negative():
    config = ViewConfig(size=8, brightness=1.5, contrast=1.5, saturation=1.5)
    factors = draw_view_parameters(keys(200), 8, 8, config).factors[:, :3]
    assert 0.0 <= factors.min() < 0.1 and 2.4 < factors.max() <= 2.5


def test_crops_are_distributed_as_torchvisions(drawn):
    """Kolmogorov-Smirnov against as many draws of torchvision's own transform."""
    crop = v2.RandomResizedCrop(32, scale=(0.5, 1.0))
    torch.manual_seed(0)
    image = torch.zeros(3, 48, 64)
    theirs = [crop.make_params([image]) for _ in range(DRAWS)]
    for name in ("top", "left", "height", "width"):
        assert ks_2samp(getattr(drawn, name), [box[name] for box in theirs]).pvalue > 1e-3, name


def test_crops_lie_in_the_image_and_keep_the_published_area_and_ratio(drawn):
    assert drawn.top.min() == 0 and (drawn.top + drawn.height).max() == 48
    assert drawn.left.min() == 0 and (drawn.left + drawn.width).max() == 64
    # A box is drawn in real numbers and rounded to pixels: half a pixel either way
    largest, smallest = (drawn.height + 0.5) * (drawn.width + 0.5), (drawn.height - 0.5) * (drawn.width - 0.5)
    assert (largest >= 0.5 * 48 * 64).all() and (smallest <= 48 * 64).all()
    assert ((drawn.width + 0.5) / (drawn.height - 0.5) >= 3 / 4).all()
    assert ((drawn.width - 0.5) / (drawn.height + 0.5) <= 4 / 3).all()


@pytest.mark.parametrize(("height", "width"), [(10, 200), (200, 10), (30, 33), (1, 1)])
def test_a_box_that_never_fits_falls_back_to_torchvisions_central_one(height, width):
    config = ViewConfig(size=8, scale=(4.0, 4.0))
    drawn = draw_view_parameters(keys(2), height, width, config)
    theirs = v2.RandomResizedCrop(8, scale=(4.0, 4.0)).make_params([torch.zeros(3, height, width)])
    for name, value in theirs.items():
        np.testing.assert_array_equal(getattr(drawn, name), [value] * 2)


def test_a_probability_of_zero_never_happens_and_one_always():
    never = ViewConfig(size=8, flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)
    always = ViewConfig(size=8, flip=1.0, jitter=1.0, grayscale=1.0, blur=1.0)
    for config, happens in ((never, False), (always, True)):
        drawn = draw_view_parameters(keys(200), 8, 8, config)
        for name in ("flip", "jitter", "grayscale", "blur"):
            assert (np.asarray(getattr(drawn, name)) == happens).all(), name
