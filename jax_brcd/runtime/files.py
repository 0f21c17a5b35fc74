"""Writing files so that what is on disk is always whole."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

from jax_brcd.runtime.errors import InputError, lacks_memory

LOCK = "jax_brcd.lock"  # in a temporary folder: held by its process
OLD = "old"  # in a temporary folder: what is being replaced
TEMPORARY = re.compile(r"\.[^/]*\.[a-z0-9_]{8}")  # how temporary folders are called
LONGEST = 50  # characters of a name that are part of another: a file's name has 255 bytes at most, a character up to 4
EXCHANGE = 2  # renameat2's flag for two paths that take each other's place at once
HERE = -100  # paths are relative to the working directory
NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EBADF)  # what the system says of a place where nothing is
# What it says where a file could not be read now
PASSING = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors tells of the operating system's errors


def as_path(path: os.PathLike | str) -> pathlib.Path:
    """A path as users give it: text or a Path, `~` being their home.

    Raises:
        InputError: for the home of a user that is not known, and for a NUL character, which no name has.
    """
    if "\0" in os.fspath(path):
        raise InputError(f"{str(path)!r}: holds a NUL character, which no file's name does; mend the path")
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: no such user's home; write the path out") from None


@contextlib.contextmanager
def system_errors(path: pathlib.Path) -> Iterator[None]:
    """Raises what is said of the operating system (a full disk) as an OSError that names `path`: by a library in an error of its
    own, by `write` without a name, by NumPy without a number, and of temporary files by theirs."""
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        if error.errno is None and type(error) is OSError:
            raise OSError(errno.EIO, f"could not be written whole ({error}), as where the disk is full", str(path)) from error
        ours = any(TEMPORARY.fullmatch(part) for name in names for part in pathlib.Path(name).parts)
        if error.errno is None or (names and not ours):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        number = SYSTEM_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def check_folder(folder: pathlib.Path, field: str | None = None) -> None:
    """Raises InputError where no folder can be made, as a file or a link that leads nowhere lies in its place or above it.

    `field` is the setting that names the folder.
    """
    for place in (folder, *folder.parents):
        kind = _kind(place)
        if kind is not None and stat.S_ISDIR(kind):
            return
        if kind is not None:
            problem = "is a file; name a folder"
        elif place.is_symlink() and not place.exists():
            problem = f"is a link to {os.readlink(place)}, which is not there; make that folder, or name another"
        else:
            continue
        start = "" if field is not None and place == folder else f"{place}{':' if place == folder else ''} "
        raise InputError(start + problem, field=field, value=None if field is None else folder)


def _kind(place: pathlib.Path) -> int | None:
    """What lies at a place, None for nothing. It is looked at once: another process may make a folder there meanwhile."""
    try:
        return place.stat().st_mode
    except OSError as error:
        if error.errno not in NOTHING:
            raise
        return None


def check_file(path: pathlib.Path, field: str | None = None) -> None:
    """Raises InputError where no file can be written: in place of a folder or of a link that leads nowhere, or below a file.

    `field` is the setting that names the file.
    """
    start, value = (f"{path}: ", None) if field is None else ("", path)
    if path.is_dir():
        raise InputError(f"{start}is a folder; name a file", field=field, value=value)
    if path.is_symlink() and not path.exists():
        raise InputError(f"{start}is a link to {os.readlink(path)}, which is not there; name another file", field=field, value=value)
    check_folder(path.parent)


def make_folder(folder: pathlib.Path) -> pathlib.Path:
    """The folder, made where it is not there. Raises InputError as `check_folder`."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def atomic_path(path: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Yields a temporary file that takes the place of `path` only if the block succeeds.

    Raises:
        InputError: where a folder, or a link that leads nowhere, lies there. OSError: where the disk is full; `path` then holds
            what it held before.
    """
    path = as_path(path)
    check_file(path)
    with system_errors(path), workplace(path) as place:
        temporary = place / path.name
        temporary.touch()
        yield temporary
        temporary.chmod(0o644)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)


@contextlib.contextmanager
def replacing_folder(folder: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that takes the place of `folder`, at once, only if the block succeeds.

    What a link leads to is replaced, and not the link.

    Raises:
        InputError: where a file, or a link that leads nowhere, lies there, and for the working directory, which would be gone.
        OSError: where the disk is full; `folder` is then as it was.
    """
    folder = as_path(folder)
    check_folder(folder)
    if folder.is_symlink() or folder.name in ("", ".."):
        folder = folder.resolve()
    if _holds_working_directory(folder):
        raise InputError(f"{folder}: the working directory lies there and would be lost; name a folder in it, or another")
    with system_errors(folder), workplace(folder) as place:
        new, old = place / "new", place / OLD
        new.mkdir()
        try:
            yield new
            new.chmod(0o755)
            if not folder.exists():
                new.rename(folder)
            elif not _exchange(new, folder):
                old.mkdir()
                folder.rename(old / folder.name)
                new.rename(folder)
        finally:
            _put_back(place)


