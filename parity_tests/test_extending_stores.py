"""A store and an exporter from outside the package, by registration alone (docs/extending.md shows them)."""

import types

import numpy as np
import pytest

from jax_brcd.export import EXPORTERS, export
from jax_brcd.models import create_hash_model
from jax_brcd.retrieval import HammingIndex, PackedCodes
from jax_brcd.search import STORES, Hit, Store, open_store
from jax_brcd.search.stores.base import checked_batch, checked_ids, checked_query, matches, nothing_there


class DictionaryStore:
    """A store that is a dictionary of ids: every search lays the codes out anew."""

    def __init__(self, bits, space):
        self.bits, self.space, self.items = bits, space, {}

    def add(self, ids, codes, attributes=None):
        batch = checked_batch(self, ids, codes, attributes)
        self.items |= {id: (batch.codes[row], about) for row, (id, about) in enumerate(zip(batch.ids, batch.attributes))}

    def delete(self, ids):
        for id in checked_ids(ids):
            self.items.pop(id, None)

    def search(self, query_codes, k, where=None):
        queries, k, where = checked_query(self, query_codes, k, where)
        ids = sorted(id for id, (_, about) in self.items.items() if matches(about, where))  # so ties by position are by id
        if not ids:
            return [[] for _ in queries]
        index = HammingIndex(PackedCodes.concatenate([self.items[id][0] for id in ids]))
        return [[Hit(ids[row], int(distance), dict(self.items[ids[row]][1])) for distance, row in zip(*found)]
                for found in zip(*index.search(queries, min(k, len(ids))))]

    def __len__(self):
        return len(self.items)

    def close(self):
        self.items = {}


def open_dictionary(url, create_for):
    if create_for is None:
        raise nothing_there(url)
    return DictionaryStore(create_for.bits, create_for.space)


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
    encoder = types.SimpleNamespace(model=create_hash_model("resnet8", 8), preprocessing=None, bits=8, backbone="resnet8")
    (path,) = export(encoder, "arrays", tmp_path / "out")
    with np.load(path) as arrays:
        assert arrays["kernel"].shape == (64, 8) and arrays["bias"].shape == (8,)
