"""What the service is made of: the encoders that it finds, the files of a page that encodes, and its share of memory."""

import asyncio
import functools
import json
import shutil
import types

import numpy as np
import pytest
from encoders import random_encoder
from starlette.testclient import TestClient

from jax_brcd.retrieval import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.search import open_store
from jax_brcd.search.encoders import identity_of
from jax_brcd.search.service import app
from jax_brcd.search.service.budget import Budget
from jax_brcd.search.service.encoders import load_encoders
from jax_brcd.search.service.engine import Engine
from jax_brcd.search.service.files import MODEL, RUNTIME, browser_files

INDEX = types.SimpleNamespace(bits=20, space="teacher-1")


# Encoders


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folders of the encoder that filled the index, of a copy and of another one of its space; and their identities."""
    root = tmp_path_factory.mktemp("encoders")
    own, other = random_encoder(), random_encoder(seed=8)
    own.save(root / "own")
    other.save(root / "other")
    shutil.copytree(root / "own", root / "copy")
    return root, {identity_of(own): "own", identity_of(other): "other"}


@pytest.mark.parametrize(("noted", "told", "expected"), [
    (None, None, {}),
    ("own", None, {"symmetric": "own"}),
    (None, "other", {"symmetric": "other"}),
    ("own", "copy", {"symmetric": "own"}),
    ("own", "other", {"asymmetric": "other", "symmetric": "own"}),
    ("moved", "other", {"asymmetric": "other"}),
], ids=["none", "noted alone", "told alone", "the same", "another", "moved"])
def test_the_encoders_of_a_service_are_the_indexs_and_the_one_that_it_is_told(places, noted, told, expected):
    root, known = places
    store = open_store("memory:", create_for=INDEX)
    if noted is not None:
        store.note("encoder", str(root / noted))
    found = load_encoders(store, None if told is None else root / told)
    assert [(mode, known[identity_of(encoder)]) for mode, encoder in found.items()] == list(expected.items())


def test_an_encoder_that_was_moved_is_missed_where_none_is_told(places):
    store = open_store("memory:", create_for=INDEX)
    store.note("encoder", str(places[0] / "moved"))
    with pytest.raises(InputError, match="moved"):
        load_encoders(store, None)


# The page's own encoder


def browser_folders(folder, **about):
    """An export that says this of its encoder, and onnxruntime-web's files, all of them empty."""
    for name in (MODEL, *RUNTIME):
        (folder / name).touch()
    (folder / "config.json").write_text(json.dumps({"encoder": about}))
    return folder, folder


def test_an_export_of_the_indexs_codes_is_taken(tmp_path):
    files = browser_files(*browser_folders(tmp_path, bits=20, space="teacher-1"), INDEX)
    assert files.model == tmp_path / MODEL and files.runtime == {name: tmp_path / name for name in RUNTIME}
    assert browser_files(*browser_folders(tmp_path, bits=20, space=None), INDEX) == files, "one that does not say its space"


@pytest.mark.parametrize("about", [{"bits": 16, "space": "teacher-1"}, {"bits": 20, "space": "teacher-2"}],
                         ids=["bits", "space"])
def test_an_export_of_other_codes_is_refused(tmp_path, about):
    bits, space = about["bits"], about["space"]
    with pytest.raises(InputError, match=f"its codes, {bits} bits of the space '{space}', are not the index's"):
        browser_files(*browser_folders(tmp_path, **about), INDEX)


# The share of memory


class Held:
    """Tasks that each hold some units of a budget until they are let go; `inside` has their names in the order they came in."""

    def __init__(self, total):
        self.budget, self.inside, self._ends, self._tasks = Budget(total), [], {}, {}

    async def begin(self, name, units):
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._hold(name, units))
        await self.settle()

    async def _hold(self, name, units):
        async with self.budget.room(units):
            self.inside.append(name)
            await self._ends[name].wait()

    async def end(self, name):
        self._ends[name].set()
        await self._tasks[name]
        await self.settle()

    def cancel(self, name):
        self._tasks[name].cancel()

    async def settle(self):
        for _ in range(5):
            await asyncio.sleep(0)


def in_a_loop(check):
    """A test of a coroutine function, in a loop of its own."""
    @functools.wraps(check)
    def run(**given):
        asyncio.run(check(**given))

    return run


@in_a_loop
async def test_those_that_wait_for_memory_come_in_in_turn():
    """One that would fit does not overtake one that waits before it."""
    held = Held(10)
    await held.begin("first", 6)
    await held.begin("large", 8)
    await held.begin("small", 2)
    assert held.inside == ["first"] and not held.budget.draw(1)
    await held.end("first")
    assert held.inside == ["first", "large", "small"] and not held.budget.draw(1)
    await held.end("large")
    await held.end("small")
    assert held.budget.draw(10) and not held.budget.draw(1)


@in_a_loop
async def test_one_that_wants_more_than_there_is_comes_in_alone():
    held = Held(10)
    await held.begin("small", 1)
    await held.begin("oversize", 25)
    assert held.inside == ["small"]
    await held.end("small")
    await held.begin("later", 1)
    assert held.inside == ["small", "oversize"]
    await held.end("oversize")
    assert held.inside == ["small", "oversize", "later"]
    await held.end("later")
    await held.begin("first", 25)
    assert held.inside[-1] == "first"
    await held.end("first")
    assert held.budget.draw(10)


@pytest.mark.parametrize("granted", [False, True], ids=["while it waits", "as its turn comes"])
@in_a_loop
async def test_one_that_gives_up_takes_nothing(granted):
    held = Held(10)
    assert held.budget.draw(10)
    await held.begin("gone", 8)
    await held.begin("next", 5)
    if granted:
        held.budget.give_back(10)
        held.cancel("gone")
    else:
        held.cancel("gone")
        await held.settle()
        held.budget.give_back(10)
    await held.settle()
    assert held.inside == ["next"]
    await held.end("next")
    assert held.budget.draw(10) and not held.budget.draw(1)


@in_a_loop
async def test_those_behind_one_that_gives_up_come_in_where_they_fit():
    held = Held(10)
    await held.begin("first", 6)
    await held.begin("large", 8)
    await held.begin("small", 2)
    held.cancel("large")
    await held.settle()
    assert held.inside == ["first", "small"] and held.budget.draw(2) and not held.budget.draw(1)
    await held.end("first")
    await held.end("small")


def test_uploads_beyond_the_memory_of_all_are_told_to_come_again(monkeypatch):
    store = open_store("memory:", create_for=INDEX)
    store.add(["a"], PackedCodes(np.zeros((1, 3), np.uint8), 20, "teacher-1"))
    client = TestClient(app.create_app(Engine(store, {})), base_url="http://127.0.0.1")
    assert client.post("/v1/search/codes", content=bytes(3)).status_code == 200
    monkeypatch.setattr(app, "Budget", lambda units: Budget(1))
    client = TestClient(app.create_app(Engine(store, {})), base_url="http://127.0.0.1")
    for _ in range(2):
        answer = client.post("/v1/search/codes", content=bytes(3))
        assert answer.status_code == 503 and "too many uploads at a time" in answer.json()["error"]
        assert answer.headers["retry-after"] == "1"
    assert client.get("/healthz").status_code == 200
