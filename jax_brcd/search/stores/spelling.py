"""How ids and attributes stand in the databases of stores."""

import json
from typing import Any

JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)  # made once: making one takes longer than writing attributes


def as_blob(id: str) -> bytes:
    """An id as it stands in the database: in the order of their bytes ids are in the order of Python's text."""
    return id.encode("utf-8", "surrogatepass")


def as_id(blob: bytes) -> str:
    """The id again."""
    return blob.decode("utf-8", "surrogatepass")


def as_text(value: Any) -> str:
    """JSON, always written alike."""
    return JSON.encode(value)
