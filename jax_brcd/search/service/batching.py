"""Calls that come at the same time are carried out together: while one batch is at work, the next gathers."""

import asyncio
import collections
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any


class Batcher:
    """Makes one call of a list out of many calls of one item. `work` runs on `pool`, never twice at once, and a lone call waits
    for nothing.

    Attributes:
        batches, items: how many have been carried out so far.
    """

    def __init__(self, work: Callable[[list[Any]], Sequence[Any]], pool: Executor, *, most: int):
        self._work, self._pool, self._most = work, pool, most
        self._waiting: collections.deque[tuple[Any, asyncio.Future]] = collections.deque()
        self._running: asyncio.Task | None = None
        self.batches = self.items = 0

    async def __call__(self, item: Any) -> Any:
        """What `work` makes of the item. Raises what it raises of it."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            batch = [(item, future) for item, future in batch if not future.done()]  # but of clients that have gone
            if batch and not await self._carry_out(batch):
                for one in batch:  # so that a bad item fails alone
                    await self._carry_out([one])

    async def _carry_out(self, batch: list[tuple[Any, asyncio.Future]]) -> bool:
        """Settles a batch, or returns False where one item of several may be what its work raises of."""
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._pool, self._work, [item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                return False
            results = [error]
        self.batches, self.items = self.batches + 1, self.items + len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        return True
