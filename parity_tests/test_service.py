"""The service over HTTP: what its routes answer, and what they refuse, in one line of JSON."""

import asyncio
import io
import json
import os
import struct
import threading
import zlib
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from encoders import noise, random_encoder
from image_trees import BYTE, LONG, LONG8, SLONG8, tiff
from PIL import Image, TiffImagePlugin
from service_index import SIDE, SMALL, picture_bytes, serve_images
from starlette.testclient import TestClient

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.workers import cores
from jax_brcd.search import open_store
from jax_brcd.search.service import app
from jax_brcd.search.service.app import create_app
from jax_brcd.search.service.engine import Engine
from jax_brcd.search.service.limits import Limits
from jax_brcd.search.service.uploads import pixels_of
from jax_brcd.search.stores.memory import MemoryStore

HERE = "http://127.0.0.1"
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return serve_images(tmp_path_factory.mktemp("photos"), second=random_encoder(seed=8, shrink=0.05))


@pytest.fixture(scope="module")
def client(served):
    return TestClient(served.app(limits=SMALL), base_url=HERE)


def refused(answer, status):
    """The text of an error, which is one line of JSON under this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json" and answer.text.count("\n") == 1
    told = json.loads(answer.text)
    assert told.keys() == {"error", "status"} and told["status"] == status
    return told["error"]


def hamming(a, b):
    return int(np.bitwise_count(a ^ b).sum())


def test_an_image_is_found_by_itself_with_code_distances_and_attributes(served, client):
    codes = served.encoder.encode(served.images).packed
    told = client.post("/v1/search?k=5&mode=symmetric", content=picture_bytes(served.images[7])).json()
    assert told["code"] == codes[7].tobytes().hex() and told["bits"] == 20 and told["space"] == "teacher-1"
    assert len({code.tobytes() for code in codes}) > 12
    expected = sorted((hamming(codes[7], code), id) for code, id in zip(codes, served.ids))[:5]
    assert [(hit["distance"], hit["id"]) for hit in told["hits"]] == expected
    first = told["hits"][0]
    assert first["distance"] == 0 and first["code"] == told["code"] and first["soft"] is None
    assert first["attributes"]["path"] == str(served.paths[served.ids.index(first["id"])])
    assert first["image"] == f"/v1/images/{quote(first['id'], safe='')}"
    assert told["milliseconds"].keys() == {"decode", "encode", "search"}


def test_an_image_comes_as_a_body_or_in_a_form(served, client):
    body = picture_bytes(served.images[3])
    plain = client.post("/v1/search", content=body).json()
    form = client.post("/v1/search", files={"image": ("../../etc/passwd", body, "text/html")}).json()
    assert form["hits"] == plain["hits"] and form["code"] == plain["code"]
    assert "field 'image'" in refused(client.post("/v1/search", files={"photo": body}), 400)
    assert "form" in refused(client.post("/v1/search", content=body, headers={"content-type": "multipart/form-data"}), 400)
    lost = client.post("/v1/search", files={"image": ("a.png", body)}, data={"k": "3"})
    assert "other fields than 'image' (k)" in refused(lost, 400), "else k would be passed over"


def test_nothing_but_the_boundary_is_taken_of_a_forms_header(client):
    """Some character sets, as punycode, take the square of a field's length to decode."""
    body = b'--b\r\ncontent-disposition: form-data; name="a-"\r\n\r\n2n7caaaa\r\n--b--\r\n'
    form = "multipart/form-data; boundary=b; charset="
    answers = [refused(client.post("/v1/search", content=body, headers={"content-type": form + charset}), 400)
               for charset in ("utf-8", "punycode", "no-such")]
    assert answers == ["a form without a file in its field 'image'; name it so"] * 3
    for boundary in ("", '"\xe9"', "b" * 71, '"b;c"'):
        head = {"content-type": f"multipart/form-data; boundary={boundary}".encode("latin-1")}
        assert "boundary" in refused(client.post("/v1/search", content=body, headers=head), 400)


