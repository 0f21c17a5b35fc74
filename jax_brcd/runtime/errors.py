"""What a user did that cannot work, in one line: what, where, how to mend it."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator

NAMED_SETTING = re.compile(r"`([a-z][a-z0-9_]*)`")  # a setting that the text of an error names


class Naming(str):
    """A text that names settings in backticks, for a command to spell as options; it holds no names that users gave."""


class InputError(ValueError):
    """Bad input, told in one line.

    Attributes:
        problem: what is wrong and how to mend it. Settings that it names stand in backticks (`resident_mib`).
        field: the setting or argument that is wrong, where it is one. value: what it was.
    """

    def __init__(self, problem: str, *, field: str | None = None, value: object = None):
        super().__init__(problem)
        self.problem, self.field, self.value = problem, field, value

    def line(self, spell: Callable[[str], str] = str) -> str:
        """The error on one line, with the names of settings as `spell` writes them: a command's options, say."""
        quoted = self.value is None or f"'{self.value}'" in self.problem  # and so is not said twice
        value = "" if quoted else f" {self.value}"
        start = "" if self.field is None else f"{spell(self.field)}{value}: "
        return " ".join((start + NAMED_SETTING.sub(lambda name: spell(name[1]), self.problem)).split())

    def __str__(self) -> str:
        return self.line()


class UnknownName(InputError, KeyError):
    """A name that is not known. Its text says which, so the field and value are not said once more."""

    def line(self, spell: Callable[[str], str] = str) -> str:
        """See InputError."""
        return InputError(self.problem).line(spell)


class TrainingDiverged(InputError):
    """A loss that is no longer finite; the last good checkpoint stays as it was."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory, this machine's or a device's, was too little."""
    errors = sys.modules.get("jax.errors")  # where it was not imported nothing of it was raised
    of_device = errors is not None and isinstance(error, errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError) or of_device


@contextlib.contextmanager
def of_setting(field: str, path: os.PathLike | str) -> Iterator[None]:
    """Names the setting that a path was given by in the errors about what lies there."""
    try:
        yield
    except InputError as error:
        problem = error.problem if error.field is None else str(error)
        for told in (str(path), os.path.expanduser(path)):
            problem = problem.removeprefix(f"{told}: ")
        raise InputError(problem, field=field, value=path) from None
    except OSError as error:
        here = os.path.expanduser(path)
        if error.filename is None or os.path.commonprefix([os.fsdecode(error.filename), here]) != here:
            raise
        raise InputError(f"{error.strerror}; mend the path", field=field, value=path) from None
