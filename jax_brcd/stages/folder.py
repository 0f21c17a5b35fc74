"""Stage folders: what a stage gave, under a name made of all that it depends on, so that every later run finds it.

A folder is finished once it holds `stage.json`, which is written last. Settings enter the name only where they differ from
their defaults, so settings that are added later leave the names of older folders as they are.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from safetensors import SafetensorError

from jax_brcd.runtime import devices
from jax_brcd.runtime.digests import LENGTH, digest
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import (
    atomic_path,
    file_sha256,
    is_passing,
    lock_beside,
    locked,
    make_folder,
    parse_json,
    read_json,
    replacing_folder,
    write_json,
)

FORMAT = 1  # to be raised when the same dependencies come to give another result
UNFINISHED = "*.orbax-checkpoint-tmp"  # how Orbax calls what it has not committed yet
RECORD, HISTORY, CHECKPOINTS = "stage.json", "history.jsonl", "checkpoints"


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """The folder of one stage.

    Attributes:
        stage: its name. depends_on: what its result depends on, as JSON holds it, but for the number of epochs.
        epochs: of stages that go on from fewer epochs to more; None for the others.
    """

    root: pathlib.Path
    stage: str
    depends_on: Mapping[str, Any]
    epochs: int | None = None

    @property
    def name(self) -> str:
        """The stage's name, a digest of what it depends on, and the epochs."""
        return self._stem if self.epochs is None else f"{self._stem}-{self.epochs}epochs"

    @property
    def _stem(self) -> str:
        return f"{self.stage}-{digest(FORMAT, json.dumps(self.depends_on, sort_keys=True))[:16]}"

    @property
    def path(self) -> pathlib.Path:
        """Where it lies."""
        return self.root / self.name

    @property
    def checkpoints(self) -> pathlib.Path:
        """Where its checkpoints lie."""
        return self.path / CHECKPOINTS

    @property
    def finished(self) -> bool:
        """Whether it holds a whole result; the same answer in all processes of a run."""
        return devices.agreed((self.path / RECORD).exists())

    @property
    def record(self) -> dict[str, Any]:
        """What `finish` was told."""
        return read_json(self.path / RECORD)["gave"]

    def _files(self) -> dict[str, str]:
        """The digest of each file of the result, by its path in the folder."""
        found = [path for path in sorted(self.path.rglob("[!.]*")) if path.is_file()]
        names = [path.relative_to(self.path) for path in found]
        return {str(name): file_sha256(path)[:LENGTH] for name, path in zip(names, found, strict=True)
                if name.parts[0] not in (CHECKPOINTS, RECORD) and not name.parts[0].startswith(".")}

    def _check(self) -> None:
        """Raises ValueError where a file of the result is not what was written. Folders of older versions have no digests."""
        there, told = self._files(), read_json(self.path / RECORD).get("files", {})
        changed = [name for name, written in told.items() if there.get(name) != written]
        if changed:
            raise ValueError(f"{changed[0]} is {'not what was written' if changed[0] in there else 'gone'}")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Reads what a finished folder holds.

        Raises:
            InputError: where that is damaged or in part deleted.
        """
        try:
            self._check()
            yield
        except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, StopIteration, zipfile.BadZipFile,
                SafetensorError) as error:
            if is_passing(error):
                raise
            said = error.problem if isinstance(error, InputError) else " ".join(str(error).split())
            raise InputError(f"{self.path}: finished once, and damaged since ({said}); delete that folder to make it "
                             "again") from error

    def finish(self, **gave: Any) -> None:
        """Marks the folder as whole, with facts about the result. The first process writes it."""
        if devices.is_first():
            write_json(self.path / RECORD, {"stage": self.stage, "depends_on": dict(self.depends_on), "epochs": self.epochs,
                                            "gave": gave, "files": self._files()})
        devices.wait_for_all(self.name)

    @contextlib.contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Keeps other runs that want the same result waiting until this one has made it, or has ended; a run that waits says
        so."""
        waits = functools.partial(say, f"Another run is at work on {self.path}; this one waits for it.")
        with _lock_of(self.path, waits) if devices.is_first() else contextlib.nullcontext():
            make_folder(self.path)
            yield

    def begin(self, seed_from: pathlib.Path | None = None) -> None:
        """Puts checkpoints to go on from into a folder that has none: those of the same stage with the most epochs below this
        one's, or else of `seed_from`, or none where these are gone too. A run that still writes to them is waited for."""
        if devices.is_first():
            for left in self.checkpoints.glob(UNFINISHED):  # by a run that was killed: this folder is held
                shutil.rmtree(left, ignore_errors=True)
        if devices.is_first() and not _has_checkpoints(self.path):
            # A run holds folders of more epochs, and of what went on later, before those of fewer: nobody waits in a circle
            source = self._fewer_epochs() or seed_from
            with contextlib.nullcontext() if source is None else _lock_of(source):
                if source is not None and _has_checkpoints(source):
                    with replacing_folder(self.checkpoints) as temporary:
                        shutil.copytree(source / CHECKPOINTS, temporary, dirs_exist_ok=True,
                                        ignore=shutil.ignore_patterns(UNFINISHED))
        devices.wait_for_all(f"{self.name} begins")

    def _fewer_epochs(self) -> pathlib.Path | None:
        if self.epochs is None:
            return None
        found = [(int(match[1]), path) for path in self.root.iterdir()
                 if (match := re.fullmatch(rf"{re.escape(self._stem)}-(\d+)epochs", path.name)) and _has_checkpoints(path)]
        fewer = [(epochs, path) for epochs, path in found if epochs < self.epochs]
        return max(fewer)[1] if fewer else None


def _lock_of(folder: pathlib.Path, waits: Callable[[], None] | None = None) -> contextlib.AbstractContextManager[None]:
    return locked(lock_beside(folder), waits)


def _has_checkpoints(folder: pathlib.Path) -> bool:
    """Whether a training of that folder has saved anything."""
    return any(path.name.isdigit() for path in (folder / CHECKPOINTS).glob("*"))


def write_history(path: pathlib.Path, history: list[dict[str, Any]]) -> None:
    """Writes one JSON line an epoch."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in history))


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """What `write_history` wrote. Raises ValueError for anything else."""
    records = [parse_json(line) for line in path.read_text().splitlines()]
    if not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path.name}: a line that is no record")
    return records
