"""A stage that goes on in other circumstances: run in another way, for more epochs, or at another rate after it diverged."""

import functools
import itertools
import shutil
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jobs import toy_stage, with_settings

from jax_brcd.runtime.errors import TrainingDiverged
from jax_brcd.stages.context import described
from jax_brcd.training import loop as training
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import fit, start
from jax_brcd.views.streaming import StepImages, Stream

IMAGES, BATCH, STEPS, EPOCHS = 11, 4, 3, 4
WAYS = {"scanned": {"scan": True}, "stepped": {"scan": False}, "streamed": {"scan": False, "streamed": True}}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 6, 5, 3), dtype=np.uint8)


def noisy_brightness(parameters, carry, constants, batch, key):
    """Pulls `x` to the brightness of a batch's images and some noise, which tells steps of other keys apart; counts steps."""
    seen = jnp.mean(constants["images"][batch.indices] / 255.0, axis=(1, 2, 3)) + 0.1 * jax.random.normal(key)
    errors = jnp.where(batch.valid, (parameters["x"] - constants["scale"] * seen) ** 2, 0.0)
    return jnp.sum(errors) / jnp.sum(batch.valid), (carry + 1, {"mean": jnp.mean(seen)})


adam = functools.cache(optax.adam)  # stages of one optimizer share their programs


def stage(images, *, streamed=False, rate=0.05, scale=1.0, **settings):
    held, stream = (StepImages(), Stream(images)) if streamed else (jnp.asarray(images), None)
    return toy_stage(**{"name": "toy", "loss": noisy_brightness, "optimizer": adam(rate), "n_images": IMAGES,
                        "batch_size": BATCH, "constants": {"images": held, "scale": jnp.float32(scale)}, "epochs": EPOCHS,
                        "seed": 0, "kept_views": None, "stream": stream, "checkpoint_seconds": 0.0, **settings})


def run(toy, directory, **told):
    checkpoints = Checkpoints(directory)
    try:
        return fit(toy, start(toy, {"x": jnp.zeros(())}, jnp.zeros((), jnp.int32)), checkpoints, **told)
    finally:
        checkpoints.close()


def cut(monkeypatch, toy, directory, *, steps: int):
    """Runs a stage until so many steps are done and on disk; where an epoch is one program, to the last epoch's end before."""
    done = []
    with monkeypatch.context() as patched:
        step, epoch = training._compiled_step, training._run_epoch

        def stopped(count, original, *arguments):
            if sum(done) + count > steps:
                raise KeyboardInterrupt
            done.append(count)
            return original(*arguments)

        if toy.scanned:
            patched.setattr(training, "_run_epoch", functools.partial(stopped, STEPS, epoch))
        else:
            patched.setattr(training, "_compiled_step", functools.partial(stopped, 1, step))
        with pytest.raises(KeyboardInterrupt):
            run(toy, directory)


def numbers(directory):
    """Of the checkpoints that are there."""
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def assert_same(fitted, expected):
    """To 1e-6: one program's float32 sums, and those of several."""
    assert int(fitted.state.carry) == int(expected.state.carry)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), fitted.state, expected.state)
    assert len(fitted.history) == len(expected.history)
    for ours, theirs in zip(fitted.history, expected.history, strict=True):
        assert set(ours) == set(theirs) and ours["stage"] == theirs["stage"]
        assert [ours[name] for name in ("epoch", "loss", "mean")] == pytest.approx(
            [theirs[name] for name in ("epoch", "loss", "mean")], rel=1e-6)


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    return run(stage(images), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in WAYS for b in WAYS if a != b])
@pytest.mark.parametrize("steps", [1, STEPS + 2, 2 * STEPS])
def test_a_stage_cut_in_one_way_of_running_it_goes_on_in_another(
    images, undisturbed, tmp_path, monkeypatch, first, second, steps
):
    """The rest of the epoch, then the next: twelve steps in all, with the same batches and keys."""
    cut(monkeypatch, stage(images, **WAYS[first]), tmp_path, steps=steps)
    fitted = run(stage(images, **WAYS[second]), tmp_path)
    assert int(fitted.state.carry) == EPOCHS * STEPS
    assert_same(fitted, undisturbed)


