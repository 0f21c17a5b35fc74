"""python -m jax_brcd.student: a student of a teacher that is there already, with a table of both searches and a report."""

from collections.abc import Mapping
from typing import Any

from jax_brcd.settings.command_line import bars, run_command


def main(argv: list[str] | None = None) -> None:
    """Teaches the student that the options describe, or goes on with it."""
    from jax_brcd.encoder import folder_of, read_config
    from jax_brcd.runtime.errors import InputError, of_setting
    from jax_brcd.settings.stages import TeacherConfig
    from jax_brcd.stages.command import carry_out
    from jax_brcd.stages.configuration import create_config, create_parser, names_of
    from jax_brcd.stages.run import run
    from jax_brcd.teachers.objectives import OBJECTIVES

    others = names_of(TeacherConfig, *OBJECTIVES.values()) - {"embeddings"} | {"bits"}
    parser = create_parser("python -m jax_brcd.student", __doc__, lambda name: name not in others)
    parser.add_argument("--teacher", required=True, metavar="DIR",
                        help="folder of the teacher: an encoder's, as a run leaves it at RUN/teacher, or hf:USER/NAME of the "
                        "Hugging Face hub")
    given = vars(parser.parse_args(argv))
    folder = given.pop("teacher")
    with of_setting("teacher", folder), bars() as progress:
        encoder = read_config(folder_of(folder, progress=progress))
        made = made_by(encoder["provenance"])
        # What is wrong with these is the folder's fault
        create_config(**made, teacher=encoder["backbone"], bits=encoder["bits"])
    preset = given.pop("preset")
    config = create_config(preset, **kept_of(preset, made) | made | given, teacher=encoder["backbone"], teacher_weights=folder,
                           bits=encoder["bits"])
    try:
        carry_out(run, config.with_out(f"{config.out.name}-of-{encoder['space'].replace('/', '_')}"))
    except InputError as error:
        error.field = "teacher" if error.field == "teacher_weights" else error.field  # as this command calls it
        raise


def kept_of(preset: str | None, made: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset that is named for the student, where the objective of its teacher proposes others for both."""
    from jax_brcd.settings.presets import PRESETS
    from jax_brcd.teachers.objectives import OBJECTIVES
    from jax_brcd.teachers.objectives.base import proposals

    proposed = proposals(OBJECTIVES[made["teacher_objective"]]) if "teacher_objective" in made else {}
    return {} if preset is None else {name: value for name, value in PRESETS[preset].items() if name in proposed}


def made_by(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a teacher was made by, as far as its folder says: they describe it, and train nothing here."""
    from jax_brcd.settings.stages import TeacherConfig
    from jax_brcd.stages.configuration import names_of
    from jax_brcd.teachers.objectives import OBJECTIVES

    known = provenance.get("settings")
    if not isinstance(known, dict) or str(known.get("teacher_objective")) not in OBJECTIVES:
        return {}
    own = names_of(TeacherConfig, OBJECTIVES[known["teacher_objective"]]) - {"teacher", "teacher_weights", "teacher_epochs"}
    return {name: known[name] for name in own if name in known}


if __name__ == "__main__":
    run_command(main)
