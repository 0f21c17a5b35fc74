"""Exported encoders in a browser: onnxruntime-web in a page of headless Chromium that stays open, with a clock of its own.

A photo is decoded and encoded by the worker of the service's own page.
"""

import base64
import contextlib
import http.server
import pathlib
import shutil
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import machine
from jax_brcd.export.onnx import ANY_SIZE, SQUARES
from jax_brcd.search.service.files import HOW, PAGE, RUNTIME, TYPES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCRIPT = pathlib.Path(__file__).with_suffix(".js")
DOCUMENT = b"<!doctype html><meta charset=utf-8><title>encoder</title>"
PROGRAMS = ("chromium", "chromium-browser")
# Which a browser asks for before it lets a page have threads
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
LONGEST = 300_000  # milliseconds of going to a page


def runtime_files(runtime: pathlib.Path) -> dict[str, pathlib.Path]:
    """onnxruntime-web's files by name, in its package's folder or in `dist` below; only those that are there."""
    return {name: path for name in RUNTIME for path in (runtime / "dist" / name, runtime / name) if path.is_file()}


def why_not(runtime: pathlib.Path | None) -> str | None:
    """Why nothing can be measured in a browser here; None where it can. `runtime`: the folder of onnxruntime-web's files."""
    if not machine.installed("playwright"):
        return "playwright is not installed"
    if not any(map(shutil.which, PROGRAMS)):
        return "there is no program chromium"
    if runtime is None:
        return f"needs --browser-runtime, the folder of onnxruntime-web's files: {HOW}"
    absent = set(RUNTIME) - set(runtime_files(runtime))
    return f"{runtime} does not hold {', '.join(sorted(absent))}" if absent else None


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, PROGRAMS)))
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def served(files: Mapping[str, bytes | pathlib.Path]) -> Iterator[str]:
    """The address of a server of this machine that gives these files by their paths."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """A file that is named, with its type; else that it is not there."""
            path = self.path.partition("?")[0]
            found = files.get(path)
            if found is None:
                self.send_error(404)
                return
            content = found if isinstance(found, bytes) else found.read_bytes()
            self.send_response(200)
            headers = {"Content-Type": TYPES.get(pathlib.PurePath(path).suffix, "text/html"), **ISOLATED}
            for name, value in {**headers, "Content-Length": len(content)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class EncoderPage:
    """An exported encoder in a page.

    Attributes:
        seconds: that the latest query took in the page, by its clock.
    """

    def __init__(self, page: "Page", size: int):
        self._page, self._size, self.seconds = page, size, 0.0

    def codes(self, squares: np.ndarray) -> np.ndarray:
        """Packed codes (n, bytes) of uint8 images (n, size, size, 3); the first of the first call is what `encode` takes."""
        text = self._call("codes", base64.b64encode(np.ascontiguousarray(squares)).decode(), self._size)
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(len(squares), -1)

    def encode(self) -> float:
        """Seconds of encoding a square."""
        return self._call("encode") / 1000

    def query(self) -> np.ndarray:
        """The packed code (1, bytes) of the photo, from its file."""
        code, milliseconds = self._call("query")
        self.seconds = milliseconds / 1000
        return np.array([code], np.uint8)

    def threads(self) -> int:
        """Threads of an encoding alone."""
        return self._call("threads")

    def _call(self, name: str, *arguments: object) -> Any:
        return self._page.evaluate(f"(given) => import('/browser.js').then((script) => script.{name}(...given))", arguments)


@contextlib.contextmanager
def encoder_page(
    browser: "Browser", export: pathlib.Path, runtime: pathlib.Path, photo: bytes, size: int, threads: int
) -> Iterator[EncoderPage]:
    """A page with the encoder of an export's folder.

    Args:
        runtime: the folder of onnxruntime-web's files. photo: a file of JPEG. size: of the squares that the encoder takes.
        threads: of an encoding alone; the service's worker takes one for each core, four at most.
    """
    files = {"/": DOCUMENT, "/browser.js": SCRIPT, "/photo.jpg": photo, "/worker.js": PAGE / "worker.js",
             "/encoder.onnx": export / SQUARES, "/v1/encoder.onnx": export / ANY_SIZE,
             **{f"/runtime/{name}": path for name, path in runtime_files(runtime).items()}}
    with served(files) as address, contextlib.closing(browser.new_page()) as page:
        page.set_default_timeout(LONGEST)
        page.goto(f"{address}/?threads={threads}")
        opened = EncoderPage(page, size)
        if opened.threads() != threads:
            raise RuntimeError(f"the page has {opened.threads()} threads, not {threads}")
        yield opened
