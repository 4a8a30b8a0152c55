"""Hands out chunks to hands elsewhere, and takes back what they say: calls into the journal, rows into the shards.

Only this process touches the run's folder. A hand asks for its next part while the last one is still under way, so a
shard's tail never idles its engines. The parts of a hand that is lost go to others, with all calls that are journaled,
and another hand takes its seat.

A row that was under way at two such ends is then worked on alone; if a hand is lost of it once more, the row is dropped
and the others go on.
"""

import asyncio
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cai.errors import CaiError, EngineGaveUp
from cai.hands import Asked, Begun, Done, Event, Failed, Free, Logged, News, Part, Reused, Wanted
from cai.inputs import Chunk
from cai.journal import Entry
from cai.rows import Drop
from cai.runner import Shard, Shards

# Ends in a row of one seat's hands, with no answer between them, after which the others go on without it.
MOST_ENDS = 5
# Ends of hands that had the same chunk, with nothing known that is to blame.
MOST_ENDS_OF_A_CHUNK = 8
FIRST_PAUSE_SECONDS = 1.0
# How long to go on with no hand at all, waiting for room.
ROOM_SECONDS = 60.0
# What has happened at a hand before the run is stopped is still told, if it comes within this time.
DRAIN_SECONDS = 3.0

log = logging.getLogger(__name__)


class Lost(Exception):
    """A hand that is gone, or did not begin; why."""


class NoRoom(Exception):
    """There is no room for another hand at this moment; why."""


class Away(Protocol):
    """A hand elsewhere, see `hands.Hand`; what is told to it is not awaited. `news` and `probe` raise Lost."""

    name: str

    def give(self, part: Part | None) -> None: ...

    def found(self, number: int, entry: Entry | None) -> None: ...

    def stop(self) -> None: ...

    def news(self) -> AsyncGenerator[News]: ...

    async def probe(self) -> None: ...


class Source(Protocol):
    """Where hands come from."""

    async def hand(self, seat: int) -> Away:
        """A hand for a seat that has none. Raises Lost if it does not begin, NoRoom, or CaiError."""
        ...


@dataclass(slots=True)
class _Held:
    """A part that a hand works on: the places that are not done, those begun, and the calls that each went through."""

    shard: Shard
    left: set[int]
    alone: bool
    begun: set[int] = field(default_factory=set[int])
    through: dict[int, list[str]] = field(default_factory=dict[int, list[str]])


@dataclass(slots=True)
class _Seat:
    number: int
    hand: Away | None = None
    held: dict[int, _Held] = field(default_factory=dict[int, _Held])
    hungry: bool = False
    ends: int = 0
    restarts: int = 0
    guilty: tuple[Shard, int] | None = None