def test_an_epochs_seconds_are_all_that_it_took_also_where_it_was_cut(images, tmp_path, monkeypatch):
    """By a clock that moves whenever it is looked at, here once a step."""
    def begin_to_tick():
        clock = itertools.count()
        monkeypatch.setattr(training, "time", types.SimpleNamespace(perf_counter=lambda: float(next(clock)), monotonic=time.monotonic))

    begin_to_tick()
    cut(monkeypatch, stage(images, scan=False), tmp_path, steps=STEPS - 1)
    begin_to_tick()
    assert run(stage(images, scan=False), tmp_path).history[0]["seconds"] == STEPS


def test_checkpoints_inside_an_epoch_compile_nothing(images, tmp_path):
    """When one is due is a matter of the clock, and a second run is to find every program that the first one left."""
    seen, listening = [], True
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: seen.append(event) if listening and event.endswith("backend_compile_duration") else None)
    run(stage(images, scan=False, checkpoint_seconds=1e9), tmp_path / "seldom")
    jax.clear_caches()
    seen.clear()
    run(stage(images, scan=False, checkpoint_seconds=1e9), tmp_path / "seldom again")
    seldom, _ = len(seen), seen.clear()
    jax.clear_caches()
    run(stage(images, scan=False), tmp_path / "always")
    listening = False
    assert len(seen) == seldom > 0


def test_a_stage_changes_its_way_again_and_again(images, undisturbed, tmp_path, monkeypatch):
    """Each save is the newest one, whatever the save before it counted."""
    for steps, way in ((2, "stepped"), (2 * STEPS, "scanned"), (1, "streamed"), (STEPS, "scanned"), (1, "stepped")):
        cut(monkeypatch, stage(images, **WAYS[way]), tmp_path, steps=steps)
    assert_same(run(stage(images), tmp_path), undisturbed)


@pytest.mark.parametrize("way", ["scanned", "stepped"])
def test_checkpoints_of_an_older_numbering_are_gone_on_with(images, undisturbed, tmp_path, monkeypatch, way):
    """They were numbered by epochs or by steps, higher than saves are counted now, and carried whether they were finished."""
    save, directory = Checkpoints.save, tmp_path / "older"
    with monkeypatch.context() as older:
        older.setattr(Checkpoints, "save", lambda self, arrays, progress: save(self, arrays, {**progress, "finished": False}))
        cut(monkeypatch, stage(images, **WAYS[way]), directory, steps=STEPS)
    newest = numbers(directory)[-1]
    (directory / str(newest)).rename(directory / str(7 * newest))
    assert numbers(directory) == [7 * newest]
    for other in WAYS.keys() - {way}:
        shutil.copytree(directory, tmp_path / other)
        assert_same(run(stage(images, **WAYS[other]), tmp_path / other), undisturbed)
        assert numbers(tmp_path / other)[-1] > 7 * newest


def test_more_epochs_of_a_finished_stage_go_on_from_its_last_state(images, undisturbed, tmp_path):
    first = run(stage(images, epochs=1), tmp_path)
    assert int(first.state.carry) == STEPS
    told = []
    assert_same(run(stage(images), tmp_path, on_epoch=told.append), undisturbed)
    assert [record["epoch"] for record in told] == [2, 3, 4]  # the first was not run again


def test_where_a_stage_goes_on_is_told_with_its_best_validation(images, tmp_path):
    scores = iter((0.25, 0.5, 0.375, 0.75))
    validated = functools.partial(stage, images, validate=lambda state: {"symmetric": next(scores)}, searches=("symmetric",))
    told = []
    run(validated(epochs=3), tmp_path, on_restored=told.append)
    assert told == []
    run(validated(epochs=4), tmp_path, on_restored=told.append)
    assert told == [training.Standing(3, 0, {"symmetric": (0.5, 2)})]
    assert described(told[0]) == "after 3 epochs; best validation so far: symmetric mAP 0.5000 (epoch 2)"


def test_where_a_stage_goes_on_inside_an_epoch_is_told(images, tmp_path, monkeypatch):
    cut(monkeypatch, stage(images, scan=False), tmp_path, steps=STEPS + 2)
    told = []
    run(stage(images, scan=False), tmp_path, on_restored=told.append)
    assert [described(standing) for standing in told] == ["after 1 epochs and 2 steps"]


