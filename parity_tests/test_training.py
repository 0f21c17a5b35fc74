"""The loop around the losses: batches, early stopping, checkpoints, and both ways of running an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jobs import toy_stage

from jax_brcd.runtime.errors import TrainingDiverged
from jax_brcd.training import loop as training
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import fit, start, stepped_epoch, train_epoch
from jax_brcd.training.stopping import EarlyStopping
from jax_brcd.views.batches import epoch_batches


def test_an_epoch_shows_every_image_once():
    batches = epoch_batches(10, 4, epoch=0, seed=0, views=3)
    assert batches.indices.shape == (3, 4)
    assert sorted(batches.indices[batches.valid]) == list(range(10))
    np.testing.assert_array_equal(batches.valid.sum(axis=1), [4, 4, 2])


def test_kept_views_come_in_distinct_pairs_and_all_of_them_come():
    batches = epoch_batches(500, 50, epoch=0, seed=0, views=3)
    assert (batches.views_i != batches.views_j).all()
    assert {(int(i), int(j)) for i, j in zip(batches.views_i.ravel(), batches.views_j.ravel(), strict=True)} == {
        (i, j) for i in range(3) for j in range(3) if i != j}


def test_fresh_views_are_numbered_on_from_epoch_to_epoch():
    numbers = [epoch_batches(4, 4, epoch=epoch, seed=0, views=None) for epoch in range(3)]
    assert [(int(part.views_i[0, 0]), int(part.views_j[0, 0])) for part in numbers] == [(0, 1), (2, 3), (4, 5)]


def test_batches_depend_on_seed_and_epoch_alone():
    first, again, later, other = (epoch_batches(50, 10, epoch=epoch, seed=seed, views=2)
                                  for epoch, seed in ((0, 0), (0, 0), (1, 0), (0, 1)))
    np.testing.assert_array_equal(first.indices, again.indices)
    assert (first.indices != later.indices).any() and (first.indices != other.indices).any()


def test_a_run_stops_after_more_than_five_validations_without_a_gain_on_either_search():
    stopping, gains = EarlyStopping().update({"symmetric": 0.3, "asymmetric": 0.2})
    assert gains == {"symmetric", "asymmetric"}
    stopping, gains = stopping.update({"symmetric": 0.2, "asymmetric": 0.25})
    assert gains == {"asymmetric"} and stopping.best == {"symmetric": 0.3, "asymmetric": 0.25}
    for _ in range(5):
        stopping, gains = stopping.update({"symmetric": 0.3, "asymmetric": 0.25})
        assert not gains and not stopping.finished(200, patience=5, min_epochs=0)
    stopping, _ = stopping.update({"symmetric": 0.1, "asymmetric": 0.1})
    assert stopping.finished(200, patience=5, min_epochs=0)
    assert not stopping.finished(70, patience=5, min_epochs=80) and not stopping.finished(200, patience=None, min_epochs=0)


def quadratic(parameters, carry, constants, batch, key):
    """Pulls `x` to the mean of the targets of a batch; counts the steps."""
    errors = jnp.where(batch.valid, (parameters["x"] - constants["targets"][batch.indices]) ** 2, 0.0)
    loss = jnp.sum(errors) / jnp.sum(batch.valid) * constants["scale"]
    return loss, (carry + 1, {"distance": jnp.abs(parameters["x"] - 3.0)})


def stage(**settings):
    constants = {"targets": jnp.full(10, 3.0), "scale": jnp.ones(())}
    return toy_stage(**{"name": "toy", "loss": quadratic, "optimizer": optax.sgd(0.05), "constants": constants, "n_images": 10,
                    "batch_size": 4, "epochs": 6, "seed": 0, "kept_views": 2, "checkpoint_seconds": 0.0, **settings})


def first_state(toy):
    return start(toy, {"x": jnp.zeros(())}, jnp.zeros((), jnp.int32))


def test_a_scanned_epoch_and_a_stepped_one_are_the_same():
    toy = stage()
    batches = epoch_batches(10, 4, epoch=0, seed=0, views=2)
    results = [run(toy.task.loss, toy.task.optimizer, first_state(toy), toy.task.constants, batches, jax.random.key(0))
               for run in (train_epoch, stepped_epoch)]
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert results[0][1]["loss"].shape == (3,) and int(results[0][0].carry) == 3


def test_nothing_compiles_again_after_the_first_epoch(tmp_path):
    """The last batch of ten images in fours is partial; it is padded, so one program serves all."""
    def counted(*arguments):  # a loss of its own, so that no other test has compiled it
        return quadratic(*arguments)

    before = train_epoch._cache_size()
    fit(stage(loss=counted), first_state(stage()), Checkpoints(tmp_path))
    assert train_epoch._cache_size() == before + 1


def test_training_reaches_the_target_and_records_every_epoch(tmp_path):
    fitted = fit(stage(epochs=30, checkpoint_seconds=1e9), first_state(stage()), Checkpoints(tmp_path))
    assert float(fitted.state.parameters["x"]) == pytest.approx(3.0, abs=1e-2)
    assert [record["epoch"] for record in fitted.history] == list(range(1, 31))
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]


def test_an_interrupted_stage_goes_on_to_the_same_end(tmp_path, monkeypatch):
    whole = fit(stage(), first_state(stage()), Checkpoints(tmp_path / "whole"))
    original, calls = training._run_epoch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training, "_run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(stage(), first_state(stage()), Checkpoints(tmp_path / "cut"))
    resumed = fit(stage(), first_state(stage()), Checkpoints(tmp_path / "cut"))
    assert len(calls) == 4 + 3  # three epochs were kept
    np.testing.assert_array_equal(resumed.state.parameters["x"], whole.state.parameters["x"])
    assert [record["loss"] for record in resumed.history] == [record["loss"] for record in whole.history]


def test_a_finished_stage_is_not_trained_again(tmp_path, monkeypatch):
    finished = fit(stage(), first_state(stage()), Checkpoints(tmp_path))
    monkeypatch.setattr(training, "_run_epoch", None)
    again = fit(stage(), first_state(stage()), Checkpoints(tmp_path))
    np.testing.assert_array_equal(again.state.parameters["x"], finished.state.parameters["x"])


def test_the_best_state_of_each_search_is_kept_apart(tmp_path):
    scores = iter([(0.1, 0.5), (0.4, 0.2), (0.3, 0.3), (0.2, 0.1)])

    def validate(state):
        seen.append(float(state.parameters["x"]))
        return dict(zip(("symmetric", "asymmetric"), next(scores), strict=True))

    seen = []
    fitted = fit(stage(epochs=4, validate=validate, patience=9,
                       searches=("symmetric", "asymmetric")), first_state(stage()), Checkpoints(tmp_path))
    assert float(fitted.best["symmetric"].parameters["x"]) == pytest.approx(seen[1])
    assert float(fitted.best["asymmetric"].parameters["x"]) == pytest.approx(seen[0])


def test_a_loss_that_turns_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    fit(stage(epochs=2), first_state(stage()), Checkpoints(tmp_path / "good"))
    broken = stage(constants={"targets": jnp.full(10, 3.0), "scale": jnp.full((), jnp.nan)})
    with pytest.raises(TrainingDiverged, match="toy: the loss is nan at step 1 of epoch 1; "):
        fit(broken, first_state(broken), Checkpoints(tmp_path / "broken"))
    arrays, progress = Checkpoints(tmp_path / "good").restore({"state": first_state(stage()), "best": {}})
    assert progress["epoch"] == 2 and np.isfinite(arrays["state"].parameters["x"])


def test_checkpoints_lie_where_a_user_writes_they_do_and_are_numbered_by_saves(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoints = Checkpoints("~/stage")
    for number in range(3):
        checkpoints.save({"x": jnp.float32(number)}, {"epoch": 10 - number})
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["3"]  # the newest, whatever its progress says
    arrays, progress = Checkpoints(str(tmp_path / "stage")).restore({"x": jnp.float32(0)})
    assert float(arrays["x"]) == 2.0 and progress == {"epoch": 8}
