"""`folder:PATH` - a store that is a folder with one file, read into memory and written anew by every change.

The file is replaced whole, so a reader sees the items before a change or after it, and one that is killed while it writes
leaves them as they were. Writers take turns by a lock. Made for some hundred thousand codes, added many at once.
"""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from jax_brcd.retrieval import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, atomic_path, make_folder, parse_json
from jax_brcd.search.stores.base import FORMAT, CodeKind, check_kind, checked_ids, closed, nothing_there
from jax_brcd.search.stores.items import Items, WholeStore

SCHEME = "folder:"
ITEMS, LOCK = "items.safetensors", ".lock"

Stamp = tuple[int, int, int]


class FolderStore(WholeStore):
    """See Store. Raises InputError where the folder does not hold a store any more."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._stamp: Stamp | None = None
        self._items = self._read()
        self.bits, self.space = self._items.codes.bits, self._items.codes.space
        self._closed = False

    def close(self) -> None:
        """See Store."""
        self._closed = True
        self._items = Items.none(self.bits, self.space)

    def _change(self, change: Callable[[Items], Items]) -> None:
        """Writes what `change` makes of the items that are there now, those of other writers included."""
        self._current()
        with _locked(self._folder):
            changed = change(self._current())
            if changed is not self._items:
                _write(self._folder, changed)
                self._items, self._stamp = changed, _stamp(self._folder / ITEMS)

    def _current(self) -> Items:
        """The items as they are on disk."""
        if self._closed:
            raise closed()
        if self._stamp != _stamp(self._folder / ITEMS):
            items = self._read()
            if (items.codes.bits, items.codes.space) != (self.bits, self.space):
                raise InputError(f"{self._folder}: another store lies here than when it was opened; open it again")
            self._items = items
        return self._items

    def _read(self) -> Items:
        """The items of the file, noting which file it was: the stamp first, so that a change in between is seen later."""
        stamp = _stamp(self._folder / ITEMS)
        items = _read_items(self._folder / ITEMS)
        self._stamp = stamp
        return items


def open_folder(url: str, create_for: CodeKind | None) -> FolderStore:
    """The store in a folder, made where there is none; see open_store."""
    folder = as_path(url.removeprefix(SCHEME))
    if folder.exists() and not folder.is_dir():
        raise InputError("this is a file, and a store is a folder; give another place", field="url", value=url)
    if not (folder / ITEMS).exists():
        if folder.is_dir() and any(not name.startswith(".") for name in os.listdir(folder)):
            raise InputError("this folder holds something else than a store; give another place, or an empty folder",
                             field="url", value=url)
        if create_for is None:
            raise nothing_there(url)
        make_folder(folder)
        with _locked(folder):
            if not (folder / ITEMS).exists():  # another process may have been faster
                _write(folder, Items.none(create_for.bits, create_for.space))
    store = FolderStore(folder)
    check_kind(url, store, create_for)
    return store


def holds_items(path: pathlib.Path) -> bool:
    """Whether a store of this kind lies there."""
    return (path / ITEMS).is_file()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """One writer at a time; the lock ends with its process."""
    with open(folder / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stamp(path: pathlib.Path) -> Stamp:
    try:
        about = path.stat()
    except FileNotFoundError as error:
        raise InputError(f"{path.parent}: the store is gone; open_store makes a new one") from error
    return about.st_ino, about.st_mtime_ns, about.st_size


def _write(folder: pathlib.Path, items: Items) -> None:
    """The file in place of the old one; the lock must be held."""
    import safetensors.numpy

    described = json.dumps([items.ids, items.attributes], allow_nan=False).encode()
    about = {"format": FORMAT, "bits": str(items.codes.bits), "notes": json.dumps(items.notes)}
    if items.codes.space is not None:
        about["space"] = items.codes.space
    sizes = np.array([-1 if each is None else len(each) for each in items.thumbnails], np.int64)
    pictures = np.frombuffer(b"".join(each or b"" for each in items.thumbnails), np.uint8)
    with atomic_path(folder / ITEMS) as temporary:
        safetensors.numpy.save_file({"codes": np.ascontiguousarray(items.codes.packed),
                                     "items": np.frombuffer(described, np.uint8), "thumbnail_sizes": sizes,
                                     "thumbnails": pictures}, temporary, metadata=about)


def _read_items(path: pathlib.Path) -> Items:
    import safetensors

    try:
        with safetensors.safe_open(path, "np") as file:
            about, codes, described = file.metadata() or {}, file.get_tensor("codes"), file.get_tensor("items")
            sizes, pictures = (file.get_tensor(name) if name in file.keys() else None  # a store without any has none
                               for name in ("thumbnail_sizes", "thumbnails"))
        if about.get("format") != FORMAT:
            raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
        ids, attributes = parse_json(described.tobytes())
        checked_ids(ids)
        if not all(isinstance(each, dict) for each in attributes):
            raise ValueError("attributes that are no mapping of names to values")
        if not len(ids) == len(attributes) == len(codes):
            raise ValueError(f"{len(ids)} ids, {len(attributes)} attributes and {len(codes)} codes")
        return Items(ids, PackedCodes(codes, int(about["bits"]), about.get("space")), attributes,
                     [None] * len(ids) if sizes is None else _thumbnails(sizes, pictures), parse_json(about.get("notes", "{}")))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a store of this version ({' '.join(str(error).split())}); give another place") from error


def _thumbnails(sizes: np.ndarray, pictures: np.ndarray) -> list[bytes | None]:
    """The pictures, which lie one behind the other; a size of -1 is the lack of one."""
    ends = np.cumsum(np.maximum(sizes, 0))
    return [None if size < 0 else pictures[end - size : end].tobytes()
            for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]
