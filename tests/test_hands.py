"""Rows that are worked on elsewhere, with hands in this process that can be lost: nothing is repeated, nobody waits."""

import asyncio
import logging
import pickle
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cai import handout
from cai.engines import Request, Sampling
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import BadInput, CaiError, CannotWrite, EngineGaveUp
from cai.handout import Away, Handout, Lost, NoRoom
from cai.hands import Hand, News, Part, packed, probe, unpacked
from cai.inputs import Chunk
from cai.journal import Entry, OtherRuns, Tally
from cai.label import judge
from cai.revise import Roles, generate, revise
from cai.rows import Row
from cai.runner import Here, Shards, Team, Work
from cai.settings import GenerateSettings, LabelSettings
from cai.store import Run, open_run
from cai.templates import Templates, load_templates
from tests.conftest import Quiet, method, row, table_bytes

NEAR = ("r4", "r5", "r6", "r7")
SAMPLING = Sampling(max_tokens=50)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handout, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(handout, "ROOM_SECONDS", 0.2)


class Near:
    """A hand in this process, which is gone when `killed` is set."""

    def __init__(self, name: str, hand: Hand, killed: asyncio.Event) -> None:
        self.name, self._hand, self.killed = name, hand, killed

    def give(self, part: Part | None) -> None:
        # As it would come out at the other side of a wire.
        self._hand.give(pickle.loads(pickle.dumps(part)))

    def found(self, number: int, entry: Entry | None) -> None:
        self._hand.found(number, entry)

    def stop(self) -> None:
        self._hand.stop()

    async def news(self) -> AsyncGenerator[News]:
        news = self._hand.news()
        dead = asyncio.ensure_future(self.killed.wait())
        try:
            while True:
                one = asyncio.ensure_future(anext(news, None))
                await asyncio.wait([one, dead], return_when=asyncio.FIRST_COMPLETED)
                if dead.done():
                    one.cancel()
                    await asyncio.wait([one])
                    raise Lost("killed")
                if (said := one.result()) is None:
                    return
                yield pickle.loads(pickle.dumps(said))
        finally:
            dead.cancel()
            await news.aclose()

    async def probe(self) -> None:
        asking = asyncio.ensure_future(probe(self._hand._engines))
        dead = asyncio.ensure_future(self.killed.wait())
        await asyncio.wait([asking, dead], return_when=asyncio.FIRST_COMPLETED)
        asking.cancel()
        dead.cancel()
        if self.killed.is_set():
            raise Lost("killed")


@dataclass
class Hands:
    """Where hands come from: each with an engine of its own, which `script` answers for, told which hand asks."""

    work: Callable[[ScriptedEngine], Work]
    script: Callable[["Hands", int, Request], Any]
    slots: int = 4
    latency_seconds: float = 0.002
    reuses: bool = False
    slow: Callable[[str], bool] = lambda row_id: False
    refuse: Callable[["Hands", int], None] = lambda hands, seat: None
    made: list[Near] = field(default_factory=list[Near])
    engines: list["Noting"] = field(default_factory=list["Noting"])

    @property
    def asked(self) -> list[list[str]]:
        """The rows whose calls each hand has answered."""
        return [engine.asked for engine in self.engines]

    def all_asked(self) -> list[str]:
        return [row_id for asked in self.asked for row_id in asked]

    async def hand(self, seat: int) -> Away:
        await asyncio.sleep(0.01)
        self.refuse(self, seat)
        number = len(self.made)

        def answer(request: Request) -> Any:
            return self.script(self, number, request)

        engine = Noting(answer, slots=self.slots, latency_seconds=self.latency_seconds)
        engine.asked, engine.slow = [], self.slow
        self.engines.append(engine)
        hand = Hand("generate", self.work(engine), [engine], None, self.reuses)
        self.made.append(Near(f"Hand {number}", hand, asyncio.Event()))
        return self.made[-1]


