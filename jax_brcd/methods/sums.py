"""Sums of methods, `brcd+rkd`: every part learns as it would alone, and the student minimises their weighted sum.

The settings of a sum are those of its parts, each behind its part's name: `rkd_angle_weight`. A name without its part is
taken where one part alone has it, and refused where several have, so that no setting is another one silently.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float

from jax_brcd.methods.base import BaseMethod, DistillationBatch, Method, Metrics, Needs, TeacherKnowledge, Tree
from jax_brcd.methods.sections import Section
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.registry import Registry
from jax_brcd.settings import options

PLUS = "+"


def _of_any_part(name: str) -> property:
    """What a sum is where any part of it is."""
    return property(lambda self: any(getattr(part, name) for part in self.parts.values()), doc="See Method: where any part does.")


@dataclasses.dataclass(frozen=True)
class Sum(BaseMethod):
    """Several methods at once. `sum_kind` adds the settings of its parts as fields.

    What the parts need is merged: views are encoded once, each part has negatives of its own. A part that replaces the
    student's own objective makes the sum replace it.
    """

    weights: tuple[float, ...]
    kinds: ClassVar[Mapping[str, type]] = {}

    @functools.cached_property
    def parts(self) -> dict[str, Method]:
        """The methods by their names."""
        return {part: kind(**{name: getattr(self, in_sum(part, name)) for name in settings_of(kind)})
                for part, kind in self.kinds.items()}

    @functools.cached_property
    def needs(self) -> Needs:
        """What all parts need together.

        Raises:
            InputError: for parts that need different clusters or numbers of neighbours.
        """
        every = [part.needs for part in self.parts.values()]
        views = tuple(dict.fromkeys(view for needs in every for view in needs.views))
        return Needs(
            views=views, unseen=tuple(view for view in views if not any(view in needs.shown for needs in every)),
            student=tuple(dict.fromkeys(name for needs in every for name in needs.student)),
            teacher=tuple(dict.fromkeys(name for needs in every for name in needs.teacher)),
            negatives=sum(needs.negatives for needs in every),
            neighbours=agreed("neighbours", (needs.neighbours for needs in every)) or 0,
            clusters=agreed("clusters", (needs.clusters for needs in every)))

    replaces_objective = _of_any_part("replaces_objective")
    meets_teacher = _of_any_part("meets_teacher")
    reads_temperature = _of_any_part("reads_temperature")
    counts_steps = _of_any_part("counts_steps")

    def check_settings(self) -> None:
        """See Method."""
        for name, part in self.parts.items():
            with _told_of(name, settings_of(type(part))):
                part.check_settings()

    def check(self, *, images: int, streamed: bool) -> None:
        """See Method."""
        for name, part in self.parts.items():
            with _told_of(name, settings_of(type(part))):
                part.check(images=images, streamed=streamed)

    def init(self, knowledge: TeacherKnowledge, *, seed: int) -> tuple[Tree, Tree]:
        """Parameters and memory of each part under its name, the same as if it were alone."""
        first = {name: part.init(knowledge, seed=seed) for name, part in self.parts.items()}
        return {name: parameters for name, (parameters, _) in first.items()}, {
            name: memory for name, (_, memory) in first.items()}

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The weighted sum; the history has each part's loss before the weight, and its metrics, under its name."""
        total, after, metrics, taken = 0.0, {}, {}, 0
        for number, ((name, part), weight) in enumerate(zip(self.parts.items(), self.weights, strict=True)):
            count = part.needs.negatives
            own = batch._replace(negatives=batch.negatives[:, taken : taken + count] if count else None,
                                 key=jax.random.fold_in(batch.key, number))
            taken += count
            loss, after[name], found = part.loss(parameters[name], memory[name], own)
            total = total + weight * loss
            metrics |= {in_sum(name, metric): value for metric, value in {"distillation": loss, **found}.items()}
        return total, after, metrics

    def report(self, memory: Tree) -> list[Section]:
        """The sections of all parts, each under its part's name."""
        return [dataclasses.replace(section, name=in_sum(name, section.name))
                for name, part in self.parts.items() for section in part.report(memory[name])]


def parts_of(name: str, method: Method) -> Mapping[str, Method]:
    """The parts of a sum by their names; of a method that is none itself, by the name it has."""
    return method.parts if isinstance(method, Sum) else {name: method}


def in_sum(part: str, name: str) -> str:
    """What a part's setting, metric or section is called in a sum."""
    return f"{part}_{name}"


def settings_of(kind: type) -> tuple[str, ...]:
    """The names of a method's settings."""
    return tuple(field.name for field in dataclasses.fields(kind))


def agreed(field: str, needs: Iterable[Any]) -> Any:
    """The one value that is needed; None where nothing is.

    Raises:
        InputError: where the parts of a sum need different ones.
    """
    different = [each for each in dict.fromkeys(needs) if each]
    if len(different) > 1:
        raise InputError("the parts of a sum of methods share theirs, and need different ones; give them the same", field=field)
    return different[0] if different else None


