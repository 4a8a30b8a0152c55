"""Work in a thread, which nobody can break off: whoever is cancelled meanwhile waits until it has ended."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def _nothing() -> None: ...


async def in_thread(work: Callable[[], T], stop: Callable[[], None] = _nothing) -> T:
    """What the work returns, or raises. If this is cancelled, `stop` is called, and what `work` holds (a lock, a file)
    is let go of before the cancellation goes on, however often it comes."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would complain of it; what ends the work is told already
        raise
