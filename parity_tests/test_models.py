"""Backbones and hash models against torchvision: features, every layer, training mode, gradients, padding."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from model_pairs import TORCHVISION, abstract_backbone, as_numpy, as_torch, make_pair, random_images, torch_model
from torch import nn
from torchvision.ops import StochasticDepth

from jax_brcd.models import (
    HashModel,
    create_backbone,
    create_hash_model,
    load_state,
    load_torchvision_state,
    torchvision_state,
)
from jax_brcd.models.convnext import ConvNeXt
from jax_brcd.models.efficientnet import EfficientNetClassifier, Stage, mbconv
from jax_brcd.models.layers import WIDE, BatchNorm, convolve, dropout, stochastic_depth
from jax_brcd.models.resnet import ResNet
from jax_brcd.models.vit import VisionTransformer
from jax_brcd.runtime.errors import InputError
from torch_ref.models import create_hash_model as create_reference
from torch_ref.models import load_weights as load_reference
from torch_ref.models import train

pytestmark = pytest.mark.long

# float32 products summed in another order than PyTorch's, through up to 152 layers
RELATIVE = 1e-4
# Of the others 224
IMAGE_SIZE = {"vit_lite_7_4": 32, "vit_lite_4_8": 32, "resnet8": 32, "resnet20": 32, "resnet56": 32,
              "efficientnet_b1": 240, "efficientnet_b2": 260,
              "efficientnet_b3": 300, "efficientnet_b4": 380, "efficientnet_b5": 456, "efficientnet_b6": 528,
              "efficientnet_b7": 600, "efficientnet_v2_s": 384}


def assert_close(ours, theirs, what=""):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=RELATIVE * np.abs(theirs).max(), err_msg=what)


def images_for(model):
    """A batch: ViTs have one size of image; CNNs take any, so a small one keeps the tests quick."""
    size = model.image_size if isinstance(model, VisionTransformer) else 64
    return random_images(2 if size > 64 else 8 if isinstance(model, (ResNet, VisionTransformer)) else 4, size)


# one program compiles faster than a hundred layers one by one
@nnx.jit(static_argnames="train")
def encode(model, images, train=False):
    return model(images, train=train)


@pytest.fixture(scope="module", params=TORCHVISION)
def pair(request):
    return make_pair(request.param)


def test_features_are_torchvisions(pair):
    theirs, ours = pair
    images = images_for(ours)
    with torch.inference_mode():
        expected = theirs(as_torch(images))
    features = encode(ours, images)
    assert features.shape == (len(images), ours.features) and features.dtype == jnp.float32
    assert_close(features, expected)
    # the images' features differ by far more than the tolerance
    assert jnp.mean(jnp.std(features, axis=0)) > 0.01 * jnp.max(jnp.abs(features))


def test_the_way_back_is_bit_identical(pair):
    theirs, ours = pair
    expected = as_numpy(theirs.state_dict())
    state = torchvision_state(ours)
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and state[name].flags.c_contiguous
        np.testing.assert_array_equal(state[name], tensor, err_msg=name)


def torch_layers(model, images):
    """Outputs of all modules by name. Cloned, because torchvision's ReLU works in place."""
    outputs = {}

    def keep(name):
        def hook(module, inputs, output):
            outputs[name] = (output[0] if isinstance(output, tuple) else output).detach().clone().numpy()
        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    with torch.no_grad():
        model(as_torch(images))
    for handle in handles:
        handle.remove()
    return outputs


def jax_layers(model, images, monkeypatch, **arguments):
    """Outputs of all modules by torchvision's name."""
    names, outputs = {}, {}

    def recording(call):
        def recorded(module, *args, **kwargs):
            outputs[names[id(module)]] = output = call(module, *args, **kwargs)
            return output
        return recorded

    @nnx.jit
    def layers(model, images):
        for path, module in nnx.iter_modules(model):
            name = ".".join(map(str, path))
            for pattern, replacement in model.renames:
                name = re.sub(pattern, replacement, name)
            names[id(module)] = name
        model(images, **arguments)
        return outputs

    for kind in {type(module) for _, module in nnx.iter_modules(model) if callable(module)}:
        monkeypatch.setattr(kind, "__call__", recording(kind.__call__))
    outputs = jax.device_get(layers(model, images))
    monkeypatch.undo()
    return outputs


def in_torch_layout(ours, module):
    """Channels first, but for ConvNeXt's norms and MLPs inside a block, which have them last in PyTorch too."""
    return ours.transpose(0, 3, 1, 2) if ours.ndim == 4 and type(module) not in (nn.LayerNorm, nn.Linear) else ours


@pytest.mark.parametrize("name, train", [("vit_lite_7_4", False), ("resnet18", False), ("resnet18", True),
                                         ("resnet50", False), ("resnet50", True), ("efficientnet_b0", False),
                                         ("mobilenet_v2", False), ("mobilenet_v3_large", False), ("convnext_tiny", False)])
def test_every_layer_is_torchvisions(name, train, monkeypatch):
    theirs, ours = make_pair(name)
    images = images_for(ours)
    expected = torch_layers(theirs.train(train), images)
    outputs = jax_layers(ours, images, monkeypatch, train=train)
    # in_proj is computed inside PyTorch's attention, without a module of its own
    compared = [layer for layer in outputs if layer and not layer.endswith("in_proj")]
    parametrised = {key.rsplit(".", 1)[0] for key in theirs.state_dict() if key.endswith("weight")}
    inside_attention = {layer for layer in parametrised if layer.endswith("out_proj")}
    assert set(compared) >= parametrised - inside_attention
    for layer in set(compared) - inside_attention:
        output = in_torch_layout(outputs[layer], theirs.get_submodule(layer))
        # PyTorch's norm after ConvNeXt's pooling sees images of one pixel
        assert_close(output, expected[layer].squeeze((2, 3)) if output.ndim == 2 < expected[layer].ndim else expected[layer],
                     layer)


# of each family and setting of batch norm one
# of a family one of each kind of block; others have more of them
@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet34", "resnet50", "efficientnet_b0", "efficientnet_v2_s",
                                  "mobilenet_v2", "mobilenet_v3_large"])
def test_training_mode_and_its_running_statistics_are_torchvisions(name):
    theirs, ours = make_pair(name)
    images = images_for(ours)
    train(theirs, whole=False)  # nothing is dropped
    with torch.no_grad():
        expected = theirs(as_torch(images))
    assert_close(encode(ours, images, train=True), expected)
    state = torchvision_state(ours)
    for key, tensor in as_numpy(theirs.state_dict()).items():
        assert_close(state[key], tensor, key)


@pytest.mark.parametrize("name", TORCHVISION)
def test_rates_and_settings_that_no_weight_shows_are_torchvisions(name):
    theirs, ours = torch_model(name, device="meta"), abstract_backbone(name)
    rates = [module.p for module in theirs.modules() if isinstance(module, StochasticDepth)]
    assert [module.drop_rate for _, module in sorted(nnx.iter_modules(ours), key=lambda item: depth(item[0]))
            if getattr(module, "drop_rate", 0)] == pytest.approx([rate for rate in rates if rate])
    norms = {(module.eps, module.momentum) for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)}
    assert {(module.epsilon, module.momentum) for _, module in nnx.iter_modules(ours) if isinstance(module, BatchNorm)} == norms
    assert ours.image_size == IMAGE_SIZE.get(name, 224)
    dropouts = {module.p for module in theirs.modules() if isinstance(module, nn.Dropout)} - {0.0}
    assert {getattr(ours, "dropout", 0.0)} - {0.0} == dropouts


def depth(path):
    return [part for part in path if isinstance(part, int)]


@pytest.mark.parametrize("name", ["resnet8", "vit_lite_4_8"])
def test_gradients_in_training_mode_are_torchvisions(name):
    theirs, ours = make_pair(name)
    images = random_images(8, 32)
    theirs.train()(as_torch(images)).square().mean().backward()
    gradients = nnx.jit(nnx.grad(lambda model: jnp.mean(jnp.square(model(images, train=True)))))(ours)
    nnx.update(ours, gradients)
    state = torchvision_state(ours)
    for key, parameter in theirs.named_parameters():
        assert_close(state[key], parameter.grad, key)


def test_padding_rows_change_neither_features_nor_statistics():
    unpadded, padded = make_pair("resnet8")[1], make_pair("resnet8")[1]
    images = images_for(unpadded)
    rows = np.array([0, 1, 3, 5, 6, 7, 8, 9])
    batch = (100 * random_images(11, 64, seed=1)).at[rows].set(images)
    valid = jnp.zeros(11, bool).at[rows].set(True)
    assert_close(padded(batch, train=True, valid=valid)[rows], unpadded(images, train=True))
    expected = torchvision_state(unpadded)
    for key, tensor in torchvision_state(padded).items():
        assert_close(tensor, expected[key], key)


def test_padding_rows_give_no_gradient():
    images = random_images(6, 32)
    valid = jnp.arange(6) < 4

    def loss(model, images):
        return jnp.sum(jnp.where(valid[:, None], model(images, train=True, valid=valid), 0) ** 2)

    gradient = nnx.jit(nnx.grad(loss, argnums=1))(make_pair("resnet8")[1], images)
    assert jnp.all(gradient[4:] == 0) and jnp.any(gradient[:4] != 0)


@pytest.mark.parametrize("name, train", [("resnet8", True), ("resnet8", False), ("vit_lite_4_8", False)])
def test_compiled_is_the_same(name, train):
    eager, compiled = make_pair(name)[1], make_pair(name)[1]
    images = images_for(eager)
    call = nnx.jit(lambda model, images, valid: model(images, train=train, valid=valid))
    valid = jnp.arange(len(images)) < 6
    assert_close(call(compiled, images, valid), eager(images, train=train, valid=valid))
    expected = torchvision_state(eager)
    for key, tensor in torchvision_state(compiled).items():
        assert_close(tensor, expected[key], key)


@pytest.mark.parametrize("name", ["resnet8", "vit_lite_4_8"])
def test_bfloat16_computes_in_half_and_keeps_float32_parameters_and_features(name, monkeypatch):
    single = make_pair(name)[1]
    half = load_torchvision_state(abstract_backbone(name, jnp.bfloat16), torchvision_state(single))
    images = images_for(single)
    layers = jax_layers(half, images, monkeypatch)
    assert {str(output.dtype) for layer, output in layers.items() if layer} == {"bfloat16"}
    features, expected = np.asarray(half(images)), np.asarray(single(images))
    assert features.dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half, nnx.Param))} == {jnp.dtype(jnp.float32)}
    # 8 significant bits give 0.4 % a rounding; the layers' roundings add up like a random walk
    np.testing.assert_allclose(features, expected, rtol=0, atol=0.05 * np.abs(expected).max())
    assert np.any(features != expected)


@pytest.mark.parametrize("name", ["resnet8", "vit_lite_4_8"])
def test_a_hash_model_is_its_head_over_its_backbone(name):
    model = HashModel(make_pair(name)[1], 24, rngs=nnx.Rngs(3))
    images = random_images(3, 32)
    logits = model(images)
    assert logits.shape == (3, 24) and logits.dtype == jnp.float32
    features = np.asarray(model.backbone(images))
    assert_close(logits, features @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...]))


def test_a_hash_head_starts_like_a_linear_layer_of_pytorch():
    head = HashModel(abstract_backbone("resnet8"), 4096, rngs=nnx.Rngs(0)).head
    bound = 64**-0.5
    for values in (np.asarray(head.kernel[...]), np.asarray(head.bias[...])):
        # of 4,096 or more draws the largest is within 1 % of the bound, the deviation within 5 % of bound / sqrt(3)
        assert 0.99 * bound < np.abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_seeds_choose_the_initial_weights():
    first, again, other = (torchvision_state(create_hash_model("vit_lite_4_8", 8, rngs=nnx.Rngs(seed)))
                           for seed in (1, 1, 2))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["conv_proj.weight"], other["conv_proj.weight"])
    assert not np.array_equal(first["heads.weight"], other["heads.weight"])


