"""BRCD in JAX: distil a ViT hashing teacher into a small student that searches almost as well.

What is named here is loaded when it is first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_brcd.encoder import HashEncoder, load
    from jax_brcd.methods import list_methods
    from jax_brcd.models import list_backbones
    from jax_brcd.retrieval import HammingIndex, PackedCodes
    from jax_brcd.search import open_store

__version__ = "0.1.0"

_ROOMS = {"load": "encoder", "HashEncoder": "encoder", "PackedCodes": "retrieval", "HammingIndex": "retrieval",
          "open_store": "search", "list_backbones": "models", "list_methods": "methods"}

__all__ = ["HammingIndex", "HashEncoder", "PackedCodes", "list_backbones", "list_methods", "load", "open_store"]


def __getattr__(name: str) -> Any:
    """Loads the room that a name of the package lies in (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
