"""Items in memory: ids, codes and attributes side by side, sorted by id so that ties by position are ties by id."""

import dataclasses
import functools
from typing import Any

import numpy as np

from jax_brcd.retrieval import HammingIndex, PackedCodes
from jax_brcd.search.stores.base import Batch, Hit, matches


@dataclasses.dataclass(frozen=True)
class Items:
    """A collection that is replaced, never changed. `ids` are sorted and distinct; the others stand in their order."""

    ids: list[str]
    codes: PackedCodes
    attributes: list[dict[str, Any]]

    @classmethod
    def none(cls, bits: int, space: str | None) -> "Items":
        """A collection of no items, for codes of that kind."""
        return cls([], PackedCodes(np.empty((0, -(-bits // 8)), np.uint8), bits, space), [])

    def __len__(self) -> int:
        return len(self.ids)

    def adding(self, batch: Batch) -> "Items":
        """These items and those of the batch, which take the place of their namesakes."""
        kept = self.without(batch.ids)
        ids, attributes = kept.ids + batch.ids, kept.attributes + batch.attributes
        order = sorted(range(len(ids)), key=ids.__getitem__)
        packed = np.concatenate([kept.codes.packed, batch.codes.packed])[order]
        return Items([ids[row] for row in order], PackedCodes(packed, self.codes.bits, self.codes.space),
                     [attributes[row] for row in order])

    def without(self, ids: list[str]) -> "Items":
        """These items but for some."""
        gone = set(ids)
        return self._rows([row for row, id in enumerate(self.ids) if id not in gone])

    def search(self, queries: PackedCodes, k: int, where: dict[str, Any]) -> list[list[Hit]]:
        """See Store.search."""
        items = self._rows([row for row, each in enumerate(self.attributes) if matches(each, where)]) if where else self
        if not len(items):
            return [[] for _ in range(len(queries))]
        found = items._index.search(queries, min(k, len(items)))
        return [[Hit(items.ids[row], distance, dict(items.attributes[row]))
                 for distance, row in zip(distances.tolist(), rows.tolist(), strict=True)]
                for distances, rows in zip(*found, strict=True)]

    @functools.cached_property
    def _index(self) -> HammingIndex:
        return HammingIndex(self.codes)

    def _rows(self, rows: list[int]) -> "Items":
        if len(rows) == len(self):
            return self
        return Items([self.ids[row] for row in rows], self.codes[rows], [self.attributes[row] for row in rows])
