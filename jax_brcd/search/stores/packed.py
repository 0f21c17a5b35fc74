"""Codes packed once, in a file beside the database that holds the truth, to be memory-mapped when a store is opened.

The file may always be deleted: it says which state of the database it is of, and what came after is read from there.
"""

import dataclasses
import json
import os
import pathlib

import numpy as np
from jaxtyping import Int64

from jax_brcd.retrieval import PackedCodes
from jax_brcd.runtime.files import atomic_path, parse_json

FORMAT = "jax_brcd packed store 2"
HEAD = 4096  # bytes before the codes, so that they begin on a page


@dataclasses.dataclass(frozen=True)
class Packed:
    """The items that a database held when it had counted to `added` and `gone`, in the order of their ids.

    `numbers` are those that the database gave the items. Both arrays may be mapped. `newest` is the largest of the numbers, and
    the code of that item, by which a state of another database is known that counted as far.
    """

    codes: PackedCodes
    numbers: Int64[np.ndarray, "items"]
    added: int
    gone: int
    newest: tuple[int, bytes]

    def __len__(self) -> int:
        return len(self.numbers)


def write_packed(path: pathlib.Path, packed: Packed, owner: str) -> None:
    """Writes the file, whole or not at all; `owner` is the id of the database. Raises OSError where it cannot be written."""
    about = {"format": FORMAT, "owner": owner, "bits": packed.codes.bits, "items": len(packed), "added": packed.added,
             "gone": packed.gone, "newest": [packed.newest[0], packed.newest[1].hex()]}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(json.dumps(about).encode().ljust(HEAD))
        file.write(np.ascontiguousarray(packed.codes.packed))
        file.write(bytes(-file.tell() % packed.numbers.itemsize))
        file.write(packed.numbers)


def read_packed(path: pathlib.Path, owner: str, bits: int, space: str | None) -> Packed | None:
    """Maps the file; None where there is none, where it is damaged, and where it is another database's."""
    width = -(-bits // 8)
    try:
        with open(path, "rb") as file:  # once, as another process may put a new file in its place at any time
            about = parse_json(file.read(HEAD))
            items, added, gone = (int(about[name]) for name in ("items", "added", "gone"))
            newest = int(about["newest"][0]), bytes.fromhex(about["newest"][1])
            own = (about["format"], about["owner"], about["bits"]) == (FORMAT, owner, bits)
            begin = -(-(HEAD + items * width) // 8) * 8
            if not own or items < 1 or os.fstat(file.fileno()).st_size != begin + 8 * items:
                return None
            codes = np.memmap(file, np.uint8, "r", HEAD, (items, width))
            numbers = np.memmap(file, np.int64, "r", begin, (items,))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Packed(PackedCodes(codes, bits, space), numbers, added, gone, newest)
