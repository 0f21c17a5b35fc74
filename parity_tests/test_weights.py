"""Reading weight files and downloading torchvision's, with every way in which that can fail."""

import hashlib
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from model_pairs import abstract_backbone, short_backbone

from jax_brcd.data.download import download
from jax_brcd.models import BACKBONES, Preprocessing, Variant, Weights
from jax_brcd.models.weights import download_weights, read_weight_file, read_weights
from jax_brcd.runtime.errors import InputError

TENSORS = {
    "weight": torch.linspace(-2, 2, 600).reshape(20, 30),
    "scalar": torch.tensor(1.5),
    "num_batches_tracked": torch.tensor(7),
}
ENDINGS = (".safetensors", ".pth", ".pt")


def save(tensors, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def refuse(path, message):
    """Reading `path` is refused in one line that names it."""
    with pytest.raises(InputError, match=message) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ending", ENDINGS)
def test_weights_are_read_as_float32_arrays(tmp_path, ending, dtype):
    given = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in TENSORS.items()}
    read = read_weights(save(given, tmp_path / f"weights{ending}"))
    assert set(read) == set(TENSORS)
    for name, tensor in given.items():
        assert type(read[name]) is np.ndarray
        assert read[name].dtype == (np.float32 if tensor.is_floating_point() else np.int64)
        np.testing.assert_array_equal(read[name], tensor.float().numpy())


def test_parameters_are_read_like_tensors(tmp_path):
    path = save({"weight": torch.nn.Parameter(TENSORS["weight"])}, tmp_path / "parameters.pth")
    np.testing.assert_array_equal(read_weights(path)["weight"], TENSORS["weight"].numpy())


def test_pytorchs_older_format_is_read(tmp_path):
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read_weights(tmp_path / "old.pth")["weight"], TENSORS["weight"].numpy())


def test_an_absent_file_is_refused(tmp_path):
    refuse(tmp_path / "none.safetensors", "no such weight file")
    refuse(tmp_path, "no encoder's: it holds no config.json and no model.safetensors")


def test_an_unknown_ending_is_refused(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"anything")
    refuse(tmp_path / "weights.npz", r"give a \.safetensors, \.pth or \.pt file")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", [b"", b"hello\n", b"<html>404 not found</html>", bytes(range(256)) * 40], ids=len)
def test_a_file_of_something_else_is_refused(tmp_path, ending, content):
    path = tmp_path / f"weights{ending}"
    path.write_bytes(content)
    refuse(path, "truncated")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, ending):
    path = save(TENSORS, tmp_path / f"weights{ending}")
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        refuse(path, "truncated")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_path_may_be_a_string_and_begin_at_home(tmp_path, monkeypatch, ending):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = save(TENSORS, tmp_path / f"weights{ending}")
    for given in (path, str(path), f"~/weights{ending}"):
        np.testing.assert_array_equal(read_weights(given)["weight"], TENSORS["weight"].numpy())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_a_state_dict_among_other_things_is_read_and_said(tmp_path, key):
    path = save({"epoch": 3, key: TENSORS, "optimizer": {"lr": 0.1}}, tmp_path / "checkpoint.pth")
    read = read_weight_file(path)
    np.testing.assert_array_equal(read.tensors["weight"], TENSORS["weight"].numpy())
    assert read.remarks == (f"of what the file holds, '{key}' is read",)
    assert read_weight_file(save(TENSORS, tmp_path / "flat.pth")).remarks == ()


def test_the_folder_of_an_encoder_is_read(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors", metadata={"model": "toy", "bits": "8"})
    refuse(tmp_path, "a folder, and no encoder's: it holds no config.json; give the folder of a saved encoder")
    (tmp_path / "config.json").write_text("{}")
    read = read_weight_file(tmp_path)
    assert read.path == tmp_path / "model.safetensors" and read.metadata == {"model": "toy", "bits": "8"}
    np.testing.assert_array_equal(read_weights(tmp_path)["weight"], TENSORS["weight"].numpy())


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_tensors_that_are_not_finite_are_refused_by_name(tmp_path, ending, dtype, value):
    tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in TENSORS.items()}
    tensors["weight"] = tensors["weight"].clone()
    tensors["weight"][3, 4] = value
    refuse(save(tensors, tmp_path / f"weights{ending}"), "NaN or infinity in weight; give weights that are whole")


def test_of_many_tensors_that_are_not_finite_the_first_are_named_and_the_others_counted(tmp_path):
    tensors = {f"layer{number}": torch.full((2,), torch.nan) for number in range(7)}
    refuse(save(tensors, tmp_path / "weights.pth"), "NaN or infinity in layer0, layer1, layer2 and 4 more;")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_without_tensors_is_refused(tmp_path, ending):
    refuse(save({}, tmp_path / f"weights{ending}"), "holds no tensors")


@pytest.mark.parametrize(("tensor", "message"), [
    (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "weight is quantised"),
    (lambda: torch.eye(3).to_sparse(), "weight is sparse"),
    (lambda: torch.ones(3, device="meta"), "weight is on the device 'meta' and holds no data"),
], ids=["quantised", "sparse", "without data"])
def test_tensors_that_hold_no_plain_numbers_are_refused_by_name(tmp_path, tensor, message):
    refuse(save({"bias": torch.ones(2), "weight": tensor()}, tmp_path / "weights.pth"), message)


