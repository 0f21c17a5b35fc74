"""Names a user may type, and what they stand for."""

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Generic, TypeVar

from jax_brcd.runtime.errors import UnknownName

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """A mapping from name to entry that answers an unknown name with the nearest known one.

    Args:
        kind: what the entries are, in the words of the error message ("backbone", "data set").
        check: called with the name and the entry before it is filed; raises for one that cannot be.
    """

    def __init__(self, kind: str, check: Callable[[str, Any], None] | None = None):
        self.kind, self.check = kind, check
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that files its argument under `name`."""

        def file(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            if self.check is not None:
                self.check(name, entry)
            self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: object) -> Entry:
        """Raises UnknownName, a KeyError, for an unknown name."""
        if name not in self._entries:
            raise UnknownName(unknown_name(self.kind, name, self._entries), value=name)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


MANY, NEAR = 30, 5  # names that are more than a line holds, and how many of them are then shown


def unknown_name(kind: str, name: object, known: Collection[str], *, listed: str = "") -> str:
    """The error line for `name`, with the nearest of the `known` names first; of many only the nearest, and where all are
    `listed`."""
    near = difflib.get_close_matches(str(name), known, n=NEAR, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    if len(known) <= MANY:
        shown = f"known: {', '.join(sorted(known))}"
    else:
        nearest = f"near it: {', '.join(near)}; " if near else ""
        shown = nearest + (listed or f"{len(known)} are known")
    return f"unknown {kind} '{name}': {hint}{shown}"
