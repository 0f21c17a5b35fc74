"""Exports: the formats by name, and that PyTorch reads what is written for it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from flax import nnx

from jax_brcd.encoder import create_encoder
from jax_brcd.export import export, export_safetensors
from jax_brcd.models import Preprocessing, create_hash_model
from jax_brcd.runtime.errors import InputError
from torch_ref.models import create_hash_model as create_torch_model

BITS = 12


@pytest.fixture(scope="module")
def encoder():
    model = create_hash_model("resnet8", BITS, rngs=nnx.Rngs(3))
    return create_encoder(model, "resnet8", Preprocessing(32, 36, mean=(0.5, 0.25, 0.125), std=(0.5, 0.5, 1.0)), bits=BITS,
                          role="student")


def logits_of(path, images):
    """Logits of the weights in a file, in PyTorch."""
    reference = create_torch_model("resnet8", BITS).eval()
    reference.load_state_dict(safetensors.torch.load_file(path))
    with torch.no_grad():
        return reference(torch.tensor(images).permute(0, 3, 1, 2)).numpy()


def test_pytorch_gives_the_logits_of_an_exported_encoder(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    weights, preprocessing = export(encoder, "torchvision", "~/new/export")
    assert weights == tmp_path / "new" / "export" / "resnet8.safetensors"
    assert json.loads(preprocessing.read_text()) == {
        "size": 32, "resize": 36, "mean": [0.5, 0.25, 0.125], "std": [0.5, 0.5, 1.0], "interpolation": "bilinear"}
    with safetensors.safe_open(weights, "np") as file:
        assert file.metadata() == {"model": "resnet8", "bits": "12"}
    images = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(logits_of(weights, images), encoder.model(jnp.asarray(images)), atol=1e-4)  # float32 sums


def test_the_plain_function_writes_the_same_file(encoder, tmp_path):
    (weights, _) = export(encoder, "torchvision", tmp_path)
    export_safetensors(encoder.model, str(tmp_path / "plain.safetensors"), name="resnet8", bits=BITS)
    plain, exported = (safetensors.torch.load_file(path) for path in (tmp_path / "plain.safetensors", weights))
    assert list(plain) == list(exported) and all(torch.equal(plain[name], exported[name]) for name in plain)


def test_an_unknown_format_or_a_file_for_a_folder_is_refused(encoder, tmp_path):
    with pytest.raises(KeyError) as error:
        export(encoder, "torchvison", tmp_path / "out")
    assert str(error.value).startswith("unknown export format 'torchvison': did you mean 'torchvision'? known: ")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="this is a file, and an export is a folder"):
        export(encoder, "torchvision", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
