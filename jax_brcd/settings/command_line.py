"""The edge between people and the library: options made from settings, errors in one line, exit statuses."""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jax_brcd.runtime.errors import NAMED_SETTING, InputError
from jax_brcd.runtime.registry import unknown_name
from jax_brcd.settings.options import plain_type, read_number, settings_of, words_of


def flag(name: str) -> str:
    """The command-line spelling of a setting."""
    return "--" + name.replace("_", "-")


def spelled(text: str) -> str:
    """A text of the library with the settings that it names (in backticks) as options."""
    return NAMED_SETTING.sub(lambda name: flag(name[1]), text)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, with the nearest option for an unknown one."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"error: {' '.join(message.split())}\n")

    def parse_args(self, args=None, namespace=None):  # noqa: D102 - argparse's own contract
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            names = [name for action in self._actions for name in action.option_strings]
            self.error(unknown_name("option", word, names) if word.startswith("-") else f"unexpected word '{word}'")
        return known


def add_options(
    parser: argparse.ArgumentParser, title: str, stages: Iterable[type] | Mapping[str, type],
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Adds one option a field, in a group of its own; only options that were given reach the namespace.

    Several dataclasses may share a field (two distillation methods with a weight of their own): it is added once, with the
    first one's help. Where the dataclasses are given by name, the help says whose the option is and each one's default.
    `wanted` says of a setting by its name whether the command has it.
    """
    group = parser.add_argument_group(title)
    taken = {name for action in parser._actions for name in action.option_strings}
    shared: dict[str, list[tuple[str | None, dataclasses.Field]]] = {}
    for owner, stage in stages.items() if isinstance(stages, Mapping) else [(None, stage) for stage in stages]:
        for field in settings_of(stage):
            if flag(field.name) not in taken and wanted(field.name):
                shared.setdefault(field.name, []).append((owner, field))
    for name, fields in shared.items():
        field = fields[0][1]
        kind = plain_type(field.type)
        text = spelled(field.metadata["help"]).replace("%", "%%") + f" (default: {_defaults(fields)})"
        extra = ({"action": argparse.BooleanOptionalAction} if kind is bool
                 else {"type": kind if kind in (str, pathlib.Path) else _reader(kind, words_of(field.type)),
                       "metavar": _metavar([field for _, field in fields], kind)})
        group.add_argument(flag(name), default=argparse.SUPPRESS, help=text, **extra)


def _reader(kind: type, words: tuple[str, ...]):
    def read(word: str) -> Any:
        try:
            return word if word in words else read_number(kind, words, word)
        except InputError as error:
            raise argparse.ArgumentTypeError(spelled(error.problem)) from None

    return read


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
    return "|".join(({int: "N", float: "X", pathlib.Path: "PATH"}.get(kind, "NAME"), *words_of(fields[0].type)))


def _spell(default: Any) -> str:
    spelled = {None: "chosen by the data set or run", True: "on", False: "off"}
    return spelled[default] if default is None or isinstance(default, bool) else str(default)


def say(text: str) -> None:
    """Prints a line at once, with the settings that it names as options. Where the reader has gone (`| head`) the rest of the
    output goes nowhere and the work goes on."""
    try:
        print(spelled(text), flush=True)
    except BrokenPipeError:
        _drop(sys.stdout)


class Bars:
    """Progress bars on the terminal for what the library reports by `progress(description, done, total)`."""

    def __init__(self, *, shown: bool = True):
        self.shown = shown
        self._bar = None
        self._description = ""

    def __call__(self, description: str, done: int, total: int) -> None:
        """Shows one bar at a time; a new description begins a new one."""
        try:
            self._show(description, done, total)
        except BrokenPipeError:
            _drop(sys.stderr)

    def _show(self, description: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if description != self._description or self._bar is None:
            self.close()
            self._bar = tqdm(total=total, desc=description, dynamic_ncols=True, leave=False, disable=not self.shown)
            self._description = description
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._description = None, ""


@contextlib.contextmanager
def bars(*, shown: bool = True) -> Iterator[Bars]:
    """Bars that are gone when the block ends."""
    made = Bars(shown=shown)
    try:
        yield made
    finally:
        made.close()


def one_line(error: BaseException) -> str:
    """The text of an error on a single line, with the settings that it names as options."""
    return error.line(flag) if isinstance(error, InputError) else " ".join(str(error).split())


def run_command(main, argv: list[str] | None = None) -> typing.NoReturn:
    """Runs `main(argv)` as a program: bad input and a full disk end in one line and exit status 2.

    A reader who has gone (`| head`) is no error: the program ends quietly, as what it was to write to disk is written.
    """
    try:
        main(argv)
        sys.stdout.flush()
    except InputError as error:
        sys.exit(_complain(one_line(error)))
    except BrokenPipeError:
        _drop(sys.stdout)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_complain(f"{where}{error.strerror or one_line(error)}; "
                           "free space or mend the path, then run the same command again to go on"))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted; the same command goes on from the last checkpoint", status=130))
    sys.exit(0)


def _drop(stream: typing.TextIO) -> None:
    """Sends what is left in the buffer nowhere, and all that follows: the interpreter flushes it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(message: str, status: int = 2) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    return status
