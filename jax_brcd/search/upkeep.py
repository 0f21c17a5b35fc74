"""What an index holds, whether its codes are still those of its files, and taking folders out of it."""

import collections
import json
import os
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jax_brcd.data.photos import Known, Photo, know, read_photo
from jax_brcd.encoder import HashEncoder
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.runtime.workers import ahead, workers
from jax_brcd.search.encoders import Filler, fillers, identity_of, load_encoder
from jax_brcd.search.indexing import bad_note, enough, forget_roots, noted_roots
from jax_brcd.search.places import Change, Content, contents, shown, write
from jax_brcd.search.scanning import Shard, root_of
from jax_brcd.search.stores import Store
from jax_brcd.search.stores.base import Item

TOGETHER = 64  # images that are verified at once
AHEAD = 16  # that are read before
UNITS = ("bytes", "kB", "MB", "GB", "TB")


class Root(NamedTuple):
    """A folder that an index was filled from: its files in the index, and whether it is there now."""

    files: int
    there: bool


class Status(NamedTuple):
    """What an index holds. `files` and `file_bytes` are those of its images that are not missing."""

    bits: int
    space: str | None
    images: int
    missing: int
    files: int
    file_bytes: int
    encoders: list[Filler]
    roots: dict[str, Root]
    bad: dict[str, str]

    def lines(self) -> Iterator[str]:
        """It in words."""
        yield f"{self.images:,} images in {self.files:,} files of {_size(self.file_bytes)}; {self.missing:,} missing"
        yield f"Codes: {self.bits} bits, space {self.space or 'not known'}; every encoder of this space may search them"
        for number, encoder in enumerate(self.encoders):
            yield f"{'Filled by' if number == 0 else 'Filled also by'}: {encoder.role} {encoder.backbone}, {encoder.place}"
        for path, root in self.roots.items():
            yield f"Folder: {shown(path)}, {root.files:,} files{'' if root.there else '; not there now'}"
        if self.bad:
            yield f"Cannot be read: {len(self.bad):,} files"
        for path, reason in self.bad.items():
            yield f"  {shown(path)}: {reason}"


def status(store: Store) -> Status:
    """Looks through an index, item by item."""
    missing = size = files = 0
    shards = noted_roots(store)
    of_roots = collections.Counter(dict.fromkeys(shards, 0))
    for _, content in contents(store):
        if content.missing:
            missing += 1
            continue
        for place in content.places:
            files, size = files + 1, size + place.size
            of_roots[place.root] += 1
    roots = {root: Root(count, os.path.isdir(root)) for root, count in sorted(of_roots.items())}
    return Status(store.bits, store.space, len(store), missing, files, size, list(fillers(store).values()), roots,
                  bad_files(store))


def bad_files(store: Store) -> dict[str, str]:
    """The files that could not be read the last time, by their paths, and why."""
    found = {}
    for root, of in noted_roots(store).items():
        for number in range(1, of + 1):
            found |= json.loads(store.noted(bad_note(root, Shard(number, of))) or "{}")
    return dict(sorted(found.items()))


def remove_folders(store: Store, folders: Iterable[os.PathLike | str]) -> int:
    """Takes what lies below folders out of an index, whether they are there or not; the files stay as they are.

    Returns:
        How many images have gone; one that lies elsewhere too stays.

    Raises:
        InputError: for a folder of which the index holds nothing.
    """
    starts = {root: os.path.join(root, "") for root in map(root_of, folders)}
    gone: dict[str, set[str]] = collections.defaultdict(set)
    used = set()
    for id, content in contents(store):
        for place in content.places:
            for root, start in starts.items():
                if place.path.startswith(start):
                    gone[id].add(place.path)
                    used.add(root)
    noted = [root for root in noted_roots(store) if any(os.path.join(root, "").startswith(start) for start in starts.values())]
    for root in starts:
        if root not in used and root not in noted:
            raise InputError(f"{root}: nothing of the index lies there; its status lists the folders")
    before = len(store)
    write(store, {}, {id: Change(replaced=frozenset(paths)) for id, paths in gone.items()})
    forget_roots(store, noted)
    return before - len(store)