class Noting(ScriptedEngine):
    """Notes the rows whose calls it has answered, and how many it works on."""

    asked: list[str]
    slow: Callable[[str], bool]
    busy = 0

    async def complete(self, request: Request) -> Any:
        self.busy += 1
        try:
            await asyncio.sleep(0.4 if self.slow(request.row_id) else 0)
            answer = await super().complete(request)
        finally:
            self.busy -= 1
        self.asked.append(request.row_id)
        return answer


async def never() -> None:
    await asyncio.Event().wait()


@pytest.fixture
def plain() -> Templates:
    return load_templates(names=["respond"])


def chunks(rows: int, size: int) -> list[Chunk]:
    made: list[Row] = [row(f"question {number}", f"r{number}") for number in range(rows)]
    return [Chunk(index, tuple(made[start : start + size])) for index, start in enumerate(range(0, rows, size))]


def shards(run: Run, tally: Tally, watch: Quiet, others: OtherRuns | None = None) -> Shards:
    return Shards(run, "generate", lambda rows: {"responses": rows}, "sha", tally, others, watch)


def work_of(templates: Templates) -> Callable[[ScriptedEngine], Work]:
    return lambda engine: partial(generate, generator=engine, templates=templates, seed=0, sampling=SAMPLING)


def hand_out(folder: Path, hands: Hands, seats: int = 2, rows: int = 24, reuse: Path | None = None) -> Any:
    """Make a run by these hands; its tally, its watch and its handout."""

    async def through() -> tuple[Tally, Quiet, Handout]:
        tally, watch = Tally(), Quiet()
        with Run(folder) as run:
            run.belong("generate", {"settings": {}, "models": {}, "texts": {}}, {})
            others = OtherRuns([reuse]) if reuse else None
            made = Handout(shards(run, tally, watch, others), chunks(rows, 4), seats, hands)
            async with asyncio.timeout(20):
                await made.run()
        return tally, watch, made

    return asyncio.run(through())


def here(folder: Path, templates: Templates, rows: int = 24) -> dict[str, bytes]:
    async def through() -> None:
        engine = ScriptedEngine(derived_script)
        with Run(folder) as run:
            run.belong("generate", {"settings": {}, "models": {}, "texts": {}}, {})
            team: Team = Here([engine], None)
            async with team:
                await team.work_through(
                    shards(run, Tally(), Quiet()), chunks(rows, 4), work_of(templates)(engine)
                )  # fmt: skip

    asyncio.run(through())
    return table_bytes(folder)


def derived(hands: Hands, number: int, request: Request) -> Any:
    return derived_script(request)


def test_hands_elsewhere_make_the_same_bytes_and_share_the_work(tmp_path: Path, plain: Templates):
    hands = Hands(work_of(plain), derived)
    tally, watch, _ = hand_out(tmp_path / "out", hands)
    assert table_bytes(tmp_path / "out") == here(tmp_path / "here", plain)
    assert (tally.asked_calls, tally.reused_calls, len(watch.rows), len(watch.shards)) == (24, 0, 24, 6)
    assert all(len(asked) >= 4 for asked in hands.asked), "each had a whole part of it"


def test_a_hand_asks_for_its_next_part_while_the_last_one_is_under_way(tmp_path: Path, plain: Templates):
    """Four rows of the first chunk wait until a row of the second one is asked; a hand that drained would hang."""
    seen: set[str] = set()

    class Waits(Hands):
        async def hand(self, seat: int) -> Away:
            made = await super().hand(seat)
            engine = self.made[-1]._hand._engines[0]
            complete = engine.complete

            async def waits(request: Request) -> Any:
                seen.add(request.row_id)
                while request.row_id == "r3" and "r4" not in seen:
                    await asyncio.sleep(0.001)
                return await complete(request)

            engine.complete = waits  # type: ignore[method-assign]
            return made

    hand_out(tmp_path / "out", Waits(work_of(plain), derived), seats=1, rows=8)
    assert seen >= {"r3", "r4"}


