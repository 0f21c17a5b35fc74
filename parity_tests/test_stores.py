"""What every store must do: one test of all that are registered. A new store adds its line to URLS.

Servers are started by servers.py. The tests of a Milvus server run in a process of their own (milvus_server.py), or here where
MILVUS_URL names one (docs/stores.md, "Milvus").
"""

import contextlib
import multiprocessing
import os
import random
import re
import signal
import types

import milvus_server
import numpy as np
import pytest
import servers

from jax_brcd.retrieval import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.search import STORES, Hit, Store, open_store
from jax_brcd.search.stores import milvus, view

# By name, the URL of a place where nothing is yet, in a folder that is the test's own
URLS = {
    "memory": lambda folder: "memory:",
    "folder": lambda folder: f"folder:{folder / 'photos'}",
    "sqlite": lambda folder: str(folder / "photos.brcd"),
    "postgresql": lambda folder: servers.postgres_url(vector=False),
    "postgresql with pgvector": lambda folder: servers.postgres_url(vector=True),
    "milvus": lambda folder: servers.milvus_lite_url(),
    "milvus server": lambda folder: servers.milvus_url(),
}
ENDS_WITH_ITS_PROCESS = {"memory"}
LASTING = sorted(URLS.keys() - ENDS_WITH_ITS_PROCESS)
OPERATIONS = {"milvus": 150, "milvus server": 30}  # at random, where 1000 would take a minute
BITS = 20
ENCODER = types.SimpleNamespace(bits=BITS, space="teacher-1")


def codes_of(*numbers, bits=BITS, space="teacher-1"):
    """Codes whose last bits spell the numbers, so that distances are counts of differing binary digits."""
    return PackedCodes.of(np.array([[number >> bit & 1 for bit in reversed(range(bits))] for number in numbers],
                                   bool).reshape(-1, bits), space)


@pytest.fixture(params=sorted(URLS))
def url(request, tmp_path):
    return URLS[request.param](tmp_path)


@pytest.fixture
def store(url):
    with contextlib.closing(open_store(url, create_for=ENCODER)) as store:
        yield store


def ids_of(hits):
    return [hit.id for hit in hits]


def test_every_registered_store_is_tested():
    assert {name.split()[0] for name in URLS} == set(STORES)


def test_a_new_store_is_empty_and_knows_its_codes(store):
    assert isinstance(store, Store)
    assert (len(store), store.bits, store.space) == (0, BITS, "teacher-1")
    assert store.search(codes_of(0, 1), 5) == [[], []]


def test_hits_are_the_nearest_with_exact_distances_and_ties_by_id(store):
    store.add(["d", "b", "c", "a"], codes_of(0b11, 0b1, 0b10, 0b111))
    near, other = store.search(codes_of(0, 0b110), 3)
    assert near == [Hit("b", 1, {}), Hit("c", 1, {}), Hit("d", 2, {})]
    assert other == [Hit("a", 1, {}), Hit("c", 1, {}), Hit("d", 2, {})]
    assert store.search(codes_of(), 3) == []


def test_what_is_added_or_deleted_is_seen_at_once(store):
    store.add(["a", "b"], codes_of(0, 1))
    store.add(["c"], codes_of(0b11))
    assert ids_of(store.search(codes_of(0), 3)[0]) == ["a", "b", "c"] and len(store) == 3
    store.delete(["a", "not there"])
    assert ids_of(store.search(codes_of(0), 3)[0]) == ["b", "c"] and len(store) == 2
    store.delete([])
    store.delete(["b", "c"])
    assert store.search(codes_of(0), 3) == [[]] and len(store) == 0


def test_an_id_that_is_there_is_replaced(store):
    store.add(["a", "b"], codes_of(0, 1), [{"folder": "old", "year": 1}, {}])
    store.add(["c", "a"], codes_of(0b111, 0b1111), [{}, {"folder": "new"}])
    assert store.search(codes_of(0), 9)[0] == [Hit("b", 1, {}), Hit("c", 3, {}), Hit("a", 4, {"folder": "new"})]
    assert len(store) == 3


