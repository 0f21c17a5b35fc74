"""Work on what may be damaged, done by processes that may be lost: each piece has a time, and ends without ending the rest."""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar, runtime_checkable

from jax_brcd.runtime import interruption

Item = TypeVar("Item")
TICK = 0.1  # seconds after which one who waits for an answer may do something else


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Lost(Exception):
    """A piece of work that took too long, or whose process ended, as a system library that is led astray ends it."""


@runtime_checkable
class Pool(Protocol):
    """What takes pieces of work: Workers, or threads."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future:
        """Does `function(*arguments)` some time."""


class Workers:
    """Processes that each do a piece of work at a time; one that is lost is replaced.

    Functions and what they take and return travel between processes, so the functions are those of modules.

    Args:
        count: how many. seconds: after which a piece of work is given up and its process ended.
    """

    def __init__(self, count: int, seconds: float):
        self._seconds = seconds
        self._waiting: queue.SimpleQueue[tuple[Future, Callable[..., Any], tuple] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._look_after, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future:
        """`function(*arguments)`, whose exceptions the future raises; Lost where there is no answer."""
        future: Future = Future()
        self._waiting.put((future, function, arguments))
        return future

    def close(self) -> None:
        """Ends all processes, whatever they do."""
        self._ended.set()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _look_after(self) -> None:
        """The life of one process after another, in a thread of this process."""
        process = _Process()
        try:
            while (piece := self._waiting.get()) is not None and not self._ended.is_set():
                future, function, arguments = piece
                try:
                    future.set_result(process.answer(function, arguments, self._seconds, self._ended))
                except Lost as lost:
                    future.set_exception(lost)
                    process.end()
                    if not self._ended.is_set():
                        process = _Process()
                except BaseException as error:
                    future.set_exception(error)
        finally:
            process.end()


class _Process:
    """One process and the way to it."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")  # a copy of a process with threads, as JAX has them, may stand still
        self._way, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._began = False

    def answer(self, function: Callable[..., Any], arguments: tuple, seconds: float, ended: threading.Event) -> Any:
        """What the process answers. Raises Lost where it does not, and what `function` raises."""
        try:
            if not self._began:
                self._way.recv()  # it is there; its start is not counted
                self._began = True
            self._way.send((function, arguments))
            left = seconds
            while not self._way.poll(min(TICK, left)):
                left -= TICK
                if left <= 0 or ended.is_set():
                    raise Lost(f"gave no answer within {seconds:g} seconds")
            good, found = self._way.recv()
        except (EOFError, OSError):
            raise Lost("ended the process that read it") from None
        if not good:
            raise found
        return found

    def end(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.join()
        self._way.close()


def _serve(way: multiprocessing.connection.Connection) -> None:
    """What a process does: answers, until nobody asks."""
    end_with_parent()
    with contextlib.suppress(EOFError, OSError):
        way.send(None)
        while True:
            function, arguments = way.recv()
            try:
                answer = True, function(*arguments)
            except Exception as error:
                answer = False, error
            way.send(answer)


def end_with_parent(*_: int) -> None:
    """Ends this worker process when the one that started it is killed. Ctrl-C, which a terminal sends to all processes, ends it
    without a word: the one that started it has the last."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with contextlib.suppress(ValueError):  # not this process's main thread
        signal.signal(signal.SIGINT, lambda *_: os._exit(1))


@contextlib.contextmanager
def workers(count: int, seconds: float) -> Iterator[Pool]:
    """Workers for the block; with a count of 0 threads of this process, as many as there are cores, which no time ends."""
    if count == 0:
        pool = ThreadPoolExecutor(cores())
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return
    made = Workers(count, seconds)
    try:
        yield made
    finally:
        made.close()


def ahead(
    pool: Pool, function: Callable[..., Any], items: Iterable[Item | None], arguments: Callable[[Item], tuple], depth: int
) -> Iterator[tuple[Item, Any] | None]:
    """Each item with `function(*arguments(item))`, in order, `depth` of them begun before they are taken.

    Where an answer is not there yet, None comes every TICK, so that the one who takes them may do something else; Nones among
    the items are passed on likewise. An exception that the function raised comes in place of its answer.
    """
    begun: collections.deque[tuple[Item, Future]] = collections.deque()
    items, more = iter(items), True
    while more or begun:
        interruption.check()
        waited = False
        while more and len(begun) < depth and not waited:
            item = next(items, StopIteration)
            more, waited = item is not StopIteration, item is None
            if more and not waited:
                begun.append((item, pool.submit(function, *arguments(item))))
        if not begun:
            if waited:
                yield None
            continue
        wait([begun[0][1]], timeout=0 if waited else TICK)
        if not begun[0][1].done():
            yield None
            continue
        item, future = begun.popleft()
        yield item, future.exception() or future.result()
