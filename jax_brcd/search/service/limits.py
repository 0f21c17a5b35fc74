"""What the service takes of a client, so that none can take its memory or its time from the others."""

import dataclasses

from jax_brcd.settings.options import option

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of all at a time. Those with a help are options of the command."""

    max_mib: int = option(16, "largest upload, in MiB", low=1, high=1024)
    max_megapixels: float = option(50.0, "largest image of an upload, in millions of pixels", above=0, high=178)  # Pillow's own
    max_hits: int = option(1000, "most hits of one search", low=1, high=100_000)
    body_seconds: float = 20.0  # from a request's head to the end of its body
    head_seconds: float = 10.0  # from a connection, or the answer before, to the end of a request's head
    quiet_seconds: float = 30.0  # in which a client that is waited for must take or give something
    at_once: int = 128  # requests that are worked on, but for those that need no token; more are told to come again
    connections: int = 512

    @property
    def upload_bytes(self) -> int:
        """Of the body of a request."""
        return self.max_mib * MIB

    @property
    def pixels(self) -> int:
        """Of an image."""
        return round(self.max_megapixels * 1e6)
