"""What an index knows of the files whose codes it holds: where each content lies, in the attributes of its item.

An item is a content, known by its digest, whatever its files are called: a file that is moved keeps its item, and two equal
files are two places of one.
"""

import collections
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_brcd.retrieval import PackedCodes
from jax_brcd.search.stores import Store
from jax_brcd.search.stores.spelling import as_text

ID_DIGITS = 32  # of the digest's 64: 128 bits, which no two contents share by chance
TOGETHER = 1000  # items that are written at once
FURTHER_BYTES = 40_000  # of the further places of one content: Milvus keeps 65,535 bytes of all attributes of an item
MISSING = "missing"  # the attribute of an item whose files have vanished


class Place(NamedTuple):
    """A file as it was last seen: its absolute path, bytes, seconds of the clock, and the folder that was added."""

    path: str
    size: int
    mtime: float
    root: str


class Content(NamedTuple):
    """What an item's attributes say: its places in order of their paths, the last known ones where it is missing."""

    digest: str
    encoder: str
    places: tuple[Place, ...]
    missing: bool = False

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> "Content | None":
        """Reads attributes; None for those of an item that no folder gave."""
        if not isinstance(attributes.get("digest"), str) or "path" not in attributes:
            return None
        first = Place(*(attributes.get(name) for name in Place._fields))
        further = [Place(*each) for each in json.loads(attributes.get("further") or "[]")]
        return cls(attributes["digest"], attributes.get("encoder", ""), (first, *further), bool(attributes.get(MISSING)))

    def attributes(self) -> dict[str, Any]:
        """What a store keeps: the first place's parts, and further places as JSON where there are any, as many as every store
        keeps, of each folder one at least. The others are found anew by each addition, which reads their files again."""
        first, *further = self.places
        of_roots = {place.root: place for place in reversed(further)}
        kept = sorted(further, key=lambda place: place is not of_roots[place.root])
        sizes = itertools.accumulate(len(as_text(json.dumps(place))) for place in kept)
        further = sorted(place for place, size in zip(kept, sizes, strict=True) if size <= FURTHER_BYTES)
        return {**first._asdict(), "folder": os.path.dirname(first.path), "digest": self.digest, "encoder": self.encoder,
                MISSING: self.missing, **({"further": json.dumps(further)} if further else {})}


def id_of(digest: str) -> str:
    """The id of the item of a content."""
    return digest[:ID_DIGITS]


def shown(path: str) -> str:
    """A path as it may be printed: what is no character of text, or moves the cursor, as an escape."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in path)


def contents(store: Store) -> Iterator[tuple[str, Content]]:
    """The items that folders gave, by their ids."""
    for item in store.items():
        content = Content.of(item.attributes)
        if content is not None:
            yield item.id, content


class Change(NamedTuple):
    """What becomes of an item's places: files that are there, files that have vanished, files whose content is another now."""

    found: tuple[Place, ...] = ()
    vanished: frozenset[str] = frozenset()
    replaced: frozenset[str] = frozenset()

    def of(self, content: Content) -> Content | None:
        """The content with its places as they are now: missing where its files have vanished, None where they hold others."""
        there = {place.path: place for place in (() if content.missing else content.places)}
        there |= {place.path: place for place in self.found}
        gone = (self.vanished | self.replaced) - {place.path for place in self.found}
        left = tuple(there[path] for path in sorted(there) if path not in gone)
        if left:
            return content._replace(places=left, missing=False)
        lost = tuple(place for place in content.places if place.path not in self.replaced)
        return content._replace(places=lost, missing=True) if lost else None


class Encoded(NamedTuple):
    """A content that is new to an index: its bytes of a code, and its thumbnail."""

    content: Content
    packed: np.ndarray
    thumbnail: bytes | None

    def joined(self, there: Content | None) -> Content:
        """The content with the places that another process may have found in the meantime."""
        if there is None or there.missing:
            return self.content
        return self.content._replace(places=(*there.places, *self.content.places))


def write(store: Store, fresh: Mapping[str, Encoded], changes: Mapping[str, Change]) -> int:
    """Adds new contents and changes the places of those that are there, as the store holds them at this moment: other processes
    may fill it too. Returns how many items have become missing."""
    ids = [*fresh, *(id for id in changes if id not in fresh)]
    return sum(_write(store, ids[begin : begin + TOGETHER], fresh, changes) for begin in range(0, len(ids), TOGETHER))


def _write(store: Store, ids: list[str], fresh: Mapping[str, Encoded], changes: Mapping[str, Change]) -> int:
    added, deleted, lost = [], [], 0
    for id, item in zip(ids, store.get(ids), strict=True):
        there = None if item is None else Content.of(item.attributes)
        before = there if id not in fresh else fresh[id].joined(there)
        if before is None:
            continue
        content = changes.get(id, Change()).of(before)
        if content is None:
            deleted.append(id)
        elif id in fresh:
            added.append((id, fresh[id].packed, content, fresh[id].thumbnail))
        elif content != there:
            added.append((id, item.packed, content, store.thumbnail(id)))
            lost += content.missing and not there.missing
    if added:
        ids, packed, now, thumbnails = zip(*added, strict=True)
        store.add(ids, PackedCodes(np.stack(packed), store.bits, store.space), [each.attributes() for each in now],
                  list(thumbnails))
    if deleted:
        store.delete(deleted)
    return lost


class Catalogue:
    """Which files an index knows, for one addition. Reading it costs some hundred bytes of memory a file."""

    def __init__(self, known: Iterable[tuple[str, Content]]):
        self.ids: set[str] = set()
        self.missing: set[str] = set()
        self._claims: dict[str, list[tuple[str, int, float]]] = collections.defaultdict(list)
        for id, content in known:
            self.ids.add(id)
            if content.missing:
                self.missing.add(id)
            for place in content.places:
                self._claims[place.path].append((id, place.size, place.mtime))

    def unchanged(self, path: str, size: int, mtime: float) -> str | None:
        """The id of the content that a file has if it has not changed since it was read."""
        return next((id for id, *stamp in self._claims.get(path, ()) if stamp == [size, mtime]), None)

    def ids_of(self, path: str) -> list[str]:
        """The items that say that the file is theirs: one, unless a change was interrupted."""
        return [id for id, *_ in self._claims.get(path, ())]

    def below(self, root: str) -> Sequence[str]:
        """The paths in a folder at any depth, and the folder's own where it is a file."""
        start = root.rstrip(os.sep) + os.sep
        return [path for path in self._claims if path == root or path.startswith(start)]

    def present_below(self, root: str) -> int:
        """How many of these are not missing."""
        return sum(any(id not in self.missing for id in self.ids_of(path)) for path in self.below(root))
