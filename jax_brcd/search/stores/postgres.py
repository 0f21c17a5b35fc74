"""`postgresql://USER@HOST/DATABASE?index=NAME` - a store in PostgreSQL, for several machines; the extra `[postgres]`.

An index is a schema of the database, `jax_brcd` where none is named. Codes are `bit(n)`. Their distance is counted by pgvector's
`<~>` where the extension is installed and by `bit_count(a # b)` elsewhere (PostgreSQL 14 and later); both look at every code.
"""

import contextlib
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_brcd.retrieval import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import parse_json
from jax_brcd.search.stores.base import FORMAT, Batch, CodeKind, Hit, Item, Query, check_kind, closed, nothing_there
from jax_brcd.search.stores.checked import CheckedStore
from jax_brcd.search.stores.servers import Found, nearest_first, soft_hits, split_url, tokens, without_password
from jax_brcd.search.stores.spelling import as_blob, as_id, as_text

if TYPE_CHECKING:
    import psycopg

INDEX = "jax_brcd"  # the schema where the URL names none
ROWS = 2000  # fetched together
# Of a connection, where the URL does not say otherwise: else a host that vanished would be waited for a quarter of an hour. In
# seconds, the last in milliseconds
PATIENCE = {"connect_timeout": 30, "keepalives_idle": 30, "keepalives_interval": 10, "tcp_user_timeout": 60_000}
PAUSE = 10.0  # seconds after a connection that was not made anew before that is tried again
# Tokens stand for attributes in filters (see servers.py): JSON of PostgreSQL knows neither NUL nor lone surrogates
TABLES = """
CREATE TABLE {index}.about (name text PRIMARY KEY, value text);
CREATE TABLE {index}.notes (name bytea PRIMARY KEY, value bytea NOT NULL);
CREATE TABLE {index}.items (id bytea PRIMARY KEY, code bit({bits}) NOT NULL, attributes text NOT NULL, tokens text[] NOT NULL,
                            thumbnail bytea);
CREATE INDEX ON {index}.items USING gin (tokens);
"""


