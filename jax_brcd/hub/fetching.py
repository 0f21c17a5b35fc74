"""Fetching a repository's config.json and weights into the hub's own cache, each file checked by its digest.

The cache is huggingface_hub's (HF_HUB_CACHE), so that what other programs fetched is not fetched again, nor by them.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax_brcd.hub.folders import CONFIG, INDEX, OTHERS, WEIGHTS, files_of, shards, weights_among
from jax_brcd.hub.library import ANSWER_SECONDS, library, quiet, reason
from jax_brcd.hub.names import COMMIT, PREFIX, HubName
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import file_sha256, system_errors
from jax_brcd.runtime.progress import Progress, silent

SHA256, GIT = 64, 40  # hexadecimal digits of a sha256, and of the digest that git calls files by
OVER = 4  # times its size that a file may take to come, with a server that ends early each time


class Fetched(NamedTuple):
    """A repository of the hub on this machine.

    Attributes:
        folder: holds `config.json` and the weights. commit: None where files were put there by hand.
        sha256: of the files of weights, by name. remarks: what a reader must know.
    """

    name: HubName
    folder: pathlib.Path
    commit: str | None
    sha256: dict[str, str]
    remarks: tuple[str, ...] = ()

    @property
    def origin(self) -> dict[str, Any]:
        """Where the weights come from, as JSON holds it."""
        return {"repository": self.name.repository, "revision": self.name.branch, "commit": self.commit, "sha256": self.sha256}


class Endless(Exception):
    """A file of which far more came than it holds."""


def fetch(name: HubName | str, *, progress: Progress = silent) -> Fetched:
    """The repository under a name such as hf:user/name@revision; what is there already does not come again.

    Where the hub cannot be asked, a copy that is there is taken, with a remark. A commit that is there is never asked for.

    Args:
        progress: told of the bytes that came, a file at a time.

    Raises:
        InputError: for a repository that is not there, not open, without safetensors, or broken, and where nothing can be had
            offline; the line says which files to put where.
        OSError: for a full disk.
    """
    name = name if isinstance(name, HubName) else HubName.parse(name)
    library()
    with quiet():
        copy = _copy(name) if name.is_commit else None
        if copy is not None:
            return copy
        try:
            listing = _listing(name)
        except Exception as error:  # of many kinds: of the hub, the network, the system, and an endpoint that is no hub
            told = reason(error, name)
            copy = _copy(name)
            if copy is None:
                raise InputError(f"{name}: {told}{_or_by_hand(error, name)}") from None
            used = f"What was fetched before is used: commit {copy.commit or 'unknown'}."
            return copy._replace(remarks=(f"{name}: {told}. {used}",))
        return _fetch(name, listing, progress)


def _listing(name: HubName) -> Any:
    hub = library()
    api = hub.HfApi(endpoint=hub.constants.ENDPOINT)
    found = api.model_info(name.repository, revision=name.branch, files_metadata=True, timeout=ANSWER_SECONDS)
    if not found.sha or found.siblings is None:
        raise ValueError("it lists no files of a commit")
    return found


def _fetch(name: HubName, listing: Any, progress: Progress) -> Fetched:
    files = {file.rfilename: file.lfs["sha256"] if file.lfs else None for file in listing.siblings}
    try:
        first = weights_among(files, name.repository)
    except InputError as error:
        added = f"; or name a pull request of its page that adds them, as in {PREFIX}{name.repository}@refs/pr/1"
        raise InputError(f"{name}: {error.problem}{added if OTHERS & files.keys() else ''}") from None
    wanted = [first] if first != INDEX else shards(_file(name, listing.sha, INDEX, files[INDEX], progress)[0])
    sha256 = {}
    for file in wanted:
        if file not in files:
            raise InputError(f"{name}: its {INDEX} names {file}, which it lacks; name another revision")
        sha256[file] = _file(name, listing.sha, file, files[file], progress)[1]
    # The branch's name comes to stand for this commit with the last file, when the others are there
    config = _file(name, name.branch, CONFIG, files[CONFIG], progress)[0]
    if config.parent.name != listing.sha:
        raise InputError(f"{name}: was changed while it was fetched; try again")
    return Fetched(name, config.parent, listing.sha, sha256)


def _file(name: HubName, revision: str, file: str, expected: str | None, progress: Progress) -> tuple[pathlib.Path, str]:
    """One file of a revision and its sha256. What does not have its digest is fetched once more, and then refused."""
    for again in (False, True):
        path = _download(name, revision, file, progress, again=again)
        found = file_sha256(path)
        if expected in (None, found) and _is_whole(path, found):
            return path, found
    wrong = expected or _blob_name(path)
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise InputError(f"{name}: {file} came with sha256 {found[:12]}, and the hub calls it {wrong[:12]}; try again, or "
                     + _by_hand(name))


def _download(name: HubName, revision: str, file: str, progress: Progress, *, again: bool) -> pathlib.Path:
    hub, cache = library(), _cache()
    bar = _told(f"download {name.repository}/{file}", progress)
    try:
        with system_errors(cache):
            return pathlib.Path(hub.hf_hub_download(
                name.repository, file, revision=revision, cache_dir=cache, endpoint=hub.constants.ENDPOINT,
                etag_timeout=ANSWER_SECONDS, force_download=again, tqdm_class=bar))
    except Exception as error:  # see `fetch`
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise OSError(error.errno, error.strerror, error.filename or str(cache)) from error
        told = "the server ends too early each time" if isinstance(error, Endless) else reason(error, name)
        raise InputError(f"{name}: cannot fetch {file}: {told}{_or_by_hand(error, name)}") from None


def _told(description: str, progress: Progress) -> type:
    """A class in place of huggingface_hub's bars, which tells `progress`."""

    class Told:
        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any):
            self.total, self.n, self.came = total, initial, 0

        def update(self, count: int = 1) -> None:
            self.n, self.came = self.n + count, self.came + max(count, 0)
            if self.total:
                if self.came > OVER * self.total:
                    raise Endless
                progress(description, min(self.n, self.total), self.total)

        def update_transfer(self, count: int) -> None:  # of bytes on the network, which may be fewer than the file's
            pass

        def set_postfix_str(self, *_: Any, **__: Any) -> None:
            pass

        set_transfer_postfix_str = set_description = refresh = close = __exit__ = set_postfix_str

        def __enter__(self) -> "Told":
            return self

    return Told


