"""HashEncoder: what it gives for images, whatever they come as and beside what, and what its folder keeps."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_brcd
from jax_brcd.encoder import DOUBT, FEW, MANY, HashEncoder, create_encoder, in_batches, load
from jax_brcd.models import create_hash_model, model_state
from jax_brcd.models.variants import BACKBONES, Preprocessing, Variant
from jax_brcd.retrieval import PackedCodes, check_spaces
from jax_brcd.runtime.errors import InputError
from jax_brcd.search import open_store
from torch_ref.models import create_hash_model as create_torch_model

BITS = 20
USUAL = Preprocessing(32, 36, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def random_encoder(bits=BITS, preprocessing=USUAL, seed=3, *, dtype="float32", shrink=1.0):
    """Of a random resnet8. `shrink` brings all its logits near 0, where rounding decides their signs."""
    model = create_hash_model("resnet8", bits, rngs=nnx.Rngs(seed), dtype=jax.numpy.dtype(dtype))
    if shrink != 1.0:
        features = model.backbone(jax.random.normal(jax.random.key(0), (64, 32, 32, 3)))
        kernel = np.array(model.head.kernel[...])
        mean = np.asarray(features).mean(axis=0)
        model.head.kernel.set_value(jax.numpy.asarray(kernel - np.outer(mean, mean @ kernel) / (mean @ mean) * (1 - shrink)))
        model.head.bias.set_value(jax.numpy.zeros(bits))
    return create_encoder(model, "resnet8", preprocessing, bits=bits, role="student", space="teacher-1", dtype=dtype,
                          provenance={"version": "0.1.0", "metrics": {"map": 0.5}, "digests": ["a", None]})


@pytest.fixture(scope="module")
def encoder():
    return random_encoder()


@pytest.fixture(scope="module")
def wavering():
    """An encoder with many logits so near 0 that the number of images encoded at once would decide their bits."""
    return random_encoder(64, shrink=0.0)


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    return encoder.save(tmp_path_factory.mktemp("saved") / "encoder")


def same(codes, others):
    assert codes.bits == others.bits and codes.space == others.space
    np.testing.assert_array_equal(codes.packed, others.packed)


# What it keeps

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

    def second_fails(self, target):
        if self.name == "new":
            full()
        return rename(self, target)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(pathlib.Path, "rename", second_fails)
        encoder.save(folder)
    assert load(folder).bits == 8 and os.listdir(tmp_path) == ["encoder"]


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
    folder = create_encoder(model, "vit_lite_4_8", Preprocessing(48), bits=8, role="teacher").save(tmp_path / "encoder")
    with pytest.raises(InputError, match="size 48: vit_lite_4_8 takes 32 pixels"):
        load(folder)


@pytest.mark.parametrize("place", ["absent", "file.txt", "empty"])
def test_what_is_no_encoder_is_refused(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(InputError, match=f"{place}: no encoder's folder .*; give one that a run wrote"):
        load(tmp_path / place)


class Dropping(nnx.Module):
    """A user's backbone with a random stream, which no weight file holds."""

    def __init__(self, *, rngs):
        self.layer, self.dropout = nnx.Linear(3, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images):
        return self.dropout(self.layer(images.mean(axis=(1, 2))))


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


# The same pixels give the same bits

def test_a_bit_is_one_where_the_logit_is_above_zero():
    """Also where it is tiny: the head gives the bias alone."""
    encoder = random_encoder(3)
    encoder.model.head.kernel.set_value(jax.numpy.zeros((64, 3)))
    encoder.model.head.bias.set_value(jax.numpy.array([1e-30, 0.0, -1e-30]))
    for count in (1, 3):
        assert np.unpackbits(encoder.encode(noise(count, 32, 32)).packed, axis=1, count=3).tolist() == [[1, 0, 0]] * count


def test_codes_are_the_signs_of_the_logits(encoder):
    images = noise(70, 32, 32)
    logits, codes = encoder.logits(images), encoder.encode(images)
    assert logits.shape == (70, BITS) and logits.dtype == np.float32 and codes.packed.shape == (70, 3)
    assert codes.bits == BITS and codes.space == encoder.space == "teacher-1"
    np.testing.assert_array_equal(codes.unpack(), np.where(logits > 0, 1, -1))


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 32, 32, 3), np.uint8), np.array([]), iter(())])
def test_no_images_give_no_codes(encoder, nothing):
    codes = encoder.encode(nothing)
    assert len(codes) == 0 and codes.packed.shape == (0, 3) and codes.bits == BITS and codes.space == "teacher-1"
    assert encoder.logits([]).shape == (0, BITS)


