"""A single image as it is, whole and in its own size."""

import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jax_brcd.data.decoding import read_rgb, to_rgb
from jax_brcd.runtime.errors import InputError


def read_image(image: os.PathLike | str | Any) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an image file, or of a Pillow image, in RGB as `decoding.to_rgb` gives it.

    Raises:
        InputError: for a file that is absent, damaged or no image.
    """
    if hasattr(image, "convert"):
        return np.asarray(to_rgb(image))
    found = read_rgb(image)
    if isinstance(found, str):
        raise InputError(f"{os.fspath(image)}: {found}")
    return np.asarray(found)
