"""Which encoders an index is filled and searched by, in its notes: they must speak one code space."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

from jax_brcd.encoder import HashEncoder, folder_of, load, space_of
from jax_brcd.retrieval import check_spaces
from jax_brcd.runtime.errors import InputError, of_setting
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.search.stores import CodeKind, Store, open_store
from jax_brcd.search.stores.servers import without_password

DEFAULT_INDEX = "photos.brcd"  # of the commands, in the working directory
ENCODER, ENCODERS = "encoder", "encoders"  # notes: where the first lies, and what is known of all


class Filler(NamedTuple):
    """An encoder that has filled an index: where it was loaded from, a folder or hf:user/name, and what it is."""

    place: str
    role: str
    backbone: str


@contextlib.contextmanager
def opened(index: str, create_for: CodeKind | None = None) -> Iterator[Store]:
    """The store of an index, closed as the block ends. Raises InputError as `open_store`, of the setting `index`."""
    try:
        store = open_store(index, create_for)
    except InputError as error:
        raise InputError(error.problem, field="index", value=without_password(index)) if error.field == "url" else error from None
    with contextlib.closing(store):
        yield store


def load_encoder(place: os.PathLike | str, *, progress: Progress = silent) -> HashEncoder:
    """An encoder of images that the setting `encoder` names.

    Raises:
        InputError: as `load`, and for an encoder over embeddings.
    """
    with of_setting("encoder", place):
        encoder = load(place, progress=progress)
        check_sees_images(encoder)
    return encoder


def check_sees_images(encoder: HashEncoder) -> None:
    """Raises InputError for an encoder over embeddings."""
    if encoder.over_embeddings:
        raise InputError("encodes rows of embeddings and no images; give an encoder of images, such as its student")


def check_encoder(encoder: HashEncoder, store: Store) -> None:
    """Raises InputError where an encoder's codes of images cannot be compared with those of a store."""
    check_sees_images(encoder)
    if encoder.bits != store.bits:
        raise InputError(f"gives codes of {encoder.bits} bits, where the index has {store.bits}; give one of its length")
    check_spaces(encoder, store)


def place_of(encoder: os.PathLike | str) -> str:
    """Where an encoder lies, in a form that holds in any working directory."""
    return str(encoder) if str(encoder).startswith("hf:") else str(folder_of(encoder).resolve())


def identity_of(encoder: HashEncoder) -> str:
    """What tells an encoder from all others: its name and a digest of its weights and preprocessing."""
    return space_of(encoder.model, encoder.backbone, encoder.preprocessing)


def fillers(store: Store) -> dict[str, Filler]:
    """The encoders that have filled an index, by their identities, the first one first."""
    return {identity: Filler(**about) for identity, about in json.loads(store.noted(ENCODERS) or "{}").items()}


def note_filler(store: Store, encoder: HashEncoder, place: str) -> str:
    """Notes that an encoder fills the index; returns its identity.

    Raises:
        InputError: where its codes are of another length or space than the index's.
    """
    with of_setting("encoder", place):
        check_encoder(encoder, store)
    identity, known = identity_of(encoder), fillers(store)
    now = known | {identity: Filler(place, encoder.role, encoder.backbone)}
    if now != known:
        store.note(ENCODERS, json.dumps({name: filler._asdict() for name, filler in now.items()}))
    if next(iter(now)) == identity:
        store.note(ENCODER, place)
    return identity


def noted_encoder(store: Store) -> str:
    """Where the encoder lies by which an index was first filled. Raises InputError for an index that was filled by none."""
    place = store.noted(ENCODER)
    if place is None:
        raise InputError("the index does not say which encoder its codes are of; name it by `encoder`")
    return place


def query_encoder(store: Store, place: os.PathLike | str | None, *, progress: Progress = silent) -> HashEncoder:
    """The encoder of queries: the one that is named, or the one that filled the index.

    Raises:
        InputError: as `load_encoder`, and where its codes cannot be compared with the index's.
    """
    place = noted_encoder(store) if place is None else place
    encoder = load_encoder(place, progress=progress)
    with of_setting("encoder", place):
        check_encoder(encoder, store)
    return encoder