def test_some_logits_of_the_wavering_encoder_are_in_doubt(wavering):
    """Else the tests below would test little."""
    small = np.abs(wavering.logits(noise(64, 32, 32))).min(axis=1)
    assert 0.2 < (small < 1e-3).mean()


@pytest.mark.parametrize("which", ["wavering", "narrow"])
def test_the_same_pixels_give_the_same_bits_alone_and_among_any_number(which, wavering):
    encoder = wavering if which == "wavering" else random_encoder(32, dtype="bfloat16")
    images = noise(300, 32, 32) if which == "wavering" else noise(70, 32, 32)
    alone = PackedCodes.concatenate([encoder.encode(image) for image in images[:70]])
    for count in (1, 7, 64, 65, len(images)):
        same(encoder.encode(images[:count])[:70], alone[: min(count, 70)])
    same(encoder.encode(images[:70][::-1]), alone[::-1])


def test_a_code_of_one_bit_is_decided_as_well(wavering):
    """Its only logit is the largest and the smallest of its image."""
    encoder = random_encoder(1, shrink=0.0, seed=5)
    images = noise(65, 32, 32)
    same(encoder.encode(images), PackedCodes.concatenate([encoder.encode(image) for image in images]))


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=90), st.randoms(use_true_random=False))
def test_bits_do_not_depend_on_order_sizes_and_kinds_of_the_others(wavering, numbers, random):
    import PIL.Image

    sizes = ((32, 32), (20, 45), (64, 40), (100, 33))
    images = [noise(*sizes[number % 4], seed=number) for number in range(40)]
    kinds = (np.asarray, jax.numpy.asarray, PIL.Image.fromarray)
    together = wavering.encode([random.choice(kinds)(images[number]) for number in numbers])
    known = ALONE.setdefault("codes", {})
    for row, number in enumerate(numbers):
        if number not in known:
            known[number] = wavering.encode(images[number])
        same(together[row], known[number])


ALONE = {}


def test_doubt_is_far_wider_than_what_a_batch_changes(wavering):
    """Logits of other programs than that of one image, where nothing is decided anew."""
    from jax_brcd.encoder import Placed

    placed, views = Placed.of(wavering.model), [wavering._view(image) for image in noise(64, 32, 32)]
    alone = np.concatenate([placed.logits([view]).logits for view in views])
    for count in (5, FEW, MANY):
        logits, terms = (np.asarray(part)[:count] for part in placed.logits(views[:count]))
        assert (np.abs(logits - alone[:count]) <= DOUBT["float32"] / 10 * terms).all()


def test_weights_that_change_are_seen():
    encoder = random_encoder()
    images = noise(2, 32, 32)
    before = encoder.logits(images)
    encoder.model.head.bias.set_value(encoder.model.head.bias[...] + 1)
    np.testing.assert_allclose(encoder.logits(images), before + 1, atol=1e-5)


def test_a_model_left_in_training_mode_encodes_as_in_evaluation(encoder):
    other = random_encoder()
    other.model.train()
    np.testing.assert_array_equal(other.logits(noise(5, 32, 32)), encoder.logits(noise(5, 32, 32)))


ELSEWHERE = """
import sys, numpy as np, jax
from jax_brcd import load
encoder, arrays = load(sys.argv[1]), np.load(sys.argv[2])
codes = [encoder.encode([arrays[name] for name in arrays.files]), encoder.encode(arrays["image_3"])]
np.savez(sys.argv[3], together=codes[0].packed, one=codes[1].packed, devices=len(jax.devices()), wide=jax.config.jax_enable_x64)
"""


@pytest.mark.parametrize(("environment", "devices", "wide"), [
    ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4, False), ({"JAX_ENABLE_X64": "1"}, 1, True)])
