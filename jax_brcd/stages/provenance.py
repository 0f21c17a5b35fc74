"""What an encoder tells of the data set of the run that made it, for whoever evaluates it or quantises it later."""

import os
from collections.abc import Mapping
from typing import Any

from jax_brcd.runtime.files import as_path

# Taken over from the encoder's run; places where they are on this machine too
PROTOCOL = ("dataset", "split", "train_images", "label_format", "k", "max_bad_images", "seed")
PLACES = ("data_dir", "cache_dir", "embeddings")
FURTHER = ("decode_workers", "compile_cache")  # what is told anew each time


def known_settings(provenance: Mapping[str, Any], dataset: str | None, split: str | None = None) -> dict[str, Any]:
    """The settings of the data set that an encoder's run had, as far as it says; none where another `dataset` is told, and no
    choice of training images where another `split` is, which may have none to choose."""
    known = provenance.get("settings")
    if not isinstance(known, dict) or dataset not in (None, known.get("dataset")):
        return {}
    places = {name: known[name] for name in PLACES if isinstance(known.get(name), str) and os.path.isdir(as_path(known[name]))}
    other = {"train_images"} if split not in (None, known.get("split")) else set()
    return {name: known[name] for name in PROTOCOL if name in known and name not in other} | places