@pytest.mark.parametrize("content", [
    [TENSORS["weight"]],
    {"epoch": 3, "weight": TENSORS["weight"]},
    {"network": TENSORS},
    {0: TENSORS["weight"]},
], ids=["list", "number", "nested", "numbered"])
def test_content_that_is_no_flat_dictionary_of_tensors_is_refused(tmp_path, content):
    refuse(save(content, tmp_path / "weights.pth"), r"save model\.state_dict\(\) alone")


def test_a_pickled_model_is_never_unpickled(tmp_path):
    refuse(save(torch.nn.Linear(2, 2), tmp_path / "model.pth"), r"save model\.state_dict\(\) alone")


def test_a_type_that_numpy_lacks_is_refused(tmp_path):
    refuse(save({"weight": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "weights.safetensors"), "float tensors")


def test_only_pytorchs_own_files_need_pytorch(tmp_path, monkeypatch):
    paths = {ending: save(TENSORS, tmp_path / f"weights{ending}") for ending in ENDINGS}
    monkeypatch.setitem(sys.modules, "torch", None)
    assert read_weights(paths[".safetensors"])["weight"].shape == (20, 30)
    for ending in (".pth", ".pt"):
        refuse(paths[ending], r"pip install 'jax_brcd\[torch\]'")


# the ViT-H/14 that torchvision has at 224 pixels is the linear probe of SWAG's
@pytest.mark.parametrize("name", [name for name in BACKBONES if name in torchvision.models.list_models()])
def test_imagenet_weights_and_their_preprocessing_are_torchvisions(name):
    members = torchvision.models.get_model_weights(name).__members__
    member = members.get("IMAGENET1K_V1") or members["IMAGENET1K_SWAG_LINEAR_V1"]
    ours, theirs = BACKBONES[name], member.transforms()
    file = ours.weights["imagenet"]
    assert (file.url, file.layout) == (member.url, "torchvision")
    assert file.digest == file.file_name.rsplit("-", 1)[1].removesuffix(".pth") and len(file.digest) == 8
    # B2 stays at its paper's size, which torchvision evaluates at 288
    assert [288 if name == "efficientnet_b2" else ours.preprocessing.size] == theirs.crop_size
    assert [ours.preprocessing.resize] == theirs.resize_size
    assert list(ours.preprocessing.mean) == theirs.mean and list(ours.preprocessing.std) == theirs.std


@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_backbone_takes_the_size_of_its_preprocessing(name):
    assert short_backbone(name).fits(BACKBONES[name].preprocessing.size)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "dinov2_vits14", "clip_vit_b_32"])
def test_a_backbone_is_meant_for_the_size_of_its_preprocessing(name):
    assert abstract_backbone(name).image_size == BACKBONES[name].preprocessing.size


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder that stands for torchvision's server, with the weights of resnet18 in it."""
    folder = tmp_path / "remote"
    folder.mkdir()
    content = save(TENSORS, folder / "weights.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    file = folder / f"resnet18-{digest}.pth"
    (folder / "weights.pth").rename(file)
    weights = {"imagenet": Weights(file.as_uri(), digest, "torchvision")}
    monkeypatch.setitem(BACKBONES._entries, "resnet18", Variant(BACKBONES["resnet18"].build, Preprocessing(224), weights))
    return file


def test_imagenet_weights_are_downloaded_once(remote, tmp_path):
    path = download_weights("resnet18", "imagenet", tmp_path / "cache")
    assert path == tmp_path / "cache" / remote.name
    np.testing.assert_array_equal(read_weights(path)["weight"], TENSORS["weight"].numpy())
    remote.unlink()
    assert download_weights("resnet18", "imagenet", tmp_path / "cache") == path


def test_imagenet_weights_offline_say_which_file_to_put_where(remote, tmp_path):
    url = f"{remote.parent.as_uri()}/{remote.name}"
    remote.unlink()
    with pytest.raises(InputError) as caught:
        download_weights("resnet18", "imagenet", tmp_path / "cache")
    message = str(caught.value)
    assert url in message and str(tmp_path / "cache" / remote.name) in message and "\n" not in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_backbone_without_imagenet_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match="no weights 'imagenet' of 'vit_lite_7_4' are known; give a weight file, or one of"):
        download_weights("vit_lite_7_4", "imagenet", tmp_path)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_download_is_checked_by_the_start_of_its_digest(tmp_path, algorithm):
    source = tmp_path / "source"
    source.write_bytes(b"content")
    digest = hashlib.new(algorithm, b"content").hexdigest()
    for checksum in (digest, digest[:8]):
        path = download(source.as_uri(), tmp_path / "new" / "file", algorithm=algorithm, checksum=checksum)
        assert path == tmp_path / "new" / "file" and path.read_bytes() == b"content"


def test_a_download_of_something_else_is_refused_and_keeps_what_was_there(tmp_path):
    source, path = tmp_path / "source", tmp_path / "place" / "file"
    source.write_bytes(b"an error page")
    path.parent.mkdir()
    path.write_bytes(b"before")
    with pytest.raises(InputError, match="instead of c0ffee00") as caught:
        download(source.as_uri(), path, algorithm="sha256", checksum="c0ffee00")
    message = str(caught.value)
    assert source.as_uri() in message and str(path) in message and "\n" not in message
    assert path.read_bytes() == b"before" and list(path.parent.iterdir()) == [path]


def test_a_download_tells_its_progress_and_prints_nothing(tmp_path, capsys):
    (tmp_path / "source").write_bytes(b"content")
    told = []
    download((tmp_path / "source").as_uri(), tmp_path / "file", algorithm="md5", checksum="",
             progress=lambda *now: told.append(now))
    assert told == [("download source", 7, 7)] and capsys.readouterr() == ("", "")
