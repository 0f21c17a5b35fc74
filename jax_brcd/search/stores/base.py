"""What a store is: codes with ids and attributes that are added, deleted and searched; and the checks all stores share."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from jax_brcd.retrieval import PackedCodes, check_spaces
from jax_brcd.retrieval.packing import Codes, whole_number
from jax_brcd.retrieval.scores import Logits, RealMatrix, whole_logits
from jax_brcd.runtime.errors import InputError

FORMAT = "jax_brcd store 1"  # what a store that keeps its items says of itself

Attributes = Mapping[str, Any]


class Hit(NamedTuple):
    """An item that was found, how far it is from the query, and what is known of it.

    The distance is in bits, an int; of a soft query it is the sum of |logit| over the bits that differ, a float.
    """

    id: str
    distance: int | float
    attributes: dict[str, Any]


class Item(NamedTuple):
    """An item as it is stored; `packed` are the bytes of its code, as those of a row of PackedCodes."""

    id: str
    packed: UInt8[np.ndarray, "bytes"]
    attributes: dict[str, Any]


@runtime_checkable
class CodeKind(Protocol):
    """Anything that says what codes it gives or holds: an encoder, packed codes, a store."""

    bits: int
    space: str | None


@runtime_checkable
class Store(Protocol):
    """Items under ids, each a code and attributes. What is added or deleted is seen by the next search.

    Attributes are names with text, numbers, bools or None. `parity_tests/test_stores.py` is what every store must pass.

    Attributes:
        bits: the length of a code. space: the id of the code space, or None where it is not known.
    """

    bits: int
    space: str | None

    def add(
        self, ids: Sequence[str], codes: Codes, attributes: Sequence[Attributes] | None = None,
        thumbnails: Sequence[bytes | None] | None = None,
    ) -> None:
        """Adds items, all or none; an id that is there is replaced, code, attributes and thumbnail.

        Args:
            thumbnails: of each item the bytes of a small picture (JPEG or WebP), or None.

        Raises:
            InputError: for ids that are not distinct strings, counts that differ, codes of another length or space, attributes
                of other values, and thumbnails that are no bytes.
        """

    def delete(self, ids: Sequence[str]) -> None:
        """Deletes items, all or none; ids that are not there are passed over."""

    def search(
        self, query_codes: Codes | RealMatrix, k: SupportsIndex, where: Attributes | None = None, *, soft: bool = False
    ) -> list[list[Hit]]:
        """Of each query the k nearest items, nearest first, ties by id; fewer where fewer items match.

        Args:
            query_codes: codes, or with `soft` logits (n, bits), which are floats.
            where: attributes that an item must have with just these values.
            soft: rank by the dot product of logits and codes in {-1, +1}. The distance is then (sum |logit| - product) / 2.

        Raises:
            InputError: for k < 1, codes of another length or space, and logits that are not finite floats of that length.
        """

    def search_radius(self, query_codes: Codes, radius: SupportsIndex, where: Attributes | None = None) -> list[list[Hit]]:
        """Of each query all items at a distance of at most `radius` bits, nearest first, ties by id.

        Raises InputError for radius < 0, and as `search`.
        """

    def get(self, ids: Sequence[str]) -> list[Item | None]:
        """The items of these ids, None for one that is not there."""

    def items(self, where: Attributes | None = None) -> Iterator[Item]:
        """All items, or those that match, one after the other by id, as they are when it begins."""

    def thumbnail(self, id: str) -> bytes | None:
        """The small picture of an item; None where it has none or is not there."""

    def note(self, name: str, value: str) -> None:
        """Keeps a small fact about the index itself, such as the encoder it is filled by; a name that is there is replaced."""

    def noted(self, name: str) -> str | None:
        """The fact of that name, or None."""

    def __len__(self) -> int:
        """How many items there are."""

    def close(self) -> None:
        """Lets go of what the store holds open; nothing else may be asked of it then, and closing again does nothing."""


class Batch(NamedTuple):
    """Items that are fit to be added."""

    ids: list[str]
    codes: PackedCodes
    attributes: list[dict[str, Any]]
    thumbnails: list[bytes | None]


def checked_batch(
    store: CodeKind, ids: Sequence[str], codes: Codes, attributes: Sequence[Attributes] | None,
    thumbnails: Sequence[bytes | None] | None = None,
) -> Batch:
    """What is to be added to `store`, as copies. Raises InputError as `Store.add` says."""
    ids, codes = checked_ids(ids), checked_codes(store, codes)
    attributes = [{}] * len(ids) if attributes is None else list(attributes)
    thumbnails = [None] * len(ids) if thumbnails is None else list(thumbnails)
    for given, what in ((codes, "codes"), (attributes, "attributes"), (thumbnails, "thumbnails")):
        if len(given) != len(ids):
            raise InputError(f"{len(ids)} ids, but {len(given)} {what}; give one an id")
    for id, thumbnail in zip(ids, thumbnails, strict=True):
        if not isinstance(thumbnail, bytes | None):
            raise InputError(f"the thumbnail of item '{id}' is of type {type(thumbnail).__name__}; give bytes or None")
    return Batch(ids, codes, [_checked_attributes(each, of=f"item '{id}'") for id, each in zip(ids, attributes, strict=True)],
                 thumbnails)


def checked_ids(ids: Sequence[str]) -> list[str]:
    """Ids as a list. Raises InputError for anything but distinct strings."""
    if isinstance(ids, str):
        raise InputError(f"ids are a list of strings, not one string; give ['{ids}']")
    ids = list(ids)
    seen = set()
    for id in ids:
        if not isinstance(id, str) or not id:
            raise InputError(f"an id is text, not {id!r}; give str(number) for a number")
        if id in seen:
            raise InputError(f"the id '{id}' stands twice among those given; give each once")
        seen.add(id)
    return ids


def checked_codes(store: CodeKind, codes: Codes) -> PackedCodes:
    """Codes packed. Raises InputError for what is not codes, and for another length or space than the store's."""
    check_spaces(codes, store)
    codes = PackedCodes.of(codes)
    if codes.bits != store.bits:
        raise InputError(f"codes of {codes.bits} bits for a store of {store.bits} bits; encode them to its length")
    return codes


