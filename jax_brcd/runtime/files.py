"""Writing files so that what is on disk is always whole."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any


def as_path(path: os.PathLike | str) -> pathlib.Path:
    """A path as users give it: text or a Path, `~` being their home."""
    return pathlib.Path(path).expanduser()


@contextlib.contextmanager
def atomic_path(path: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of `path` that takes its name only if the block succeeds.

    Raises OSError where the disk is full; `path` then holds what it held before.
    """
    path = as_path(path)
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


@contextlib.contextmanager
def replacing_folder(folder: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling folder that takes the place of `folder` only if the block succeeds.

    Raises OSError where the disk is full; `folder` is then as it was.
    """
    folder = as_path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        yield new
        new.chmod(0o755)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: os.PathLike | str, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: os.PathLike | str) -> Any:
    """Reads a JSON file. Raises OSError or ValueError as the standard library does."""
    return json.loads(as_path(path).read_text())


@contextlib.contextmanager
def locked(path: pathlib.Path, waits: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock file `path` for the block, waiting for another process that holds it; it ends with its process.

    `waits` is called once where it must wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waits is not None:
                waits()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
