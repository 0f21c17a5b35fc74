"""Small pictures in a terminal: by its own graphics (kitty, sixel) where it has them, by coloured half blocks elsewhere."""

import io
import logging
import sys
from collections.abc import Callable

from jax_brcd.runtime.errors import InputError

ROWS = 6  # of text that a picture is high


def drawer(wanted: bool | None) -> Callable[[bytes], None] | None:
    """What draws a JPEG on standard output; None where that is no terminal.

    Args:
        wanted: None for pictures where they can be drawn.

    Raises:
        InputError: where they are wanted and the package that draws them is absent.
    """
    if wanted is False or not (wanted or sys.stdout.isatty()):
        return None
    try:
        from rich.console import Console
        from textual_image.renderable import Image  # which asks the terminal what it can
    except ImportError:
        if wanted is None:
            return None
        raise InputError("needs textual-image, which pip install 'jax_brcd[search]' brings", field="pictures") from None
    logging.getLogger("textual_image").setLevel(logging.CRITICAL)
    console, works = Console(), True

    def draw(picture: bytes) -> None:
        nonlocal works
        if works:
            try:
                console.print(Image(io.BytesIO(picture), width="auto", height=ROWS))
            except Exception:  # a terminal that does not say how large it is; the lines are what was asked for
                works = False

    return draw