def test_where_asks_for_just_these_values(store):
    values = {"a": {"x": 1, "y": "1"}, "b": {"x": 1.0}, "c": {"x": True}, "d": {"x": None}, "e": {}, "f": {"x": "1", "y": "1"}}
    store.add(list(values), codes_of(*range(6)), list(values.values()))
    for where, expected in (({"x": 1}, "ab"), ({"x": True}, "c"), ({"x": None}, "d"), ({"x": "1"}, "f"), ({"y": "1"}, "af"),
                            ({"x": 1, "y": "1"}, "a"), ({"z": 1}, ""), ({}, "abcdef"), (None, "abcdef")):
        (hits,) = store.search(codes_of(0), 10, where)
        assert sorted(ids_of(hits)) == list(expected), where
        assert all(hit.attributes == values[hit.id] for hit in hits)
    assert ids_of(store.search(codes_of(0b11), 1, where={"y": "1"})[0]) == ["a"]  # the nearest that matches


def test_ids_and_attributes_are_kept_as_they_are(store):
    ids = ["ä/б 图.jpg", "quote'\";--", "file\udcff.jpg", " ", "0", "a" * 1000]
    attributes = [{"name ä": "line\nbreak"}, {"n": -0.1}, {"n": 2**53}, {"n": False}, {"n": None}, {"": ""}]
    store.add(ids, codes_of(*range(6)), attributes)
    assert {hit.id: hit.attributes for hit in store.search(codes_of(0), 9)[0]} == dict(zip(ids, attributes, strict=True))


def test_a_caller_cannot_change_what_is_stored(store):
    attributes = [{"folder": "2024"}]
    store.add(["a"], codes_of(0), attributes)
    attributes[0]["folder"] = "2025"
    store.search(codes_of(0), 1)[0][0].attributes["folder"] = "2026"
    assert store.search(codes_of(0), 1)[0][0].attributes == {"folder": "2024"}


def test_a_soft_query_ranks_by_the_logits_of_the_bits_that_differ(store):
    store.add(["d", "b", "c", "a"], codes_of(0b11, 0b1, 0b10, 0b111), [{"x": 1}, {}, {"x": 1}, {}])
    logits = np.full((2, BITS), -1.0, np.float32)
    logits[:, -3:] = [[-4.0, -0.25, 0.5], [0.0, -0.5, 0.0]]
    one, other = store.search(logits, 3, soft=True)
    assert one == [Hit("b", 0.0, {}), Hit("d", 0.25, {"x": 1}), Hit("c", 0.75, {"x": 1})]
    assert other == [Hit("b", 0.0, {}), Hit("a", 0.5, {}), Hit("c", 0.5, {"x": 1})]
    assert ids_of(store.search(logits[:1], 9, {"x": 1}, soft=True)[0]) == ["d", "c"]
    assert all(isinstance(hit.distance, float) for hit in one)
    for bad, message in ((logits[:, :8], "logits of 8 bits for a store of 20"), (codes_of(0), "not packed codes"),
                         (logits * np.nan, "must be finite")):
        with pytest.raises(InputError, match=message):
            store.search(bad, 1, soft=True)


def test_all_within_a_radius_are_found(store):
    assert store.search_radius(codes_of(0), 3) == [[]]
    store.add(["d", "b", "c", "a"], codes_of(0b11, 0b1, 0b10, 0b111), [{}, {"x": 1}, {}, {"x": 1}])
    near, none = store.search_radius(codes_of(0, 0b1111110000), 2)
    assert near == [Hit("b", 1, {"x": 1}), Hit("c", 1, {}), Hit("d", 2, {})] and none == []
    assert ids_of(store.search_radius(codes_of(0), BITS + 9)[0]) == ["b", "c", "d", "a"]
    assert ids_of(store.search_radius(codes_of(0), 3, {"x": 1})[0]) == ["b", "a"]
    assert ids_of(store.search_radius(codes_of(0b10), 0)[0]) == ["c"] and store.search_radius(codes_of(), 2) == []
    with pytest.raises(InputError, match="radius -1: too small"):
        store.search_radius(codes_of(0), -1)


def test_items_are_given_by_id_and_one_after_the_other(store):
    assert list(store.items()) == []
    store.add(["b", "ä", "a"], codes_of(1, 2, 3), [{"x": 1}, {}, {"x": 1}])
    (found, absent, other) = store.get(["ä", "no", "a"])
    assert (found.id, absent, other.id, other.attributes) == ("ä", None, "a", {"x": 1})
    assert np.array_equal(found.packed, codes_of(2).packed[0]) and found.packed.dtype == np.uint8
    items = list(store.items())
    assert [item.id for item in items] == ["a", "b", "ä"] and [item.id for item in store.items({"x": 1})] == ["a", "b"]
    assert np.array_equal([item.packed for item in items], codes_of(3, 1, 2).packed)
    assert [item.attributes for item in items] == [{"x": 1}, {"x": 1}, {}]
    assert store.get([]) == []


