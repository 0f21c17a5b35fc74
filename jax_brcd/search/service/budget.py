"""A share of memory that requests draw from together, so that many large ones do not take what all of them would."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator


class Budget:
    """So many units; what is drawn is given back."""

    def __init__(self, total: int):
        self._total, self._drawn = total, 0
        self._waiting: collections.deque[tuple[int, asyncio.Future]] = collections.deque()

    def draw(self, units: int) -> bool:
        """Draws at once, or returns False where there is not as much left."""
        if self._waiting or self._drawn + units > self._total:
            return False
        self._drawn += units
        return True

    def give_back(self, units: int) -> None:
        """Gives back what was drawn, and lets those draw that wait, in turn."""
        self._drawn -= units
        while self._waiting:
            wanted, future = self._waiting[0]
            if not future.done():
                if self._drawn and self._drawn + wanted > self._total:
                    return
                self._drawn += wanted
                future.set_result(None)
            self._waiting.popleft()

    @contextlib.asynccontextmanager
    async def room(self, units: int) -> AsyncIterator[None]:
        """Waits until there is room for so many; more than there are at all wait until nothing else is drawn."""
        if self._waiting or (self._drawn and self._drawn + units > self._total):
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((units, future))
            try:
                await future
            except asyncio.CancelledError:
                self.give_back(0 if future.cancelled() else units)  # those behind may have waited for this one alone
                raise
        else:
            self._drawn += units
        try:
            yield
        finally:
            self.give_back(units)
