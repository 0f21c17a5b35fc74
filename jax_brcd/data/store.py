"""Decoded images on disk: each part of a data set once, as one memory-mapped array, whatever the size of the data set.

A folder of the store is named by what the images are decoded from (paths in their order, sizes, times of change), so parts
that are drawn by a seed lie there once a seed. Squares are appended a chunk at a time and count once the index says so, so a
pass that is killed goes on at the chunk it was at. The index also says when the squares were last written: those of another
time are held against their digest, and what was damaged is decoded anew.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jax_brcd.data.decoding import SIDE, as_many, decode_all, square_bytes
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import atomic_path, is_passing, locked, read_json, system_errors, write_json
from jax_brcd.runtime.progress import Progress, Say, silent, unheard

FORMAT = 1  # to be raised when the same file comes to mean another square
CHUNK = 256  # images of the usual side between two entries in the index
IMAGES, DIGESTS, INDEX, LOCK = "images.u8", "digests.u8", "index.json", "lock"
DIGEST_BYTES = hashlib.sha256().digest_size
# Images looked at; those that could not be read, as [position, reason]; a digest of the squares of the others, and the time in
# nanoseconds at which these were last written
EMPTY = {"done": 0, "bad": [], "content": "", "written": 0}


class Listed(NamedTuple):
    """An image of a data set: its path below the data set's folder, and the file and line that name it, if any."""

    path: str
    where: str = ""


class Squares(NamedTuple):
    """The decoded images of a part, memory-mapped."""

    images: UInt8[np.ndarray, "kept side side 3"]
    kept: Int[np.ndarray, " kept"]  # positions, among the images asked for, of those that could be read
    content: str  # digest of `images`, which a pass over them would otherwise have to find
    digests: UInt8[np.ndarray, "kept 32"]  # of each
    damaged: pathlib.Path | None = None  # what of the store was damaged, and so is decoded anew


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
    description: str, side: int = SIDE, progress: Progress = silent, say: Say = unheard,
) -> Squares:
    """The squares of those images that can be read.

    Args:
        side: pixels of a square.
        folder: what the paths are relative to. store: where decoded images lie. bad: counts what cannot be read.
        workers: see decoding.decode_all. description: which images these are. progress: told how many are decoded.
        say: told where another process decodes the same images, and this one waits.

    Raises:
        InputError: for too many bad images, or where the disk has no room for the squares.
        OSError: where it fills up on the way.
    """
    place = store / digest(folder, images, side)
    waits = functools.partial(say, f"Another process decodes the images of {description} into {place}; this one waits for it.")
    with locked(place / LOCK, waits):
        index, damaged = _index(place, len(images), side)
        _complete(place, index, folder, images, side, bad=bad, workers=workers, description=description, progress=progress)
    skipped = [position for position, _ in index["bad"]]
    kept = np.delete(np.arange(len(images)), skipped)
    if not len(kept):
        raise InputError(f"{folder}: none of the {len(images)} images of {description} could be read")
    squares = np.memmap(place / IMAGES, np.uint8, mode="r", shape=(len(kept), side, side, 3))
    digests = np.fromfile(place / DIGESTS, np.uint8, len(kept) * DIGEST_BYTES).reshape(len(kept), DIGEST_BYTES)
    return Squares(squares, kept, index["content"], digests, place if damaged else None)