def test_several_devices_and_64_bits_give_the_same_bits(wavering, tmp_path, environment, devices, wide):
    images = [noise(*((32, 32), (50, 40))[number % 2], seed=number) for number in range(75)]
    np.savez(tmp_path / "images.npz", **{f"image_{number}": image for number, image in enumerate(images)})
    wavering.save(tmp_path / "encoder")
    command = [sys.executable, "-c", ELSEWHERE, *(tmp_path / name for name in ("encoder", "images.npz", "codes.npz"))]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu", **environment}, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "codes.npz") as found:
        assert found["devices"] == devices and bool(found["wide"]) is wide
        np.testing.assert_array_equal(found["together"], wavering.encode(images).packed)
        np.testing.assert_array_equal(found["one"], wavering.encode(images[3]).packed)


# How it works through them

def test_batches_are_large_then_small():
    views = [jax.numpy.zeros(1)] * (MANY + 2 * FEW + 1)
    assert [len(batch) for batch in in_batches(views, together=True)] == [MANY, FEW, FEW, 1]
    assert [len(batch) for batch in in_batches(views[:3], together=False)] == [1, 1, 1]
    assert list(in_batches([], together=True)) == []


def test_progress_is_told_of_every_batch(encoder):
    told = []
    encoder.encode(noise(MANY + 3, 32, 32), progress=lambda *what: told.append(what))
    assert told == [("encode images", MANY, MANY + 3), ("encode images", MANY + 3, MANY + 3)]
    told.clear()
    encoder.logits(iter(noise(MANY + 3, 32, 32)), progress=lambda *what: told.append(what))
    assert told == [("encode images", MANY, MANY), ("encode images", MANY + 3, MANY + 3)]


def test_a_canvas_is_compiled_once_however_many_sizes_it_serves(encoder):
    """200 images of 60 sizes: one program a canvas; and one model for MANY, for FEW and for one, as for a single size."""
    random = np.random.default_rng(1)
    sizes = random.integers(1, 130, (60, 2)).tolist()
    images = [noise(*sizes[number % 60], seed=number) for number in range(201)]
    few = noise(MANY + FEW + 1, 16, 16)
    jax.clear_caches()
    encoder.encode(few)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event == "/jax/core/compile/backend_compile_duration" else None)
    try:
        encoder.encode(images)
    finally:
        jax.monitoring.clear_event_listeners()
    from jax_brcd.views.fitting import canvas_shape

    canvases = {canvas_shape(*size) for size in sizes} - {canvas_shape(16, 16)}
    assert len(compiled) == len(canvases) > 2


# Where it is used

def test_it_is_exported_and_a_store_is_opened_for_it(encoder, tmp_path):
    from jax_brcd.export import Exportable, export

    assert isinstance(encoder, Exportable)
    weights, preprocessing = export(encoder, "torchvision", tmp_path / "export")
    assert weights.name == "resnet8.safetensors" and Preprocessing.from_dict(json.loads(preprocessing.read_text())) == USUAL
    written, kept = safetensors.numpy.load_file(weights), model_state(encoder.model)
    assert all(np.array_equal(written[name], kept[name]) for name in kept)
    images = noise(5, 32, 32)
    with_codes = open_store(tmp_path / "store", create_for=encoder)
    with_codes.add([f"{number}" for number in range(5)], encoder.encode(images))
    assert [found[0].distance for found in with_codes.search(encoder.encode(images), 1)] == [0] * 5
    with pytest.raises(InputError, match="space"):
        with_codes.add(["x"], PackedCodes.of(-np.ones((1, BITS)), "another"))


def test_codes_of_another_space_are_seen(encoder):
    codes = encoder.encode(noise(2, 32, 32))
    check_spaces(encoder, codes)
    other = HashEncoder(encoder.model, "resnet8", USUAL, BITS, "teacher", "teacher-2")
    with pytest.raises(InputError, match="teacher-1.*teacher-2|teacher-2.*teacher-1"):
        check_spaces(other, codes)


def test_a_users_backbone_is_not_exported_as_torchvisions(tmp_path, monkeypatch):
    from jax_brcd.export import export

    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES))
    BACKBONES.register("dropping")(Variant(Dropping, Preprocessing(16)))
    encoder = create_encoder(create_hash_model("dropping", 8), "dropping", Preprocessing(16), bits=8, role="student")
    with pytest.raises(InputError, match="dropping is no model of torchvision's"):
        export(encoder, "torchvision", tmp_path)
