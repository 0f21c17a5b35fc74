"""A run's encoders: their weights, and their split into what learns, what moves with it and what stays."""

import os
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from jax_brcd.models import BACKBONES, HashModel, create_hash_model, load_state
from jax_brcd.models.weights import WeightFile, download_weights, read_weight_file, read_weights
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path
from jax_brcd.runtime.progress import Progress, silent


class Partition(NamedTuple):
    """A model in parts; `nnx.merge(*partition)` is the model again."""

    graph: nnx.GraphDef
    trainable: nnx.State
    statistics: nnx.State  # batch-norm running averages, which move in training mode
    frozen: nnx.State


def partition(model: HashModel, *, train_backbone: bool) -> Partition:
    """Splits a hash model; the head always learns, the backbone where asked for."""

    def learns(path, value):
        return isinstance(value, nnx.Param) and (train_backbone or path[0] == "head")

    return Partition(*nnx.split(model, learns, nnx.BatchStat, ...))


class Built(NamedTuple):
    """A model with its weights, what a reader must know of them, and whether they brought the hash head."""

    model: HashModel
    remarks: tuple[str, ...]
    head_came: bool


def build(
    name: str, bits: int, weights: str | os.PathLike, *, option: str, seed: int, dtype: str, cache_dir: str | os.PathLike,
    size: int | None = None, progress: Progress = silent,
) -> Built:
    """A hash model with weights loaded; its head is new where they bring none of `bits` bits.

    Args:
        weights: a file, the folder of an encoder, a tag of the backbone's own weights ("imagenet") or "random". A tag never
            brings a head. option: the setting that `weights` is of. size: pixels that it sees, by default its own.

    Raises:
        InputError: for files that are absent, broken or of another model.
    """
    model = create_hash_model(name, bits, size=size, rngs=nnx.Rngs(seed), dtype=jnp.dtype(dtype))
    if weights == "random":
        return Built(model, (), False)
    tagged = BACKBONES[name].weights.get(str(weights))
    try:
        if tagged is not None or weights == "imagenet":
            path = download_weights(name, str(weights), as_path(cache_dir) / "weights", progress=progress)
            load_state(model.backbone, read_weights(path), layout=tagged.layout)
            return Built(model, (), False)
        file = read_weight_file(weights)
        _check_model(file, name)
        loaded = load_state(model, file.tensors, any_head=True)
    except InputError as error:
        problem = error.problem.removeprefix(f"{weights}: ").removeprefix(f"{as_path(weights)}: ")
        raise InputError(problem, field=option, value=weights) from None
    came = (f"its hash head of {bits} bits is taken too",) if loaded.head else ()
    return Built(model, tuple(f"{name} of {file.path}: {remark}" for remark in (*file.remarks, *loaded.remarks, *came)),
                 loaded.head)


def _check_model(file: WeightFile, name: str) -> None:
    """Raises InputError where a file says that it is of another model."""
    other = file.metadata.get("model", name)
    if other != name:
        raise InputError(f"{file.path}: says that it is of {other}; give weights of {name}, or name {other}")
