"""What the commands share: devices, compiled programs, progress on the terminal, the table at the end."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from jax_brcd.report import results_table
from jax_brcd.runtime import compile_cache, devices
from jax_brcd.runtime.errors import InputError
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
    """Everything that must be set before JAX computes; only the first process of a run shows and prints."""
    set_flags()
    if config.run.compile_cache:
        compile_cache.use(config.data.cache_dir)
    run = config.run
    with devices.session(run.processes, run.process_id, run.coordinator), bars(shown=devices.is_first()) as progress:
        with _places_named(config):
            yield progress


@contextlib.contextmanager
def _places_named(config: Config) -> Iterator[None]:
    """Names the setting of the place in which the system refuses a file."""
    try:
        yield
    except OSError as error:
        places = {"out": config.out, "cache_dir": config.data.cache_dir, "data_dir": config.data.data_dir}
        around = [name for name, place in places.items() if place is not None and error.filename is not None
                  and pathlib.PurePath(os.fsdecode(error.filename)).is_relative_to(place)]
        if not around:
            raise
        name = max(around, key=lambda name: len(places[name].parts))
        raise InputError(f"{os.fsdecode(error.filename)}: {error.strerror}; free space or mend the path, then run the same "
                         "command again to go on", field=name, value=places[name]) from error
