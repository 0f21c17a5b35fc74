"""Queries with what was found for them, as the report shows it."""

import dataclasses

import numpy as np
from jaxtyping import Bool, UInt8


@dataclasses.dataclass(frozen=True)
class RetrievalGrid:
    """Queries with their first results, nearest first.

    Attributes:
        columns: what stands above the results, by how many of them: ("teacher", 5), ("student", 5) where two searched.
    """

    query_images: UInt8[np.ndarray, "queries height width 3"]
    query_names: list[str]
    result_images: UInt8[np.ndarray, "queries results height width 3"]
    correct: Bool[np.ndarray, "queries results"]
    result_names: list[list[str]]
    title: str
    columns: tuple[tuple[str, int], ...] = ()
