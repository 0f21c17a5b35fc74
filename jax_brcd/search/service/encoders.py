"""Which encoders a service has: the one that filled the index, as the index notes it, and one that it is told."""

import os

from jax_brcd.encoder import HashEncoder
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.search.encoders import ENCODER, identity_of, query_encoder
from jax_brcd.search.service.engine import ASYMMETRIC, SYMMETRIC
from jax_brcd.search.stores import Store


def load_encoders(store: Store, place: os.PathLike | str | None, *, progress: Progress = silent) -> dict[str, HashEncoder]:
    """The encoders of queries by mode, the usual one first; none where neither the index knows one nor is any told.

    Args:
        place: of an encoder that is told. Where another one filled the index it makes a search asymmetric, and that one, where
            it can be loaded, is offered too.

    Raises:
        InputError: as `query_encoder`.
    """
    known = store.noted(ENCODER) is not None
    if place is None:
        return {SYMMETRIC: query_encoder(store, None, progress=progress)} if known else {}
    told = query_encoder(store, place, progress=progress)
    if not known:
        return {SYMMETRIC: told}
    try:
        own = query_encoder(store, None, progress=progress)
    except InputError:  # it has been moved, say; the one that is told serves all the same
        return {ASYMMETRIC: told}
    return {SYMMETRIC: told} if identity_of(own) == identity_of(told) else {ASYMMETRIC: told, SYMMETRIC: own}