@contextlib.contextmanager
def workplace(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside `path`, which goes with what is in it as the block ends.

    Its lock file is held by this process for as long as that lives. So whoever comes next to write beside it knows of a folder
    that a killed process left, and deletes it: the lock ends with its process, on whatever machine.
    """
    clear_leftovers(make_folder(path.parent))
    place, lock = _make_place(path)
    try:
        yield place
    finally:
        _remove_place(place, lock)


def clear_leftovers(folder: pathlib.Path) -> None:
    """Deletes the temporary folders in `folder` whose process has ended; those of a living one stay, and all else."""
    with os.scandir(folder) as entries:
        places = [folder / entry.name for entry in entries if TEMPORARY.fullmatch(entry.name)]
    for place in places:
        with contextlib.suppress(OSError):  # it is no longer there, is nobody's folder of ours, or its process lives
            lock = open(place / LOCK, "r+")
            with contextlib.ExitStack() as failed:
                failed.enter_context(lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                gone = place.rename(folder / f".gone{place.suffix}")  # whose process was just about to hold it sees that
                failed.pop_all()
            _put_back(gone)
            _remove_place(gone, lock)


def _put_back(place: pathlib.Path) -> None:
    """Gives what was moved out of the way its place again, where a replacement was interrupted before it had taken that."""
    for moved in (place / OLD).glob("*"):
        if not os.path.lexists(place.parent / moved.name):
            moved.rename(place.parent / moved.name)


def _make_place(path: pathlib.Path) -> tuple[pathlib.Path, IO[str]]:
    """A new temporary folder and its lock file, which is held where the file system has locks."""
    while True:
        place = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name[:LONGEST]}.", dir=path.parent))
        try:
            lock = open(place / LOCK, "w")
        except FileNotFoundError:  # somebody else deleted the folder before it was held
            continue
        except OSError:
            place.rmdir()
            raise
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (place / LOCK).exists():
            return place, lock
        lock.close()


def _remove_place(place: pathlib.Path, lock: IO[str]) -> None:
    """Deletes a temporary folder, its lock last: what of it is left by a kill in between can be told by that."""
    with contextlib.suppress(OSError):
        for part in place.iterdir():
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part, ignore_errors=True)
            elif part.name != LOCK:
                part.unlink()
    lock.close()
    with contextlib.suppress(OSError):
        (place / LOCK).unlink()
        place.rmdir()


def _holds_working_directory(folder: pathlib.Path) -> bool:
    try:
        here = pathlib.Path.cwd()
    except FileNotFoundError:  # it is gone already
        return False
    return folder.resolve() in (here, *here.parents)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Lets two paths take each other's place in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0


def write_json(path: os.PathLike | str, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def file_sha256(path: os.PathLike | str) -> str:
    """The sha256 of a file's bytes, in hexadecimal. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: os.PathLike | str) -> Any:
    """Reads a JSON file. Raises OSError or ValueError as the standard library does."""
    return parse_json(as_path(path).read_text())


def parse_json(text: str | bytes) -> Any:
    """The value that JSON text holds. Raises ValueError for broken text, and for values nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("values nested too deeply") from None


def is_passing(error: Exception) -> bool:
    """Whether an error of reading files is of the machine as it is now, so that it says nothing of what the files hold."""
    return lacks_memory(error) or (isinstance(error, OSError) and error.errno in PASSING)


def lock_beside(path: pathlib.Path) -> pathlib.Path:
    """The lock file of a folder, beside it; named by a digest where the folder's own name leaves no room."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    name = path.name if len(path.name) <= LONGEST else f"{path.name[:LONGEST]}.{digest}"
    return path.parent / f".{name}.lock"


@contextlib.contextmanager
def locked(path: pathlib.Path, waits: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock file `path` for the block, waiting for another process that holds it; it ends with its process.

    `waits` is called once where it must wait.
    """
    make_folder(path.parent)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waits is not None:
                waits()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
