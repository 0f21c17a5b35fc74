"""A single image as it is, whole and in its own size."""

import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jax_brcd.data.decoding import FOLDER, read_rgb, silence_pillow, to_rgb
from jax_brcd.runtime.errors import InputError

# How to mend what a file is refused for, by how the reason begins; a reason with a semicolon says it itself
REMEDIES = {FOLDER: "give the paths of the files in it", "no such file": "check the path", "no permission": "ask for it",
            "too large": "make it smaller", "truncated": "fetch or save the file again", "cannot be read": "check the path"}


def read_image(image: os.PathLike | str | Any, *, upright: bool = False) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an image file, or of a Pillow image, in RGB as `decoding.to_rgb` gives it. `upright` turns a file's image
    as its orientation tag says, as indexes see it.

    Raises:
        InputError: for a file that is absent, damaged or no image.
    """
    if hasattr(image, "convert"):
        silence_pillow()
        return np.asarray(to_rgb(image))
    found = read_rgb(image, upright=upright)
    if isinstance(found, str):
        remedy = next((remedy for reason, remedy in REMEDIES.items() if found.startswith(reason)), "give an image file")
        raise InputError(f"{os.fspath(image)}: {found}" + ("" if ";" in found else f"; {remedy}"))
    return np.asarray(found)
