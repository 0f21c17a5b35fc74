"""Clients of the service that are no browsers: stalled, half gone, too many, or no HTTP; and the command that starts it."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from encoders import random_encoder
from page_browser import serving
from starlette.testclient import TestClient

from jax_brcd.retrieval import PackedCodes
from jax_brcd.search import open_store
from jax_brcd.search.service.app import create_app
from jax_brcd.search.service.engine import Engine
from jax_brcd.search.service.files import MODEL, RUNTIME
from jax_brcd.search.service.gate import is_loopback
from jax_brcd.search.service.limits import Limits
from jax_brcd.search.stores.memory import MemoryStore
from jax_brcd.serve import main

SHORT = Limits(max_mib=1, head_seconds=1.0, body_seconds=1.0, quiet_seconds=2.0, connections=8)
HEAD = "POST /v1/search/codes HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def store():
    made = open_store("memory:", create_for=PackedCodes(np.zeros((1, 8), np.uint8), 64))
    packed = np.random.default_rng(0).integers(0, 256, (50, 8), dtype=np.uint8)
    made.add([f"{number}" for number in range(50)], PackedCodes(packed, 64))
    return made


@pytest.fixture(scope="module")
def port(store):
    with serving(create_app(Engine(store, {}), limits=SHORT), SHORT) as address:
        yield int(address.rpartition(":")[2])


def said(port, text, *, wait=True):
    """What the service answers to bytes until it closes, and after how many seconds."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(text if isinstance(text, bytes) else text.encode())
        if not wait:
            return "", 0.0
        answer = b""
        try:
            while piece := client.recv(65536):
                answer += piece
        except ConnectionError:
            pass
    return answer.decode(), time.monotonic() - began


def refused(answer, status):
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} "), answer[:300]
    assert json.loads(body)["status"] == status and body.count("\n") == 1


def alive(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=20) as answer:
        return answer.status == 200


@pytest.mark.parametrize("text", [
    "hello\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
    "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + 20_000 * "x", HEAD + "Content-Length: -1\r\n\r\n",
    HEAD + "Content-Length: 8\r\nContent-Length: 9\r\n\r\n", HEAD + "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "GET /" + 30_000 * "a", "GET / HTTP/1.1\r\nHo st: localhost\r\n\r\n"],
    ids=["words", "hosts", "tls", "header", "negative", "lengths", "chunks", "path", "name"])
def test_what_is_no_request_is_refused_in_one_line_and_closed(port, text):
    answer, seconds = said(port, text)
    if "chunked" not in str(text):  # whose head was fine, so that its answer may be told or broken off
        refused(answer, 400)
    assert seconds < 10 and alive(port)


@pytest.mark.parametrize("text", ["", "GET / HT", "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX-"],
                         ids=["silent", "line", "header"])
def test_a_client_that_does_not_say_what_it_wants_is_let_go(port, text):
    answer, seconds = said(port, text)
    refused(answer, 408)
    assert 0.8 < seconds < 10


@pytest.mark.parametrize("length", ["Content-Length: 8", "Transfer-Encoding: chunked"])
def test_a_body_that_stops_half_way_is_not_waited_for(port, length):
    body = "abc" if "8" in length else "3\r\nabc\r\n"
    answer, seconds = said(port, f"{HEAD}{length}\r\nConnection: close\r\n\r\n{body}")
    refused(answer, 408)
    assert 0.8 < seconds < 10
    said(port, f"{HEAD}{length}\r\n\r\n{body}", wait=False)  # and one that leaves
    assert alive(port)


def test_a_declared_length_beyond_the_limit_is_refused_before_it_is_sent(port):
    answer, seconds = said(port, HEAD + "Content-Length: 99999999999\r\nConnection: close\r\n\r\n")
    refused(answer, 413)
    assert seconds < 5


def test_a_client_that_takes_no_answer_is_let_go(port):
    request, end = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n", time.monotonic() + 20
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setblocking(False)
        with pytest.raises(ConnectionError):
            while time.monotonic() < end:
                try:
                    client.send(100 * request)
                except BlockingIOError:  # the service reads no further before its answers are taken
                    time.sleep(0.05)
    assert alive(port)


def test_connections_have_an_end_and_come_free_again(store):
    patient = dataclasses.replace(SHORT, head_seconds=60.0)  # so that none comes free by itself
    with serving(create_app(Engine(store, {}), limits=patient), patient) as address:
        port, end = int(address.rpartition(":")[2]), time.monotonic() + 20
        held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(SHORT.connections)]
        answer = ""
        while "503" not in answer and time.monotonic() < end:  # the service accepts them in its own time
            answer, _ = said(port, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        refused(answer, 503)
        for each in held:
            each.close()
        while time.monotonic() < end:
            with contextlib.suppress(urllib.error.HTTPError):
                assert alive(port)
                break
        assert alive(port)


def test_answers_follow_one_another_on_one_connection(port):
    one = HEAD + "Content-Length: 8\r\n\r\nabcdefgh"
    bad = HEAD + "Content-Length: 2\r\n\r\nab"
    answer, _ = said(port, one + bad + one.replace("Host", "Connection: close\r\nHost"))
    assert [part[:4].strip() for part in answer.split("HTTP/1.1 ")[1:]] == ["200", "400", "200"]


def test_more_requests_than_are_worked_on_at_once_are_told_to_come_again():
    held = threading.Event()

    class Slow(MemoryStore):
        """A store that takes its time to count."""

        def __len__(self):
            held.wait(20)
            return 0

    limits = Limits(at_once=2)
    with serving(create_app(Engine(Slow(64, None), {}), limits=limits), limits) as address:
        answers = []

        def ask():
            try:
                with urllib.request.urlopen(f"{address}/v1/status", timeout=30) as answer:
                    answers.append(answer.status)
            except urllib.error.HTTPError as error:
                answers.append(error.code)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 15
        while answers.count(503) < 4 and time.monotonic() < end:
            time.sleep(0.05)
        held.set()
        for thread in threads:
            thread.join()
    assert sorted(answers) == [200, 200, 503, 503, 503, 503]


@pytest.mark.parametrize("host, own", [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True),
                                       ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("example.org", False), ("", False)])
