"""Rows that are worked on elsewhere: what a hand is given, what it does with it, and what it says of it.

A hand is a process with engines of its own. It is given parts (the rows of a chunk, with the calls of theirs that are
finished already), works on them as `runner.py` does it here, and says at once what happens. It writes nothing: a call
counts as finished when whoever gave it the part has written it down.
"""

import asyncio
import io
import itertools
import logging
import pickle
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cai.engines import Completion, Engine, Request, Sampling
from cai.errors import CaiError, RequestRefused
from cai.journal import Entry, Finished
from cai.rows import Message, Pair, Row
from cai.runner import InFlight, Rows, Work, run_rows


@dataclass(frozen=True, slots=True)
class Part:
    """Rows or pairs to work on, with their places in the chunk, and the finished calls of that chunk."""

    number: int
    rows: tuple[tuple[int, Row | Pair], ...]
    calls: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """A row asks its first call."""

    part: int
    place: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A call was answered."""

    part: int
    place: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Reused:
    """A call was found among the finished ones."""

    part: int
    place: int
    key: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """Has another run finished this call? The answer is awaited under this number."""

    number: int
    part: int
    key: str


@dataclass(frozen=True, slots=True)
class Done:
    """A row is done: what is known of it in the end, or its drop."""

    part: int
    place: int
    result: object


@dataclass(frozen=True, slots=True)
class Free:
    """There is room for another part: every row of those that were given is under way or done."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A warning of the hand's own, or of its engines."""

    name: str
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of the whole run."""

    error: CaiError


Event = Begun | Asked | Reused | Wanted | Done | Free | Logged | Failed


@dataclass(frozen=True, slots=True)
class News:
    """What has happened since the last of them, in its order; and how often an engine was started anew so far."""

    events: tuple[Event, ...]
    restarts: int


class Hand:
    """Works on the parts that it is given, with engines that are open. `reuses` says that calls may be in other runs.

    An actor has one for each stage; its methods are called from the actor's event loop.
    """

    def __init__(
        self, stage: str, work: Work, engines: Sequence[Engine], rows_in_flight: int | None, reuses: bool
    ) -> None:
        self._stage, self._work, self._engines = stage, work, engines
        self._rows_in_flight, self.reuses = rows_in_flight, reuses
        self._restarts_before = sum(engine.restarts for engine in engines)
        self._parts: asyncio.Queue[Part | None] = asyncio.Queue()
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Entry | None]] = {}
        self._events: list[Event] = []
        self._happened = asyncio.Event()
        self._stopped = False

    def give(self, part: Part | None) -> None:
        """Another part, or None: there will be no more."""
        self._parts.put_nowait(part)

    def found(self, number: int, entry: Entry | None) -> None:
        """The answer to a Wanted."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(entry)

    def stop(self) -> None:
        """Leave what is under way; the news end once all that has happened is said."""
        self._stopped = True
        self._happened.set()

    def say(self, event: Event) -> None:
        self._events.append(event)
        self._happened.set()

    async def elsewhere(self, part: int, key: str) -> Entry | None:
        """A call that another run has finished."""
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        self.say(Wanted(number, part, key))
        return await waiting

    async def news(self) -> AsyncGenerator[News]:
        """Work, and say what happens. Ends after the last part, or when it is told to stop."""
        in_flight = InFlight(lambda: sum(engine.slots for engine in self._engines), self._rows_in_flight)
        working = asyncio.create_task(run_rows(self._stage, self._given(), self._work, in_flight))
        working.add_done_callback(lambda _: self._happened.set())
        heard = _Heard(self)
        logging.getLogger("cai").addHandler(heard)
        try:
            over = False
            while not over:
                await self._happened.wait()
                self._happened.clear()
                over = self._stopped or working.done()
                if over:
                    await self._end(working)
                if self._events:
                    events, self._events = tuple(self._events), []
                    yield News(events, sum(engine.restarts for engine in self._engines) - self._restarts_before)
        finally:
            logging.getLogger("cai").removeHandler(heard)
            working.cancel()

    async def _end(self, working: asyncio.Task[None]) -> None:
        working.cancel()
        await asyncio.wait([working])
        error = None if working.cancelled() else working.exception()
        if isinstance(error, CaiError):
            self.say(Failed(error))
        elif error is not None:
            raise error

    async def _given(self) -> AsyncGenerator[Rows]:
        while True:
            self.say(Free())
            part = await self._parts.get()
            if part is None:
                return
            yield _Part(self, part)


class _Part(Finished):
    """A part under way. See `runner.Rows` for the contract."""

    def __init__(self, hand: Hand, part: Part) -> None:
        super().__init__()
        self._hand, self._part = hand, part
        self._finished.update((entry["key"], entry) for entry in part.calls)
        self._begun: set[int] = set()

    def to_do(self) -> Sequence[tuple[int, Row | Pair]]:
        return self._part.rows

    async def ask(self, place: int, engine: Engine, request: Request) -> tuple[str, Completion]:
        if place not in self._begun:
            self._begun.add(place)
            self._hand.say(Begun(self._part.number, place))
        key = request.key(engine.model)
        if self._hand.reuses and key not in self._finished and key not in self._under_way:
            entry = await self._hand.elsewhere(self._part.number, key)
            if entry is not None:
                self._finished.setdefault(key, entry)
        key, completion, asked = await self.ask_once(engine, request)
        number = self._part.number
        self._hand.say(Asked(number, place, self._finished[key]) if asked else Reused(number, place, key))
        return key, completion

    async def done(self, place: int, result: object) -> None:
        self._begun.discard(place)
        self._hand.say(Done(self._part.number, place, result))


class _Heard(logging.Handler):
    """Hands on the warnings of this process, which would else stay in its log on its own machine."""

    def __init__(self, hand: Hand) -> None:
        super().__init__(logging.WARNING)
        self._say, self._loop = hand.say, asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        event = Logged(record.name, record.levelno, record.getMessage())
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._say, event)


async def probe(engines: Sequence[Engine]) -> None:
    """Ask each engine a call that nothing is wrong with: whoever dies of it dies of every call."""
    innocent = Request("probe", "", (Message("user", "Hello"),), Sampling(1, 0.0), 0)
    for engine in engines:
        with suppress(RequestRefused):
            await engine.complete(innocent)


# The work on a row holds the engines that it asks. In another process it is to hold that one's.


def packed(work: Work, engines: Sequence[Engine]) -> bytes:
    """The work on a row, without its engines."""
    file = io.BytesIO()
    _Packer(file, engines).dump(work)
    return file.getvalue()


def unpacked(work: bytes, engines: Sequence[Engine]) -> Work:
    """The work on a row, with these engines in the places of those that it was packed with."""
    return _Unpacker(io.BytesIO(work), engines).load()


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, engines: Sequence[Engine]) -> None:
        super().__init__(file)
        self._places = {id(engine): place for place, engine in enumerate(engines)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._places.get(id(obj))


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, engines: Sequence[Engine]) -> None:
        super().__init__(file)
        self._engines = engines

    def persistent_load(self, pid: Any) -> Engine:
        return self._engines[pid]
