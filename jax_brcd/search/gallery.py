"""Answers of an index as one self-contained page."""

import base64
import os
import pathlib
from collections.abc import Callable, Sequence

import jax_brcd
from jax_brcd.runtime.files import as_path, atomic_path
from jax_brcd.search.places import shown
from jax_brcd.search.searching import Answer, told


def write_gallery(
    path: os.PathLike | str, title: str, answers: Sequence[Answer], thumbnail: Callable[[str], bytes | None]
) -> pathlib.Path:
    """Writes a page with the thumbnails in it, whole or not at all; returns its path.

    Args:
        thumbnail: of an item by its id, a JPEG or WebP.

    Raises:
        InputError: where a folder lies there. OSError: where it cannot be written.
    """
    import jinja2

    path = as_path(path)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("jax_brcd.search", "."), autoescape=True,
                                     undefined=jinja2.StrictUndefined)
    page = environment.get_template("gallery.html").render(
        title=title, answers=answers, thumbnail=thumbnail, embedded=_embedded, address=_address, shown=shown, told=told,
        version=jax_brcd.__version__)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _embedded(picture: bytes) -> str:
    """A picture as an address that holds it."""
    kind = "webp" if picture[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _address(path: str) -> str | None:
    """The address of a file on this machine; None for what is no absolute path."""
    return pathlib.Path(path).as_uri() if os.path.isabs(path) else None
