"""The two searches that a student is made for: whose codes the database holds (docs/method.md, "Search and its measure")."""

import enum


class Search(enum.StrEnum):
    """Queries are always the student's."""

    SYMMETRIC = "symmetric"  # the database's codes are the student's too
    ASYMMETRIC = "asymmetric"  # the database's codes are the teacher's

    @property
    def database(self) -> str:
        """The role of the encoder that gives the database its codes."""
        return {Search.SYMMETRIC: "student", Search.ASYMMETRIC: "teacher"}[self]


SEARCHES = tuple(Search)
