"""State_dicts to and from torchvision: names, shapes, order, heads, half precision, and weights that do not fit."""

import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from model_pairs import (
    TORCHVISION,
    abstract_backbone,
    as_numpy,
    as_torch,
    make_pair,
    random_images,
    randomise,
    torch_model,
    without_head,
)

from jax_brcd.models import (
    HashModel,
    load_state,
    load_torchvision_state,
    torchvision_state,
    torchvision_tensors,
)
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


@pytest.mark.parametrize("name", TORCHVISION)
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


def test_all_that_does_not_fit_is_told_at_once():
    ours = HashModel(make_pair("resnet8")[1], BITS, rngs=nnx.Rngs(0))
    state = torchvision_state(ours)
    given = {**without(state, "bn1.weight", "layer1.0.conv1.weight"), "extra.weight": state["bn1.weight"],
             "bn1.bias": np.zeros(3, np.float32), "fc.bias": np.zeros(BITS, np.int64)}
    with pytest.raises(InputError) as caught:
        load_torchvision_state(ours, given)
    assert str(caught.value) == (
        "the weights do not fit resnet8: missing bn1.weight, layer1.0.conv1.weight; unknown extra.weight; "
        "mis-shaped bn1.bias (3,) instead of (16,); of another type fc.bias int64 instead of float32; "
        "give weights of resnet8, or name the model they are of")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "_orig_mod.", "_orig_mod.module.", "student.net."])
def test_a_prefix_of_all_names_is_taken_off_and_said(name, prefix):
    state = as_numpy(torch_hash_model(name).state_dict())
    ours = hash_model(name)
    loaded = load_state(ours, {f"{prefix}{key}": value for key, value in state.items()})
    assert loaded.remarks == (f"the prefix '{prefix}' of all tensors is taken off",) and loaded.head
    assert_equal_states(torchvision_state(ours), state)


def test_a_prefix_is_taken_off_a_backbone_and_before_a_vits_own_name_of_its_head():
    state = as_numpy(torch_hash_model("vit_lite_4_8").state_dict())
    given = {f"module.{key.replace('heads.', 'heads.head.')}": value for key, value in state.items()}
    ours = hash_model("vit_lite_4_8")
    assert load_state(ours, given).head
    assert_equal_states(torchvision_state(ours), state)
    backbone = abstract_backbone("vit_lite_4_8")
    load_torchvision_state(backbone, given)
    assert_equal_states(torchvision_state(backbone), without(state, "heads.weight", "heads.bias"))


def test_a_prefix_of_some_names_is_left_and_both_spellings_are_shown():
    state = torchvision_state(abstract := make_pair("resnet8")[1])
    given = {f"module.{key}" if key.startswith("layer") else key: value for key, value in state.items()}
    with pytest.raises(InputError, match=r"missing layer1\.0\.conv1.* more; unknown module\.layer1\.0\.conv1.* more;"):
        load_torchvision_state(abstract, given)


def test_names_of_another_model_under_a_prefix_are_shown_as_they_are():
    with pytest.raises(InputError, match="missing conv1.weight, .*; unknown module.embed.weight;"):
        load_torchvision_state(abstract_backbone("resnet8"), {"module.embed.weight": np.ones(3, np.float32)})


BROKEN_TENSORS = {
    "NaN": (lambda value: np.full_like(value, np.nan), "broken: NaN or infinity in conv1.weight; give weights that are whole"),
    "infinity in half precision": (lambda value: np.full(value.shape, np.inf, ml_dtypes.bfloat16), "infinity in conv1.weight"),
    "too large for float32": (lambda value: np.full(value.shape, 1e300), "too large for float32 in conv1.weight"),
    "whole numbers": (lambda value: value.astype(np.int32), "of another type conv1.weight int32 instead of float32"),
    "truth values": (lambda value: value > 0, "of another type conv1.weight bool instead of float32"),
    "complex numbers": (lambda value: value.astype(np.complex64), "of another type conv1.weight complex64 instead of float32"),
    "bytes": (lambda value: (255 * value).astype(np.uint8), "of another type conv1.weight uint8 instead of float32"),
    "words": (lambda value: "conv1.weight", "conv1.weight is no tensor of numbers but str"),
    "nothing": (lambda value: None, "conv1.weight is no tensor of numbers but NoneType"),
    "quantised": (lambda value: torch.quantize_per_tensor(torch.from_numpy(value), 0.1, 0, torch.qint8),
                  "conv1.weight is quantised"),
}


@pytest.mark.parametrize("case", list(BROKEN_TENSORS))
def test_tensors_of_another_kind_are_refused_by_name_and_change_nothing(case):
    break_, message = BROKEN_TENSORS[case]
    ours = make_pair("resnet8")[1]
    before = torchvision_state(ours)
    with pytest.raises(InputError, match=message) as caught:
        load_torchvision_state(ours, {
            **before, "bn1.bias": before["bn1.bias"] + 1, "conv1.weight": break_(before["conv1.weight"])})
    assert "\n" not in str(caught.value)
    assert_equal_states(torchvision_state(ours), before)


def test_counters_that_were_averaged_are_read_where_they_are_whole_and_fit():
    ours = make_pair("resnet8")[1]
    state = torchvision_state(ours)
    load_torchvision_state(ours, {**state, "bn1.num_batches_tracked": np.float32(7)})
    assert torchvision_state(ours)["bn1.num_batches_tracked"] == 7
    for value, message in ((np.float32(7.5), "of another type bn1.num_batches_tracked float32 instead of int32"),
                           (np.int64(2**40), "too large for int32 in bn1.num_batches_tracked")):
        with pytest.raises(InputError, match=message):
            load_torchvision_state(ours, {**state, "bn1.num_batches_tracked": value})


@pytest.mark.parametrize("name, file", [("vit_lite_7_4", "vit_lite_7_4"), ("resnet18", "resnet18_32")])
def test_the_shared_backbones_give_torchvisions_features(shared, name, file):
    weights = read_weights(shared("weights", f"{file}.safetensors"))
    theirs = without_head(torch_model(name))
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=True)
    ours = load_torchvision_state(abstract_backbone(name), weights)
    assert_same_outputs(ours, theirs, random_images(8, 32))
