"""The teacher's hashing objectives: JAX against torch_ref, and what each objective means.

Values and gradients agree to 1e-5 of the largest entry plus 1e-6: float32 rounding of sums over up to 40 x 40 pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import job
from sklearn.datasets import load_digits

from jax_brcd import distill
from jax_brcd.models import create_hash_model
from jax_brcd.models.kept import head_codes
from jax_brcd.retrieval import mean_average_precision
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.teacher import check_objective, solve_head, teacher_stage
from jax_brcd.teachers.objectives import OBJECTIVES, ClosedFormObjective, HashingBatch, create_objective, head_of
from jax_brcd.teachers.objectives.bihalf import bihalf_codes
from jax_brcd.teachers.objectives.itq import iterative_quantisation, random_rotation
from jax_brcd.training.loop import start, train_epoch
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.sources import KeptFeatures, PixelViews
from torch_ref import objectives as reference
from torch_ref.losses import cibhash_loss

SHAPES = [(2, 8, 5), (7, 16, 12), (20, 32, 24)]  # rows of a view, bits, features
LEARNT = [name for name, kind in OBJECTIVES.items() if not issubclass(kind, ClosedFormObjective)]
IN_TORCH = {"cibhash": lambda features, logits: cibhash_loss(*logits.chunk(2)),
            "bihalf": reference.bihalf_loss, "greedyhash": reference.greedyhash_loss,
            # in float64: of two rows PyTorch's float32 gradient of the log-determinant is off by 1e-4 of itself
            "crovca": lambda features, logits: reference.crovca_loss(logits.double())}


def random_batch(shape, seed, scale=1.0, ties=False):
    """Features and logits of two views, one below the other; a third of the logits are zero under `ties`."""
    rows, bits, features = shape
    draw = np.random.default_rng(seed)
    logits = (scale * draw.normal(size=(2 * rows, bits))).astype(np.float32)
    if ties:
        logits[draw.random(logits.shape) < 1 / 3] = 0.0
    return draw.normal(1.0, 1.0, size=(2 * rows, features)).astype(np.float32), logits


def loss_in_jax(name, features, logits, valid=None, **own):
    """The objective's loss; rows of both views stand one below the other."""
    rows = len(logits) // 2
    valid = jnp.ones(rows, bool) if valid is None else valid
    batch = HashingBatch(valid, features[:rows], features[rows:], logits[:rows], logits[rows:])
    return create_objective(name, **own).loss(batch, temperature=0.3, kl_weight=0.001)[0]


compiled = {name: jax.jit(jax.value_and_grad(lambda logits, features, valid, name=name: loss_in_jax(
    name, features, logits, valid))) for name in LEARNT}


@pytest.mark.parametrize("name", LEARNT)
@settings(max_examples=12, deadline=None)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 5.0]),
       ties=st.booleans())
def test_losses_and_gradients_are_torch_refs(name, shape, seed, scale, ties):
    features, logits = random_batch(shape, seed, scale, ties)
    value, gradient = compiled[name](logits, features, jnp.ones(shape[0], bool))
    theirs = torch.tensor(logits, requires_grad=True)
    expected = IN_TORCH[name](torch.tensor(features), theirs)
    expected.backward()
    for ours, other in ((value, expected.detach()), (gradient, theirs.grad)):
        other = np.asarray(other)
        np.testing.assert_allclose(ours, other, rtol=0, atol=1e-5 * np.abs(other).max() + 1e-6)


@pytest.mark.parametrize("name", LEARNT)
def test_padding_changes_no_loss_and_gets_no_gradient(name):
    features, logits = random_batch((20, 32, 24), seed=0)
    few = np.r_[0:7, 20:27]
    value, gradient = compiled[name](logits, features, jnp.arange(20) < 7)
    expected, expected_gradient = jax.value_and_grad(loss_in_jax, argnums=2)(name, features[few], logits[few])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[few], expected_gradient, atol=1e-6)
    np.testing.assert_array_equal(np.delete(gradient, few, axis=0), 0)