def test_what_a_lost_hand_had_is_done_by_others_and_no_finished_call_is_asked_again(tmp_path: Path, plain: Templates):
    """Hand 1 answers nothing before the hand that follows the lost one is there, so the three all have work."""

    class Waits(Hands):
        async def hand(self, seat: int) -> Away:
            made = await super().hand(seat)
            if len(self.made) == 2:
                engine = self.engines[1]
                complete = engine.complete

                async def waits(request: Request) -> Any:
                    while len(self.made) < 3:
                        await asyncio.sleep(0.001)
                    return await complete(request)

                engine.complete = waits  # type: ignore[method-assign]
            return made

    def script(hands: Hands, number: int, request: Request) -> Any:
        if number == 0 and len(hands.asked[0]) >= 6:
            hands.made[0].killed.set()
        return derived_script(request)

    hands = Waits(work_of(plain), script)
    tally, watch, made = hand_out(tmp_path / "out", hands)
    assert table_bytes(tmp_path / "out") == here(tmp_path / "here", plain)
    (said,) = watch.said
    assert said.startswith("Hand 0 was lost (killed); another is started. What is not done of shard ")
    assert said.endswith(" goes to the next that is free.")
    assert tally.asked_calls == 24 and made.restarts == 1 and len(hands.made) == 3
    assert (tally.reused_calls, len(watch.rows)) == (0, 24)


def test_the_finished_calls_of_a_row_that_was_under_way_are_given_on_and_not_counted_twice(tmp_path: Path):
    """Each row asks two calls; the hand is lost at the second call of r2."""

    def twice(engine: ScriptedEngine) -> Work:
        return partial(_twice, engine=engine)

    def script(hands: Hands, number: int, request: Request) -> Any:
        if number == 0 and request.purpose == "second" and request.row_id == "r2":
            hands.made[0].killed.set()
        return f"{request.purpose} {request.row_id}"

    hands = Hands(twice, script, slots=1)
    tally, _, _ = hand_out(tmp_path / "out", hands, seats=1, rows=4)
    assert (tally.asked_calls, tally.reused_calls) == (8, 0)
    assert hands.asked[0].count("r2") == 2, "both were answered, but the second answer was lost with its hand"
    assert hands.asked[1].count("r2") == 1, "only what nobody had written down is asked again"
    assert "r0" not in hands.asked[1]


async def _twice(item: Row, ask: Any, engine: ScriptedEngine) -> Any:
    for purpose in ("first", "second"):
        await ask(engine, Request(purpose, item.row_id, item.prompt, SAMPLING, 0))
    return await generate(item, _no_calls, engine, load_templates(names=["respond"]), 0, SAMPLING)


async def _no_calls(engine: ScriptedEngine, request: Request) -> Any:
    return "key", await ScriptedEngine(derived_script).complete(request)


def test_a_row_that_its_hands_die_of_is_dropped_by_name_and_the_others_stay(tmp_path: Path, plain: Templates):
    together: list[int] = []

    def script(hands: Hands, number: int, request: Request) -> Any:
        if request.row_id == "r5":
            together.append(hands.engines[number].busy)
            hands.made[number].killed.set()
        return derived_script(request)

    # All parts are given out, so every hand is free for one more while it works on rows that take long.
    hands = Hands(work_of(plain), script, slots=8, latency_seconds=0.05, slow=lambda row_id: row_id not in NEAR)
    _, watch, made = hand_out(tmp_path / "out", hands, seats=3, rows=12)
    run = open_run(str(tmp_path / "out"))
    (drop,) = [record for index in range(3) if run.drops("generate", index).exists() for record in _drops(run, index)]
    assert (drop["row_id"], drop["reason"]) == ("r5", "refused_by_engine")
    assert drop["detail"] == "its actor died of this row three times, the last time with no other beside it"
    assert [record["row_id"] for record in run.records("responses")] == [f"r{n}" for n in range(12) if n != 5]
    assert len(watch.said) == made.restarts == len(together) >= 3
    assert together[0] > 1 and together[-1] == 1, "the last time it was alone with its hand"


def _drops(run: Run, index: int) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(run.drops("generate", index)).to_pylist()


