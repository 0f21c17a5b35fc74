"""`memory:` - a store that lives as long as it is open."""

from collections.abc import Callable

from jax_brcd.runtime.errors import InputError
from jax_brcd.search.stores.base import CodeKind, closed, nothing_there
from jax_brcd.search.stores.items import Items, WholeStore


class MemoryStore(WholeStore):
    """See Store. Each addition copies what is there: add many items at once."""

    def __init__(self, bits: int, space: str | None):
        self.bits, self.space = bits, space
        self._items: Items | None = Items.none(bits, space)

    def close(self) -> None:
        """See Store."""
        self._items = None

    def _current(self) -> Items:
        if self._items is None:
            raise closed()
        return self._items

    def _change(self, change: Callable[[Items], Items]) -> None:
        self._items = change(self._current())


def open_memory(url: str, create_for: CodeKind | None) -> MemoryStore:
    """A new store in memory; see open_store."""
    if url != "memory:":
        raise InputError("a store in memory has no name; give memory:", field="url", value=url)
    if create_for is None:
        raise nothing_there(url)
    return MemoryStore(create_for.bits, create_for.space)
