"""The training loop of every stage: epochs of compiled steps; checkpoints, validation and early stopping around them."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jax_brcd.batches import Batches, epoch_batches
from jax_brcd.checkpoints import Checkpoints
from jax_brcd.errors import TrainingDiverged
from jax_brcd.stopping import EarlyStopping

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
    scan: bool = True  # an epoch as one program; else one program a step, dispatched without waiting


@dataclasses.dataclass(frozen=True)
class Fit:
    """A finished stage: the last state, the state at the best validation of each search, and a record an epoch."""

    state: TrainState
    best: Mapping[str, TrainState]
    history: list[dict[str, Any]]


def start(stage: Stage, parameters: Tree, carry: Tree) -> TrainState:
    """The state before the first step; a copy, because steps take over the buffers of the state they are given."""
    parameters, carry = jax.tree.map(jnp.array, (parameters, carry))
    return TrainState(parameters, carry, stage.optimizer.init(parameters))


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
    return TrainState(optax.apply_updates(state.parameters, updates), carry, moments), {"loss": value, **metrics}


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_epoch(loss, optimizer, state: TrainState, constants: Tree, batches: Batches, key: jax.Array):
    """All steps of an epoch as one scan. Returns the state and each metric's values (steps,)."""

    def step(state, inputs):
        batch, number = inputs
        return train_step(loss, optimizer, state, constants, batch, jax.random.fold_in(key, number))

    return jax.lax.scan(step, state, (batches, jnp.arange(batches.indices.shape[0])))


_compiled_step = jax.jit(train_step, static_argnums=(0, 1), donate_argnums=2)


def stepped_epoch(loss, optimizer, state: TrainState, constants: Tree, batches: Batches, key: jax.Array):
    """What `train_epoch` computes, as one program a step; nothing waits for a step's result before the epoch's end."""
    history = []
    for number in range(batches.indices.shape[0]):
        batch = Batches(*(part[number] for part in batches))
        state, metrics = _compiled_step(loss, optimizer, state, constants, batch, jax.random.fold_in(key, number))
        history.append(metrics)
    return state, jax.tree.map(lambda *values: jnp.stack(values), *history)


def fit(stage: Stage, state: TrainState, checkpoints: Checkpoints) -> Fit:
    """Trains `stage` to its end, going on from the newest checkpoint where there is one.

    Raises:
        TrainingDiverged: when a loss is not finite.
        OSError: where the disk is full.
    """
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
    saved_at = time.monotonic()
    with tqdm(total=stage.epochs, initial=epoch, desc=stage.name, unit="epoch", dynamic_ncols=True) as bar:
        while not progress["finished"]:
            state, record = _run_epoch(stage, state, epoch, checkpoints)
            epoch += 1
            finished = epoch >= stage.epochs
            if stage.validate and (epoch % stage.validation_interval == 0 or finished):
                scores = stage.validate(state)
                stopping, gains = stopping.update(scores)
                best = {**best, **{search: jax.tree.map(np.asarray, state) for search in gains}}
                record |= {f"{search}_map": score for search, score in scores.items()}
                finished |= stopping.finished(epoch, patience=stage.patience, min_epochs=stage.min_epochs)
            history.append(record)
            bar.set_postfix({name: f"{value:.3f}" for name, value in record.items() if isinstance(value, float)})
            bar.update()
            progress = {"epoch": epoch, "finished": finished, "best": dict(stopping.best), "misses": stopping.misses,
                        "history": history}
            if finished or time.monotonic() - saved_at >= stage.checkpoint_seconds:
                checkpoints.save(epoch, {"state": state, "best": best}, progress)
                saved_at = time.monotonic()
    return Fit(state, best, history)


def _run_epoch(stage: Stage, state: TrainState, epoch: int, checkpoints: Checkpoints):
    """Runs epoch number `epoch` (from 0); returns the state and its history record."""
    began = time.perf_counter()
    batches = epoch_batches(stage.n_images, stage.batch_size, epoch=epoch, seed=stage.seed, views=stage.kept_views)
    key = jax.random.fold_in(jax.random.key(stage.seed), epoch)
    run = train_epoch if stage.scan else stepped_epoch
    state, metrics = run(stage.loss, stage.optimizer, state, stage.constants, batches, key)
    metrics = jax.device_get(metrics)
    bad = np.flatnonzero(~np.isfinite(metrics["loss"]))
    if bad.size:
        raise TrainingDiverged(
            f"{stage.name}: the loss is {metrics['loss'][bad[0]]} at step {bad[0] + 1} of epoch {epoch + 1}; try a lower "
            f"learning rate or a higher --temperature; the last good checkpoint is kept in {checkpoints.directory}")
    means = {name: float(np.mean(values)) for name, values in metrics.items()}
    return state, {"stage": stage.name, "epoch": epoch + 1, **means, "seconds": time.perf_counter() - began}
