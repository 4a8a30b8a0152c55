"""Keeps the engines full, and writes each shard when its last row is done. Knows nothing of prompts or principles.

There is no barrier anywhere: a row that is done makes room for the next one, also when that belongs to a later shard,
so the tail of a shard never idles the engine. Rows start in input order and each shard is written in input order.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cai.calls import Ask
from cai.engines import Completion, Engine, Request
from cai.errors import CaiError, RowDropped
from cai.inputs import Chunk
from cai.journal import Journal, OtherRuns, Tally
from cai.rows import Drop, Pair, Row
from cai.store import Run, ShardMark
from cai.threads import in_thread

# From a row (or a pair) to what is known of it in the end.
Work = Callable[[Any, Ask], Awaitable[object]]
# From the results of a shard to the rows of each of its tables; the last table is the one that counts.
Tables = Callable[[Sequence[Any]], Mapping[str, Sequence[object]]]


class Watch(Protocol):
    """Whoever wants to see how a run goes. All calls come from the event loop's thread."""

    def begin(self, stage: str, rows: int, finished: int) -> None:
        """`rows` are to be there in the end, `finished` of them are there already."""
        ...

    def row(self, kept: bool) -> None:
        """One row is done."""
        ...

    def shard(self, path: Path, rows: int, drops: int) -> None:
        """One shard is written."""
        ...

    def end(self) -> None:
        """The work is over, or has been broken off."""
        ...

    def say(self, sentence: str) -> None:
        """Something worth a line in the log."""
        ...


@dataclass(slots=True)
class InFlight:
    """The rows and calls under way, and whether there is room for one more row.

    A new row begins while fewer calls are under way than the engines can hold, and half as many again: enough waiting
    to keep them full, and no more, since a row that waits loses its prefix in the cache. A row between two calls counts
    as one call. `slots` says how many calls the engines hold, which may change; `most_rows` is a bound on top.
    """

    slots: Callable[[], int]
    most_rows: int | None = None
    rows: int = 0
    calls: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self) -> "_RowInFlight":
        """Wait for room, and take it."""
        await asyncio.sleep(0)  # the row before has asked by now
        while self.rows and (self.rows == self.most_rows or 2 * self.calls >= 3 * self.slots()):
            self._changed.clear()
            with suppress(TimeoutError):  # the slots may have grown without a word
                async with asyncio.timeout(0.05):
                    await self._changed.wait()
        self.change(rows=1, calls=1)
        return _RowInFlight(self)

    def change(self, rows: int = 0, calls: int = 0) -> None:
        self.rows += rows
        self.calls += calls
        if rows < 0 or calls < 0:
            self._changed.set()


@dataclass(slots=True)
class _RowInFlight:
    """One row's part of what is under way."""

    all: InFlight
    calls: int = 0

    async def ask(self, ask: Ask, engine: Engine, request: Request) -> tuple[str, Completion]:
        self.calls += 1
        if self.calls > 1:
            self.all.change(calls=1)
        try:
            return await ask(engine, request)
        finally:
            self.calls -= 1
            if self.calls:
                self.all.change(calls=-1)

    def end(self) -> None:
        self.all.change(rows=-1, calls=-1)


@dataclass(slots=True)
class _Shard:
    """One chunk under way: results come in any order, and go out in input order."""

    chunk: Chunk
    journal: Journal
    open: ExitStack
    results: list[object | None] = field(default_factory=list[object | None])
    missing: int = 0


async def run_chunks(
    run: Run,
    stage: str,
    chunks: Iterable[Chunk],
    work: Work,
    tables: Tables,
    settings_sha: str,
    in_flight: InFlight,
    tally: Tally,
    others: OtherRuns | None,
    watch: Watch,
) -> None:
    """Work through the chunks, as many rows at a time as `in_flight` has room for, and write one shard for each.

    A row whose work raises RowDropped becomes a drop. Any other error ends the whole run: rows in flight are cancelled,
    finished calls and shards stay. Raises that error itself (the first, if several came at once).
    """

    async def one(shard: _Shard, place: int, row: Row | Pair, mine: _RowInFlight) -> None:
        try:
            shard.results[place] = await work(row, partial(mine.ask, shard.journal.ask))
        except RowDropped as dropped:
            shard.results[place] = Drop(row.row_id, stage, dropped.reason, dropped.detail, dropped.raw, row.source)
        finally:
            mine.end()
        watch.row(kept=not isinstance(shard.results[place], Drop))
        shard.missing -= 1
        if shard.missing == 0:
            await finish(shard)

    async def finish(shard: _Shard) -> None:
        drops = [result for result in shard.results if isinstance(result, Drop)]
        rows = [result for result in shard.results if not isinstance(result, Drop)]
        mark = ShardMark(settings_sha, shard.chunk.digests, len(drops))
        index = shard.chunk.index
        shard.open.close()
        made = tables(rows)
        await in_thread(partial(run.write_shard, stage, index, made, drops, mark))
        watch.shard(run.shard(list(made)[-1], index), len(rows), len(drops))

    try:
        with ExitStack() as journals:
            async with asyncio.TaskGroup() as group:
                for chunk in chunks:
                    run.check_held()
                    journal = Journal(run.folder / "journal" / f"part-{chunk.index:05d}.jsonl", tally, others)
                    opened = journals.enter_context(ExitStack())
                    opened.enter_context(journal)
                    for place in journal.damaged:
                        watch.say(f"{place} is damaged and passed over; the call it held is asked again.")
                    shard = _Shard(chunk, journal, opened, list[object | None](chunk.items), len(chunk.items))
                    bad = [item for item in chunk.items if isinstance(item, Drop)]
                    shard.missing -= len(bad)
                    for _ in bad:
                        watch.row(kept=False)
                    if shard.missing == 0:
                        await finish(shard)
                    for place, item in enumerate(chunk.items):
                        if not isinstance(item, Drop):
                            group.create_task(one(shard, place, item, await in_flight.begin()))
    except BaseExceptionGroup as errors:
        # One sentence for the user: the end that tells what to do, if there is one, else the first.
        flat = list(_flat(errors))
        raise next((error for error in flat if isinstance(error, CaiError)), flat[0]) from None


def _flat(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _flat(inner)
    else:
        yield error
