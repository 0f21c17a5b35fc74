"""python -m jax_brcd.distill: teacher, clusters, student, both searches, one table and a report."""

from jax_brcd.settings.command_line import run_command


def main(argv: list[str] | None = None) -> None:
    """Runs the experiment that the options describe, or goes on with it."""
    from jax_brcd.stages.command import carry_out
    from jax_brcd.stages.configuration import parse_command_line
    from jax_brcd.stages.run import run

    carry_out(run, parse_command_line("python -m jax_brcd.distill", __doc__, argv))


if __name__ == "__main__":
    run_command(main)
