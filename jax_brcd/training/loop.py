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
from tqdm import tqdm

from jax_brcd.runtime import devices
from jax_brcd.runtime.errors import TrainingDiverged
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.stopping import EarlyStopping
from jax_brcd.views.batches import Batches, epoch_batches
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
class Stage:
    """One training job: what is minimised, over what, for how long."""

    name: str
    loss: LossFunction
    optimizer: optax.GradientTransformation
    constants: Tree  # frozen weights and data, on the device for the whole stage
    n_images: int
    batch_size: int
    epochs: int
    seed: int
    kept_views: int | None  # kept views to draw from; None for new ones each epoch
    validate: Callable[[TrainState], Mapping[str, float]] | None = None
    validation_interval: int = 1
    patience: int = 0
    min_epochs: int = 0
    checkpoint_seconds: float = 30.0
    scan: bool = True  # an epoch as one program; else one program a step, dispatched a step ahead
    stream: Stream | None = None  # images that travel with each step, which then is a program of its own

    @property
    def scanned(self) -> bool:
        """Whether an epoch is one program. Else a checkpoint may be written after any step."""
        return self.scan and self.stream is None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.n_images // self.batch_size)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A finished stage: the last state, the state at the best validation of each search, and a record an epoch."""

    state: TrainState
    best: Mapping[str, TrainState]
    history: list[dict[str, Any]]


# An epoch of which no step is done, as progress holds it: steps done, and every metric's value at each of them
NOT_BEGUN: dict[str, Any] = {"step": 0, "metrics": {}}


def start(stage: Stage, parameters: Tree, carry: Tree) -> TrainState:
    """The state before the first step; a copy, because steps take over the buffers of the state they are given."""
    parameters, carry = jax.tree.map(jnp.array, devices.agreed((parameters, carry)))
    return devices.replicate(TrainState(parameters, carry, stage.optimizer.init(parameters)))


def backbone_scans() -> bool:
    """Whether an epoch that trains convolutions should be one program.

    XLA's CPU backend computes the gradient of a convolution inside a loop some thirty times slower than outside of one.
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
def train_epoch(loss, optimizer, state: TrainState, constants: Tree, batches: Batches, key: jax.Array):
    """All steps of an epoch as one scan. Returns the state and each metric's values (steps,)."""

    def step(state, inputs):
        batch, number = inputs
        return train_step(loss, optimizer, state, constants, batch, jax.random.fold_in(key, number))

    return jax.lax.scan(step, state, (batches, jnp.arange(batches.indices.shape[0])))


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
        batch = devices.spread(Batches(*(part[number] for part in batches)))
        given = constants if images is None else with_images(constants, devices.replicate(images))
        state, metrics = _compiled_step(loss, optimizer, state, given, batch, jax.random.fold_in(key, number))
        history.append(metrics)
        jax.block_until_ready(history[-2:-1])
        if after_step:
            after_step(number + 1, state, history)
    return state, jax.tree.map(lambda *values: jnp.stack(values), *history)


