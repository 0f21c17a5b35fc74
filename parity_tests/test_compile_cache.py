"""Compiled programs that are kept from process to process, and nothing that is wrong with their directory stops one."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jax_brcd.runtime import compile_cache
from jax_brcd.runtime.compile_cache import DIGEST_BYTES, ProgramFiles

# Every jit of a process asks the cache once; it hits or it compiles
COUNTED = """
import collections, json, sys, warnings
from jax_brcd.runtime import compile_cache, xla
xla.set_flags()
import jax, jax.numpy as jnp
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rsplit("/")[-1]]))
warnings.simplefilter("error")
used = compile_cache.use(sys.argv[1])
{body}
print(json.dumps({{"used": used, "asked": counts["compile_requests_use_cache"], "hits": counts["cache_hits"], "found": found}}))
"""
SUM = "found = float(jax.jit(lambda x: (jnp.sin(x) ** 2).sum())(jnp.arange(8.0)))"
EXPECTED = pytest.approx(sum(math.sin(number) ** 2 for number in range(8)), abs=1e-4)
SECONDS = 300


def started(body: str, *arguments) -> subprocess.Popen:
    """A process without a cache of the user's."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE"))}
    return subprocess.Popen([sys.executable, "-c", COUNTED.format(body=body), *map(str, arguments)], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen) -> dict:
    out, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def test_two_runs_at_once_share_the_directory(tmp_path):
    for running in [started(SUM, tmp_path) for _ in range(2)]:
        assert finished(running)["found"] == EXPECTED
    later = finished(started(SUM, tmp_path))
    assert later["found"] == EXPECTED and later["hits"] == later["asked"] > 0
    assert not list((tmp_path / "compiled").glob("tmp*"))  # nothing half written is left


def test_broken_programs_are_compiled_again_and_replaced(tmp_path):
    finished(started(SUM, tmp_path))
    kept = sorted((tmp_path / "compiled").iterdir())
    whole = [path.read_bytes() for path in kept]
    for number, path in enumerate(kept):
        path.write_bytes((whole[number][: len(whole[number]) // 2], b"", bytes(len(whole[number])))[number % 3])
    again = finished(started(SUM, tmp_path))
    assert again["found"] == EXPECTED and again["hits"] == 0
    assert all(path.stat().st_size > DIGEST_BYTES for path in kept)
    assert finished(started(SUM, tmp_path))["hits"] == again["asked"]


def test_a_file_in_place_of_the_directory_leaves_the_run_without_one(tmp_path):
    (tmp_path / "file").write_text("")
    found = finished(started(SUM, tmp_path / "file"))
    assert found["found"] == EXPECTED and not found["used"]


def test_a_full_disk_and_a_read_only_one_stop_no_run(small_disk):
    disk = small_disk
    filler = disk / "filler"
    with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    full = finished(started(SUM, disk))
    assert full["found"] == EXPECTED and full["hits"] == 0
    filler.unlink()
    finished(started(SUM, disk))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    kept = finished(started(SUM, disk))
    assert kept["found"] == EXPECTED and kept["hits"] == kept["asked"] > 0  # what is there is still of use
    fresh = finished(started(SUM.replace("sin", "cos"), disk))
    assert fresh["hits"] < fresh["asked"]


def test_a_directory_of_the_users_own_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "_install", None)
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
        assert not compile_cache.use(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert not (tmp_path / "own").exists()


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    files = ProgramFiles(tmp_path)
    for number in range(4):
        files.put(f"program{number}", bytes(1000))
    times = {1: 0, 0: 1, 2: 2, 3: 3}
    for path in tmp_path.iterdir():
        number = int(path.name[len("program")])
        os.utime(path, (times[number], times[number]))
    assert files.get("program1") == bytes(1000)  # which makes it the newest
    smaller = ProgramFiles(tmp_path, limit_bytes=3000)
    assert [smaller.get(f"program{number}") is not None for number in range(4)] == [False, True, False, True]
    assert pathlib.Path(tmp_path).exists() and smaller.get("absent") is None
