"""What an exporter is."""

import pathlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Exportable(Protocol):
    """What an exporter sees of an encoder.

    Attributes:
        model: the hash model. preprocessing: a dataclass of plain values, how images become what the model sees.
        bits: the length of a code. backbone: its registered name.
    """

    model: Any
    preprocessing: Any
    bits: int
    backbone: str


# Writes an encoder into a folder, which is there, and returns the files it wrote
Exporter = Callable[[Exportable, pathlib.Path], list[pathlib.Path]]
