"""Bicubic evaluation views against torchvision's and Pillow's, and that all who encode follow an encoder's preprocessing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

import jax_brcd
from jax_brcd.encoder import create_encoder
from jax_brcd.models import create_hash_model
from jax_brcd.models.variants import Preprocessing
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.context import view_of
from jax_brcd.stages.parts import PixelParts
from jax_brcd.views.augmentation import evaluation_views
from jax_brcd.views.features import FeatureCache
from jax_brcd.views.fitting import fitted_view

# As in test_augment.py: 1e-5 in [0, 1] is ten times the rounding of our float32; torchvision's is float64
TOLERANCE = 1e-5
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic"}
BICUBIC = Preprocessing(24, 28, interpolation="bicubic")
evaluation_view = jax.jit(evaluation_views, static_argnames=("size", "resize", "mean", "std", "interpolation"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def torchvisions(image, size, resize):
    mode = InterpolationMode.BICUBIC
    shrink = ([v2.Resize([size, size], mode, antialias=True)] if resize is None
              else [v2.Resize(resize, mode, antialias=True), v2.CenterCrop(size)])
    return v2.Compose(shrink)(torch.tensor(np.moveaxis(image, -1, 0) / 255)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("height", "width", "size", "resize"), [
    (1, 1, 8, None), (32, 32, 32, None), (32, 32, 48, None), (41, 77, 24, 31), (20, 33, 32, 36), (300, 201, 24, None),
    (280, 375, 56, 64)])
def test_evaluation_and_fitted_views_are_torchvisions(height, width, size, resize):
    image = noise(height, width)
    theirs = torchvisions(image, size, resize)
    for ours in (evaluation_view(image[None], size=size, resize=resize, **PLAIN),
                 fitted_view(image, size=size, resize=resize, **PLAIN)):
        np.testing.assert_allclose(ours[0], theirs, rtol=0, atol=TOLERANCE)


def test_a_fitted_view_is_torchvisions_for_many_sizes_on_one_canvas():
    random = np.random.default_rng(3)
    for height, width in random.integers(1, 97, (40, 2)):
        image = noise(height, width, seed=height)
        np.testing.assert_allclose(fitted_view(image, size=32, resize=37, **PLAIN)[0], torchvisions(image, 32, 37), rtol=0,
                                   atol=TOLERANCE)


def test_pillow_differs_by_its_rounding_to_whole_values_alone():
    for seed, (height, width) in enumerate([(70, 90), (33, 20), (200, 151)]):
        image = noise(height, width, seed=seed) // 2 + 64  # not so near to 0 and 255 that an overshoot is cut off
        theirs = np.asarray(Image.fromarray(image).resize((40, 40), Image.Resampling.BICUBIC), np.float32)
        ours = 255 * np.asarray(fitted_view(image, size=40, resize=None, **PLAIN)[0])
        assert 0.3 < np.abs(ours - theirs).max() < 1.5


@pytest.fixture(scope="module")
def encoder():
    return create_encoder(create_hash_model("resnet8", 16), "resnet8", BICUBIC, bits=16, role="student")


def test_an_encoder_and_the_parts_of_a_run_follow_their_preprocessing(encoder, tmp_path):
    images = noise(3, 40, 50)
    expected = np.asarray(encoder.model(evaluation_view(images, size=24, resize=28, interpolation="bicubic"), train=False))
    other = np.asarray(encoder.model(evaluation_view(images, size=24, resize=28), train=False))
    assert np.abs(expected - other).max() > 1e-3
    loaded = jax_brcd.load(encoder.save(tmp_path / "encoder"))
    assert loaded.preprocessing == BICUBIC
    np.testing.assert_allclose(loaded.logits(images), expected, atol=2e-5)
    codes = PixelParts({"test": images}, view_of(BICUBIC)).codes(encoder.model, "test")
    np.testing.assert_array_equal(codes, np.sign(expected))
    bilinear = dataclasses.replace(BICUBIC, interpolation="bilinear")
    same = create_encoder(encoder.model, "resnet8", bilinear, bits=16, role="student")
    assert same.space != encoder.space


def test_kept_features_of_either_interpolation_are_apart(encoder, tmp_path):
    cache = FeatureCache(tmp_path, "resnet8", encoder.model.backbone, "float32")
    images = noise(3, 40, 50)
    views = [dataclasses.replace(BICUBIC, interpolation=name) for name in ("bicubic", "bilinear")]
    first, second = (np.array(cache.evaluation(images, **view_of(view))) for view in views)
    assert np.abs(first - second).max() > 1e-4 and len(list(tmp_path.iterdir())) == 2
    expected = encoder.model.backbone(evaluation_view(images, **view_of(BICUBIC)), train=False)
    np.testing.assert_allclose(first, expected, atol=2e-5)


def test_an_unknown_interpolation_is_named():
    for make in (lambda name: evaluation_views(jnp.zeros((1, 8, 8, 3), jnp.uint8), 8, interpolation=name),
                 lambda name: Preprocessing(8, interpolation=name)):
        with pytest.raises(InputError, match="unknown interpolation 'bicubik': did you mean 'bicubic'"):
            make("bicubik")
