"""Processes that measurements and studies run in, beside one another."""

import concurrent.futures
import contextlib
import math
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from jax_brcd.runtime.workers import end_with_parent
from jax_brcd.runtime.xla import set_flags


def processes(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    """A pool of as many new processes, each on cores of its own, that end when the one that started them is killed."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (context.Value("i"), jobs))


def as_they_end(jobs: int, work: Callable[..., Any], each: Iterable[tuple]) -> Iterator[Any]:
    """What `work` gives for each arguments, in the order in which they end. What ends the caller's loop cancels what has not begun."""
    with processes(jobs) as pool:
        futures = [pool.submit(work, *arguments) for arguments in each]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def logged(log: pathlib.Path, compiled: pathlib.Path) -> Iterator[None]:
    """For a job that is a run: what it prints goes to a log, and it shares compiled programs with runs of other seeds and methods."""
    set_flags()
    log.parent.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(compiled.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with open(log, "a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def _begin(begun: Any, jobs: int) -> None:
    """Keeps a process to its share of the cores, where the system can, so that none waits for the threads of another.

    Args:
        begun: a number that the processes share; how many have their cores.
    """
    end_with_parent()
    with begun.get_lock():
        place, begun.value = begun.value, begun.value + 1
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share_of(sorted(os.sched_getaffinity(0)), place, jobs))


def share_of(cores: list[int], place: int, jobs: int) -> set[int]:
    """The cores of one of so many jobs. All have as many; those of two overlap only where the cores do not divide."""
    count = math.ceil(len(cores) / jobs)
    return {cores[(place * count + number) % len(cores)] for number in range(count)}
