"""What only the store in a SQLite file does: codes packed beside it, their staleness, threads, and files of others."""

import contextlib
import dataclasses
import errno
import itertools
import mmap
import os
import sqlite3
import threading
import time
import types

import numpy as np
import pytest

from jax_brcd.retrieval import PackedCodes, multi_index
from jax_brcd.retrieval.multi_index import MultiIndex
from jax_brcd.runtime.errors import InputError
from jax_brcd.search import open_store
from jax_brcd.search.stores import database, packed, view

COUNT = 100
ENCODER = types.SimpleNamespace(bits=64, space="teacher-1")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(view, "FEW", 8)


def codes(count=COUNT, seed=0):
    return PackedCodes(np.random.default_rng(seed).integers(0, 256, (count, 8), np.uint8), 64, "teacher-1")


def ids(numbers):
    return [f"{number * 7919 % 1009:04d}" for number in numbers]


@pytest.fixture
def path(tmp_path):
    """A store of COUNT items that was closed."""
    with contextlib.closing(open_store(tmp_path / "photos.brcd", create_for=ENCODER)) as store:
        store.add(ids(range(COUNT)), codes(), [{"n": number % 5} for number in range(COUNT)])
    return tmp_path / "photos.brcd"


def answers(path):
    """All that a store finds, in order."""
    with contextlib.closing(open_store(path)) as store:
        return store.search(codes(3, seed=1), COUNT, {"n": 1}), store.search(codes(3, seed=1), 2 * COUNT)


def beside(path):
    return path.with_name("photos.brcd-codes")


