"""HashEncoder's folder: what it keeps, for PyTorch too, what it replaces, and what is refused."""

import json
import os
import pathlib

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from encoders import BITS, USUAL, Dropping, noise, random_encoder, same
from flax import nnx

import jax_brcd
from jax_brcd.encoder import create_encoder, load
from jax_brcd.models import create_hash_model, model_state
from jax_brcd.models.variants import BACKBONES, Preprocessing, Variant
from jax_brcd.runtime.errors import InputError
from torch_ref.models import create_hash_model as create_torch_model


@pytest.fixture(scope="module")
def encoder():
    return random_encoder()


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    return encoder.save(tmp_path_factory.mktemp("saved") / "encoder")


def test_a_saved_encoder_comes_back_bit_for_bit(encoder, saved):
    again = load(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    before, after = model_state(encoder.model), model_state(again.model)
    assert list(before) == list(after)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    for name in ("backbone", "preprocessing", "bits", "role", "space", "dtype", "provenance"):
        assert getattr(again, name) == getattr(encoder, name), name
    images = noise(9, 40, 31)
    np.testing.assert_array_equal(again.logits(images), encoder.logits(images))
    same(again.encode(images), encoder.encode(images))


def test_a_bfloat16_encoder_comes_back_too(tmp_path):
    encoder = random_encoder(dtype="bfloat16")
    again = load(encoder.save(tmp_path / "narrow"))
    assert again.dtype == "bfloat16"
    np.testing.assert_array_equal(again.logits(noise(3, 32, 32)), encoder.logits(noise(3, 32, 32)))


def test_pytorch_gives_the_same_codes_from_the_folder(encoder, saved):
    """The promise to PyTorch users; views are compared in test_fitting.py."""
    reference = create_torch_model("resnet8", BITS).eval()
    reference.load_state_dict(safetensors.torch.load_file(saved / "model.safetensors"))
    images = noise(40, 50, 41)
    views = np.concatenate([encoder._view(image) for image in images])
    with torch.no_grad():
        theirs = reference(torch.tensor(views).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(encoder.logits(images), theirs, rtol=0, atol=1e-4)  # float32 sums in another order
    bits = np.unpackbits(encoder.encode(images).packed, axis=1, count=BITS)
    clear = np.abs(theirs) >= 1e-4
    np.testing.assert_array_equal(bits[clear], (theirs > 0)[clear])
    assert clear.mean() > 0.99


def test_an_encoder_without_a_given_space_speaks_its_own(encoder):
    def own(model, preprocessing):
        return create_encoder(model, "resnet8", preprocessing, bits=BITS, role="teacher").space

    assert own(encoder.model, USUAL) == own(random_encoder().model, USUAL) and own(encoder.model, USUAL).startswith("resnet8-")
    assert own(encoder.model, Preprocessing(32)) != own(encoder.model, USUAL) != own(random_encoder(seed=4).model, USUAL)


def test_facts_are_added_to_where_it_comes_from(encoder):
    more = encoder.with_provenance(metrics=None, seed=1)
    assert more.provenance == {"version": "0.1.0", "metrics": None, "digests": ["a", None], "seed": 1}
    assert encoder.provenance["metrics"] == {"map": 0.5}


def test_paths_are_text_or_paths_and_may_begin_at_home(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert encoder.save("~/deep/encoder") == tmp_path / "deep" / "encoder"
    for path in ("~/deep/encoder", str(tmp_path / "deep" / "encoder"), pathlib.Path("~/deep/encoder")):
        assert jax_brcd.load(path).bits == BITS


def test_saving_replaces_an_encoder_and_nothing_else(encoder, tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    random_encoder(8).save(folder)
    encoder.save(folder)
    assert load(folder).bits == BITS and os.listdir(tmp_path) == ["encoder"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something that is no encoder \(notes.txt\); name another folder"):
        encoder.save(folder)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"settings": {}}')
    with pytest.raises(InputError, match="holds something that is no encoder"):
        encoder.save(run)
    with pytest.raises(InputError, match="config.json: is a file; name a folder"):
        encoder.save(run / "config.json")
    assert (folder / "notes.txt").read_text() == "mine" and (run / "config.json").read_text() == '{"settings": {}}'


def test_a_failed_save_leaves_the_old_encoder_whole(encoder, tmp_path, monkeypatch):
    folder = random_encoder(8).save(tmp_path / "encoder")
    with pytest.raises(InputError, match="provenance: not what a JSON file holds"):
        encoder.with_provenance(metrics=np.float32(1)).save(folder)
    with pytest.raises(InputError, match="provenance: not what a JSON file holds"):
        encoder.with_provenance(metrics=float("nan")).save(folder)

    def full(*arguments, **others):
        raise OSError(28, "No space left on device")

    for name in ("jax_brcd.encoder.write_weights", "jax_brcd.encoder.write_json"):
        with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
            patched.setattr(name, full)
            encoder.save(folder)
    rename = pathlib.Path.rename

    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        def second_fails(self, target, error=error):
            if self.name == "new":
                raise error
            return rename(self, target)

        with monkeypatch.context() as patched, pytest.raises(type(error)):
            patched.setattr("jax_brcd.runtime.files._exchange", lambda one, other: False)  # as on file systems that cannot
            patched.setattr(pathlib.Path, "rename", second_fails)
            encoder.save(folder)
        assert load(folder).bits == 8 and os.listdir(tmp_path) == ["encoder"]


def test_a_folder_is_replaced_at_once_and_through_a_link(encoder, tmp_path, monkeypatch):
    folder = random_encoder(8).save(tmp_path / "encoder")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setattr(pathlib.Path, "rename", None)  # nothing is moved out of the way first
    encoder.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and load(folder).bits == encoder.bits != 8
    assert sorted(os.listdir(tmp_path)) == ["encoder", "link"]


def change(folder, **facts):
    """Rewrites some facts of an encoder's config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | facts
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def without(name):
    return lambda folder: (folder / name).unlink()


def with_tensors(edit):
    def rewrite(folder):
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        safetensors.numpy.save_file(edit(tensors), folder / "model.safetensors")

    return rewrite


def broken_weights(tensors):
    tensors["conv1.weight"][0] = np.nan
    return tensors


@pytest.mark.parametrize(("damage", "message"), [
    (without("config.json"), "no encoder's folder"),
    (without("model.safetensors"), "model.safetensors: no such weight file"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json: broken"),
    (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json: broken"),
    (lambda folder: (folder / "config.json").write_text("[1]"), "says nothing of format, backbone"),
    (lambda folder: change(folder, space=None), "says nothing of space, so it is no encoder's"),
    (lambda folder: change(folder, format=2, space=None), "written by a newer jax_brcd; update this one"),
    (lambda folder: change(folder, format="1"), 'broken (format is "1")'),
    (lambda folder: change(folder, bits="20"), 'broken (bits is "20")'),
    (lambda folder: change(folder, bits=True), "broken (bits is true)"),
    (lambda folder: change(folder, bits=0), "bits 0: a code needs at least one bit"),
    (lambda folder: change(folder, bits=16), "mis-shaped fc.weight (20, 64) instead of (16, 64)"),
    (lambda folder: change(folder, backbone="resnet7"), "unknown backbone 'resnet7': did you mean 'resnet8'?"),
    (lambda folder: change(folder, backbone="resnet18"), "the weights do not fit resnet18"),
    (lambda folder: change(folder, layout="torch"), "unknown layout of weights 'torch'"),
    (lambda folder: change(folder, dtype="float16"), "unknown arithmetic 'float16'"),
    (lambda folder: change(folder, preprocessing={"size": 0}), "size 0: not a number of pixels"),
    (lambda folder: change(folder, preprocessing={"size": 10**7}), "size 10000000: not a number of pixels"),
    (lambda folder: change(folder, preprocessing={"size": 32, "resize": 10**9}),
     "resize 1000000000: a square of 32 pixels cannot"),
    (lambda folder: change(folder, preprocessing={"size": 32, "mean": [1e29, 0, 0]}), "give three numbers, of red, green and"),
    (lambda folder: change(folder, preprocessing={"size": 32, "std": [1e-30, 1, 1]}), "pixels are divided by it"),
    (lambda folder: change(folder, bits=10**9), "bits 1000000000: too many for a code; give 65536 or less"),
    (lambda folder: change(folder, bits=10**30), "too many for a code"),
    (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json: broken (values nested too deeply)"),
    (lambda folder: change(folder, preprocessing=[32]), "broken (preprocessing is [32])"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "truncated or no safetensors file"),
    (with_tensors(broken_weights), "NaN or infinity in conv1.weight"),
    (with_tensors(lambda tensors: {name: tensors[name] for name in tensors if "fc." not in name}), "holds no hash head"),
    (with_tensors(lambda tensors: {"fc.weight": tensors["fc.weight"]}), "missing conv1.weight"),
])
def test_a_damaged_folder_is_refused_in_one_line_that_names_it(encoder, tmp_path, damage, message):
    folder = encoder.save(tmp_path / "encoder")
    damage(folder)
    with pytest.raises(InputError) as refusal:
        load(folder)
    assert message in str(refusal.value) and str(folder) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_size_that_the_backbone_cannot_see_is_refused_at_load(tmp_path):
    model = create_hash_model("vit_lite_4_8", 8, rngs=nnx.Rngs(0))
    folder = create_encoder(model, "vit_lite_4_8", Preprocessing(44), bits=8, role="teacher").save(tmp_path / "encoder")
    with pytest.raises(InputError, match="size 44: vit_lite_4_8 takes multiples of 8 pixels; give 40 or 48"):
        load(folder)


@pytest.mark.parametrize("place", ["absent", "file.txt", "empty"])
def test_what_is_no_encoder_is_refused(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(InputError, match=f"{place}: no encoder's folder .*; give one that a run wrote"):
        load(tmp_path / place)


def test_a_users_own_backbone_is_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES))
    BACKBONES.register("dropping")(Variant(Dropping, Preprocessing(16)))
    model = create_hash_model("dropping", 8, rngs=nnx.Rngs(2))
    encoder = create_encoder(model, "dropping", Preprocessing(16), bits=8, role="student")
    encoder.model.train()
    again = load(encoder.save(tmp_path / "own"))
    same(again.encode(noise(10, 20, 20)), encoder.encode(noise(10, 20, 20)))
    np.testing.assert_array_equal(again.logits(noise(1, 20, 20)), encoder.logits(noise(1, 20, 20)))
    monkeypatch.setattr(BACKBONES, "_entries", {name: each for name, each in BACKBONES.items() if name != "dropping"})
    with pytest.raises(InputError, match="unknown backbone 'dropping'.*; one of your own is registered before it is loaded"):
        load(tmp_path / "own")
