"""The training loop of every stage: epochs of compiled steps; checkpoints, validation and early stopping around them."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jax_brcd.runtime import devices, interruption
from jax_brcd.runtime.errors import InputError, TrainingDiverged
from jax_brcd.runtime.precision import in_32_bits
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.schedule import Schedule
from jax_brcd.training.stopping import EarlyStopping
from jax_brcd.views.batches import Batches, epoch_batches
from jax_brcd.views.source import Source
from jax_brcd.views.streaming import Stream, with_images

Tree = Any
Metrics = dict[str, jax.Array]
# (parameters, carry, constants, one step's batch, key) -> (loss, (carry after the step, metrics))
LossFunction = Callable[[Tree, Tree, Tree, Batches, jax.Array], tuple[jax.Array, tuple[Tree, Metrics]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What training moves: `parameters` by the optimizer, `carry` (batch statistics, a method's memory) by the step itself."""

    parameters: Tree
    carry: Tree
    optimizer: Tree


@dataclasses.dataclass(frozen=True)
class Task:
    """What a stage minimises.

    Attributes:
        constants: frozen weights and data, on the device for the whole stage. validate: scores, among them one for each of
            `searches`, for which states are kept.
    """

    name: str
    loss: LossFunction
    optimizer: optax.GradientTransformation
    constants: Tree
    validate: Callable[[TrainState], Mapping[str, float]] | None = None
    searches: tuple[str, ...] = ()

    def __post_init__(self):
        if bool(self.searches) != (self.validate is not None):
            raise ValueError(f"stage {self.name}: name the searches that `validate` scores, and only then")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training job: what is minimised, over what, for how long."""

    task: Task
    source: Source
    schedule: Schedule

    @property
    def scanned(self) -> bool:
        """Whether an epoch is one program. Else a checkpoint may be written after any step."""
        return self.schedule.scan and self.source.stream is None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.source.n_images // self.schedule.batch_size)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A finished stage: the last state, the state at the best validation of each search, and a record an epoch.

    `best` holds NumPy arrays: at most the state that trains is on the device.
    """

    state: TrainState
    best: Mapping[str, TrainState]
    history: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far a stage is: `epochs` done, `steps` done of the next one, the `best` score of each search and in which epoch."""

    epochs: int
    steps: int
    best: Mapping[str, tuple[float, int]]


def score_name(search: str) -> str:
    """What the validation score of a search is called in the history."""
    return f"{search}_map"


# An epoch of which no step is done, as a checkpoint tells it: steps done, the seconds they took, every metric's value at each
NOT_BEGUN: dict[str, Any] = {"step": 0, "seconds": 0.0, "metrics": {}}


@in_32_bits
def start(stage: Stage, parameters: Tree, carry: Tree) -> TrainState:
    """The state before the first step; a copy, because steps take over the buffers of the state they are given."""
    parameters, carry = jax.tree.map(_copied, devices.agreed((parameters, carry)))
    # one program, not one for each shape
    return devices.replicate(TrainState(parameters, carry, jax.jit(stage.task.optimizer.init)(parameters)))


def _copied(array: ArrayLike) -> jax.Array:
    """A copy on the device that takes no program: jnp.array compiles one for each shape."""
    return jax.device_put(array if isinstance(array, jax.Array) else np.array(array), may_alias=False)


def backbone_scans() -> bool:
    """Whether an epoch whose steps go through a backbone should be one program.

    XLA's CPU backend computes the gradient of a convolution inside a loop some thirty times slower than outside of one. And
    such an epoch may take an hour there, in which a single program would show no progress and could not be interrupted.
    """
    return jax.default_backend() != "cpu"


def train_step(
    loss: LossFunction, optimizer: optax.GradientTransformation, state: TrainState, constants: Tree, batch: Batches,
    key: jax.Array,
) -> tuple[TrainState, Metrics]:
    """One gradient step. `metrics` holds the loss beside what the loss function reports."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, (carry, metrics)), gradients = gradient(state.parameters, state.carry, constants, batch, key)
    updates, moments = optimizer.update(gradients, state.optimizer, state.parameters)
    state = TrainState(optax.apply_updates(state.parameters, updates), carry, moments)
    return devices.gathered((state, {"loss": value, **metrics}))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_epoch(
    loss, optimizer, state: TrainState, constants: Tree, batches: Batches, key: jax.Array, first: jax.Array | int = 0
):
    """The steps of an epoch from number `first` on, whose `batches` are given, as one scan.

    Returns:
        The state and each metric's values (steps,).
    """

    def step(state, inputs):
        batch, number = inputs
        return train_step(loss, optimizer, state, constants, batch, jax.random.fold_in(key, number))

    return jax.lax.scan(step, state, (batches, first + jnp.arange(batches.indices.shape[0], dtype=jnp.int32)))


