"""The service on a socket, by uvicorn, with what uvicorn leaves to a proxy: clients that stall are let go, their number has an
end, and what is no HTTP is told so in the form of all other errors."""

import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from jax_brcd.runtime.errors import InputError
from jax_brcd.search.service.errors import error_line
from jax_brcd.search.service.limits import Limits

LOOK = 1.0  # seconds between two looks at a connection
LONGEST_HEAD = 2**14  # bytes
CLOSING_SECONDS = 5  # for requests that are at work when the service ends


def guarded(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol under these limits."""

    class Guarded(H11Protocol):
        """A connection that ends by itself where its client does nothing."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._headless, self._quiet, self._seen = self.loop.time(), self.loop.time(), None
            self._received = 0
            self._look_later = self.loop.call_later(LOOK, self._look)
            if len(self.connections) > limits.connections:
                self._end(503, "too many connections; come again later")

        def connection_lost(self, exc: Exception | None) -> None:
            self._look_later.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._received += len(data)
            super().data_received(data)

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP, and heads that are too long."""
            self._end(400, "no request that HTTP knows, or one with a head that is too long")

        def _look(self) -> None:
            """Lets a client go that has not told what it wants in time, or that neither gives nor takes what it is to."""
            now = self.loop.time()
            idle = self.cycle is None or self.cycle.response_complete
            if not idle:
                self._headless = now
            unsent = self.transport.get_write_buffer_size()
            working = not idle and self.conn.their_state is not h11.SEND_BODY and not unsent
            if working or self._seen != (self._received, unsent):
                self._quiet, self._seen = now, (self._received, unsent)
            if now - self._quiet > limits.quiet_seconds:
                self.transport.abort()
            elif now - self._headless > limits.head_seconds:
                self._end(408, f"no whole head of a request within {limits.head_seconds:g} s; send it at once")
            else:
                self._look_later = self.loop.call_later(LOOK, self._look)

        def _end(self, status: int, problem: str) -> None:
            """Tells an error where nothing has been told yet, and closes."""
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
                body = error_line(status, problem)
                headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                           (b"connection", b"close")]
                for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event))
            self.transport.close()

    return Guarded


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for connections. Raises InputError where the place is taken or none of this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):
        raise InputError("no name of this machine; give 127.0.0.1, or an address of one of its interfaces", field="host",
                         value=host) from None
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise InputError(f"cannot be listened at on {host} ({error.strerror}); give another one, or 0 for one that is free",
                         field="port", value=port) from None


def run(app: Any, listening: socket.socket, limits: Limits, *, started: Callable[[uvicorn.Server], None] | None = None) -> None:
    """Serves until a signal ends it, or `should_exit` of the server that `started` is given is set."""
    config = uvicorn.Config(app, http=guarded(limits), ws="none", lifespan="on", proxy_headers=False, server_header=False,
                            access_log=False, log_level="error", h11_max_incomplete_event_size=LONGEST_HEAD,
                            timeout_graceful_shutdown=CLOSING_SECONDS)
    server = uvicorn.Server(config)
    if started is not None:
        started(server)
    server.run(sockets=[listening])
