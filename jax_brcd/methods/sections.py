"""What a method shows in the report, as plain data that the report draws without knowing the method."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

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
ARRAYS = ("matrix", "x", "y")  # the fields that are arrays


def section_to_dict(section: Section) -> dict[str, Any]:
    """A section as JSON holds it."""
    fields = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {"kind": type(section).__name__, **{name: np.asarray(value).tolist() for name, value in fields.items()}}


def section_from_dict(fields: Mapping[str, Any]) -> Section:
    """What `section_to_dict` gave."""
    kind = next(kind for kind in typing.get_args(Section) if kind.__name__ == fields["kind"])
    return kind(**{name: np.asarray(value) if name in ARRAYS else tuple(value) if isinstance(value, list) else value
                   for name, value in fields.items() if name != "kind"})
