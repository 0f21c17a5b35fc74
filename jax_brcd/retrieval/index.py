"""An index of codes that is laid out once and searched often."""

from typing import SupportsIndex

import numpy as np
from jaxtyping import Int, Num

from jax_brcd.retrieval.packing import CodeBits, Codes, PackedCodes, check_spaces, code_bits, whole_number
from jax_brcd.retrieval.ranking import Database, Distances, check_k, check_lengths, map_queries, rank
from jax_brcd.retrieval.scores import Logits, RealMatrix, SoftScoring, soft_rank

Ball = tuple[Int[np.ndarray, "found"], Int[np.ndarray, "found"]]


class HammingIndex:
    """Exact Hamming search. The codes are laid out for the device when the index is made; a search then only compares.

    An index holds bits, so its distances are whole numbers: a 0 in a matrix is bit 0, as `pack_codes` packs it
    (`hamming_top_k` ranks such codes half a bit apart).

    Args:
        codes: packed codes, in memory or mapped from a file, or a matrix (n, bits) of -1, 0 and +1 or of bool. There may be
            none. They are not needed any more once the index is made.

    Attributes:
        bits: the length of a code. space: the id of the code space, or None where it is not known.

    Raises:
        InputError: for what is not codes.
    """

    def __init__(self, codes: Codes):
        codes = PackedCodes.of(codes)
        self.bits, self.space = codes.bits, codes.space
        self._database = Database.of(codes)

    def __len__(self) -> int:
        return len(self._database)

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
        queries = self._queries(query_codes)
        positions, doubled = rank(queries, self._database, check_k(k, len(self)))
        return doubled // 2, positions

    def search_radius(self, query_codes: Codes, radius: SupportsIndex) -> list[Ball]:
        """Of each query all codes at a distance of at most `radius` bits, nearest first, ties by position.

        Returns:
            Of each query distances in bits (found,) int32 and positions (found,) int64.

        Raises:
            InputError: for radius < 0, for what is not codes, and for queries of another length or space.
        """
        queries = self._queries(query_codes)
        reach = 2 * min(whole_number(radius, "radius", low=0), self.bits)

        def ball(distances: Distances) -> Ball:
            positions = np.flatnonzero(distances.doubled <= reach)  # padding is further away than any code
            doubled = distances.doubled[positions]
            order = np.argsort(doubled, kind="stable")
            return (doubled[order] // 2).astype(np.int32), positions[order].astype(np.int64)

        parts = map_queries(lambda rows, lent: [ball(distances) for distances in lent], queries, self._database)
        return [found for part in parts for found in part]

    def _queries(self, query_codes: Codes) -> CodeBits:
        check_spaces(query_codes, self)
        queries = code_bits(PackedCodes.of(query_codes))
        check_lengths(queries.bits, self._database)
        return queries
