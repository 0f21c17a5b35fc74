"""A folder of images: a class for each sub-folder, or images without labels, which train but cannot be evaluated."""

import os
import pathlib

import numpy as np

from jax_brcd.data.dataset import ImageDataset, Request, one_hot
from jax_brcd.data.decoding import SUFFIXES
from jax_brcd.data.lists import USUAL_K, ListFile, decode_parts
from jax_brcd.data.store import Listed
from jax_brcd.runtime.errors import InputError

QUERY_SHARE = 0.1
FEWEST = 4  # a validation query, a test query, and two images that can be told apart


def load(request: Request) -> ImageDataset:
    """The images below a folder, sorted by path, drawn by the seed: a tenth are queries, halved into validation and test; the
    rest train and are the database.

    A class is a sub-folder that holds images at any depth, in the order of their names. Without such sub-folders the images
    that lie in the folder itself have no labels.

    Raises:
        InputError: for a folder that is absent or holds too few images, or images both beside and in sub-folders.
    """
    everything, names = find(request.folder)
    if len(everything.images) < FEWEST:
        raise InputError(f"{request.folder}: {len(everything.images)} images ({', '.join(sorted(SUFFIXES))}); at least {FEWEST} "
                         "are needed; name the folder with --data-dir")
    shuffled = np.random.default_rng(request.seed).permutation(len(everything.images))
    queries = max(2, round(QUERY_SHARE * len(shuffled)))
    database = everything.take(np.sort(shuffled[queries:]))
    lists = {"train": database, "database": database, "validation": everything.take(shuffled[: queries // 2]),
             "test": everything.take(shuffled[queries // 2 : queries])}
    parts, bad = decode_parts(lists, request)
    return ImageDataset(
        name="folder", split="a tenth drawn as queries, halved; the rest trains and is the database", **parts, class_names=names,
        flip=True, default_k=min(USUAL_K, len(parts["database"])), central_crop=True, notes=bad.notes())


def find(folder: pathlib.Path) -> tuple[ListFile, tuple[str, ...]]:
    """The images below a folder with their labels, and the names of the classes; (images, 0) labels where there are none."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: no such folder; name the one that holds the images with --data-dir") from None
    loose = [entry.name for entry in entries if entry.is_file() and _is_image(entry.name)]
    classes = {entry.name: paths for entry in entries if entry.is_dir() and not entry.name.startswith(".")
               if (paths := _images_below(folder, entry.name))}
    if loose and classes:
        raise InputError(f"{folder}: images lie both beside and in sub-folders ({loose[0]}, {next(iter(classes))}/); put each into "
                         "the sub-folder of its class, or all of them into one folder without labels")
    if not classes:
        return ListFile([Listed(path) for path in loose], np.zeros((len(loose), 0), np.uint8)), ()
    numbers = np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
    images = [Listed(path) for paths in classes.values() for path in paths]
    return ListFile(images, one_hot(numbers, len(classes))), tuple(classes)


def _images_below(folder: pathlib.Path, name: str) -> list[str]:
    """Paths of the images in a sub-folder, relative to `folder` and sorted."""
    return sorted(os.path.relpath(os.path.join(place, file), folder)
                  for place, _, files in os.walk(folder / name) for file in files if _is_image(file))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and pathlib.PurePath(name).suffix.lower() in SUFFIXES
