"""The routes: each reads a request, asks the engine, and answers in JSON; see openapi.py for what is promised."""

import asyncio
import contextlib
import os
import pathlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import numpy as np
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

import jax_brcd
from jax_brcd.retrieval import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.workers import cores
from jax_brcd.search.service import READERS
from jax_brcd.search.service import metrics as counted
from jax_brcd.search.service.budget import Budget
from jax_brcd.search.service.engine import Engine, Found, Query, pack
from jax_brcd.search.service.errors import Refused
from jax_brcd.search.service.files import TYPES, BrowserFiles, page_files
from jax_brcd.search.service.gate import Gate
from jax_brcd.search.service.limits import Limits
from jax_brcd.search.service.openapi import document
from jax_brcd.search.service.originals import kept_thumbnail, make_thumbnail, open_original
from jax_brcd.search.service.parameters import Parameters
from jax_brcd.search.service.uploads import decode, image_of, pixels_of, read_body
from jax_brcd.search.stores.spelling import as_blob, as_id, as_text

PIECE = 2**16  # bytes of an original that are sent at once
BODIES = 16  # uploads of the largest size that may lie in memory
KEPT = {"cache-control": "private, max-age=600"}
CHANGING = {"cache-control": "no-store"}
OPEN = re.compile(r"/|/healthz|/page/.*|/runtime/.*")  # what needs no token: it says nothing of the index


class AsciiJSON(JSONResponse):
    """JSON that holds any text: names of files need not be UTF-8, and what is none of it is written as an escape."""

    def render(self, content: Any) -> bytes:
        """See Starlette's JSONResponse, which writes UTF-8."""
        return as_text(content).encode()


