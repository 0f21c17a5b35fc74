"""What the service counts, in the text form that Prometheus reads."""

import contextlib
import os
import pathlib
import threading
from collections import Counter
from collections.abc import Mapping

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # upper bounds of the classes of durations
PREFIX = "jax_brcd_"
FORMAT = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Requests by route and status, and how long each route took. Routes are those of the application, never a client's text,
    so that there is an end of them."""

    def __init__(self):
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._classes: Counter[tuple[str, float]] = Counter()
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self.in_flight = 0

    def record(self, route: str, status: int, seconds: float) -> None:
        """Counts one request."""
        with self._lock:
            self._requests[route, status] += 1
            self._counts[route] += 1
            self._sums[route] += seconds
            for bound in SECONDS:
                self._classes[route, bound] += seconds <= bound

    def text(self, gauges: Mapping[str, tuple[str, int | float]], counters: Mapping[str, tuple[str, int | float]]) -> str:
        """The exposition: what was recorded, and further values by name, each with its help."""
        gauges = {"requests_in_flight": ("requests that are worked on", self.in_flight),
                  "resident_bytes": ("memory of the process", resident_bytes()), **gauges}
        with self._lock:
            lines = _family("requests_total", "counter", "requests by route and status",
                            [(f'{{route="{route}",status="{status}"}}', count) for (route, status), count in
                             sorted(self._requests.items())])
            lines += _family("request_seconds", "histogram", "seconds from a request's head to its answer", self._durations())
        for kind, values in (("gauge", gauges), ("counter", counters)):
            for name, (help, value) in values.items():
                lines += _family(name, kind, help, [("", value)])
        return "\n".join(lines) + "\n"

    def _durations(self) -> list[tuple[str, int | float]]:
        samples = []
        for route in sorted(self._counts):
            samples += [(f'_bucket{{route="{route}",le="{bound}"}}', self._classes[route, bound]) for bound in SECONDS]
            samples += [(f'_bucket{{route="{route}",le="+Inf"}}', self._counts[route]),
                        (f'_sum{{route="{route}"}}', self._sums[route]), (f'_count{{route="{route}"}}', self._counts[route])]
        return samples


def _family(name: str, kind: str, help: str, samples: list[tuple[str, int | float]]) -> list[str]:
    name = PREFIX + name
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}", *(f"{name}{labels} {value:g}" if isinstance(value, float)
                                                               else f"{name}{labels} {value}" for labels, value in samples)]


def resident_bytes(process: int | str = "self") -> int:
    """The memory of a process by its number, 0 where the system does not tell."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
