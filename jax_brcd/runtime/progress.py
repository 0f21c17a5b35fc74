"""How long work tells of itself: a callback that the caller gives. The library is silent by itself."""

from collections.abc import Callable

# (description, done, total): `done` of `total` items of what is described are done
Progress = Callable[[str, int, int], None]


# (text): what a reader should know at once
Say = Callable[[str], None]


def silent(description: str, done: int, total: int) -> None:
    """Tells nobody."""


def unheard(text: str) -> None:
    """Says nothing."""
