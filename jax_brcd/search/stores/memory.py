"""`memory:` - a store that lives as long as it is open."""

from collections.abc import Sequence
from typing import SupportsIndex

from jax_brcd.retrieval.packing import Codes
from jax_brcd.runtime.errors import InputError
from jax_brcd.search.stores.base import (
    Attributes,
    CodeKind,
    Hit,
    checked_batch,
    checked_ids,
    checked_query,
    nothing_there,
)
from jax_brcd.search.stores.items import Items


class MemoryStore:
    """See Store. Each addition copies what is there: add many items at once."""

    def __init__(self, bits: int, space: str | None):
        self.bits, self.space = bits, space
        self._items: Items | None = Items.none(bits, space)

    def add(self, ids: Sequence[str], codes: Codes, attributes: Sequence[Attributes] | None = None) -> None:
        """See Store."""
        self._items = self._open_items().adding(checked_batch(self, ids, codes, attributes))

    def delete(self, ids: Sequence[str]) -> None:
        """See Store."""
        self._items = self._open_items().without(checked_ids(ids))

    def search(self, query_codes: Codes, k: SupportsIndex, where: Attributes | None = None) -> list[list[Hit]]:
        """See Store."""
        return self._open_items().search(*checked_query(self, query_codes, k, where))

    def __len__(self) -> int:
        return len(self._open_items())

    def close(self) -> None:
        """See Store."""
        self._items = None

    def _open_items(self) -> Items:
        if self._items is None:
            raise InputError("the store is closed; open it again")
        return self._items


def open_memory(url: str, create_for: CodeKind | None) -> MemoryStore:
    """A new store in memory; see open_store."""
    if url != "memory:":
        raise InputError("a store in memory has no name; give memory:", field="url", value=url)
    if create_for is None:
        raise nothing_there(url)
    return MemoryStore(create_for.bits, create_for.space)
