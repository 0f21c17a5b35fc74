"""Embeddings of a data set's images as people keep them: a folder of tables, of which each part takes its rows.

A part has a table of its own (`train`, `database`, `test`), or is taken from that of the images it was drawn from, as they were:
half of the test images' table where half of them are the test queries. Training images that are drawn from others are taken from
those first. How tables are read stands in tables.py.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from jax_brcd.data.dataset import EVERYTHING, ImageDataset, Place
from jax_brcd.data.rows import SLAB, float_rows
from jax_brcd.data.tables import Table, find_tables, read_table
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path

TABLES = ("train", "database", "validation", "test", EVERYTHING)
USED = ("train", "database", "test")  # a teacher is asked for no codes of validation queries


@dataclasses.dataclass(frozen=True)
class Rows:
    """The embeddings of a part, an image a row in the part's order.

    Attributes:
        values: those of the table, on disk where its format allows. positions: of each image's row in it.
    """

    values: Shaped[np.ndarray, "rows width"]
    positions: Int[np.ndarray, "images"]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def width(self) -> int:
        """Numbers an image."""
        return self.values.shape[1]

    def __getitem__(self, images: slice) -> Float[np.ndarray, "images width"]:
        """The rows of some images, float32."""
        return float_rows(self.values[self.positions[images]])

    def slabs(self, size: int = SLAB) -> Iterable[Float[np.ndarray, "images width"]]:
        """All rows, some at a time."""
        return (self[begin : begin + size] for begin in range(0, len(self), size))


class Embeddings(NamedTuple):
    """The embeddings of the parts of a data set."""

    parts: Mapping[str, Rows]

    @property
    def width(self) -> int:
        """Numbers an image."""
        return next(iter(self.parts.values())).width

    def digests(self) -> dict[str, str]:
        """A short digest of each part's rows as they are used, by "embeddings of train" and so on, whatever file they lie in."""
        from jax_brcd.runtime.digests import digest  # not above: it imports JAX

        return {f"embeddings of {name}": digest(rows.width, *rows.slabs()) for name, rows in self.parts.items()}


class Wanted(NamedTuple):
    """A part that wants its rows."""

    name: str
    images: int
    place: Place


def read_embeddings(folder: os.PathLike | str, dataset: ImageDataset, parts: Iterable[str] = USED) -> Embeddings:
    """The embeddings of some parts of a data set from a folder of tables.

    A table without paths has a row for each image of its part, in order; or for each image of the files that the part was
    taken from, in their order, with those that could not be read.

    Raises:
        InputError: for a folder or table that is absent, damaged or no table of numbers, for NaN, infinity and rows of zeros,
            for tables of different formats or widths, wrong counts, and paths that are repeated or of no image.
    """
    folder = as_path(folder)
    wanted = [_wanted(dataset, name) for name in parts]
    files = tables_of(folder)
    chosen = {part.name: _choose(folder, files, part, dataset) for part in wanted}
    tables = {name: read_table(files[name]) for name in dict.fromkeys(chosen.values())}
    _check_widths(tables.values())
    found = {}
    for name, table in tables.items():
        served = [part for part in wanted if chosen[part.name] == name]
        found |= _by_row(table, name, served) if table.paths is None else _by_path(table, served, dataset)
    return Embeddings({part.name: found[part.name] for part in wanted})


def tables_of(folder: os.PathLike | str) -> dict[str, pathlib.Path]:
    """The tables of a folder by name, which are not read. Raises InputError as `find_tables`."""
    return find_tables(as_path(folder), TABLES)


def _wanted(dataset: ImageDataset, name: str) -> Wanted:
    part = getattr(dataset, name)
    return Wanted(name, len(part), part.place or Place.whole(name, len(part)))


