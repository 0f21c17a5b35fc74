"""Publishing an encoder's folder on the hub, without what would tell of the machine that made it."""

import os
import pathlib
from typing import Any

from jax_brcd.hub.library import ANSWER_SECONDS, library, quiet, reason
from jax_brcd.hub.names import PREFIX, HubName
from jax_brcd.runtime.errors import InputError


def publish(folder: os.PathLike | str, repository: str, *, private: bool, message: str) -> str:
    """Makes the files of a folder those of a repository, in one commit, and the repository where there is none yet.

    Args:
        repository: user/name. private: whether only its owner sees it, where it is new. message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        InputError: for a name without its user, a repository that cannot be made or written to, and offline.
    """
    name = HubName.parse(PREFIX + repository)
    if name.revision:
        raise InputError(f"'{repository}': encoders are published on the main branch; leave @{name.revision} out")
    if "/" not in name.repository:  # the hub would make one of one's own, and not find it by that name
        raise InputError(f"'{repository}': names no user; give USER/{repository}")
    hub = library()
    api = hub.HfApi(endpoint=hub.constants.ENDPOINT)
    with quiet():
        try:
            try:  # what follows waits long for a hub that does not answer
                api.model_info(name.repository, timeout=ANSWER_SECONDS)
            except hub.errors.RepositoryNotFoundError:
                pass
            api.create_repo(name.repository, private=private, exist_ok=True)
            files = [hub.CommitOperationAdd(path.name, path) for path in sorted(pathlib.Path(folder).iterdir())]
            return api.create_commit(name.repository, files, commit_message=message).commit_url
        except Exception as error:  # of many kinds: of the hub, the network, the system, and an endpoint that is no hub
            raise InputError(f"{name.repository}: not published: {reason(error, name)}") from None


def without_places(value: Any) -> Any:
    """A value that JSON holds, in which absolute paths (which tell of this machine) are .../ and their last part."""
    if isinstance(value, dict):
        return {key: without_places(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(part) for part in value]
    if isinstance(value, str) and (value.startswith("~") or any(
            kind(value).is_absolute() for kind in (pathlib.PurePosixPath, pathlib.PureWindowsPath))):
        return f".../{pathlib.PureWindowsPath(value).name}"  # which parts at both kinds of slashes
    return value
