"""Filling an index on all nodes of a Ray cluster: Ray Data hands out files, its readers decode, its encoders encode and write.

Every node sees the files at the same paths, has this package installed, and reaches the index's server.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from jax_brcd.data.photos import Known, Photo, know, read_photo
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.workers import Workers
from jax_brcd.search.encoders import load_encoder
from jax_brcd.search.indexing import SECONDS, Elsewhere, Outcome, fits
from jax_brcd.search.places import Change, Content, Encoded, Place, id_of, write
from jax_brcd.search.stores import open_store

READ, ENCODED = 4, 16  # files that a task reads and encodes at once: it holds their pixels, of any number, until it is done
MOST_BLOCKS = 1000
ROW = dict[str, Any]
Rows = dict[str, np.ndarray]  # a batch of Ray Data: columns by their names


def check_server(index: str) -> None:
    """Raises InputError for an index that other machines cannot reach."""
    if "://" not in index:
        raise InputError("lies on this machine alone, which the nodes of a cluster do not see; give a server's URL",
                         field="index", value=index)


@contextlib.contextmanager
def on_cluster(address: str, index: str, encoder: str) -> Iterator[Elsewhere]:
    """Connects to a cluster for the block.

    Args:
        address: of its head, or "auto" for the one that this machine is of. index: its URL. encoder: where all nodes find it.

    Raises:
        InputError: where Ray is absent or does not find the cluster.
    """
    try:
        import ray
    except ImportError:
        raise InputError("needs Ray, which pip install 'jax_brcd[ray]' brings", field="ray", value=address) from None
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"no cluster of Ray answers there ({error}); start one by Ray's own command", field="ray",
                         value=address) from None
    try:
        yield lambda waiting, identity: _filled(waiting, index, encoder, identity)
    finally:
        ray.shutdown()


def _filled(waiting: list[Place], index: str, encoder: str, identity: str) -> Iterator[Outcome]:
    """Has all files read and encoded; tells of each as it is written."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    there = ray.cluster_resources()
    devices = int(there.get("GPU", 0))
    encoders = devices or len(ray.nodes())
    readers = max(1, int(there["CPU"]) - (0 if devices else encoders))
    files = ray.data.from_items([place._asdict() for place in waiting],
                                override_num_blocks=min(MOST_BLOCKS, 1 + len(waiting) // READ))
    pool = ray.data.ActorPoolStrategy
    read = files.map_batches(Reader, fn_constructor_args=(index,), batch_size=READ, num_cpus=1, compute=pool(size=readers))
    written = read.map_batches(Encoder, fn_constructor_args=(index, encoder, identity), batch_size=ENCODED,
                               compute=pool(size=encoders), **({"num_gpus": 1} if devices else {"num_cpus": 1}))
    yield from map(outcome_of, written.iter_rows())


def outcome_of(row: ROW) -> Outcome:
    """What an Encoder tells of a file."""
    return Outcome(_place(row), str(row["id"]) or None, str(row["reason"]), bool(row["encoded"]))


class Reader:
    """Knows files by their content and decodes those that the index has not; a part of a pipeline of Ray Data."""

    def __init__(self, index: str):
        self._store, self._workers = open_store(index), Workers(1, SECONDS)

    def __call__(self, batch: Rows) -> Rows:
        """Adds to each file its digest, its pixels where they must be encoded, or why there are none."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        known = [self._answer(know, row["path"]) for row in rows]
        ids = {id_of(each.digest) for each in known if isinstance(each, Known)}
        there = {item.id for item in self._store.get(sorted(ids)) if item is not None}
        return _columns([self._read(row, each, there) for row, each in zip(rows, known, strict=True)])

    def _read(self, row: ROW, known: Known | str, there: set[str]) -> ROW:
        row |= {"digest": "", "reason": "", "pixels": b"", "height": 0, "width": 0, "thumbnail": b""}
        if not isinstance(known, Known):
            return row | {"reason": known}
        row |= {"digest": known.digest, "size": known.size, "mtime": known.mtime}
        if id_of(known.digest) in there:
            return row
        photo = self._answer(read_photo, row["path"])
        if not isinstance(photo, Photo):
            return row | {"digest": "", "reason": photo}
        height, width = photo.pixels.shape[:2]
        return row | {"pixels": photo.pixels.tobytes(), "height": height, "width": width, "thumbnail": photo.thumbnail}

    def _answer(self, function: Any, path: str) -> Any:
        future = self._workers.submit(function, path)
        return str(future.exception()) if future.exception() is not None else future.result()


class Encoder:
    """Encodes what was read and writes it to the index; a part of a pipeline of Ray Data."""

    def __init__(self, index: str, encoder: str, identity: str):
        self._encoder, self._identity = load_encoder(encoder), identity
        self._store = open_store(index, create_for=self._encoder)

    def __call__(self, batch: Rows) -> Rows:
        """Tells of each file which content it has in the index, or why it has none."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        pixels: dict[str, np.ndarray] = {}
        for row in rows:
            row |= {"id": id_of(row["digest"]), "encoded": False}
            if row["height"] and row["id"] not in pixels:
                image = np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3)
                problem = fits(self._encoder, image)
                row |= {"id": "", "reason": problem} if problem else {"encoded": True}
                if not problem:
                    pixels[row["id"]] = image
        self._write(rows, pixels)
        kept = ("path", "size", "mtime", "root", "id", "reason", "encoded")
        return _columns([{name: row[name] for name in kept} for row in rows])

    def _write(self, rows: list[ROW], pixels: dict[str, np.ndarray]) -> None:
        codes = self._encoder.encode(list(pixels.values()))
        packed = dict(zip(pixels, codes.packed, strict=True))
        fresh = {}
        for row in rows:
            if row["encoded"]:
                content = Content(row["digest"], self._identity, (_place(row),))
                fresh[row["id"]] = Encoded(content, packed[row["id"]], row["thumbnail"])
        further: dict[str, tuple[Place, ...]] = {}
        for row in rows:
            if row["id"] and not row["encoded"]:
                further[row["id"]] = (*further.get(row["id"], ()), _place(row))
        write(self._store, fresh, {id: Change(found=places) for id, places in further.items()})


def _place(row: ROW) -> Place:
    return Place(str(row["path"]), int(row["size"]), float(row["mtime"]), str(row["root"]))


def _columns(rows: list[ROW]) -> Rows:
    """Rows as columns; bytes and text as objects, for NumPy's own would drop the zeros they end in."""
    return {name: np.array([row[name] for row in rows], object if isinstance(rows[0][name], (bytes, str)) else None)
            for name in rows[0]}