class Query(NamedTuple):
    """What is to be searched for: codes, or logits where it is soft."""

    codes: PackedCodes | None
    logits: Logits | None
    k: int
    where: dict[str, Any]

    def __len__(self) -> int:
        """How many queries."""
        return len(self.logits.numbers if self.codes is None else self.codes)


def checked_query(
    store: CodeKind, query_codes: Codes | RealMatrix, k: SupportsIndex, where: Attributes | None, soft: bool = False
) -> Query:
    """What is to be searched for. Raises InputError as `Store.search` says."""
    k, where = whole_number(k, "k", low=1), checked_where(where)
    if not soft:
        return Query(checked_codes(store, query_codes), None, k, where)
    logits = whole_logits(query_codes)
    if logits.numbers.shape[1] != store.bits:
        raise InputError(f"logits of {logits.numbers.shape[1]} bits for a store of {store.bits} bits; encode to its length")
    return Query(None, logits, k, where)


def checked_ball(
    store: CodeKind, query_codes: Codes, radius: SupportsIndex, where: Attributes | None
) -> tuple[PackedCodes, int, dict[str, Any]]:
    """What is to be searched for within a radius. Raises InputError as `Store.search_radius` says."""
    return checked_codes(store, query_codes), whole_number(radius, "radius", low=0), checked_where(where)


def checked_where(where: Attributes | None) -> dict[str, Any]:
    """A copy of the attributes that are asked for. Raises InputError for values that no item has."""
    return _checked_attributes(where or {}, of="`where`")


def checked_note(name: str, value: str) -> tuple[str, str]:
    """A note that every store can keep. Raises InputError for anything but text."""
    for given, what in ((name, "name"), (value, "value")):
        if not isinstance(given, str):
            raise InputError(f"the {what} of a note is text, not {given!r}")
    return name, value


def check_kind(url: str, store: CodeKind, create_for: CodeKind | None) -> None:
    """Raises InputError where a store that is there cannot hold codes of the kind of `create_for`."""
    if create_for is None:
        return
    if store.bits != create_for.bits:
        raise InputError(f"the store holds codes of {store.bits} bits, not {create_for.bits}; open it for an encoder of its "
                         "length, or give another place", field="url", value=url)
    try:
        check_spaces(create_for, store)
    except InputError as error:
        raise InputError(error.problem, field="url", value=url) from error


def closed() -> InputError:
    """The error of asking something of a store that was closed."""
    return InputError("the store is closed; open it again")


def nothing_there(url: str) -> InputError:
    """The error of opening a store that is not there without saying what it is to hold."""
    return InputError("there is no store here; give the place of one, or the encoder whose codes a new one is to hold "
                      "(create_for)", field="url", value=url)


def matches(attributes: Attributes, where: Attributes) -> bool:
    """Whether an item has all the attributes asked for. 1 is 1.0, but True is not 1, and None is not the lack of a name."""
    return all(name in attributes and isinstance(attributes[name], bool) == isinstance(value, bool)
               and attributes[name] == value for name, value in where.items())


def _checked_attributes(attributes: Attributes, *, of: str) -> dict[str, Any]:
    """A copy of attributes that every store can keep. Raises InputError for others."""
    if not isinstance(attributes, Mapping):
        raise InputError(f"the attributes of {of} are a mapping of names to values, not {type(attributes).__name__}")
    for name, value in attributes.items():
        if not isinstance(name, str):
            raise InputError(f"a name of the attributes of {of} is text, not {name!r}")
        finite = not isinstance(value, float) or math.isfinite(value)
        if not (isinstance(value, (str, int, float, bool, type(None))) and finite):
            raise InputError(f"the attribute '{name}' of {of} is {value!r}; give text, a finite number, a bool or None")
    return dict(attributes)