def test_no_row_is_blamed_where_hands_die_of_every_call(tmp_path: Path, plain: Templates):
    def script(hands: Hands, number: int, request: Request) -> Any:
        hands.made[number].killed.set()
        return derived_script(request)

    with pytest.raises(EngineGaveUp, match=r"^Every actor is lost, also with a harmless call \(killed\)\.$"):
        hand_out(tmp_path / "out", Hands(work_of(plain), script, latency_seconds=0.03), seats=1)
    assert not list((tmp_path / "out").glob("drops/*"))


def test_a_chunk_that_takes_hand_after_hand_with_it_ends_the_run_by_name(
    tmp_path: Path, plain: Templates, monkeypatch: pytest.MonkeyPatch
):
    """The row is gone before it has said that it began, so nothing is known to blame."""
    monkeypatch.setattr(handout, "MOST_ENDS_OF_A_CHUNK", 3)

    async def dies(item: Row, ask: Any, engine: ScriptedEngine, hands: Hands) -> Any:
        if item.row_id == "r0":
            hands.made[-1].killed.set()
            await never()
        return await generate(item, ask, engine, plain, 0, SAMPLING)

    hands = Hands(lambda engine: partial(dies, engine=engine, hands=hands), derived)
    with pytest.raises(EngineGaveUp, match="3 actors were lost while they had shard 0"):
        hand_out(tmp_path / "out", hands, seats=1, rows=24)


def test_a_seat_that_loses_one_hand_after_another_is_left_empty_and_the_others_go_on(tmp_path: Path, plain: Templates):
    def refuse(hands: Hands, seat: int) -> None:
        if seat == 1:
            raise Lost("it does not begin")

    hands = Hands(work_of(plain), derived, refuse=refuse, latency_seconds=0.05, slots=1)
    _, watch, _ = hand_out(tmp_path / "out", hands)
    assert table_bytes(tmp_path / "out") == here(tmp_path / "here", plain)
    assert len(watch.said) == 5
    assert watch.said[-1] == "actor 1 was lost (it does not begin), 5 times in a row: no other is started."
    hands = Hands(work_of(plain), derived, refuse=lambda hands, seat: refuse(hands, 1))
    with pytest.raises(EngineGaveUp, match=r"^Every actor was lost again and again\. The same command goes on from"):
        hand_out(tmp_path / "none", hands)


def test_a_run_waits_for_room_while_others_work_and_gives_up_where_nobody_does(tmp_path: Path, plain: Templates):
    def full(hands: Hands, seat: int) -> None:
        if seat == 1 or len(hands.made) > 0:
            raise NoRoom("no node is free")

    hands = Hands(work_of(plain), derived, refuse=full, latency_seconds=0.03)
    _, watch, _ = hand_out(tmp_path / "out", hands)
    assert len(hands.made) == 1 and watch.said == []

    def script(hands: Hands, number: int, request: Request) -> Any:
        hands.made[number].killed.set()
        return derived_script(request)

    with pytest.raises(EngineGaveUp, match="No actor can be had: no node is free"):
        hand_out(tmp_path / "gone", Hands(work_of(plain), script, refuse=full))


def test_calls_of_other_runs_are_found_from_elsewhere_and_counted_as_reused(tmp_path: Path, plain: Templates):
    hand_out(tmp_path / "old", Hands(work_of(plain), derived), rows=12)
    hands = Hands(work_of(plain), derived, reuses=True)
    tally, _, _ = hand_out(tmp_path / "new", hands, rows=24, reuse=tmp_path / "old")
    assert (tally.asked_calls, tally.reused_calls) == (12, 12)
    assert sorted(hands.all_asked()) == sorted(f"r{n}" for n in range(12, 24))
    assert table_bytes(tmp_path / "new") == here(tmp_path / "here", plain)


