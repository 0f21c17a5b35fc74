"""Whose a run directory is: the settings and the data of its run, and whether another command may go on with it."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jax_brcd import __version__
from jax_brcd.hub import fetch, is_hub_name
from jax_brcd.models import tags_of
from jax_brcd.models.variants import HubWeights
from jax_brcd.models.weights import weight_files
from jax_brcd.runtime import devices
from jax_brcd.runtime.digests import LENGTH, PIECE_BYTES, digest
from jax_brcd.runtime.errors import InputError, of_setting
from jax_brcd.runtime.files import as_path, check_folder, parse_json, read_json, write_json
from jax_brcd.runtime.progress import Progress
from jax_brcd.stages.configuration import EXTENDABLE, UNCOMPARED, Config, differences, spelled, students_settings
from jax_brcd.stages.context import REMEDIES, StageDiverged
from jax_brcd.stages.sight import NO_FILES

CONFIG, DIVERGED = "config.json", "diverged.json"
# Of what a run leaves
LEFT = ("teacher", "student_symmetric", "student_asymmetric", "student_both", "metrics.json", "codes.npz", "report.html")
HEADER_BYTES = 100_000_000  # of safetensors at most


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a run directory says of its run.

    Attributes:
        settings: by name. data: digests of the data set's parts and of files of weights, by what they are.
        continued: by stage, the folder of a diverged training that the run goes on from.
        student: whether the run is to teach one, and not the teacher's alone. head_came: whether the teacher's weights brought
            a hash head. finished: whether everything is there.
    """

    settings: Mapping[str, Any]
    data: Mapping[str, str]
    continued: Mapping[str, str] = dataclasses.field(default_factory=dict)
    student: bool = True
    head_came: bool = False
    finished: bool = False

    def write(self, out: pathlib.Path) -> None:
        """Makes `out` the run's directory. The first process writes."""
        if devices.is_first():
            write_json(out / CONFIG, {"version": __version__, **dataclasses.asdict(self)})

    def finish(self, out: pathlib.Path) -> None:
        """Says that everything is there."""
        dataclasses.replace(self, finished=True).write(out)


def read_claim(out: pathlib.Path) -> Claim | None:
    """What a run directory says of its run; None for a new one.

    Raises:
        InputError: for a directory of something else, and of an older version, which kept no record of its data.
    """
    check_folder(out, field="out")
    if not (out / CONFIG).exists():
        foreign = [name for name in LEFT if (out / name).exists()]
        if foreign:
            raise InputError(f"{out}: holds {', '.join(foreign)} and no {CONFIG} of a run, which would be lost; name another "
                             "`out`")
        return None
    try:
        told = read_json(out / CONFIG)
    except ValueError as error:
        raise InputError(f"{out / CONFIG}: broken ({error}); name another `out`, or delete the directory") from None
    if isinstance(told, dict) and "backbone" in told:
        raise InputError(f"{out}: the folder of an encoder, and no run's; name another `out`")
    if isinstance(told, dict) and "framework" in told:
        raise InputError(f"{out}: holds a run of torch_ref; name another `out`")
    if isinstance(told, dict) and "settings" not in told:
        raise InputError(f"{out}: written by an older jax_brcd, which kept no record of the data it used; name another `out`, "
                         "or delete it")
    if not _is_claim(told):
        raise InputError(f"{out / CONFIG}: broken (no settings and data of a run); name another `out`, or delete the directory")
    return Claim(**{field.name: told[field.name] for field in dataclasses.fields(Claim) if field.name in told})


def _is_claim(told: Any) -> bool:
    """Whether a file says of a run what `Claim.write` does, of every setting a value of a kind that it has."""
    if not isinstance(told, dict):
        return False
    settings, data, continued = told.get("settings"), told.get("data"), told.get("continued", {})
    return (all(isinstance(part, dict) for part in (settings, data, continued))
            and all(isinstance(text, str) for text in (*data.values(), *continued.values()))
            and all(value is None or isinstance(value, bool | int | float | str) for value in settings.values())
            and all(isinstance(settings.get(name, ""), str) for name in ("method", "teacher_objective"))
            and all(isinstance(told.get(name, False), bool) for name in ("student", "head_came", "finished")))


def check_settings(out: pathlib.Path, config: Config, data: Mapping[str, str], earlier: Claim, *, student: bool) -> None:
    """Raises InputError where `out` holds a run of other settings that cannot be gone on with under these."""
    allowed = _remedies(out) | dict.fromkeys(EXTENDABLE, 1)
    forbidden = {name: pair for name, pair in changes(config, data, earlier, student=student).items()
                 if name not in allowed or not isinstance(pair[0], int | float) or (pair[1] > pair[0]) != (allowed[name] > 0)}
    if forbidden:
        raise InputError(f"{out}: holds a run with {spelled(forbidden)}; name another `out`, or delete it")


def changes(config: Config, data: Mapping[str, str], earlier: Claim, *, student: bool) -> dict[str, tuple[Any, Any]]:
    """The settings that are no longer those of the earlier run, each with (theirs, ours).

    What only a student depends on counts where both teach one. A file of weights is what it holds, wherever it lies.
    """
    ours = settled(config, head_came=earlier.head_came).compared()
    theirs = {name: value for name, value in earlier.settings.items() if name not in UNCOMPARED}
    found = differences(ours, theirs)
    moved = {setting for role, setting, _ in _weights(config) if data.get(role) and data.get(role) == earlier.data.get(role)}
    ignored = moved | (set() if student and earlier.student else students_settings())
    return {name: pair for name, pair in found.items() if name not in ignored}


