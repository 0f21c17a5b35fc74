"""python -m benchmarks.service: the service of a running student under load, with clients that mean well and some that do not.

A service is started in a process of its own over an index of made-up images, and 32 clients ask it at once: photos, codes,
thumbnails, and among them photos that are truncated, bombs, paths in every parameter, wrong tokens, heads without end and
bodies that stop half way. Printed are the durations of the answers by kind and the service's memory as it goes; it must neither
end nor grow, and answer nothing with another status than is due.
"""

import dataclasses
import io
import json
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from jax_brcd.encoder import create_encoder
from jax_brcd.models import create_hash_model
from jax_brcd.models.variants import Preprocessing
from jax_brcd.runtime.errors import InputError
from jax_brcd.search import open_store
from jax_brcd.search.service.metrics import resident_bytes
from jax_brcd.settings.command_line import OneLineParser, add_options, run_command
from jax_brcd.settings.options import convert, option

TOKEN = "a-token-of-the-benchmark"
HEAD = f"POST /v1/search HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
BITS, SIDE = 64, 64
# Pixels of a patch, of which an image has eight by eight
SCALES = ((6, 8), (12, 12), (12, 12), (30, 20), (24, 24), (12, 12), (60, 80))
GROWTH = 1.25  # of the memory after a third of the time, by which the service may grow until the end
STALLED_SECONDS = 1.0  # that a client which stops half way stays


@dataclasses.dataclass(frozen=True)
class Load:
    """How much is asked of the service, and for how long."""

    seconds: float = option(60.0, "seconds under load", above=0)
    clients: int = option(32, "clients at once", low=1, high=1000)
    images: int = option(1000, "images of the index", low=1)
    hostile: float = option(0.4, "share of requests that mean no good", low=0, high=1)
    seed: int = option(0, "seed of images and requests")


@dataclasses.dataclass(frozen=True)
class Place:
    """The service under load, and what its clients know."""

    port: int
    ids: list[str]
    photos: list[bytes]


Answered = set[int]
Kind = tuple[Callable[[Place, random.Random], int], Answered]


