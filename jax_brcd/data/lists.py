"""Data sets as the hashing community shares them: three list files, one image a line, `path l1 ... lC` with labels of 0 or 1.

`train.txt`, `database.txt` and `test.txt` lie in the data set's folder and their paths are relative to it (method.md, "Data as
published"; the lists of HashNet, Cao et al., ICCV 2017).
"""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jax_brcd.data.dataset import CLUSTER_RANGE, ImageDataset, Images, Request
from jax_brcd.data.store import BadImages, Listed, decoded
from jax_brcd.runtime.errors import InputError

TRAIN, DATABASE, TEST = "train.txt", "database.txt", "test.txt"
USUAL_K = 1000


class Protocol(NamedTuple):
    """What is published about a data set beside its lists."""

    k: int | None = None  # ranks that mAP looks at; None for 1,000 or less
    cluster_range: tuple[int, int] = CLUSTER_RANGE


# method.md, "Search and its measure" and "What the student sees before training"; MIRFLICKR's k as in Luo et al., CIMON, IJCAI 2021
PUBLISHED = {"nus-wide": Protocol(5000), "coco": Protocol(5000, (2, 49)), "mirflickr": Protocol(5000),
             "imagenet100": Protocol(1000, (10, 59))}


class ListFile(NamedTuple):
    """The lines of a list file."""

    images: list[Listed]
    labels: UInt8[np.ndarray, "images classes"]

    def take(self, positions: np.ndarray) -> "ListFile":
        """The lines at the given positions, in that order."""
        return ListFile([self.images[position] for position in positions], self.labels[positions])


def loader(name: str) -> Callable[[Request], ImageDataset]:
    """The function that loads the list files of a folder as the data set `name`, under its published protocol if it has one."""
    return functools.partial(load, name, PUBLISHED.get(name, Protocol()))


def load(name: str, protocol: Protocol, request: Request) -> ImageDataset:
    """The images that the three lists name; the test list is shuffled and halved into validation and test queries.

    Raises:
        InputError: for a list that is absent, empty or wrong, with its line; for images that cannot be read, if more than
            `request.max_bad_images`.
    """
    train, database, test = (read_list(request.folder / file) for file in (TRAIN, DATABASE, TEST))
    for file, part in ((DATABASE, database), (TEST, test)):
        if part.labels.shape[1] != train.labels.shape[1]:
            raise InputError(f"{request.folder / file}: {part.labels.shape[1]} labels an image, but {TRAIN} has "
                             f"{train.labels.shape[1]}; all three lists need the same classes")
    if len(test.images) < 2:
        raise InputError(f"{request.folder / TEST}: one image; at least two are needed, one to choose checkpoints by and one "
                         "to report on")
    shuffled = np.random.default_rng(request.seed).permutation(len(test.images))
    half = len(shuffled) // 2
    lists = {"train": database if request.train_images == "all" else train, "database": database,
             "validation": test.take(shuffled[:half]), "test": test.take(shuffled[half:])}
    parts, bad = decode_parts(lists, request)
    return ImageDataset(
        name=name, split="published lists, test list halved" if protocol.k else "lists, test list halved", **parts,
        class_names=tuple(f"label {number + 1}" for number in range(train.labels.shape[1])), flip=True,
        default_k=protocol.k or min(USUAL_K, len(parts["database"])), central_crop=True,
        cluster_range=protocol.cluster_range, notes=bad.notes())


def decode_parts(lists: dict[str, ListFile], request: Request) -> tuple[dict[str, Images], BadImages]:
    """The images of every part, decoded and memory-mapped, without the bad ones; a part that stands twice is decoded once."""
    bad, parts = BadImages(request.max_bad_images), {}
    for name, part in lists.items():
        squares, kept = decoded(request.folder, part.images, request.cache_dir / "images", bad=bad,
                                workers=request.decode_workers, description=name)
        parts[name] = Images(squares, part.labels[kept])
    return parts, bad


def read_list(path: pathlib.Path) -> ListFile:
    """The images and labels that a list file names. Empty lines are passed over.

    Raises:
        InputError: with the line, for a wrong number of labels, a label that is neither 0 nor 1, a path that leaves the
            folder; for a file that is absent, no text, or empty.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such list file; name the folder that holds {TRAIN}, {DATABASE} and {TEST} with "
                         "--data-dir") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: no text; a list has lines of a path and labels of 0 or 1") from None
    images, labels = [], []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}:{number}"
        images.append(Listed(_inside(words[0], where), where))
        labels.append(_labels(words[1:], len(labels[0]) if labels else None, where))
    if not images:
        raise InputError(f"{path}: names no image; a part of a data set cannot be empty")
    return ListFile(images, np.stack(labels))


def _inside(path: str, where: str) -> str:
    """The path itself, if it stays below the data set's folder."""
    parts = pathlib.PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise InputError(f"{where}: path '{path}' leads out of the data set's folder; write it relative to the folder of the list")
    return path


def _labels(words: list[str], expected: int | None, where: str) -> UInt8[np.ndarray, "classes"]:
    wrong = next((word for word in words if word not in ("0", "1")), None)
    if wrong is not None:
        raise InputError(f"{where}: label '{wrong}' is neither 0 nor 1 (a line is a path without spaces, then a label a class)")
    if not words:
        raise InputError(f"{where}: no labels; a line is a path, then 0 or 1 for each class")
    if expected is not None and len(words) != expected:
        raise InputError(f"{where}: {len(words)} labels instead of the {expected} of the lines before")
    return np.array(words, dtype=np.uint8)
