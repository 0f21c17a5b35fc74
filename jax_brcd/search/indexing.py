"""Filling an index from folders, again and again: only what is new is read, and only new contents are encoded.

Files are told apart by size and time of change, contents by their digests. What is encoded is written every second, so that
whatever ends the work, the next addition goes on from there. The files themselves are only ever read.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jax_brcd.data.photos import Known, Photo, know, read_photo
from jax_brcd.encoder import HashEncoder
from jax_brcd.runtime import interruption
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.progress import Progress, Say, silent, unheard
from jax_brcd.runtime.workers import Pool, ahead, cores, workers
from jax_brcd.search.encoders import note_filler
from jax_brcd.search.places import Catalogue, Change, Content, Encoded, Place, contents, id_of, shown, write
from jax_brcd.search.scanning import Found, Shard, changes_below, look_below, roots_of
from jax_brcd.search.stores import Store
from jax_brcd.views.fitting import check_fits

SECONDS = 60.0  # for one file, after which it is listed as one that cannot be read
AHEAD = 8  # pictures that are read before they are asked for, beside two for each worker
EVERY = 1.0  # seconds after which what is encoded is written
TOGETHER = 64  # images that are encoded at once, and
PIXEL_BYTES = 2**28  # how many bytes of pixels at most, but for one image
FILES_A_WORKER = 64  # what pays for starting a process
ROOTS = "roots"  # the note of the folders, with the number of their shards


class Outcome(NamedTuple):
    """What became of a file elsewhere: the id of its content, or why there is none; and whether it was new to the index."""

    place: Place
    id: str | None
    reason: str
    encoded: bool


Elsewhere = Callable[[list[Place], str], Iterator[Outcome]]  # of files, and of the identity of the encoder


class Added(NamedTuple):
    """What an addition did, in files; `vanished` counts contents."""

    unchanged: int
    encoded: int
    recognised: int
    vanished: int
    bad: dict[str, str]

    def line(self) -> str:
        """It in words."""
        seen = self.unchanged + self.encoded + self.recognised + len(self.bad)
        parts = [f"{self.encoded:,} encoded", f"{self.unchanged:,} unchanged",
                 *([f"{self.recognised:,} moved, renamed or equal to another"] if self.recognised else []),
                 *([f"{len(self.bad):,} that cannot be read"] if self.bad else [])]
        lost = f"; {self.vanished:,} vanished and marked as missing" if self.vanished else ""
        return f"{seen:,} images: {', '.join(parts)}{lost}."


def add_folders(
    store: Store, folders: Iterable[os.PathLike | str], encoder: HashEncoder, *, place: str, shard: Shard = Shard(),
    processes: int | None = None, seconds: float = SECONDS, elsewhere: Elsewhere | None = None, progress: Progress = silent,
    say: Say = unheard,
) -> Added:
    """Brings an index to what lies below folders now.

    Args:
        encoder: whose codes are in the store's space. place: where it was loaded from, for the notes.
        shard: the part of the files that this process takes care of.
        processes: that read files; 0 for threads of this one; None for the cores, or fewer where there are few files.
        seconds: for one file, but for threads, which nothing can end.
        elsewhere: reads, encodes and writes in place of this process.
        say: told of folders that are not there and of what was passed over.

    Raises:
        InputError: for a folder that is not there and was never indexed, for files, and for an encoder of another space or
            length.
    """
    catalogue = Catalogue(contents(store))
    found = _look(roots_of(folders), store, catalogue, shard, say)
    identity = note_filler(store, encoder, place)
    work = _Work(store, encoder, identity, catalogue, {root: dict(below.refused) for root, below in found.items()}, progress)
    work.compare(file for below in found.values() for file in below.files)
    if work.waiting and elsewhere is not None:
        work.hear(elsewhere(work.waiting, identity))
    elif work.waiting:
        count = min(cores(), 1 + len(work.waiting) // FILES_A_WORKER) if processes is None else processes
        with workers(count, seconds) as pool:
            work.read(pool, 2 * (count or cores()) + AHEAD)
    vanished = 0
    for root, below in found.items():
        changes = changes_below(root, below, catalogue, work.now, shard)
        vanished += write(store, {}, changes)
        store.note(bad_note(root, shard), json.dumps(work.bad[root]))
    _note_roots(store, found, shard)
    bad = {path: reason for reasons in work.bad.values() for path, reason in reasons.items()}
    return Added(work.unchanged, work.encoded, work.recognised, vanished, bad)


def bad_note(root: str, shard: Shard) -> str:
    """The name of the note of the files below a folder that cannot be read: JSON of paths to reasons."""
    return f"bad {shard.number}/{shard.of} {json.dumps(root)}"  # so that a name of any bytes is text


def noted_roots(store: Store) -> dict[str, int]:
    """The folders that an index was filled from, and in how many shards each was the last time."""
    return json.loads(store.noted(ROOTS) or "{}")


def forget_roots(store: Store, roots: Iterable[str]) -> None:
    """Takes folders out of the notes, and the files there that cannot be read."""
    known = noted_roots(store)
    for root in roots:
        of = known.pop(root)
        for number in range(1, of + 1):
            store.note(bad_note(root, Shard(number, of)), "{}")
    store.note(ROOTS, json.dumps(known))


def _note_roots(store: Store, roots: Iterable[str], shard: Shard) -> None:
    known = noted_roots(store)
    now = known | dict.fromkeys(roots, shard.of)
    if now != known:
        store.note(ROOTS, json.dumps(now))


def _look(roots: list[str], store: Store, catalogue: Catalogue, shard: Shard, say: Say) -> dict[str, Found]:
    """What lies below each folder that is there. Of those that are not nothing is marked as missing."""
    found, known = {}, noted_roots(store)
    for root in roots:
        below, before = look_below(root, shard), catalogue.present_below(root)
        if isinstance(below, str) and not before and root not in known:
            raise InputError(f"{root}: {below}; check the path")
        if not isinstance(below, str) and below.empty and before:
            below = "holds no image"
        if isinstance(below, str):
            say(f"{shown(root)} {below}, as where a disk is not connected: its {before:,} images stay as they are. Where they are "
                "gone for good, remove the folder from the index.")
            continue
        found[root] = below
        for note in below.notes:
            say(shown(f"{root}: {note}"))
    return found


def fits(encoder: HashEncoder, pixels: UInt8[np.ndarray, "height width 3"]) -> str:
    """Why an encoder refuses an image of this size; nothing where it does not."""
    try:
        check_fits(*pixels.shape[:2], size=encoder.preprocessing.size, resize=encoder.preprocessing.resize)
    except InputError as error:
        return error.problem
    return ""


def enough(images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> bool:
    """Whether images that were read are to be encoded, and forgotten, before more are."""
    return len(images) >= TOGETHER or sum(image.nbytes for image in images) > PIXEL_BYTES


class _Coming(NamedTuple):
    """A content that is being read, and its files."""

    id: str
    digest: str
    places: list[Place]


class _Work:
    """One addition as it goes on."""

    def __init__(self, store: Store, encoder: HashEncoder, identity: str, catalogue: Catalogue,
                 bad: dict[str, dict[str, str]], progress: Progress):
        self.store, self.encoder, self.identity, self.catalogue = store, encoder, identity, catalogue
        self.bad, self.progress = bad, progress
        self.waiting: list[Place] = []
        self.now: dict[str, str] = {}  # the content that each file has, by its path
        self.unchanged = self.encoded = self.recognised = 0
        self._coming: dict[str, _Coming] = {}
        self._read: list[tuple[_Coming, Photo]] = []
        self._found: dict[str, list[Place]] = {}  # further places of contents that the index has
        self._since: float | None = None  # when the oldest of what is not written yet came

    def compare(self, files: Iterable[Place]) -> None:
        """Finds the files that must be read; those that are back where they were are no longer missing."""
        for file in files:
            id = self.catalogue.unchanged(file.path, file.size, file.mtime)
            if id is None:
                self.waiting.append(file)
                continue
            self.now[file.path] = id
            self.unchanged += 1
            if id in self.catalogue.missing:
                self._found.setdefault(id, []).append(file)
        write(self.store, {}, {id: Change(found=tuple(places)) for id, places in self._found.items()})
        self._found = {}

    def read(self, pool: Pool, depth: int) -> None:
        """Reads and encodes what is waiting, and writes it every second."""
        for answer in ahead(pool, read_photo, self._new(pool, depth), lambda coming: (coming.places[0].path,), depth):
            if answer is not None:
                self._take(*answer)
            full = enough([photo.pixels for _, photo in self._read])
            if full or (self._since is not None and time.monotonic() - self._since > EVERY):
                self._write()
        self._write()

    def hear(self, outcomes: Iterable[Outcome]) -> None:
        """Takes note of what was done elsewhere."""
        for outcome in outcomes:
            interruption.check()
            if outcome.id is None:
                self._refuse([outcome.place], outcome.reason)
                continue
            self._settle(outcome.id, [outcome.place])
            self.encoded += outcome.encoded
            self.recognised += not outcome.encoded
            self._tell()

    def _new(self, pool: Pool, depth: int) -> Iterator[_Coming | None]:
        """The contents that must be encoded; None where the next is not known yet."""
        for answer in ahead(pool, know, self.waiting, lambda file: (file.path,), 2 * depth):
            if answer is None:
                yield None
                continue
            file, known = answer
            if not isinstance(known, Known):
                self._refuse([file], known)
                continue
            place, id = Place(file.path, known.size, known.mtime, file.root), id_of(known.digest)
            if id in self._coming:
                self._coming[id].places.append(place)
            elif id in self.catalogue.ids:
                self._since = self._since or time.monotonic()
                self._found.setdefault(id, []).append(place)
            else:
                self._coming[id] = _Coming(id, known.digest, [place])
                yield self._coming[id]

    def _take(self, coming: _Coming, photo: Photo | str | Exception) -> None:
        if isinstance(photo, Photo):
            photo = fits(self.encoder, photo.pixels) or photo
        if not isinstance(photo, Photo):
            del self._coming[coming.id]
            self._refuse(coming.places, photo)
            return
        self._since = self._since or time.monotonic()
        self._read.append((coming, photo))

    def _refuse(self, files: list[Place], reason: str | Exception) -> None:
        """Lists files that cannot be read."""
        for file in files:
            self.bad[file.root][file.path] = reason if isinstance(reason, str) else f"{str(reason) or type(reason).__name__}"
        self._tell()

    def _write(self) -> None:
        """Encodes what was read and writes it, and the new places of what the index has."""
        codes = self.encoder.encode([photo.pixels for _, photo in self._read])
        fresh = {coming.id: Encoded(Content(coming.digest, self.identity, tuple(coming.places)), packed, photo.thumbnail)
                 for (coming, photo), packed in zip(self._read, codes.packed, strict=True)}
        write(self.store, fresh, {id: Change(found=tuple(places)) for id, places in self._found.items()})
        for coming, _ in self._read:
            self._settle(coming.id, coming.places)
            del self._coming[coming.id]
        for id, places in self._found.items():
            self._settle(id, places)
        self.encoded += len(fresh)
        self.recognised += sum(len(coming.places) - 1 for coming, _ in self._read) + sum(map(len, self._found.values()))
        self._read, self._found, self._since = [], {}, None
        self._tell()

    def _settle(self, id: str, places: Iterable[Place]) -> None:
        self.catalogue.ids.add(id)
        for place in places:
            self.now[place.path] = id

    def _tell(self) -> None:
        done = self.encoded + self.recognised + sum(map(len, self.bad.values()))
        self.progress("index images", min(done, len(self.waiting)), len(self.waiting))
