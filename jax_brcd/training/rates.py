"""How a learning rate goes over the steps of a training, by name."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from jax_brcd.runtime.registry import Registry

Rate = float | optax.Schedule


class Course(NamedTuple):
    """What a schedule is made of: the highest rate, and in steps how long it goes, rises, and stays before a drop; None for the
    schedule's own choice."""

    peak: float
    steps: int
    warmup: int | None = None
    drop: int | None = None


class Schedule(NamedTuple):
    """A way for a rate to go. `warms` and `drops` say which parts of its course it looks at."""

    build: Callable[[Course], Rate]
    warms: bool = False
    drops: bool = False

    @property
    def ends(self) -> bool:
        """Whether it depends on the number of steps: a training of another number is then another training."""
        return self.warms or self.drops


SCHEDULES: Registry[Schedule] = Registry("schedule")
SCHEDULES.register("constant")(Schedule(lambda course: course.peak))

COSINE_WARMUP, CYCLE_WARMUP, DROP = 0.05, 0.3, 1 / 3  # parts of all steps
FACTOR = 0.1  # of a drop
CYCLE_START, CYCLE_END = 25.0, 1e4  # the peak over the first rate, and that over the last, as PyTorch has them


def cosine(course: Course) -> Rate:
    """Up in a line, then down to 0 by half a cosine (Loshchilov and Hutter, ICLR 2017, without restarts)."""
    warmup = int(COSINE_WARMUP * course.steps) if course.warmup is None else course.warmup
    first = 0.0 if warmup else course.peak
    return optax.warmup_cosine_decay_schedule(first, course.peak, warmup, max(course.steps, warmup + 1))


def one_cycle(course: Course) -> Rate:
    """Up by half a cosine and down by another (Smith and Topin, 2017)."""
    warmup = int(CYCLE_WARMUP * course.steps) if course.warmup is None else min(course.warmup, course.steps - 1)
    if warmup == 0:  # which Optax would make a peak of no length
        return optax.cosine_decay_schedule(course.peak, course.steps, 1 / (CYCLE_START * CYCLE_END))
    part = (warmup + 0.5) / course.steps  # of which Optax takes whole steps, one less where a quotient is rounded down
    return optax.cosine_onecycle_schedule(course.steps, course.peak, part, CYCLE_START, CYCLE_END)


def step(course: Course) -> Rate:
    """Constant, and a tenth of it after every so many steps."""
    drop = int(DROP * course.steps) if course.drop is None else course.drop
    return optax.exponential_decay(course.peak, max(drop, 1), FACTOR, staircase=True)


SCHEDULES.register("cosine")(Schedule(cosine, warms=True))
SCHEDULES.register("one-cycle")(Schedule(one_cycle, warms=True))
SCHEDULES.register("step")(Schedule(step, drops=True))