def test_thumbnails_are_kept_with_their_items(store):
    store.add(["a", "b", "c"], codes_of(1, 2, 3), thumbnails=[b"\xff\xd8 picture\0", None, b"c"])
    store.add(["d"], codes_of(4))
    assert [store.thumbnail(id) for id in "abcdx"] == [b"\xff\xd8 picture\0", None, b"c", None, None]
    store.add(["a"], codes_of(1))
    store.delete(["c"])
    store.add(["c"], codes_of(3))
    assert store.thumbnail("a") is None and store.thumbnail("c") is None
    with pytest.raises(InputError, match="1 ids, but 2 thumbnails"):
        store.add(["a"], codes_of(1), thumbnails=[b"", b""])


def test_notes_are_facts_of_the_index(store):
    assert store.noted("encoder") is None
    store.note("encoder", "runs/ä/student")
    store.note("encoder", "hf:user/name")
    store.note("", "'\n")
    assert (store.noted("encoder"), store.noted(""), store.noted("other"), len(store)) == ("hf:user/name", "'\n", None, 0)


REFUSED = [  # by `add`
    ((["a", "a"], codes_of(0, 1)), "the id 'a' stands twice"),
    ((["a"], codes_of(0, 1)), "1 ids, but 2 codes"),
    ((["a", "b"], codes_of(0, 1), [{}]), "2 ids, but 1 attributes"),
    ((["a", "b"], codes_of(0, 1, space="teacher-2")), "the space 'teacher-2' .* the space 'teacher-1'"),
    ((["a", "b"], codes_of(0, 1, bits=24)), "codes of 24 bits for a store of 20 bits"),
    ((["a", "b"], np.eye(2, BITS)), "0 and 1 where -1"),
    (("ab", codes_of(0, 1)), "not one string"),
    ((["a", ""], codes_of(0, 1)), "an id is text, not ''"),
    ((["a", "b"], codes_of(0, 1), [{}, {"x": float("nan")}]), "the attribute 'x' of item 'b' is nan"),
    ((["a", "b"], codes_of(0, 1), [{"x": ["y"]}, {}]), r"the attribute 'x' of item 'a' is \['y'\]"),
]


def test_what_cannot_be_added_is_refused_whole(store):
    store.add(["b"], codes_of(7))
    for arguments, message in REFUSED:
        with pytest.raises(InputError, match=message):
            store.add(*arguments)
    assert store.search(codes_of(7), 9) == [[Hit("b", 0, {})]]


NOT_SEARCHED = [
    ((codes_of(0), 0), "k 0: too small; give 1 or more"),
    ((codes_of(0), True), "k True: not a whole number"),
    ((codes_of(0, bits=24), 1), "codes of 24 bits for a store of 20 bits"),
    ((codes_of(0, space="teacher-2"), 1), "the space 'teacher-2' .* the space 'teacher-1'"),
    ((codes_of(0), 1, {"x": float("inf")}), "the attribute 'x' of where is inf"),
]


def test_what_cannot_be_searched_is_refused(store):
    store.add(["b"], codes_of(7))
    for arguments, message in NOT_SEARCHED:
        with pytest.raises(InputError, match=message):
            store.search(*arguments)


def test_codes_whose_space_is_not_known_may_be_searched_and_added(store):
    store.add(["a"], codes_of(1, space=None))
    store.add(["b"], np.where(codes_of(3).unpack() > 0, 1, -1))
    assert ids_of(store.search(codes_of(0, space=None), 2)[0]) == ["a", "b"]
    assert store.space == "teacher-1"


def test_a_closed_store_says_so(store):
    store.close()
    store.close()
    for use in (lambda: store.add(["a"], codes_of(0)), lambda: store.delete(["a"]), lambda: store.search(codes_of(0), 1),
                lambda: len(store)):
        with pytest.raises(InputError, match="the store is closed; open it again"):
            use()


