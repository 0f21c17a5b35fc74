"""Items in memory, side by side and sorted by id so that ties by position are ties by id; and stores that hold them whole."""

import abc
import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jax_brcd.retrieval import HammingIndex, PackedCodes
from jax_brcd.search.stores.base import Batch, Hit, Item, Query, matches
from jax_brcd.search.stores.checked import CheckedStore


@dataclasses.dataclass(frozen=True)
class Items:
    """A collection that is replaced, never changed. `ids` are sorted and distinct; what follows them stands in their order.

    `notes` are facts about the collection itself.
    """

    ids: list[str]
    codes: PackedCodes
    attributes: list[dict[str, Any]]
    thumbnails: list[bytes | None]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def none(cls, bits: int, space: str | None) -> "Items":
        """A collection of no items, for codes of that kind."""
        return cls([], PackedCodes(np.empty((0, -(-bits // 8)), np.uint8), bits, space), [], [])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Item:
        return Item(self.ids[row], self.codes.packed[row].copy(), dict(self.attributes[row]))

    def adding(self, batch: Batch) -> "Items":
        """These items and those of the batch, which take the place of their namesakes."""
        kept = self.without(batch.ids)
        ids, attributes, thumbnails = (getattr(kept, name) + getattr(batch, name) for name in ("ids", "attributes", "thumbnails"))
        packed = np.concatenate([kept.codes.packed, batch.codes.packed])
        together = dataclasses.replace(self, ids=ids, codes=PackedCodes(packed, self.codes.bits, self.codes.space),
                                       attributes=attributes, thumbnails=thumbnails)
        return together._rows(sorted(range(len(ids)), key=ids.__getitem__))

    def without(self, ids: list[str]) -> "Items":
        """These items but for some."""
        gone = set(ids)
        rows = [row for row, id in enumerate(self.ids) if id not in gone]
        return self if len(rows) == len(self) else self._rows(rows)

    def noting(self, name: str, value: str) -> "Items":
        """These items, with one more fact about them."""
        return dataclasses.replace(self, notes=self.notes | {name: value})

    def row(self, id: str) -> int | None:
        """The place of an item, or None."""
        row = bisect.bisect_left(self.ids, id)
        return row if row < len(self) and self.ids[row] == id else None

    def matching(self, where: dict[str, Any]) -> "Items":
        """The items that have all these attributes."""
        return self._rows([row for row, each in enumerate(self.attributes) if matches(each, where)]) if where else self

    def search(self, query: Query) -> list[list[Hit]]:
        """See Store.search."""
        items = self.matching(query.where)
        k = min(query.k, len(items))
        if not k:
            return [[] for _ in range(len(query))]
        if query.logits is None:
            return items._hits(*items._index.search(query.codes, k))
        products, rows = items._index.search(query.logits, k, soft=True)
        return items._hits(query.logits.distances(products), rows)

    def within(self, queries: PackedCodes, radius: int, where: dict[str, Any]) -> list[list[Hit]]:
        """See Store.search_radius."""
        items = self.matching(where)
        balls = items._index.search_radius(queries, radius) if len(queries) else []
        return items._hits([distances for distances, _ in balls], [rows for _, rows in balls])

    @functools.cached_property
    def _index(self) -> HammingIndex:
        return HammingIndex(self.codes)

    def _hits(self, distances: Iterable[np.ndarray], rows: Iterable[np.ndarray]) -> list[list[Hit]]:
        """The hits of each query, from its distances and rows."""
        return [[Hit(self.ids[row], distance, dict(self.attributes[row]))
                 for distance, row in zip(own.tolist(), places.tolist(), strict=True)]
                for own, places in zip(distances, rows, strict=True)]

    def _rows(self, rows: list[int]) -> "Items":
        ids, attributes, thumbnails = ([getattr(self, name)[row] for row in rows] for name in ("ids", "attributes", "thumbnails"))
        return dataclasses.replace(self, ids=ids, codes=self.codes[rows], attributes=attributes, thumbnails=thumbnails)


class WholeStore(CheckedStore):
    """See Store. All that a store does but for keeping its items, which a subclass does by `_current` and `_change`."""

    @abc.abstractmethod
    def _current(self) -> Items:
        """The items as they are now. Raises InputError for a store that is closed."""

    @abc.abstractmethod
    def _change(self, change: Callable[[Items], Items]) -> None:
        """Puts what `change` makes of the items in their place; it gives the same object where there is nothing to change."""

    def _put(self, batch: Batch) -> None:
        self._change(lambda items: items.adding(batch))

    def _drop(self, ids: list[str]) -> None:
        self._change(lambda items: items.without(ids))

    def _nearest_hits(self, query: Query) -> list[list[Hit]]:
        return self._current().search(query)

    def _hits_within(self, codes: PackedCodes, radius: int, where: dict[str, Any]) -> list[list[Hit]]:
        return self._current().within(codes, radius, where)

    def _fetch(self, ids: list[str]) -> list[Item | None]:
        items = self._current()
        return [None if (row := items.row(id)) is None else items[row] for id in ids]

    def _each(self, where: dict[str, Any]) -> Iterator[Item]:
        items = self._current().matching(where)
        return (items[row] for row in range(len(items)))

    def _picture(self, id: str) -> bytes | None:
        items = self._current()
        row = items.row(id)
        return None if row is None else items.thumbnails[row]

    def _keep_note(self, name: str, value: str) -> None:
        self._change(lambda items: items.noting(name, value))

    def noted(self, name: str) -> str | None:
        """See Store."""
        return self._current().notes.get(name)

    def __len__(self) -> int:
        return len(self._current())
