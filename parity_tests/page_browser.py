"""A real browser for the tests of the page: Debian's Chromium by Playwright; and a service that it looks at."""

import atexit
import contextlib
import functools
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time

import pytest

from jax_brcd.search.service.limits import Limits
from jax_brcd.search.service.protocol import listen, run


@contextlib.contextmanager
def serving(app, limits=Limits()):
    """The address of a service on a thread of this process."""
    listening, begun, servers = listen("127.0.0.1", 0), threading.Event(), []

    def started(server):
        servers.append(server)
        begun.set()

    thread = threading.Thread(target=run, args=(app, listening, limits), kwargs={"started": started})
    thread.start()
    begun.wait(30)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join(30)


@contextlib.contextmanager
def chromium():
    """A headless browser; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs the program chromium, as Debian's package of that name has it")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, what it complained of, and what it asked of whom."""

    def __init__(self, browser, address, path="/", **settings):
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request))
        self.address = address
        self.page.goto(address + path)
        self.wait("document.getElementById('about').textContent !== '…'")

    def wait(self, condition):
        """Until JavaScript finds it true. Playwright's own waiting evaluates text in the page, which its policy forbids."""
        end = time.monotonic() + 20
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"{condition}: not within 20 s; {self.complaints}"
            self.page.wait_for_timeout(30)

    def hits(self):
        """Ids of the results that are shown, and how many of their bits differ, once a search is over."""
        self.wait("document.querySelector('#hits:not(.waiting) .hit') !== null")
        return self.page.eval_on_selector_all(".hit:not([hidden])",
                                              "all => all.map(each => [each.dataset.id, +each.dataset.distance])")

    def outside(self):
        """The addresses of other hosts that were asked."""
        return [each.url for each in self.requests if not each.url.startswith((self.address, "blob:"))]

    def close(self):
        self.context.close()


@functools.cache
def browser_runtime():
    """The folder of onnxruntime-web's files: told by ONNXRUNTIME_WEB, or fetched by npm; skips where neither gives it."""
    told = os.environ.get("ONNXRUNTIME_WEB")
    if told:
        return pathlib.Path(told)
    if shutil.which("npm") is None:
        pytest.skip("needs onnxruntime-web's files in the folder ONNXRUNTIME_WEB, or npm to fetch them")
    place = pathlib.Path(tempfile.mkdtemp(prefix="onnxruntime-web-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    try:
        subprocess.run(["npm", "pack", "onnxruntime-web"], cwd=place, check=True, capture_output=True, timeout=120)
        (archive,) = place.glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(place, filter="data")
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        pytest.skip(f"npm cannot fetch onnxruntime-web here ({error})")
    return place / "package"