def fit(stage: Stage, state: TrainState, checkpoints: Checkpoints) -> Fit:
    """Trains `stage` to its end, going on from the newest checkpoint where there is one.

    Raises:
        TrainingDiverged: when a loss is not finite.
        OSError: where the disk is full.
    """
    stage = dataclasses.replace(stage, constants=devices.replicate(stage.constants))
    keeps = ("symmetric", "asymmetric") if stage.validate else ()
    best = {search: state for search in keeps}
    progress = {"epoch": 0, "finished": stage.epochs == 0, "best": {}, "misses": 0, "history": []}
    restored = checkpoints.restore({"state": state, "best": best})
    if restored is not None:
        (state, best), progress = (restored[0]["state"], restored[0]["best"]), restored[1]
    elif keeps:
        best = jax.tree.map(np.asarray, best)
    stopping = EarlyStopping(progress["best"], progress["misses"])
    history, epoch = progress["history"], progress["epoch"]
    begun = progress.pop("begun", NOT_BEGUN)
    saved_at = time.monotonic()

    def save(state: TrainState, progress: dict[str, Any], step: int = 0) -> None:
        nonlocal saved_at
        number = progress["epoch"] if stage.scanned else progress["epoch"] * stage.steps + step
        checkpoints.save(number, {"state": state, "best": best}, progress)
        saved_at = time.monotonic()

    def due() -> bool:
        return devices.agreed(time.monotonic() - saved_at >= stage.checkpoint_seconds)

    def save_within(state: TrainState, begun: dict[str, Any]) -> None:
        save(state, {**progress, "begun": begun}, begun["step"])

    with tqdm(total=stage.epochs, initial=epoch, desc=stage.name, unit="epoch", dynamic_ncols=True,
              disable=not devices.is_first()) as bar:
        while not progress["finished"]:
            state, record = _run_epoch(stage, state, epoch, checkpoints, begun, due, save_within)
            epoch, begun = epoch + 1, NOT_BEGUN
            finished = epoch >= stage.epochs
            if stage.validate and (epoch % stage.validation_interval == 0 or finished):
                scores = devices.agreed(stage.validate(devices.local(state)))
                stopping, gains = stopping.update(scores)
                best = {**best, **{search: jax.tree.map(np.asarray, state) for search in gains}}
                record |= {f"{search}_map": score for search, score in scores.items()}
                finished |= stopping.finished(epoch, patience=stage.patience, min_epochs=stage.min_epochs)
            history.append(record)
            bar.set_postfix({name: f"{value:.3f}" for name, value in record.items() if isinstance(value, float)})
            bar.update()
            progress = {"epoch": epoch, "finished": finished, "best": dict(stopping.best), "misses": stopping.misses,
                        "history": history}
            if finished or due():
                save(state, progress)
    return Fit(*devices.local((state, best)), history)


def _run_epoch(
    stage: Stage, state: TrainState, epoch: int, checkpoints: Checkpoints, begun: dict[str, Any], due: Callable[[], bool],
    save: Callable[[TrainState, dict[str, Any]], None],
):
    """Runs epoch number `epoch` (from 0), or what is left of it after the steps in `begun`; returns the state and its record.

    Where an epoch is not one program, what a checkpoint needs is given to `save` after any step that finds one `due`.
    """
    began = time.perf_counter()
    batches = epoch_batches(stage.n_images, stage.batch_size, epoch=epoch, seed=stage.seed, views=stage.kept_views)
    key = devices.replicate(jax.random.fold_in(jax.random.key(stage.seed), epoch))
    batches = devices.spread(batches, axis=1) if stage.scanned else batches
    arguments = (stage.loss, stage.optimizer, state, stage.constants, batches, key)

    def so_far(metrics: Metrics) -> dict[str, np.ndarray]:
        """Every metric's values from the epoch's first step on."""
        fetched = jax.device_get(metrics)
        values = {name: np.append(np.array(begun["metrics"].get(name, ()), value.dtype), value)
                  for name, value in fetched.items()}
        _check_finite(stage, epoch, values["loss"], checkpoints)
        return values

    def after_step(step: int, state: TrainState, history: list[Metrics]) -> None:
        if step < stage.steps and due():
            values = so_far(jax.tree.map(lambda *values: jnp.stack(values), *history))
            save(state, {"step": step, "metrics": {name: value.tolist() for name, value in values.items()}})

    if stage.scanned:
        state, metrics = train_epoch(*arguments)
    else:
        state, metrics = stepped_epoch(*arguments, stream=stage.stream, first=begun["step"], after_step=after_step)
    means = {name: float(np.mean(values)) for name, values in so_far(metrics).items()}
    return state, {"stage": stage.name, "epoch": epoch + 1, **means, "seconds": time.perf_counter() - began}


def _check_finite(stage: Stage, epoch: int, losses: np.ndarray, checkpoints: Checkpoints) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise TrainingDiverged(
            f"{stage.name}: the loss is {losses[bad[0]]} at step {bad[0] + 1} of epoch {epoch + 1}; try a lower "
            f"learning rate or a higher --temperature; the last good checkpoint is kept in {checkpoints.directory}")
