"""The SQLite file of a store: its tables, how it is made and opened, and what its errors say.

An item has a number that is never given again; one that is replaced gets a new one. `gone` lists the numbers of items that are
no longer there. So whoever knows the database up to some number of each finds what is new without looking at the rest.
"""

import contextlib
import os
import pathlib
import sqlite3
import uuid
from collections.abc import Iterator
from typing import Any

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import workplace
from jax_brcd.search.stores.base import FORMAT, CodeKind
from jax_brcd.search.stores.spelling import as_text

APPLICATION = 0x62726364  # "brcd", in the file's head
PATIENCE = 60  # seconds that a writer waits for another
CACHE, LARGE_CACHE = -8192, -262144  # KiB of pages in memory, negative as SQLite wants it: for readers, for large additions
# Path, size and so on are attributes like others; the columns show them to whoever reads the file with other tools
TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    code BLOB NOT NULL,
    attributes TEXT NOT NULL,
    path AS (json_extract(attributes, '$.path')),
    size AS (json_extract(attributes, '$.size')),
    mtime AS (json_extract(attributes, '$.mtime')),
    digest AS (json_extract(attributes, '$.digest'))
);
CREATE TABLE thumbnails (number INTEGER PRIMARY KEY, picture BLOB NOT NULL);
CREATE TABLE gone (place INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER NOT NULL);
CREATE TRIGGER going AFTER DELETE ON items BEGIN
    INSERT INTO gone (number) VALUES (old.number);
    DELETE FROM thumbnails WHERE number = old.number;
END;
"""


def create(path: pathlib.Path, kind: CodeKind) -> None:
    """Makes an empty store for such codes, whole or not at all; one that somebody else makes meanwhile stays.

    Raises InputError where the log of one that was deleted lies there: SQLite would take it for the new one's.
    """
    left = [log for log in (path.with_name(path.name + end) for end in ("-wal", "-shm")) if log.exists()]
    if left and not path.exists():  # asked last: the log of one that somebody else makes comes after its file
        raise InputError(f"{left[0]}: is left of an index that was deleted; end the processes that use it, then delete "
                         + " and ".join(["it", *map(str, left[1:])]))
    about = {"format": FORMAT, "owner": uuid.uuid4().hex, "bits": str(kind.bits), "space": kind.space}
    with workplace(path) as place, told(path):
        new = place / "new"
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.executescript(f"PRAGMA application_id = {APPLICATION}; PRAGMA journal_mode = WAL; {TABLES}")
            connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                new.rename(path)


def is_store(path: pathlib.Path) -> bool:
    """Whether a file is one that `create` made. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        head = file.read(100)
    return head.startswith(b"SQLite format 3\0") and head[68:72] == APPLICATION.to_bytes(4, "big")


def connect(path: pathlib.Path) -> sqlite3.Connection:
    """A connection that any one thread at a time may use."""
    if not path.exists():  # SQLite would make an empty file
        raise InputError(f"{path}: the store is gone; open_store makes a new one")
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    # Replacing an item fires the trigger only with recursive triggers; a full synchronisation keeps what was acknowledged
    for pragma in ("recursive_triggers = ON", "synchronous = FULL", f"cache_size = {CACHE}"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


@contextlib.contextmanager
def told(path: pathlib.Path) -> Iterator[None]:
    """Raises what SQLite cannot do as an InputError in one line, and a full disk as an OSError."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says more of the same
        if code == sqlite3.SQLITE_FULL:
            raise OSError(28, os.strerror(28), str(path)) from error
        if code == sqlite3.SQLITE_BUSY:
            raise InputError(f"{path}: another process has been writing for {PATIENCE} seconds; try again when it is done") from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise InputError(f"{path}: {error}; a store needs a folder that may be written to") from error
        raise InputError(f"{path}: {error}; where the file is damaged, index its images again at another place") from error


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, kind: str) -> Iterator[None]:
    """One state of the database for the block; what it changes is kept whole or not at all. `kind` is DEFERRED or IMMEDIATE."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def loosely(where: dict[str, Any]) -> tuple[str, list[str]]:
    """A condition of SQL, and its parameters, that all items with these attributes meet and few others: `matches` decides.

    It looks for the attribute in the text, which takes a tenth of the time of reading JSON. A number is written in several ways,
    so only its name is looked for.
    """
    parts = [as_text(name) + ":" + ("" if isinstance(value, (int, float)) and not isinstance(value, bool) else as_text(value))
             for name, value in where.items()]
    return " AND ".join(["1", *("instr(attributes, ?) > 0" for _ in parts)]), parts
