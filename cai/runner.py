"""Keeps the engines full, and writes each shard when its last row is done. Knows nothing of prompts or principles.

There is no barrier anywhere: a row that is done makes room for the next one, also when that belongs to a later shard,
so the tail of a shard never idles the engine. Rows start in input order and each shard is written in input order.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

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

    def asking(self, tally: Tally) -> None:
        """The engines are open; `tally` is what they have been asked, and goes on counting."""
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


class Rows(Protocol):
    """Some rows or pairs that are to be worked on, by their places: how their calls are asked, where results go."""

    def to_do(self) -> Sequence[tuple[int, Row | Pair]]: ...

    async def ask(self, place: int, engine: Engine, request: Request) -> tuple[str, Completion]: ...

    async def done(self, place: int, result: object) -> None: ...


async def run_rows(stage: str, given: AsyncIterable[Rows], work: Work, in_flight: InFlight) -> None:
    """Work through all that is given, as many rows at a time as `in_flight` has room for.

    A row whose work raises RowDropped becomes a drop. Any other error ends all the work: rows in flight are cancelled.
    Raises that error itself (the first, if several came at once).
    """

    async def one(rows: Rows, place: int, row: Row | Pair, mine: _RowInFlight) -> None:
        try:
            result = await work(row, partial(mine.ask, partial(rows.ask, place)))
        except RowDropped as dropped:
            result = Drop(row.row_id, stage, dropped.reason, dropped.detail, dropped.raw, row.source)
        finally:
            mine.end()
        await rows.done(place, result)

    try:
        async with asyncio.TaskGroup() as group:
            async for rows in given:
                for place, row in rows.to_do():
                    group.create_task(one(rows, place, row, await in_flight.begin()))
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None


class Shards:
    """The shards under way: results come in any order, and go out in input order when the last one is there.

    Use it as a context; leaving it closes the journals of those that are not finished.
    """

    def __init__(
        self, run: Run, stage: str, tables: Tables, settings_sha: str, tally: Tally, others: OtherRuns | None,
        watch: Watch,
    ) -> None:  # fmt: skip
        self.run, self.stage, self.tally, self.others, self.watch = run, stage, tally, others, watch
        self._tables, self._settings_sha = tables, settings_sha
        self._journals = ExitStack()

    def __enter__(self) -> Self:
        self.watch.asking(self.tally)
        self._journals.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._journals.__exit__(*error)

    async def open(self, chunk: Chunk) -> "Shard":
        """Begin a shard; one that has drops only is finished at once."""
        self.run.check_held()
        journal = Journal(self.run.folder / "journal" / f"part-{chunk.index:05d}.jsonl", self.tally, self.others)
        opened = self._journals.enter_context(ExitStack())
        opened.enter_context(journal)
        for place in journal.damaged:
            self.watch.say(f"{place} is damaged and passed over; the call it held is asked again.")
        results = [item if isinstance(item, Drop) else None for item in chunk.items]
        shard = Shard(self, chunk, journal, opened, list[object | None](results), results.count(None))
        for _ in range(len(results) - shard.missing):
            self.watch.row(kept=False)
        if shard.missing == 0:
            await self._finish(shard)
        return shard

    async def put(self, shard: "Shard", place: int, result: object) -> None:
        """Take the result of a row; with the last one the shard is written."""
        shard.results[place] = result
        shard.missing -= 1
        self.watch.row(kept=not isinstance(result, Drop))
        if shard.missing == 0:
            await self._finish(shard)

    async def _finish(self, shard: "Shard") -> None:
        drops = [result for result in shard.results if isinstance(result, Drop)]
        rows = [result for result in shard.results if not isinstance(result, Drop)]
        mark = ShardMark(self._settings_sha, shard.chunk.digests, len(drops), shard.chunk.places)
        index = shard.chunk.index
        shard.open.close()
        made = self._tables(rows)
        await in_thread(partial(self.run.write_shard, self.stage, index, made, drops, mark))
        self.watch.shard(self.run.shard(list(made)[-1], index), len(rows), len(drops))


@dataclass(slots=True)
class Shard:
    """One chunk under way."""

    all: Shards
    chunk: Chunk
    journal: Journal
    open: ExitStack
    results: list[object | None]
    missing: int

    def to_do(self) -> Sequence[tuple[int, Row | Pair]]:
        items = enumerate(self.chunk.items)
        return [(place, item) for place, item in items if not isinstance(item, Drop) and self.results[place] is None]

    async def ask(self, place: int, engine: Engine, request: Request) -> tuple[str, Completion]:
        return await self.journal.ask(engine, request)

    async def done(self, place: int, result: object) -> None:
        await self.all.put(self, place, result)


class Team(Protocol):
    """The engines of a stage, wherever they are. Entering it opens them; `restarts` counts how often one was lost."""

    @property
    def restarts(self) -> int: ...

    async def work_through(self, shards: Shards, chunks: Iterable[Chunk], work: Work) -> None:
        """Make the shards of all chunks. Raises what ends the whole run; finished calls and shards stay."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Here:
    """The engines in this process."""

    def __init__(self, engines: Sequence[Engine], rows_in_flight: int | None) -> None:
        self._engines, self._rows_in_flight = engines, rows_in_flight
        self._before = sum(engine.restarts for engine in engines)  # in an earlier stage, of an engine that is kept

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            for engine in self._engines:
                await opened.enter_async_context(engine)
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.__aexit__(kind, error, trace)

    @property
    def restarts(self) -> int:
        return sum(engine.restarts for engine in self._engines) - self._before

    async def work_through(self, shards: Shards, chunks: Iterable[Chunk], work: Work) -> None:
        async def opened() -> AsyncGenerator[Rows]:
            for chunk in chunks:
                yield await shards.open(chunk)

        in_flight = InFlight(lambda: sum(engine.slots for engine in self._engines), self._rows_in_flight)
        with shards:
            await run_rows(shards.stage, opened(), work, in_flight)


def first_of(errors: BaseExceptionGroup) -> BaseException:
    """One error for the user: the end that tells what to do, if there is one, else the first."""
    flat = list(_flat(errors))
    return next((error for error in flat if isinstance(error, CaiError)), flat[0])


def _flat(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _flat(inner)
    else:
        yield error