def test_an_end_of_the_run_in_a_hand_is_the_end_here_and_what_is_finished_stays(tmp_path: Path, plain: Templates):
    def script(hands: Hands, number: int, request: Request) -> Any:
        if request.row_id == "r9":
            raise EngineGaveUp("The server refuses the key.")
        return derived_script(request)

    with pytest.raises(EngineGaveUp, match=r"^The server refuses the key\.$"):
        hand_out(tmp_path / "out", Hands(work_of(plain), script))
    hands = Hands(work_of(plain), derived)
    tally, _, _ = hand_out(tmp_path / "out", hands)
    assert tally.asked_calls + tally.reused_calls == 24 and tally.reused_calls >= 4
    assert "r0" not in hands.all_asked()


def test_an_error_that_is_nobodys_is_not_swallowed(tmp_path: Path, plain: Templates):
    def script(hands: Hands, number: int, request: Request) -> Any:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        hand_out(tmp_path / "out", Hands(work_of(plain), script))


def test_a_run_that_is_stopped_keeps_every_call_that_was_answered(tmp_path: Path, plain: Templates):
    hands = Hands(work_of(plain), derived, latency_seconds=0.01)

    async def stopped() -> Tally:
        tally = Tally()
        with Run(tmp_path / "out") as run:
            run.belong("generate", {"settings": {}, "models": {}, "texts": {}}, {})
            task = asyncio.create_task(Handout(shards(run, tally, Quiet()), chunks(24, 4), 2, hands).run())
            while len(hands.all_asked()) < 10:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return tally

    tally = asyncio.run(stopped())
    answered = hands.all_asked()
    assert tally.asked_calls == len(answered) < 24
    again = Hands(work_of(plain), derived)
    hand_out(tmp_path / "out", again)
    assert sorted(answered + again.all_asked()) == sorted(f"r{n}" for n in range(24))


def test_warnings_of_a_hand_are_told_here_with_its_name(
    tmp_path: Path, plain: Templates, caplog: pytest.LogCaptureFixture
):
    def script(hands: Hands, number: int, request: Request) -> Any:
        if request.row_id == "r2":
            logging.getLogger("cai.engines.vllm").warning("It has died.")
        return derived_script(request)

    hand_out(tmp_path / "out", Hands(work_of(plain), script, latency_seconds=0.01))
    assert any(message.startswith("Hand ") and message.endswith(": It has died.") for message in caplog.messages)


def test_work_travels_without_its_engines_and_does_the_same_there(constitution: Any, templates: Templates):
    mine = [ScriptedEngine(derived_script, model="a"), ScriptedEngine(derived_script, model="b")]
    theirs = [ScriptedEngine(derived_script, model="a"), ScriptedEngine(derived_script, model="b")]
    whole: Work = partial(
        revise, roles=Roles(mine[0], mine[1], mine[0]), constitution=constitution, templates=templates, method=method()
    )
    arrived: Any = unpacked(packed(whole, mine), theirs)
    roles = arrived.keywords["roles"]
    assert roles.generator is theirs[0] and roles.critic is theirs[1] and roles.reviser is theirs[0]

    async def ask(engine: Any, request: Request) -> Any:
        return request.key(engine.model), await engine.complete(request)

    assert asyncio.run(arrived(row(), ask)) == asyncio.run(whole(row(), ask))  # type: ignore[arg-type]
    judging = LabelSettings(run="x").judging()
    other: Work = partial(judge, judge=mine[0], constitution=constitution, templates=templates, method=judging)
    assert unpacked(packed(other, mine), theirs).keywords["judge"] is theirs[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error",
    [
        BadInput("--model x", "nothing", "a model", "Mend it."),
        CannotWrite("a file", OSError(28, "No space left on device")),
        EngineGaveUp("gone"),
        CaiError("an end"),
    ],
)
def test_an_error_travels_as_it_is(error: CaiError):
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error) and str(arrived) == str(error) and vars(arrived) == vars(error)


def test_settings_of_the_cluster_do_not_belong_to_a_run():
    local = GenerateSettings(prompts="p", out="o")
    far = GenerateSettings(prompts="p", out="o", on="ray", ray_address="auto", ray_actors=3, ray_gpus=0.5, ray_cpus=2.0)
    assert local.compared() == far.compared()