SMALL_DROPPING = {
    "efficientnet": lambda: EfficientNetClassifier([Stage(mbconv, 2, 3, 1, 16, 3)], stem=16, last=64, image_size=32,
                                                   dropout=0.5, rngs=nnx.Rngs(0)),
    "convnext": lambda: ConvNeXt((8, 16), (1, 2), 0.5, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("family", SMALL_DROPPING)
def test_a_key_chooses_what_is_dropped_and_without_one_nothing_is(family):
    model, images = SMALL_DROPPING[family](), random_images(6, 32)
    if family == "convnext":  # of 1e-6 at the start, with which what is dropped could hardly be seen
        for _, module in nnx.iter_modules(model):
            if hasattr(module, "layer_scale"):
                module.layer_scale.set_value(jnp.ones_like(module.layer_scale[...]))
    valid = jnp.arange(6) < 4
    call = nnx.jit(lambda model, images, key: model(images, train=True, valid=valid, key=key))
    off, first, again, other = (call(nnx.clone(model), images, key)
                                for key in (None, jax.random.key(1), jax.random.key(1), jax.random.key(2)))
    assert jnp.array_equal(first, again)
    assert not jnp.allclose(first, other) and not jnp.allclose(first, off)
    # padding rows change nothing of the others
    assert_close(call(nnx.clone(model), images.at[4:].set(50.0), jax.random.key(1))[:4], first[:4])


def test_dropout_zeroes_entries_and_stochastic_depth_images_and_both_keep_the_mean():
    x, key = jnp.ones((400, 3, 50)), jax.random.key(0)
    entries, images = dropout(x, 0.3, key), stochastic_depth(x, 0.3, key)
    for dropped in (entries, images):
        assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.7)}
    # 400 draws: three standard deviations of the share are 0.07
    assert jnp.mean(entries == 0) == pytest.approx(0.3, abs=0.01) and jnp.mean(images == 0) == pytest.approx(0.3, abs=0.07)
    assert jnp.all(images == images[:, :1, :1])
    for function in (dropout, stochastic_depth):
        assert function(x, 0.3, None) is x and function(x, 0.0, key) is x


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("side", [1, 2, 9])
def test_a_convolution_of_each_channel_is_the_same_as_a_sum_of_shifts(side, size, stride):
    images, margin = jnp.tile(random_images(4, side), 2), (size - 1) // 2
    kernel = jax.random.normal(jax.random.key(0), (size, size, 1, 6))

    def apply(function, kernel, images):
        return function(images, kernel, (stride, stride), [(margin, margin)] * 2,
                        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6)

    assert_close(apply(convolve, kernel, images), apply(jax.lax.conv_general_dilated, kernel, images))
    gradients, expected = (jax.grad(lambda *inputs: jnp.sum(apply(function, *inputs) ** 2), argnums=(0, 1))(kernel, images)
                           for function in (convolve, jax.lax.conv_general_dilated))
    for gradient, reference_gradient in zip(gradients, expected, strict=True):
        assert_close(gradient, reference_gradient)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [6, WIDE])
def test_a_convolution_to_few_pixels_is_the_same_as_products(channels, side, size, stride):
    images, margin = jax.random.normal(jax.random.key(1), (4, side, side, channels)), (size - 1) // 2
    kernel = jax.random.normal(jax.random.key(0), (size, size, channels, 5))

    def both_ways(function):
        def apply(kernel, images):
            return function(images, kernel, (stride, stride), [(margin, margin)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))

        outputs, back = jax.vjp(apply, kernel, images)
        return outputs, *back(jnp.sin(outputs))

    for ours, expected in zip(both_ways(convolve), both_ways(jax.lax.conv_general_dilated), strict=True):
        assert_close(ours, expected)
    images = images[:0]
    assert both_ways(convolve)[0].shape == both_ways(jax.lax.conv_general_dilated)[0].shape


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "side"), [(1, 17), (1, 18), (3, 17), (7, 18)])
def test_a_convolution_of_many_pixels_has_the_same_gradients(size, side, stride, batch):
    images, margin = jnp.tile(random_images(batch, side), 2), (size - 1) // 2
    kernel = jax.random.normal(jax.random.key(0), (size, size, 6, 5))

    def both_ways(function):
        def apply(kernel, images):
            return function(jax.nn.relu(images), kernel, (stride, stride), [(margin, margin)] * 2,
                            dimension_numbers=("NHWC", "HWIO", "NHWC"))

        outputs, back = jax.vjp(apply, kernel, images)
        return outputs, *back(jnp.sin(outputs))

    for ours, expected in zip(both_ways(convolve), both_ways(jax.lax.conv_general_dilated), strict=True):
        assert_close(ours, expected)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="inputs are written out on a CPU alone")
