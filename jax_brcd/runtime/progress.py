"""How long work tells of itself: a callback that the caller gives. The library is silent by itself."""

from collections.abc import Callable

# (description, done, total): `done` of `total` items of what is described are done
Progress = Callable[[str, int, int], None]


def silent(description: str, done: int, total: int) -> None:
    """Tells nobody."""
