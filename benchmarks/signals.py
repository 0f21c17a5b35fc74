"""The stack of a thread on which it handles signals."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class SignalStack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> SignalStack:
    """This thread's, on Linux."""
    found = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found


@contextlib.contextmanager
def own_signal_stack() -> Iterator[None]:
    """After the block this thread handles signals where it did before.

    For OpenVINO, which gives a thread a stack with each model that it compiles, and when a model goes, the one that it found: that
    of another model, which may be gone. The next signal, as of a process that has ended, then ends this one without a word.
    """
    if sys.platform != "linux":
        yield
        return
    kept = signal_stack()
    try:
        yield
    finally:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(kept), None)