def test_a_finished_stage_given_fewer_epochs_stays_as_it_is(images, undisturbed, tmp_path):
    run(stage(images), tmp_path)
    assert_same(run(stage(images, epochs=2), tmp_path), undisturbed)


def test_a_stage_that_stopped_early_stays_finished_until_its_patience_is_raised(images, tmp_path):
    validated = []

    def validate(state):
        validated.append(int(state.carry))
        return {"symmetric": 0.5}

    patient = functools.partial(stage, images, validate=validate, searches=("symmetric",), validation_interval=2, epochs=20)
    fitted = run(patient(patience=1), tmp_path)  # a gain, then two validations without
    assert len(fitted.history) == 6 and validated == [2 * STEPS, 4 * STEPS, 6 * STEPS]
    assert len(run(patient(patience=1, epochs=30), tmp_path).history) == 6 and len(validated) == 3
    assert len(run(patient(patience=2), tmp_path).history) == 8 and validated[3:] == [8 * STEPS]


def test_early_stopping_waits_for_a_validation_in_its_turn(images, tmp_path):
    """The fewest epochs fall between two validations: the run ends at the later one, disturbed or not."""
    few = stage(images, validate=lambda state: {"symmetric": 0.5}, searches=("symmetric",), validation_interval=2, epochs=20,
                min_epochs=5)
    assert len(run(few, tmp_path).history) == 6


def test_a_last_epoch_validated_out_of_its_turn_is_so_for_the_result_alone(images, tmp_path):
    """A score that falls: the best state is that of the first validation, which for one epoch is out of turn, and at once the
    second epoch's."""
    def validate(state):
        return {"symmetric": 1.0 / float(state.carry)}

    every_second = functools.partial(stage, images, validate=validate, searches=("symmetric",), validation_interval=2,
                                     patience=9)
    at_once = run(every_second(epochs=3), tmp_path / "at once")
    assert [record["epoch"] for record in at_once.history if "symmetric_map" in record] == [2, 3]
    first = run(every_second(epochs=1), tmp_path / "in turns")
    assert int(first.best["symmetric"].carry) == STEPS and "symmetric_map" in first.history[0]
    for epochs in (3, 3):  # and once more, finished
        fitted = run(every_second(epochs=epochs), tmp_path / "in turns")
        assert_same(fitted, at_once)
        assert int(fitted.best["symmetric"].carry) == int(at_once.best["symmetric"].carry) == 2 * STEPS
        assert [record.get("symmetric_map") for record in fitted.history] == [
            record.get("symmetric_map") for record in at_once.history]


