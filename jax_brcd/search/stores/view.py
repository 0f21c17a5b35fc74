"""What a process has in memory of a SQLite store: codes packed by id, and the few that were added since, to be searched.

It follows the database by the numbers of what came and went (see database.py), whoever wrote it.
"""

import contextlib
import pathlib
import sqlite3
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int64

from jax_brcd.retrieval import PackedCodes
from jax_brcd.retrieval.index import HammingIndex
from jax_brcd.retrieval.scan import Mask
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import parse_json
from jax_brcd.search.stores.base import CodeKind, Query, matches
from jax_brcd.search.stores.database import loosely
from jax_brcd.search.stores.packed import Packed, read_packed, write_packed
from jax_brcd.search.stores.spelling import as_text

FEW = 4096  # items that are not worth a file of their own, nor packing anew
SHARE = 16  # the codes are packed anew when more than one in so many came or went
ROWS = 10_000  # read together
KEPT = 8  # filters whose matches are remembered
MANY, OFTEN = 250_000, 1_000  # codes, and queries for what lies within a radius, that tables are worth making for

Near = tuple[Float[np.ndarray, "_"] | Int[np.ndarray, "_"], Int64[np.ndarray, "_"]]  # distances, numbers of items


class Recent(NamedTuple):
    """An item that came since the codes were packed."""

    id: bytes
    number: int
    code: bytes


