"""A run's encoders: their weights, and their split into what learns, what moves with it and what stays."""

import os
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from jax_brcd.hub import Fetched, fetch, is_hub_name
from jax_brcd.models import BACKBONES, HashModel, Loaded, create_hash_model, load_state
from jax_brcd.models.described import KIND, check_described
from jax_brcd.models.weights import WeightFile, download_weights, read_weight_file
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
    fetched: Fetched | None = None, progress: Progress = silent,
) -> Built:
    """A hash model with weights loaded; its head is new where they bring none of `bits` bits.

    Args:
        weights: a file, a folder of an encoder or of weights alone, hf:user/name of the Hugging Face hub, a tag of the
            backbone's own weights ("imagenet") or "random". A tag never brings a head. option: the setting that it is of.
        fetched: what lies on the hub, where it was fetched before.

    Raises:
        InputError: for files that are absent, broken or of another model, and for what cannot be had of the hub.
    """
    model = create_hash_model(name, bits, rngs=nnx.Rngs(seed), dtype=jnp.dtype(dtype))
    if weights == "random":
        return Built(model, (), False)
    tagged = BACKBONES[name].weights.get(str(weights))
    try:
        if fetched is None and is_hub_name(weights):
            fetched = fetch(str(weights), progress=progress)
        if fetched is not None:
            path = fetched.folder
        elif tagged is not None or weights == "imagenet":
            path = download_weights(name, str(weights), as_path(cache_dir) / "weights", progress=progress)
        else:
            path = weights
        file = read_weight_file(path)
        _check_model(file, name)
        if tagged is not None:
            load_state(model.backbone, file.tensors, layout=tagged.layout)
            return Built(model, () if fetched is None else fetched.remarks, False)
        loaded = _load(model, file)
    except InputError as error:
        problem = error.problem.removeprefix(f"{weights}: ").removeprefix(f"{as_path(weights)}: ")
        raise InputError(problem, field=option, value=weights) from None
    came = (f"its hash head of {bits} bits is taken too",) if loaded.head else ()
    source, first = (file.path, ()) if fetched is None else (fetched.name, fetched.remarks)
    remarks = (f"{name} of {source}: {remark}" for remark in (*file.remarks, *loaded.remarks, *came))
    return Built(model, (*first, *remarks), loaded.head)


def _load(model: HashModel, file: WeightFile) -> Loaded:
    try:
        return load_state(model, file.tensors, any_head=True)
    except InputError as error:
        kind = file.config.get(KIND)
        raise InputError(error.problem + (f" (its config.json says that it is of '{kind}')" if kind else "")) from None


def _check_model(file: WeightFile, name: str) -> None:
    """Raises InputError where a file, or the folder it lies in, says that it is of another model."""
    other = file.metadata.get("model", name)
    if other != name:
        raise InputError(f"{file.path}: says that it is of {other}; give weights of {name}, or name {other}")
    check_described(file.config, name)
