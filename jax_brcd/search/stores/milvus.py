"""`milvus://HOST:PORT/NAME` - a store in Milvus, the engine for many machines; the extra `[milvus]`. `milvus:PATH.db`, or
`milvus:PATH.db/NAME`, is Milvus Lite, which keeps a file of this machine for one process at a time.

Codes are binary vectors, searched by BIN_FLAT, which looks at every code. Milvus breaks ties as it likes, so a search fetches
the k nearest, then all within the distance of the last, and sorts. It keeps each change once it is acknowledged, but has no
transactions: of an addition in several messages (MESSAGE) a reader may see a part.
"""

import base64
import collections
import contextlib
import json
import logging
import re
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_brcd.retrieval import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, make_folder, parse_json
from jax_brcd.search.stores.base import FORMAT, Batch, CodeKind, Hit, Item, Query, check_kind, closed, nothing_there
from jax_brcd.search.stores.checked import CheckedStore
from jax_brcd.search.stores.servers import Found, nearest_first, soft_hits, split_url, token, tokens, without_password
from jax_brcd.search.stores.spelling import as_blob, as_id, as_text

if TYPE_CHECKING:
    from pymilvus import MilvusClient

NAME = "jax_brcd"  # the collection where the URL names none
LONGEST = 65_535  # bytes of a text
MANY = 1000  # attributes of an item
MOST = 16_384  # items of an answer
MESSAGE = 8 << 20  # bytes that are sent together
SECONDS = 60  # for an answer: without a limit the client tries again for minutes
# Of the connection: pymilvus asks every ten seconds whether the server is there, and servers of gRPC, Milvus Lite's among them,
# break off with a client that asks more than once in five minutes while nothing is at work
QUIET = {"grpc.keepalive_time_ms": 300_000, "grpc.keepalive_permit_without_calls": False}
USED, USED_LOCK = collections.Counter(), threading.Lock()  # files of Milvus Lite, and how many stores of this process use them
# Milvus Lite does not give codes with what a search found, so they stand in hexadecimal beside
ITEM = ["id", "hex", "attributes"]
STRONG = {"consistency_level": "Strong", "timeout": SECONDS}  # else what was deleted stays visible for a while


