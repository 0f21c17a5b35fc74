"""A store and an exporter from outside the package, by registration alone (docs/extending.md shows them)."""

import types

import numpy as np
import pytest

from jax_brcd.encoder import create_encoder
from jax_brcd.export import EXPORTERS, export
from jax_brcd.models import Preprocessing, create_hash_model
from jax_brcd.retrieval import PackedCodes
from jax_brcd.search import STORES, Hit, Store, open_store
from jax_brcd.search.stores.base import check_kind, nothing_there
from jax_brcd.search.stores.items import Items, WholeStore


class DictionaryStore(WholeStore):
    """A store whose items stand in a dictionary under its URL, for as long as the program runs."""

    def __init__(self, items, url):
        self.items_by_url, self.url = items, url
        self.bits, self.space = items[url].codes.bits, items[url].codes.space

    def _current(self):
        return self.items_by_url[self.url]

    def _change(self, change):
        self.items_by_url[self.url] = change(self._current())

    def close(self):
        pass


SHELF = {}


def open_dictionary(url, create_for):
    if url not in SHELF:
        if create_for is None:
            raise nothing_there(url)
        SHELF[url] = Items.none(create_for.bits, create_for.space)
    store = DictionaryStore(SHELF, url)
    check_kind(url, store, create_for)
    return store


def export_arrays(encoder, folder):
    """The head's weights as a NumPy archive."""
    path = folder / "head.npz"
    np.savez(path, kernel=encoder.model.head.kernel[...], bias=encoder.model.head.bias[...])
    return [path]


@pytest.fixture
def registered(monkeypatch):
    """Registers for one test only; a program registers once, where it starts."""
    for registry in (STORES, EXPORTERS):
        monkeypatch.setattr(registry, "_entries", dict(registry))


def test_a_store_from_outside_is_opened_by_its_url(registered):
    STORES.register("dictionary")(open_dictionary)
    encoder = types.SimpleNamespace(bits=8, space="teacher-1")
    store = open_store("dictionary:", create_for=encoder)
    assert isinstance(store, Store)
    store.add(["far", "near", "also near"], np.array([[1] * 8, [-1] * 7 + [1], [1] + [-1] * 7]), [{}, {"year": 2024}, {}])
    query = PackedCodes.of(-np.ones((1, 8)), "teacher-1")
    assert store.search(query, 2) == [[Hit("also near", 1, {}), Hit("near", 1, {"year": 2024})]]
    assert store.search(query, 2, where={"year": 2024}) == [[Hit("near", 1, {"year": 2024})]]
    store.delete(["near", "also near"])
    assert store.search(query, 2) == [[Hit("far", 8, {})]] and len(store) == 1


def test_an_exporter_from_outside_is_called_by_its_name(registered, tmp_path):
    EXPORTERS.register("arrays")(export_arrays)
    encoder = create_encoder(create_hash_model("resnet8", 8), "resnet8", Preprocessing(32), bits=8, role="student")
    (path,) = export(encoder, "arrays", tmp_path / "out")
    with np.load(path) as arrays:
        assert arrays["kernel"].shape == (64, 8) and arrays["bias"].shape == (8,)