@pytest.mark.parametrize("rows", [10, 7])
def test_bihalf_codes_are_balanced_in_each_bit(rows):
    """Of 10 rows 5 are +1 and of 7 three; they are those of the largest logits, and padding belongs to neither half."""
    _, logits = random_batch((5, 16, 4), seed=1)
    codes = np.asarray(bihalf_codes(logits, np.arange(10) < rows, 6.0))
    np.testing.assert_array_equal((codes == 1).sum(axis=0), rows // 2)
    np.testing.assert_array_equal((codes == -1).sum(axis=0), rows - rows // 2)
    np.testing.assert_array_equal(codes[rows:], 0)
    lowest = np.where(codes == 1, logits, np.inf).min(axis=0)
    assert (lowest > np.where(codes == -1, logits, -np.inf).max(axis=0)).all()


def test_bihalf_draws_logits_to_their_codes():
    """The gradient is the code's own plus gamma (u - b) / (N K)."""
    _, logits = random_batch((5, 16, 4), seed=2)
    valid = np.ones(10, bool)
    gradient = jax.grad(lambda u: jnp.sum(bihalf_codes(u, valid, 6.0) * 3.0))(logits)
    np.testing.assert_allclose(gradient, 3.0 + 6.0 * (logits - bihalf_codes(logits, valid, 6.0)) / logits.size, rtol=1e-5)


def test_similarity_losses_vanish_where_codes_are_as_similar_as_features():
    codes = np.sign(random_batch((5, 16, 4), seed=3)[1])
    for own in ({"greedyhash_penalty": 0.0}, {"greedyhash_penalty": 0.1}):  # logits of -1 and 1 have no penalty
        np.testing.assert_allclose(loss_in_jax("greedyhash", codes * 2.0, codes, **own), 0.0, atol=1e-10)
    assert loss_in_jax("greedyhash", codes, 3 * codes) == pytest.approx(0.1 * 2**3, rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(60, 8), (200, 16)]))
def test_itqs_rotation_is_orthogonal_never_gets_worse_and_is_torch_refs(seed, shape):
    """float64 in both frameworks; after ten iterations no sign has flipped by rounding, so 1e-8 is far above its sum."""
    projected = np.random.default_rng(seed).normal(size=shape) * np.linspace(2.0, 0.2, shape[1])
    rotation, errors = iterative_quantisation(projected, random_rotation(shape[1], seed), 10)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(shape[1]), atol=1e-10)
    assert len(errors) == 11 and (np.diff(errors) <= 1e-10).all() and errors[-1] < errors[0]
    theirs = reference.iterative_quantisation(
        torch.tensor(projected), torch.tensor(random_rotation(shape[1], seed)), 10)
    np.testing.assert_allclose(rotation, theirs, atol=1e-8)


@pytest.fixture(scope="module")
def digits():
    """8 x 8 pixels as features, in two halves: training images that are searched, and queries."""
    pixels, target = load_digits(return_X_y=True)
    labels = np.eye(10, dtype=np.uint8)[target]
    return pixels.astype(np.float32), labels


def score(codes, labels):
    return mean_average_precision(codes[:400], codes[400:], labels[:400], labels[400:], 100)


def test_itqs_head_is_torch_refs_and_searches_better_than_random_projections(digits):
    """Heads agree to 1e-4 of the largest weight, float32 after float64. Random projections: the best of five."""
    pixels, labels = digits
    kernel, bias, _ = create_objective("itq").solve(pixels[400:], 16, seed=0)
    weight, their_bias = reference.itq_head(torch.tensor(pixels[400:]), 16, seed=0)
    np.testing.assert_allclose(kernel, weight.T, atol=1e-4 * np.abs(kernel).max())
    np.testing.assert_allclose(bias, their_bias, atol=1e-4 * np.abs(bias).max())
    ours = score(np.sign(pixels @ kernel + bias).astype(np.float32), labels)
    centred = pixels - pixels[400:].mean(axis=0)
    projections = [np.random.default_rng(seed).normal(size=(64, 16)) for seed in range(5)]
    assert ours > max(score(np.sign(centred @ each).astype(np.float32), labels) for each in projections) + 0.02


