"""Folders of weights as Hugging Face's libraries write them: config.json beside safetensors, which may be in several files."""

import json
import os
import pathlib
from collections.abc import Collection

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ENDING = ".safetensors"
# The same weights as pickles, and in the files of other frameworks
OTHERS = {"pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"}


def weights_among(files: Collection[str], place: str) -> str:
    """Which of a folder's files holds the weights, or says in which files they are.

    Args:
        files: their names. place: the folder or repository, as transformers is told it.

    Raises:
        InputError: for a folder without config.json or safetensors; the line says how to convert what else it holds.
    """
    if CONFIG in files:
        for name in (WEIGHTS, INDEX):
            if name in files:
                return name
        others = sorted(OTHERS.intersection(files))
        if others:
            program = f"from transformers import AutoModel; AutoModel.from_pretrained('{place}').save_pretrained('FOLDER')"
            raise InputError(f"holds its weights as {' and '.join(others)} alone, and only safetensors are read; convert them "
                             f"where you trust them, python -c \"{program}\", and give FOLDER")
    lacking = [name for name in (CONFIG, WEIGHTS) if name not in files]
    found = [] if WEIGHTS in files else sorted(name for name in files if name.endswith(ENDING))
    beside = f" (but {', '.join(found[:3])})" if found else ""
    raise InputError(f"holds no {' and no '.join(lacking)}{beside}")


def shards(index: os.PathLike | str) -> list[str]:
    """The names of the files, beside an index, that hold the weights.

    Raises:
        InputError: for an index that is broken, or names files elsewhere.
    """
    index = pathlib.Path(index)
    try:
        files = sorted(set(read_json(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: no index of weights in several files ({error}); fetch it again") from None
    for name in files:
        if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(ENDING):
            raise InputError(f"{index}: names {json.dumps(name)[:60]}, which is no safetensors file beside it; fetch it again")
    if not files:
        raise InputError(f"{index}: names no files; fetch it again")
    return files


def files_of(folder: pathlib.Path) -> list[str]:
    """The names of the files that hold a folder's weights, all of which are there.

    Raises:
        InputError: see `weights_among` and `shards`, and for files that are missing; the folder is not named.
    """
    there = {path.name for path in folder.iterdir() if path.is_file()}
    first = weights_among(there, str(folder))
    files = shards(folder / INDEX) if first == INDEX else [first]
    lacking = [name for name in files if name not in there]
    if lacking:
        raise InputError(f"{INDEX} names {', '.join(lacking[:3])}, which the folder lacks; fetch it again")
    return files
