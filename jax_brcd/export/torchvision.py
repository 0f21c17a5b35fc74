"""Hash models as safetensors in torchvision's layout, head included, so that a PyTorch user gets the same codes."""

import pathlib

import safetensors.numpy

from jax_brcd.models import HashModel, torchvision_state
from jax_brcd.runtime.files import atomic_path


def export_safetensors(model: HashModel, path: pathlib.Path, *, name: str, bits: int) -> None:
    """Writes the model's state_dict to `path`; the file's metadata says which model it is of."""
    with atomic_path(path) as temporary:
        safetensors.numpy.save_file(torchvision_state(model), temporary, metadata={"model": name, "bits": str(bits)})