@pytest.mark.parametrize(("side", "written"), [(16, False), (17, True)])
def test_inputs_of_many_pixels_are_written_out_for_the_kernels_gradient(side, written):
    images, kernel = jnp.tile(random_images(2, side), 2), jnp.ones((3, 3, 6, 5))

    def loss(kernel):
        outputs = convolve(images, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(outputs**2)

    assert ("while" in jax.jit(jax.grad(loss)).lower(kernel).as_text()) == written
    assert "while" not in jax.jit(loss).lower(kernel).as_text()


def test_an_unknown_backbone_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        create_backbone("resnet-18")
    with pytest.raises(InputError, match="did you mean 'vit_b_16'"):
        create_hash_model("vit_b16", 8)


@pytest.mark.parametrize("bits", [0, -8])
def test_a_code_has_at_least_one_bit(bits):
    with pytest.raises(InputError, match=f"bits {bits}"):
        create_hash_model("resnet8", bits)


def test_a_vit_refuses_images_that_are_no_whole_number_of_patches():
    with pytest.raises(ValueError, match="size 60: vit_lite_4_8 takes multiples of 8 pixels; give 56 or 64"):
        abstract_backbone("vit_lite_4_8")(jnp.zeros((1, 64, 60, 3)))


@pytest.fixture(scope="module")
def deep():
    return torch_model("resnet18")


def test_the_first_stages_of_a_resnet_take_its_weights_and_say_what_they_leave(deep):
    ours, images = create_backbone("resnet18_layer2"), random_images(2, 32)
    remarks, head = load_state(ours, deep.state_dict())
    assert remarks == ("layer3, layer4 are left out: the model ends before them",) and not head
    assert_close(encode(ours, images), torch_layers(deep, images)["layer2"].mean(axis=(2, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(ours, nnx.Param))) == 683_072


def test_a_hash_model_of_first_stages_leaves_the_classifier_of_the_deeper_model_out(deep):
    model, again = (create_hash_model("resnet18_layer2", 16, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    remarks, head = load_state(model, deep.state_dict(), any_head=True)
    assert len(remarks) == 2 and "its head of 1000 outputs is left out" in remarks[1] and not head
    state = torchvision_state(model)
    assert state["fc.weight"].shape == (16, 128) and not any(name.startswith("layer3") for name in state)
    remarks, head = load_state(again, state)
    assert remarks == () and head
    for name, value in torchvision_state(again).items():
        np.testing.assert_array_equal(value, state[name])


def test_pytorchs_first_stages_take_their_part_of_a_file(deep, tmp_path):
    torch.save(deep.state_dict(), tmp_path / "resnet18.pth")
    theirs = create_reference("resnet18_layer2", 16).eval()
    assert not load_reference(theirs, "resnet18_layer2", str(tmp_path / "resnet18.pth"), tmp_path)
    assert {name: value for name, value in as_numpy(theirs.state_dict()).items() if name.startswith("layer4")} == {}
    np.testing.assert_array_equal(theirs.layer2[1].conv2.weight.detach(), deep.layer2[1].conv2.weight.detach())


def test_a_whole_resnet_refuses_stages_that_it_does_not_have(deep):
    with pytest.raises(InputError, match="the weights do not fit resnet20: missing .*unknown .*layer4"):
        load_torchvision_state(create_backbone("resnet20"), deep.state_dict())
