"""What the service answers, without a word of HTTP: encodings and searches, gathered into batches."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jax_brcd.encoder import HashEncoder
from jax_brcd.retrieval import PackedCodes
from jax_brcd.search.encoders import check_encoder
from jax_brcd.search.searching import nearest
from jax_brcd.search.service.batching import Batcher
from jax_brcd.search.stores import Hit, Item, Store
from jax_brcd.views.fitting import check_fits

SYMMETRIC, ASYMMETRIC = "symmetric", "asymmetric"
TOGETHER = 64  # searches that a store is given at once, and images that an encoder is: as many as it takes in one step


class Query(NamedTuple):
    """What is searched for: a code; in a soft search the logits that it is made of; and how many are to be found."""

    packed: UInt8[np.ndarray, " bytes"]
    logits: Float[np.ndarray, " bits"] | None
    k: int


class Found(NamedTuple):
    """An item that was found: how many bits differ, the soft distance of a soft search, its code and what is known of it."""

    id: str
    distance: int
    soft: float | None
    packed: UInt8[np.ndarray, " bytes"]
    attributes: dict[str, Any]


class Engine:
    """An index and the encoders of its queries.

    What is asked of the store runs on one thread of its own, and what is asked of the encoders on another.

    Attributes:
        encoders: by mode. "symmetric" encodes queries as the index's images were, "asymmetric" by another encoder of its space.
        bits, space: of the index's codes. code_bytes: of one code, packed.
        searches, encodings: the batches so far.

    Raises:
        InputError: for an encoder whose codes cannot be compared with those of the store, and for one that sees no images.
    """

    def __init__(self, store: Store, encoders: Mapping[str, HashEncoder]):
        for encoder in encoders.values():
            check_encoder(encoder, store)
        self.encoders, self.bits, self.space = dict(encoders), store.bits, store.space
        self.code_bytes = -(-self.bits // 8)
        self._store = store
        self._storing, self._encoding = (ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("store", "encode"))
        self.searches = Batcher(self._search, self._storing, most=TOGETHER)
        self.encodings = {mode: Batcher(encoder.logits, self._encoding, most=TOGETHER) for mode, encoder in encoders.items()}

    def warm(self) -> None:
        """Compiles what encodes one image and what encodes a few, and has the index read, so that no query waits for it."""
        self._storing.submit(self._search, [Query(np.zeros(self.code_bytes, np.uint8), None, 1)])
        for encoder in self.encoders.values():
            side = encoder.preprocessing.size
            for count in (1, 2):
                encoder.logits(np.zeros((count, side, side, 3), np.uint8))

    async def encode(self, pixels: UInt8[np.ndarray, "height width 3"], mode: str) -> Float[np.ndarray, " bits"]:
        """The logits of an image. Raises InputError for one that the encoder cannot take, before others wait with it."""
        preprocessing = self.encoders[mode].preprocessing
        check_fits(*pixels.shape[:2], size=preprocessing.size, resize=preprocessing.resize)
        return await self.encodings[mode](pixels)

    async def search(self, query: Query) -> list[Found]:
        """The nearest items whose files have not vanished, nearest first, ties by id."""
        return await self.searches(query)

    async def ask(self, call: Callable[[Store], Any]) -> Any:
        """What a call of the store gives."""
        return await asyncio.get_running_loop().run_in_executor(self._storing, call, self._store)

    def close(self) -> None:
        """Ends the threads. The store stays open."""
        for pool in (self._storing, self._encoding):
            pool.shutdown()

    def _search(self, queries: list[Query]) -> list[list[Found]]:
        """Queries of one kind share a search of the store."""
        kinds: dict[tuple[int, bool], list[int]] = {}
        for number, query in enumerate(queries):
            kinds.setdefault((query.k, query.logits is not None), []).append(number)
        found: list[list[Found]] = [[] for _ in queries]
        for (k, soft), numbers in kinds.items():
            some = [queries[number] for number in numbers]
            if soft:
                hits = nearest(self._store, np.stack([query.logits for query in some]), k, soft=True)
            else:
                hits = nearest(self._store, PackedCodes(np.stack([query.packed for query in some]), self.bits, self.space), k)
            items = self._items(hit.id for of_one in hits for hit in of_one)
            for number, of_one in zip(numbers, hits, strict=True):
                found[number] = [_described(queries[number], hit, items[hit.id], soft) for hit in of_one if hit.id in items]
        return found

    def _items(self, ids: Iterable[str]) -> dict[str, Item]:
        """The items of hits, each fetched once; those that another process has deleted meanwhile are left out."""
        return {item.id: item for item in self._store.get(list(dict.fromkeys(ids))) if item is not None}


def _described(query: Query, hit: Hit, item: Item, soft: bool) -> Found:
    """A hit with its code."""
    return Found(hit.id, int(np.bitwise_count(query.packed ^ item.packed).sum()), float(hit.distance) if soft else None,
                 item.packed, hit.attributes)


def pack(logits: Float[np.ndarray, " bits"]) -> UInt8[np.ndarray, " bytes"]:
    """The code of logits, as `HashEncoder.encode` gives it."""
    return np.packbits(logits > 0)