_compiled_step = jax.jit(train_step, static_argnums=(0, 1), donate_argnums=2)


def stepped_epoch(
    loss, optimizer, state: TrainState, constants: Tree, batches: Batches, key: jax.Array, *, stream: Stream | None = None,
    first: int = 0, after_step: Callable[[int, TrainState, list[Metrics]], None] | None = None,
):
    """What `train_epoch` computes, as one program a step, from step `first` on.

    `after_step` is told how many steps of the epoch are done, the state, and the metrics of each step run here. A step waits
    for the one before the last, so that the device always has one to begin and holds the images of two.
    """
    history: list[Metrics] = []
    fed = stream.steps(batches, first) if stream else itertools.repeat(None)
    for number, images in zip(range(first, batches.indices.shape[0]), fed, strict=False):
        interruption.check()
        batch = devices.spread(Batches(*(part[number] for part in batches)))
        given = constants if images is None else with_images(constants, images)
        state, metrics = _compiled_step(loss, optimizer, state, given, batch, jax.random.fold_in(key, number))
        history.append(metrics)
        jax.block_until_ready(history[-2:-1])
        if after_step:
            after_step(number + 1, state, history)
    return state, stacked(history)


def stacked(history: list[Metrics]) -> dict[str, np.ndarray]:
    """Each metric's values (steps,), on the host: stacked on the device, every number of steps would be another program."""
    return jax.tree.map(lambda *values: np.stack(values), *jax.device_get(history))


@in_32_bits
def fit(
    stage: Stage, state: TrainState, checkpoints: Checkpoints, *, progress: Progress = silent,
    on_epoch: Callable[[dict[str, Any]], None] | None = None, on_restored: Callable[[Standing], None] | None = None,
) -> Fit:
    """Trains `stage` to its end, going on from the newest checkpoint where there is one.

    A stage that has ended goes on where it is given more epochs. It has ended after `epochs` epochs, and before that at a
    validation after which it stopped early. A checkpoint may have been written by any way of running the same stage (`scan`,
    `stream`, other devices), and at another learning rate: the optimizer's moments go on with the new one.

    Args:
        progress: is told of steps done. on_epoch: is given the record of each epoch that is run here. on_restored: is
            told where it goes on, if it does.

    Raises:
        TrainingDiverged: when a loss or the state is not finite. The state before the epoch in which it happened, or a later
            one of that epoch, is on disk.
        OSError: where the disk is full.
    """
    task = dataclasses.replace(stage.task, constants=devices.replicate(stage.task.constants))
    stage = dataclasses.replace(stage, task=task)
    course = _Course(stage, state, checkpoints)

    def tell(step: int) -> None:
        """That so many steps of the epoch are behind it that the course stands before."""
        progress(task.name, course.epoch * stage.steps + step, course.last_epoch * stage.steps)

    tell(course.begun["step"])
    if on_restored and course.on_disk:
        on_restored(course.standing)
    while not course.finished:
        interruption.check()
        record = _run_epoch(course, tell)
        course.end_epoch(record)
        tell(0)
        if on_epoch:
            on_epoch(record)
    return course.result()