class View:
    """The codes of a database, as they were when it was last followed. One thread at a time may use it."""

    def __init__(self, path: pathlib.Path, owner: str, kind: CodeKind):
        self._path, self._owner, self._kind = path, owner, kind
        self._recent: list[Recent] = []
        self._matching: dict[str, Int64[np.ndarray, "items"]] = {}
        self._put(read_packed(path, owner, kind.bits, kind.space) or self._none())

    def check(self, connection: sqlite3.Connection) -> None:
        """Forgets packed codes, and deletes their file, where they are of another course of the database: one that was put back
        from a backup counts over again what it gave other items. To be called before a process adds anything."""
        added, gone = _counts(connection)
        number, code = self._packed.newest
        row = connection.execute("SELECT code FROM items WHERE number = ?", [number]).fetchone()
        if added < self._added or gone < self._gone or (row is not None and row[0] != code):
            self._put(self._none())
            with contextlib.suppress(OSError):  # of a folder that only others may write to
                self._path.unlink()

    def follow(self, connection: sqlite3.Connection) -> None:
        """Brings the view to the state of the transaction that is open."""
        added, gone = _counts(connection)
        if (added, gone) == (self._added, self._gone):
            return
        self._matching.clear()
        if added < self._added or gone < self._gone:  # the packed codes are of a later state: a database was put back
            self._put(self._none())
        if self._is_stale(added, gone):
            self._pack(connection, added, gone)
            return
        came = [Recent(id, number, code) for number, id, code in connection.execute(
            "SELECT number, id, code FROM items WHERE number > ?", [self._added])]
        went = np.array([number for (number,) in connection.execute(
            "SELECT number FROM gone WHERE place > ?", [self._gone])], np.int64)
        self._added, self._gone = added, gone
        if len(went):
            here = ~np.isin(self._packed.numbers, went)
            self._there = here if self._there is None else self._there & here
            lost = set(went.tolist())
            self._recent = [item for item in self._recent if item.number not in lost]
        self._recent = sorted(self._recent + came)
        self._lay_out_recent()

    def search(self, connection: sqlite3.Connection, query: Query) -> list[Near]:
        """Of each query the nearest items, k at least where there are so many and in no order; all states as last followed."""
        found = []
        for index, numbers, mask in self._parts(connection, query.where, self._index):
            k = min(query.k, len(index) if mask is None else int(mask.sum()))
            if query.logits is None:
                found.append([(distances, numbers[rows]) for distances, rows in index.among(query.codes, k, mask)])
            else:
                products, rows = index.soft_among(query.logits, k, mask)
                found.append(list(zip(query.logits.distances(products), numbers[rows], strict=True)))
        return [_together(parts) for parts in zip(*found, strict=True)]

    def within(
        self, connection: sqlite3.Connection, queries: PackedCodes, radius: int, where: dict[str, Any]
    ) -> list[Near]:
        """Of each query all items within a radius, in no order.

        Who asks often is answered from tables, which for small radii take far less to make than they save (docs/stores.md, "Search
        in less than linear time").
        """
        self._balls += len(queries)
        if self._balls > OFTEN and len(self._packed) >= MANY and not self._ball_index.table_bytes:
            self._ball_index = HammingIndex(self._packed.codes, multi_index=True)
        found = [[(distances, numbers[rows]) for distances, rows in index.ball_among(queries, radius, mask)]
                 for index, numbers, mask in self._parts(connection, where, self._ball_index)]
        return [_together(parts) for parts in zip(*found, strict=True)]

    def keep(self, connection: sqlite3.Connection) -> None:
        """Packs the codes where that is worth it, so that the next process opens them at once."""
        added, gone = _counts(connection)
        if self._is_stale(added, gone):
            self._pack(connection, added, gone)

    def _is_stale(self, added: int, gone: int) -> bool:
        """Whether the codes are worth packing anew, in a database that has counted so far."""
        return added + gone - self._packed.added - self._packed.gone > max(FEW, len(self._packed) // SHARE)

    def _parts(
        self, connection: sqlite3.Connection, where: dict[str, Any], packed: HammingIndex
    ) -> list[tuple[HammingIndex, Int64[np.ndarray, "_"], Mask]]:
        """What is to be searched: an index, the numbers of its items, and which of them are there and match (None for all)."""
        parts = [(packed, self._packed.numbers, self._there), (self._recent_index, self._recent_numbers, None)]
        if not where:
            return parts
        numbers = self._numbers_of(connection, where)
        flags = np.zeros(self._added + 1, bool)
        flags[numbers] = True
        return [(index, own, flags[own] if there is None else there & flags[own]) for index, own, there in parts]

    def _numbers_of(self, connection: sqlite3.Connection, where: dict[str, Any]) -> Int64[np.ndarray, "items"]:
        """The items that match, remembered for the next searches."""
        key = as_text(sorted(where.items()))
        if key not in self._matching:
            condition, parameters = loosely(where)
            rows = connection.execute(f"SELECT number, attributes FROM items WHERE {condition}", parameters)
            found = np.array([number for number, attributes in rows if matches(parse_json(attributes), where)], np.int64)
            while len(self._matching) >= KEPT:
                del self._matching[next(iter(self._matching))]
            self._matching[key] = found
        return self._matching[key]

    def _pack(self, connection: sqlite3.Connection, added: int, gone: int) -> None:
        """Reads all codes and keeps them beside the database, where that may be written."""
        numbers, codes = [], []
        rows = connection.execute("SELECT number, code FROM items ORDER BY id")
        while some := rows.fetchmany(ROWS):
            numbers.append(np.array([number for number, _ in some], np.int64))
            codes.append(np.frombuffer(b"".join(code for _, code in some), np.uint8))
        none = self._none()
        all_codes = np.concatenate([none.codes.packed.ravel(), *codes]).reshape(-1, none.codes.packed.shape[1])
        own = np.concatenate([none.numbers, *numbers])
        newest = (int(own.max()), all_codes[own.argmax()].tobytes()) if len(own) else none.newest
        packed = Packed(PackedCodes(all_codes, self._kind.bits, self._kind.space), own, added, gone, newest)
        if len(packed) > FEW:
            try:
                write_packed(self._path, packed, self._owner)
            except (OSError, InputError):  # a full disk, say, or something else in its place: the codes stay in memory
                pass
            else:
                mapped = read_packed(self._path, self._owner, self._kind.bits, self._kind.space)
                # Another process may have packed a later state meanwhile, of which this one knows nothing yet
                packed = mapped if mapped is not None and (mapped.added, mapped.gone) == (added, gone) else packed
        self._put(packed)

    def _put(self, packed: Packed) -> None:
        self._packed, self._added, self._gone = packed, packed.added, packed.gone
        self._there: Mask = None
        self._index = self._ball_index = HammingIndex(packed.codes)
        self._balls = 0  # queries for what lies within a radius, since then
        self._recent = []
        self._lay_out_recent()

    def _lay_out_recent(self) -> None:
        self._recent_numbers = np.array([item.number for item in self._recent], np.int64)
        packed = np.frombuffer(b"".join(item.code for item in self._recent), np.uint8)
        self._recent_index = HammingIndex(PackedCodes(packed.reshape(len(self._recent), -(-self._kind.bits // 8)),
                                                      self._kind.bits, self._kind.space))

    def _none(self) -> Packed:
        codes = PackedCodes(np.empty((0, -(-self._kind.bits // 8)), np.uint8), self._kind.bits, self._kind.space)
        return Packed(codes, np.empty(0, np.int64), 0, 0, (0, b""))


def _counts(connection: sqlite3.Connection) -> tuple[int, int]:
    """The largest numbers that items, and those that are gone, have been given."""
    given = dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))
    return given.get("items", 0), given.get("gone", 0)


def _together(parts: tuple[Near, ...]) -> Near:
    return np.concatenate([distances for distances, _ in parts]), np.concatenate([numbers for _, numbers in parts])
