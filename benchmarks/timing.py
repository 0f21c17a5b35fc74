"""Timing of functions in turns (A B A B), so that whatever slows the machine for a while slows all of them alike."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SAMPLE_SECONDS = 0.1  # a sample repeats a short call until it has taken about this long
# Idle threads of either framework go on spinning for some milliseconds; after this pause they sleep
PAUSE_SECONDS = 0.03
FEWEST_SAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to do a case's work.

    Attributes:
        call: does the work and returns once it is done.
        own_clock: whether the call returns the seconds that the work took, by the clock of where it is done.
        compiled: whether the first call compiles; its time is then shown apart.
        share: how much of the work a call does; seconds are projected to the whole of it.
        note: what a reader of the numbers must know.
    """

    name: str
    call: Callable[[], Any]
    compiled: bool = False
    share: float = 1.0
    note: str = ""
    own_clock: bool = False


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Seconds that a case's work takes.

    Attributes:
        samples: one a turn, each the mean of `calls` calls. first: the first call of all, which warms up and compiles.
    """

    samples: tuple[float, ...]
    first: float
    calls: int = 1

    @property
    def median(self) -> float:
        """The median sample."""
        return float(np.median(self.samples))

    @property
    def low(self) -> float:
        """The lower quartile."""
        return float(np.quantile(self.samples, 0.25))

    @property
    def high(self) -> float:
        """The upper quartile."""
        return float(np.quantile(self.samples, 0.75))


def interleaved(
    contenders: Sequence[Contender], *, samples: int, sample_seconds: float | None = None, budget: float = math.inf,
    clock: Callable[[], float] = time.perf_counter, pause: Callable[[float], None] = time.sleep,
) -> dict[str, Measurement]:
    """Measures contenders in turns, each after a pause and, where it is short, after a call that is not timed.

    Args:
        samples: turns. sample_seconds: how long a sample lasts at least; None for SAMPLE_SECONDS. budget: seconds after which
            no further turn begins, once there were three. clock, pause: of the time module.

    Returns:
        A measurement by contender's name.
    """
    sample_seconds = SAMPLE_SECONDS if sample_seconds is None else sample_seconds
    first, calls = {}, {}
    for contender in contenders:
        first[contender.name] = again = _seconds(contender, 1, clock)
        if contender.compiled or again < budget:
            again = _seconds(contender, 1, clock)
        calls[contender.name] = max(1, math.ceil(sample_seconds / max(again, 1e-9)))
    taken: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    began = clock()
    for turn in range(samples):
        if turn >= FEWEST_SAMPLES and clock() - began > budget:
            break
        for contender in contenders:
            pause(PAUSE_SECONDS)
            repeats = calls[contender.name]
            if repeats > 1:
                contender.call()
            taken[contender.name].append(_seconds(contender, repeats, clock))
    return {contender.name: Measurement(tuple(seconds / contender.share for seconds in taken[contender.name]),
                                        first[contender.name], calls[contender.name]) for contender in contenders}


def _seconds(contender: Contender, repeats: int, clock: Callable[[], float]) -> float:
    began = clock()
    told = [contender.call() for _ in range(repeats)]
    return (sum(told) if contender.own_clock else clock() - began) / repeats
