"""HashEncoder: the codes it gives, whatever the images come beside, and how it works through them."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from encoders import BITS, USUAL, Dropping, noise, random_encoder, same
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_runs import of_devices

from jax_brcd.encoder import HashEncoder, create_encoder
from jax_brcd.models import create_hash_model, model_state
from jax_brcd.models.placed import DOUBT, FEW, MANY, Placed, in_batches
from jax_brcd.models.variants import BACKBONES, Preprocessing, Variant
from jax_brcd.retrieval import PackedCodes, check_spaces
from jax_brcd.runtime.errors import InputError
from jax_brcd.search import open_store
from jax_brcd.views.fitting import canvas_shape


@pytest.fixture(scope="module")
def encoder():
    return random_encoder()


@pytest.fixture(scope="module")
def wavering():
    """An encoder with many logits so near 0 that the number of images encoded at once would decide their bits."""
    return random_encoder(64, shrink=0.0)


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
    (of_devices(4), 4, False), ({"JAX_ENABLE_X64": "1"}, 1, True)])
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

    def listener(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        encoder.encode(images)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    canvases = {canvas_shape(*size) for size in sizes} - {canvas_shape(16, 16)}
    assert len(compiled) == len(canvases) > 2


# Where it is used

def test_it_is_exported_and_a_store_is_opened_for_it(encoder, tmp_path):
    from jax_brcd.export import export

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
