"""Images of the same pixels under several names: a photograph that was copied, linked or saved twice, in one part or in two."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jax_brcd.data.scanning import examples

QUERIES, SEARCHED = ("validation", "test"), "database"


class Named(NamedTuple):
    """The images of a part that could be read: their names, labels and the digests of their pixels."""

    names: list[str]
    labels: UInt8[np.ndarray, "images classes"]
    digests: UInt8[np.ndarray, "images 32"]


def same_pixels(parts: Mapping[str, Named]) -> Iterator[str]:
    """What a reader of the results must know of images whose pixels are those of an image of another name: one line, if any.

    An image that stands in several parts under one name is one image.
    """
    labels = {name: row for part in parts.values() for name, row in zip(part.names, part.labels, strict=True)}
    numbers = dict(zip(labels, _numbers(parts, labels), strict=True))  # images of one number have the same pixels
    alike: dict[int, list[str]] = {}
    for name in sorted(labels):
        alike.setdefault(numbers[name], []).append(name)
    alike = {number: names for number, names in alike.items() if len(names) > 1}
    if not alike:
        return
    found = [f"Images of the same pixels under several names: {sum(map(len, alike.values())):,} "
             f"({examples([f'{one} = {other}' for one, other, *_ in alike.values()])})"]
    other = sum(len(names) for names in alike.values() if any((labels[name] != labels[names[0]]).any() for name in names))
    if other:
        found.append(f"{other:,} of them have labels that differ")
    searched = {numbers[name] for name in parts[SEARCHED].names if numbers[name] in alike}
    hidden = set(parts[SEARCHED].names)
    queries = sum(numbers[name] in searched and name not in hidden for part in QUERIES for name in parts[part].names)
    if queries:
        found.append(f"{queries:,} are queries that so find themselves in the database")
    yield f"{'; '.join(found)}."


def _numbers(parts: Mapping[str, Named], names: Mapping[str, np.ndarray]) -> Int[np.ndarray, " images"]:
    """A number for the pixels of each image."""
    digests = {name: row for part in parts.values() for name, row in zip(part.names, part.digests, strict=True)}
    stacked = np.stack([digests[name] for name in names])
    return np.unique(stacked.view(np.uint64)[:, 0], return_inverse=True)[1].reshape(-1)