def test_the_searches_of_a_stage_are_those_that_are_validated(images, tmp_path):
    with pytest.raises(ValueError, match="name the searches"):
        stage(images, validate=lambda state: {"a": 0.5})
    with pytest.raises(ValueError, match=r"validated \['a'\], not its searches \['b'\]"):
        run(stage(images, validate=lambda state: {"a": 0.5}, searches=("b",)), tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_progress_is_told_and_ends_where_the_stage_ends(images, tmp_path, way):
    told = []
    early = stage(images, validate=lambda state: {"a": 0.5}, searches=("a",), epochs=9, **WAYS[way])
    run(early, tmp_path, progress=lambda *what: told.append(what))
    seen = [0, STEPS] if way == "scanned" else range(2 * STEPS)
    assert told == [*(("toy", step, 9 * STEPS) for step in seen), ("toy", 2 * STEPS, 2 * STEPS)]
    run(early, tmp_path, progress=lambda *what: told.append(what))
    assert told[len(seen) + 1 :] == [("toy", 2 * STEPS, 2 * STEPS)]


HIGH = 2000.0  # x is 1, -8e3, 4e15 at the steps of the second epoch


def runaway(parameters, carry, constants, batch, key):
    """A loss whose gradient grows by the cube: it diverges where the rate is high. Counts steps."""
    return constants["scale"] * parameters["x"] ** 4, (carry + 1, {})


def growing(rate, **settings):
    """A stage whose first epoch is calm and whose others have the given rate."""
    schedule = optax.join_schedules([optax.constant_schedule(1e-3), optax.constant_schedule(rate)], [STEPS])
    return toy_stage(**{"name": "toy", "loss": runaway, "optimizer": optax.sgd(schedule), "n_images": IMAGES,
                        "batch_size": BATCH,
                    "constants": {"scale": jnp.ones(())}, "epochs": 4, "seed": 0, "kept_views": None,
                    "checkpoint_seconds": 1e9, **settings})


def run_growing(toy, directory):
    checkpoints = Checkpoints(directory)
    try:
        return fit(toy, start(toy, {"x": jnp.ones(())}, jnp.zeros((), jnp.int32)), checkpoints)
    finally:
        checkpoints.close()


@pytest.mark.parametrize("scan", [True, False])
def test_a_stage_that_diverged_goes_on_from_its_last_good_epoch_at_a_lower_rate(tmp_path, scan):
    """No checkpoint was due before it diverged; the state before the epoch in which it did is saved all the same."""
    with pytest.raises(TrainingDiverged, match="toy: the loss is inf at step 3 of epoch 2; the last good checkpoint is kept"):
        run_growing(growing(HIGH, scan=scan), tmp_path)
    kept, told = Checkpoints(tmp_path).restore({"state": first_state(growing(HIGH)), "best": {}})
    assert told["epoch"] == len(told["history"]) == 1 and int(kept["state"].carry) == STEPS
    calm = run_growing(growing(1e-3, scan=scan), tmp_path / "calm")
    fitted = run_growing(growing(1e-3, scan=scan), tmp_path)
    assert [record["epoch"] for record in fitted.history] == [1, 2, 3, 4] and int(fitted.state.carry) == 4 * STEPS
    np.testing.assert_allclose(fitted.state.parameters["x"], calm.state.parameters["x"], rtol=1e-6)


def test_a_checkpoint_inside_the_epoch_that_diverges_is_the_last_good_one(tmp_path):
    with pytest.raises(TrainingDiverged, match="the loss is inf at step 3 of epoch 2"):
        run_growing(growing(HIGH, scan=False, checkpoint_seconds=0.0), tmp_path)
    kept, told = Checkpoints(tmp_path).restore({"state": first_state(growing(HIGH)), "best": {}})
    assert told["epoch"] == 1 and told["begun"]["step"] == 2 and int(kept["state"].carry) == STEPS + 2


def first_state(toy):
    return start(toy, {"x": jnp.ones(())}, jnp.zeros((), jnp.int32))


def test_the_optimizers_moments_go_on_with_another_rate(images, tmp_path):
    """Adam's two moments and count after one epoch are those with which the second begins at a tenth of the rate."""
    run(stage(images, epochs=1), tmp_path)
    fitted = run(stage(images, epochs=2, rate=0.005), tmp_path)
    by_hand = run(stage(images, epochs=1), tmp_path / "first").state
    slower = stage(images, epochs=2, rate=0.005)
    batches = training.epoch_batches(IMAGES, BATCH, epoch=1, seed=0, views=None)
    expected, _ = training.train_epoch(slower.task.loss, slower.task.optimizer, jax.tree.map(jnp.asarray, by_hand),
                                       slower.task.constants, batches, jax.random.fold_in(jax.random.key(0), 1))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), fitted.state, expected)


def test_a_stage_that_diverges_in_its_first_epoch_keeps_nothing_and_says_so(images, tmp_path):
    with pytest.raises(TrainingDiverged, match="the loss is nan at step 1 of epoch 1; it begins anew, as no checkpoint is"):
        run(stage(images, scale=np.nan), tmp_path)
    assert int(run(stage(images), tmp_path).state.carry) == EPOCHS * STEPS


@pytest.mark.parametrize("scan", [True, False])
def test_weights_that_the_last_step_spoils_are_neither_saved_nor_returned(tmp_path, scan):
    """Every loss is finite, but the gradient of the last one is not: no later loss tells."""
    def spoiled(parameters, carry, constants, batch, key):
        return jnp.where(carry == STEPS * 2 - 1, 3e38, 1e-6) * parameters["x"], (carry + 1, {})  # its tenfold is infinite

    toy = with_settings(growing(1e-3), loss=spoiled, optimizer=optax.sgd(10.0), epochs=2, scan=scan)
    with pytest.raises(TrainingDiverged, match="toy: the weights are no longer finite after step 3 of epoch 2"):
        run_growing(toy, tmp_path)
    kept, told = Checkpoints(tmp_path).restore({"state": first_state(toy), "best": {}})
    assert told["epoch"] == 1 and np.isfinite(kept["state"].parameters["x"])