def main(argv: list[str] | None = None) -> None:
    """Runs the load and prints what came of it.

    Raises:
        InputError: where the service ended, grew, or answered otherwise than it is to.
    """
    parser = OneLineParser(prog="python -m benchmarks.service", description=__doc__, allow_abbrev=False)
    add_options(parser, "load", [Load])
    load = convert(Load, vars(parser.parse_args(argv)))
    with tempfile.TemporaryDirectory(prefix="service-") as folder:
        ids, photos = fill(pathlib.Path(folder), load)
        with started(pathlib.Path(folder)) as (process, port):
            measured = under_load(Place(port, ids, photos), load, process.pid)
            ended = process.poll()
            healthy = ended is None and get(port, "/healthz") == 200
    print(table(measured))
    problems = measured.problems + ([] if healthy else [f"the service has ended ({ended})"])
    first = measured.memory[len(measured.memory) // 3]
    if measured.memory[-1] > GROWTH * first:
        problems.append(f"memory grew from {first:.0f} to {measured.memory[-1]:.0f} MiB")
    if problems:
        raise InputError("; ".join(problems[:5]))


def fill(folder: pathlib.Path, load: Load) -> tuple[list[str], list[bytes]]:
    """An encoder, images in files and an index of them in a folder; returns the ids and the files' bytes."""
    from flax import nnx
    from PIL import Image

    model = create_hash_model("resnet18", BITS, rngs=nnx.Rngs(load.seed), size=SIDE)
    encoder = create_encoder(model, "resnet18", Preprocessing(SIDE, SIDE), bits=BITS, role="student")
    encoder.save(folder / "encoder")
    small = np.random.default_rng(load.seed).integers(0, 256, (load.images, 8, 8, 3), dtype=np.uint8)
    images = [np.kron(image, np.ones((*SCALES[number % len(SCALES)], 1), np.uint8)) for number, image in enumerate(small)]
    photos, attributes, ids = [], [], [f"{number:06}" for number in range(load.images)]
    for id, image in zip(ids, images, strict=True):
        buffer, path = io.BytesIO(), folder / f"{id}.jpg"
        Image.fromarray(image).save(buffer, "JPEG")
        path.write_bytes(buffer.getvalue())
        photos.append(buffer.getvalue())
        attributes.append({"path": str(path), "size": path.stat().st_size, "mtime": path.stat().st_mtime})
    store = open_store(f"folder:{folder / 'index'}", create_for=encoder)
    store.add(ids, encoder.encode(images), attributes)
    store.note("encoder", str(folder / "encoder"))
    store.close()
    (folder / "secret").write_text("root:x:0:0")
    return ids, photos


class started:
    """A service of the index in a folder, as a context: its process and port."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def __enter__(self) -> tuple[subprocess.Popen, int]:
        command = [sys.executable, "-m", "jax_brcd.serve", "--index", f"folder:{self.folder / 'index'}", "--port", "0",
                   "--max-megapixels", "4", "--max-mib", "4"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_BRCD_TOKEN": TOKEN})
        line = self.process.stdout.readline()
        if " at " not in line:
            raise InputError("the service does not start; its error stands above")
        return self.process, int(urllib.parse.urlsplit(line.split(" at ")[1].split()[0]).port)

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


# ---- requests: each returns a status, 0 where the service closed without one

def ask(port: int, method: str, path: str, body: bytes | None = None, *, token: str = TOKEN) -> int:
    """The status of a request. Raises InputError where a secret is in its answer, or an error is not one line of JSON."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Authorization": f"Bearer {token}"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as got:
            status, content = got.status, got.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
        if json.loads(content)["status"] != status or content.count(b"\n") != 1:
            raise InputError(f"{method} {path[:60]}: an error that is no line of JSON") from None
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0
    if b"root:" in content:
        raise InputError(f"{method} {path[:60]}: a file that is not of the index was sent")
    return status


def get(port: int, path: str) -> int:
    """The status of a GET."""
    return ask(port, "GET", path)


def photo(place: Place, chance: random.Random) -> int:
    return ask(place.port, "POST", f"/v1/search?k=20&soft={chance.randrange(2)}", chance.choice(place.photos))


def code(place: Place, chance: random.Random) -> int:
    return ask(place.port, "POST", "/v1/search/codes?k=50&radius=20", chance.randbytes(BITS // 8))


def thumbnail(place: Place, chance: random.Random) -> int:
    return get(place.port, f"/v1/images/{chance.choice(place.ids)}{chance.choice(('', '?original=1'))}")


def state(place: Place, chance: random.Random) -> int:
    return get(place.port, chance.choice(("/v1/status", "/metrics", "/", "/openapi.json")))


def truncated(place: Place, chance: random.Random) -> int:
    body = chance.choice(place.photos)
    return ask(place.port, "POST", "/v1/search", body[: chance.randrange(4, 300)])


def noise(place: Place, chance: random.Random) -> int:
    start = chance.choice((b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"RIFF", b""))
    return ask(place.port, "POST", "/v1/search", start + chance.randbytes(2000))


def bomb(place: Place, chance: random.Random) -> int:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = chance.choice((2500, 30_000, 2**31 - 1))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return ask(place.port, "POST", "/v1/search", b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10**6))))


def traversal(place: Place, chance: random.Random) -> int:
    up = chance.choice(("../" * 9, "..%2f" * 9, "/", "%2e%2e/" * 9, "..\\" * 5, "file:///")) + "etc/passwd"
    path = chance.choice((f"/v1/images/{up}?original=1", f"/page/{up}", f"/runtime/{up}", f"/{up}",
                          f"/v1/images/x?original={up}", f"/v1/search?mode={up}", f"/v1/search?k={up}",
                          f"/v1/search/codes?space={up}", f"/v1/status?path={up}"))
    method = "POST" if path.startswith("/v1/search") else "GET"
    return ask(place.port, method, path.replace("\\", "%5c"), bytes(8) if method == "POST" else None)