def test_photos_are_turned_as_their_tag_says_and_other_modes_become_colour(served, client):
    image = noise(SIDE, 2 * SIDE, seed=9)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = picture_bytes(Image.fromarray(np.rot90(image).copy()), "PNG", exif=exif)
    for body, pixels in ((turned, image), (picture_bytes(image[..., 0]), np.repeat(image[..., :1], 3, axis=-1))):
        told = client.post("/v1/search?mode=symmetric", content=body).json()
        assert told["code"] == served.encoder.encode(pixels).packed[0].tobytes().hex()


def test_a_soft_search_ranks_by_logits_and_an_asymmetric_one_encodes_by_the_other_encoder(served, client):
    other, image = served.engine.encoders["asymmetric"], served.images[2]
    told = client.post("/v1/search?soft=1&k=20", content=picture_bytes(image)).json()
    assert told["mode"] == "asymmetric" and told["code"] == other.encode(image).packed[0].tobytes().hex()
    codes, logits = served.encoder.encode(served.images).unpack(), other.logits(image)[0]
    expected = np.abs(logits).sum() / 2 - codes @ logits / 2
    for hit in told["hits"]:
        assert hit["soft"] == pytest.approx(expected[served.ids.index(hit["id"])], abs=1e-4)
    soft = [hit["soft"] for hit in told["hits"]]
    assert soft == sorted(soft) and soft[0] == pytest.approx(expected.min(), abs=1e-4)


def test_a_code_is_searched_for_by_its_bytes_and_within_a_radius(served, client):
    codes = served.encoder.encode(served.images).packed
    told = client.post("/v1/search/codes?k=20&radius=6&space=teacher-1", content=codes[4].tobytes()).json()
    distances = sorted(hamming(codes[4], code) for code in codes)
    assert [hit["distance"] for hit in told["hits"]] == [each for each in distances if each <= 6][:20]
    served.store.add(["gone"], served.encoder.encode(served.images[4:5]), [{"missing": True}])
    assert client.post("/v1/search/codes?k=20&radius=6", content=codes[4].tobytes()).json()["hits"] == told["hits"]
    served.store.delete(["gone"])
    assert "3 bytes, not 2" in refused(client.post("/v1/search/codes", content=b"ab"), 400)
    assert "zero bits" in refused(client.post("/v1/search/codes", content=b"\xff\xff\xff"), 400)
    assert "larger than 3" in refused(client.post("/v1/search/codes", content=b"abcd"), 413)
    assert "space" in refused(client.post("/v1/search/codes?space=teacher-2", content=b"abc"), 409)


@pytest.mark.parametrize("query", ["k=0", "k=21", "k=-1", "k=1e2", "k=", "k=٣", "k=" + "9" * 5000, "k=1&k=2",
                                   "radius=21", "soft=yes", "mode=teacher", "where=1", "k[]=1", "path=/etc/passwd", "original=1", "%00=1"])
def test_a_parameter_that_cannot_be_is_refused(client, served, query):
    refused(client.post(f"/v1/search?{query}", content=picture_bytes(served.images[0])), 400)


def test_thumbnails_come_from_the_index_or_are_made_and_originals_are_sent_as_they_are(served, client):
    for number in (0, 1):
        at = f"/v1/images/{quote(served.ids[number], safe='')}"
        small = client.get(at)
        assert small.headers["content-type"] == "image/jpeg" and small.content.startswith(b"\xff\xd8")
        assert Image.open(io.BytesIO(small.content)).size == (SIDE, SIDE)
        original = client.get(f"{at}?original=1")
        assert original.content == served.paths[number].read_bytes() and original.headers["content-type"] == "image/png"
        assert original.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("id", ["../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "..%5c..%5cboot.ini", "",
                                "%00", "a" * 3000, "%ff%fe", "file:///etc/passwd", "id%2f001%3f%2f..%2f..%2fetc%2fpasswd"])
def test_no_path_of_a_request_is_ever_opened(client, monkeypatch, id):
    monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("a file was opened"))
    for query in ("", "?original=1"):
        refused(client.get(f"/v1/images/{id}{query}"), 404)


