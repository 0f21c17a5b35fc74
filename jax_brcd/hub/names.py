"""What users call a repository of the hub: hf:user/name, or hf:user/name@revision."""

import re
from typing import Any, NamedTuple

from jax_brcd.runtime.errors import InputError

PREFIX, MAIN = "hf:", "main"
REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


class HubName(NamedTuple):
    """A repository of models, and the branch, tag or commit of it (None: its main branch)."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")

    @property
    def branch(self) -> str:
        """The revision, which is the main branch where none is told."""
        return self.revision or MAIN

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a whole commit, which never changes."""
        return COMMIT.fullmatch(self.branch) is not None

    @classmethod
    def parse(cls, name: Any) -> "HubName":
        """The name of a repository, with its `hf:`.

        Raises:
            InputError: for what is none.
        """
        repository, at, revision = str(name).removeprefix(PREFIX).partition("@")
        sound = REPOSITORY.fullmatch(repository) and (REVISION.fullmatch(revision) if at else True)
        if not is_hub_name(name) or not sound or ".." in str(name) or "--" in repository:
            raise InputError(f"'{name}' names no repository of the hub; write {PREFIX}user/name, or {PREFIX}user/name@revision")
        return cls(repository, revision or None)


def is_hub_name(name: Any) -> bool:
    """Whether something that a user names is meant to lie on the hub."""
    return str(name).startswith(PREFIX)