def remove_missing(store: Store) -> int:
    """Takes the images out of an index whose files have vanished; returns how many."""
    ids = [id for id, content in contents(store) if content.missing]
    store.delete(ids)
    return len(ids)


class Verified(NamedTuple):
    """What a check of codes found: how many are equal, the paths of those that differ, and why others could not be checked."""

    equal: int
    different: list[str]
    unchecked: dict[str, str]


def verify(
    store: Store, sample: int, *, seed: int = 0, encoder: HashEncoder | None = None, progress: Progress = silent
) -> Verified:
    """Compares the stored codes of a random sample of the images with fresh ones of their files.

    Args:
        encoder: that filled the index; loaded from where it lay then unless told. Images that others filled in are not checked.
    """
    chosen = _sample(store, sample, random.Random(seed))
    by_encoder: dict[str, list[tuple[Item, Content]]] = collections.defaultdict(list)
    for item, content in chosen:
        by_encoder[content.encoder].append((item, content))
    found, known = Verified(0, [], {}), fillers(store)
    for identity, items in by_encoder.items():
        try:
            own = _loaded(known.get(identity), identity, encoder)
        except InputError as error:
            found.unchecked.update({content.places[0].path: error.line() for _, content in items})
            continue
        for begin in range(0, len(items), TOGETHER):
            found = _compared(own, items[begin : begin + TOGETHER], found)
            progress("verify codes", found.equal + len(found.different) + len(found.unchecked), len(chosen))
    return found


def _sample(store: Store, size: int, draw: random.Random) -> list[tuple[Item, Content]]:
    """So many items that are not missing, each as likely as any other, in one pass."""
    kept, seen = [], 0
    for item in store.items():
        content = Content.of(item.attributes)
        if content is None or content.missing:
            continue
        seen += 1
        if len(kept) < size:
            kept.append((item, content))
        elif (place := draw.randrange(seen)) < size:
            kept[place] = item, content
    return kept


def _loaded(filler: Filler | None, identity: str, given: HashEncoder | None) -> HashEncoder:
    """The encoder of an identity. Raises InputError where it is not there any more."""
    if given is not None and identity_of(given) == identity:
        return given
    if filler is None or given is not None:
        raise InputError("filled in by another encoder")
    encoder = load_encoder(filler.place)
    if identity_of(encoder) != identity:
        raise InputError(f"filled in by another encoder than the one that lies at {filler.place} now")
    return encoder


def _compared(encoder: HashEncoder, items: list[tuple[Item, Content]], found: Verified) -> Verified:
    """What was found, with some items more."""
    equal, different, unchecked = found.equal, list(found.different), dict(found.unchecked)
    read: list[tuple[Item, Content, np.ndarray]] = []

    def compare() -> None:
        nonlocal equal
        codes = encoder.encode([pixels for *_, pixels in read])
        for (item, content, _), packed in zip(read, codes.packed, strict=True):
            if np.array_equal(item.packed, packed):
                equal += 1
            else:
                different.append(content.places[0].path)
        read.clear()

    with workers(0, 0.0) as pool:
        for answer in ahead(pool, _read_again, items, lambda item: (item[1].places[0].path, item[1].digest), AHEAD):
            if answer is None:
                continue
            (item, content), photo = answer
            if not isinstance(photo, Photo):
                unchecked[content.places[0].path] = str(photo)
                continue
            read.append((item, content, photo.pixels))
            if enough([pixels for *_, pixels in read]):
                compare()
    compare()
    return Verified(equal, different, unchecked)


def _read_again(path: str, digest: str) -> Photo | str:
    known = know(path)
    if not isinstance(known, Known):
        return known
    return read_photo(path) if known.digest == digest else "changed since it was added"


def _size(count: int) -> str:
    """Bytes in a unit of few digits."""
    if count < 1000:
        return f"{count} bytes"
    power = min((len(str(count)) - 1) // 3, len(UNITS) - 1)
    return f"{count / 1000**power:,.1f} {UNITS[power]}"