def prefixed(part: str, kind: type) -> list[tuple[str, Any, dataclasses.Field]]:
    """A method's settings as the fields of a sum."""
    return [(in_sum(part, field.name), field.type, dataclasses.field(default=field.default, metadata=field.metadata))
            for field in dataclasses.fields(kind)]


def part_settings(kinds: Mapping[str, type]) -> dict[str, type]:
    """For each method by its name a dataclass of the settings that it has as part of a sum: what a command line offers."""
    return {part: _part_kind(part, kind) for part, kind in kinds.items()}


@functools.cache
def _part_kind(part: str, kind: type) -> type:
    return dataclasses.make_dataclass(f"{kind.__name__}InSum", prefixed(part, kind), frozen=True)


@functools.cache
def sum_kind(parts: tuple[tuple[str, type], ...]) -> type[Sum]:
    """The dataclass of a sum of these methods."""
    fields = [field for part, kind in parts for field in prefixed(part, kind)]
    return dataclasses.make_dataclass(PLUS.join(part for part, _ in parts), fields, bases=(Sum,), frozen=True,
                                      namespace={"kinds": dict(parts)})


def create_sum(
    name: str, kinds: Registry, settings: Mapping[str, Any], weights: str | Iterable[float | int] | None
) -> Sum:
    """The sum that `name` spells, `brcd+rkd`.

    Args:
        kinds: all methods by their names. settings: as the module says. weights: of the parts in their order; None for 1 each.

    Raises:
        InputError: for a part that is named twice, settings that are no part's or several parts', and wrong weights.
        UnknownName: for an unknown part.
    """
    names = name.split(PLUS)
    twice = [part for part in names if names.count(part) > 1]
    if twice:
        raise InputError(f"'{twice[0]}' is named twice; name each method once and give it a weight by `method_weights`",
                         field="method", value=name)
    chosen = {part: kinds[part] for part in names}
    own = divided(name, chosen, settings)
    parts = {part: _create_part(kinds, part, own[part], settings) for part in names}
    values = {in_sum(part, setting): getattr(method, setting)
              for part, method in parts.items() for setting in settings_of(chosen[part])}
    made = sum_kind(tuple(chosen.items()))(weights=weights_of(name, weights), **values)
    made.needs  # parts that cannot be together are refused now
    return made


def _create_part(kinds: Registry, part: str, own: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """A part of its own settings, which errors call as they were given."""
    with _told_of(part, [name for name in settings_of(kinds[part]) if in_sum(part, name) in given]):
        return options.create(kinds, part, own)


@contextlib.contextmanager
def _told_of(part: str, names: Iterable[str]) -> Iterator[None]:
    """Errors about a part call these of its settings what they are called in the sum."""
    try:
        yield
    except InputError as error:
        problem, field = error.problem, error.field
        for name in names:
            problem = problem.replace(f"`{name}`", f"`{in_sum(part, name)}`")
            field = in_sum(part, name) if field == name else field
        raise type(error)(problem, field=field, value=error.value) from None


def divided(name: str, kinds: Mapping[str, type], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each part, of names with or without their part's."""
    owners: dict[str, list[tuple[str, str]]] = {}
    for part, kind in kinds.items():
        for setting in settings_of(kind):
            owners.setdefault(in_sum(part, setting), []).append((part, setting))
            owners.setdefault(setting, []).append((part, setting))
    found: dict[str, dict[str, Any]] = {part: {} for part in kinds}
    for given, value in settings.items():
        meant = owners.get(given, [])
        if not meant:
            known = ", ".join(f"`{in_sum(part, setting)}`" for part, kind in kinds.items() for setting in settings_of(kind))
            raise InputError(f"not a setting of method '{name}'; its own are: {known or 'none'}", field=given)
        if len(meant) > 1:
            spelled = " or ".join(f"`{in_sum(part, setting)}`" for part, setting in meant)
            raise InputError(f"several parts of method '{name}' have it; say whose: {spelled}", field=given, value=value)
        (part, setting), = meant
        if setting in found[part]:
            raise InputError(f"given twice, as `{setting}` and as `{in_sum(part, setting)}`; give one", field=given)
        found[part][setting] = value
    return found


def weights_of(name: str, weights: str | Iterable[float | int] | None) -> tuple[float, ...]:
    """The weight of each part of the sum `name`; of text, its numbers stand between commas.

    Raises:
        InputError: for another count than the parts', and for what is no number above 0: a part of no weight would be none.
    """
    count = len(name.split(PLUS))
    if weights is None:
        return (1.0,) * count
    words = weights.split(",") if isinstance(weights, str) else list(np.atleast_1d(weights))
    try:
        numbers = tuple(float(word) for word in words)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != count or not all(0 < number <= options.LARGEST for number in numbers):
        raise InputError(f"method '{name}' has {count} parts; give a number above 0 for each, as in "
                         f"{','.join(['1'] * (count - 1))},0.5", field="method_weights", value=weights)
    return numbers
