"""A Ray cluster of two nodes fills an index in PostgreSQL, is left in the middle, and goes on.

Ray is not in the test extra: it takes 330 MB with Pandas, and this test minutes, as its nodes and workers start one after the
other, of the quarter of an hour that the whole suite may take. With `pip install 'jax_brcd[ray]'` it runs.
"""

import itertools
import os
import secrets
import socket
import subprocess
import sys

import pytest
import servers
from encoders import random_encoder
from image_trees import write_images

pytest.importorskip("ray", reason="needs jax_brcd[ray], which is too large and too slow to start for the test extra")

LEFT = 9
FILL = """
import os, sys, jax_brcd
from jax_brcd.search import cluster
from jax_brcd.search.indexing import add_folders
from jax_brcd.search.upkeep import verify
address, url, folder, place, most = sys.argv[1:]

def progress(what, done, total):
    if done >= int(most):
        os._exit(9)

if __name__ == "__main__":
    encoder = jax_brcd.load(place)
    store = jax_brcd.open_store(url, create_for=encoder)
    before = len(store)
    with cluster.on_cluster(address, url, place) as elsewhere:
        added = add_folders(store, [folder], encoder, place=place, elsewhere=elsewhere, progress=progress)
    print(before, added.unchanged, added.encoded, len(added.bad), len(store), verify(store, 10, encoder=encoder).equal)
"""


@pytest.fixture
def nodes():
    """The address of a cluster of two nodes on this machine, with a token of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24),
                   "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--block",
             "--object-store-memory=200000000"]
    started = []
    try:
        for role in (["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"], [f"--address={address}"]):
            started.append(subprocess.Popen([*start, *role], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                            text=True))
            said = list(itertools.takewhile(lambda line: "Ray runtime started" not in line, started[-1].stdout))
            assert started[-1].poll() is None, "".join(said)
        yield address, environment
    finally:
        for node in reversed(started):
            node.terminate()
        for node in reversed(started):
            node.wait(60)


def test_two_nodes_fill_an_index_of_a_server_and_go_on_where_they_were_left(nodes, tmp_path):
    (address, environment), url = nodes, servers.postgres_url(vector=True)
    write_images(tmp_path / "photos", *[f"{number}.png" for number in range(120)])
    (tmp_path / "photos/bad.png").touch()
    place = random_encoder().save(tmp_path / "encoder")
    script = tmp_path / "fill.py"
    script.write_text(FILL)

    def fill(most):
        words = [sys.executable, script, address, url, tmp_path / "photos", place, str(most)]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400, check=False)

    assert fill(20).returncode == LEFT
    done = fill(1000)
    assert done.returncode == 0, done.stderr[-2000:]
    before, unchanged, encoded, bad, there, equal = map(int, done.stdout.split()[-6:])
    assert 0 < before <= unchanged and unchanged + encoded == there == 120 and (bad, equal) == (1, 10)
