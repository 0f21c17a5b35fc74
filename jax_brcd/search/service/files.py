"""The files that the service hands out: the page's, and where an export is named those by which the page encodes by itself.

All are named here; a request picks one of these names and never a path.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jax_brcd.runtime.errors import InputError, of_setting
from jax_brcd.runtime.files import as_path, read_json
from jax_brcd.search.stores.base import CodeKind

PAGE = pathlib.Path(__file__).parent / "page"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".mjs": "text/javascript; charset=utf-8", ".wasm": "application/wasm", ".svg": "image/svg+xml",
         ".onnx": "application/octet-stream"}
# Of onnxruntime-web: its smallest build, which computes on the processor, and what that loads
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
MODEL = "encoder_any_size.onnx"
HOW = "`npm pack onnxruntime-web`, unpacked, has them in package/dist"


class BrowserFiles(NamedTuple):
    """What a page needs to encode by itself: the encoder's graph, and onnxruntime-web's files by name."""

    model: pathlib.Path
    runtime: Mapping[str, pathlib.Path]


def page_files() -> dict[str, pathlib.Path]:
    """The page's files by name."""
    return {path.name: path for path in sorted(PAGE.iterdir()) if path.suffix in TYPES}


def browser_files(export: os.PathLike | str, runtime: os.PathLike | str, index: CodeKind) -> BrowserFiles:
    """The student's export and onnxruntime-web's files.

    Args:
        export: a folder that `python -m jax_brcd.export` wrote. runtime: the folder of onnxruntime-web's files, or its package's.
        index: what the codes are to be searched in.

    Raises:
        InputError: for folders without these files, and for an encoder whose codes are not the index's.
    """
    with of_setting("browser", export):
        folder = as_path(export)
        if not (folder / MODEL).is_file():
            raise InputError(f"holds no {MODEL}; give the folder that an export to ONNX wrote")
        about = _about(folder)
        if about.get("bits") != index.bits or None not in (about.get("space"), index.space) and about["space"] != index.space:
            raise InputError(f"its codes, {about.get('bits')} bits of the space '{about.get('space')}', are not the index's, "
                             f"{index.bits} bits of '{index.space}'; export an encoder of that space")
    with of_setting("browser_runtime", runtime):
        place = as_path(runtime)
        place = place if (place / RUNTIME[0]).is_file() else place / "dist"
        absent = [name for name in RUNTIME if not (place / name).is_file()]
        if absent:
            raise InputError(f"holds no {', '.join(absent)}; give the folder of onnxruntime-web's files: {HOW}")
    return BrowserFiles(folder / MODEL, {name: place / name for name in RUNTIME})


def _about(folder: pathlib.Path) -> Mapping[str, Any]:
    try:
        about = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise InputError(f"its config.json cannot be read ({error}); export the encoder again") from None
    if not isinstance(about, dict) or not isinstance(about.get("encoder"), dict):
        raise InputError("its config.json says nothing of an encoder; export the encoder again")
    return about["encoder"]
