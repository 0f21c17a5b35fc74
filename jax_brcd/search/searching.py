"""What an index answers: the images nearest to others, and groups of images that are nearly the same."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jax_brcd.data.photos import thumbnail_of
from jax_brcd.data.reading import read_image
from jax_brcd.encoder import HashEncoder
from jax_brcd.retrieval import HammingIndex, PackedCodes
from jax_brcd.runtime.files import as_path
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.search.indexing import enough
from jax_brcd.search.places import MISSING, Content, shown
from jax_brcd.search.stores import Hit, Store
from jax_brcd.search.stores.view import MANY

TOGETHER = 1024  # codes that are searched for at once
WIDER = 4  # how many times more hits are asked for where too many are missing
ORIGIN = 0  # the distance of what distances are counted from


class Picture(NamedTuple):
    """An image of an index in an answer: its place from 1, and how far it is, in bits or of a soft query in logits.

    `path` is one of its files, or its id where no folder gave it; `others` are equal files.
    """

    rank: int
    distance: int | float
    id: str
    path: str
    others: tuple[str, ...] = ()
    missing: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """All its files."""
        return (self.path, *self.others)

    @classmethod
    def of(cls, rank: int, id: str, distance: int | float, attributes: dict[str, Any]) -> "Picture":
        """An item of a store."""
        content = Content.of(attributes)
        if content is None:
            return cls(rank, distance, id, str(attributes.get("path", id)))
        first, *others = (place.path for place in content.places)
        return cls(rank, distance, id, first, tuple(others), content.missing)


class Answer(NamedTuple):
    """What was asked, the pictures that answer it, and the small picture of a query."""

    title: str
    pictures: list[Picture]
    thumbnail: bytes | None = None


def search_images(
    store: Store, encoder: HashEncoder, paths: Sequence[os.PathLike | str], k: int, *, soft: bool = False, missing: bool = False
) -> list[Answer]:
    """The k nearest images of each image file.

    Args:
        encoder: of the store's space; its own codes may come from another encoder of it, such as the teacher.
        soft: rank by logits, which tells apart images at one distance. missing: find images too whose files have vanished.

    Raises:
        InputError: for files that are no images, and k < 1.
    """
    answers: list[Answer] = []
    images: list[UInt8[np.ndarray, "_ _ 3"]] = []
    for number, path in enumerate(paths, start=1):
        images.append(read_image(as_path(path), upright=True))
        if number == len(paths) or enough(images):
            queries = encoder.logits(images) if soft else encoder.encode(images)
            found = nearest(store, queries, k, soft=soft, missing=missing)
            answers += [Answer(str(path), [Picture.of(rank, *hit) for rank, hit in enumerate(hits, start=1)], _thumbnail(image))
                        for path, image, hits in zip(paths[number - len(images) : number], images, found, strict=True)]
            images.clear()
    return answers


def nearest(store: Store, queries: Any, k: int, *, soft: bool = False, missing: bool = False) -> list[list[Hit]]:
    """Of each query the k nearest items that are not missing, or with `missing` of all."""
    wanted = k
    while True:
        found = store.search(queries, wanted, soft=soft)
        kept = [[hit for hit in hits if missing or not hit.attributes.get(MISSING)][:k] for hits in found]
        if all(len(few) == k or len(hits) < wanted for few, hits in zip(kept, found, strict=True)):
            return kept
        wanted *= WIDER


def duplicates(store: Store, radius: int, *, progress: Progress = silent) -> list[Answer]:
    """Groups of images of which each is within `radius` bits of another of its group, the largest first; equal files are a
    group at radius 0. Distances are those from the group's first image.

    Images of equal codes are of one group, so their code is searched for once, and among such codes alone.

    Raises:
        InputError: for radius < 0.
    """
    ids, alike, copied = _present(store)
    group, equals = _Groups(ids), list(alike.values())
    for first, *others in equals:
        for id in others:
            group.join(first, id)
    packed = np.frombuffer(b"".join(alike), np.uint8).reshape(len(alike), -(-store.bits // 8))
    codes = PackedCodes(packed, store.bits, store.space)
    index = HammingIndex(codes, multi_index=len(codes) >= MANY)
    for begin in range(0, len(codes), TOGETHER):
        for row, (_, near) in enumerate(index.search_radius(codes[begin : begin + TOGETHER], radius), start=begin):
            for other in near[near > row]:
                group.join(equals[row][0], equals[other][0])
        progress("compare codes", min(begin + TOGETHER, len(codes)), len(codes))
    groups = [_group(store, members) for members in group.all() if len(members) > 1 or members[0] in copied]
    several = [pictures for pictures in groups if _files(pictures) > 1]  # others may have been deleted meanwhile
    several.sort(key=lambda pictures: (-_files(pictures), pictures[0].path))
    return [Answer(f"Group {number} of {len(several)}", pictures) for number, pictures in enumerate(several, start=1)]


def _present(store: Store) -> tuple[list[str], dict[bytes, list[str]], set[str]]:
    """The ids of the items that are not missing, those of each code, and of those that several equal files have."""
    ids, alike, copied = [], collections.defaultdict(list), set()
    for item in store.items():
        if not item.attributes.get(MISSING):
            ids.append(item.id)
            alike[item.packed.tobytes()].append(item.id)
            if len(Picture.of(1, item.id, ORIGIN, item.attributes).paths) > 1:
                copied.add(item.id)
    return ids, alike, copied


class _Groups:
    """Which ids belong together (union-find)."""

    def __init__(self, ids: Iterable[str]):
        self._above = {id: id for id in ids}

    def join(self, one: str, other: str) -> None:
        one, other = self._top(one), self._top(other)
        self._above[max(one, other)] = min(one, other)

    def all(self) -> Iterator[list[str]]:
        """The groups, each in order of ids."""
        members: dict[str, list[str]] = collections.defaultdict(list)
        for id in self._above:
            members[self._top(id)].append(id)
        yield from map(sorted, members.values())

    def _top(self, id: str) -> str:
        while self._above[id] != id:
            self._above[id] = id = self._above[self._above[id]]
        return id


def _group(store: Store, ids: list[str]) -> list[Picture]:
    items = [item for item in store.get(ids) if item is not None]
    far = [int(np.bitwise_count(item.packed ^ items[ORIGIN].packed).sum()) for item in items]
    order = sorted(range(len(items)), key=lambda row: (far[row], items[row].id))
    return [Picture.of(rank, items[row].id, far[row], items[row].attributes) for rank, row in enumerate(order, start=1)]


def _files(pictures: list[Picture]) -> int:
    return sum(len(each.paths) for each in pictures)


def _thumbnail(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    from PIL import Image

    return thumbnail_of(Image.fromarray(image))


def lines(answer: Answer, draw: Callable[[bytes], None] | None, thumbnail: Callable[[str], bytes | None]) -> Iterator[str]:
    """An answer as lines of text: rank, distance and path; pictures are drawn before their lines where `draw` is given."""
    if draw is not None and answer.thumbnail is not None:
        draw(answer.thumbnail)
    yield shown(answer.title)
    for each in answer.pictures:
        small = thumbnail(each.id) if draw is not None else None
        if small is not None:
            draw(small)
        yield f"{each.rank:4d}  {told(each.distance):>6}  {shown(each.path)}{'  (missing)' if each.missing else ''}"
        for path in each.others:
            yield f"{'':4}  {'same':>6}  {shown(path)}"


def told(distance: int | float) -> str:
    """A distance in few digits."""
    return f"{distance:.2f}" if isinstance(distance, float) else str(distance)
