"""Which images lie below a folder: at any depth, through links, without what systems leave there; and what was passed over."""

import collections
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jax_brcd.data.decoding import suffixes

# What file managers, notebooks, file servers and file systems leave behind, in lower case. Names that begin with a dot are
# passed over too: `._a.jpg` is no image though it is called one
SYSTEM = frozenset({
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "@recycle", "#recycle", "#snapshot",
    "$recycle.bin", "recycler", "system volume information", "lost+found", "__pycache__",
})
EXAMPLES = 3  # names that a note gives for a reason
HIDDEN, FOREIGN = "hidden or of the system", "of no image format that is read"
NO_FILE, SEEN, CLOSED = "neither file nor folder", "links to folders that were read already", "folders that may not be read"


class Level(NamedTuple):
    """What lies in one folder, as sorted paths relative to where the walk began."""

    images: list[str]
    folders: list[str]


class Walk:
    """A walk below a folder, which keeps count of what it leaves out."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.passed: dict[str, list[str]] = collections.defaultdict(list)  # relative paths, by reason
        self._levels: dict[str, Level] = {}
        self._found: dict[str, list[str]] = {}

    def level(self, folder: str = "") -> Level:
        """The images and the sub-folders in a folder, links followed.

        Raises:
            OSError: where the root is absent, no folder or closed to this user; other folders that are closed are passed over.
        """
        if folder not in self._levels:
            self._levels[folder] = self._look(folder)
        return self._levels[folder]

    def images_below(self, folder: str) -> list[str]:
        """The images in a folder at any depth, sorted by path. A folder that several links lead to is read once."""
        if folder in self._found:
            return self._found[folder]
        above = [self.root.joinpath(*pathlib.PurePath(folder).parts[:depth])
                 for depth in range(len(pathlib.PurePath(folder).parts) + 1)]
        self._found[folder] = sorted(self._below(folder, {_identity(place) for place in above}))
        return self._found[folder]

    def notes(self) -> Iterator[str]:
        """What a reader of the results must know: one line, if anything was left out."""
        if self.passed:
            reasons = (f"{reason}: {len(paths):,} ({_suffixes(paths) if reason == FOREIGN else examples(sorted(paths))})"
                       for reason, paths in sorted(self.passed.items()))
            yield f"Passed over in the folder: {'; '.join(reasons)}."

    def _look(self, folder: str) -> Level:
        try:
            entries = sorted(os.scandir(self.root / folder), key=lambda entry: entry.name)
        except PermissionError:
            if not folder:
                raise
            self.passed[CLOSED].append(folder)
            return Level([], [])
        images, folders = [], []
        for entry in entries:
            path = os.path.join(folder, entry.name)
            reason = _reason(entry)
            if reason is not None:
                self.passed[reason].append(path)
            elif _is(entry, os.DirEntry.is_dir):
                folders.append(path)
            else:
                images.append(path)
        return Level(images, folders)

    def _below(self, folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
        level = self.level(folder)
        yield from level.images
        for path in level.folders:
            identity = _identity(self.root / path)
            if identity in seen:
                self.passed[SEEN].append(path)
            else:
                seen.add(identity)
                yield from self._below(path, seen)


def examples(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")


def _reason(entry: os.DirEntry) -> str | None:
    """Why an entry is passed over; None for images and folders. A link to nothing that is called an image counts as one, which
    cannot be read."""
    if entry.name.startswith(".") or entry.name.lower() in SYSTEM:
        return HIDDEN
    if _is(entry, os.DirEntry.is_dir):
        return None
    if os.path.splitext(entry.name)[1].lower() not in suffixes():
        return FOREIGN
    return None if _is(entry, os.DirEntry.is_file) or not os.path.exists(entry) else NO_FILE


def _is(entry: os.DirEntry, kind) -> bool:
    try:
        return kind(entry)
    except OSError:  # a link to itself
        return False


def _identity(path: pathlib.Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _suffixes(paths: Sequence[str]) -> str:
    """How many of each suffix there are, the most frequent first, and a path of each."""
    first: dict[str, str] = {}
    for path in sorted(paths):
        first.setdefault(os.path.splitext(path)[1].lower(), path)
    counts = collections.Counter(os.path.splitext(path)[1].lower() for path in paths)
    return examples([f"{count:,} {suffix or 'without suffix'}: {first[suffix]}" for suffix, count in counts.most_common()])
