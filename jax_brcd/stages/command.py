"""What the commands share: devices, compiled programs, progress on the terminal, the table at the end."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jax_brcd.report import results_table
from jax_brcd.runtime import compile_cache, devices, interruption
from jax_brcd.runtime.xla import set_flags
from jax_brcd.settings.command_line import Bars, bars, say
from jax_brcd.stages.configuration import Config


def carry_out(job: Callable[..., dict[str, Any]], config: Config) -> None:
    """Runs `job` of a configuration with bars, and prints the table of what it found."""
    with session(config) as progress:
        metrics = job(config, progress=progress, say=say)
        progress.close()
        say(f"{results_table(metrics)}\n\nReport: {config.out / 'report.html'}")


@contextlib.contextmanager
def session(config: Config) -> Iterator[Bars]:
    """Everything that must be set before JAX computes; only the first process of a run shows and prints. Ctrl-C is heard."""
    set_flags()
    if config.run.compile_cache:
        compile_cache.use(config.data.cache_dir)
    run = config.run
    joined = devices.session(run.processes, run.process_id, run.coordinator)
    with interruption.heard(), joined, bars(shown=devices.is_first()) as progress:
        yield progress
