"""A whole run, short, again: into another directory it compiles nothing; in 64 bits it is the same."""

import json
import shutil
import subprocess
import sys

import pytest
from toy_runs import environment_of_toys

pytestmark = pytest.mark.long

# Toy backbones, so that a process takes seconds; models in 64 bits are for test_sixty_four_bits.py
OPTIONS = ["--teacher", "toy", "--student", "small_toy", "--bits", "16", "--pretraining-epochs", "1", "--teacher-epochs", "1",
           "--epochs", "1", "--validation-interval", "1"]
# Every jit of a process asks the cache once; it hits or it compiles
COUNTED = """
import collections, json, sys
import jax
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rsplit("/")[-1]]))
from toy_runs import toys
from jax_brcd import distill
with toys():
    distill.main(sys.argv[1:])
print(json.dumps({"asked": counts["compile_requests_use_cache"], "hits": counts["cache_hits"]}))
"""
SECONDS = 600


def run(cache, out, **environment):
    """Compilations that were asked for and those that were kept, the metrics but for costs, and the history but for seconds."""
    own = {name: value for name, value in environment_of_toys().items() if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    done = subprocess.run([sys.executable, "-c", COUNTED, *OPTIONS, "--cache-dir", cache, "--out", out],
                          env=own | environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    history = [json.loads(line) | {"seconds": 0} for line in (out / "history.jsonl").read_text().splitlines()]
    return json.loads(done.stdout.splitlines()[-1]), json.loads((out / "metrics.json").read_text()) | {"costs": None}, history


@pytest.fixture(scope="module")
def first(cache, tmp_path_factory):
    """Pretraining, teacher, clusters, a student that learns whole, both searches."""
    return run(cache, tmp_path_factory.mktemp("first"))


def keep_programs_alone(cache):
    """Deletes what the first run left beside its programs, so that the second has as much to compute."""
    for folder in cache.iterdir():
        if folder.name != "compiled":
            shutil.rmtree(folder)


def test_a_second_run_into_another_directory_compiles_nothing(cache, first, tmp_path):
    counts, metrics, history = first
    assert counts["hits"] == 0 and counts["asked"] > 50
    keep_programs_alone(cache)
    again, same_metrics, same_history = run(cache, tmp_path)
    assert again["asked"] == again["hits"] == counts["asked"]
    assert (same_metrics, same_history) == (metrics, history)


def test_a_run_with_64_bit_numbers_switched_on_gives_the_same_results(cache, first, tmp_path):
    keep_programs_alone(cache)
    _, metrics, history = run(cache, tmp_path, JAX_ENABLE_X64="1")
    assert history == first[2]
    assert metrics == first[1]
