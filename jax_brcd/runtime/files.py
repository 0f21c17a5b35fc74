"""Writing files so that what is on disk is always whole."""

import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from jax_brcd.runtime.errors import InputError

EXCHANGE = 2  # renameat2's flag for two paths that take each other's place at once
HERE = -100  # paths are relative to the working directory
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors tells of the operating system's errors


def as_path(path: os.PathLike | str) -> pathlib.Path:
    """A path as users give it: text or a Path, `~` being their home.

    Raises:
        InputError: for the home of a user that is not known, and for a zero byte, which no path has.
    """
    if "\0" in os.fspath(path):
        raise InputError(f"{path}: a path with a zero byte; write it without")
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: no such user's home; write the path out") from None


@contextlib.contextmanager
def system_errors(path: pathlib.Path) -> Iterator[None]:
    """Raises what a library says of the operating system (a full disk) as the OSError that it is, with the path."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        number = SYSTEM_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


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
        with system_errors(path):
            yield temporary
        temporary.chmod(0o644)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling folder that takes the place of `folder`, at once, only if the block succeeds.

    What a link leads to is replaced, and not the link. Raises OSError where the disk is full; `folder` is then as it was.
    """
    folder = as_path(folder)
    folder = folder.resolve() if folder.is_symlink() else folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        with system_errors(folder):
            yield new
        new.chmod(0o755)
        if not folder.exists():
            new.rename(folder)
        elif not _exchange(new, folder):
            folder.rename(old)
            new.rename(folder)
    finally:
        if old.exists() and not folder.exists():  # interrupted between the two
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Lets two paths take each other's place in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0


def write_json(path: os.PathLike | str, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: os.PathLike | str) -> Any:
    """Reads a JSON file. Raises OSError or ValueError as the standard library does."""
    return parse_json(as_path(path).read_text())


def parse_json(text: str | bytes) -> Any:
    """The value that JSON text holds. Raises ValueError for broken text, and for values nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("values nested too deeply") from None


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