def test_what_an_interface_of_this_machine_alone_is(host, own):
    assert is_loopback(host) == own


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder with an index that knows its encoder."""
    return index_of(tmp_path_factory.mktemp("served"))


def index_of(place, *ids):
    encoder = random_encoder()
    encoder.save(place / "encoder")
    with contextlib.closing(open_store(f"folder:{place / 'index'}", create_for=encoder)) as store:
        store.note("encoder", str(place / "encoder"))
        store.add(ids, np.zeros((len(ids), encoder.bits), bool))
    return f"folder:{place / 'index'}"


@pytest.mark.parametrize("words, told", [
    (["--host", "0.0.0.0"], "give a token too"), (["--host", "0.0.0.0", "--token", "short"], "too weak"),
    (["--token", "with a space in the middle"], "too weak"), (["--port", "70000"], "no port"),
    (["--port", "x"], "no whole number"),
    (["--host", "no.such.name.invalid", "--token", 20 * "x"], "no name of this machine"), (["--browser", "x"], "two folders"),
    (["--browser", "x", "--browser-runtime", "y"], "encoder_any_size.onnx"), (["--encoder", "nothing"], "no encoder's folder"),
    (["--max-mib", "0"], "too small"), (["--index", "nothing.brcd"], "no store|no such")])
def test_a_command_line_that_cannot_be_is_told_of(index, words, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jax_brcd.search.session.prepare", lambda: None)
    monkeypatch.setattr("jax_brcd.search.service.engine.Engine.warm", lambda self: None)
    with pytest.raises(ValueError, match=told):
        main(["--index", index, "--port", "0", *words])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def asking(index, monkeypatch):
    """A function from what is asked of the app and the words of a command to the answer, which stands in place of serving."""
    monkeypatch.setattr("jax_brcd.search.session.prepare", lambda: None)
    monkeypatch.setattr("jax_brcd.search.service.engine.Engine.warm", lambda self: None)

    def ask(question, *words):
        answers = []
        monkeypatch.setattr("jax_brcd.search.service.protocol.run", lambda app, listening, limits: answers.append(
            question(TestClient(app, base_url="http://127.0.0.1"))))
        main(["--index", index, "--port", "0", *words])
        return answers[0]

    return ask


def test_the_token_of_the_environment_is_asked_for(asking, monkeypatch):
    token = 20 * "t"
    monkeypatch.setenv("JAX_BRCD_TOKEN", token)

    def statuses(client):
        return [client.get("/v1/status", headers=headers).status_code for headers in ({}, {"authorization": f"Bearer {token}"})]

    assert asking(statuses) == [401, 200]
    monkeypatch.delenv("JAX_BRCD_TOKEN")
    assert asking(statuses) == [200, 200] and asking(statuses, "--token", 20 * "u") == [401, 401]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_the_address_that_the_command_prints_is_answered(asking, capsys, host):
    def status(client):
        address = capsys.readouterr().out.split(" at ")[1].split()[0]
        assert address.startswith(f"http://{host}:")
        return client.get(f"{address}v1/status").status_code

    assert asking(status, "--host", host) == 200


def test_the_limits_of_the_command_are_the_services(asking):
    def statuses(client):
        return [client.post(f"/v1/search/codes?k={k}", content=body).status_code for k, body in (
            (3, bytes(3)), (4, bytes(3)))] + [client.get("/v1/status").json()["limits"]]

    assert asking(statuses, "--max-hits", "3", "--max-mib", "2", "--max-megapixels", "0.5") == [
        200, 400, {"bytes": 2 * 2**20, "pixels": 500_000, "hits": 3}]


def test_the_export_for_the_browser_is_the_services(asking, tmp_path):
    for name in (MODEL, *RUNTIME):
        (tmp_path / name).write_text(name)
    (tmp_path / "config.json").write_text(json.dumps({"encoder": {"bits": 20, "space": "teacher-1"}}))

    def model(client):
        return client.get("/v1/status").json()["browser"], client.get("/v1/encoder.onnx").text

    told = asking(model, "--browser", str(tmp_path), "--browser-runtime", str(tmp_path))
    assert told == ({"model": "/v1/encoder.onnx", "bytes": len(MODEL)}, MODEL)


def test_the_command_serves_until_it_is_interrupted(index, tmp_path):
    words = [sys.executable, "-m", "jax_brcd.serve", "--index", index, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                          env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}) as started:
        line = started.stdout.readline()
        assert "0 images of" in line, started.stderr.read()
        address = line.split(" at ")[1].split()[0]
        with urllib.request.urlopen(f"{address}v1/status", timeout=20) as answer:
            assert json.load(answer)["modes"]["symmetric"]["backbone"] == "resnet8"
        taken = subprocess.run([*words[:-1], address.rstrip("/").rpartition(":")[2]], capture_output=True, text=True,
                               check=False, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)})
        assert taken.returncode == 2 and "--port" in taken.stderr and taken.stderr.count("\n") == 1
        started.send_signal(signal.SIGINT)
        assert started.wait(30) == 0 and started.stdout.read() == "ended\n" and started.stderr.read() == ""


STALLED = """
import runpy, threading
from jax_brcd.search.service import app

def stalls(attributes):
    print("stalled", flush=True)
    threading.Event().wait()

app.open_original = stalls
runpy.run_module("jax_brcd.serve", run_name="__main__")
"""


def test_the_command_ends_though_a_disk_stalls(tmp_path):
    words = [sys.executable, "-c", STALLED, "--index", index_of(tmp_path, "a"), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                          env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}) as started:
        try:
            port = int(started.stdout.readline().split(" at ")[1].split()[0].rstrip("/").rpartition(":")[2])
            said(port, "GET /v1/images/a?original=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", wait=False)
            assert started.stdout.readline() == "stalled\n"
            started.send_signal(signal.SIGINT)
            assert started.communicate(timeout=120)[0] == "ended\n" and started.returncode == 0
        finally:
            started.kill()
