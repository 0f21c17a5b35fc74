"""State_dicts to and from torchvision: names, shapes, order, heads, half precision, and weights that do not fit."""

import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from model_pairs import (
    abstract_backbone,
    as_numpy,
    as_torch,
    make_pair,
    random_images,
    randomise,
    torch_model,
    without_head,
)

from jax_brcd.models import BACKBONES, HashModel, load_torchvision_state, torchvision_state, torchvision_tensors
from jax_brcd.models.weights import read_weights
from jax_brcd.runtime.errors import InputError

BITS = 24
SMALL = ("resnet8", "vit_lite_4_8")
# float32 products summed in another order than PyTorch's
RELATIVE = 1e-4


def assert_equal_states(ours, theirs):
    assert list(ours) == list(theirs)
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def assert_same_outputs(ours, theirs, images, *, codes=False):
    """Outputs within RELATIVE of the largest; as `codes`, also the same sign."""
    with torch.inference_mode():
        expected = theirs(as_torch(images)).numpy()
    outputs = np.asarray(nnx.jit(lambda model, images: model(images))(ours, images))
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())
    if codes:
        sure = np.abs(expected) > RELATIVE * np.abs(expected).max()  # where rounding does not choose the bit
        assert sure.mean() > 0.99 and np.array_equal(np.sign(outputs)[sure], np.sign(expected)[sure])


def torch_hash_model(name):
    return randomise(torch_model(name, BITS))


def hash_model(name):
    return HashModel(abstract_backbone(name), BITS, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", list(BACKBONES))
def test_names_shapes_and_order_are_torchvisions(name):
    theirs = torch_model(name, BITS, device="meta")
    for tensors, expected in ((torchvision_tensors(hash_model(name)), theirs.state_dict()),
                              (torchvision_tensors(abstract_backbone(name)), without_head(theirs).state_dict())):
        assert [(key, tensor.shape) for key, tensor in tensors.items()] == [
            (key, tuple(tensor.shape)) for key, tensor in expected.items()]


@pytest.mark.parametrize("name", [*SMALL, "mobilenet_v2", "mobilenet_v3_large", "convnext_tiny"])
def test_a_hash_model_goes_both_ways(name):
    theirs = torch_hash_model(name)
    ours = load_torchvision_state(hash_model(name), theirs.state_dict())
    state = torchvision_state(ours)
    assert_equal_states(state, as_numpy(theirs.state_dict()))
    back = torch_model(name, BITS)
    back.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=True)
    assert_same_outputs(ours, back, random_images(8, 32), codes=True)


@pytest.mark.parametrize("name", SMALL)
def test_the_order_of_tensors_outlives_a_split_and_merge(name):
    ours = load_torchvision_state(hash_model(name), torch_hash_model(name).state_dict())
    assert_equal_states(torchvision_state(nnx.merge(*nnx.split(ours))), torchvision_state(ours))


def test_a_vits_head_is_read_under_torchvisions_own_name_too():
    theirs = torch_hash_model("vit_lite_4_8")
    state = as_numpy(theirs.state_dict())
    nested = {key.replace("heads.", "heads.head."): value for key, value in state.items()}
    assert_equal_states(torchvision_state(load_torchvision_state(hash_model("vit_lite_4_8"), nested)), state)


@pytest.mark.parametrize("name", SMALL)
def test_weights_without_a_head_leave_the_head_as_it_is(name):
    ours = hash_model(name)
    head = np.asarray(ours.head.kernel[...]).copy()
    state = make_pair(name)[0].state_dict()
    load_torchvision_state(ours, state)
    np.testing.assert_array_equal(ours.head.kernel[...], head)
    assert_equal_states(torchvision_state(ours.backbone), as_numpy(state))


@pytest.mark.parametrize("name", SMALL)
def test_a_backbone_ignores_the_classifier(name):
    theirs = randomise(torch_model(name))
    ours = load_torchvision_state(abstract_backbone(name), theirs.state_dict())
    assert_equal_states(torchvision_state(ours), as_numpy(without_head(theirs).state_dict()))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16, np.float16, ml_dtypes.bfloat16], ids=str)
