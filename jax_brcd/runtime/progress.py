"""How far something long has come: told to a callback, so that the library draws nothing by itself."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # (description, done, total)


def silent(description: str, done: int, total: int) -> None:
    """Tells nobody."""
