"""What an exporter is, and how one that can be tried is carried out: written aside, compared, moved into its place."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_brcd.data import ImageDataset
from jax_brcd.encoder import HashEncoder, space_of
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json, workplace, write_json
from jax_brcd.runtime.progress import Progress, silent

CONFIG, FORMAT, EXPORTS = "config.json", 1, "exports"
INT8 = "int8"

# Writes an encoder into a folder, which is there, and returns the files it wrote
Exporter = Callable[[HashEncoder, pathlib.Path], list[pathlib.Path]]


@dataclasses.dataclass(frozen=True)
class Material:
    """What an exporter that is tried has beside the encoder.

    Attributes:
        images: uint8 RGB images of any sizes, by which file and encoder are compared; rows of an encoder over embeddings. None:
            some are made up.
        quantize: "int8", or None for the encoder's own numbers. calibration: training images, by which it is quantised.
        dataset: with labels, by which it is measured what that costs.
        progress: told how far the work is.
    """

    images: Sequence[Any] | np.ndarray | None = None
    quantize: str | None = None
    calibration: Sequence[Any] | np.ndarray = ()
    dataset: ImageDataset | None = None
    progress: Progress = silent


@dataclasses.dataclass(frozen=True)
class TriedExporter:
    """An exporter whose files are run before they take their places.

    Attributes:
        name: of the format. write: writes an encoder's files into an empty folder, compares what they give with what the
            encoder gives, and returns what is to be known of them. needs: packages. quantizes: whether it can write int8.
    """

    name: str
    write: Callable[[HashEncoder, pathlib.Path, Material], dict[str, Any]]
    needs: tuple[str, ...] = ()
    quantizes: bool = False

    def __call__(self, encoder: HashEncoder, folder: pathlib.Path, material: Material | None = None) -> list[pathlib.Path]:
        """Writes an encoder into a folder, which is there: all of its files and `config.json`, or none.

        Raises:
            InputError: for an encoder that the format cannot hold, a folder of something else, packages that are absent, and
                where the files do not give the encoder's bits.
        """
        material = material or Material()
        check_packages(self.name, self.needs)
        others = other_exports(encoder, folder, self.name)
        with workplace(folder / CONFIG) as place:
            made = place / self.name
            made.mkdir()
            facts = self.write(encoder, made, material)
            names = sorted(path.name for path in made.iterdir())
            for name in names:
                _settle(made / name, folder / name)
        write_json(folder / CONFIG, {"format": FORMAT, "encoder": about(encoder), EXPORTS: {
            **others, self.name: {"files": names, **facts, "versions": versions(("jax_brcd", "jax", *self.needs))}}})
        return [*(folder / name for name in names), folder / CONFIG]


def check_packages(what: str, packages: Sequence[str]) -> None:
    """Raises InputError where one is not installed."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f"an export to {what} needs {', '.join(absent)}; pip install 'jax_brcd[export]'")


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The version of each package that is installed as one."""
    known = importlib.metadata.packages_distributions()
    return {name: importlib.metadata.version(known[name][0]) for name in packages if name in known}


def about(encoder: HashEncoder) -> dict[str, Any]:
    """What an export says of its encoder. `weights` is a digest of them and of the preprocessing."""
    head = {} if encoder.model.form is None else {"head": encoder.model.form}
    return {"backbone": encoder.backbone, "bits": encoder.bits, "role": encoder.role, "space": encoder.space,
            "dtype": encoder.dtype, "preprocessing": encoder.preprocessing.to_dict(), **head,
            "weights": space_of(encoder.model, encoder.backbone, encoder.preprocessing).rpartition("-")[2]}


def other_exports(encoder: HashEncoder, folder: pathlib.Path, name: str) -> dict[str, Any]:
    """The encoder's exports to other formats in a folder.

    Raises:
        InputError: where the folder holds something else, or other formats of another encoder.
    """
    path = folder / CONFIG
    if not os.path.lexists(path):
        return {}
    try:
        config = read_json(path)
    except (OSError, ValueError):
        config = None
    if not isinstance(config, Mapping) or not isinstance(config.get(EXPORTS), Mapping):
        raise InputError(f"its {CONFIG} is no export's and would be lost; name another folder", field="out", value=folder)
    others = {each: facts for each, facts in config[EXPORTS].items() if each != name}
    if others and config.get("encoder") != about(encoder):
        raise InputError(f"holds another encoder's export to {', '.join(others)}; name another folder", field="out",
                         value=folder)
    return others


def _settle(written: pathlib.Path, path: pathlib.Path) -> None:
    """Moves a file to its place, once it is on the disk."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, and a file is to be written there; name another folder")
    written.chmod(0o644)
    with open(written, "rb") as file:
        os.fsync(file.fileno())
    written.replace(path)
