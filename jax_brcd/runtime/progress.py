"""How long work says how far it is: to a callback, because the library draws nothing by itself."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # (what is being done, how much of it is done, how much there is)


def silent(description: str, done: int, total: int) -> None:
    """Tells nobody."""
