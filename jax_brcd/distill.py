"""python -m jax_brcd.distill: teacher, clusters, student, both searches, one table and a report."""

from jax_brcd.runtime import devices
from jax_brcd.runtime.xla import set_flags
from jax_brcd.settings.configuration import parse_command_line
from jax_brcd.settings.options import run_command
from jax_brcd.stages.pipeline import run


def main(argv: list[str] | None = None) -> None:
    """Runs the experiment that the options describe, or goes on with it."""
    set_flags()
    config = parse_command_line("python -m jax_brcd.distill", __doc__, argv)
    with devices.session(config.run.processes, config.run.process_id, config.run.coordinator):
        run(config)


if __name__ == "__main__":
    run_command(main)
