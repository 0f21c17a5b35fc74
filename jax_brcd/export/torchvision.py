"""Hash models as safetensors in torchvision's layout, head included, so that a PyTorch user gets the same codes."""

import dataclasses
import os
import pathlib

from jax_brcd.encoder import HashEncoder
from jax_brcd.models import HashModel, model_state
from jax_brcd.models.weights import write_weights
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import write_json

LAYOUT = "torchvision"


def export_safetensors(model: HashModel, path: os.PathLike | str, *, name: str, bits: int) -> None:
    """Writes the model's state_dict, in the layout of its family, to `path`; the file's metadata says which model it is of, and
    of which form its head.

    Raises OSError where it cannot be written.
    """
    about = {"model": name, "bits": str(bits), **({} if model.form is None else {"head": model.form})}
    write_weights(path, model_state(model), **about)


def export_torchvision(encoder: HashEncoder, folder: pathlib.Path) -> list[pathlib.Path]:
    """The state_dict as `<backbone>.safetensors`, and beside it `preprocessing.json`: size, resize, mean, std, interpolation.

    Raises:
        InputError: for a backbone that torchvision does not know.
    """
    if encoder.model.backbone.layout != LAYOUT:
        raise InputError(f"{encoder.backbone} is no model of torchvision's; give an encoder of one that is")
    weights, preprocessing = folder / f"{encoder.backbone}.safetensors", folder / "preprocessing.json"
    export_safetensors(encoder.model, weights, name=encoder.backbone, bits=encoder.bits)
    write_json(preprocessing, dataclasses.asdict(encoder.preprocessing))
    return [weights, preprocessing]