class Held(StreamingResponse):
    """A stream that lets go of what it holds when it has ended, however it does."""

    def __init__(self, held: contextlib.ExitStack, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Starlette's StreamingResponse."""
        with self._held:
            await super().__call__(scope, receive, send)


class Service:
    """What the routes share."""

    def __init__(self, engine: Engine, limits: Limits, browser: BrowserFiles | None):
        self.engine, self.limits, self.browser = engine, limits, browser
        self.metrics, self.began = counted.Metrics(), time.time()
        self._decoding, self._reading = (ThreadPoolExecutor(cores(), thread_name_prefix=name) for name in ("decode", READERS))
        # Of all decoded images together as many pixels as the largest may have: encoding one takes some 16 bytes a pixel
        self._bodies, self._images = Budget(BODIES * limits.upload_bytes), Budget(limits.pixels)
        # Of the requests that are worked on so many may wait for files of the index, whose disk may stall
        self._readers = Budget(max(1, limits.at_once // 2))
        self._looking: asyncio.Future | None = None  # whether the index answers
        self._page = {name: (path.read_bytes(), TYPES[path.suffix]) for name, path in page_files().items()}

    def close(self) -> None:
        """Ends the threads, but for the engine's and those that a disk keeps waiting."""
        self._decoding.shutdown()
        self._reading.shutdown(wait=False, cancel_futures=True)

    async def search(self, request: Request) -> Response:
        """POST /v1/search."""
        asked = Parameters.of(request.query_params, ("k", "radius", "soft", "mode"), self.engine, self.limits)
        if asked.mode is None:
            raise Refused(409, "the index does not know its encoder, so only codes are searched for; start the service with "
                               "`encoder`")
        async with read_body(request, self.limits.upload_bytes, self.limits.body_seconds, self._bodies) as body:
            logits, seconds = await self._encoded(await image_of(request, body), asked.mode)
        packed, began = pack(logits), time.perf_counter()
        found = await self._found(Query(packed, logits if asked.soft else None, asked.k))
        return self._answer(packed, found, asked, **seconds, search=time.perf_counter() - began)

    async def search_codes(self, request: Request) -> Response:
        """POST /v1/search/codes."""
        asked = Parameters.of(request.query_params, ("k", "radius", "space"), self.engine, self.limits)
        engine, began = self.engine, time.perf_counter()
        async with read_body(request, engine.code_bytes, self.limits.body_seconds, self._bodies) as body:
            if len(body) != engine.code_bytes:
                raise Refused(400, f"a code of {engine.bits} bits is {engine.code_bytes} bytes, not {len(body)}; send these")
        try:
            packed = PackedCodes(np.frombuffer(body, np.uint8)[None], engine.bits).packed[0]
        except InputError as error:
            raise Refused(400, str(error)) from None
        found = await self._found(Query(packed, None, asked.k))
        return self._answer(packed, found, asked, search=time.perf_counter() - began)

    async def image(self, request: Request) -> Response:
        """GET /v1/images/{id}."""
        asked, id = Parameters.of(request.query_params, ("original",), self.engine, self.limits), _id_of(request)
        (item,) = await self._stored(lambda store: store.get([id])) if id else (None,)
        if item is None:
            raise Refused(404, "the index has no such item")
        if asked.original:
            return await self._original(item.attributes)
        kept = await self._stored(lambda store: store.thumbnail(id))
        picture = kept_thumbnail(kept) if kept else None
        if picture is None:
            with self._reader():
                picture = await self._read(make_thumbnail, item.attributes, self.limits.pixels)
        return Response(picture.content, media_type=picture.kind, headers=KEPT)

    async def status(self, request: Request) -> Response:
        """GET /v1/status."""
        engine, limits = self.engine, self.limits
        browser = None if self.browser is None else {"model": "/v1/encoder.onnx", "bytes": self.browser.model.stat().st_size}
        return JSONResponse({
            "version": jax_brcd.__version__, "items": await self._stored(len), "bits": engine.bits, "bytes": engine.code_bytes,
            "space": engine.space, "modes": {mode: _described(encoder) for mode, encoder in engine.encoders.items()},
            "browser": browser, "limits": {"bytes": limits.upload_bytes, "pixels": limits.pixels, "hits": limits.max_hits},
            "uptime_seconds": round(time.time() - self.began, 1)}, headers=CHANGING)

    async def health(self, request: Request) -> Response:
        """GET /healthz: whether the index answers."""
        # Anybody may ask this, so it looks for one id, there or not, and counts no items; once for all who ask meanwhile
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._stored(lambda store: store.get(["healthz"])))
        await asyncio.shield(self._looking)  # as one who leaves ends it for no other
        return JSONResponse({"status": "ok"}, headers=CHANGING)

    async def measured(self, request: Request) -> Response:
        """GET /metrics."""
        batchers = {"search": self.engine.searches, **{f"encode_{mode}": each for mode, each in self.engine.encodings.items()}}
        counters = {f"{name}_{what}_total": (f"{what} of {name.replace('_', ' ')}", getattr(each, what))
                    for name, each in batchers.items() for what in ("batches", "items")}
        gauges = {"index_items": ("items of the index", await self._stored(len))}
        return PlainTextResponse(self.metrics.text(gauges, counters), media_type=counted.FORMAT, headers=CHANGING)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(document(self.engine, self.limits), headers=CHANGING)

    async def page(self, request: Request) -> Response:
        """The page and its files, by name."""
        name = request.path_params.get("name", "index.html")
        if name not in self._page:
            raise Refused(404, "the page has no such file")
        content, kind = self._page[name]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    async def runtime(self, request: Request) -> Response:
        """What the page runs the encoder by, where the service was told of it."""
        path = {} if self.browser is None else self.browser.runtime
        return _file(path.get(request.path_params["name"]))

    async def model(self, request: Request) -> Response:
        """GET /v1/encoder.onnx."""
        return _file(None if self.browser is None else self.browser.model)

    async def _encoded(self, image: bytes, mode: str) -> tuple[np.ndarray, dict[str, float]]:
        """The logits of an uploaded image, and the seconds that they took; its pixels are gone as this returns."""
        began = time.perf_counter()
        async with self._images.room(await self._decoded(pixels_of, image, self.limits.pixels)):
            pixels = await self._decoded(decode, image, self.limits.pixels)
            decoded = time.perf_counter()
            try:
                logits = await self.engine.encode(pixels, mode)
            except InputError as error:
                raise Refused(400, str(error)) from None
            return logits, {"decode": decoded - began, "encode": time.perf_counter() - decoded}

    async def _found(self, query: Query) -> list[Found]:
        return await _told_of_index(self.engine.search(query))

    async def _stored(self, call: Any) -> Any:
        return await _told_of_index(self.engine.ask(call))

    async def _decoded(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoding, work, *arguments)

    async def _read(self, work: Any, *arguments: Any, drop: Callable[[Any], None] = lambda late: None) -> Any:
        """What is done with a file of the index, on threads of its own: a disk that stalls keeps no upload waiting. `drop` is
        given what comes too late. Raises Refused where nothing comes in time, turns of those before included."""
        reading = self._reading.submit(work, *arguments)
        try:
            async with asyncio.timeout(self.limits.quiet_seconds):
                return await asyncio.wrap_future(reading)
        except TimeoutError:
            reading.add_done_callback(lambda late: late.cancelled() or late.exception() or drop(late.result()))
            raise Refused(503, "this file was not read in time; send it again later") from None

    @contextlib.contextmanager
    def _reader(self) -> Iterator[None]:
        """A place among those that wait for files. Raises Refused where all are taken."""
        if not self._readers.draw(1):
            raise Refused(503, "too many requests wait for files of the index; send it again later")
        try:
            yield
        finally:
            self._readers.give_back(1)

    async def _original(self, attributes: dict[str, Any]) -> Response:
        with contextlib.ExitStack() as held:
            held.enter_context(self._reader())
            file, kind = await self._read(open_original, attributes, drop=lambda late: late[0].close())
            work = self._reading.submit(os.fstat, file.fileno())
            # By the thread that is at work on it, as closing waits for a read that its client waits for no more
            held.callback(lambda: work.add_done_callback(lambda _: file.close()))
            size = (await asyncio.wrap_future(work)).st_size

            async def pieces() -> AsyncIterator[bytes]:
                nonlocal work
                while piece := await asyncio.wrap_future(work := self._reading.submit(file.read, PIECE)):
                    yield piece

            return Held(held.pop_all(), pieces(), media_type=kind, headers={**KEPT, "content-length": str(size)})

    def _answer(self, packed: np.ndarray, found: list[Found], asked: Parameters, **seconds: float) -> Response:
        near = [each for each in found if asked.radius is None or each.distance <= asked.radius]
        return AsciiJSON({
            "bits": self.engine.bits, "space": self.engine.space, "code": packed.tobytes().hex(), "k": asked.k,
            "radius": asked.radius, "soft": asked.soft, "mode": asked.mode,
            "milliseconds": {name: round(1000 * value, 2) for name, value in seconds.items()},
            "hits": [{"id": each.id, "distance": each.distance, "soft": each.soft, "code": each.packed.tobytes().hex(),
                      "image": f"/v1/images/{quote(as_blob(each.id), safe='')}", "attributes": each.attributes} for each in near]},
            headers=CHANGING)


def create_app(
    engine: Engine, *, limits: Limits = Limits(), token: str | None = None, browser: BrowserFiles | None = None
) -> Gate:
    """The service of an engine as an ASGI application. The engine stays open when it ends."""
    service = Service(engine, limits, browser)

    @contextlib.asynccontextmanager
    async def lifespan(app: Router) -> AsyncIterator[None]:
        yield
        service.close()

    routes = [Route("/v1/search", service.search, methods=["POST"]),
              Route("/v1/search/codes", service.search_codes, methods=["POST"]),
              Route("/v1/images/{id:path}", service.image), Route("/v1/encoder.onnx", service.model),
              Route("/v1/status", service.status),
              Route("/healthz", service.health), Route("/metrics", service.measured), Route("/openapi.json", service.openapi),
              Route("/", service.page), Route("/page/{name}", service.page), Route("/runtime/{name}", service.runtime)]
    # A redirect to a path with or without a slash would be made of the Host header, which is a client's
    return Gate(Router(routes, redirect_slashes=False, lifespan=lifespan), service.metrics, limits, token, OPEN)


async def _told_of_index(answer: Awaitable[Any]) -> Any:
    """What the index answers. Raises Refused where it does not."""
    try:
        return await answer
    except (InputError, OSError) as error:
        raise Refused(503, f"the index does not answer: {error}") from None


def _id_of(request: Request) -> str:
    """The id of a path, which need not be UTF-8; nothing where it is none that a store has."""
    try:
        return as_id(unquote_to_bytes(request.scope["raw_path"]).removeprefix(b"/v1/images/"))
    except UnicodeDecodeError:
        return ""


def _file(path: pathlib.Path | None) -> Response:
    """One of the files that the page encodes by."""
    if path is None:
        raise Refused(404, "no such file; the page encodes by itself where the service was started with `browser`")
    return FileResponse(path, media_type=TYPES[path.suffix], headers=KEPT)


def _described(encoder: Any) -> dict[str, Any]:
    return {"backbone": encoder.backbone, "role": encoder.role, "size": encoder.preprocessing.size}
