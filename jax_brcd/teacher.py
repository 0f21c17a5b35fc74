"""python -m jax_brcd.teacher: the hashing teacher alone, as an encoder's folder with a table of its search."""

from jax_brcd.settings.command_line import run_command


def main(argv: list[str] | None = None) -> None:
    """Makes the teacher that the options describe, or goes on with it; a run with the same settings takes it as it is."""
    from jax_brcd.stages.command import carry_out
    from jax_brcd.stages.configuration import create_config, create_parser, students_settings
    from jax_brcd.stages.run import run_teacher

    others = students_settings()
    given = vars(create_parser("python -m jax_brcd.teacher", __doc__, lambda name: name not in others).parse_args(argv))
    config = create_config(given.pop("preset"), **given)
    name = f"{config.data.dataset}-{config.teacher.teacher}-{config.objective.bits}bits-teacher-seed{config.run.seed}"
    carry_out(run_teacher, config.with_out(name))


if __name__ == "__main__":
    run_command(main)
