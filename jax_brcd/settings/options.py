"""Settings as dataclass fields: help, unit and bounds stand beside the default; values are converted and checked by them."""

import dataclasses
import math
import numbers
import os
import pathlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jax_brcd.runtime.errors import InputError, UnknownName
from jax_brcd.runtime.registry import Registry, unknown_name

Number = int | float
LARGEST = 3e38  # what float32 holds

# Whose each setting is. Groups share one command line and one flat configuration, so a name has one meaning in all of them.
_OWNERS: dict[str, str] = {"preset": "the run"}


def option(default: Any, help: str, *, low: Number | None = None, high: Number | None = None,
           above: Number | None = None, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        default: the published setting where there is one.
        help: what it does, with its unit.
        low, high: closed bounds. above: open lower bound. choices: the words allowed.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(kind: Any) -> tuple[dataclasses.Field, ...]:
    """The fields of a dataclass, or of an instance of one, that are options."""
    return tuple(field for field in dataclasses.fields(kind) if field.metadata)


def claiming(group: str, alias: Callable[[str, str], str] | None = None) -> Callable[[str, type], None]:
    """A check for registries of settings: what they register may not take the name of another group's setting.

    Within a group a name may be shared: two methods may each have a `distillation_weight`.

    Args:
        alias: gives the name that a setting (second) of what is registered (first) goes by as well.

    Raises:
        InputError: from the check, for a dataclass with a field that another group has.
    """
    def claim(name: str, kind: type) -> None:
        fields = [field.name for field in settings_of(kind)]
        fields += [] if alias is None else [alias(name, field) for field in fields]
        for field in fields:
            owner = _OWNERS.get(field, group)
            if owner != group:
                raise InputError(f"{group} ('{name}') has a setting of a name that {owner} has; give it another name",
                                 field=field)
        _OWNERS.update(dict.fromkeys(fields, group))

    return claim


def convert(kind: type, given: Mapping[str, Any]) -> Any:
    """An instance of a dataclass with what is given, each value as the command line reads it: "64" as 64, "~/x" as a path.

    Raises:
        InputError: for a value of another type, or out of its bounds.
    """
    fields = {field.name: field for field in settings_of(kind)}
    settings = kind(**{name: _convert(fields[name], value) for name, value in given.items()})
    check(settings)
    return settings


def _convert(field: dataclasses.Field, value: Any) -> Any:
    kind, words = plain_type(field.type), words_of(field.type)
    if (value is None and type(None) in _parts(field.type)) or (isinstance(value, str) and value in words):
        return value
    if kind is bool:
        if type(value).__name__ in ("bool", "bool_"):  # NumPy's is no bool
            return bool(value)
        raise InputError("neither True nor False; give one of them", field=field.name, value=repr(value))
    if kind in NOUNS:
        return read_number(kind, words, value, field.name)
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise InputError(f"no {'path' if kind is pathlib.Path else 'text'}; give one", field=field.name, value=repr(value))
    return kind(value) if kind is pathlib.Path else str(value)


NOUNS = {int: "whole number", float: "number"}


def read_number(kind: type, words: tuple[str, ...], value: Any, name: str) -> Any:
    """A number of text or of another number.

    Raises:
        InputError: where it is none of that kind; 2.5 is no whole number.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        if number or isinstance(value, str):
            read = kind(value)
            if not number or kind is float or read == value:
                return read
    except (ValueError, OverflowError):
        pass
    allowed = " or ".join((NOUNS[kind], *(f"'{each}'" for each in words)))
    raise InputError(f"'{value}' is no {allowed}", field=name, value=value)


def check(settings: Any) -> None:
    """Raises InputError for the first field of a dataclass instance that is out of its bounds."""
    for field in settings_of(settings):
        value, rules = getattr(settings, field.name), field.metadata
        if value is None:
            continue
        known = rules["choices"] or (words_of(field.type) if isinstance(value, str) else ())
        if known and value not in known:
            raise UnknownName(unknown_name(f"value of `{field.name}`", value, known), field=field.name, value=value)
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            _check_number(field.name, value, rules)


def create(registry: Registry, name: str, settings: Mapping[str, Any]) -> Any:
    """The settings dataclass that a registry holds under `name`, with `settings` in place of its defaults.

    Raises:
        InputError: for an unknown name, settings that are not its own, of other types or out of bounds.
    """
    kind = registry[name]
    own = [field.name for field in settings_of(kind)]
    foreign = sorted(set(settings) - set(own))
    if foreign:
        has = ", ".join(f"`{each}`" for each in own) or "none"
        raise InputError(f"not a setting of {registry.kind} '{name}'; its own are: {has}", field=foreign[0])
    return convert(kind, settings)


def _check_number(name: str, value: Number, rules: Mapping[str, Any]) -> None:
    problem = _fault(value, rules)
    if problem is not None:
        raise InputError(problem, field=name, value=value)


def _fault(value: Number, rules: Mapping[str, Any]) -> str | None:
    """What is wrong with a number, and how to mend it."""
    if isinstance(value, float) and not math.isfinite(value):  # of a whole number too long for a float this would be an error
        return "not a finite number; give one"
    if abs(value) > LARGEST:
        return f"too large to compute with in 32 bits; give {LARGEST:.0e} or less"
    if rules["low"] is not None and value < rules["low"]:
        return f"too small; give {rules['low']} or more"
    if rules["above"] is not None and value <= rules["above"]:
        return f"too small; give more than {rules['above']}"
    if rules["high"] is not None and value > rules["high"]:
        return f"too large; give {rules['high']} or less"
    return None


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; the annotation alone where it is none."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)


def words_of(annotation: Any) -> tuple[str, ...]:
    """The words that may stand in place of a value: "auto" for `int | Literal["auto"]`."""
    return tuple(word for part in _parts(annotation) if typing.get_origin(part) is Literal for word in typing.get_args(part))


def plain_type(annotation: Any) -> type:
    """The type a value is read as: `int` for `int | None` and for `int | Literal["auto"]`."""
    return next(part for part in _parts(annotation) if isinstance(part, type) and part is not type(None))