def test_an_original_that_is_no_longer_what_was_indexed_is_not_sent(tmp_path):
    own = serve_images(tmp_path, 6)
    client = TestClient(own.app(), base_url=HERE)
    secret = tmp_path / "secret"
    secret.write_bytes(b"root:x:0:0" * 20)
    own.paths[0].unlink()
    own.paths[1].unlink()
    own.paths[1].symlink_to(secret)
    own.paths[2].write_bytes(picture_bytes(own.images[3]))
    os.truncate(own.paths[4], 100)
    own.store.add(["text", "pipe", "none"], own.encoder.encode(own.images[:3]),
                  [{"path": str(secret)}, {"path": str(tmp_path / "pipe")}, {}])
    os.mkfifo(tmp_path / "pipe")
    for id in (*(own.ids[number] for number in (0, 1, 2, 4)), "text", "pipe", "none"):
        assert "root" not in refused(client.get(f"/v1/images/{quote(id, safe='')}?original=1"), 404)
    assert client.get(f"/v1/images/{quote(own.ids[1], safe='')}").status_code == 200, "its thumbnail is still in the index"
    refused(client.get(f"/v1/images/{quote(own.ids[2], safe='')}"), 404)


def test_files_of_any_name_and_size_are_found_and_their_originals_sent(tmp_path):
    own = serve_images(tmp_path, 3)
    odd, large = tmp_path / os.fsdecode(b"caf\xe9.png"), tmp_path / "large.png"
    own.paths[0].rename(odd)
    large.write_bytes(picture_bytes(noise(300, 300)))
    own.store.add(["odd\udce9", "large"], own.encoder.encode(own.images[:2]), [{"path": str(odd)}, {"path": str(large)}])
    client = TestClient(own.app(limits=SMALL), base_url=HERE)
    told = json.loads(client.post("/v1/search", content=picture_bytes(own.images[0])).content)
    found = {hit["id"]: hit for hit in told["hits"]}
    hit = found["odd\udce9"]
    assert hit["attributes"]["path"] == str(odd) and hit["distance"] == 0
    assert client.get(hit["image"] + "?original=1").content == odd.read_bytes()
    assert client.get("/v1/images/large?original=1").content == large.read_bytes(), "nothing of it is decoded"
    assert "has no thumbnail: an image of 300 x 300 pixels, more than 50000" in refused(client.get("/v1/images/large"), 404)


