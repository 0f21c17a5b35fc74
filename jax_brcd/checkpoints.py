"""Orbax checkpoints of a training stage: arrays and progress committed together, the newest one kept."""

import errno
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

Tree = Any


class Checkpoints:
    """The checkpoints of one stage in one directory.

    A save is committed by a rename, so a run killed at any moment finds the last committed one whole.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, epoch: int, arrays: Tree, progress: dict[str, Any]) -> None:
        """Commits `arrays` and the JSON value `progress` as of the end of `epoch`.

        Raises:
            OSError: where the disk is full; the previous checkpoint stays.
        """
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress))
        try:
            self._manager.save(epoch, args=items, force=True)
        except Exception as error:
            if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
                raise OSError(errno.ENOSPC, "no space left on device", str(self.directory)) from error
            raise

    def restore(self, like: Tree) -> tuple[Tree, dict[str, Any]] | None:
        """The newest arrays, shaped and placed as `like`, and their progress; None where nothing is saved."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(epoch, args=items)
        return restored["arrays"], restored["progress"]

    def close(self) -> None:
        """Ends the manager's background work."""
        self._manager.close()
