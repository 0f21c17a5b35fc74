"""What all stores here do alike: they check what they are given, and leave the rest to themselves."""

import abc
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

from jax_brcd.retrieval import PackedCodes
from jax_brcd.retrieval.packing import Codes
from jax_brcd.retrieval.scores import RealMatrix
from jax_brcd.search.stores.base import (
    Attributes,
    Batch,
    Hit,
    Item,
    Query,
    checked_ball,
    checked_batch,
    checked_ids,
    checked_note,
    checked_query,
    checked_where,
)


class CheckedStore(abc.ABC):
    """See Store. What a subclass does is given what has been checked, and raises InputError where the store is closed.

    A subclass also has `bits` and `space`, `noted`, `__len__` and `close`.
    """

    bits: int
    space: str | None

    @abc.abstractmethod
    def _put(self, batch: Batch) -> None:
        """Adds items, all or none, in place of their namesakes."""

    @abc.abstractmethod
    def _drop(self, ids: list[str]) -> None:
        """Deletes items, all or none."""

    @abc.abstractmethod
    def _nearest_hits(self, query: Query) -> list[list[Hit]]:
        """See Store.search."""

    @abc.abstractmethod
    def _hits_within(self, codes: PackedCodes, radius: int, where: dict[str, Any]) -> list[list[Hit]]:
        """See Store.search_radius."""

    @abc.abstractmethod
    def _fetch(self, ids: list[str]) -> list[Item | None]:
        """See Store.get."""

    @abc.abstractmethod
    def _each(self, where: dict[str, Any]) -> Iterator[Item]:
        """See Store.items."""

    @abc.abstractmethod
    def _picture(self, id: str) -> bytes | None:
        """See Store.thumbnail."""

    @abc.abstractmethod
    def _keep_note(self, name: str, value: str) -> None:
        """See Store.note."""

    def add(
        self, ids: Sequence[str], codes: Codes, attributes: Sequence[Attributes] | None = None,
        thumbnails: Sequence[bytes | None] | None = None,
    ) -> None:
        """See Store."""
        self._put(checked_batch(self, ids, codes, attributes, thumbnails))

    def delete(self, ids: Sequence[str]) -> None:
        """See Store."""
        self._drop(checked_ids(ids))

    def search(
        self, query_codes: Codes | RealMatrix, k: SupportsIndex, where: Attributes | None = None, *, soft: bool = False
    ) -> list[list[Hit]]:
        """See Store."""
        return self._nearest_hits(checked_query(self, query_codes, k, where, soft))

    def search_radius(self, query_codes: Codes, radius: SupportsIndex, where: Attributes | None = None) -> list[list[Hit]]:
        """See Store."""
        return self._hits_within(*checked_ball(self, query_codes, radius, where))

    def get(self, ids: Sequence[str]) -> list[Item | None]:
        """See Store."""
        return self._fetch(checked_ids(ids))

    def items(self, where: Attributes | None = None) -> Iterator[Item]:
        """See Store."""
        return self._each(checked_where(where))

    def thumbnail(self, id: str) -> bytes | None:
        """See Store."""
        return self._picture(*checked_ids([id]))

    def note(self, name: str, value: str) -> None:
        """See Store."""
        self._keep_note(*checked_note(name, value))
