"""View recipes: what CroVCA's views are, each operation against torchvision, and the published views as they always were.

Tolerances are those of test_augment.py.
"""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from test_augment import NORMALISED_TOLERANCE, as_float32, as_planes, assert_close, keys, random_images, reference_view
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from jax_brcd.runtime.digests import digest
from jax_brcd.runtime.errors import UnknownName
from jax_brcd.settings.recipes import RECIPES
from jax_brcd.stages.configuration import create_config
from jax_brcd.views import augmentation as augment
from jax_brcd.views.augmentation import ViewConfig
from torch_ref.augment import training_view

SIZE, DRAWS = 24, 3000
PUBLISHED = "5e91c84b767a85df"  # a digest of parameters drawn before there were recipes
CROVCA = ViewConfig(size=SIZE, **RECIPES["crovca"])
draw_view_parameters = jax.jit(augment.draw_view_parameters, static_argnames=("height", "width", "config"))
apply_views = jax.jit(augment.apply_views, static_argnames=("config",))


@pytest.fixture(scope="module")
def drawn():
    """Many draws of CroVCA's parameters for an image that is not square."""
    return jax.tree.map(np.asarray, draw_view_parameters(keys(DRAWS), 48, 64, CROVCA))


def test_solarising_is_torchvisions():
    planes = as_planes(random_images(1, 9, 7)[0])
    planes[:, 0] = 0.5, 0.25, 0.75, 0.0, 1.0, 0.5, 0.499
    assert_close(augment.solarise(as_float32(planes)), reference.solarize(torch.tensor(planes), 0.5))


@pytest.mark.parametrize(("size", "sigma"), [(9, 0.1), (9, 0.7), (9, 2.0), (5, 1.0)])
def test_a_wider_blur_is_torchvisions(size, sigma):
    planes = as_planes(random_images(1, 11, 8)[0])
    theirs = reference.gaussian_blur(torch.tensor(planes), [size, size], [sigma, sigma])
    assert_close(augment.gaussian_blur(as_float32(planes), jnp.float32(sigma), size=size), theirs)


def test_a_view_of_crovca_is_torchvisions_with_the_same_parameters():
    """Blurred and solarised oftener than it is, so that few views do."""
    config = dataclasses.replace(CROVCA, blur=0.5, solarise=0.5)
    images, parameters = random_images(8, 40, 30), draw_view_parameters(keys(8), 40, 30, config)
    views = apply_views(jnp.asarray(images), parameters, config)
    seen = set()
    for row in range(8):
        own = jax.tree.map(lambda values, row=row: np.asarray(values)[row], parameters)
        seen.add((bool(own.blur), bool(own.solarise)))
        plain = dataclasses.replace(config, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        view = reference_view(images[row], own._replace(blur=False), plain).permute(2, 0, 1)
        if own.blur:
            view = reference.gaussian_blur(view, [9, 9], [float(own.sigma)] * 2)
        theirs = reference.solarize(view, 0.5) if own.solarise else view
        # a value within rounding of a half may be turned over by one alone
        unsure = ((view - 0.5).abs() < 1e-5).permute(1, 2, 0).numpy() & bool(own.solarise)
        theirs = reference.normalize(theirs, config.mean, config.std).permute(1, 2, 0).numpy()
        assert unsure.mean() < 0.01
        assert_close(np.where(unsure, 0, views[row]), np.where(unsure, 0, theirs), NORMALISED_TOLERANCE)
    assert len(seen) == 4


def test_crovcas_operations_are_drawn_as_told(drawn):
    for name, probability in {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 0.1, "solarise": 0.1}.items():
        assert abs(getattr(drawn, name).mean() - probability) < 4 * np.sqrt(probability * (1 - probability) / DRAWS), name
    for values, (low, high) in zip([*drawn.factors.T, drawn.sigma], [(0.6, 1.4)] * 3 + [(-0.2, 0.2), (0.1, 2.0)], strict=True):
        assert low <= values.min() and values.max() <= np.float32(high)
        assert ks_2samp(values, np.linspace(low, high, DRAWS)).pvalue > 1e-3
    assert abs(np.corrcoef(drawn.solarise, drawn.blur)[0, 1]) < 4 / np.sqrt(DRAWS)


def test_crovcas_crops_are_distributed_as_torchvisions(drawn):
    crop = v2.RandomResizedCrop(SIZE, scale=(0.4, 1.0))
    torch.manual_seed(0)
    theirs = [crop.make_params([torch.zeros(3, 48, 64)]) for _ in range(DRAWS)]
    for name in ("top", "left", "height", "width"):
        assert ks_2samp(getattr(drawn, name), [box[name] for box in theirs]).pvalue > 1e-3, name


def test_torch_refs_views_are_of_the_same_recipes():
    """What its transforms say of themselves against our numbers."""
    for recipe in sorted(set(RECIPES) - {"crop-flip"}):  # which has none of these and is held by test_learning.py
        config = ViewConfig(size=SIZE, **RECIPES[recipe])
        transforms = {type(part).__name__: part for part in training_view(SIZE, True, recipe).transforms}
        inner = [part for part in training_view(SIZE, True, recipe).transforms if isinstance(part, v2.RandomApply)]
        (jitter, blur), crop = inner, transforms["RandomResizedCrop"]
        assert tuple(crop.scale) == config.scale and transforms["RandomHorizontalFlip"].p == config.flip
        assert (jitter.p, blur.p, transforms["RandomGrayscale"].p) == (config.jitter, config.blur, config.grayscale)
        (jitter,), (blur,) = jitter.transforms, blur.transforms
        assert tuple(jitter.hue) == (-config.hue, config.hue)
        assert tuple(jitter.saturation) == (1 - config.saturation, 1 + config.saturation)
        assert tuple(blur.kernel_size) == (config.blur_size,) * 2 and tuple(blur.sigma) == config.sigma
        assert (transforms["RandomSolarize"].p if "RandomSolarize" in transforms else 0.0) == config.solarise


def test_the_published_views_keep_their_numbers_and_their_names():
    """Of views of before there were recipes; names of kept features are digests of the configuration."""
    assert digest(ViewConfig(size=32)) == "55449c5ee9482fe57ac1"
    assert digest(ViewConfig(size=32, solarise=0.1)) != digest(ViewConfig(size=32)) != digest(ViewConfig(size=32, blur_size=9))
    published, with_it = (draw_view_parameters(keys(6, 3), 40, 44, ViewConfig(size=32, solarise=share)) for share in (0.0, 0.5))
    for name in published._fields[:-1]:
        np.testing.assert_array_equal(getattr(published, name), getattr(with_it, name))
    assert not np.asarray(published.solarise).any() and np.asarray(with_it.solarise).any()
    drawn = b"".join(np.asarray(part).tobytes() for part in (published.top, published.left, published.height, published.width,
                                                              published.order))
    assert hashlib.sha256(drawn).hexdigest()[:16] == PUBLISHED



def test_the_recipe_is_a_setting_and_an_unknown_one_is_refused():
    assert create_config().data.view_recipe == "brcd"
    with pytest.raises(UnknownName, match="unknown value of view_recipe 'crovc': did you mean 'crovca'"):
        create_config(view_recipe="crovc")
