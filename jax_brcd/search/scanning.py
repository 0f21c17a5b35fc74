"""What lies below the folders of an index now: image files with what shows whether they have changed."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jax_brcd.data.decoding import refused
from jax_brcd.data.scanning import Walk
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path
from jax_brcd.search.places import Catalogue, Change, Place


class Shard(NamedTuple):
    """The part of the files that one of several machines reads: number `number` of `of`, counted from 1."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Reads 2/8. Raises InputError for anything else."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise InputError("is no part of a whole; give such as 2/8, the second of eight", field="shard", value=text)
        return cls(int(number), int(of))

    def has(self, path: str, root: str) -> bool:
        """Whether a file below `root` is in this part: by its path in the folder, so on every machine in the same."""
        if self.of == 1:
            return True
        name = os.fsencode(os.path.relpath(path, root))
        return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % self.of == self.number - 1


class Found(NamedTuple):
    """What lies below a folder: files, those that the system does not tell of by the reason, and what was passed over."""

    files: list[Place]
    refused: dict[str, str]
    notes: list[str]
    empty: bool  # no image at all, in no shard


def root_of(folder: os.PathLike | str) -> str:
    """A folder's own path, absolute and without links, whether it is there or not."""
    return str(as_path(folder).resolve())


def roots_of(folders: Iterable[os.PathLike | str]) -> list[str]:
    """The folders' own paths, each once and none that lies in another."""
    roots = dict.fromkeys(root_of(folder) for folder in folders)
    return [root for root in roots if not any(str(above) in roots for above in pathlib.Path(root).parents)]


def look_below(root: str, shard: Shard) -> Found | str:
    """The images below a folder, or why it cannot be read, as of a disk that is not connected.

    Raises:
        InputError: for a file.
    """
    if os.path.isfile(root):
        raise InputError(f"{root}: is a file; name the folder that it lies in")
    walk = Walk(pathlib.Path(root))
    try:
        paths = [os.path.join(root, path) for path in walk.images_below("")]
    except OSError as error:
        return "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    files, reasons = [], {}
    for path in paths:
        if shard.has(path, root):
            try:
                about = os.stat(path)
                files.append(Place(path, about.st_size, about.st_mtime, root))
            except OSError as error:
                reasons[path] = refused(error)
    return Found(files, reasons, list(walk.notes()), not paths)


def has_vanished(path: str) -> bool:
    """Whether nothing lies at a path any more; not where the system does not tell, or where it is merely passed over."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def changes_below(
    root: str, found: Found, catalogue: Catalogue, now: Mapping[str, str], shard: Shard
) -> dict[str, Change]:
    """Which items lose files below a folder: those that have vanished, and those that hold another content; with the files there
    that they have now, of which an item may not note all.

    Args:
        now: the ids of the contents that the files have now, by their paths.
    """
    present = {file.path for file in found.files} | found.refused.keys()
    vanished, replaced = collections.defaultdict(set), collections.defaultdict(set)
    for path in catalogue.below(root):
        if not shard.has(path, root):
            continue
        if path in now:
            for id in catalogue.ids_of(path):
                if id != now[path]:
                    replaced[id].add(path)
        elif path not in present and has_vanished(path):
            for id in catalogue.ids_of(path):
                vanished[id].add(path)
    there = {id: [] for id in {*vanished, *replaced}}
    for file in found.files:
        if now.get(file.path) in there:
            there[now[file.path]].append(file)
    return {id: Change(tuple(files), frozenset(vanished[id]), frozenset(replaced[id])) for id, files in there.items()}