def bomb(width, height):
    """A small PNG that says it is large."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [300, 30_000, 2**31 - 1])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(client, side):
    assert "make it smaller" in refused(client.post("/v1/search", content=bomb(side, side)), 413)


@pytest.mark.parametrize(("sides", "status", "told"), [
    ([(322, LONG, 4096), (323, LONG, 2048)], 413, "an image in tiles of 4096 x 2048 pixels, more than 50000; make it smaller"),
    ([(322, LONG8, 4096), (323, LONG8, 2048)], 413, "an image in tiles of 4096 x 2048 pixels"),
    ([(322, SLONG8, 4096), (323, SLONG8, 2048)], 415, "no image that is read here"),
    ([(322, SLONG8, 4096), (322, LONG, 16), (323, SLONG8, 2048), (323, LONG, 16)], 415, "no image that is read here"),
    ([(322, LONG, 4096), (322, LONG, 16), (323, LONG, 2048), (323, LONG, 16)], 415, "no image that is read here"),
    ([(322, LONG, 2**15), (323, BYTE, 255)], 415, "no image that is read here"),
    ([(322, LONG, []), (323, LONG, 16)], 415, "no image that is read here"),
], ids=["plain", "long", "hidden", "behind others", "twice", "bytes", "nothing"])
def test_a_tile_beyond_its_image_counts_before_it_is_decoded(client, monkeypatch, sides, status, told):
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", lambda self: pytest.fail("it was decoded"))
    body = tiff(1, 1, [bytes(4096 * 2048)], sides)
    assert len(body) < 20_000
    assert refused(client.post("/v1/search", content=body), status).startswith(told)


def test_a_tiff_in_tiles_is_searched_by_and_its_tiles_take_their_share_of_memory(served, client):
    image, sides = noise(SIDE, SIDE, seed=4), [(322, LONG, 32), (323, LONG, 32)]
    canvas = np.zeros((64, 64, 3), np.uint8)
    canvas[:SIDE, :SIDE] = image
    tiles = [canvas[top:top + 32, left:left + 32].tobytes() for top in (0, 32) for left in (0, 32)]
    body = tiff(SIDE, SIDE, tiles, sides, bands=3)
    told = client.post("/v1/search?mode=symmetric", content=body).json()
    assert told["code"] == served.encoder.encode(image).packed[0].tobytes().hex()
    assert pixels_of(body, 10**4) == SIDE * SIDE
    assert pixels_of(tiff(1, 1, [b""], [(322, LONG, 4096), (323, LONG, 2048)]), 10**7) == 4096 * 2048
    strips = picture_bytes(Image.fromarray(image), "TIFF", compression="tiff_adobe_deflate", big_tiff=True)
    assert pixels_of(strips, 10**4) == SIDE * SIDE


def test_uploads_that_are_too_large_broken_or_no_image_are_refused(client, served):
    body = picture_bytes(served.images[0])
    refused(client.post("/v1/search", content=bytes(2**20 + 1)), 413)
    refused(client.post("/v1/search", content=(bytes(2**17) for _ in range(9))), 413)  # whose length is not told before
    refused(client.post("/v1/search", content=b""), 400)
    for broken in (body[:len(body) // 2], b"GIF89a", b"<svg onload=alert(1)>", b"%PDF-1.4 " * 9, body[:12]):
        refused(client.post("/v1/search", content=broken), 415)


def test_pages_that_are_not_there_and_wrong_methods_are_told_in_one_line(client):
    for path in ("/v2/search", "/page/../app.py", "/page/%2e%2e%2fapp.py", "/page/limits.py", "/runtime/ort.wasm.min.mjs",
                 "/v1/encoder.onnx", "/v1/status/"):
        refused(client.get(path), 404)
    refused(client.get("/v1/search"), 405)
    refused(client.delete("/v1/status"), 405)


def test_status_health_and_metrics_tell_what_goes_on(served):
    client = TestClient(served.app(), base_url=HERE)
    status = client.get("/v1/status").json()
    assert (status["items"], status["bits"], status["bytes"], status["space"]) == (24, 20, 3, "teacher-1")
    assert list(status["modes"]) == ["asymmetric", "symmetric"] and status["modes"]["symmetric"]["backbone"] == "resnet8"
    assert client.get("/healthz").json() == {"status": "ok"}
    client.post("/v1/search/codes", content=b"ab")
    lines = client.get("/metrics").text.splitlines()
    assert 'jax_brcd_requests_total{route="/v1/search/codes",status="400"} 1' in lines
    assert "jax_brcd_index_items 24" in lines and "# TYPE jax_brcd_request_seconds histogram" in lines
    assert 'jax_brcd_request_seconds_count{route="/healthz"} 1' in lines
    assert all(line.startswith("#") or len(line.rsplit(" ", 1)) == 2 and float(line.rsplit(" ", 1)[1]) >= 0 for line in lines)


def test_the_document_of_the_routes_has_all_of_them_and_no_other(served, client):
    document = client.get("/openapi.json").json()
    routes = {(path, method) for path, methods in document["paths"].items() for method in methods}
    there = {(route.path.replace(":path", ""), method.lower()) for route in served.app()._app.routes
             for method in route.methods - {"HEAD"}}
    page = {("/", "get"), ("/page/{name}", "get"), ("/runtime/{name}", "get")}
    assert routes == there - page and document["openapi"].startswith("3.1")
    assert document["paths"]["/v1/search"]["post"]["parameters"][0]["schema"]["maximum"] == SMALL.max_hits
    told = client.post("/v1/search/codes", content=bytes(3)).json()
    schemas = document["components"]["schemas"]
    assert set(schemas["Found"]["required"]) == told.keys() and set(schemas["Hit"]["required"]) == told["hits"][0].keys()
    assert set(schemas["Status"]["required"]) == client.get("/v1/status").json().keys()


def test_a_token_is_asked_for_everywhere_but_by_the_page_and_the_health(served):
    client = TestClient(served.app(token=TOKEN), base_url="http://photos.example.org")
    image = f"/v1/images/{quote(served.ids[1], safe='')}"
    for path in ("/v1/status", image, f"{image}?original=1", "/metrics", "/openapi.json", "/v1/encoder.onnx", "/nothing"):
        for header in (None, "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN[:-1]}", "Bearer \xff"):
            answer = client.get(path, headers={} if header is None else {"authorization": header.encode("latin-1")})
            assert "token" in refused(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
    refused(client.post("/v1/search/codes", content=bytes(3)), 401)
    assert {client.get(path).status_code for path in ("/", "/page/app.js", "/healthz")} == {200}
    known = {"authorization": f"Bearer {TOKEN}"}
    assert client.get(image, headers=known).status_code == client.get("/v1/status", headers=known).status_code == 200


def test_the_health_of_an_index_is_asked_for_without_counting_its_items():
    class Uncounted(MemoryStore):
        """A store that cannot count."""

        def __len__(self):
            raise InputError("too many to be counted")

    store = Uncounted(20, None)
    client = TestClient(create_app(Engine(store, {})), base_url=HERE)
    assert client.get("/healthz").json() == {"status": "ok"}
    store.add(["healthz"], np.ones((1, 20)))
    assert client.get("/healthz").json() == {"status": "ok"}
    assert "too many to be counted" in refused(client.get("/v1/status"), 503)


def test_requests_without_a_token_take_no_turn_of_those_with_one_and_share_one_look_into_the_index():
    """Neither those that need none, and wait for the index or take no answer, nor those that are refused, and take no answer."""
    free, known, looks = threading.Event(), {"authorization": f"Bearer {TOKEN}"}, []

    class Slow(MemoryStore):
        """A store that takes its time to look for an item."""

        def _fetch(self, ids):
            looks.append(ids)
            free.wait(20)
            return super()._fetch(ids)

    limits = Limits(at_once=1)
    app = create_app(Engine(Slow(20, None), {}), limits=limits, token=TOKEN)

    async def never(*message):
        await asyncio.Event().wait()

    async def ask():
        unknown = {"type": "http", "method": "GET", "headers": [], "query_string": b""}
        stalled = [asyncio.create_task(app({**unknown, "path": path}, never, never))
                   for path in limits.connections // 2 * ["/v1/status", "/"]]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HERE) as client:
            left, *healths = [asyncio.create_task(client.get("/healthz")) for _ in range(limits.connections)]
            await until(lambda: looks)
            answers = [await client.get("/"), await client.get("/openapi.json", headers=known)]
            assert not any(task.done() for task in (*stalled, left, *healths))
            left.cancel()
            free.set()
            answers += await asyncio.gather(*healths)
            assert len(looks) == 1
            answers += [await client.get("/healthz")]
            assert len(looks) == 2
        for task in stalled:
            task.cancel()
        return [answer.status_code for answer in answers]

    assert set(asyncio.run(ask())) == {200}


def test_without_a_token_only_names_of_this_machine_are_answered(served):
    """Else a page of another host, whose name leads here, could read the answers."""
    app = served.app()
    for host, status in (("127.0.0.1:8765", 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example:80", 421), ("", 421),
                         ("127.0.0.1.evil.example", 421), ("localhost@evil.example", 421), ("127.0.0.2:8765", 200),
                         ("[::1]", 200), ("192.168.1.5", 421), ("[::]:80", 421), ("0.0.0.0", 421),
                         ("127.0.0.2.evil.example:8765", 421)):
        assert TestClient(app, base_url=HERE).get("/v1/status", headers={"host": host}).status_code == status, host


def test_every_answer_keeps_the_page_to_itself(client):
    for answer in (client.get("/"), client.get("/page/worker.js"), client.get("/v1/status"), client.get("/nothing")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "http" not in policy
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_asks_for_nothing_but_its_own_files(client):
    page = client.get("/").text
    assert "<style" not in page and "style=" not in page and " on" + "click=" not in page
    for name in ("app.js", "service.js", "bits.js", "worker.js", "style.css"):
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200 and "https://" not in answer.text
        assert answer.text.replace("http://www.w3.org/2000/svg", "").count("http://") == 0


def test_queries_that_come_together_are_encoded_together_and_each_gets_its_own_answer(served):
    app = served.app()
    batches = served.engine.encodings["symmetric"]
    before, count = (batches.batches, batches.items), 16
    bodies = [picture_bytes(image) for image in served.images[:count]]

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HERE) as client:
            bad = client.post("/v1/search?mode=symmetric", content=picture_bytes(noise(1, 8000)))
            return await asyncio.gather(*(client.post("/v1/search?k=1&mode=symmetric", content=body) for body in bodies), bad)

    *answers, bad = asyncio.run(ask())
    codes = served.encoder.encode(served.images[:count]).packed
    assert [answer.json()["code"] for answer in answers] == [code.tobytes().hex() for code in codes]
    assert {answer.json()["hits"][0]["distance"] for answer in answers} == {0}
    assert "elongated" in refused(bad, 400)
    assert batches.batches - before[0] < batches.items - before[1] == count


class Disk:
    """A disk that stalls where files are opened, or where they are read, until it is let go; `kept` has an entry for each time
    that it did, and `closed` for each file that was closed."""

    def __init__(self, monkeypatch, stage):
        self._end, self.kept, self.closed = threading.Event(), [], []
        make, open_, disk = app.make_thumbnail, app.open_original, self

        def wait():
            disk.kept.append(stage)
            assert disk._end.wait(60)

        class File:
            """An original whose reads stall."""

            def __init__(self, file):
                self._file, self.fileno = file, file.fileno

            def read(self, size):
                wait()
                return self._file.read(size)

            def close(self):
                self._file.close()
                disk.closed.append(stage)

        def opened(attributes):
            if stage == "open":
                wait()
            file, kind = open_(attributes)
            return File(file), kind

        monkeypatch.setattr(app, "open_original", opened)
        monkeypatch.setattr(app, "make_thumbnail", lambda *told: (wait(), make(*told))[1])

    def let_go(self):
        self._end.set()


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stage", ["open", "read", "thumbnail"])
def test_a_disk_that_stalls_holds_up_no_search_and_not_all_requests(served, monkeypatch, stage):
    disk, places = Disk(monkeypatch, stage), 2 * cores() + 2
    service = served.app(limits=Limits(at_once=2 * places, quiet_seconds=300.0))
    address = f"/v1/images/{quote(served.ids[0], safe='')}{'' if stage == 'thumbnail' else '?original=1'}"

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url=HERE) as client:
            stalled = [asyncio.create_task(client.get(address)) for _ in range(places)]
            await until(lambda: len(disk.kept) == cores())  # as many as there are threads for files
            searched = await asyncio.wait_for(client.post("/v1/search?k=1", content=picture_bytes(served.images[0])), 60)
            beyond = await asyncio.wait_for(client.get(address), 60)
            health = await asyncio.wait_for(client.get("/healthz"), 60)
            disk.let_go()
            return searched, beyond, health, await asyncio.gather(*stalled), await client.get(address)

    try:
        searched, beyond, health, stalled, later = asyncio.run(ask())
    finally:
        disk.let_go()
    assert searched.status_code == health.status_code == later.status_code == 200 and len(searched.json()["hits"]) == 1
    assert "too many requests wait for files" in refused(beyond, 503) and beyond.headers["retry-after"] == "1"
    assert {answer.status_code for answer in stalled} == {200} and {answer.content for answer in stalled} == {later.content}
    if stage != "thumbnail":
        assert later.content == served.paths[0].read_bytes() and len(disk.closed) == places + 1


def test_a_client_that_leaves_a_stalled_original_holds_up_nothing_and_its_file_is_closed(served, monkeypatch):
    disk = Disk(monkeypatch, "read")
    service = served.app(limits=Limits(at_once=2, quiet_seconds=300.0))  # one of which may wait for a file
    address = f"/v1/images/{quote(served.ids[0], safe='')}?original=1"

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url=HERE) as client:
            left = asyncio.create_task(client.get(address))
            await until(lambda: disk.kept)
            left.cancel()
            await asyncio.wait([left])
            assert (await client.get("/healthz")).status_code == 200 and not disk.closed
            disk.let_go()
            answer = await asyncio.wait_for(client.get(address), 60)
            await until(lambda: len(disk.closed) == 2)
            return answer

    try:
        answer = asyncio.run(ask())
    finally:
        disk.let_go()
    assert answer.content == served.paths[0].read_bytes()


@pytest.mark.parametrize("stage", ["open", "thumbnail"])
def test_a_file_that_a_disk_does_not_open_in_time_is_given_up_and_closed_when_it_does(served, monkeypatch, stage):
    disk = Disk(monkeypatch, stage)
    service = served.app(limits=Limits(at_once=2, quiet_seconds=0.5))  # one of which may wait for a file
    address = f"/v1/images/{quote(served.ids[0], safe='')}{'' if stage == 'thumbnail' else '?original=1'}"

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url=HERE) as client:
            told = [await asyncio.wait_for(client.get(address), 60) for _ in range(cores() + 1)]
            assert not disk.closed
            disk.let_go()
            if stage == "open":
                await until(lambda: 0 < len(disk.kept) == len(disk.closed))
            return told

    try:
        told = asyncio.run(ask())
    finally:
        disk.let_go()
    assert {refused(answer, 503) for answer in told} == {"this file was not read in time; send it again later"}


def test_closing_the_service_waits_for_no_disk_that_stalls(served, monkeypatch):
    disk = Disk(monkeypatch, "open")

    async def ask():
        shared = app.Service(served.engine, SMALL, None)
        stalled = [asyncio.create_task(shared._read(app.open_original, {})) for _ in range(cores() + 1)]
        await until(lambda: len(disk.kept) == cores())
        shared.close()
        ended = await asyncio.wait_for(asyncio.gather(stalled.pop(), return_exceptions=True), 60)
        disk.let_go()
        await asyncio.wait(stalled)
        return ended, [task.exception() for task in stalled]

    try:
        ended, others = asyncio.run(ask())
    finally:
        disk.let_go()
    assert [type(error) for error in ended] == [asyncio.CancelledError], "it never began"
    assert [error.status for error in others] == cores() * [404]


def test_an_encoder_of_another_space_or_length_is_refused(served):
    store = open_store("memory:", create_for=served.encoder)
    with pytest.raises(InputError, match="16 bits, where the index has 20"):
        Engine(store, {"symmetric": random_encoder(16)})
    store.space = "teacher-2"
    with pytest.raises(InputError, match="teacher-2"):
        Engine(store, {"symmetric": served.encoder})


def test_an_index_without_an_encoder_is_searched_by_codes_alone(served):
    client = TestClient(create_app(Engine(served.store, {})), base_url=HERE)
    assert client.get("/v1/status").json()["modes"] == {}
    assert len(client.post("/v1/search/codes?k=3", content=bytes(3)).json()["hits"]) == 3
    assert "--encoder" not in refused(client.post("/v1/search", content=picture_bytes(served.images[0])), 409)


def test_an_index_that_fails_is_told_of_and_is_not_the_clients_fault(served):
    store = open_store("memory:", create_for=served.encoder)
    client = TestClient(served._replace(engine=Engine(store, {})).app(), base_url=HERE)
    store.close()
    assert "closed" in refused(client.get("/healthz"), 503)
    refused(client.post("/v1/search/codes", content=bytes(3)), 503)