@contextlib.contextmanager
def another_writer(path):
    """A transaction of another connection that holds the file; gives the function that ends it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield lambda: other.execute("COMMIT")


def test_writers_take_turns(path):
    with contextlib.closing(open_store(path)) as store, another_writer(path) as end:
        began, ending = time.monotonic(), threading.Timer(0.3, end)
        ending.start()
        store.add(["late"], codes(1, seed=2))
        assert time.monotonic() - began > 0.25 and len(store) == COUNT + 1
        ending.join()


def test_a_writer_that_waits_too_long_is_told_of_the_other(path, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    with contextlib.closing(open_store(path)) as store, another_writer(path) as end:
        with pytest.raises(InputError, match="photos.brcd: another process has been writing for 0.1 seconds; try again"):
            store.add(["late"], codes(1, seed=2))
        assert len(store) == COUNT, "readers go on"
        end()
        store.add(["late"], codes(1, seed=2))
        assert len(store) == COUNT + 1


def test_codes_are_packed_beside_the_store_and_mapped_when_it_is_opened(path):
    assert beside(path).exists()
    with contextlib.closing(open_store(path)) as store:
        assert len(store._view._packed) == COUNT and isinstance(store._view._packed.numbers, np.memmap)
        store.search(codes(1), 1)
        assert not store._view._recent


@pytest.mark.parametrize("damage", [
    lambda path: beside(path).unlink(),
    lambda path: beside(path).write_bytes(b"{}"),
    lambda path: beside(path).write_bytes(beside(path).read_bytes()[:-8]),
    lambda path: beside(path).write_bytes(beside(path).read_bytes().replace(b'"owner": "', b'"owner": "0')),
    lambda path: (beside(path).unlink(), beside(path).mkdir()),
], ids=["gone", "no header", "cut", "of another store", "a folder"])
def test_packed_codes_that_are_gone_or_wrong_are_made_anew(path, damage):
    expected = answers(path)
    assert len(expected[1][0]) == COUNT
    damage(path)
    assert answers(path) == expected and answers(path) == expected


def test_what_came_and_went_since_the_codes_were_packed_is_read_from_the_store(path):
    old = beside(path).read_bytes()
    with contextlib.closing(open_store(path)) as store:
        store.delete(ids(range(30)))
        store.add(ids(range(20)), codes(20, seed=3))
        store.add(["0000 new"], codes(1, seed=4))
        expected = store.search(codes(3, seed=1), 2 * COUNT)
    assert len(expected[0]) == COUNT - 9
    beside(path).write_bytes(old)  # packed long ago
    assert answers(path)[1] == expected


def test_a_database_that_was_put_back_is_not_searched_by_later_codes(path):
    before, expected = path.read_bytes(), answers(path)
    with contextlib.closing(open_store(path)) as store:
        store.add(ids(range(COUNT, 2 * COUNT)), codes(seed=5))
        store.search(codes(1), 1)
    path.write_bytes(before)
    assert answers(path) == expected


def test_a_database_that_was_put_back_and_has_counted_further_is_not_searched_by_other_codes(path):
    before = path.read_bytes()
    with contextlib.closing(open_store(path)) as store:
        store.add(ids(range(COUNT, 2 * COUNT)), codes(seed=5))
    packed = beside(path).read_bytes()
    path.write_bytes(before)
    open_store(path).close()
    assert not beside(path).exists(), "while the database still tells that it is older"
    with contextlib.closing(open_store(path)) as store:
        store.add(ids(range(2 * COUNT, 4 * COUNT)), codes(2 * COUNT, seed=6))
        expected = store.search(codes(3, seed=1), 4 * COUNT)
    beside(path).write_bytes(packed)  # as where it was put back only now
    with contextlib.closing(open_store(path)) as store:
        assert store.search(codes(3, seed=1), 4 * COUNT) == expected and len(expected[0]) == 3 * COUNT


@pytest.mark.parametrize("left", [("-wal", "-shm"), ("-wal",), ("-shm",)], ids=" and ".join)
def test_no_store_is_made_beside_the_log_of_one_that_was_deleted(path, left):
    """SQLite would give the new store the items that the log tells of."""
    logs = [path.with_name(path.name + end) for end in left]
    with contextlib.closing(open_store(path)) as store:
        store.add(["old"], codes(1))
        content = {log: log.read_bytes() for log in logs}
    for log in logs:  # as where its process is killed
        log.write_bytes(content[log])
    path.unlink()
    names = sorted(os.listdir(path.parent))
    with pytest.raises(InputError) as error:
        open_store(path, create_for=ENCODER)
    assert str(error.value) == (f"{logs[0]}: is left of an index that was deleted; end the processes that use it, then delete "
                                + " and ".join(["it", *map(str, logs[1:])]))
    assert sorted(os.listdir(path.parent)) == names
    for log in logs:
        log.unlink()
    with contextlib.closing(open_store(path, create_for=ENCODER)) as store:
        assert len(store) == 0 and list(store.items()) == []


def test_a_store_that_another_process_makes_meanwhile_is_opened_with_its_log(tmp_path):
    """Whoever comes second found no store, and then finds the log of the first."""
    database.create(tmp_path / "photos.brcd", ENCODER)
    with contextlib.closing(open_store(tmp_path / "photos.brcd")) as store:
        store.add(["first"], codes(1))
        assert (tmp_path / "photos.brcd-wal").exists()
        database.create(tmp_path / "photos.brcd", ENCODER)
        assert [item.id for item in store.items()] == ["first"]


def test_a_folder_that_may_not_be_written_to_is_no_damage(path):
    for name in ("READONLY_DIRECTORY", "CANTOPEN_ISDIR"):
        error = sqlite3.OperationalError("refused")
        error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
        with pytest.raises(InputError, match="needs a folder that may be written to"), database.told(path):
            raise error


def test_filters_follow_what_is_added(path):
    with contextlib.closing(open_store(path)) as store:
        for _ in range(2):
            assert len(store.search(codes(1), COUNT, {"n": 1})[0]) == COUNT // 5
        store.add(["x"], codes(1), [{"n": 1.0}])
        assert len(store.search(codes(1), COUNT, {"n": 1})[0]) == COUNT // 5 + 1
        assert [hit.id for hit in store.search(codes(1), 1, {"n": 1})[0]] == ["x"]


def test_items_are_those_of_the_moment_when_they_were_asked_for(path):
    with contextlib.closing(open_store(path)) as store:
        items = store.items({"n": 2})
        store.delete(ids(range(COUNT)))
        assert len(list(items)) == COUNT // 5 and list(store.items()) == []


def test_threads_share_a_store(path):
    failed = []
    with contextlib.closing(open_store(path)) as store:
        def work(number):
            try:
                for turn in range(10):
                    store.add([f"{number} {turn}"], codes(1, seed=number))
                    assert store.search(codes(1, seed=number), 1)[0][0].distance == 0
            except Exception as error:  # noqa: BLE001 (a thread's own error is seen by nobody else)
                failed.append(error)

        threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed and len(store) == COUNT + 40


def test_columns_show_what_is_known_of_a_file_to_other_tools(path):
    with contextlib.closing(open_store(path)) as store:
        store.add(["p"], codes(1), [{"path": "/a/ä.jpg", "size": 3, "mtime": 1.5, "digest": "ab"}])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        row = connection.execute("SELECT path, size, mtime, digest FROM items WHERE id = ?", [b"p"]).fetchone()
    assert row == ("/a/ä.jpg", 3, 1.5, "ab")


def test_files_and_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"pixels")
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE about (name, value)")
    (tmp_path / "empty.brcd").touch()
    for name in ("photo.jpg", "other.db", "empty.brcd"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match="this file holds something else than a store"):
            open_store(tmp_path / name, create_for=ENCODER)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(InputError, match="this is a folder, and a store is a file"):
        open_store(tmp_path, create_for=ENCODER)
    assert sorted(os.listdir(tmp_path)) == ["empty.brcd", "other.db", "photo.jpg"]


def test_a_damaged_store_says_so_in_one_line(path):
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    beside(path).unlink()
    with pytest.raises(InputError, match="photos.brcd: .*where the file is damaged"):
        open_store(path).search(codes(1), 1)


def test_packed_codes_of_another_length_are_not_taken(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        owner = connection.execute("SELECT value FROM about WHERE name = 'owner'").fetchone()[0]
    assert len(packed.read_packed(beside(path), owner, 64, None)) == COUNT
    assert packed.read_packed(beside(path), owner, 56, None) is None


def test_packed_codes_are_those_of_one_file_where_another_takes_its_place_meanwhile(path, monkeypatch):
    parse, later = packed.parse_json, path.with_name("later")
    old = packed.Packed(codes(), np.arange(COUNT), COUNT, 0, (COUNT - 1, b"old"))
    packed.write_packed(beside(path), old, "owner")
    packed.write_packed(later, dataclasses.replace(old, codes=codes(seed=7), numbers=old.numbers[::-1].copy()), "owner")

    def replaced(header):
        os.replace(later, beside(path))
        return parse(header)

    monkeypatch.setattr(packed, "parse_json", replaced)
    read = packed.read_packed(beside(path), "owner", 64, None)
    assert np.array_equal(read.codes.packed, codes().packed) and np.array_equal(read.numbers, np.arange(COUNT))
    monkeypatch.setattr(packed, "parse_json", parse)
    read = packed.read_packed(beside(path), "owner", 64, None)
    assert np.array_equal(read.codes.packed, codes(seed=7).packed) and read.numbers[0] == COUNT - 1


def test_codes_that_another_process_packed_of_a_later_state_are_left_to_it(path, monkeypatch):
    expected, write = answers(path), view.write_packed
    beside(path).unlink()

    def overtaken(place, made, owner):
        write(place, dataclasses.replace(made, numbers=made.numbers + COUNT, added=made.added + 1), owner)

    monkeypatch.setattr(view, "write_packed", overtaken)
    assert answers(path) == expected


def test_packed_codes_that_cannot_be_mapped_are_read_from_the_store(path, monkeypatch):
    expected = answers(path)

    def refused(*given, **more):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(mmap, "mmap", refused)
    assert answers(path) == expected


def test_who_asks_often_for_a_radius_is_answered_from_tables_as_before(path, monkeypatch):
    """Also when items came and went since the tables were made, and by attributes; the nearest are found without them."""
    asked, within, by_tables = codes(3), MultiIndex.within, []
    monkeypatch.setattr(view, "MANY", COUNT)
    monkeypatch.setattr(multi_index, "LOOKS", 1e9)
    monkeypatch.setattr(MultiIndex, "within", lambda *about: by_tables.append(1) or within(*about))
    with contextlib.closing(open_store(path)) as store, contextlib.closing(open_store(path)) as often:
        often._view._balls = view.OFTEN
        for change in (lambda: None, lambda: store.delete(ids([0, 5])), lambda: store.add(["new"], codes(1), [{"n": 2}])):
            change()
            for radius, where in itertools.product((0, 24, 64), (None, {"n": 2})):
                by_tables.clear()
                found = store.search_radius(asked, radius, where)
                assert not by_tables
                assert often.search_radius(asked, radius, where) == found
                assert by_tables
        assert found[0][0].id == "new" and not often._view._index.table_bytes
