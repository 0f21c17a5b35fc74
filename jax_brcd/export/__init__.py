"""Exports of encoders to other programs; one file a format (see export/base.py for what an exporter is)."""

import contextlib
import os
import pathlib
from typing import Any

from jax_brcd.encoder import HashEncoder
from jax_brcd.export import onnx, stablehlo, torch
from jax_brcd.export.base import INT8, Exporter, Material, TriedExporter
from jax_brcd.export.torchvision import export_safetensors, export_torchvision
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, make_folder
from jax_brcd.runtime.registry import Registry

REFERENCE = ("torch", "torchvision")  # packages that the reference's models need

EXPORTERS: Registry[Exporter] = Registry("export format")
EXPORTERS.register("torchvision")(export_torchvision)
EXPORTERS.register("onnx")(TriedExporter("onnx", onnx.write, (*REFERENCE, "onnx", "onnxscript", "onnxruntime"), quantizes=True))
EXPORTERS.register("stablehlo")(TriedExporter("stablehlo", stablehlo.write))
EXPORTERS.register("torch")(TriedExporter("torch", torch.write, REFERENCE))

__all__ = ["EXPORTERS", "Exporter", "Material", "TriedExporter", "export", "export_safetensors"]


def export(encoder: HashEncoder, to: str, out: os.PathLike | str, **material: Any) -> list[pathlib.Path]:
    """Writes an encoder in another program's format.

    Formats that other programs run (onnx, stablehlo, torch) are tried before they are there: the same images give the bits that
    the encoder gives, but for logits as near to zero as `trial.NEAR` says. The figures stand in the folder's `config.json`.

    Args:
        to: a name in EXPORTERS. out: the folder to write into, made where it is not there; files of the same names in it are
            replaced. material: the fields of Material, for formats that are tried.

    Returns:
        The files that were written.

    Raises:
        InputError: for an unknown format, one that cannot hold the encoder or be quantised, where `out` is a file or a folder
            of something else, and where the bits are others. OSError: where it cannot be written.
    """
    exporter, folder, given = EXPORTERS[to], as_path(out), Material(**material)
    found = folder.exists()
    if found and not folder.is_dir():
        raise InputError("this is a file, and an export is a folder; give another place", field="out", value=folder)
    check_quantize(to, given.quantize)
    make_folder(folder)
    try:
        return exporter(encoder, folder, given) if isinstance(exporter, TriedExporter) else exporter(encoder, folder)
    except InputError:
        if not found:
            with contextlib.suppress(OSError):  # what is refused leaves nothing
                folder.rmdir()
        raise


def check_quantize(to: str, quantize: str | None) -> None:
    """Raises InputError for numbers that are unknown, and for a format that is not quantised."""
    if quantize not in (None, INT8):
        raise InputError(f"unknown numbers; give {INT8}, or leave it out", field="quantize", value=quantize)
    able = [name for name, exporter in EXPORTERS.items() if isinstance(exporter, TriedExporter) and exporter.quantizes]
    if quantize is not None and to not in able:
        raise InputError(f"{to} is not quantised; export to {' or '.join(able)}", field="quantize", value=quantize)
