"""A backbone family from outside the package: any NNX module from images to features, registered, trained, saved, loaded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from jax_brcd.models import (
    BACKBONES,
    LAYOUTS,
    HashModel,
    Preprocessing,
    Variant,
    create_backbone,
    create_hash_model,
    list_backbones,
    load_state,
    model_state,
)
from jax_brcd.models.weights import read_weights
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.models import build
from jax_brcd.views.encoding import encode
from jax_brcd.views.features import weights_digest

BITS, SIZE, WIDTH = 16, 32, 12


class Toy(nnx.Module):
    """Images (batch, height, width, 3) to features (batch, 12); nothing in it knows this package."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.filter = nnx.Conv(3, WIDTH, (4, 4), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images):
        return self.dropout(jnp.mean(nnx.relu(self.norm(self.filter(images))), axis=(1, 2)))


class Telling(nnx.Module):
    """A module that takes this package's keywords and shows in its features which it was given."""

    def __init__(self, *, dtype, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(1, dtype))

    def __call__(self, images, *, train=False, valid=None, key=None):
        told = jnp.array([train, valid is not None, key is not None], images.dtype)
        return jnp.tile(told, (len(images), 1)) * self.scale[...]


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """The registry with two toys in it, as it was before afterwards."""
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    BACKBONES.register("toy")(Variant(Toy, Preprocessing(SIZE)))
    BACKBONES.register("telling")(Variant(Telling, Preprocessing(SIZE)))


def random_images(count, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, SIZE, SIZE, 3)), jnp.float32)


def seeded(seed, name="toy"):
    return create_hash_model(name, BITS, rngs=nnx.Rngs(seed))


def test_a_toy_is_a_backbone_under_a_linear_head():
    model = seeded(0)
    assert (model.backbone.features, model.backbone.image_size, model.backbone.name) == (WIDTH, SIZE, "toy")
    features = model.backbone(random_images(5))
    assert features.shape == (5, WIDTH) and features.dtype == jnp.float32
    np.testing.assert_allclose(model(random_images(5)), features @ model.head.kernel[...] + model.head.bias[...], rtol=1e-5,
                               atol=1e-6)
    assert "toy" in list_backbones() and list_backbones("t?y") == ["toy"]


def test_its_state_goes_through_a_file_bit_for_bit(tmp_path):
    model = seeded(1)
    model(random_images(6), train=True)  # moves the running statistics
    state = model_state(model)
    assert list(state) == ["filter.bias", "filter.kernel", "norm.bias", "norm.mean", "norm.scale", "norm.var",
                           "hash_head.bias", "hash_head.kernel"]
    safetensors.numpy.save_file(state, tmp_path / "toy.safetensors")
    other = seeded(2)
    assert not np.array_equal(other(random_images(4)), model(random_images(4)))
    loaded = load_state(other, read_weights(tmp_path / "toy.safetensors"))
    assert loaded.head and loaded.remarks == ()
    for name, value in model_state(other).items():
        assert value.dtype == state[name].dtype
        np.testing.assert_array_equal(value, state[name], err_msg=name)
    np.testing.assert_array_equal(other(random_images(4)), model(random_images(4)))


def test_a_run_builds_it_from_its_file_head_included(tmp_path):
    safetensors.numpy.save_file(model_state(seeded(3)), tmp_path / "toy.safetensors")
    built = build("toy", BITS, tmp_path / "toy.safetensors", option="teacher_weights", seed=0, dtype="float32",
                  cache_dir=tmp_path)
    assert built.head_came
    np.testing.assert_array_equal(built.model(random_images(4)), seeded(3)(random_images(4)))


def test_half_precision_comes_back_bit_for_bit():
    class Half(nnx.Module):
        def __init__(self, *, rngs):
            self.scale = nnx.Param(jnp.linspace(0, 1, 7, dtype=jnp.bfloat16))

        def __call__(self, images):
            return jnp.zeros((len(images), 7)) + self.scale[...]

    BACKBONES.register("half")(Variant(Half, Preprocessing(SIZE)))
    state = model_state(create_backbone("half"))
    assert state["scale"].dtype == np.float32
    other = create_backbone("half")
    other.module.scale[...] = jnp.zeros(7, jnp.bfloat16)
    load_state(other, state)
    assert other.module.scale.dtype == jnp.bfloat16
    np.testing.assert_array_equal(other.module.scale[...], jnp.linspace(0, 1, 7, dtype=jnp.bfloat16))


def test_training_mode_moves_its_norm_and_a_key_drops():
    images, keys = random_images(6), jax.random.split(jax.random.key(0))
    model = seeded(0)
    before = np.asarray(model.backbone.module.norm.mean[...]).copy()
    evaluated = model.backbone(images)
    np.testing.assert_array_equal(model.backbone.module.norm.mean[...], before)
    trained = model.backbone(images, train=True)
    assert not np.array_equal(model.backbone.module.norm.mean[...], before) and not np.allclose(trained, evaluated)
    dropped, again, other = (model.backbone(images, train=True, key=key) for key in (keys[0], keys[0], keys[1]))
    np.testing.assert_array_equal(dropped, again)
    assert not np.array_equal(dropped, other)
    assert np.any(np.all(dropped[:, None] != 0, axis=1) != np.all(trained[:, None] != 0, axis=1))
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(np.asarray(dropped)[kept], 2 * np.asarray(trained)[kept], rtol=1e-5)
    # the mode of a call ends with it
    assert model.backbone.module.norm.use_running_average and model.backbone.module.dropout.deterministic


