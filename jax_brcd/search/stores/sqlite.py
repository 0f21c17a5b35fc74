"""`sqlite:PATH` and paths of files - the store on one's own disk: SQLite holds the truth, codes are searched in memory.

Any number of processes may read while one writes (a write-ahead log); writers take turns. What `add` and `delete` return from
is on disk, so a process that is killed loses nothing. The codes lie packed in a second file, PATH-codes, which is mapped when the
store is opened and may be deleted. The folder must be on a disk of this machine: SQLite's log does not work over a network.
"""

import contextlib
import pathlib
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from jax_brcd.retrieval import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, parse_json
from jax_brcd.search.stores import database
from jax_brcd.search.stores.base import FORMAT, Batch, CodeKind, Hit, Item, Query, check_kind, closed, matches, nothing_there
from jax_brcd.search.stores.checked import CheckedStore
from jax_brcd.search.stores.spelling import as_blob, as_id, as_text
from jax_brcd.search.stores.view import Near, View

SCHEME = "sqlite:"
LISTED = "(SELECT value FROM json_each(?))"  # any count of numbers as one parameter
MANY = 4096  # items that are worth more memory while they are added
ITEM = "id, code, attributes"


class SQLiteStore(CheckedStore):
    """See Store. Threads may share one: they take turns."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._lock = threading.RLock()
        with database.told(path):
            self._connection: sqlite3.Connection | None = database.connect(path)
            about = dict(self._connection.execute("SELECT name, value FROM about"))
        if about.get("format") != FORMAT:
            raise InputError(f"{path}: a store of the format {about.get('format')!r}, not {FORMAT!r}; give another place")
        self.bits, self.space = int(about["bits"]), about["space"]
        self._view = View(path.with_name(path.name + "-codes"), about["owner"], self)
        with self._reading() as connection:
            self._view.check(connection)

    def _put(self, batch: Batch) -> None:
        keys, width = [as_blob(id) for id in batch.ids], batch.codes.packed.shape[1]
        bytes_ = batch.codes.packed.tobytes()
        rows = ((keys[place], bytes_[place * width : (place + 1) * width], as_text(batch.attributes[place]))
                for place in sorted(range(len(keys)), key=keys.__getitem__))  # in the order of the ids' own tree
        pictures = [(picture, key) for picture, key in zip(batch.thumbnails, keys, strict=True) if picture is not None]
        with self._writing(len(keys)) as connection:
            connection.executemany("INSERT OR REPLACE INTO items (id, code, attributes) VALUES (?, ?, ?)", rows)
            connection.executemany("INSERT INTO thumbnails SELECT number, ? FROM items WHERE id = ?", pictures)

    def _drop(self, ids: list[str]) -> None:
        keys = [(as_blob(id),) for id in ids]
        with self._writing(len(keys)) as connection:
            connection.executemany("DELETE FROM items WHERE id = ?", keys)

    def _nearest_hits(self, query: Query) -> list[list[Hit]]:
        with self._reading() as connection:
            self._view.follow(connection)
            return [hits[: query.k] for hits in _hits(connection, self._view.search(connection, query))]

    def _hits_within(self, codes: PackedCodes, radius: int, where: dict[str, Any]) -> list[list[Hit]]:
        with self._reading() as connection:
            self._view.follow(connection)
            return _hits(connection, self._view.within(connection, codes, radius, where))

    def _fetch(self, ids: list[str]) -> list[Item | None]:
        with self._reading() as connection:
            rows = [connection.execute(f"SELECT {ITEM} FROM items WHERE id = ?", [as_blob(id)]).fetchone() for id in ids]
        return [None if row is None else _item(row) for row in rows]

    def _each(self, where: dict[str, Any]) -> Iterator[Item]:
        """They are read through a connection of their own, so the store may be changed meanwhile."""
        condition, parameters = database.loosely(where)
        with self._reading(), database.told(self._path):
            connection = database.connect(self._path)
            connection.execute("BEGIN")
            rows = connection.execute(f"SELECT {ITEM} FROM items WHERE {condition} ORDER BY id", parameters)

        def read() -> Iterator[Item]:
            with contextlib.closing(connection), database.told(self._path):
                yield from (item for item in map(_item, rows) if matches(item.attributes, where))

        return read()

    def _picture(self, id: str) -> bytes | None:
        return self._one("SELECT picture FROM items JOIN thumbnails USING (number) WHERE id = ?", as_blob(id))

    def _keep_note(self, name: str, value: str) -> None:
        with self._writing(1) as connection:
            connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def noted(self, name: str) -> str | None:
        """See Store."""
        return self._one("SELECT value FROM notes WHERE name = ?", name)

    def __len__(self) -> int:
        return self._one("SELECT count(*) FROM items")

    def close(self) -> None:
        """See Store. What this store added is packed for the next opening, where it is much."""
        with self._lock:
            if self._connection is None:
                return
            if self._connection.total_changes:
                with self._reading() as connection:
                    self._view.keep(connection)
            self._connection.close()
            self._connection = None
            del self._view

    def _one(self, sql: str, *parameters: str | bytes) -> str | bytes | int | None:
        with self._reading() as connection:
            row = connection.execute(sql, parameters).fetchone()
        return None if row is None else row[0]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection in one state of the database."""
        with self._lock, database.told(self._path):
            if self._connection is None:
                raise closed()
            with database.transaction(self._connection, "DEFERRED"):
                yield self._connection

    @contextlib.contextmanager
    def _writing(self, items: int) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are kept whole or not at all, with memory for that many."""
        with self._lock, database.told(self._path):
            if self._connection is None:
                raise closed()
            large = items > MANY
            if large:
                self._connection.execute(f"PRAGMA cache_size = {database.LARGE_CACHE}")
            try:
                with database.transaction(self._connection, "IMMEDIATE"):
                    yield self._connection
            finally:
                if large:
                    self._connection.execute(f"PRAGMA cache_size = {database.CACHE}")
                    self._connection.execute("PRAGMA shrink_memory")


def open_sqlite(url: str, create_for: CodeKind | None) -> SQLiteStore:
    """The store in a file, made where there is none; see open_store."""
    path = as_path(url.removeprefix(SCHEME))
    if path.is_dir() or not path.name:
        raise InputError("this is a folder, and a store is a file; name a file in it", field="url", value=url)
    if not path.exists():
        if create_for is None:
            raise nothing_there(url)
        database.create(path, create_for)
    if not database.is_store(path):
        raise InputError("this file holds something else than a store; give another place", field="url", value=url)
    store = SQLiteStore(path)
    try:
        check_kind(url, store, create_for)
    except InputError:
        store.close()
        raise
    return store


def _item(row: tuple[bytes, bytes, str]) -> Item:
    id, code, attributes = row
    return Item(as_id(id), np.frombuffer(code, np.uint8), parse_json(attributes))


def _hits(connection: sqlite3.Connection, found: list[Near]) -> list[list[Hit]]:
    """The hits of each query, nearest first, ties by id."""
    numbers = np.unique(np.concatenate([numbers for _, numbers in found])) if found else np.empty(0, np.int64)
    rows = connection.execute(f"SELECT number, id, attributes FROM items WHERE number IN {LISTED}", [as_text(numbers.tolist())])
    known = {number: (as_id(id), attributes) for number, id, attributes in rows}
    return [[Hit(id, distance, parse_json(attributes)) for distance, (id, attributes) in
             sorted((distance, known[number]) for distance, number in zip(distances.tolist(), own.tolist(), strict=True))]
            for distances, own in found]