def _complete(
    place: pathlib.Path, index: dict, folder: pathlib.Path, images: Sequence[Listed], side: int, *, bad: BadImages,
    workers: int | None, description: str, progress: Progress,
) -> None:
    """Decodes what the store does not hold yet, and tells `index` of it."""
    for position, reason in index["bad"]:
        bad.add(images[position], reason)
    remaining = images[index["done"] :]
    if not remaining:
        return
    size = square_bytes(side)
    _check_room(place, len(remaining), size)
    paths = [str(folder / image.path) for image in remaining]
    doing = f"decode {description}"
    progress(doing, index["done"], len(images))
    with system_errors(place / IMAGES), open(place / IMAGES, "ab") as squares, open(place / DIGESTS, "ab") as digests:
        squares.truncate(_good(index) * size)  # what was written after the last entry
        digests.truncate(_good(index) * DIGEST_BYTES)
        for chunk in _chunks(decode_all(paths, workers=workers, side=side), as_many(CHUNK, side)):
            for offset, square in enumerate(chunk):
                if isinstance(square, str):
                    position = index["done"] + offset
                    bad.add(images[position], square)
                    index["bad"].append([position, square])
                else:
                    squares.write(square.data)
                    each = hashlib.sha256(square.data).digest()
                    digests.write(each)
                    index["content"] = _chained(index["content"], each)
            for file in (squares, digests):
                file.flush()
                os.fsync(file.fileno())
            index["done"] += len(chunk)
            index["written"] = _written(place)
            write_json(place / INDEX, index)
            progress(doing, index["done"], len(images))


def _index(place: pathlib.Path, count: int, side: int) -> tuple[dict[str, Any], bool]:
    """What a folder of the store holds of `count` images, squares of `side` pixels, and whether it is to be made anew because it was damaged by hand."""
    if not (place / INDEX).exists():
        return {**EMPTY, "bad": []}, False
    try:
        index = {**EMPTY, **read_json(place / INDEX)}
        whole = _is_index(index, count) and _holds(place, index, square_bytes(side))
    except (OSError, ValueError, TypeError) as error:
        if is_passing(error):
            raise
        whole = False
    if not whole:
        for name in (IMAGES, DIGESTS, INDEX):
            _remove(place / name)
        return {**EMPTY, "bad": []}, True
    return index, False


def _is_index(index: dict[str, Any], count: int) -> bool:
    """Whether an index says what one may say of so many images."""
    done, bad = index["done"], index["bad"]
    return (type(done) is int and 0 <= done <= count and isinstance(index["content"], str) and type(index["written"]) is int
            and isinstance(bad, list) and all(
                isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and isinstance(entry[1], str)
                for entry in bad)
            and [position for position, _ in bad] == sorted({position for position, _ in bad if 0 <= position < done}))


def _holds(place: pathlib.Path, index: dict[str, Any], size: int) -> bool:
    """Whether the squares, of `size` bytes, are those that an index tells of. They are read only where they were written at another time than it
    says, or by a version that kept less of them; it then says so no more."""
    good, path = _good(index), place / IMAGES
    if good == 0:
        return True
    if path.stat().st_size < good * size:
        return False
    if index["written"] == _written(place) and index["content"] == _chain(_digests(place, good)):
        return True
    digests = [hashlib.sha256(square.data).digest() for square in np.memmap(path, np.uint8, "r", shape=(good, size))]
    if index["content"] not in ("", _chain(digests)):
        return False
    index |= {"content": _chain(digests), "written": _written(place)}
    with atomic_path(place / DIGESTS) as temporary:
        temporary.write_bytes(b"".join(digests))
    write_json(place / INDEX, index)
    return True


def _digests(place: pathlib.Path, good: int) -> list[bytes]:
    """The digests of the squares that are kept, as far as they are there."""
    kept = (place / DIGESTS).read_bytes() if (place / DIGESTS).is_file() else b""
    return [kept[begin : begin + DIGEST_BYTES] for begin in range(0, min(len(kept), good * DIGEST_BYTES), DIGEST_BYTES)]


def _written(place: pathlib.Path) -> int:
    return (place / IMAGES).stat().st_mtime_ns


def _remove(path: pathlib.Path) -> None:
    """Deletes a file, or what lies in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _chain(digests: Sequence[bytes]) -> str:
    return functools.reduce(_chained, digests, "")


def _chained(content: str, digest: bytes) -> str:
    """The digest of some squares and one more, so that decoding which goes on later gives the digest of one pass."""
    return hashlib.sha256(content.encode() + digest).hexdigest()[:20]


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
        raise InputError(f"{place}: {needed / 2**30:.1f} GiB are needed for {count:,} decoded images and {free / 2**30:.1f} "
                         "GiB are free; name another `cache_dir`, or make room")