@pytest.fixture(scope="module")
def teacher_features(digits):
    """A teacher whose 64 features are the digits' centred pixels, and noisy views of them.

    Centred, because GreedyHash has nothing that balances bits: features that are all alike give codes that are all alike.
    """
    pixels = digits[0] / 16
    pixels = pixels - pixels.mean(axis=0)
    noise = 0.1 * np.random.default_rng(0).normal(size=(4, *pixels[400:].shape))
    return pixels, (pixels[400:] + noise).astype(np.float32)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_a_teacher_that_searches_well(digits, teacher_features, name):
    """Each objective gains at least 0.05 of mAP@100 on the untrained head's random projections, at 16 bits."""
    pixels, views = teacher_features
    objective = create_objective(name)
    model = create_hash_model("resnet8", 16, rngs=nnx.Rngs(0), form=head_of(objective))
    before = score(head_codes(model, pixels), digits[1])
    if isinstance(objective, ClosedFormObjective):
        history = solve_head(model, objective, pixels[400:], seed=0)
        assert history[-1]["quantisation_error"] < history[0]["quantisation_error"]
    else:
        stage, parameters, carry = teacher_stage(
            model, objective=objective, learning_rate=5e-3, temperature=0.3, kl_weight=0.001,
            **job(KeptFeatures(jnp.asarray(views)), n_images=len(views[0]), batch_size=64, epochs=12, seed=0, kept_views=4))
        state = start(stage, parameters, carry)
        for epoch in range(stage.schedule.epochs):
            batches = epoch_batches(stage.source.n_images, stage.schedule.batch_size, epoch=epoch, seed=0, views=4)
            state, metrics = train_epoch(stage.task.loss, stage.task.optimizer, state, stage.task.constants, batches,
                                         jax.random.key(0))
        assert np.isfinite(metrics["loss"]).all()
        nnx.update(model, state.parameters, state.carry)
    after = score(head_codes(model, pixels), digits[1])
    print(f"{name}: mAP@100 {before:.3f} -> {after:.3f}")
    assert after > before + 0.05


def test_live_and_kept_views_give_features_whose_head_gives_the_logits():
    model = create_hash_model("resnet8", 8)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    live = PixelViews(jnp.asarray(images), jax.random.key(0), ViewConfig(size=32), False)
    kept = KeptFeatures(jnp.ones((2, 3, 64)))
    for source in (live, kept):
        arguments = model, jnp.array([2, 0]), jnp.array([1, 0]), jnp.ones(2, bool)
        outputs = source.outputs(*arguments)
        assert outputs.features.shape == (2, 64)
        np.testing.assert_allclose(model.head(outputs.features), outputs.logits, atol=1e-6)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--teacher-objective", "bihaf"], "unknown teacher objective 'bihaf': did you mean 'bihalf'?"),
    (["--bihalf-gamma", "3"], "--bihalf-gamma: not a setting of teacher objective 'cibhash'; its own are: none"),
    (["--teacher-objective", "itq", "--itq-iterations", "-1"], "--itq-iterations -1: too small"),
    (["--teacher-objective", "itq", "--bits", "129"], "--bits 129: --teacher-objective itq has one principal component a bit"),
])
def test_an_objective_that_cannot_be_is_refused_before_anything_is_written(capsys, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run_command(distill.main, [*arguments, "--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "run").exists()


def test_itq_asks_for_a_linear_head():
    model = create_hash_model("resnet8", 8)
    model.head = nnx.Sequential(model.head, nnx.Linear(8, 8, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match="itq: it solves a linear hash head, and resnet8's has more layers"):
        check_objective(model, create_objective("itq"), bits=8, images=100, name="itq")


def test_the_configuration_carries_the_objectives_own_settings():
    config = create_config(teacher_objective="bihalf", bihalf_gamma=2.0)
    assert config.hashing.bihalf_gamma == 2.0
    assert config.compared()["bihalf_gamma"] == 2.0 and config.compared()["teacher_objective"] == "bihalf"
    assert "bihalf_gamma" not in create_config().flat()