def _choose(folder: pathlib.Path, files: Mapping[str, pathlib.Path], part: Wanted, dataset: ImageDataset) -> str:
    """The name of the table that has a part's rows: its own, or else that of the images which it was taken from.

    Of training images that come from another list, as of a number of them, that list's goes first: a table `train` beside it
    may be of the list train, and its rows of other images.
    """
    sources = (part.place.name, EVERYTHING)
    choices = (*sources, part.name) if part.name == "train" else (part.name, *sources)
    name = next((choice for choice in choices if choice in files), None)
    if name is None:
        own = f"{part.name} with {part.images:,} rows, one for each image of {part.name} in {dataset.name}"
        whole = part.place
        other = f", or {whole.name} with {whole.count:,}, which they were taken from" if whole.name != part.name else ""
        there = ", ".join(path.name for path in files.values()) or "none"
        raise InputError(f"{folder}: no table for {part.name} (there are: {there}); give {own}{other}, as .npy, .safetensors or "
                         ".parquet", field="embeddings")
    return name


def _check_widths(tables: Iterable[Table]) -> None:
    first, *others = tables
    for table in others:
        if table.values.shape[1] != first.values.shape[1]:
            raise InputError(f"{table.file}: rows of {table.values.shape[1]} numbers, but those of {first.file.name} have "
                             f"{first.values.shape[1]}; give embeddings of one model", field="embeddings")


def _by_row(table: Table, name: str, served: list[Wanted]) -> dict[str, Rows]:
    """The rows of the parts that take them from one table, by their order."""
    return {part.name: Rows(table.values, _positions(table, name, part)) for part in served}


def _positions(table: Table, name: str, part: Wanted) -> np.ndarray:
    rows, place, choices = len(table.values), part.place, []
    if name == place.name:
        choices.append((place.count, place.positions, f"one for each image of {name} in the order of the data set's files"))
    if name == part.name and not any(count == part.images for count, *_ in choices):
        choices.append((part.images, np.arange(part.images), f"one for each image that is {part.name} in this split"))
    for count, positions, _ in choices:
        if rows == count:
            return positions
    told = " or ".join(f"{count:,}, {meaning}" for count, _, meaning in choices) or "rows with their images' paths"
    raise InputError(f"{table.file}: {rows:,} rows, of which {part.name} cannot take its {part.images:,}; give {told}",
                     field="embeddings")


def _by_path(table: Table, served: list[Wanted], dataset: ImageDataset) -> dict[str, Rows]:
    """The rows of the parts that take them from one table, by the paths of their images."""
    known = {path for part in served for path in part.place.paths}
    if not known:
        raise InputError(f"{table.file}: has paths, and the images of {dataset.name} have none; leave the paths out and give rows "
                         "in the order of the images", field="embeddings")
    rows: dict[str, int] = {}
    for row, path in enumerate(_plain(path) for path in table.paths):
        if path not in known:
            raise InputError(f"{table.file}: row {row}, counted from 0, is of {path}, which is no image of "
                             f"{' or '.join(part.name for part in served)}; paths are those of the data set, relative to its "
                             f"folder ({min(known)})", field="embeddings")
        if rows.setdefault(path, row) != row:
            raise InputError(f"{table.file}: rows {rows[path]} and {row}, counted from 0, are both of {path}; leave one of the two",
                             field="embeddings")
    return {part.name: Rows(table.values, _rows_of(table, part, rows)) for part in served}


def _rows_of(table: Table, part: Wanted, rows: Mapping[str, int]) -> np.ndarray:
    paths = [part.place.paths[position] for position in part.place.positions]
    absent = [path for path in paths if path not in rows]
    if absent:
        raise InputError(f"{table.file}: no row for {absent[0]} of {part.name} ({len(absent):,} of its {len(paths):,} images have "
                         "none); give one an image", field="embeddings")
    return np.array([rows[path] for path in paths], np.int64)


def _plain(path: str) -> str:
    """A path with slashes and without needless dots, as those of data sets are."""
    return str(pathlib.PurePosixPath(path if "/" in path else path.replace("\\", "/")))