def test_half_precision_is_upcast(half):
    state = make_pair("resnet8")[0].state_dict()
    if isinstance(half, torch.dtype):
        given = {key: tensor.to(half) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
        expected = {key: tensor.to(state[key].dtype).numpy() for key, tensor in given.items()}
    else:
        given = {key: value.astype(half) if value.dtype == np.float32 else value for key, value in as_numpy(state).items()}
        expected = {key: value.astype(state[key].numpy().dtype) for key, value in given.items()}
    assert_equal_states(torchvision_state(load_torchvision_state(abstract_backbone("resnet8"), given)), expected)


def test_weights_are_copied_both_ways():
    theirs, ours = make_pair("resnet8")
    expected = as_numpy(theirs.state_dict())
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            tensor.add_(1)
    assert_equal_states(torchvision_state(ours), expected)
    for value in torchvision_state(ours).values():
        value += 1
    assert_equal_states(torchvision_state(ours), expected)


def test_counters_that_older_files_lack_stay_as_they_are():
    theirs, ours = make_pair("resnet8")
    expected = as_numpy(theirs.state_dict())
    given = {key: value for key, value in expected.items() if not key.endswith("num_batches_tracked")}
    assert len(given) < len(expected)
    load_torchvision_state(ours, {key: value + 1 for key, value in given.items()})
    assert_equal_states(torchvision_state(ours), {
        key: value + 1 if key in given else value for key, value in expected.items()})


def without(state, *names):
    return {key: value for key, value in state.items() if key not in names}


BAD_STATES = {
    "a missing tensor": ("resnet8", lambda s: without(s, "layer1.0.conv1.weight"), "missing layer1.0.conv1.weight;"),
    "a missing statistic": ("resnet8", lambda s: without(s, "bn1.running_var"), "missing bn1.running_var;"),
    "an extra tensor": ("resnet8", lambda s: {**s, "layer4.0.conv1.weight": s["conv1.weight"]},
                        "unknown layer4.0.conv1.weight;"),
    "a mis-shaped tensor": ("resnet8", lambda s: {**s, "conv1.weight": s["conv1.weight"][:, :1]},
                            r"mis-shaped conv1.weight \(16, 1, 3, 3\) instead of \(16, 3, 3, 3\);"),
    "a transposed tensor": ("resnet8", lambda s: {**s, "layer2.0.conv1.weight": s["layer2.0.conv1.weight"].swapaxes(0, 1)},
                            "mis-shaped layer2.0.conv1.weight"),
    "another model": ("resnet8", lambda s: as_numpy(torch_model("vit_lite_4_8").state_dict()),
                      "missing conv1.weight, bn1.weight, bn1.bias and .* more;"),
    "nothing": ("resnet8", lambda s: {}, "missing conv1.weight"),
    "a head of other bits": ("resnet8", lambda s: {**s, "fc.weight": s["fc.weight"][:10], "fc.bias": s["fc.bias"][:10]},
                             r"mis-shaped fc.weight \(10, 64\) instead of \(24, 64\), fc.bias"),
    "half a head": ("resnet8", lambda s: without(s, "fc.bias"), "missing fc.bias;"),
    "another image size": (
        "vit_lite_4_8", lambda s: {**s, "encoder.pos_embedding": np.zeros((1, 65, 128), np.float32)},
        r"mis-shaped encoder.pos_embedding \(1, 65, 128\) instead of \(1, 17, 128\);"),
}


@pytest.mark.parametrize("case", list(BAD_STATES))
def test_weights_that_do_not_fit_are_refused_in_one_line_and_change_nothing(case):
    name, damage, message = BAD_STATES[case]
    theirs = torch_hash_model(name)
    ours = load_torchvision_state(hash_model(name), theirs.state_dict())
    before = torchvision_state(ours)
    with pytest.raises(InputError, match=f"do not fit {name}: {message}") as caught:
        load_torchvision_state(ours, damage({key: value + 1 for key, value in before.items()}))
    assert "\n" not in str(caught.value) and f"give weights of {name}" in str(caught.value)
    assert_equal_states(torchvision_state(ours), before)


@pytest.mark.parametrize("name, file", [("vit_lite_7_4", "vit_lite_7_4"), ("resnet18", "resnet18_32")])
def test_the_shared_backbones_give_torchvisions_features(shared, name, file):
    weights = read_weights(shared("weights", f"{file}.safetensors"))
    theirs = without_head(torch_model(name))
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=True)
    ours = load_torchvision_state(abstract_backbone(name), weights)
    assert_same_outputs(ours, theirs, random_images(8, 32))
