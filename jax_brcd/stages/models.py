"""A run's encoders: their weights, and their split into what learns, what moves with it and what stays."""

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from jax_brcd.hub import Fetched, fetch, is_hub_name
from jax_brcd.models import BACKBONES, HashModel, create_hash_model, load_state, tags_of
from jax_brcd.models.described import KIND, check_described
from jax_brcd.models.layouts import Loaded
from jax_brcd.models.rows import EMBEDDINGS, create_row_model
from jax_brcd.models.weights import WeightFile, download_weights, read_weight_file, tagged_weights, weight_files
from jax_brcd.runtime.errors import InputError, of_setting
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


def check_place(name: str, weights: str, *, option: str) -> None:
    """Raises InputError, as `build` would, where a backbone has no weights under a tag and where none lie at a path. Nothing is
    read or fetched."""
    if weights == "random":
        return
    with of_setting(option, weights):
        if name in BACKBONES and weights in ("imagenet", *tags_of(name)):
            tagged_weights(name, weights)
        else:
            weight_files(as_path(weights))


def build(
    name: str, bits: int, weights: str | os.PathLike, *, option: str, seed: int, dtype: str, cache_dir: str | os.PathLike,
    form: str | None = None, any_form: bool = False, size: int | None = None, fetched: Fetched | None = None,
    progress: Progress = silent,
) -> Built:
    """A hash model with weights loaded; its head is new where they bring none of `bits` bits.

    Args:
        weights: a file, a folder of an encoder or of weights alone, hf:user/name of the Hugging Face hub, a tag of the
            backbone's own weights ("imagenet") or "random". A tag never brings a head. option: the setting that it is of.
        form: of a new head, a name in HEADS; None for the backbone's own. any_form: a head that the weights bring is taken
            whatever its form; else one of another form is left out with a remark.
        size: pixels that it sees, by default its own. fetched: what lies on the hub, where it was fetched before.

    Raises:
        InputError: for files that are absent, broken or of another model, and for what cannot be had of the hub.
    """
    def create(form: str | None) -> HashModel:
        return create_hash_model(name, bits, size=size, rngs=nnx.Rngs(seed), dtype=jnp.dtype(dtype), form=form)

    if weights == "random":
        return Built(create(form), (), False)
    tagged = tags_of(name).get(str(weights))
    with of_setting(option, weights):
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
            model = create(form)
            load_state(model.backbone, file.tensors, layout=tagged.layout)
            return Built(model, () if fetched is None else fetched.remarks, False)
        model, loaded = _with_head([*([file.metadata.get("head")] if any_form else []), form], create, file)
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


def _with_head(
    forms: Iterable[str | None], create: Callable[[str | None], HashModel], file: WeightFile
) -> tuple[HashModel, Loaded]:
    """The model with a head of the first of some forms that a file holds; where it holds none of them, of the last one, new."""
    for form in dict.fromkeys(forms):
        model = create(form)
        loaded = _load(model, file)
        if loaded.head:
            break
    return model, loaded


def build_over_rows(
    width: int, bits: int, weights: str | os.PathLike, *, option: str, seed: int, form: str | None = None, any_form: bool = False
) -> Built:
    """A hash head over rows of `width` numbers; arguments and errors as `build`.

    A head that comes must be of that width and length: there is nothing else that it could bring.
    """
    def create(form: str | None) -> HashModel:
        return create_row_model(width, bits, rngs=nnx.Rngs(seed), form=form)

    if weights == "random":
        return Built(create(form), (), False)
    with of_setting(option, weights):
        file = read_weight_file(weights)
        _check_model(file, EMBEDDINGS)
        model = create(file.metadata.get("head") if any_form else form)
        try:
            load_state(model, file.tensors)
        except InputError as error:
            raise InputError(f"{error}; over `embeddings` it is a head of {bits} bits over {width} numbers, or random") from None
    return Built(model, (f"{EMBEDDINGS} of {file.path}: its hash head of {bits} bits is taken",), True)


def _check_model(file: WeightFile, name: str) -> None:
    """Raises InputError where a file, or the folder it lies in, says that it is of another model."""
    other = file.metadata.get("model", name)
    if other != name:
        raise InputError(f"{file.path}: says that it is of {other}; give weights of {name}, or name {other}")
    check_described(file.config, name)
