"""Peak memory of one call, measured in a process of its own: `python -m benchmarks.memory loss CONTENDER BATCH BITS`.

The call runs once to load libraries and compile; then freed memory is given back to the system, the high-water mark of the
resident set is reset (Linux: /proc/self/clear_refs), and the call runs again. The peak is the new mark less what was
resident before: all that the call needs beyond its inputs, by the operating system's count and alike for both frameworks.
"""

import ctypes
import gc
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.results import Skipped

STATUS, CLEAR_REFS = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def peak_bytes(call: Callable[[], Any]) -> int:
    """Memory that `call` needs beyond what is resident before it.

    Raises:
        OSError: where the system does not tell.
    """
    call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text(RESET_PEAK)
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    return int(re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE).group(1)) * 1024


def peak_in_child(suite: str, *arguments: Any) -> tuple[int | None, str]:
    """`peak_bytes` of what benchmarks.<suite>.memory_call(*arguments) gives, in a child process.

    Returns:
        The peak, or None and why there is none.
    """
    command = [sys.executable, "-m", "benchmarks.memory", suite, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        return None, (child.stderr.strip().splitlines() or [f"the process ended with status {child.returncode}"])[-1]
    return int(child.stdout.split()[-1]), ""


def peaks_in_children(
    suite: str, names: Iterable[str], case: str, *arguments: Any
) -> tuple[dict[str, int | None], list[Skipped]]:
    """`peak_in_child` of each contender of a case, and why of those that have none."""
    found = {name: peak_in_child(suite, name, *arguments) for name in names}
    return ({name: peak for name, (peak, _) in found.items()},
            [Skipped(f"peak memory of {name}, {case}", reason) for name, (_, reason) in found.items() if reason])


def main(argv: list[str]) -> None:
    """Prints the peak of the call that the arguments name."""
    import importlib

    from jax_brcd.runtime.xla import set_flags

    set_flags()
    suite, *arguments = argv
    print(peak_bytes(importlib.import_module(f"benchmarks.{suite}").memory_call(*arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
