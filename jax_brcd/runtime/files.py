"""Writing files so that what is on disk is always whole."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any


def as_path(path: os.PathLike | str) -> pathlib.Path:
    """A path as users give it: text or a Path, `~` being their home."""
    return pathlib.Path(path).expanduser()


@contextlib.contextmanager
def atomic_path(path: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of `path` that takes its name only if the block succeeds.

    Raises OSError where the disk is full; `path` then holds what it held before.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: os.PathLike | str, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: os.PathLike | str) -> Any:
    """Reads a JSON file. Raises OSError or ValueError as the standard library does."""
    return json.loads(pathlib.Path(path).read_text())
