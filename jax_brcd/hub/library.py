"""huggingface_hub as this package uses it: imported late, silent, its errors told in a few words."""

import contextlib
import warnings
from collections.abc import Iterator
from types import ModuleType

from jax_brcd.hub.names import HubName
from jax_brcd.runtime.errors import InputError

ANSWER_SECONDS = 10.0  # that the hub may take to answer at all
LOG_IN = "log in by `hf auth login`"


def library() -> ModuleType:
    """huggingface_hub.

    Raises:
        InputError: where it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise InputError("the hub is reached through huggingface_hub; pip install 'jax_brcd[hub]'") from None
    return huggingface_hub


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps its bars, warnings and log off the terminal for the length of a block."""
    # its own module of logging sets a level when it is first imported
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils import logging as its_logging

    level, shown = its_logging.get_verbosity(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        its_logging.set_verbosity(its_logging.CRITICAL + 1)
        disable_progress_bars()
        try:
            yield
        finally:
            its_logging.set_verbosity(level)
            if shown:
                enable_progress_bars()


def reason(error: Exception, name: HubName) -> str:
    """Why the hub did not do as asked, and what helps, in a few words that begin after the name of the repository."""
    hub = library()
    errors, page = hub.errors, f"{hub.constants.ENDPOINT}/{name.repository}"
    known = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled)
    while not isinstance(error, known) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the hub is not asked while HF_HUB_OFFLINE is set"
    if isinstance(error, errors.GatedRepoError):
        return f"its authors grant access on request; ask for it at {page}, then {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no such repository, or a private one; check the name, or {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision '{name.branch}'; name a branch, tag or commit of {page}"
    if isinstance(error, errors.HfHubHTTPError):
        status, said = error.response.status_code, f": {error.server_message}" if error.server_message else ""
        if status in (401, 403):
            return f"the hub refuses access (HTTP {status}); {LOG_IN} with a token that grants it"
        return f"the hub answers with HTTP {status}{said}; try again later"
    told = str(error).strip().splitlines()
    return f"{hub.constants.ENDPOINT} cannot be reached, or is no hub ({told[0] if told else type(error).__name__})"
