"""Orbax checkpoints of a training stage: arrays and progress committed together, the newest one kept."""

import contextlib
import gc
import logging
import os
import pathlib
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, is_passing, system_errors

Tree = Any

# TensorStore reports a failed write as a ValueError with the system's error number in its text
SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")


class Checkpoints:
    """The checkpoints of one stage in one directory.

    A save is committed by a rename, so a run killed at any moment finds the last committed one whole. Saves are numbered on
    from what is there, however much training lies between two of them.
    """

    def __init__(self, directory: os.PathLike | str):
        import orbax.checkpoint as ocp

        self.directory = pathlib.Path(os.path.abspath(as_path(directory)))
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        with _silent(), system_errors(self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, arrays: Tree, progress: dict[str, Any]) -> None:
        """Commits `arrays` and the JSON value `progress` as the newest checkpoint.

        Raises:
            OSError: where the disk is full; the previous checkpoint stays.
        """
        import orbax.checkpoint as ocp

        number = (self._manager.latest_step() or 0) + 1
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress))
        failure = None
        with _silent():
            try:
                with _late_writes_unheard():
                    self._manager.save(number, args=items, force=True)
            except (OSError, ValueError) as error:
                failure = self._system_error(error)
            if failure:
                logging.getLogger("asyncio").addFilter(_of_no_write)  # a thread may hold an error for longer than the save takes
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # of writes that had not begun when the first one failed
                    gc.collect()  # asyncio logs an error that nobody awaited when it is collected
        if failure:
            raise failure

    def _system_error(self, error: Exception) -> OSError:
        """The operating system's error behind what Orbax raised; raises `error` itself where there is none."""
        in_text = SYSTEM_ERROR.search(str(error))
        number = int(in_text[1]) if in_text else getattr(error, "errno", None)
        if number is None:
            raise error
        return OSError(number, os.strerror(number), str(self.directory))

    def restore(self, like: Tree) -> tuple[Tree, dict[str, Any]] | None:
        """The newest arrays, shaped and placed as `like`, and their progress; None where nothing is saved.

        Raises:
            InputError: for a checkpoint that is damaged or of arrays of other shapes.
        """
        import orbax.checkpoint as ocp

        number = self._manager.latest_step()
        if number is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        try:
            with _silent():
                restored = self._manager.restore(number, args=items)
        except Exception as error:  # Orbax raises almost anything for damaged files
            if is_passing(error):
                raise
            raise InputError(f"{self.directory / str(number)}: damaged, or of another model ({type(error).__name__}); "
                             "delete that directory to train the stage again") from error
        return restored["arrays"], restored["progress"]

    def close(self) -> None:
        """Ends the manager's background work."""
        self._manager.close()


@contextlib.contextmanager
def _late_writes_unheard() -> Iterator[None]:
    """Keeps threads of TensorStore from printing a traceback each where a save ends before its writes: they find the loop closed
    that waited for them. They come when the save is over, so after one that failed this holds for the rest of the process."""
    shown = sys.unraisablehook

    def show(about) -> None:
        late = isinstance(about.exc_value, RuntimeError) and str(about.exc_value) == "Event loop is closed"
        if not (late and threading.current_thread() is not threading.main_thread()):
            shown(about)

    sys.unraisablehook = show
    yield
    if sys.unraisablehook is show:
        sys.unraisablehook = shown


def _of_no_write(record: logging.LogRecord) -> bool:
    """Whether a record tells of anything but a write that failed together with the one whose error the save has raised."""
    return not (record.exc_info and SYSTEM_ERROR.search(str(record.exc_info[1])))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps Orbax from logging tracebacks of its threads: the error itself reaches the caller."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
