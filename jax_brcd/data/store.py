"""Decoded images on disk: each part of a data set once, as one memory-mapped array, whatever the size of the data set.

A folder of the store is named by what the images are decoded from (paths in their order, sizes, times of change), so parts
that are drawn by a seed lie there once a seed. Squares are appended a chunk at a time and count once the index says so, so a
pass that is killed goes on at the chunk it was at.
"""

import dataclasses
import fcntl
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from jax_brcd.data.decoding import SIDE, SQUARE_BYTES, decode_all
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json, write_json

FORMAT = 1  # to be raised when the same file comes to mean another square
CHUNK = 256  # images between two entries in the index
IMAGES, INDEX, LOCK = "images.u8", "index.json", "lock"
EMPTY = {"done": 0, "bad": []}  # images looked at, and those that could not be read as [position, reason]


class Listed(NamedTuple):
    """An image of a data set: its path below the data set's folder, and the file and line that name it, if any."""

    path: str
    where: str = ""


@dataclasses.dataclass
class BadImages:
    """The images that could not be read so far, over all parts of a data set; more than `limit` of them end the run."""

    limit: int
    found: dict[str, str] = dataclasses.field(default_factory=dict)  # by path

    def add(self, image: Listed, reason: str) -> None:
        """Counts an image once, in however many parts it stands.

        Raises:
            InputError: when it is one too many.
        """
        if image.path in self.found:
            return
        place = f"{image.where}: {image.path}" if image.where else image.path
        self.found[image.path] = f"{place}: {reason}"
        if len(self.found) > self.limit:
            others = f" (after {self.limit} other bad images)" if self.limit else ""
            raise InputError(f"{place}: {reason}{others}; mend it, take it out, or skip bad images with a higher --max-bad-images")

    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know."""
        if not self.found:
            return ()
        return (f"Images that could not be read and were skipped: {len(self.found):,}. {'; '.join(self.found.values())}.",)


def digest(folder: pathlib.Path, images: Sequence[Listed]) -> str:
    """A short digest of where images lie, how large they are and when they were last written."""
    sha = hashlib.sha256(f"{FORMAT} {SIDE} {folder.resolve()}".encode())
    for image in images:
        try:
            status = os.stat(folder / image.path)
            stamp = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            stamp = "absent"
        sha.update(f"\0{image.path}\0{stamp}".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()[:20]


def decoded(
    folder: pathlib.Path, images: Sequence[Listed], store: pathlib.Path, *, bad: BadImages, workers: int | None,
    description: str,
) -> tuple[UInt8[np.ndarray, "kept 256 256 3"], Int[np.ndarray, "kept"]]:
    """The squares of images, memory-mapped, and the positions in `images` of those that could be read.

    Args:
        folder: what the paths are relative to. store: where decoded images lie. bad: counts what cannot be read.
        workers: see decoding.decode_all. description: of the progress bar.

    Raises:
        InputError: for too many bad images, or where the disk has no room for the squares.
        OSError: where it fills up on the way.
    """
    place = store / digest(folder, images)
    place.mkdir(parents=True, exist_ok=True)
    with open(place / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be decoding the same images; it ends with its process
        index = _complete(place, folder, images, bad=bad, workers=workers, description=description)
    skipped = [position for position, _ in index["bad"]]
    kept = np.delete(np.arange(len(images)), skipped)
    if not len(kept):
        raise InputError(f"{folder}: none of the {len(images)} images of {description} could be read")
    return np.memmap(place / IMAGES, np.uint8, mode="r", shape=(len(kept), SIDE, SIDE, 3)), kept


def _complete(place, folder, images: Sequence[Listed], *, bad: BadImages, workers, description: str) -> dict:
    """Decodes what the store does not hold yet; returns its index."""
    path, index_path = place / IMAGES, place / INDEX
    path.touch()
    index = read_json(index_path) if index_path.exists() else EMPTY
    if path.stat().st_size < _good(index) * SQUARE_BYTES:  # deleted or cut by hand
        index = EMPTY
    index = {"done": index["done"], "bad": list(index["bad"])}
    for position, reason in index["bad"]:
        bad.add(images[position], reason)
    remaining = images[index["done"] :]
    if not remaining:
        return index
    _check_room(place, len(remaining))
    paths = [str(folder / image.path) for image in remaining]
    with open(path, "ab") as file, tqdm(total=len(images), initial=index["done"], desc=f"decode {description}", unit="image",
                                        dynamic_ncols=True, leave=False) as bar:
        file.truncate(_good(index) * SQUARE_BYTES)  # what was written after the last entry
        for chunk in _chunks(decode_all(paths, workers=workers)):
            for offset, square in enumerate(chunk):
                if isinstance(square, str):
                    position = index["done"] + offset
                    bad.add(images[position], square)
                    index["bad"].append([position, square])
                else:
                    file.write(square.tobytes())
            file.flush()
            os.fsync(file.fileno())
            index["done"] += len(chunk)
            write_json(index_path, index)
            bar.update(len(chunk))
    return index


def _good(index: dict) -> int:
    return index["done"] - len(index["bad"])


def _chunks(squares: Iterator) -> Iterator[list]:
    chunk = []
    for square in squares:
        chunk.append(square)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _check_room(place: pathlib.Path, count: int) -> None:
    free, needed = shutil.disk_usage(place).free, count * SQUARE_BYTES
    if needed > free:
        raise InputError(f"{place}: {needed / 2**30:.1f} GiB are needed for {count:,} decoded images and {free / 2**30:.1f} GiB are "
                         "free; name another --cache-dir, or make room")
