"""Fetching one file: checked by its digest, under its own name only once it is whole."""

import hashlib
import http.client
import pathlib
import urllib.error
import urllib.request

from tqdm import tqdm

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import atomic_path

CHUNK_BYTES = 2**20
TIMEOUT_SECONDS = 30


def download(url: str, path: pathlib.Path, *, algorithm: str, checksum: str) -> pathlib.Path:
    """Fetches `url` to `path`, which appears only when its `algorithm` digest starts with `checksum`.

    Raises:
        InputError: offline, or when what came is not the file; the line says which file to put where.
    """
    by_hand = f"put the file from {url} at {path} by hand"
    with atomic_path(path) as temporary:
        try:
            found = _fetch(url, temporary, hashlib.new(algorithm))
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise InputError(f"cannot download {url} ({getattr(error, 'reason', error)}); {by_hand}") from None
        if not found.startswith(checksum):
            raise InputError(f"{url} has {algorithm} {found[: len(checksum)]} instead of {checksum}; try again, or {by_hand}")
    return path


def _fetch(url: str, path: pathlib.Path, digest) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, open(path, "wb") as file:
        size = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=size, desc=url.rsplit("/", 1)[-1], unit="B", unit_scale=True, dynamic_ncols=True) as bar:
            while chunk := response.read(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                bar.update(len(chunk))
    return digest.hexdigest()
