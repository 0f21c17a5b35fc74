"""Exports of encoders to other programs; one file a format (see export/base.py for what an exporter is)."""

import os
import pathlib

from jax_brcd.export.base import Exportable, Exporter
from jax_brcd.export.torchvision import export_safetensors, export_torchvision
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, make_folder
from jax_brcd.runtime.registry import Registry

EXPORTERS: Registry[Exporter] = Registry("export format")
EXPORTERS.register("torchvision")(export_torchvision)

__all__ = ["EXPORTERS", "Exportable", "Exporter", "export", "export_safetensors"]


def export(encoder: Exportable, to: str, out: os.PathLike | str) -> list[pathlib.Path]:
    """Writes an encoder in another program's format.

    Args:
        to: a name in EXPORTERS. out: the folder to write into, made where it is not there; files of the same names in it are
            replaced.

    Returns:
        The files that were written.

    Raises:
        InputError: for an unknown format, and where `out` is a file. OSError: where it cannot be written.
    """
    exporter, folder = EXPORTERS[to], as_path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError("this is a file, and an export is a folder; give another place", field="out", value=folder)
    return exporter(encoder, make_folder(folder))
