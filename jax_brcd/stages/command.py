"""What the commands share: devices, compiled programs, progress on the terminal, the table at the end."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax_brcd.report import results_table
from jax_brcd.runtime import compile_cache, devices, interruption
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
    """Everything that must be set before JAX computes; only the first process of a run shows and prints. Ctrl-C is heard."""
    run, data = config.run, config.data
    set_flags()
    with contextlib.ExitStack() as held:
        held.enter_context(named_places({"out": config.out, "cache_dir": data.cache_dir, "data_dir": data.data_dir}))
        if run.compile_cache:
            compile_cache.use(data.cache_dir)
        held.enter_context(interruption.heard())
        held.enter_context(devices.session(run.processes, run.process_id, run.coordinator))
        yield held.enter_context(bars(shown=devices.is_first()))


@contextlib.contextmanager
def named_places(places: Mapping[str, pathlib.Path | None]) -> Iterator[None]:
    """Names the setting of the place in which the system refuses a file.

    Raises:
        InputError: in place of an OSError about a file in one of the places (by their settings), about a folder that holds one,
            or about a hidden file beside one, which was to become it or locks it.
    """
    try:
        yield
    except OSError as error:
        path = None if error.filename is None else pathlib.Path(os.fsdecode(error.filename))
        around = [(name, place) for name, place in places.items() if None not in (path, place) and _concerns(path, place)]
        if not around or isinstance(error, ConnectionError):
            raise
        name, place = max(around, key=lambda each: len(each[1].parts) * (1 if path.is_relative_to(each[1]) else -1))
        where = f"{path}: " if path != place and not path.name.startswith(".") else ""
        raise InputError(f"{where}{error.strerror}; free space or mend the path, then run the same command again to go on",
                         field=name, value=place) from error


def _concerns(path: pathlib.Path, place: pathlib.Path) -> bool:
    path, place = path.absolute(), place.absolute()
    beside = path.name.startswith(f".{place.name}") and path.parent == place.parent
    return path.is_relative_to(place) or place.is_relative_to(path) or beside
