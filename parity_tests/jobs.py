"""Training jobs of the tests, from settings in one row."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_brcd.training.loop import Stage, Task
from jax_brcd.training.schedule import Schedule
from jax_brcd.views.outputs import outputs_of
from jax_brcd.views.source import Source
from jax_brcd.views.sources import KeptFeatures

SCHEDULE = {field.name for field in dataclasses.fields(Schedule)}
SOURCE = {field.name for field in dataclasses.fields(Source)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GivenViews:
    """Views that both frameworks see alike."""

    pixels: jax.Array

    def outputs(self, model, indices, views, valid, derivation=None, key=None):
        return outputs_of(model.head, model.backbone(self.pixels[views, indices], train=True, valid=valid, key=key))


def job(views: Any, **settings: Any) -> dict[str, Any]:
    """`source`, `schedule` and what else the stages' functions take, from the fields of Source and Schedule in one row."""
    return {"source": Source(views, **{name: value for name, value in settings.items() if name in SOURCE}),
            "schedule": Schedule(**{name: value for name, value in settings.items() if name in SCHEDULE}),
            **{name: value for name, value in settings.items() if name not in SOURCE | SCHEDULE}}


def toy_stage(**settings: Any) -> Stage:
    """A stage from the fields of Task, Source and Schedule in one row; its loss finds its data among the constants."""
    parts = job(KeptFeatures(jnp.zeros((1, 1, 1))), **settings)
    source, schedule = parts.pop("source"), parts.pop("schedule")
    return Stage(Task(**parts), source, schedule)


def with_settings(stage: Stage, **settings: Any) -> Stage:
    """The stage with other fields of its Task or Schedule."""
    of_schedule = {name: value for name, value in settings.items() if name in SCHEDULE}
    of_task = {name: value for name, value in settings.items() if name not in SCHEDULE}
    return dataclasses.replace(stage, task=dataclasses.replace(stage.task, **of_task),
                               schedule=dataclasses.replace(stage.schedule, **of_schedule))
