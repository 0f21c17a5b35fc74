"""Settings as dataclass fields: their help, unit and bounds stand beside the default, and the command line is made from them."""

import argparse
import dataclasses
import math
import pathlib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.registry import Registry, unknown_name

Number = int | float


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


def flag(name: str) -> str:
    """The command-line spelling of a setting."""
    return "--" + name.replace("_", "-")


def check(settings: Any) -> None:
    """Raises InputError for the first field of a dataclass instance that is out of its bounds."""
    for field in dataclasses.fields(settings):
        value, rules = getattr(settings, field.name), field.metadata
        if value is None or not rules:
            continue
        known = rules["choices"] or (_words(field.type) if isinstance(value, str) else ())
        if known and value not in known:
            raise InputError(unknown_name(f"value of {flag(field.name)}", str(value), known))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_number(flag(field.name), value, rules)


def create(registry: Registry, name: str, settings: Mapping[str, Any]) -> Any:
    """The settings dataclass that a registry holds under `name`, with `settings` in place of its defaults.

    Raises:
        InputError: for an unknown name, settings that are not its own, or settings out of bounds.
    """
    kind = registry[name]
    own = [field.name for field in dataclasses.fields(kind)]
    foreign = sorted(set(settings) - set(own))
    if foreign:
        has = ", ".join(map(flag, own)) or "none"
        raise InputError(f"{flag(foreign[0])}: not a setting of {registry.kind} '{name}'; its own are: {has}")
    created = kind(**settings)
    check(created)
    return created


def _check_number(name: str, value: Number, rules: Mapping[str, Any]) -> None:
    if not math.isfinite(value):
        raise InputError(f"{name} {value}: not a finite number; give one")
    if rules["low"] is not None and value < rules["low"]:
        raise InputError(f"{name} {value}: too small; give {rules['low']} or more")
    if rules["above"] is not None and value <= rules["above"]:
        raise InputError(f"{name} {value}: too small; give more than {rules['above']}")
    if rules["high"] is not None and value > rules["high"]:
        raise InputError(f"{name} {value}: too large; give {rules['high']} or less")


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; the annotation alone where it is none."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)


def _words(annotation: Any) -> tuple[str, ...]:
    """The words that may stand in place of a value: "auto" for `int | Literal["auto"]`."""
    return tuple(word for part in _parts(annotation) if typing.get_origin(part) is Literal for word in typing.get_args(part))


def _plain_type(annotation: Any) -> type:
    """The type a value is read as: `int` for `int | None` and for `int | Literal["auto"]`."""
    return next(part for part in _parts(annotation) if isinstance(part, type) and part is not type(None))


_NOUNS = {int: "whole number", float: "number"}


def _reader(kind: type, words: tuple[str, ...]):
    def read(word: str) -> Any:
        if word in words:
            return word
        try:
            return kind(word)
        except ValueError:
            allowed = " or ".join((_NOUNS[kind], *(f"'{each}'" for each in words)))
            raise argparse.ArgumentTypeError(f"'{word}' is no {allowed}") from None

    return read


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, with the nearest option for an unknown one."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"error: {message}\n")

    def parse_args(self, args=None, namespace=None):  # noqa: D102 - argparse's own contract
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            names = [name for action in self._actions for name in action.option_strings]
            self.error(unknown_name("option", word, names) if word.startswith("-") else f"unexpected word '{word}'")
        return known


def add_options(parser: argparse.ArgumentParser, title: str, stages: Iterable[type] | Mapping[str, type]) -> None:
    """Adds one option a field, in a group of its own; only options that were given reach the namespace.

    Several dataclasses may share a field (two distillation methods with a weight of their own): it is added once, with the
    first one's help. Where the dataclasses are given by name, the help says whose the option is and each one's default.
    """
    group = parser.add_argument_group(title)
    taken = {name for action in parser._actions for name in action.option_strings}
    shared: dict[str, list[tuple[str | None, dataclasses.Field]]] = {}
    for owner, stage in stages.items() if isinstance(stages, Mapping) else [(None, stage) for stage in stages]:
        for field in dataclasses.fields(stage):
            if field.metadata and flag(field.name) not in taken:
                shared.setdefault(field.name, []).append((owner, field))
    for name, fields in shared.items():
        field = fields[0][1]
        kind = _plain_type(field.type)
        text = field.metadata["help"].replace("%", "%%") + f" (default: {_defaults(fields)})"
        extra = ({"action": argparse.BooleanOptionalAction} if kind is bool
                 else {"type": kind if kind in (str, pathlib.Path) else _reader(kind, _words(field.type)),
                       "metavar": _metavar([field for _, field in fields], kind)})
        group.add_argument(flag(name), default=argparse.SUPPRESS, help=text, **extra)


def _defaults(fields: Iterable[tuple[str | None, dataclasses.Field]]) -> str:
    """`4.0 of kl; 0.05 of crd, crcd`, or the default alone where it has no named owner."""
    owners: dict[str, list[str]] = {}
    for owner, field in fields:
        owners.setdefault(_spell(field.default), []).extend([owner] if owner else [])
    return "; ".join(f"{default} of {', '.join(names)}" if names else default for default, names in owners.items())


def _metavar(fields: list[dataclasses.Field], kind: type) -> str:
    choices = dict.fromkeys(choice for field in fields for choice in field.metadata["choices"] or ())
    if choices:
        return "{" + ",".join(choices) + "}"
    return "|".join(({int: "N", float: "X", pathlib.Path: "PATH"}.get(kind, "NAME"), *_words(fields[0].type)))


def _spell(default: Any) -> str:
    spelled = {None: "chosen by the data set or run", True: "on", False: "off"}
    return spelled[default] if default is None or isinstance(default, bool) else str(default)


def one_line(error: BaseException) -> str:
    """The text of an error on a single line, with the settings that it names as options."""
    return error.line(flag) if isinstance(error, InputError) else " ".join(str(error).split())


def run_command(main, argv: list[str] | None = None) -> typing.NoReturn:
    """Runs `main(argv)` as a program: bad input and a full disk end in one line and exit status 2."""
    try:
        main(argv)
    except InputError as error:
        sys.exit(_complain(one_line(error)))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_complain(f"{where}{error.strerror or one_line(error)}; "
                           "free space or mend the path, then run the same command again to go on"))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted; the same command goes on from the last checkpoint", status=130))
    sys.exit(0)


def _complain(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
