"""Weight files, safetensors and PyTorch's own, read without executing what is in them; and downloads by tag."""

import hashlib
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jax_brcd.models.layouts.base import check_finite, torch_array
from jax_brcd.models.variants import BACKBONES
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, atomic_path
from jax_brcd.runtime.progress import Progress, silent

ENCODER_CONFIG, ENCODER_WEIGHTS = "config.json", "model.safetensors"
NESTED = ("state_dict", "model_state_dict", "model", "state")  # where training scripts keep a state_dict among other things


class WeightFile(NamedTuple):
    """What a weight file holds. `metadata` is a safetensors file's own; `remarks` are what a reader must know."""

    path: pathlib.Path  # of the file itself, where a folder was given
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    remarks: tuple[str, ...]


def download_weights(name: str, tag: str, folder: str | os.PathLike, *, progress: Progress = silent) -> pathlib.Path:
    """The weights of a backbone under a tag, such as "imagenet", fetched into `folder` when absent.

    Raises:
        InputError: for an unknown backbone, one that has no weights under that tag, a file that is damaged, or offline.
    """
    known = BACKBONES[name].weights
    if tag not in known:
        others = [other for other, variant in BACKBONES.items() if tag in variant.weights]
        raise InputError(f"no weights '{tag}' of '{name}' are known; give a weight file"
                         + (f", or one of {', '.join(others)}" if others else ""))
    weights = known[tag]
    path = as_path(folder) / weights.file_name
    if path.exists():
        _check_digest(path, weights.digest)
        return path
    from jax_brcd.data.download import download

    return download(weights.url, path, algorithm="sha256", checksum=weights.digest, progress=progress)


def _check_digest(path: pathlib.Path, begins: str) -> None:
    """Raises InputError for a file that was cut or overwritten since it was fetched, or is another that was put in its
    place."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()[: len(begins)]
    if found != begins:
        raise InputError(f"{path}: damaged, or another file (sha256 {found} instead of {begins}); delete it to have it fetched "
                         "again")


def imagenet_weights(name: str, folder: str | os.PathLike) -> pathlib.Path:
    """torchvision's ImageNet weights of a backbone; see `download_weights`."""
    return download_weights(name, "imagenet", folder)


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """A state_dict from a .safetensors, .pth or .pt file, or from an encoder's folder; half precision comes as float32.

    Raises:
        InputError: as `read_weight_file`.
    """
    return read_weight_file(path).tensors


def read_weight_file(path: str | os.PathLike) -> WeightFile:
    """A state_dict with what is known of it. Half precision comes as float32.

    Args:
        path: a .safetensors, .pth or .pt file, or the folder of an encoder (`config.json` and `model.safetensors`).

    Raises:
        InputError: for a file that is absent, truncated or no dictionary of tensors, and for tensors that hold NaN or infinity.
    """
    path = as_path(path)
    if path.is_dir():
        path = _weights_of_folder(path)
    if not path.is_file():
        raise InputError(f"{path}: no such weight file; check the path")
    readers = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
    if path.suffix not in readers:
        raise InputError(f"{path}: unknown kind of weight file; give a .safetensors, .pth or .pt file")
    read = readers[path.suffix](path)
    if not read.tensors:
        raise InputError(f"{path}: holds no tensors; give a file of weights")
    check_finite(read.tensors, f"{path}: the weights")
    return read


def _weights_of_folder(folder: pathlib.Path) -> pathlib.Path:
    lacking = [name for name in (ENCODER_CONFIG, ENCODER_WEIGHTS) if not (folder / name).is_file()]
    if lacking:
        raise InputError(f"{folder}: a folder, and no encoder's: it holds no {' and no '.join(lacking)}; "
                         "give the folder of a saved encoder, or a weight file")
    return folder / ENCODER_WEIGHTS


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


def _upcast(tensor: np.ndarray) -> np.ndarray:
    half = tensor.dtype in (np.float16, ml_dtypes.bfloat16)
    return tensor.astype(np.float32) if half else tensor


def write_weights(path: str | os.PathLike, state: Mapping[str, np.ndarray], **about: str) -> None:
    """Writes a state as safetensors, whole or not at all; the file's metadata says what it is about."""
    with atomic_path(path) as temporary:
        safetensors.numpy.save_file(dict(state), temporary, metadata=about or None)