class _Course:
    """Where a stage stands, and what of that is on disk."""

    def __init__(self, stage: Stage, state: TrainState, checkpoints: Checkpoints):
        self.stage, self.state, self.checkpoints = stage, state, checkpoints
        best = {search: state for search in stage.task.searches}
        self.epoch, self.begun = 0, NOT_BEGUN
        self.stopping, self.history = EarlyStopping(), []
        restored = checkpoints.restore({"state": state, "best": best})
        if restored is not None:
            arrays, told = restored
            self.state, best = arrays["state"], arrays["best"]
            self._take(told)
        self.best = on_host(best)
        self.on_disk = restored is not None
        self.unsaved: TrainState | None = None  # the state at the last epoch's end, on the host, where the disk lacks it
        self.saved_at = time.monotonic()

    def _take(self, told: Any) -> None:
        """Goes on from what a checkpoint tells. Raises InputError where it tells something else than `save` did."""
        try:
            self.epoch, self.begun = told["epoch"], {"seconds": 0.0} | told.get("begun", NOT_BEGUN)
            self.stopping, self.history = EarlyStopping(told["best"], told["misses"]), told["history"]
            counts = (self.epoch, self.stopping.misses, self.begun["step"])
            if not (all(type(count) is int and count >= 0 for count in counts) and len(self.history) == self.epoch
                    and isinstance(self.begun["metrics"], dict) and isinstance(self.begun["seconds"], float)
                    and all(isinstance(score, float) for score in self.stopping.best.values())):
                raise ValueError
        except (ValueError, TypeError, LookupError, AttributeError):
            raise InputError(f"{self.checkpoints.directory}: damaged (its progress is not that of a training); delete that "
                             "directory to train the stage again") from None

    @property
    def finished(self) -> bool:
        """Whether no epoch is left. Early stopping is only looked at where an epoch ends in a validation of its turn."""
        schedule = self.stage.schedule
        stops = self.epoch > 0 and self.epoch % schedule.validation_interval == 0 and self.stopping.finished(
            self.epoch, patience=schedule.patience, min_epochs=schedule.min_epochs)
        return self.begun["step"] == 0 and (self.epoch >= schedule.epochs or stops)

    @property
    def last_epoch(self) -> int:
        """The epoch that will be the last, as far as is known."""
        return self.epoch if self.finished else self.stage.schedule.epochs

    @property
    def standing(self) -> Standing:
        """What is behind it."""
        best = {search: (score, record["epoch"]) for search, score in self.stopping.best.items()
                for record in reversed(self.history) if record.get(score_name(search)) == score}
        return Standing(self.epoch, self.begun["step"], best)

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return devices.agreed(time.monotonic() - self.saved_at >= self.stage.schedule.checkpoint_seconds)

    def save(self, state: TrainState, begun: dict[str, Any] = NOT_BEGUN) -> None:
        """Commits `state` and what is known of the epochs behind it. `begun`: what is done of the epoch it stands in."""
        told = {"epoch": self.epoch, "best": dict(self.stopping.best), "misses": self.stopping.misses, "history": self.history}
        self.checkpoints.save({"state": state, "best": self.best}, told | ({"begun": begun} if begun["step"] else {}))
        self.on_disk, self.unsaved, self.saved_at = True, None, time.monotonic()

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Counts the epoch that the state has just left, validates in its turn, and saves at the end or where it is due."""
        task, schedule = self.stage.task, self.stage.schedule
        self.epoch, self.begun = self.epoch + 1, NOT_BEGUN
        self.history.append(record)
        if task.validate and self.epoch % schedule.validation_interval == 0:
            self.stopping, self.best, scores = self._validated()
            record |= scores
        if self.finished or self.due():
            self.save(self.state)

    def _validated(self) -> tuple[EarlyStopping, Mapping[str, TrainState], dict[str, float]]:
        """What early stopping knows, the best states and the scores, by their names in the history, after a validation."""
        task = self.stage.task
        scores = devices.agreed(dict(task.validate(devices.local(self.state))))
        if not set(scores) >= set(task.searches):
            raise ValueError(f"stage {task.name}: validated {sorted(scores)}, not its searches {sorted(task.searches)}")
        stopping, gains = self.stopping.update({search: scores[search] for search in task.searches})
        best = {**self.best, **{search: on_host(self.state) for search in gains}}
        return stopping, best, {score_name(search): score for search, score in scores.items()}

    def result(self) -> Fit:
        """The finished stage. A last epoch whose turn it is not is validated for the result alone: what is on disk is what a
        stage of more epochs has there, which so gives the same whether or not it was stopped here."""
        best, history = self.best, self.history
        if self.stage.task.validate and self.epoch % self.stage.schedule.validation_interval:
            _, best, scores = self._validated()
            history = [*history[:-1], history[-1] | scores]
        return Fit(*devices.local((self.state, best)), history)

    def check(self, losses: np.ndarray, state: TrainState) -> TrainState:
        """The state that follows `losses`, on the host. `losses` are those of the epoch from its first step on.

        Raises:
            TrainingDiverged: where one of them or the state is not finite.
        """
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            self._diverged(f"the loss is {losses[bad[0]]} at step {bad[0] + 1}")
        kept = on_host(state)
        if not is_finite(kept):
            self._diverged(f"the weights are no longer finite after step {len(losses)}")
        return kept

    def _diverged(self, what: str) -> None:
        if self.unsaved is not None:
            self.save(self.unsaved)
        where = self.checkpoints.directory
        kept = (f"the last good checkpoint is kept in {where} (delete it to begin anew)" if self.on_disk
                else f"it begins anew, as no checkpoint is kept in {where}")
        raise TrainingDiverged(f"{self.stage.task.name}: {what} of epoch {self.epoch + 1}; {kept}")


def on_host(tree: Tree) -> Tree:
    """Copies of replicated arrays that stay as they are when a step takes over the buffers of `tree`."""
    return jax.tree.map(np.array, tree)


def is_finite(state: TrainState) -> bool:
    """Whether training can go on from a state on the host: what gradients move is finite, and what is carried is a number."""
    def holds(test, tree):
        return all(test(leaf) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact))

    return (holds(lambda leaf: np.isfinite(leaf).all(), (state.parameters, state.optimizer))
            and holds(lambda leaf: not np.isnan(leaf).any(), state.carry))


def _run_epoch(course: _Course, tell: Callable[[int], None]) -> dict[str, Any]:
    """Runs the epoch that the course stands before, or what is left of it, and returns its record.

    Where an epoch is not one program, `tell` is told of each step, and a checkpoint is written after any that finds one due.
    """
    began, stage, first = time.perf_counter() - course.begun["seconds"], course.stage, course.begun["step"]
    task, source, schedule = stage.task, stage.source, stage.schedule
    batches = epoch_batches(source.n_images, schedule.batch_size, epoch=course.epoch, seed=schedule.seed,
                            views=source.kept_views)
    key = devices.replicate(jax.random.fold_in(jax.random.key(schedule.seed), course.epoch))
    before = course.begun["metrics"]

    def so_far(metrics: Mapping[str, jax.Array | np.ndarray]) -> dict[str, np.ndarray]:
        """Every metric's values from the epoch's first step on."""
        fetched = jax.device_get(metrics)
        return {name: np.append(np.array(before.get(name, ()), value.dtype), value) for name, value in fetched.items()}

    def after_step(step: int, state: TrainState, history: list[Metrics]) -> None:
        if step == stage.steps:
            return
        tell(step)
        if course.due():
            values = so_far(stacked(history))
            course.check(values["loss"], state)
            course.save(state, {"step": step, "seconds": time.perf_counter() - began,
                                "metrics": {name: value.tolist() for name, value in values.items()}})

    arguments = (task.loss, task.optimizer, course.state, task.constants)
    if stage.scanned and first:  # the rest of an epoch that another way of running it began
        rest = devices.spread(Batches(*(part[first:] for part in batches)), axis=1)
        state, metrics = train_epoch(*arguments, rest, key, np.int32(first))
    elif stage.scanned:
        state, metrics = train_epoch(*arguments, devices.spread(batches, axis=1), key)
    else:
        state, metrics = stepped_epoch(*arguments, batches, key, stream=source.stream, first=first, after_step=after_step)
    values = so_far(metrics)
    course.unsaved = course.check(values["loss"], state)
    course.state = state
    means = {name: float(np.mean(value)) for name, value in values.items()}
    return {"stage": task.name, "epoch": course.epoch + 1, **means, "seconds": time.perf_counter() - began}