class MilvusStore(CheckedStore):
    """See Store. `items` is no snapshot: it may give some of what is added meanwhile. Threads may share one."""

    def __init__(self, client: "MilvusClient", url: str, name: str):
        self._client, self._url, self._name = client, url, name
        self._opened = contextlib.ExitStack()
        self._lock = threading.RLock()
        about = _about(client, name)
        if about is None:
            raise InputError("another collection than a store of this version; give another name", field="url", value=url)
        self.bits, self.space = about["bits"], about["space"]
        _make_ready(client, name)

    def _put(self, batch: Batch) -> None:
        """Raises InputError for what is longer than Milvus keeps."""
        rows = _rows(batch)
        with self._told() as client:
            begin, size = 0, 0
            for place, row in enumerate(rows):
                size += sum(len(part) for part in row.values()) + 24 * len(row["tokens"])
                if size >= MESSAGE or place == len(rows) - 1:
                    client.upsert(self._name, rows[begin : place + 1], timeout=SECONDS)
                    begin, size = place + 1, 0

    def _drop(self, ids: list[str]) -> None:
        keys = [_key(id) for id in ids]
        with self._told() as client:
            for begin in range(0, len(keys), MANY):
                client.delete(self._name, ids=keys[begin : begin + MANY], timeout=SECONDS)

    def _nearest_hits(self, query: Query) -> list[list[Hit]]:
        if query.logits is None:
            return [nearest_first(self._nearest(code, query.k, query.where))[: query.k] for code in query.codes]
        return soft_hits(query.logits, query.k, self.bits, lambda code, k: self._nearest(code, k, query.where)[:k],
                         lambda code, radius: self._within(code, radius, query.where))

    def _hits_within(self, codes: PackedCodes, radius: int, where: dict[str, Any]) -> list[list[Hit]]:
        return [nearest_first(self._within(code, radius, where)) for code in codes]

    def _fetch(self, ids: list[str]) -> list[Item | None]:
        found = {row["id"]: _item(row) for row in self._rows_of(ids, ITEM)}
        return [found.get(_key(id)) for id in ids]

    def _each(self, where: dict[str, Any]) -> Iterator[Item]:
        return map(_item, self._all(where))

    def _picture(self, id: str) -> bytes | None:
        rows = self._rows_of([id], ["thumbnail"])
        return base64.b64decode(rows[0]["thumbnail"][1:]) if rows and rows[0]["thumbnail"] else None

    def _keep_note(self, name: str, value: str) -> None:
        notes = f"{self._name}_notes"
        with self._told() as client:
            if not client.has_collection(notes, timeout=SECONDS):
                _create(client, notes, "notes of a store", 8, {"value": LONGEST})
            _make_ready(client, notes)
            text, before = as_text(value), self._note_row(client, name)
            pieces = [text[begin : begin + LONGEST] for begin in range(0, len(text), LONGEST)]
            # Of a long note the row says where its pieces lie; each writing has places of its own, and is whole with its row
            places = [f"{name}\0{uuid.uuid4().hex}" for _ in pieces] if len(pieces) > 1 else []
            for place, piece in [*zip(places, pieces), (name, as_text(places) if places else text)]:
                client.upsert(notes, [{"id": _key(place), "code": b"\0", "value": piece}], timeout=SECONDS)
            if old := _places(before):
                client.delete(notes, ids=[_key(place) for place in old], timeout=SECONDS)

    def noted(self, name: str) -> str | None:
        """See Store."""
        notes = f"{self._name}_notes"
        with self._told() as client:
            if not client.has_collection(notes, timeout=SECONDS):
                return None
            _make_ready(client, notes)
            while places := _places(text := self._note_row(client, name)):
                pieces = [self._note_row(client, place) for place in places]
                if None not in pieces:  # else it was written anew meanwhile
                    text = "".join(pieces)
                    break
        return None if text is None else parse_json(text)

    def _note_row(self, client: "MilvusClient", name: str) -> str | None:
        rows = client.query(f"{self._name}_notes", ids=[_key(name)], output_fields=["value"], **STRONG)
        return rows[0]["value"] if rows else None

    def __len__(self) -> int:
        with self._told() as client:
            return client.query(self._name, filter="", output_fields=["count(*)"], **STRONG)[0]["count(*)"]

    def close(self) -> None:
        """See Store."""
        with self._lock:
            if self._client is not None:
                self._client = None
                self._opened.close()

    def keep(self, opened: contextlib.ExitStack) -> None:
        """Takes over what is to be let go of when the store is closed."""
        self._opened = opened

    def _nearest(self, code: PackedCodes, k: int, where: dict[str, Any]) -> list[Found]:
        """The k nearest items and all others that are no further, nearest first."""
        found = self._search(code, min(k, MOST), where, {})
        if len(found) == k:
            found = self._within(code, found[-1].distance, where)
        elif len(found) == MOST:
            found = self._look(code, self.bits, where)
        return sorted(found, key=lambda each: (each.distance, each.item.id))

    def _within(self, code: PackedCodes, radius: int, where: dict[str, Any]) -> list[Found]:
        # From range_filter on and below radius; whole numbers, as fractions are cut off
        found = self._search(code, MOST, where, {"radius": min(radius, self.bits) + 1, "range_filter": 0})
        return found if len(found) < MOST else self._look(code, radius, where)

    def _look(self, code: PackedCodes, radius: int, where: dict[str, Any]) -> list[Found]:
        """All within a radius by looking at every item here, where they are more than Milvus gives at once."""
        distances = ((item, int(np.bitwise_count(item.packed ^ code.packed[0]).sum())) for item in self._each(where))
        return [Found(item, distance) for item, distance in distances if distance <= radius]

    def _search(self, code: PackedCodes, limit: int, where: dict[str, Any], params: dict[str, int]) -> list[Found]:
        with self._told() as client:
            (hits,) = client.search(self._name, [code.packed.tobytes()], anns_field="code", limit=limit, filter=_filter(where),
                                    output_fields=ITEM[1:], search_params={"metric_type": "HAMMING", "params": params}, **STRONG)
        return [Found(_item({"id": hit["id"], **hit["entity"]}), round(hit["distance"])) for hit in hits]

    def _rows_of(self, ids: list[str], fields: list[str]) -> list[dict[str, Any]]:
        keys = [_key(id) for id in ids]
        with self._told() as client:
            return [row for begin in range(0, len(keys), MANY) for row in
                    client.query(self._name, ids=keys[begin : begin + MANY], output_fields=fields, **STRONG)]

    def _all(self, where: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """All rows that match by id, a page at a time; each begins behind the last of the one before."""
        last = ""
        while True:
            asked = [f'id > "{last}"', *([_filter(where)] if where else [])]
            with self._told() as client:
                pages = client.query_iterator(self._name, batch_size=MANY, limit=MANY, filter=" and ".join(asked),
                                              output_fields=ITEM, **STRONG)
                rows = sorted(pages.next(), key=lambda row: row["id"])
                pages.close()
            yield from rows
            if len(rows) < MANY:
                return
            last = rows[-1]["id"]

    @contextlib.contextmanager
    def _told(self) -> "Iterator[MilvusClient]":
        if self._client is None:
            raise closed()
        with self._lock, _errors(self._url):
            yield self._client


def open_milvus(url: str, create_for: CodeKind | None) -> MilvusStore:
    """The store in a collection, made where there is none; see open_store."""
    address, name, who = _parted(url)
    with contextlib.ExitStack() as opened, _errors(url):
        client = _connect(url, address, who, opened)
        if not client.has_collection(name, timeout=SECONDS):
            if create_for is None:
                raise nothing_there(url)
            about = json.dumps({"format": FORMAT, "bits": create_for.bits, "space": create_for.space})
            lengths = {"hex": LONGEST, "attributes": LONGEST, "thumbnail": LONGEST}
            _create(client, name, about, -(-create_for.bits // 8) * 8, lengths, tokens=True)
        store = MilvusStore(client, url, name)
        check_kind(url, store, create_for)
        store.keep(opened.pop_all())
    return store


def _parted(url: str) -> tuple[str, str, str]:
    """Where the server or the file is, the collection's name, and what the server is told of who asks."""
    if not url.startswith("milvus://"):
        path = as_path(url.removeprefix("milvus:"))
        path, name = (path.parent, path.name) if path.parent.suffix == ".db" else (path, NAME)
        if path.suffix != ".db":
            raise InputError("a Milvus of this machine is a file that ends in .db; give milvus:PATH.db, or milvus://HOST:PORT/NAME",
                             field="url", value=url)
        return str(path.absolute()), _checked_name(url, name), ""
    parts = split_url(url)
    who, _, where = parts.netloc.rpartition("@")
    if not where:
        raise InputError("no host; give milvus://HOST:PORT/NAME", field="url", value=url)
    name = _checked_name(url, parts.path.strip("/") or NAME)
    try:
        port = parts.port
    except ValueError as error:
        raise InputError(f"{error}; give milvus://HOST:PORT/NAME", field="url", value=url) from None
    return f"http://{where if port else f'{where}:19530'}", name, urllib.parse.unquote(who)


def _checked_name(url: str, name: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,200}", name):
        raise InputError(f"a collection is named by letters, digits and _, not '{name}'", field="url", value=url)
    return name


def _connect(url: str, address: str, who: str, opened: contextlib.ExitStack) -> "MilvusClient":
    """A client, and a process of Milvus Lite for it where the address is a file; `opened` lets go of both."""
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise InputError("a store in Milvus needs pymilvus; pip install 'jax_brcd[milvus]'", field="url", value=url) from None
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # its errors are raised as well
    if not address.startswith("http://"):
        make_folder(as_path(address).parent)
        opened.enter_context(_lite(address))
    client = MilvusClient(uri=address, token=who, timeout=SECONDS, grpc_options=QUIET)
    opened.callback(client.close)
    return client


@contextlib.contextmanager
def _lite(path: str) -> Iterator[None]:
    """A file in use: its process, which stores of this process share, ends with the last of them, so that others may open it."""
    with USED_LOCK:
        USED[path] += 1
    try:
        yield
    finally:
        with USED_LOCK:
            USED[path] -= 1
            if not USED[path]:
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(path)


def _create(client: "MilvusClient", name: str, about: str, bits: int, texts: dict[str, int], *, tokens: bool = False) -> None:
    """A collection of codes and texts; `about` is its description."""
    from pymilvus import DataType, MilvusException

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=about)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST)
    schema.add_field("code", DataType.BINARY_VECTOR, dim=bits)
    for text, length in texts.items():
        schema.add_field(text, DataType.VARCHAR, max_length=length)
    if tokens:
        schema.add_field("tokens", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=MANY, max_length=24)
    try:
        client.create_collection(name, schema=schema, consistency_level="Strong", timeout=SECONDS)
    except MilvusException:
        if not client.has_collection(name, timeout=SECONDS):  # else somebody was faster
            raise


def _make_ready(client: "MilvusClient", name: str) -> None:
    """Indexes and loads a collection; nothing where that is done."""
    if not client.list_indexes(name, field_name="code"):
        params = client.prepare_index_params()
        params.add_index(field_name="code", index_type="BIN_FLAT", metric_type="HAMMING")
        client.create_index(name, params, timeout=SECONDS)
    client.load_collection(name, timeout=SECONDS)


def _about(client: "MilvusClient", name: str) -> dict[str, Any] | None:
    """What `open_milvus` wrote of a collection; None for one of others."""
    try:
        about = parse_json(client.describe_collection(name, timeout=SECONDS)["description"])
        return about if about["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _errors(url: str) -> Iterator[None]:
    """Raises what Milvus or the way to it says as an InputError in one line, without the password of the URL."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        from pymilvus.exceptions import MilvusException

        if not isinstance(error, MilvusException):
            raise
        raise InputError(f"Milvus: {' '.join(str(error.message).split())}", field="url", value=without_password(url)) from None


def _places(text: str | None) -> list[str]:
    """Where the pieces of a long note lie; nothing for one that is a text itself."""
    told = [] if text is None else parse_json(text)
    return told if isinstance(told, list) else []


def _key(id: str) -> str:
    """An id as Milvus has it: plain letters in the same order."""
    return as_blob(id).hex()


def _filter(where: dict[str, Any]) -> str:
    return " and ".join(f'array_contains(tokens, "{token(*each)}")' for each in where.items())


def _rows(batch: Batch) -> list[dict[str, Any]]:
    rows = []
    for id, code, about, picture in zip(batch.ids, batch.codes.packed, batch.attributes, batch.thumbnails, strict=True):
        if len(about) > MANY:
            raise InputError(f"item '{id}' has {len(about)} attributes; Milvus keeps {MANY}")
        rows.append({"id": _fitting(_key(id), f"the id '{id[:50]}'"), "code": code.tobytes(), "hex": code.tobytes().hex(),
                     "attributes": _fitting(as_text(about), f"the attributes of item '{id}'"), "tokens": tokens(about),
                     "thumbnail": "" if picture is None else
                     _fitting("=" + base64.b64encode(picture).decode(), f"the thumbnail of item '{id}'")})
    return rows


def _fitting(text: str, what: str) -> str:
    if len(text) > LONGEST:
        raise InputError(f"{what} takes {len(text):,} bytes; Milvus keeps {LONGEST:,}: give less, or use another store")
    return text


def _item(row: dict[str, Any]) -> Item:
    return Item(as_id(bytes.fromhex(row["id"])), np.frombuffer(bytes.fromhex(row["hex"]), np.uint8), parse_json(row["attributes"]))
