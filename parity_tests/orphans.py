"""Processes that a killed one leaves, which should end by themselves."""

import time
from collections.abc import Iterable

SECONDS = 60.0


def await_end(processes: Iterable[str]) -> None:
    """Returns when none of the processes runs any more; fails where one still does after SECONDS."""
    deadline = time.monotonic() + SECONDS
    while any(map(_runs, processes)):
        assert time.monotonic() < deadline, "a process outlives the one that began it"
        time.sleep(0.05)


def _runs(process: str) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