def wrong_token(place: Place, chance: random.Random) -> int:
    return ask(place.port, "GET", f"/v1/images/{place.ids[0]}", token=TOKEN[: chance.randrange(len(TOKEN))])


def too_large(place: Place, chance: random.Random) -> int:
    return raw(place, f"{HEAD}Content-Length: 9999999999\r\n\r\n".encode())


def huge_head(place: Place, chance: random.Random) -> int:
    return raw(place, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000)


def no_http(place: Place, chance: random.Random) -> int:
    return raw(place, chance.randbytes(300) + b"\r\n\r\n")


def half_body(place: Place, chance: random.Random) -> int:
    head = f"{HEAD}Content-Length: 50000\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", place.port), timeout=30) as client:
        client.sendall(head + chance.choice(place.photos)[:500])
        time.sleep(chance.random() * STALLED_SECONDS)
    return 0


def raw(place: Place, text: bytes) -> int:
    """The status that the service answers to bytes."""
    try:
        with socket.create_connection(("127.0.0.1", place.port), timeout=60) as client:
            client.sendall(text)
            said = client.recv(64)
        return int(said[9:12]) if said.startswith(b"HTTP/1.1 ") else 0
    except ConnectionError:
        return 0


GOOD: dict[str, Kind] = {"photo": (photo, {200}), "code": (code, {200}), "picture": (thumbnail, {200}), "state": (state, {200})}
BUSY = {503}  # what any may be told
CLOSED = {0}  # a client that goes on sending may not read why it was closed
HOSTILE: dict[str, Kind] = {
    "truncated photo": (truncated, {200, 415}), "noise": (noise, {415}), "bomb": (bomb, {413}),
    "traversal": (traversal, {200, 400, 404, 409, 415}), "wrong token": (wrong_token, {401}),
    "too large": (too_large, {413}), "huge head": (huge_head, {400} | CLOSED), "no HTTP": (no_http, {400} | CLOSED),
    "half a body": (half_body, CLOSED)}


# ---- the load

class Measured:
    """What came of the load: seconds of each answer by kind, how many were told to come again, memory in MiB, problems."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.busy: dict[str, int] = defaultdict(int)
        self.memory: list[float] = []
        self.problems: list[str] = []


def under_load(place: Place, load: Load, pid: int) -> Measured:
    """Has all clients ask until the time is over."""
    measured, end = Measured(), time.monotonic() + load.seconds

    def client(number: int) -> None:
        chance = random.Random(load.seed * 1000 + number)
        while time.monotonic() < end:
            kinds = HOSTILE if chance.random() < load.hostile else GOOD
            name = chance.choice(list(kinds))
            call, due = kinds[name]
            began = time.perf_counter()
            try:
                status = call(place, chance)
            except Exception as error:  # whatever a broken answer raises here: a client must not end without a word
                measured.problems.append(f"{name}: {type(error).__name__}: {error}")
                continue
            measured.seconds[name].append(time.perf_counter() - began)
            measured.busy[name] += status in BUSY
            if status not in due | BUSY:
                measured.problems.append(f"{name}: answered {status}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(load.clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        measured.memory.append(resident_bytes(pid) / 2**20)
        time.sleep(min(1.0, load.seconds / 10))
    return measured


def table(measured: Measured) -> str:
    """Durations by kind, then the memory."""
    return "\n".join([*_rows(measured), "", "memory of the service, MiB: " + " ".join(
        f"{each:.0f}" for each in measured.memory[:: max(1, len(measured.memory) // 12)])])


def _rows(measured: Measured) -> Iterator[str]:
    yield "| request | count | told to come again | p50 ms | p95 ms |\n|---|---|---|---|---|"
    for name in (*GOOD, *HOSTILE):
        spent = measured.seconds.get(name)
        if spent:
            middle, late = 1000 * np.percentile(spent, [50, 95])
            yield f"| {name} | {len(spent)} | {measured.busy[name]} | {middle:.0f} | {late:.0f} |"


if __name__ == "__main__":
    run_command(main)
