"""Position embeddings at other sizes against PyTorch's `interpolate` and torchvision's helper; which sizes a ViT takes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from flax import nnx
from model_pairs import abstract_backbone, as_torch, make_pair, random_images, without_head
from torchvision.models.vision_transformer import interpolate_embeddings

from jax_brcd.models import HashModel, create_backbone, create_hash_model, load_torchvision_state, torchvision_state
from jax_brcd.models.positions import bicubic_matrix, resampled
from jax_brcd.runtime.errors import InputError

# weights are below 1.3, of float32 places up to 40: PyTorch computes them with 24 bits, ours come from 53
PLACES = 1e-5


def interpolated(source, target, *, offset=0.0, corners=False, antialias=False):
    """PyTorch's weights along one axis: what it makes of each unit vector."""
    units = torch.eye(source)[None, :, None, :].expand(1, source, source, source)  # channels are samples of the width
    size = {"scale_factor": (target + offset) / source} if offset else {"size": target}
    values = torch.nn.functional.interpolate(units, mode="bicubic", align_corners=corners, antialias=antialias, **size)
    return values[0, :, 0].T.numpy()


@pytest.mark.parametrize("settings", [{}, {"offset": 0.1}, {"corners": True}, {"antialias": True}], ids=str)
@pytest.mark.parametrize(("source", "target"), [(37, 16), (16, 37), (14, 7), (7, 8), (5, 1), (2, 9), (4, 4), (1, 3)])
def test_a_bicubic_matrix_is_pytorchs_interpolation(source, target, settings):
    matrix = bicubic_matrix(source, target, **settings)
    assert matrix.shape == (target, source) and matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, interpolated(source, target, **settings), rtol=0, atol=PLACES)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=PLACES)


@pytest.mark.parametrize("settings", [{}, {"offset": 0.1}, {"corners": True}, {"antialias": True}], ids=str)
def test_a_grid_is_resampled_along_both_axes(settings):
    grid = np.random.default_rng(0).normal(size=(36, 3)).astype(np.float32)
    image = torch.from_numpy(grid.reshape(1, 6, 6, 3)).permute(0, 3, 1, 2)
    offset = settings.get("offset")
    size = {"scale_factor": ((4 + offset) / 6, (9 + offset) / 6)} if offset else {"size": (4, 9)}
    expected = torch.nn.functional.interpolate(image, mode="bicubic", align_corners=settings.get("corners", False),
                                               antialias=settings.get("antialias", False), **size)
    found = resampled(jnp.asarray(grid), 4, 9, **settings)
    np.testing.assert_allclose(found, expected[0].flatten(1).T, rtol=0, atol=4 * PLACES)


def test_a_grid_at_its_own_size_is_left_as_it_is():
    grid = jnp.asarray(np.random.default_rng(0).normal(size=(36, 3)), jnp.float32)
    assert resampled(grid, 6, 6, offset=0.1) is grid


@pytest.mark.parametrize("size", [16, 48, 64])
def test_torchvisions_vit_sees_other_sizes_as_its_helper_has_it(size):
    theirs, ours = make_pair("vit_lite_7_4")
    state = interpolate_embeddings(size, 4, theirs.state_dict())
    larger = without_head(torchvision.models.VisionTransformer(size, 4, 7, 4, 256, 512, num_classes=1)).eval()
    larger.load_state_dict(state)
    images = random_images(2, size)
    with torch.inference_mode():
        expected = larger(as_torch(images)).numpy()
    found = np.asarray(nnx.jit(lambda model, images: model(images))(ours, images))
    # as in test_models: float32 products summed in another order
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    # without resampling the positions would be others
    np.testing.assert_array_equal(torchvision_state(ours)["encoder.pos_embedding"], theirs.encoder.pos_embedding.detach())


def test_a_backbone_of_another_size_has_the_same_weights():
    state = torchvision_state(create_backbone("vit_lite_4_8"))
    other = create_backbone("vit_lite_4_8", size=48)
    assert other.image_size == 48
    for name, value in torchvision_state(other).items():
        np.testing.assert_array_equal(value, state[name])
    assert load_torchvision_state(other, state) is other
    assert nnx.eval_shape(lambda model: model(random_images(1, 48)), other).shape == (1, 128)


def test_a_convolutional_backbone_takes_any_size():
    model = nnx.eval_shape(lambda: create_hash_model("resnet8", 8, size=33))
    assert isinstance(model, HashModel) and model.backbone.image_size == 33 and model.backbone.sizes == "any size"


@pytest.mark.parametrize(("name", "size", "message"), [
    ("vit_lite_4_8", 44, "size 44: vit_lite_4_8 takes multiples of 8 pixels; give 40 or 48"),
    ("vit_lite_4_8", 5, "size 5: vit_lite_4_8 takes multiples of 8 pixels; give 8"),
    ("vit_lite_4_8", 0, "size 0: vit_lite_4_8 takes multiples of 8 pixels; give 8"),
    ("resnet8", 0, "size 0: resnet8 takes any size; give 1"),
])
def test_a_size_that_does_not_fit_is_refused_in_one_line(name, size, message):
    with pytest.raises(InputError) as refused:
        nnx.eval_shape(lambda: create_backbone(name, size=size))
    assert str(refused.value) == message


def test_images_need_not_be_square():
    assert abstract_backbone("vit_lite_4_8").fits(40)
    seen = nnx.eval_shape(lambda model: model(jnp.zeros((1, 24, 40, 3))), abstract_backbone("vit_lite_4_8"))
    assert seen.shape == (1, 128)