def test_a_module_is_given_the_keywords_that_it_names():
    model, images = create_backbone("telling"), random_images(2)
    np.testing.assert_array_equal(model(images)[0], [0, 0, 0])
    np.testing.assert_array_equal(model(images, train=True)[0], [1, 0, 0])
    np.testing.assert_array_equal(model(images, train=True, valid=jnp.ones(2, bool), key=jax.random.key(0))[0], [1, 1, 1])
    model.train()
    np.testing.assert_array_equal(model(images)[0], [1, 0, 0])
    np.testing.assert_array_equal(model(images, train=False)[0], [0, 0, 0])
    model.eval()
    np.testing.assert_array_equal(model(images)[0], [0, 0, 0])


def test_it_encodes_like_any_other():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 36, 3), dtype=np.uint8)
    logits = encode(seeded(0), pixels, size=SIZE, description="")
    assert logits.shape == (5, BITS)
    np.testing.assert_allclose(encode(seeded(0), pixels[3:4], size=SIZE, description=""), logits[3:4], atol=1e-5)
    assert weights_digest(seeded(0)) == weights_digest(seeded(0)) != weights_digest(seeded(1))


@pytest.mark.parametrize(("call", "message"), [
    (lambda images: images, r"to \(2, 32, 32, 3\); a backbone gives features \(batch, width\)"),
    (lambda images: jnp.mean(images, axis=(0, 1, 2))[None], r"to \(1, 3\); a backbone gives features"),
    (lambda images: (images[:, 0, 0], images), "to tuple; a backbone gives features"),
    (lambda images: images @ jnp.ones((7, 7)), r"does not take images \(batch, 32, 32, 3\)"),
], ids=["images", "one row", "a tuple", "other channels"])
def test_a_module_that_gives_no_features_is_refused(call, message):
    class Odd(nnx.Module):
        def __init__(self, *, rngs):
            pass

        def __call__(self, images):
            return call(images)

    BACKBONES.register("odd")(Variant(Odd, Preprocessing(SIZE)))
    with pytest.raises(InputError, match=message):
        create_backbone("odd")


def test_an_array_that_would_not_be_saved_is_refused():
    class Forgetful(Toy):
        def __init__(self, *, rngs):
            super().__init__(rngs=rngs)
            self.offset = nnx.data(jnp.ones(WIDTH))

    BACKBONES.register("forgetful")(Variant(Forgetful, Preprocessing(SIZE)))
    with pytest.raises(InputError, match="Forgetful.offset is an array that would not be saved; wrap it in nnx.Param"):
        create_backbone("forgetful")


def test_a_layout_can_come_from_outside_too(monkeypatch):
    monkeypatch.setattr(LAYOUTS, "_entries", dict(LAYOUTS._entries))
    plain = LAYOUTS["plain"]

    def load(model, state, *, any_head=False):
        return plain.load(model, {name.lower(): value for name, value in state.items()}, any_head=any_head)

    LAYOUTS.register("shouted")(plain._replace(load=load))
    shouted = {name.upper(): value for name, value in model_state(seeded(5)).items()}
    model = seeded(6)
    assert load_state(model, shouted, layout="shouted").head
    np.testing.assert_array_equal(model(random_images(2)), seeded(5)(random_images(2)))
    with pytest.raises(InputError, match="unknown layout of weights 'shout': did you mean 'shouted'"):
        load_state(model, shouted, layout="shout")


def test_preprocessing_goes_through_json_and_is_checked():
    whole = Preprocessing(48, 56, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert whole.to_dict() == {"size": 48, "resize": 56, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}
    assert Preprocessing.from_dict(whole.to_dict()) == whole and hash(whole) == hash(Preprocessing.from_dict(whole.to_dict()))
    for fields, message in (({"size": 0}, "size 0: not a number of pixels"), ({"resize": 32}, "needs size"),
                            ({"size": 32, "resize": 31}, "resize 31: a square of 32"),
                            ({"size": 32, "crop": 1}, "unknown field of a preprocessing 'crop'"),
                            ({"size": 32, "std": [1, 1, 0]}, "divided by it"), ({"size": 32, "mean": [1, 1]}, "three numbers"),
                            ({"size": 32, "interpolation": "lanczos"}, "unknown interpolation 'lanczos'")):
        with pytest.raises(InputError, match=message):
            Preprocessing.from_dict(fields)


def test_a_toy_may_teach_and_be_taught():
    """Both roles through the hash model that every stage takes: gradients reach its parameters and a head of its own."""
    teacher, student = seeded(0), seeded(1)
    images = random_images(8)
    codes = jnp.sign(teacher(images))

    @nnx.jit
    def step(model, images):
        def loss(model):
            return jnp.mean((jnp.tanh(model(images, train=True)) - codes) ** 2)

        value, gradient = nnx.value_and_grad(loss)(model)
        nnx.update(model, jax.tree.map(lambda parameter, slope: parameter - 0.3 * slope, nnx.state(model, nnx.Param), gradient))
        return value

    losses = [float(step(student, images)) for _ in range(40)]
    assert isinstance(student, HashModel) and losses[-1] < 0.5 * losses[0]
