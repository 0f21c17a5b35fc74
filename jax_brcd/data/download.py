"""Fetching one file: checked by its digest, under its own name only once it is whole."""

import hashlib
import http.client
import os
import pathlib
import urllib.error
import urllib.request

from jax_brcd.runtime import interruption
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, atomic_path
from jax_brcd.runtime.progress import Progress, silent

CHUNK_BYTES = 2**20
TIMEOUT_SECONDS = 30


def download(
    url: str, path: os.PathLike | str, *, algorithm: str, checksum: str, progress: Progress = silent,
) -> pathlib.Path:
    """Fetches `url` to `path`, which appears only when its `algorithm` digest starts with `checksum`.

    Args:
        progress: told of the bytes that came, where the server says how many there will be.

    Raises:
        InputError: offline, or when what came is not the file; the line says which file to put where.
    """
    path = as_path(path)
    by_hand = f"put the file from {url} at {path} by hand"
    with atomic_path(path) as temporary:
        try:
            found = _fetch(url, temporary, hashlib.new(algorithm), progress)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise InputError(f"cannot download {url} ({getattr(error, 'reason', error)}); {by_hand}") from None
        if not found.startswith(checksum):
            raise InputError(f"{url} has {algorithm} {found[: len(checksum)]} instead of {checksum}; try again, or {by_hand}")
    return path


def _fetch(url: str, path: pathlib.Path, digest, progress: Progress) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, open(path, "wb") as file:
        size, done = int(response.headers.get("Content-Length") or 0), 0
        while chunk := response.read(CHUNK_BYTES):
            interruption.check()
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            if size:
                progress(f"download {url.rsplit('/', 1)[-1]}", min(done, size), size)
    return digest.hexdigest()
