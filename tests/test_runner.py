"""How many rows are under way: enough to keep the engines full, and no more."""

import asyncio
from collections.abc import Callable

import pytest

from cai.engines import Completion, Engine, Request, Sampling
from cai.engines.scripted import ScriptedEngine
from cai.rows import Message
from cai.runner import InFlight

REQUEST = Request("respond", "r", (Message("user", "?"),), Sampling(1), 0)


async def through(
    in_flight: InFlight, rows: int, calls: Callable[[int], list[int]], seconds: float = 0.002
) -> list[int]:
    """Rows that ask as many calls together, step by step, as `calls` says; the most calls and rows there ever were."""
    busy, most = 0, [0, 0]

    async def answer(engine: Engine, request: Request) -> tuple[str, Completion]:
        nonlocal busy
        busy += 1
        most[0], most[1] = max(most[0], busy), max(most[1], in_flight.rows)
        await asyncio.sleep(seconds)
        busy -= 1
        return "", Completion("", "stop", 0, 0, 0)

    engine = ScriptedEngine(lambda request: "")
    async with asyncio.TaskGroup() as group:
        for row in range(rows):
            mine = await in_flight.begin()

            async def one(row: int = row, mine: "object" = mine) -> None:
                for together in calls(row):
                    await asyncio.gather(*(mine.ask(answer, engine, REQUEST) for _ in range(together)))  # type: ignore[attr-defined]
                mine.end()  # type: ignore[attr-defined]

            group.create_task(one())
    assert in_flight.rows == in_flight.calls == 0
    return most


def test_rows_wait_once_the_engines_are_full_and_half_as_many_again():
    assert asyncio.run(through(InFlight(lambda: 8), 60, lambda row: [1, 1, 1])) == [12, 12]


def test_a_row_that_asks_much_at_once_takes_the_room_of_many():
    # One row more than there is room for, since calls of two rows may end in another order than they began.
    calls, rows = asyncio.run(through(InFlight(lambda: 16), 40, lambda row: [24]))
    assert 24 <= calls <= 48 and rows <= 3
    calls, rows = asyncio.run(through(InFlight(lambda: 16), 40, lambda row: [10]))
    assert 20 <= calls <= 48 and 2 <= rows <= 5


def test_most_rows_is_a_bound_on_top():
    assert asyncio.run(through(InFlight(lambda: 64, most_rows=3), 30, lambda row: [2]))[1] == 3


def test_slots_that_grow_are_noticed_while_nothing_ends():
    async def watch() -> int:
        slots = 2
        in_flight = InFlight(lambda: slots)
        for _ in range(3):
            await in_flight.begin()
        waiting = asyncio.create_task(in_flight.begin())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        slots = 4
        async with asyncio.timeout(2):
            await waiting
        return in_flight.rows

    assert asyncio.run(watch()) == 4


def test_one_row_always_begins():
    async def begin() -> None:
        async with asyncio.timeout(1):
            await InFlight(lambda: 0).begin()

    asyncio.run(begin())


def test_whoever_waits_for_room_can_be_cancelled():
    async def cancelled() -> None:
        in_flight = InFlight(lambda: 1)
        for _ in range(2):
            await in_flight.begin()
        waiting = asyncio.create_task(in_flight.begin())
        await asyncio.sleep(0.01)
        in_flight.change(calls=-1)  # room and the cancellation come in the same moment
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancelled())
