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

from jax_brcd.data.decoding import SIDE, as_many, decode_all, square_bytes
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json, write_json
from jax_brcd.runtime.progress import Progress, silent

FORMAT = 1  # to be raised when the same file comes to mean another square
CHUNK = 256  # images of the usual side between two entries in the index
IMAGES, INDEX, LOCK = "images.u8", "index.json", "lock"
# Images looked at; those that could not be read, as [position, reason]; a digest of the squares of the others
EMPTY = {"done": 0, "bad": [], "content": ""}


class Listed(NamedTuple):
    """An image of a data set: its path below the data set's folder, and the file and line that name it, if any."""

    path: str
    where: str = ""


class Squares(NamedTuple):
    """The decoded images of a part, memory-mapped."""

    images: UInt8[np.ndarray, "kept side side 3"]
    kept: Int[np.ndarray, " kept"]  # positions, among the images asked for, of those that could be read
    content: str  # digest of `images`, which a pass over them would otherwise have to find


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
            raise InputError(f"{place}: {reason}{others}; mend it, take it out, or skip bad images with a higher "
                             "`max_bad_images`")

    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know."""
        if not self.found:
            return ()
        return (f"Images that could not be read and were skipped: {len(self.found):,}. {'; '.join(self.found.values())}.",)


def digest(folder: pathlib.Path, images: Sequence[Listed], side: int = SIDE) -> str:
    """A short digest of where images lie, how large they are, when they were last written, and the side of their squares."""
    sha = hashlib.sha256(f"{FORMAT} {side} {folder.resolve()}".encode())
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
    description: str, side: int = SIDE, progress: Progress = silent,
) -> Squares:
    """The squares of those images that can be read.

    Args:
        side: pixels of a square.
        folder: what the paths are relative to. store: where decoded images lie. bad: counts what cannot be read.
        workers: see decoding.decode_all. description: which images these are. progress: told how many are decoded.

    Raises:
        InputError: for too many bad images, or where the disk has no room for the squares.
        OSError: where it fills up on the way.
    """
    place = store / digest(folder, images, side)
    place.mkdir(parents=True, exist_ok=True)
    with open(place / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be decoding the same images; it ends with its process
        index = _complete(place, folder, images, side, bad=bad, workers=workers, description=description, progress=progress)
    skipped = [position for position, _ in index["bad"]]
    kept = np.delete(np.arange(len(images)), skipped)
    if not len(kept):
        raise InputError(f"{folder}: none of the {len(images)} images of {description} could be read")
    squares = np.memmap(place / IMAGES, np.uint8, mode="r", shape=(len(kept), side, side, 3))
    return Squares(squares, kept, index["content"])


def _complete(
    place: pathlib.Path, folder: pathlib.Path, images: Sequence[Listed], side: int, *, bad: BadImages, workers: int | None,
    description: str, progress: Progress,
) -> dict:
    """Decodes what the store does not hold yet; returns its index."""
    path, index, size = place / IMAGES, _index(place, side), square_bytes(side)
    for position, reason in index["bad"]:
        bad.add(images[position], reason)
    remaining = images[index["done"] :]
    if not remaining:
        return index
    _check_room(place, len(remaining), size)
    paths = [str(folder / image.path) for image in remaining]
    doing = f"decode {description}"
    progress(doing, index["done"], len(images))
    with open(path, "ab") as file:
        file.truncate(_good(index) * size)  # what was written after the last entry
        for chunk in _chunks(decode_all(paths, workers=workers, side=side), as_many(CHUNK, side)):
            for offset, square in enumerate(chunk):
                if isinstance(square, str):
                    position = index["done"] + offset
                    bad.add(images[position], square)
                    index["bad"].append([position, square])
                else:
                    file.write(square.tobytes())
                    index["content"] = _chained(index["content"], square.data)
            file.flush()
            os.fsync(file.fileno())
            index["done"] += len(chunk)
            write_json(place / INDEX, index)
            progress(doing, index["done"], len(images))
    return index


def _index(place: pathlib.Path, side: int) -> dict:
    """What a folder of the store holds, nothing where its squares were deleted or cut by hand."""
    path, index_path, size = place / IMAGES, place / INDEX, square_bytes(side)
    path.touch()
    index = read_json(index_path) if index_path.exists() else EMPTY
    if path.stat().st_size < _good(index) * size:
        index = EMPTY
    index = {**EMPTY, **index, "bad": list(index["bad"])}
    if _good(index) and not index["content"]:  # written before content was digested: read once
        for square in np.memmap(path, np.uint8, mode="r", shape=(_good(index), size)):
            index["content"] = _chained(index["content"], square.data)
        write_json(index_path, index)
    return index


def _chained(content: str, square: memoryview) -> str:
    """The digest of some squares and one more, so that decoding which goes on later gives the digest of one pass."""
    return hashlib.sha256(content.encode() + hashlib.sha256(square).digest()).hexdigest()[:20]


def _good(index: dict) -> int:
    return index["done"] - len(index["bad"])


def _chunks(squares: Iterator, count: int) -> Iterator[list]:
    chunk = []
    for square in squares:
        chunk.append(square)
        if len(chunk) == count:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _check_room(place: pathlib.Path, count: int, size: int) -> None:
    free, needed = shutil.disk_usage(place).free, count * size
    if needed > free:
        raise InputError(f"{place}: {needed / 2**30:.1f} GiB are needed for {count:,} decoded images and {free / 2**30:.1f} GiB "
                         "are free; name another `cache_dir`, or make room")
