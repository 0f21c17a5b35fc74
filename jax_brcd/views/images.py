"""What images have to be before anything is computed of them: checked by shape and type, refused with how to mend them."""

from typing import Any

import numpy as np

from jax_brcd.runtime.errors import InputError

WANTED = "give uint8 pixels from 0 to 255 of shape (images, height, width, 3)"


def check_images(images: Any) -> None:
    """Raises InputError for what is no uint8 array (images, height, width, 3); traced arrays are checked too."""
    if not (hasattr(images, "shape") and hasattr(images, "dtype")):
        raise InputError(f"images are {type(images).__name__} and no array; {WANTED}: np.stack(images) of equal ones")
    shape = tuple(images.shape)
    mend = _mend_shape(shape)
    if mend:
        raise InputError(f"images of shape {shape}: {mend}; {WANTED}")
    if 0 in shape[1:]:
        raise InputError(f"images of shape {shape}: without pixels; {WANTED}")
    if images.dtype != np.uint8:
        kind = np.dtype(images.dtype).kind if isinstance(images.dtype, np.dtype) else ""
        raise InputError(f"images of type {images.dtype}: {CONVERSIONS.get(kind, FROM_FLOATS)}; {WANTED}")


FROM_FLOATS = "values from 0 to 1 become pixels by (255 * images).round().astype(np.uint8); normalised ones cannot be taken"
CONVERSIONS = {
    "b": "black and white become pixels by 255 * images.astype(np.uint8)",
    "i": "whole numbers from 0 to 255 become pixels by images.astype(np.uint8)",
    "u": "numbers from 0 to 255 become pixels by images.astype(np.uint8), 16-bit ones by (images // 257).astype(np.uint8)",
}
# of the last axis
CHANNELS = {
    1: "gray, which becomes colour by np.repeat(images, 3, axis=-1)",
    2: "gray with transparency, which becomes colour by np.repeat(images[..., :1], 3, axis=-1)",
    4: "with transparency, which images[..., :3] leaves out",
}


def _mend_shape(shape: tuple[int, ...]) -> str:
    """What a shape looks like and how to mend it; nothing for one that is right."""
    if len(shape) == 4:
        if shape[-1] == 3:
            return ""
        return "channels first, which np.moveaxis(images, 1, -1) puts last" if shape[1] == 3 else CHANNELS.get(
            shape[-1], f"{shape[-1]} channels where 3 are red, green and blue")
    if len(shape) == 3:
        return ("one image, which is a batch of one as images[None]" if shape[-1] == 3 else
                "gray, which becomes colour by np.repeat(images[..., None], 3, axis=-1)")
    return "one gray image, which is a batch as np.repeat(images[None, ..., None], 3, axis=-1)" if len(shape) == 2 else (
        f"{len(shape)} axes instead of 4")