def check_no_student(out: pathlib.Path, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises InputError where a teacher alone would take the place of the one that students in `out` were taught by."""
    taught = [name for name in LEFT if name.startswith("student") and (out / name).exists()]
    if taught:
        raise InputError(f"{out}: holds {' and '.join(taught)} of a teacher with {spelled(changed)}; give that to the whole run, which "
                         "teaches them anew, or name another `out`")


def check_data(out: pathlib.Path, data: Mapping[str, str], earlier: Claim) -> None:
    """Raises InputError where the data has changed since the earlier run, saying what of it."""
    # Weights are needed no more once they have been used
    changed = [name for name in sorted({*earlier.data, *data})
               if earlier.data.get(name) != data.get(name) and (name in data or not name.startswith(WEIGHTS_OF))]
    if changed:
        raise InputError(f"{out}: its data has changed since: {', '.join(changed)}; name another `out`, or delete it")


def continued(out: pathlib.Path, changed: Mapping[str, Any], earlier: Claim) -> dict[str, str]:
    """By stage the folder of a diverged training that a run with these changes goes on from."""
    found, diverged = dict(earlier.continued), _diverged(out)
    if diverged is not None and set(changed) & set(_remedies(out)):
        found[diverged["stage"]] = diverged["folder"]
    return found


def _remedies(out: pathlib.Path) -> Mapping[str, int]:
    """The settings that a diverged run may be gone on with, and which way they may change."""
    diverged = _diverged(out)
    return {} if diverged is None else REMEDIES.get(diverged["stage"], {})


def _diverged(out: pathlib.Path) -> dict[str, str] | None:
    """What `mark_diverged` said, if anything."""
    if not (out / DIVERGED).exists():
        return None
    try:
        told = read_json(out / DIVERGED)
        if not isinstance(told, dict) or not all(isinstance(told.get(name), str) for name in ("stage", "folder")):
            raise ValueError("no stage and folder of a diverged training")
    except ValueError as error:
        raise InputError(f"{out / DIVERGED}: broken ({error}); name another `out`, or delete the directory") from None
    return told


def mark_diverged(out: pathlib.Path, error: StageDiverged) -> None:
    """Says in the run directory what diverged, for a run with other settings to go on from."""
    if devices.is_first():
        write_json(out / DIVERGED, {"stage": error.folder.stage, "folder": error.folder.name, "problem": error.problem})


def unmark_diverged(out: pathlib.Path) -> None:
    """The run goes on from what diverged, or did not diverge after all."""
    if devices.is_first():
        (out / DIVERGED).unlink(missing_ok=True)


def settled(config: Config, *, head_came: bool) -> Config:
    """The configuration with the epochs that the teacher's hash head is trained for, now that it is known whether one came."""
    epochs = config.teacher_epochs(head_came=head_came)
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, teacher_epochs=epochs),
                               given=config.given | {"teacher_epochs"})


WEIGHTS_OF = "weights of "


def _weights(config: Config) -> tuple[tuple[str, str, str], ...]:
    """What is loaded, the setting that names it, and the backbone it is for."""
    return ((f"{WEIGHTS_OF}the teacher", "teacher_weights", config.teacher.teacher),
            (f"{WEIGHTS_OF}the student", "student_weights", config.student.student))


def weights_digests(config: Config, *, student: bool) -> dict[str, str]:
    """Digests of the files that weights come from, by what they are. Names and what is not there have none."""
    found, named = {}, config.flat()
    for role, setting, backbone in _weights(config)[: 2 if student else 1]:
        told = named[setting]
        with of_setting(setting, told):
            path = as_path(config.weights(setting))
            if setting in config.fetched or (told not in NO_FILES and told not in tags_of(backbone)):
                with contextlib.suppress(InputError):  # a broken folder is refused where it is read
                    digests = [_tensors_digest(file) for file in weight_files(path) if file.is_file()]
                    if digests:
                        found[role] = digests[0] if len(digests) == 1 else digest(*digests)
    return found


def fetch_weights(config: Config, *, student: bool, progress: Progress) -> tuple[Config, InputError | None]:
    """The configuration with what it names on the Hugging Face hub fetched; and why something cannot be had, if so."""
    fetched, named, missed = {}, config.flat(), None
    for _, setting, backbone in _weights(config)[: 2 if student else 1]:
        told, tagged = named[setting], tags_of(backbone).get(named[setting])
        name = tagged.name if isinstance(tagged, HubWeights) else told if is_hub_name(told) else None
        try:
            if name is not None:
                fetched[setting] = fetch(name, progress=progress)
        except InputError as error:
            missed = missed or InputError(error.problem.removeprefix(f"{told}: "), field=setting, value=told)
    return dataclasses.replace(config, fetched=fetched), missed


def _tensors_digest(path: pathlib.Path) -> str:
    """A digest of a file of weights; of safetensors without the notes in its header, whose order is a matter of chance."""
    with open(path, "rb") as file:
        sha = hashlib.sha256()
        # A broken file is refused where it is read
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            if path.suffix == ".safetensors":
                header = parse_json(file.read(min(int.from_bytes(file.read(8), "little"), HEADER_BYTES)))
                header.pop("__metadata__", None)
                sha.update(json.dumps(header, sort_keys=True).encode())
        while piece := file.read(PIECE_BYTES):
            sha.update(piece)
    return sha.hexdigest()[:LENGTH]
