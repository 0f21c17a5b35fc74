"""What a store is: codes with ids and attributes that are added, deleted and searched; and the checks all stores share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, SupportsIndex, runtime_checkable

from jax_brcd.retrieval import PackedCodes, check_spaces
from jax_brcd.retrieval.packing import Codes, whole_number
from jax_brcd.runtime.errors import InputError

Attributes = Mapping[str, Any]


class Hit(NamedTuple):
    """An item that was found, its Hamming distance in bits, and what is known of it."""

    id: str
    distance: int
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

    def add(self, ids: Sequence[str], codes: Codes, attributes: Sequence[Attributes] | None = None) -> None:
        """Adds items, all or none; an id that is there is replaced, code and attributes.

        Raises:
            InputError: for ids that are not distinct strings, counts that differ, codes of another length or space, and
                attributes of other values.
        """

    def delete(self, ids: Sequence[str]) -> None:
        """Deletes items, all or none; ids that are not there are passed over."""

    def search(self, query_codes: Codes, k: SupportsIndex, where: Attributes | None = None) -> list[list[Hit]]:
        """Of each query the k nearest items, nearest first, ties by id; fewer where fewer items match.

        Args:
            where: attributes that an item must have with just these values.

        Raises:
            InputError: for k < 1 and codes of another length or space.
        """

    def __len__(self) -> int:
        """How many items there are."""

    def close(self) -> None:
        """Lets go of what the store holds open; nothing else may be asked of it then, and closing again does nothing."""


class Batch(NamedTuple):
    """Items that are fit to be added."""

    ids: list[str]
    codes: PackedCodes
    attributes: list[dict[str, Any]]


def checked_batch(store: CodeKind, ids: Sequence[str], codes: Codes, attributes: Sequence[Attributes] | None) -> Batch:
    """What is to be added to `store`, as copies. Raises InputError as `Store.add` says."""
    ids, codes = checked_ids(ids), checked_codes(store, codes)
    attributes = [{}] * len(ids) if attributes is None else list(attributes)
    for given, what in ((codes, "codes"), (attributes, "attributes")):
        if len(given) != len(ids):
            raise InputError(f"{len(ids)} ids, but {len(given)} {what}; give one an id")
    return Batch(ids, codes, [_checked_attributes(each, of=f"item '{id}'") for id, each in zip(ids, attributes, strict=True)])


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


def checked_query(
    store: CodeKind, query_codes: Codes, k: SupportsIndex, where: Attributes | None
) -> tuple[PackedCodes, int, dict[str, Any]]:
    """What is to be searched for. Raises InputError as `Store.search` says."""
    return checked_codes(store, query_codes), whole_number(k, "k", low=1), _checked_attributes(where or {}, of="`where`")


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
