"""The calls that are in vLLM: how many it holds at once, and who may be there together."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Held:
    """How many calls vLLM holds at once, learnt from its scheduler, a number for each data-parallel rank.

    While calls wait in its queue, it holds as many as run. While none waits it may hold a quarter more than run, up to
    `most`: so the number grows step by step until calls wait, and shrinks where the cache has room for fewer.
    """

    most: int
    by_rank: dict[int, int] = field(default_factory=dict[int, int])

    def record(self, rank: int, running: int, waiting: int, cache_usage: float) -> None:
        """One step of a scheduler; `cache_usage` is the share of its key-value cache that running calls fill."""
        held = self.by_rank.get(rank, 0)
        if waiting:
            held = max(1, running)
        elif cache_usage < 0.9:
            held = max(held, min(self.most, running + max(8, running // 4)))
        self.by_rank[rank] = held

    def total(self, ranks: int) -> int:
        """Of all ranks; those that have not said anything yet hold a few."""
        return sum(self.by_rank.get(rank, min(self.most, 8)) for rank in range(ranks))


@dataclass(slots=True)
class Gauge:
    """Is told by vLLM about each step of a scheduler; the methods are those that vLLM calls."""

    heard: Callable[[int, int, float], None]

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        if scheduler_stats is not None:
            waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            self.heard(scheduler_stats.num_running_reqs, waiting, scheduler_stats.kv_cache_usage)

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_sleep_state(self, *_: Any, **__: Any) -> None: ...


class Door:
    """Lets calls in together, or one by itself."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._inside = self._want_alone = 0
        self._alone = False

    @contextlib.asynccontextmanager
    async def open(self, alone: bool) -> AsyncGenerator[None]:
        self._want_alone += alone
        try:
            while self._inside if alone else self._alone or self._want_alone:
                await self._changed.wait()
        finally:
            self._want_alone -= alone
            self._tell()
        self._inside, self._alone = self._inside + 1, alone
        try:
            yield
        finally:
            self._inside, self._alone = self._inside - 1, False
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
