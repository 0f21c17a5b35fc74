"""Stage folders: what a stage gave, under a name made of all that it depends on, so that every later run finds it.

A folder is finished once it holds `stage.json`, which is written last. Settings enter the name only where they differ from their
defaults, so settings that are added later leave the names of older folders as they are.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from jax_brcd.runtime import devices
from jax_brcd.runtime.digests import digest
from jax_brcd.runtime.files import atomic_path, locked, read_json, replacing_folder, write_json

FORMAT = 1  # to be raised when the same dependencies come to give another result
RECORD, HISTORY, CHECKPOINTS, DIVERGED = "stage.json", "history.jsonl", "checkpoints", "diverged.json"


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

    def finish(self, **gave: Any) -> None:
        """Marks the folder as whole, with facts about the result. The first process writes it."""
        if devices.is_first():
            write_json(self.path / RECORD, {"stage": self.stage, "depends_on": dict(self.depends_on), "epochs": self.epochs,
                                            "gave": gave})
        devices.wait_for_all(self.name)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs that want the same result waiting until this one has made it, or has ended."""
        with locked(self.root / f".{self.name}.lock") if devices.is_first() else contextlib.nullcontext():
            self.path.mkdir(parents=True, exist_ok=True)
            yield

    def begin(self, seed_from: pathlib.Path | None = None) -> None:
        """Puts checkpoints to go on from into a folder that has none: those of `seed_from`, or of the same stage with the most
        epochs below this one's."""
        source = seed_from or self._fewer_epochs()
        if devices.is_first() and source is not None and not self.checkpoints.exists():
            with replacing_folder(self.checkpoints) as temporary:
                shutil.copytree(source / CHECKPOINTS, temporary, dirs_exist_ok=True)
        devices.wait_for_all(f"{self.name} begins")

    def _fewer_epochs(self) -> pathlib.Path | None:
        if self.epochs is None or not self.root.is_dir():
            return None
        found = [(int(match[1]), path) for path in self.root.iterdir()
                 if (match := re.fullmatch(rf"{re.escape(self._stem)}-(\d+)epochs", path.name)) and (path / CHECKPOINTS).is_dir()]
        fewer = [(epochs, path) for epochs, path in found if 0 < epochs < self.epochs]
        return max(fewer)[1] if fewer else None


def write_history(path: pathlib.Path, history: list[dict[str, Any]]) -> None:
    """Writes one JSON line an epoch."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in history))


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """What `write_history` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]