@pytest.mark.parametrize("name", sorted(URLS))
def test_many_operations_are_those_of_a_plain_model(name, tmp_path, monkeypatch):
    """Adds, replacements, deletions and questions of all kinds at random, against a dictionary."""
    monkeypatch.setattr(view, "FEW", 16)  # so that SQLite packs its codes anew many times,
    monkeypatch.setattr(milvus, "MOST", 30)  # Milvus has answers that are too long,
    monkeypatch.setattr(milvus, "MANY", 10)  # and pages
    draw, model, logits = random.Random(0), {}, np.random.default_rng(0)
    names = [f"item {number}" for number in range(40)]
    with contextlib.closing(open_store(URLS[name](tmp_path), create_for=ENCODER)) as store:
        for _ in range(OPERATIONS.get(name, 1000)):
            kind = draw.choice(["add", "add", "delete", "search", "soft", "radius", "get"])
            some = draw.sample(names, draw.randint(0, 6))
            query, where, k = draw.randrange(2**BITS), draw.choice([None, {"group": 1}]), draw.randint(1, 50)
            there = [(id, number) for id, (number, about) in model.items() if where is None or about == where]
            near = sorted(((query ^ number).bit_count(), id) for id, number in there)
            if kind == "add":
                added = {id: (draw.randrange(2**BITS), {"group": draw.randrange(3)}) for id in some}
                store.add(some, codes_of(*(number for number, _ in added.values())), [about for _, about in added.values()])
                model |= added
            elif kind == "delete":
                store.delete(some)
                model = {id: value for id, value in model.items() if id not in some}
            elif kind == "search":
                assert store.search(codes_of(query), k, where) == [[Hit(id, far, model[id][1]) for far, id in near[:k]]]
            elif kind == "radius":
                expected = [Hit(id, far, model[id][1]) for far, id in near if far <= k // 3]
                assert store.search_radius(codes_of(query), k // 3, where) == [expected]
            elif kind == "soft":
                row = logits.integers(-8, 9, BITS) / 4  # quarters, whose sums are exact
                bits = codes_of(*(number for _, number in there)).unpack() > 0
                wrong = list(zip((((row > 0) != bits) @ np.abs(row)).tolist(), (id for id, _ in there), strict=True))
                (hits,) = store.search(row[None].astype(np.float32), k, where, soft=True)
                assert [(hit.distance, hit.id) for hit in hits] == sorted(wrong)[:k]
            else:
                expected = [codes_of(model[id][0]).packed[0].tobytes() if id in model else None for id in some]
                assert [item and item.packed.tobytes() for item in store.get(some)] == expected
                assert [item.id for item in store.items(where)] == sorted(id for id, _ in there)
            assert len(store) == len(model)


def test_nothing_is_opened_where_nothing_is(url):
    with pytest.raises(InputError, match="there is no store here.*create_for") as error:
        open_store(url)
    assert error.value.field == "url"


@pytest.fixture(params=LASTING)
def lasting(request, tmp_path):
    """The URL of a store of three items that was closed again."""
    url = URLS[request.param](tmp_path)
    with contextlib.closing(open_store(url, create_for=ENCODER)) as store:
        store.add(["a", "b", "c"], codes_of(0, 1, 3), [{"folder": "2024"}, {}, {"n": 1}], [b"a", None, b""])
        store.note("encoder", "student")
    return url


def test_a_store_that_is_opened_again_holds_what_it_held(lasting):
    for create_for in (None, ENCODER, codes_of(0), types.SimpleNamespace(bits=BITS, space=None)):
        with contextlib.closing(open_store(lasting, create_for=create_for)) as store:
            assert (len(store), store.bits, store.space) == (3, BITS, "teacher-1")
            assert store.search(codes_of(0), 9)[0] == [Hit("a", 0, {"folder": "2024"}), Hit("b", 1, {}), Hit("c", 2, {"n": 1})]
            assert [store.thumbnail(id) for id in "abc"] == [b"a", None, b""] and store.noted("encoder") == "student"


@pytest.mark.parametrize("name", LASTING)
def test_a_space_that_is_not_known_stays_so(name, tmp_path):
    url = URLS[name](tmp_path)
    open_store(url, create_for=types.SimpleNamespace(bits=8, space=None)).close()
    with contextlib.closing(open_store(url)) as store:
        assert store.space is None


def test_a_store_is_not_opened_for_other_codes(lasting):
    for other, message in (({"bits": 64}, "the store holds codes of 20 bits, not 64"),
                           ({"space": "teacher-2"}, "'teacher-2' cannot be compared with codes of the space 'teacher-1'")):
        with pytest.raises(InputError, match=message) as error:
            open_store(lasting, create_for=types.SimpleNamespace(**{"bits": BITS, "space": "teacher-1"} | other))
        assert error.value.field == "url" and error.value.value == lasting


def test_a_second_reader_and_a_second_writer_see_each_others_items(lasting):
    with contextlib.closing(open_store(lasting)) as one, contextlib.closing(open_store(lasting)) as other:
        assert len(one) == len(other) == 3
        one.add(["d"], codes_of(7))
        assert ids_of(other.search(codes_of(7), 1)[0]) == ["d"]
        other.add(["e"], codes_of(15))
        other.delete(["a"])
        one.delete(["b"])
        assert ids_of(one.search(codes_of(0), 9)[0]) == ids_of(other.search(codes_of(0), 9)[0]) == ["c", "d", "e"]


def add_for_ever(url, pipe):
    store = open_store(url)
    for number in range(10**6):
        store.add([f"new {number}"], codes_of(number), [{"filling": "x" * 10_000}])
        pipe.send(number)


@pytest.mark.parametrize("name", LASTING)
def test_a_writer_that_is_killed_loses_nothing_it_had_acknowledged(name, tmp_path):
    lasting = URLS[name](tmp_path) if name != "milvus" else f"milvus:{tmp_path / 'photos.db'}"  # one process a file
    with contextlib.closing(open_store(lasting, create_for=ENCODER)) as store:
        store.add(["a", "b", "c"], codes_of(0, 1, 3))
    receiving, sending = multiprocessing.get_context("spawn").Pipe(duplex=False)
    writer = multiprocessing.get_context("spawn").Process(target=add_for_ever, args=(lasting, sending))
    writer.start()
    sending.close()
    for _ in range(20):
        last = receiving.recv()
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    with contextlib.suppress(EOFError):
        while True:
            last = receiving.recv()
    with contextlib.closing(open_store(lasting)) as store:
        ids = {hit.id for hit in store.search(codes_of(0), 10**6)[0]}
        assert {"a", "b", "c"} | {f"new {number}" for number in range(last + 1)} <= ids
        assert len(store) == len(ids) <= last + 5
        store.add(["after"], codes_of(9))
        assert len(store) == len(ids) + 1


def test_an_unknown_scheme_is_answered_with_the_known_ones():
    with pytest.raises(KeyError) as error:
        open_store("memry://host/name")
    assert str(error.value) == "unknown store 'memry': did you mean 'memory'? known: folder, memory, milvus, postgresql, sqlite"
    with pytest.raises(InputError, match="a store needs a place"):
        open_store("")
    with pytest.raises(InputError, match="url memory:photos: a store in memory has no name"):
        open_store("memory:photos", create_for=ENCODER)


@pytest.mark.parametrize("scheme", ["folder:", "sqlite:"])
def test_a_place_is_named_by_text_a_path_a_url_or_from_home(tmp_path, monkeypatch, scheme):
    monkeypatch.setenv("HOME", str(tmp_path))
    open_store(f"{scheme}~/photos.brcd", create_for=ENCODER).close()
    place = tmp_path / "photos.brcd"
    for url in (place, str(place), f"{scheme}{place}", "~/photos.brcd"):
        open_store(url).close()
    assert (tmp_path / "photos.brcd").is_dir() == (scheme == "folder:")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"pixels")
    with pytest.raises(InputError, match="this folder holds something else than a store"):
        open_store(f"folder:{tmp_path}", create_for=ENCODER)
    with pytest.raises(InputError, match="this is a file, and a store is a folder"):
        open_store(f"folder:{tmp_path / 'photo.jpg'}", create_for=ENCODER)
    assert os.listdir(tmp_path) == ["photo.jpg"]


def test_a_broken_or_vanished_folder_says_so(tmp_path):
    url = f"folder:{tmp_path / 'photos'}"
    store = open_store(url, create_for=ENCODER)
    (file,) = [path for path in (tmp_path / "photos").iterdir() if path.suffix == ".safetensors"]
    file.write_bytes(b"no tensors")
    for use in (lambda: len(store), lambda: open_store(url)):
        with pytest.raises(InputError, match="not a store of this version"):
            use()
    file.unlink()
    with pytest.raises(InputError, match="the store is gone"):
        store.add(["a"], codes_of(0))
    open_store(url, create_for=types.SimpleNamespace(bits=8, space=None)).close()
    with pytest.raises(InputError, match="another store lies here"):
        len(store)


@pytest.mark.beside("-k", "server and not beside")
def test_a_milvus_server_passes_these_tests_beside_the_others(beside):
    status, said = milvus_server.ended(beside)
    assert status == 0, said
    assert int(re.search(r"(\d+) passed", said)[1]) >= 23 and "skipped" not in said, said