def _cache() -> pathlib.Path:
    return pathlib.Path(library().constants.HF_HUB_CACHE).expanduser()


def _snapshots(name: HubName) -> pathlib.Path:
    """Where the cache keeps a repository's commits, a folder each."""
    return _cache() / f"models--{name.repository.replace('/', '--')}" / "snapshots"


def _by_hand(name: HubName) -> str:
    page = f"{library().constants.ENDPOINT}/{name.repository}/tree/{name.branch}"
    return f"put {CONFIG} and {WEIGHTS} from {page} into {_snapshots(name) / name.branch} by hand"


def _or_by_hand(error: Exception, name: HubName) -> str:
    """The advice to put files there by hand, where the hub has them."""
    errors = library().errors
    return "" if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)) else f"; or {_by_hand(name)}"


def _copies(name: HubName) -> Iterator[pathlib.Path]:
    """The folders that may hold a revision: the commit it stood for when it was fetched, and what was put there by hand."""
    snapshots = _snapshots(name)
    known = snapshots.parent / "refs" / name.branch
    if known.is_file():
        yield snapshots / known.read_text().strip()
    yield snapshots / name.branch


def _copy(name: HubName) -> Fetched | None:
    """What of a repository is there already, if it is whole.

    Raises:
        InputError: for a file that is damaged.
    """
    for folder in _copies(name):
        try:
            files = files_of(folder)
        except (InputError, OSError):
            continue
        sha256 = {file: file_sha256(folder / file) for file in files}
        damaged = [file for file, found in sha256.items() if not _is_whole(folder / file, found)]
        if damaged:
            raise InputError(f"{name}: {folder / damaged[0]} is damaged; delete it, and fetch it again or {_by_hand(name)}")
        return Fetched(name, folder, folder.name if COMMIT.fullmatch(folder.name) else None, sha256)
    return None


def _blob_name(path: pathlib.Path) -> str:
    """The digest that the cache calls a file by; where it has no links, the file's own name."""
    return pathlib.Path(path.readlink()).name if path.is_symlink() else path.name


def _is_whole(path: pathlib.Path, sha256: str) -> bool:
    """Whether a file of the cache has the digest that it is called by: a sha256, or git's of small ones; True where none is."""
    name = _blob_name(path)
    if not re.fullmatch("[0-9a-f]+", name) or len(name) not in (SHA256, GIT):
        return True
    if len(name) == SHA256:
        return name == sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == name