class Handout:
    """The chunks of one stage, handed out to so many seats. `restarts` counts hands and engines that were lost."""

    def __init__(self, shards: Shards, chunks: Iterable[Chunk], seats: int, source: Source) -> None:
        self._shards, self._chunks, self._source = shards, iter(chunks), source
        self._seats = [_Seat(number) for number in range(seats)]
        self._numbers = itertools.count()
        self._under_way: set[int] = set()
        self._back: deque[tuple[Shard, list[int]]] = deque()
        self._alone: deque[tuple[Shard, int]] = deque()
        self._ends: Counter[tuple[int, int]] = Counter()
        self._ends_of_chunk: Counter[int] = Counter()
        self._replayed: dict[tuple[int, int], Counter[str]] = {}
        self._over = asyncio.Event()
        self._exhausted = self._stopping = False
        self._last_hand = time.monotonic()
        self._restarts = 0

    @property
    def restarts(self) -> int:
        return self._restarts + sum(seat.restarts for seat in self._seats)

    async def run(self) -> None:
        """Make the shards of all chunks. Raises what ends the run: EngineGaveUp if there are no more hands."""
        with self._shards:
            sitting = {asyncio.create_task(self._sit(seat)): seat for seat in self._seats}
            over = asyncio.create_task(self._over.wait())
            try:
                await self._until_over(over, sitting)
            finally:
                over.cancel()
                await self._stop(sitting)

    async def _until_over(self, over: asyncio.Task[bool], sitting: Mapping[asyncio.Task[None], _Seat]) -> None:
        left = set(sitting)
        while not over.done():
            await asyncio.wait([over, *left], return_when=asyncio.FIRST_COMPLETED)
            ended = {task for task in left if task.done()}
            errors = [error for task in ended if (error := task.exception()) is not None]
            if errors:
                raise next((error for error in errors if isinstance(error, CaiError)), errors[0])
            left -= ended
            if not left and not over.done():
                raise EngineGaveUp("Every actor was lost again and again. The same command goes on from here.")

    async def _stop(self, sitting: Mapping[asyncio.Task[None], _Seat]) -> None:
        self._stopping = True
        for seat in self._seats:
            if seat.hand is not None:
                seat.hand.stop()
        listening = [task for task, seat in sitting.items() if seat.hand is not None and not task.done()]
        if listening:
            await asyncio.wait(listening, timeout=DRAIN_SECONDS)
        for task in sitting:
            task.cancel()
        await asyncio.gather(*sitting, return_exceptions=True)

    # One seat

    async def _sit(self, seat: _Seat) -> None:
        """Listen to one hand after another; ends when all is done, or when too many were lost."""
        while not self._stopping:
            try:
                seat.hand = await self._source.hand(seat.number)
                await self._prove(seat)
                async for news in seat.hand.news():
                    seat.restarts = news.restarts
                    for event in news.events:
                        await self._hear(seat, event)
                    await self._feed()
                if not (self._stopping or self._over.is_set()):
                    raise Lost("it ended by itself")
                return
            except NoRoom as full:
                self._still_waiting(full)
            except Lost as lost:
                if self._stopping or not await self._lost(seat, lost):
                    return

    def _still_waiting(self, full: NoRoom) -> None:
        if any(seat.hand for seat in self._seats):
            return
        if time.monotonic() - self._last_hand >= ROOM_SECONDS:
            raise EngineGaveUp(
                f"No actor can be had: {full}. See to the Ray cluster; the same command goes on from here."
            )

    async def _lost(self, seat: _Seat, lost: Lost) -> bool:
        """Take back what a lost hand had. Whether its seat gets another one. Raises EngineGaveUp."""
        name, held = seat.hand.name if seat.hand else f"actor {seat.number}", list(seat.held.values())
        if seat.hand is not None:
            self._last_hand = time.monotonic()
        self._restarts += seat.restarts + 1
        seat.hand, seat.held, seat.hungry, seat.restarts = None, {}, False, 0
        seat.ends += 1
        for part in held:
            self._take_back(seat, part, lost)
        shards = ", ".join(str(part.shard.chunk.index) for part in held)
        rest = f" What is not done of shard {shards} goes to the next that is free." if held else ""
        if seat.ends >= MOST_ENDS:
            if seat.guilty is not None:  # nobody has shown that it is
                self._alone.append(seat.guilty)
            self._shards.watch.say(f"{name} was lost ({lost}), {seat.ends} times in a row: no other is started.{rest}")
            await self._feed()
            return False
        self._shards.watch.say(f"{name} was lost ({lost}); another is started.{rest}")
        await self._feed()
        await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (seat.ends - 1))
        return True

    def _take_back(self, seat: _Seat, part: _Held, lost: Lost) -> None:
        index = part.shard.chunk.index
        for place, keys in part.through.items():
            self._replayed[index, place] = Counter(keys)
        self._ends_of_chunk[index] += 1
        if self._ends_of_chunk[index] >= MOST_ENDS_OF_A_CHUNK:
            raise EngineGaveUp(
                f"{self._ends_of_chunk[index]} actors were lost while they had shard {index} ({lost}). "
                "The same command goes on from here."
            )
        suspects = part.left & part.begun
        self._ends.update((index, place) for place in suspects)
        if part.alone and suspects:
            (place,) = suspects
            seat.guilty = (part.shard, place)
            return
        alone = sorted(place for place in part.left if part.alone or self._ends[index, place] >= 2)
        self._alone.extend((part.shard, place) for place in alone)
        others = sorted(part.left.difference(alone))
        if others:
            self._back.append((part.shard, others))

    async def _prove(self, seat: _Seat) -> None:
        """Drop the row that the last hand died of, if its successor lives: else no row is to blame."""
        if seat.guilty is None:
            return
        assert seat.hand is not None
        shard, place = seat.guilty
        try:
            await seat.hand.probe()
        except Lost as lost:
            raise EngineGaveUp(f"Every actor is lost, also with a harmless call ({lost}).") from lost
        seat.guilty = None
        self._ends_of_chunk[shard.chunk.index] = 0
        row = shard.chunk.items[place]
        detail = "its actor died of this row three times, the last time with no other beside it"
        drop = Drop(row.row_id, self._shards.stage, "refused_by_engine", detail, "", row.source)
        await self._put(shard, place, drop)

    # What hands say

    async def _hear(self, seat: _Seat, event: Event) -> None:
        match event:
            case Begun(part, place):
                seat.held[part].begun.add(place)
            case Asked(part, place, entry):
                held = seat.held[part]
                held.shard.journal.add(entry)
                held.through.setdefault(place, []).append(entry["key"])
                seat.ends = 0
            case Reused(part, place, key):
                held = seat.held[part]
                held.through.setdefault(place, []).append(key)
                replayed = self._replayed.get((held.shard.chunk.index, place), Counter[str]())
                if replayed[key] > 0:  # a hand that was lost had asked or found it already
                    replayed[key] -= 1
                else:
                    self._shards.tally.reused_calls += 1
            case Wanted(number, part, key):
                if seat.hand is not None:
                    seat.hand.found(number, seat.held[part].shard.journal.find(key))
            case Done(part, place, result):
                held = seat.held[part]
                held.left.discard(place)
                held.through.pop(place, None)
                if not held.left:
                    del seat.held[part]
                await self._put(held.shard, place, result)
            case Free():
                seat.hungry = True
            case Logged(name, level, text):
                logging.getLogger(name).log(level, "%s: %s", seat.hand.name if seat.hand else seat.number, text)
            case Failed(error):
                raise error

    async def _put(self, shard: Shard, place: int, result: object) -> None:
        self._replayed.pop((shard.chunk.index, place), None)
        await self._shards.put(shard, place, result)
        if shard.missing == 0:
            self._under_way.discard(shard.chunk.index)
            self._see_if_over()

    # What hands are given

    async def _feed(self) -> None:
        """Give each seat that asks for it another part, as long as there is one."""
        for seat in self._seats:
            hand = seat.hand
            if not seat.hungry or hand is None or self._stopping:
                continue
            seat.hungry = False
            given = await self._next(seat)
            if given is None:
                seat.hungry = seat.hand is hand
                continue
            shard, places, alone = given
            if seat.hand is not hand:  # lost in the meantime
                self._alone.extend((shard, place) for place in places) if alone else self._back.append((shard, places))
                continue
            number = next(self._numbers)
            seat.held[number] = _Held(shard, set(places), alone)
            rows = dict(shard.to_do())
            hand.give(Part(number, tuple((place, rows[place]) for place in places), shard.journal.entries()))

    async def _next(self, seat: _Seat) -> tuple[Shard, list[int], bool] | None:
        if any(held.alone for held in seat.held.values()):
            return None
        if self._alone and not seat.held:
            shard, place = self._alone.popleft()
            return shard, [place], True
        if self._back:
            return *self._back.popleft(), False
        while (chunk := next(self._chunks, None)) is not None:
            self._under_way.add(chunk.index)
            shard = await self._shards.open(chunk)
            if shard.missing:
                return shard, [place for place, _ in shard.to_do()], False
            self._under_way.discard(chunk.index)
        self._exhausted = True
        self._see_if_over()
        return None

    def _see_if_over(self) -> None:
        if self._exhausted and not self._under_way:
            self._over.set()
