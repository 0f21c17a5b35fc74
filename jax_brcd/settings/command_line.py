"""The edge between people and the library: options made from settings, errors in one line, exit statuses."""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from jax_brcd.runtime import interruption
from jax_brcd.runtime.errors import NAMED_SETTING, InputError, Naming, lacks_memory
from jax_brcd.runtime.registry import unknown_name
from jax_brcd.settings.options import plain_type, settings_of, words_of

LOG_SECONDS = 60.0  # between two lines of progress in a log
LOGGED = "{desc}: {n_fmt} of {total_fmt} [{elapsed}<{remaining}]"


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
            names = list(_option_names(self, known))
            self.error(unknown_name("option", word, names, listed="--help lists all") if word.startswith("-")
                       else f"unexpected word '{word}'")
        return known


def _option_names(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Iterator[str]:
    """The options of a parser, and of those that what it was given chose; their `dest` says which."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            yield from _option_names(action.choices[getattr(given, action.dest)], given)


def add_options(
    parser: argparse.ArgumentParser, title: str, stages: Iterable[type] | Mapping[str, type],
    wanted: Callable[[str], bool] = lambda name: True, proposed: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """Adds one option a field, in a group of its own; only options that were given reach the namespace.

    Several dataclasses may share a field (two distillation methods with a weight of their own): it is added once, with the
    first one's help. Where the dataclasses are given by name, the help says whose the option is and each one's default.
    `wanted` says of a setting by its name whether the command has it; `proposed` has by name the preset that applies by itself
    and the objectives that have defaults of their own, each with its values. What is given stays text (a switch is a bool), for
    `options.convert` to read by the type that the setting has where it belongs.
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
        text = spelled(field.metadata["help"]).replace("%", "%%") + f" (default: {_defaults(fields)}{_proposed(name, proposed)})"
        extra = ({"action": argparse.BooleanOptionalAction} if kind is bool
                 else {"metavar": _metavar([field for _, field in fields], kind)})
        group.add_argument(flag(name), default=argparse.SUPPRESS, help=text, **extra)


def _proposed(name: str, proposed: Mapping[str, Mapping[str, Any]]) -> str:
    """What stands in place of the default, and with what."""
    return "".join(f"; of {whose}, {_spell(values[name])}" for whose, values in proposed.items() if name in values)


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
    """Prints a line at once: as it is, for names of files have backticks too; a Naming with its settings as options. Where the
    reader has gone (`| head`) the rest of the output goes nowhere and the work goes on."""
    try:
        print(_printable(spelled(text) if isinstance(text, Naming) else text, sys.stdout), flush=True)
    except BrokenPipeError:
        _drop(sys.stdout)


def _printable(text: str, stream: Any) -> str:
    """A text as a stream can write it: names of files may hold what no text has, which is shown as an escape."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class Bars:
    """Progress bars for what the library reports by `progress(description, done, total)`.

    They are drawn where stderr is a terminal. In a log, where every step of a bar would be a line, a line is written once in
    `LOG_SECONDS`.
    """

    def __init__(self, *, shown: bool = True):
        self.shown = shown and sys.stderr is not None
        self._show = self._draw if self.shown and sys.stderr.isatty() else self._log
        self._bar = None
        self._description = ""
        self._begun = 0
        self._began = self._logged = time.monotonic()

    def __call__(self, description: str, done: int, total: int) -> None:
        """Shows one bar at a time; a new description begins a new one."""
        if not self.shown:
            return
        try:
            self._show(description, done, total)
        except OSError:  # a terminal that has gone is no reason to stop the work
            self.shown, self._bar = False, None
            _drop(sys.stderr)

    def _draw(self, description: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if description != self._description or self._bar is None:
            self._end()
            self._bar = tqdm(total=total, initial=done, desc=description, dynamic_ncols=True, leave=False)
            self._description = description
        self._bar.total = total  # which shrinks where work ends early
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._end()

    def _log(self, description: str, done: int, total: int) -> None:
        from tqdm import tqdm

        now = time.monotonic()
        if description != self._description or done < self._begun:
            self._description, self._began, self._begun = description, now, done
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            print(tqdm.format_meter(done, total, now - self._began, initial=self._begun, prefix=description, bar_format=LOGGED),
                  file=sys.stderr, flush=True)
        if done >= total:
            self._description = ""  # the next work may be called the same

    def close(self) -> None:
        """Takes the bar away."""
        try:
            self._end()
        except OSError:
            _drop(sys.stderr)

    def _end(self) -> None:
        bar, self._bar, self._description = self._bar, None, ""
        if bar is not None:
            bar.close()


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
    """Runs `main(argv)` as a program: bad input, a full disk and too little memory end in one line and exit status 2.

    A reader who has gone (`| head`) is no error: the program ends quietly, as what it was to write to disk is written.
    """
    status = _status(main, argv)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    sys.exit(status)


def _status(main, argv: list[str] | None) -> Any:
    try:
        with interruption.heard():
            main(argv)
    except SystemExit as stop:  # of the parser, which has said why
        return stop.code
    except InputError as error:
        return _complain(one_line(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return 0
        if isinstance(error, ConnectionError):
            status = _complain(f"another process that this one works with has gone ({one_line(error)}); run the same command "
                               "again to go on")
            _leave_others(status)
            return status
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or one_line(error)}; "
                         "free space or mend the path, then run the same command again to go on")
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on from the last checkpoint", status=130)
    except Exception as error:
        if not lacks_memory(error):
            raise
        return _complain(_of_memory(error))
    return 0


def _of_memory(error: Exception) -> str:
    """What was too large, in one line: XLA lists its buffers below the first."""
    first = "".join(str(error).splitlines()[:1])
    remedy = "" if isinstance(error, MemoryError) else (
        f"; where it trains, a smaller {flag('batch_size')} or {flag('resident_mib')} needs less on the device")
    return ": ".join(filter(None, ("not enough memory", first))) + remedy


def _leave_others(status: int) -> None:
    """Ends a process that JAX works in with others. It would wait for the one that has gone, a minute or two, and then crash."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)
        os._exit(status)


def _reader_has_gone() -> bool:
    """Whether what was printed finds no reader: it still lies in the buffer, and so fails once more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _flush(stream: Any) -> None:
    """Writes what is left, or lets it go where it cannot be: the interpreter would try again as it ends, and fail."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        _drop(stream)


def _drop(stream: Any) -> None:
    """Sends what is left in the buffer nowhere, and all that follows."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


def _complain(message: str, status: int = 2) -> int:
    with contextlib.suppress(OSError):
        print(_printable(f"error: {message}", sys.stderr), file=sys.stderr, flush=True)
    return status
