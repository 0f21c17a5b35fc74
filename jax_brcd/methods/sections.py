"""What a method shows in the report, as plain data that the report draws without knowing the method."""

import dataclasses

import numpy as np
from jaxtyping import Float, Num


@dataclasses.dataclass(frozen=True)
class Heatmap:
    """A matrix of values from 0 to 1, a named row each."""

    name: str  # of the picture's file and, with spaces, of its heading
    title: str
    matrix: Float[np.ndarray, "rows columns"]
    rows: tuple[str, ...]
    columns: str  # what the columns are


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points in order, one of which may be marked."""

    name: str
    title: str
    x: Num[np.ndarray, "points"]  # whole numbers have whole ticks
    y: Float[np.ndarray, "points"]
    x_label: str
    y_label: str
    marked: float | int | None = None  # an x
    mark: str = ""  # what it is


Section = Heatmap | Curve
