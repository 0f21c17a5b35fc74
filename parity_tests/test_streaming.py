"""Images that travel with each step, and checkpoints inside an epoch: the numbers of a run that has all and is undisturbed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jobs import toy_stage, with_settings

from jax_brcd.models import create_hash_model
from jax_brcd.runtime.errors import TrainingDiverged
from jax_brcd.training import loop as training
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import fit, start
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.sources import PixelViews
from jax_brcd.views.streaming import STEPS_AHEAD, StepImages, Stream, with_images

IMAGES, BATCH, STEPS = 11, 4, 3


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 6, 5, 3), dtype=np.uint8)


def brightness(parameters, carry, constants, batch, key):
    """Pulls `x` to the brightness of a batch's images; counts the steps."""
    seen = jnp.mean(constants["images"][batch.indices] / 255.0, axis=(1, 2, 3))
    errors = jnp.where(batch.valid, (parameters["x"] - constants["scale"] * seen) ** 2, 0.0)
    return jnp.sum(errors) / jnp.sum(batch.valid), (carry + 1, {"mean": jnp.mean(seen)})


def stage(images, *, streamed: bool, scale=1.0, **settings):
    held, stream = (StepImages(), Stream(images)) if streamed else (jnp.asarray(images), None)
    return toy_stage(**{"name": "toy", "loss": brightness, "optimizer": optax.adam(0.05), "n_images": IMAGES,
                        "batch_size": BATCH,
                    "constants": {"images": held, "scale": jnp.float32(scale)}, "epochs": 4, "seed": 0, "kept_views": None,
                    "scan": False, "stream": stream, "checkpoint_seconds": 0.0, **settings})


def run(toy, directory):
    return fit(toy, start(toy, {"x": jnp.zeros(())}, jnp.zeros((), jnp.int32)), Checkpoints(directory))


def numbers(fitted):
    """All that training leaves but how long it took."""
    return (jax.tree.map(np.asarray, fitted.state), [record | {"seconds": 0} for record in fitted.history])


def test_each_step_gets_the_images_of_its_batch(images):
    batches = epoch_batches(IMAGES, BATCH, epoch=0, seed=0, views=None)
    for first in (0, 2):
        steps = list(Stream(images).steps(batches, first))
        assert len(steps) == STEPS - first
        for step, indices, valid in zip(steps, batches.indices[first:], batches.valid[first:], strict=True):
            shuffled = np.roll(indices[valid], 1)
            np.testing.assert_array_equal(step[jnp.asarray(shuffled)], images[shuffled])


def test_only_the_places_held_for_images_are_filled():
    constants = {"views": [StepImages()], "weights": jnp.ones(2)}
    step = StepImages(jnp.zeros((1, 2, 2, 3), jnp.uint8), jnp.zeros(1, jnp.int32))
    filled = with_images(constants, step)
    assert filled["views"][0] is step and filled["weights"] is constants["weights"]


def test_few_steps_are_read_ahead(images):
    reads = []

    class Counted(np.ndarray):
        def __getitem__(self, indices):
            reads.append(indices)
            return np.asarray(self)[indices]

    batches = epoch_batches(10_000, 4, epoch=0, seed=0, views=None)
    many = np.broadcast_to(images[:1], (10_000, *images.shape[1:])).view(Counted)
    steps = Stream(many).steps(batches, 0)
    for _ in range(5):
        next(steps)
    steps.close()
    assert 5 <= len(reads) <= 5 + 3 * STEPS_AHEAD  # taken, ready, and in the hands of the threads


@pytest.mark.parametrize("streamed", [False, True])
def test_streamed_and_resident_images_train_alike(images, tmp_path, streamed):
    whole = numbers(run(stage(images, streamed=False, scan=True, checkpoint_seconds=1e9), tmp_path / "whole"))
    other = numbers(run(stage(images, streamed=streamed, checkpoint_seconds=1e9), tmp_path / "other"))
    (state, history), (expected_state, expected_history) = other, whole
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), state, expected_state)  # of float32
    for record, expected in zip(history, expected_history, strict=True):
        assert {name: value for name, value in record.items() if name != "stage"} == pytest.approx(
            {name: value for name, value in expected.items() if name != "stage"}, rel=1e-6)


def test_views_of_streamed_images_are_the_same_pixels(images):
    model = create_hash_model("resnet8", 8)
    views = PixelViews(jnp.asarray(images), jax.random.key(3), ViewConfig(size=8), False)
    indices, numbers, valid = jnp.array([7, 2, 0]), jnp.array([1, 0, 4]), jnp.array([True, True, False])
    step = StepImages(jnp.asarray(images[[7, 2, 0]]), indices)
    streamed = dataclasses.replace(views, images=step)
    ours, theirs = (source.outputs(model, indices, numbers, valid).logits for source in (streamed, views))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("steps_done", "streamed"), [(1, True), (4, False), (5, True)])
def test_a_stage_cut_after_any_step_goes_on_with_the_next(images, tmp_path, monkeypatch, streamed, steps_done):
    toy = stage(images, streamed=streamed, epochs=2, validate=lambda state: {"symmetric": 0.5, "asymmetric": 0.5}, patience=9,
                searches=("symmetric", "asymmetric"))
    whole = numbers(run(with_settings(toy, checkpoint_seconds=1e9), tmp_path / "whole"))
    original, calls = training._compiled_step, []

    def cut(*arguments):
        if len(calls) == steps_done:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(training, "_compiled_step", cut)
    with pytest.raises(KeyboardInterrupt):
        run(toy, tmp_path / "cut")
    steps_done = None  # the second time it is not cut
    resumed = numbers(run(toy, tmp_path / "cut"))
    assert len(calls) == toy.schedule.epochs * STEPS  # no step was run twice
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_checkpoints_inside_an_epoch_wait_for_their_time(images, tmp_path, monkeypatch):
    saved = []
    original = Checkpoints.save

    def counted(self, arrays, progress):
        saved.append(progress["epoch"] * STEPS + progress.get("begun", {"step": 0})["step"])
        original(self, arrays, progress)

    monkeypatch.setattr(Checkpoints, "save", counted)
    run(stage(images, streamed=True, epochs=2, checkpoint_seconds=1e9), tmp_path / "seldom")
    assert saved == [2 * STEPS]
    run(stage(images, streamed=True, epochs=2), tmp_path / "always")
    assert saved[1:] == list(range(1, 2 * STEPS + 1))


def test_a_loss_that_is_not_finite_is_not_saved_inside_an_epoch(images, tmp_path):
    with pytest.raises(TrainingDiverged, match="toy: the loss is nan at step 1 of epoch 1"):
        run(stage(images, streamed=True, scale=np.nan), tmp_path)
    assert Checkpoints(tmp_path).restore({"state": None, "best": {}}) is None
