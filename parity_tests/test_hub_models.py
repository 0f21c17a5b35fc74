"""Folders in Hugging Face's layout as weights of a backbone, and what their config.json says against it."""

import json

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx
from hub_server import serving
from toy_runs import PIXELS, Toy

from jax_brcd.models import BACKBONES, LAYOUTS, HashModel, Preprocessing, Variant, create_backbone, model_state
from jax_brcd.models.layouts import Layout, plain
from jax_brcd.models.variants import HubWeights
from jax_brcd.models.weights import download_weights, read_weights
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.models import build

SAYS = {"model_type": "toy", "hidden_size": 8, "image_size": 99}
PREFIX = "vision."


def load_prefixed(model, state, *, any_head=False):
    return plain.load(model, {name.removeprefix(PREFIX): value for name, value in state.items()}, any_head=any_head)


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Two toys that have a config.json and a repository of the hub, whose layout has a prefix."""
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    monkeypatch.setattr(LAYOUTS, "_entries", dict(LAYOUTS._entries))
    LAYOUTS.register("prefixed")(Layout(load_prefixed, plain.state))
    for name, width in (("small_toy", 8), ("large_toy", 12)):
        BACKBONES.register(name)(Variant(
            lambda *, rngs, width=width: Toy(width, rngs), Preprocessing(PIXELS),
            {"pretrained": HubWeights("user/toy", "prefixed")},
            config={"model_type": ("toy", "toy_vision_model"), "hidden_size": width}))


def state_of(name="small_toy"):
    state = model_state(create_backbone(name, rngs=nnx.Rngs(5)))
    return {key: np.ascontiguousarray(value) for key, value in state.items()}


def write(folder, state, config=SAYS, parts=1):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if parts == 1:
        safetensors.numpy.save_file(state, folder / "model.safetensors")
        return folder
    files = {name: f"model-{number % parts}.safetensors" for number, name in enumerate(state)}
    for file in set(files.values()):
        safetensors.numpy.save_file({name: state[name] for name in state if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def built(weights, tmp_path, name="small_toy"):
    return build(name, 16, weights, option="teacher_weights", seed=0, dtype="float32", cache_dir=tmp_path / "cache")


def refusal(weights, tmp_path, name="small_toy"):
    with pytest.raises(InputError) as caught:
        built(weights, tmp_path, name)
    line = caught.value.line(lambda setting: "--" + setting)
    assert line.startswith("--teacher_weights") and str(weights) in line and "\n" not in line
    return line.removeprefix("--teacher_weights").removeprefix(f" {weights}").removeprefix(": ")


def assert_holds(made, state):
    for name, value in model_state(made.model.backbone).items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_folder_of_weights_is_read_whole_and_brings_no_head(tmp_path, parts):
    made = built(write(tmp_path / "toy", state_of(), parts=parts), tmp_path)
    assert_holds(made, state_of())
    assert made.remarks == () and not made.head_came


def test_a_tag_may_stand_for_a_repository_in_a_layout_of_its_own(tmp_path):
    write(tmp_path / "hub/user/toy", {PREFIX + name: value for name, value in state_of().items()})
    with serving(tmp_path / "hub", tmp_path / "cache"):
        assert_holds(built("pretrained", tmp_path), state_of())
        assert download_weights("small_toy", "pretrained", tmp_path).parts[-3:-1] == ("models--user--toy", "snapshots")
        write(tmp_path / "hub/user/plain", state_of())
        made = built("hf:user/plain", tmp_path)
    assert_holds(made, state_of())
    with pytest.raises(InputError, match="no weights 'pretrained' of 'resnet8' are known; give a weight file, or one of"):
        download_weights("resnet8", "pretrained", tmp_path)


def test_a_config_json_of_another_member_of_the_family_says_which(tmp_path):
    folder = write(tmp_path / "toy", state_of("large_toy"), {"model_type": "toy_vision_model", "hidden_size": 12})
    assert refusal(folder, tmp_path) == ("its config.json says that it is of hidden_size 12 instead of 8; give weights of "
                                         "small_toy, or name large_toy")
    assert not built(folder, tmp_path, "large_toy").head_came


@pytest.mark.parametrize(("config", "line"), [
    ({"model_type": "bert"}, "model_type 'bert' instead of 'toy' or 'toy_vision_model'"),
    ({"model_type": "toy", "vision_config": {"hidden_size": 9}, "hidden_size": 8}, "hidden_size 9 instead of 8"),
    ({"model_type": "bert", "hidden_size": 9},
     "model_type 'bert' instead of 'toy' or 'toy_vision_model' and hidden_size 9 instead of 8")])
def test_a_config_json_of_another_model_is_refused(tmp_path, config, line):
    assert refusal(write(tmp_path / "toy", state_of(), config), tmp_path) == (
        f"its config.json says that it is of {line}; give weights of small_toy")


@pytest.mark.parametrize("config", [
    {}, {"model_type": "toy"}, {"hidden_size": 8},
    {"model_type": "toy", "vision_config": {"hidden_size": 8}, "hidden_size": 4}])
def test_what_a_config_json_does_not_say_the_tensors_decide(tmp_path, config):
    assert_holds(built(write(tmp_path / "toy", state_of(), config), tmp_path), state_of())


def test_weights_that_do_not_fit_are_told_with_what_their_config_json_says(tmp_path):
    BACKBONES.register("bare_toy")(Variant(BACKBONES["small_toy"].build, Preprocessing(PIXELS)))
    state = {"embeddings.weight": np.zeros((3, 3), np.float32)}
    line = refusal(write(tmp_path / "vit", state, {"model_type": "vit"}), tmp_path, "bare_toy")
    assert line.startswith("the weights do not fit bare_toy: missing filter.bias")
    assert line.endswith("(its config.json says that it is of 'vit')")


def test_a_torchvision_state_dict_in_a_folder_is_read_too(tmp_path):
    state = model_state(HashModel(create_backbone("vit_lite_4_8", rngs=nnx.Rngs(5)), 16, rngs=nnx.Rngs(6)))
    made = built(write(tmp_path / "vit", state, {"model_type": "vit_lite_4_8"}), tmp_path, "vit_lite_4_8")
    assert made.head_came and len(made.remarks) == 1 and "its hash head of 16 bits is taken too" in made.remarks[0]
    assert_holds(made, state)


@pytest.mark.parametrize(("size", "files"), [("1GB", 1), ("2KB", 3)])
def test_what_huggingface_hub_writes_is_read_bit_for_bit(tmp_path, size, files):
    state = {f"layer.{number}.weight": torch.linspace(-number, 1, 400).reshape(20, 20) for number in range(3)}
    half = {"half": torch.ones(2, dtype=torch.bfloat16) / 3}
    huggingface_hub.save_torch_state_dict(state | half, tmp_path, max_shard_size=size)
    (tmp_path / "config.json").write_text("{}")
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    read = read_weights(tmp_path)
    assert read.keys() == {*state, "half"} and read["half"].tolist() == [0.333984375] * 2
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


def test_a_folder_without_its_weights_says_how_to_mend_it(tmp_path):
    folder = write(tmp_path / "toy", state_of(), parts=3)
    (folder / "model-1.safetensors").unlink()
    assert refusal(folder, tmp_path) == ("model.safetensors.index.json names model-1.safetensors, which the folder lacks; "
                                         "fetch it again")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    line = refusal(folder, tmp_path)
    assert line.startswith("holds its weights as pytorch_model.bin alone, and only safetensors are read; convert them where")
    assert f"AutoModel.from_pretrained('{folder}').save_pretrained('FOLDER')" in line
    (folder / "config.json").write_text("{")
    (folder / "model-0.safetensors").rename(folder / "model.safetensors")
    assert "config.json: broken" in refusal(folder, tmp_path)
