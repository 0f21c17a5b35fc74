"""Stores by the scheme of their URL; one file a store (see stores/base.py for what a store is).

A store is registered as a function (url, create_for) that opens what lies at the URL or creates it for codes like those of
`create_for`, and raises InputError as `open_store` says.
"""

import os
import re
from collections.abc import Callable

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path
from jax_brcd.runtime.registry import Registry
from jax_brcd.search.stores import folder, memory, milvus, postgres, sqlite
from jax_brcd.search.stores.base import CodeKind, Hit, Item, Store

Opener = Callable[[str, CodeKind | None], Store]
STORES: Registry[Opener] = Registry("store")
STORES.register("memory")(memory.open_memory)
STORES.register("folder")(folder.open_folder)
STORES.register("sqlite")(sqlite.open_sqlite)
STORES.register("postgresql")(postgres.open_postgres)
STORES.register("milvus")(milvus.open_milvus)

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):")  # of two letters or more: C: is a drive

__all__ = ["STORES", "CodeKind", "Hit", "Item", "Store", "open_store"]


def open_store(url: os.PathLike | str, create_for: CodeKind | None = None) -> Store:
    """Opens the store at a URL, or creates it where there is none and `create_for` says what codes it is to hold.

    Args:
        url: a path, `~` being the home, is that of a SQLite file, or of a folder where a store lies in one; `memory:` is new each
            time; other schemes by STORES.
        create_for: anything with `.bits` and `.space`, an encoder above all. A store that is there must hold such codes.

    Raises:
        InputError: for an unknown scheme, where there is no store and nothing to create one for, for a store of codes of
            another length or space, and for a folder that holds something else.
    """
    if not os.fspath(url):
        raise InputError("a store needs a place; give memory: or a path")
    if scheme := SCHEME.match(url) if isinstance(url, str) else None:
        return STORES[scheme[1]](url, create_for)
    return STORES["folder" if folder.holds_items(as_path(url)) else "sqlite"](os.fspath(url), create_for)
