"""How a caller is told how far long work has come; the library by itself draws nothing."""

import contextlib
from collections.abc import Callable, Iterator

# (what is done, how much of it is done, how much there is). The total may shrink where work ends early; done == total ends it.
Progress = Callable[[str, int, int], None]


def silent(description: str, done: int, total: int) -> None:
    """Tells nobody."""


@contextlib.contextmanager
def bars(*, shown: bool = True) -> Iterator[Progress]:
    """Draws a bar on standard error for each thing that is being done, one below the other."""
    if not shown:
        yield silent
        return
    from tqdm import tqdm

    drawn: dict[str, tqdm] = {}

    def draw(description: str, done: int, total: int) -> None:
        if description not in drawn:
            if done >= total:
                return
            drawn[description] = tqdm(total=total, initial=done, desc=description, dynamic_ncols=True, leave=not drawn)
        bar = drawn[description]
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            drawn.pop(description).close()

    try:
        yield draw
    finally:
        for bar in drawn.values():
            bar.close()
