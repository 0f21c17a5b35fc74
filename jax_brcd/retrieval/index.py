"""An index of codes that is laid out once and searched often."""

import functools
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int, Num

from jax_brcd.retrieval.multi_index import MultiIndex
from jax_brcd.retrieval.packing import CodeBits, Codes, PackedCodes, check_spaces, code_bits, whole_number
from jax_brcd.retrieval.ranking import Database, check_k, check_lengths
from jax_brcd.retrieval.scan import Found, Mask, Scan
from jax_brcd.retrieval.scores import Logits, RealMatrix, SoftScoring, soft_rank


class HammingIndex:
    """Exact Hamming search. The codes are laid out once, when the index is made; a search then only compares.

    An index holds bits, so its distances are whole numbers: a 0 in a matrix is bit 0, as `pack_codes` packs it
    (`hamming_top_k` ranks such codes half a bit apart).

    Args:
        codes: packed codes, in memory or mapped from a file, or a matrix (n, bits) of -1, 0 and +1 or of bool. There may be
            none. They are not needed any more once the index is made, but for a file: mapped codes of 8, 16, 32 or 64 bits are
            searched where they lie.
        multi_index: make tables of parts of the codes, so that a search looks at few of them. The answers are the same. It is
            for millions of codes that lie in clusters, as those of images do, and for small radii among any; docs/stores.md,
            "Search in less than linear time", has what it gives and takes. Soft queries do without.

    Attributes:
        bits: the length of a code. space: the id of the code space, or None where it is not known. table_bytes: the memory of
            the tables.

    Raises:
        InputError: for what is not codes, and for more than 4,294,967,295 with `multi_index`.
    """

    def __init__(self, codes: Codes, *, multi_index: bool = False):
        codes = PackedCodes.of(codes)
        self.bits, self.space = codes.bits, codes.space
        self._scan = Scan.of(code_bits(codes))
        self._searched = MultiIndex(self._scan) if multi_index else self._scan
        self.table_bytes = self._searched.nbytes if multi_index else 0

    def __len__(self) -> int:
        return len(self._scan)

    def search(
        self, query_codes: Codes | RealMatrix | Logits, k: SupportsIndex, *, soft: bool = False
    ) -> tuple[Num[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        """The k nearest codes of each query, ties by position.

        Args:
            query_codes: codes, or with `soft` logits (n, bits), which are floats.
            soft: rank by the dot product of logits and codes in {-1, +1}, which tells apart codes at one distance. The index is
                the same, and so are the answers in any batch and on any machine.

        Returns:
            Distances in bits (queries, k) int32, nearest first, and positions (queries, k) int64. With `soft` in place of the
            distances dot products (queries, k) float64, the largest first.

        Raises:
            InputError: for k < 1 or beyond the index, for what is not codes (with `soft` not finite floats), and for queries of
                another length or space.
        """
        if soft:
            positions, products = soft_rank(SoftScoring.of(query_codes, self._database), check_k(k, len(self)))
            return products, positions
        queries, k = self._queries(query_codes), check_k(k, len(self))
        found = self._searched.nearest(queries, k)
        distances, positions = (np.empty((len(found), k), dtype) for dtype in (np.int32, np.int64))
        for row, own in enumerate(found):
            distances[row], positions[row] = own
        return distances, positions

    def search_radius(self, query_codes: Codes, radius: SupportsIndex) -> list[Found]:
        """Of each query all codes at a distance of at most `radius` bits, nearest first, ties by position.

        Returns:
            Of each query distances in bits (found,) int32 and positions (found,) int64.

        Raises:
            InputError: for radius < 0, for what is not codes, and for queries of another length or space.
        """
        queries = self._queries(query_codes)
        return self._searched.within(queries, min(whole_number(radius, "radius", low=0), self.bits))

    def among(self, query_codes: Codes, k: int, mask: Mask) -> list[Found]:
        """Distances and positions of each query, as `search` gives them of the codes in a mask alone; k may be beyond them."""
        return self._searched.nearest(self._queries(query_codes), k, mask)

    def soft_among(self, logits: Logits, k: int, mask: Mask) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        """Products and positions, as `search` with `soft` gives them of the codes in a mask alone, which holds k at least."""
        if not k:
            return np.empty((len(logits.numbers), 0)), np.empty((len(logits.numbers), 0), np.int64)
        positions, products = soft_rank(SoftScoring.of(logits, self._database), k, mask)
        return products, positions

    def ball_among(self, query_codes: Codes, radius: int, mask: Mask) -> list[Found]:
        """`search_radius` of the codes in a mask alone."""
        return self._searched.within(self._queries(query_codes), min(radius, self.bits), mask)

    @functools.cached_property
    def _database(self) -> Database:
        """The codes laid out for soft queries, made for the first one."""
        return Database.of(PackedCodes(self._scan.packed(), self.bits))

    def _queries(self, query_codes: Codes) -> CodeBits:
        check_spaces(query_codes, self)
        queries = code_bits(PackedCodes.of(query_codes))
        check_lengths(queries.bits, self.bits)
        return queries
