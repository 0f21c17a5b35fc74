"""Weight files, safetensors and PyTorch's own, read without executing what is in them; and downloads by tag."""

import os
import pathlib
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jax_brcd.hub import fetch
from jax_brcd.hub.folders import CONFIG, files_of
from jax_brcd.models.layouts.base import check_finite, torch_array
from jax_brcd.models.variants import BACKBONES, HubWeights, Weights
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, atomic_path, file_sha256, read_json
from jax_brcd.runtime.progress import Progress, silent

NESTED = ("state_dict", "model_state_dict", "model", "state")  # where training scripts keep a state_dict among other things


class WeightFile(NamedTuple):
    """What a weight file holds, or a folder.

    `metadata` is a safetensors file's own; `remarks` are what a reader must know; `config` is what a folder's config.json says.
    """

    path: pathlib.Path  # of the file itself, where a folder was given with one
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    remarks: tuple[str, ...]
    config: Mapping[str, Any] = MappingProxyType({})


def download_weights(name: str, tag: str, folder: str | os.PathLike, *, progress: Progress = silent) -> pathlib.Path:
    """The weights of a backbone under a tag, such as "imagenet", fetched into `folder` when absent: a file.

    Those that lie on the Hugging Face hub are fetched into its cache, and are a folder.

    Raises:
        InputError: for an unknown backbone, one that has no weights under that tag, a file that is damaged, or offline.
    """
    weights = tagged_weights(name, tag)
    if isinstance(weights, HubWeights):
        return fetch(weights.name, progress=progress).folder
    path = as_path(folder) / weights.file_name
    if path.exists():
        _check_digest(path, weights.digest)
        return path
    from jax_brcd.data.download import download

    return download(weights.url, path, algorithm="sha256", checksum=weights.digest, progress=progress)


def tagged_weights(name: str, tag: str) -> Weights | HubWeights:
    """What is known of the weights of a backbone under a tag; nothing is fetched. Raises InputError where there are none."""
    known = BACKBONES[name].weights
    if tag not in known:
        others = [other for other, variant in BACKBONES.items() if tag in variant.weights]
        raise InputError(f"no weights '{tag}' of '{name}' are known; give a weight file"
                         + (f", or one of {', '.join(others)}" if others else ""))
    return known[tag]


def _check_digest(path: pathlib.Path, begins: str) -> None:
    """Raises InputError for a file that was cut or overwritten since it was fetched, or is another that was put in its
    place."""
    found = file_sha256(path)[: len(begins)]
    if found != begins:
        raise InputError(f"{path}: damaged, or another file (sha256 {found} instead of {begins}); delete it to have it fetched "
                         "again")


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """A state_dict from a .safetensors, .pth or .pt file, or from a folder; half precision comes as float32.

    Raises:
        InputError: as `read_weight_file`.
    """
    return read_weight_file(path).tensors


def read_weight_file(path: str | os.PathLike) -> WeightFile:
    """A state_dict with what is known of it. Half precision comes as float32.

    Args:
        path: a .safetensors, .pth or .pt file, or a folder of `config.json` and `model.safetensors`: an encoder's, or one that
            Hugging Face's libraries write (`save_pretrained`), whose weights may be in several files.

    Raises:
        InputError: for a file that is absent, truncated or no dictionary of tensors, and for tensors that hold NaN or infinity.
    """
    path = as_path(path)
    read = _read_folder(path) if path.is_dir() else _read_file(path)
    if not read.tensors:
        raise InputError(f"{read.path}: holds no tensors; give a file of weights")
    check_finite(read.tensors, f"{read.path}: the weights")
    return read


def weight_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold the weights of a folder, or the file itself.

    Raises:
        InputError: for a file that is absent or of an unknown kind, and for a folder that does not hold its weights as
            safetensors.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: no such weight file; check the path")
        if path.suffix not in READERS:
            raise InputError(f"{path}: unknown kind of weight file; give a .safetensors, .pth or .pt file")
        return [path]
    try:
        return [path / name for name in files_of(path)]
    except InputError as error:
        problem = error.problem.removeprefix(f"{path}: ")
        if problem.startswith("holds no "):
            problem = f"a folder, and no encoder's: it {problem}; give the folder of a saved encoder, or a weight file"
        raise InputError(f"{path}: {problem}") from None


def _read_folder(folder: pathlib.Path) -> WeightFile:
    files = weight_files(folder)
    try:
        config = read_json(folder / CONFIG)
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: broken ({error}); fetch it or save it again") from None
    read = [_read_safetensors(file) for file in files]
    tensors = {name: tensor for part in read for name, tensor in part.tensors.items()}
    repeated = sum(len(part.tensors) for part in read) - len(tensors)
    if repeated:
        raise InputError(f"{folder}: {repeated} tensors stand in several of its files; fetch it again")
    return WeightFile(files[0] if len(files) == 1 else folder, tensors, read[0].metadata, (),
                      config if isinstance(config, dict) else {})


def _read_file(path: pathlib.Path) -> WeightFile:
    file, = weight_files(path)
    return READERS[file.suffix](file)


def _read_safetensors(path: pathlib.Path) -> WeightFile:
    try:
        tensors = safetensors.numpy.load_file(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
    except (safetensors.SafetensorError, AttributeError, KeyError) as error:  # the latter two: a type that NumPy lacks
        raise InputError(f"{path}: truncated or no safetensors file of float tensors ({error}); fetch it again") from None
    return WeightFile(path, {name: _upcast(tensor) for name, tensor in tensors.items()}, metadata, ())


def _read_torch(path: pathlib.Path) -> WeightFile:
    try:
        import torch
    except ImportError:
        raise InputError(f"{path}: reading it needs PyTorch; pip install 'jax_brcd[torch]', or give .safetensors") from None
    with open(path, "rb") as file:
        try:
            with warnings.catch_warnings():  # of old forms of files and of what pickles name: it is read, or refused below
                warnings.simplefilter("ignore")
                content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # damaged bytes make the restricted unpickler raise almost anything
            raise InputError(f"{path}: truncated, or more than tensors in it; fetch it again, "
                             "or save model.state_dict() alone") from None

    def flat(part: Any) -> bool:
        return isinstance(part, Mapping) and all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in part.items())

    remarks = ()
    if not flat(content) and isinstance(content, Mapping):
        inner = next((name for name in NESTED if name in content and flat(content[name])), None)
        if inner is not None:
            content, remarks = content[inner], (f"of what the file holds, '{inner}' is read",)
    if not flat(content):
        raise InputError(f"{path}: no state_dict of tensors; save model.state_dict() alone")
    try:
        tensors = {name: torch_array(name, tensor) for name, tensor in content.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return WeightFile(path, tensors, {}, remarks)


READERS = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}


def _upcast(tensor: np.ndarray) -> np.ndarray:
    half = tensor.dtype in (np.float16, ml_dtypes.bfloat16)
    return tensor.astype(np.float32) if half else tensor


def write_weights(path: str | os.PathLike, state: Mapping[str, np.ndarray], **about: str) -> None:
    """Writes a state as safetensors, whole or not at all; the file's metadata says what it is about."""
    with atomic_path(path) as temporary:
        safetensors.numpy.save_file(dict(state), temporary, metadata=about or None)
