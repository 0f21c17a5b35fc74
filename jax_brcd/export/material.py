"""What an export is tried, and quantised, with: images of a folder, or of the data set of the encoder's run."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
from jaxtyping import UInt8

from jax_brcd.data import ImageDataset
from jax_brcd.data.scanning import Walk
from jax_brcd.export.base import Material
from jax_brcd.images import read_item
from jax_brcd.runtime.errors import InputError, of_setting
from jax_brcd.runtime.files import as_path
from jax_brcd.runtime.progress import Progress, Say


def material_of(
    photos: Sequence[Any] | None, dataset: ImageDataset | None, count: int, quantize: str | None, progress: Progress
) -> Material:
    """Photos are preferred for trial and calibration, up to `count` of each; a data set's labels tell what int8 costs."""
    if photos is None and dataset is not None:
        images, training = spread(dataset.test.images, count), spread(dataset.train.images, count)
    else:
        images, training = photos, photos or []
    if quantize is None:
        return Material(images, progress=progress)
    return Material(images, quantize, training, dataset, progress)


def spread(images: np.ndarray, count: int) -> list[np.ndarray]:
    """`count` images or fewer, from all parts of many."""
    return [np.asarray(images[place]) for place in evenly(len(images), count)]


def evenly(items: int, count: int) -> list[int]:
    """The places of `count` items or fewer from all parts of so many."""
    return np.unique(np.linspace(0, items - 1, min(count, items)).round().astype(int)).tolist()


class Photos(Sequence):
    """Image files that are read anew whenever they are taken, as photos in their own size would fill memory."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int | slice) -> Union[UInt8[np.ndarray, "height width 3"], "Photos"]:
        return Photos(self._paths[place]) if isinstance(place, slice) else read_item(self._paths[place])


def images_below(folder: os.PathLike | str, count: int, say: Say) -> Photos:
    """`count` images or fewer from all parts of a folder; files that cannot be read are passed over with a word.

    Raises:
        InputError: for a folder that is absent, and one without images.
    """
    found: list[pathlib.Path] = []
    with of_setting("calibrate", folder):
        root = as_path(folder)
        paths = Walk(root).images_below("")
        first = set(evenly(len(paths), count))
        for path in [*(paths[place] for place in sorted(first)), *(path for place, path in enumerate(paths) if place not in first)]:
            if len(found) == count:
                break
            try:
                read_item(root / path)
                found.append(root / path)
            except InputError as error:
                say(f"passed over: {error.problem}")
        if not found:
            raise InputError("holds no image that can be read; name a folder of images")
    return Photos(found)
