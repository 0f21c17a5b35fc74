"""Tables of embeddings as files: NumPy's, safetensors or Parquet; read without executing anything in them.

A table is a matrix with a row an image, in the order of the data set's files, or with the path of the image that each row is of:
in Parquet a column `path`, beside the other formats a text file with a path a line (`test.paths.txt` for `test.npy`).
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from jax_brcd.data.rows import BROKEN, SLAB, broken_rows, check_matrix, float_rows
from jax_brcd.runtime.errors import InputError

PATHS = ".paths.txt"
MAGIC = b"\x93NUMPY"  # how NumPy's files begin
TENSOR, COLUMN, PATH_COLUMN = "embeddings", "embedding", "path"


class Table(NamedTuple):
    """A table. `paths` are those of the images that the rows are of; None where they are in the order of the data set's files."""

    file: pathlib.Path
    values: Shaped[np.ndarray, "rows width"]  # of any real type; of NumPy's files memory-mapped
    paths: list[str] | None


def find_tables(folder: pathlib.Path, names: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """The tables of some names in a folder.

    Raises:
        InputError: for a folder that is absent, two tables of one name, and tables of different formats.
    """
    if not folder.is_dir():
        raise InputError("no such folder; name the one that holds the tables (train, database and test as .npy, .safetensors or "
                         ".parquet)", field="embeddings", value=folder)
    every = [folder / f"{name}{suffix}" for name in names for suffix in READERS if (folder / f"{name}{suffix}").is_file()]
    for path in every[1:]:
        if path.suffix != every[0].suffix:
            raise InputError(f"{folder}: {every[0].name} beside {path.name}; give all tables in one format, and take the others "
                             "away", field="embeddings")
    return {path.stem: path for path in every}


def read_table(path: pathlib.Path) -> Table:
    """A table, checked.

    Raises:
        InputError: for a file that is damaged or no table of numbers; for rows that are NaN, infinite or all zeros.
    """
    table = READERS[path.suffix](path)
    check_matrix(table.values, str(path))
    if not len(table.values):
        raise InputError(f"{path}: no rows; give one an image")
    _check_values(table)
    return table


def _check_values(table: Table) -> None:
    """Raises InputError that names the first row that cannot be an image's."""
    for begin in range(0, len(table.values), SLAB):
        rows = float_rows(table.values[begin : begin + SLAB])
        for problem, found in ((BROKEN, broken_rows(rows)), ("is all zeros", np.flatnonzero(~rows.any(axis=1)))):
            if len(found):
                row = begin + int(found[0])
                of = "" if table.paths is None else f" ({table.paths[row]})"
                raise InputError(f"{table.file}: row {row}{of}, counted from 0, {problem}; embed that image again, or take it "
                                 "out of the data set")


def _npy(path: pathlib.Path) -> Table:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if _begins(path) == MAGIC and ("allow_pickle" in str(error) or "Python objects" in str(error)):
            raise InputError(f"{path}: objects and no numbers (rows of different lengths, say), which are never unpickled; save "
                             "a matrix of numbers") from None
        raise InputError(f"{path}: truncated or no file of NumPy's ({error}); save it again with numpy.save") from None
    except EOFError:
        raise InputError(f"{path}: empty; save it again with numpy.save") from None
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path}: an archive of several arrays; save one with numpy.save")
    return Table(path, values, _paths_beside(path, values))


def _begins(path: pathlib.Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(MAGIC))


def _safetensors(path: pathlib.Path) -> Table:
    import safetensors
    import safetensors.numpy

    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, AttributeError, KeyError) as error:  # the latter two: a type that NumPy lacks
        raise InputError(f"{path}: truncated or no safetensors file of numbers ({error}); save it again") from None
    if TENSOR not in tensors and len(tensors) != 1:
        raise InputError(f"{path}: {len(tensors)} tensors ({', '.join(sorted(tensors)[:3])}); give one, or call the table "
                         f"'{TENSOR}'")
    values = tensors[TENSOR] if TENSOR in tensors else next(iter(tensors.values()))
    return Table(path, values, _paths_beside(path, values))


def _paths_beside(path: pathlib.Path, values: np.ndarray) -> list[str] | None:
    """The lines of the text file that gives the paths of the rows; None where there is none."""
    beside = path.with_name(f"{path.stem}{PATHS}")
    if not beside.is_file():
        return None
    try:
        paths = beside.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{beside}: no text in UTF-8; save it as such") from None
    if values.ndim and len(paths) != len(values):
        raise InputError(f"{beside}: {len(paths)} lines, but {path.name} has {len(values)} rows; give a path a line, in the order "
                         "of the rows")
    return paths


def _parquet(path: pathlib.Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading it needs pyarrow; pip install 'jax_brcd[parquet]', or give .npy or "
                         ".safetensors") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        column = _column(path, file.schema_arrow)
        wanted = [column, *(name for name in (PATH_COLUMN,) if name in file.schema_arrow.names)]
        table = file.read(columns=wanted)
    except (pyarrow.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: truncated or no Parquet file ({said}); write it again") from None
    return Table(path, _matrix(path, column, table.column(column)),
                 None if len(wanted) == 1 else _path_column(path, table.column(PATH_COLUMN)))


def _column(path: pathlib.Path, schema) -> str:
    """The column of lists that holds the rows."""
    import pyarrow.types

    tests = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
    lists = [field.name for field in schema if any(test(field.type) for test in tests)]
    if COLUMN in lists:
        return COLUMN
    if len(lists) != 1:
        found = (f"columns of lists {', '.join(lists[:3])}" if lists else
                 f"no column of lists among {', '.join(schema.names[:3])}")
        raise InputError(f"{path}: {found}; put the numbers of a row into one list, in a column '{COLUMN}'")
    return lists[0]


def _matrix(path: pathlib.Path, name: str, column) -> np.ndarray:
    """A column of lists as a matrix, a chunk at a time."""
    import pyarrow.compute

    if column.null_count:
        raise InputError(f"{path}: {column.null_count} rows of '{name}' are empty; give every image its numbers")
    lengths = pyarrow.compute.list_value_length(column).to_numpy()
    if len(lengths) and (lengths != lengths[0]).any():
        row = int(np.flatnonzero(lengths != lengths[0])[0])
        raise InputError(f"{path}: row {row} of '{name}', counted from 0, has {lengths[row]} numbers and row 0 has {lengths[0]}; "
                         "give rows of one length")
    width = int(lengths[0]) if len(lengths) else 0
    parts = [np.zeros((0, max(width, 1)), np.float32)] if not column.num_chunks or not len(lengths) else []
    for chunk in column.chunks if len(lengths) else ():
        values = chunk.flatten()
        if values.null_count:
            raise InputError(f"{path}: '{name}' has rows with numbers left out; give every image its numbers")
        parts.append(values.to_numpy(zero_copy_only=False).reshape(len(chunk), width))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _path_column(path: pathlib.Path, column) -> list[str]:
    paths = column.to_pylist()
    wrong = next((row for row, name in enumerate(paths) if not isinstance(name, str)), None)
    if wrong is not None:
        raise InputError(f"{path}: row {wrong} of '{PATH_COLUMN}', counted from 0, is {paths[wrong]!r}; give the path of every "
                         "image")
    return paths


READERS: Mapping[str, Callable[[pathlib.Path], Table]] = {".npy": _npy, ".safetensors": _safetensors, ".parquet": _parquet}
