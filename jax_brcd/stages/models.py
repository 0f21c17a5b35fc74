"""A run's encoders: their weights, and their split into what learns, what moves with it and what stays."""

import pathlib
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from jax_brcd.models import HashModel, create_hash_model, load_torchvision_state
from jax_brcd.models.weights import imagenet_weights, read_weights
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.options import flag


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


def build(name: str, bits: int, weights: str, *, option: str, seed: int, dtype: str, cache_dir: pathlib.Path) -> HashModel:
    """A hash model with its backbone's weights loaded and a new head.

    Args:
        weights: a file, "imagenet" or "random". option: the setting that `weights` is of.

    Raises:
        InputError: for files that are absent, broken or of another model.
    """
    model = create_hash_model(name, bits, rngs=nnx.Rngs(seed), dtype=jnp.dtype(dtype))
    if weights == "random":
        return model
    path = imagenet_weights(name, cache_dir / "weights") if weights == "imagenet" else pathlib.Path(weights).expanduser()
    try:
        load_torchvision_state(model.backbone, read_weights(path))
    except InputError as error:
        raise InputError(f"{flag(option)} for {name}: {path}: {str(error).removeprefix(f'{path}: ')}") from None
    return model