class PostgresStore(CheckedStore):
    """See Store. Threads may share one: they take turns. A connection that was lost is made anew by the next use. Where it cannot
    be, those who come within the next seconds are told the same at once, as each would else wait for a host that has gone."""

    def __init__(self, connection: "psycopg.Connection", url: str, index: str):
        self._connection, self._url, self._index = connection, url, index
        self._lock = threading.RLock()
        self._refused: tuple[float, InputError] | None = None  # why the connection was not made anew, and until when to tell so
        about = dict(self._run("SELECT name, value FROM {index}.about"))
        if about.get("format") != FORMAT:
            raise InputError("something else than a store of this version; name another index by ?index=", field="url", value=url)
        self.bits, self.space = int(about["bits"]), about["space"]
        vector = self._run("SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'")
        code = f"%s::bit({self.bits})"
        self._distance = f'(code OPERATOR("{vector[0][0]}".<~>) {code})::int' if vector else f"bit_count(code # {code})::int"

    def _put(self, batch: Batch) -> None:
        with self._told() as connection, connection.transaction():
            connection.execute(self._sql("CREATE TEMPORARY TABLE coming (LIKE {index}.items) ON COMMIT DROP"))
            with connection.cursor().copy("COPY coming (id, code, attributes, tokens, thumbnail) FROM STDIN") as copy:
                for id, code, about, picture in zip(batch.ids, _spelt(batch.codes), batch.attributes, batch.thumbnails, strict=True):
                    copy.write_row((as_blob(id), code, as_text(about), tokens(about), picture))
            connection.execute(self._sql(
                "INSERT INTO {index}.items SELECT * FROM coming ORDER BY id ON CONFLICT (id) DO UPDATE SET code = excluded.code, "
                "attributes = excluded.attributes, tokens = excluded.tokens, thumbnail = excluded.thumbnail"))

    def _drop(self, ids: list[str]) -> None:
        self._run("DELETE FROM {index}.items WHERE id = ANY(%s)", [as_blob(id) for id in ids])

    def _nearest_hits(self, query: Query) -> list[list[Hit]]:
        if query.logits is None:
            return [nearest_first(self._nearest(code, query.k, query.where)) for code in query.codes]
        return soft_hits(query.logits, query.k, self.bits, lambda code, k: self._nearest(code, k, query.where),
                         lambda code, radius: self._within(code, radius, query.where))

    def _hits_within(self, codes: PackedCodes, radius: int, where: dict[str, Any]) -> list[list[Hit]]:
        return [nearest_first(self._within(code, radius, where)) for code in codes]

    def _fetch(self, ids: list[str]) -> list[Item | None]:
        rows = self._run("SELECT id, code::text, attributes FROM {index}.items WHERE id = ANY(%s)", [as_blob(id) for id in ids])
        found = {item.id: item for item in map(_item, rows)}
        return [found.get(id) for id in ids]

    def _each(self, where: dict[str, Any]) -> Iterator[Item]:
        """They are read through a connection of their own, so the store may be changed meanwhile."""
        with self._told():
            connection = _connect(self._url)
            connection.autocommit = False  # a cursor of the server lives in a transaction
            cursor = connection.cursor(name="items")  # of the server, which keeps the rows
            cursor.itersize = ROWS
            cursor.execute(self._sql("SELECT id, code::text, attributes FROM {index}.items WHERE tokens @> %s::text[] ORDER BY id"),
                           [tokens(where)])

        def read() -> Iterator[Item]:
            with contextlib.closing(connection), _errors(self._url):
                yield from map(_item, cursor)

        return read()

    def _picture(self, id: str) -> bytes | None:
        rows = self._run("SELECT thumbnail FROM {index}.items WHERE id = %s", as_blob(id))
        return rows[0][0] if rows else None

    def _keep_note(self, name: str, value: str) -> None:
        self._run("INSERT INTO {index}.notes VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                  as_blob(name), as_blob(value))

    def noted(self, name: str) -> str | None:
        """See Store."""
        rows = self._run("SELECT value FROM {index}.notes WHERE name = %s", as_blob(name))
        return as_id(rows[0][0]) if rows else None

    def __len__(self) -> int:
        return self._run("SELECT count(*) FROM {index}.items")[0][0]

    def close(self) -> None:
        """See Store."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _nearest(self, code: PackedCodes, k: int, where: dict[str, Any]) -> list[Found]:
        return self._found(code, where, "TRUE", "ORDER BY distance, id LIMIT %s", k)

    def _within(self, code: PackedCodes, radius: int, where: dict[str, Any]) -> list[Found]:
        return self._found(code, where, "distance <= %s", "", min(radius, self.bits))

    def _found(self, code: PackedCodes, where: dict[str, Any], condition: str, end: str, number: int) -> list[Found]:
        """Items by their distances to one code; `number` is the parameter of the condition or the end."""
        (spelt,) = _spelt(code)
        asked, values = ("WHERE tokens @> %s::text[]", [tokens(where)]) if where else ("", [])
        inner = f"SELECT id, code::text, attributes, {self._distance} AS distance FROM {{index}}.items {asked}"
        rows = self._run(f"SELECT * FROM ({inner}) AS near WHERE {condition} {end}", spelt, *values, number)
        return [Found(_item(row[:3]), row[3]) for row in rows]

    def _run(self, sql: str, *parameters: Any) -> list[tuple]:
        """The rows of one statement, which is kept whole or not at all."""
        with self._told() as connection:
            cursor = connection.execute(self._sql(sql), parameters)
            return cursor.fetchall() if cursor.description else []

    def _sql(self, sql: str) -> str:
        return sql.replace("{index}", f'"{self._index}"')

    @contextlib.contextmanager
    def _told(self) -> "Iterator[psycopg.Connection]":
        with self._lock, _errors(self._url):
            if self._connection is None:
                raise closed()
            if self._connection.closed:  # it was lost, and what met that has failed, as nobody knows how much of it was done
                self._connection = self._made_anew()
            yield self._connection

    def _made_anew(self) -> "psycopg.Connection":
        if self._refused is not None and time.monotonic() < self._refused[0]:
            raise self._refused[1].with_traceback(None)
        try:
            with _errors(self._url):
                return _connect(self._url)
        except InputError as error:
            self._refused = time.monotonic() + PAUSE, error
            raise


def open_postgres(url: str, create_for: CodeKind | None) -> PostgresStore:
    """The store in a database, made where there is none; see open_store."""
    place, index = _parted(url)
    with _errors(url):
        connection = _connect(place)
        try:
            if not connection.execute("SELECT to_regclass(%s)", [f'"{index}".about']).fetchone()[0]:
                if create_for is None:
                    raise nothing_there(url)
                _create(connection, index, create_for)
            store = PostgresStore(connection, place, index)
            check_kind(url, store, create_for)
        except BaseException:
            connection.close()
            raise
    return store


def _parted(url: str) -> tuple[str, str]:
    """The URL as PostgreSQL knows it, and the name of the index."""
    parts = split_url(url)
    asked = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    index = dict(asked).get("index", INDEX)
    if not index or not index.replace("_", "a").isalnum() or len(index.encode()) > 63:
        raise InputError(f"an index is named by letters, digits and _, 63 at most, not '{index}'", field="url", value=url)
    query = urllib.parse.urlencode([pair for pair in asked if pair[0] != "index"], quote_via=urllib.parse.quote)
    return parts._replace(query=query).geturl(), index


def _connect(url: str) -> "psycopg.Connection":
    try:
        import psycopg
    except ImportError:
        raise InputError("a store in PostgreSQL needs psycopg; pip install 'jax_brcd[postgres]'", field="url", value=url) from None
    return psycopg.connect(autocommit=True, **(PATIENCE | psycopg.conninfo.conninfo_to_dict(url)))


def _create(connection: "psycopg.Connection", index: str, kind: CodeKind) -> None:
    """The tables of an index, all or none; whoever comes second waits and finds them."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('jax_brcd'))")
        if connection.execute("SELECT to_regclass(%s)", [f'"{index}".about']).fetchone()[0]:
            return
        connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{index}"')
        for statement in TABLES.format(index=f'"{index}"', bits=kind.bits).split(";")[:-1]:
            connection.execute(statement)
        for pair in (("format", FORMAT), ("bits", str(kind.bits)), ("space", kind.space)):
            connection.execute(f'INSERT INTO "{index}".about VALUES (%s, %s)', pair)


@contextlib.contextmanager
def _errors(url: str) -> Iterator[None]:
    """Raises what the server or the way to it says as an InputError in one line, without the password of the URL."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        import psycopg

        if not isinstance(error, psycopg.Error):
            raise
        raise InputError(f"PostgreSQL: {' '.join(str(error).split())}", field="url", value=without_password(url)) from None


def _spelt(codes: PackedCodes) -> list[str]:
    """Codes as PostgreSQL spells bits."""
    bits = np.unpackbits(codes.packed, axis=1, count=codes.bits) + ord("0")
    return [row.tobytes().decode() for row in bits]


def _item(row: tuple[bytes, str, str]) -> Item:
    id, code, attributes = row
    return Item(as_id(id), np.packbits(np.frombuffer(code.encode(), np.uint8) - ord("0")), parse_json(attributes))
