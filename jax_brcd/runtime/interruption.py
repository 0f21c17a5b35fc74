"""Ctrl-C that is heard: Python swallows an exception that comes up in a callback (of the garbage collector, a weak reference, a
`__del__`), and with it the interruption that happened to arrive there. So it is noted down too, and long work asks for it.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

_asked = False


def check() -> None:
    """Raises KeyboardInterrupt where an interruption was asked for. Long work calls it between two of its steps."""
    if _asked:
        raise KeyboardInterrupt


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Notes down each Ctrl-C of the block, beside the KeyboardInterrupt that it raises at once.

    Does nothing outside of the main thread, which alone hears signals, and where a caller has a handler of its own or ignores
    them.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def unraisable(about) -> None:
        if not (_asked and about.exc_type is KeyboardInterrupt):  # one that was swallowed is on its way all the same
            shown(about)

    shown, sys.unraisablehook = sys.unraisablehook, unraisable
    signal.signal(signal.SIGINT, _note)
    try:
        yield
    except Exception as error:  # such as a library makes of an interruption, or of worker processes that have ended by it
        if _asked:
            raise KeyboardInterrupt from error
        raise
    finally:
        _asked = False
        if signal.getsignal(signal.SIGINT) is _note:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if sys.unraisablehook is unraisable:
            sys.unraisablehook = shown


def _note(*_) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt
