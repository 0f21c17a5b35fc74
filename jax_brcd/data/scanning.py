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
NO_FILE, CLOSED = "neither file nor folder", "folders that may not be read"
SEEN = "links to folders that were read already or hold the link"


class Level(NamedTuple):
    """What lies in one folder, as sorted paths relative to where the walk began."""

    images: list[str]
    folders: list[str]


class Walk:
    """A walk below a folder, which keeps count of what it leaves out."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.passed: dict[str, dict[str, None]] = collections.defaultdict(dict)  # relative paths in order, by reason
        self._levels: dict[str, Level] = {}
        self._found: dict[str, list[str]] = {}

    def level(self, folder: str = "") -> Level:
        """The images and the sub-folders in a folder, links followed, but for links to a folder that holds this one.

        Of several names of one folder its own counts, or else the first.

        Raises:
            OSError: where the root is absent, no folder or closed to this user; other folders that are so are passed over.
        """
        if folder not in self._levels:
            found = self._look(folder)
            self._levels[folder] = found._replace(folders=self._once(folder, found.folders))
        return self._levels[folder]

    def images_below(self, folder: str) -> list[str]:
        """The images in a folder at any depth, sorted by path. A folder that several links lead to is read once."""
        if folder in self._found:
            return self._found[folder]
        self._found[folder] = sorted(self._below(folder, set()))
        return self._found[folder]

    def notes(self) -> Iterator[str]:
        """What a reader of the results must know: one line, if anything was left out."""
        if self.passed:
            reasons = (f"{reason}: {len(paths):,} ({_suffixes(list(paths)) if reason == FOREIGN else examples(sorted(paths))})"
                       for reason, paths in sorted(self.passed.items()))
            yield f"Passed over in the folder: {'; '.join(reasons)}."

    def _look(self, folder: str) -> Level:
        try:
            entries = sorted(os.scandir(self.root / folder), key=lambda entry: entry.name)
        except OSError:  # closed to this user, gone since it was seen, or on a disk that fails
            if not folder:
                raise
            self.passed[CLOSED][folder] = None
            return Level([], [])
        images, folders = [], []
        for entry in entries:
            path = os.path.join(folder, entry.name)
            reason = _reason(entry)
            if reason is not None:
                self.passed[reason][path] = None
            elif _is(entry, os.DirEntry.is_dir):
                folders.append(path)
            else:
                images.append(path)
        return Level(images, folders)

    def _once(self, folder: str, paths: list[str]) -> list[str]:
        """Sub-folders without those that hold the folder they lie in, each once."""
        seen, kept = self._above(folder), []
        for path in sorted(paths, key=lambda path: (self.root / path).is_symlink()):
            identity = _identity(self.root / path)
            if identity in seen:
                self.passed[SEEN][path] = None
            else:
                seen.add(identity)
                kept.append(path)
        return sorted(kept)

    def _above(self, folder: str) -> set[tuple[int, int]]:
        """The folder and all that hold it: those on the way from the root, each where its links lead."""
        parts = pathlib.PurePath(folder).parts
        way = [self.root.joinpath(*parts[:depth]).resolve() for depth in range(len(parts) + 1)]
        return {_identity(place) for each in way for place in (each, *each.parents)}

    def _below(self, folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
        level = self.level(folder)
        yield from level.images
        for path in level.folders:
            identity = _identity(self.root / path)
            if identity in seen:
                self.passed[SEEN][path] = None
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
