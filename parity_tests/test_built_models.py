"""A run's model with the weights it is told to take: whole teachers, classifiers, tags, and what is said of each."""

import hashlib

import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx

from jax_brcd.models import BACKBONES, Variant, Weights, create_hash_model, torchvision_state
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.models import build

BITS = 16
NAME = "resnet8"


@pytest.fixture(scope="module")
def trained():
    """The state of a hash model that no fresh one equals."""
    return torchvision_state(create_hash_model(NAME, BITS, rngs=nnx.Rngs(7)))


@pytest.fixture
def built(tmp_path):
    """`build` of the smallest model with seed 0, with weights from a file of given tensors or from elsewhere."""
    def make(weights, *, metadata=None, suffix=".safetensors", bits=BITS, name=NAME):
        if isinstance(weights, dict):
            path = tmp_path / f"weights{suffix}"
            if suffix == ".safetensors":
                safetensors.numpy.save_file(weights, path, metadata=metadata)
            else:
                torch.save({key: torch.from_numpy(value) for key, value in weights.items()}, path)
            weights = path
        return build(name, bits, weights, option="teacher_weights", seed=0, dtype="float32", cache_dir=tmp_path / "cache")
    return make


def fresh_head():
    return np.asarray(create_hash_model(NAME, BITS, rngs=nnx.Rngs(0)).head.kernel[...])


def without_head(state):
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def assert_holds(model, state):
    ours = torchvision_state(model)
    for name, value in state.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_head_of_the_right_length_comes_with_its_backbone_and_is_said(built, trained, tmp_path, suffix):
    model, remarks, head_came = built(trained, suffix=suffix)
    assert head_came and remarks == (f"{NAME} of {tmp_path / f'weights{suffix}'}: its hash head of {BITS} bits is taken too",)
    assert_holds(model, trained)


def test_the_folder_of_an_encoder_brings_its_head(built, trained, tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file(trained, folder / "model.safetensors", metadata={"model": NAME, "bits": str(BITS)})
    for given in (folder, str(folder)):
        model, _, head_came = built(given)
        assert head_came
        assert_holds(model, trained)


def test_a_backbone_alone_leaves_the_head_new_and_nothing_is_said(built, trained):
    model, remarks, head_came = built(without_head(trained))
    assert not head_came and remarks == ()
    assert_holds(model, without_head(trained))
    np.testing.assert_array_equal(model.head.kernel[...], fresh_head())


def test_a_classifier_is_left_out_and_said(built, trained):
    state = {**trained, "fc.weight": np.ones((1000, 64), np.float32), "fc.bias": np.ones(1000, np.float32)}
    model, remarks, head_came = built(state)
    assert not head_came and len(remarks) == 1
    assert remarks[0].endswith(f"its head of 1000 outputs is left out: {BITS} bits are asked for")
    assert_holds(model, without_head(trained))
    np.testing.assert_array_equal(model.head.kernel[...], fresh_head())


@pytest.mark.parametrize("head", [
    {"fc.0.weight": np.ones((8, 64), np.float32), "fc.0.bias": np.ones(8, np.float32)},
    {"fc.weight": np.ones((BITS, 32), np.float32), "fc.bias": np.ones(BITS, np.float32)},
    {"fc.weight": np.ones((BITS, 64), np.float32)},
], ids=["two layers", "other features", "without bias"])
def test_a_head_of_another_form_is_left_out_and_said(built, trained, head):
    model, remarks, head_came = built({**without_head(trained), **head})
    assert not head_came and "its head is left out, which is of another form (fc." in remarks[0]
    np.testing.assert_array_equal(model.head.kernel[...], fresh_head())


def test_a_prefix_and_a_head_are_both_said(built, trained):
    model, remarks, head_came = built({f"module.{name}": value for name, value in trained.items()}, suffix=".pth")
    assert head_came and [remark.split(": ", 1)[1] for remark in remarks] == [
        "the prefix 'module.' of all tensors is taken off", f"its hash head of {BITS} bits is taken too"]
    assert_holds(model, trained)


def test_a_tag_never_brings_a_head_and_nothing_is_said(built, trained, tmp_path, monkeypatch):
    path = tmp_path / "there" / "resnet8-x.safetensors"
    path.parent.mkdir()
    safetensors.numpy.save_file(trained, path)
    weights = Weights(path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest()[:8], "torchvision")
    variant = Variant(BACKBONES[NAME].build, BACKBONES[NAME].preprocessing, {"imagenet": weights, "other": weights})
    monkeypatch.setitem(BACKBONES._entries, NAME, variant)
    for tag in ("imagenet", "other"):
        model, remarks, head_came = built(tag)
        assert not head_came and remarks == ()
        assert_holds(model, without_head(trained))
        np.testing.assert_array_equal(model.head.kernel[...], fresh_head())


def test_random_weights_are_the_seeds(built):
    assert_holds(built("random").model, torchvision_state(create_hash_model(NAME, BITS, rngs=nnx.Rngs(0))))
    assert built("random").remarks == () and not built("random").head_came


def test_a_file_that_says_it_is_of_another_model_is_refused_by_that_name(built, trained):
    with pytest.raises(InputError, match="says that it is of resnet18; give weights of resnet8, or name resnet18") as caught:
        built(trained, metadata={"model": "resnet18", "bits": str(BITS)})
    assert (caught.value.field, caught.value.value.name) == ("teacher_weights", "weights.safetensors")
    assert built(trained, metadata={"model": NAME, "bits": str(BITS)}).head_came


@pytest.mark.parametrize(("weights", "message"), [
    ("/absent.safetensors", "teacher_weights /absent.safetensors: no such weight file; check the path"),
    ("imagenet", "teacher_weights: no weights 'imagenet' of 'resnet8' are known; give a weight file"),
    ("held-out", "teacher_weights held-out: no such weight file"),
])
def test_an_error_names_the_setting_and_its_value_once(built, weights, message):
    with pytest.raises(InputError, match=message) as caught:
        built(weights)
    assert str(caught.value).count(weights) == 1 and caught.value.line(lambda name: f"--{name}").startswith("--teacher_weights")


def test_broken_weights_are_refused_by_name(built, trained):
    with pytest.raises(InputError, match=r"teacher_weights .*weights.safetensors: the weights are broken: NaN or infinity in "
                                         "conv1.weight"):
        built({**trained, "conv1.weight": np.full_like(trained["conv1.weight"], np.nan)})
