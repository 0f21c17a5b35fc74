"""What every request passes: who may ask, how many at a time, what every answer says of itself, and that all is counted."""

import contextlib
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jax_brcd.runtime.errors import InputError
from jax_brcd.search.service.errors import Refused, error_line
from jax_brcd.search.service.limits import Limits
from jax_brcd.search.service.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("jax_brcd.serve")
TOKEN_LENGTH = 16  # characters, that it cannot be guessed
# The page asks for nothing of any other host, runs nothing but its own files, and is shown in no other page. WebAssembly, by
# which it may encode, needs a word of its own, and threads need the two policies of origin
POLICY = ("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
          "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
HEADERS = [(name.encode(), value.encode()) for name, value in (
    ("content-security-policy", POLICY), ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-embedder-policy", "require-corp"), ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"), ("x-content-type-options", "nosniff"))]
ROUTING = {404: "there is nothing here; /openapi.json lists what there is",
           405: "not by this method; /openapi.json says by which"}
JSON = (b"content-type", b"application/json")


def check_token(token: str) -> None:
    """Raises InputError for a token that can be guessed or that no header carries."""
    if len(token) < TOKEN_LENGTH or not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError(f"too weak or not plain; give {TOKEN_LENGTH} or more letters and digits, such as those of "
                         "`python -c 'import secrets; print(secrets.token_urlsafe())'`", field="token")


class Gate:
    """An ASGI application around another.

    Without a token only requests that name this machine are let in: a page of another host, whose name leads here, would else
    be able to read the answers. With a token all that is not open needs `Authorization: Bearer TOKEN`. Only what is let in and
    is not open takes a turn: what is open must cost next to nothing, as no more than connections bound it.
    """

    def __init__(self, app: "ASGIApp", metrics: Metrics, limits: Limits, token: str | None, open_paths: re.Pattern):
        self._app, self._metrics, self._limits = app, metrics, limits
        self._token = None if token is None else f"Bearer {token}".encode()
        self._open = open_paths
        self._at_once = 0  # requests that are worked on

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, is_open = time.perf_counter(), 0, self._open.fullmatch(scope["path"]) is not None

        async def told(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        self._metrics.in_flight += 1
        try:
            self._check(scope, is_open)
            scope["app"] = self  # by which Starlette's router leaves its errors to this one
            with contextlib.nullcontext() if is_open else self._turn():
                await self._app(scope, receive, told)
        except Refused as error:
            await _answer(told, error.status, error.problem)
        except HTTPException as error:
            await _answer(told, error.status_code, ROUTING.get(error.status_code, str(error.detail)))
        except ClientDisconnect:  # nobody reads this, but it is counted
            await _answer(told, 400, "the body broke off; send the request again")
        except Exception:
            LOG.exception("a request failed")
            if status:  # the answer had begun, and can only break off
                raise
            await _answer(told, 500, "an error of the service; its log says more")
        finally:
            self._metrics.in_flight -= 1
            self._metrics.record(getattr(scope.get("route"), "path", "other"), status, time.perf_counter() - began)

    def _check(self, scope: "Scope", is_open: bool) -> None:
        """Raises Refused for a request that is not let in."""
        headers = dict(scope["headers"])
        if self._token is None and not is_loopback(_host(headers.get(b"host", b""))):
            raise Refused(421, "a service without a token answers to localhost and to addresses such as 127.0.0.1 alone; start "
                               "it with `token`")
        if self._token is not None and not is_open and not self._known(headers):
            raise Refused(401, "this needs the token the service was started with, as the header Authorization: Bearer TOKEN")

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Counts a request while it is worked on. Raises Refused where as many are as may be."""
        if self._at_once >= self._limits.at_once:
            raise Refused(503, "too many requests at a time; send it again later")
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1

    def _known(self, headers: dict[bytes, bytes]) -> bool:
        return hmac.compare_digest(headers.get(b"authorization", b""), self._token)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an interface of that name: an address, or localhost. What other names lead to is for
    others to say."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(header: bytes) -> str:
    """The name in a Host header, without its port and brackets."""
    name = header.decode("latin-1").lower()
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]


async def _answer(send: "Send", status: int, problem: str) -> None:
    body = error_line(status, problem)
    extra = {401: [(b"www-authenticate", b"Bearer")], 503: [(b"retry-after", b"1")]}.get(status, [])
    await send({"type": "http.response.start", "status": status,
                "headers": [JSON, (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store"), *extra]})
    await send({"type": "http.response.body", "body": body})
