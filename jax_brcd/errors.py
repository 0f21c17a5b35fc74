"""What a user did that cannot work, in one line: what, where, how to mend it."""


class InputError(Exception):
    """Raised for bad input; commands print its one line and exit with status 2."""


class TrainingDiverged(InputError):
    """Raised when a loss is no longer finite; the last good checkpoint stays as it was."""
