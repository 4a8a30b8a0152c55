"""Servers that fail, hang, die and come back: which endpoint a call goes to, what it waits for, and what it ends as."""

import asyncio
import logging
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from cai.engines import Completion, Engine, Spec, endpoints, open_engine
from cai.engines.endpoints import Endpoints, Turn
from cai.engines.faults import Fault
from cai.engines.server import _Call  # type: ignore[reportPrivateUsage]
from cai.errors import BadInput, EngineGaveUp, RequestRefused
from cai.ids import digest
from cai.settings import ReviseSettings
from cai.stage_run import Outcome
from cai.stages import revise_stage
from cai.store import open_run
from tests.conftest import Quiet, write_jsonl
from tests.servers import BOOM, BREAKS, CLOSES, DRIPS, GATE, HANGS, Answer, Server, ask, call, chat, spec, well

pytestmark = pytest.mark.usefixtures("quick")
Serve = Callable[..., Server]


def named(name: str) -> Callable[[dict[str, Any], int], Answer]:
    return lambda body, n: (200, chat(name))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "cai")
    return lambda: [record.message for record in caplog.records if record.name.startswith("cai")]


# One endpoint that fails for a while


@pytest.mark.parametrize("way", [HANGS, DRIPS, CLOSES, BREAKS])
def test_a_try_that_hangs_drips_or_breaks_off_is_asked_again(serve: Serve, way: str):
    one = serve(lambda body, n: way if n <= 3 else (200, chat()))
    assert ask(one, timeout_seconds=0.3)[0].text == "hi there"
    assert len(one.calls) == 4


@pytest.mark.parametrize("said", ["0.5", "date"])
def test_retry_after_is_waited_for_by_every_call(serve: Serve, said: str):
    begun = time.time()
    waits = {"Retry-After": formatdate(begun + 2, usegmt=True) if said == "date" else said}

    def behave(body: dict[str, Any], n: int) -> Answer:
        return (429, {"error": {"message": "slow down"}}, waits) if n == 1 else (200, chat())

    async def two() -> None:
        async with open_engine(spec(one)) as engine:
            first = asyncio.create_task(engine.complete(call("r1")))
            while not one.calls:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            await asyncio.gather(first, engine.complete(call("r2")))

    one = serve(behave)
    asyncio.run(two())
    # A date has whole seconds.
    assert all(moment - one.moments[0] >= (0.5 if said != "date" else 0.9) for moment in one.moments[1:])
    assert len(one.calls) == 3


def test_a_busy_server_is_waited_for_longer_than_there_are_retries(serve: Serve):
    def behave(body: dict[str, Any], n: int) -> Answer:
        return (200, chat()) if n > 6 else (429, {"error": {"message": "slow down"}})

    assert ask(serve(behave), retries=1)[0].text == "hi there"


def test_a_server_that_asks_to_wait_longer_than_a_call_may_take_ends_the_run_at_once(serve: Serve):
    one = serve(lambda body, n: (429, {"error": {"message": "quota"}}, {"Retry-After": "3600"}))
    begun = time.monotonic()
    with pytest.raises(EngineGaveUp, match=r"any more: 429: quota, with Retry-After 3600 s\. The same command goes on"):
        ask(one)
    assert time.monotonic() - begun < 20 and len(one.calls) == 1
    assert ask(one, serve(named("two")))[0].text == "two", "another endpoint is asked instead"


def test_a_gate_without_log_probabilities_is_answered_by_its_word(serve: Serve):
    (answer,) = ask(serve(named("Yes")), requests=(GATE,))
    assert (answer.text, answer.choice_logprobs) == ("Yes", None)


@pytest.mark.parametrize("way", [BREAKS, (503, {"error": {"message": "loading the model"}})])
def test_a_server_that_is_restarted_is_waited_for_and_the_log_says_so_once(
    serve: Serve, log: Callable[[], list[str]], way: Answer
):
    """While it starts, its connections break, or a gateway or the server itself says 503: more often than retries."""
    one = serve(lambda body, n: well(body, n) if n == 1 or n > 12 else way)

    async def go() -> list[Completion]:
        async with open_engine(spec(one, retries=1)) as engine:
            await engine.complete(call("r0"))
            return await asyncio.gather(*(engine.complete(call(f"r{n}")) for n in range(8)))

    assert [answer.text for answer in asyncio.run(go())] == ["hi there"] * 8
    away, back = log()
    assert away.startswith(f"{one.url}/v1 does not answer (")
    assert away.endswith("). Its calls wait for it, each up to 10 s.") and back == f"{one.url}/v1 answers again."


def test_a_gateway_that_lists_models_with_no_server_behind_it_is_waited_for_by_the_last_call_too(serve: Serve):
    one = serve(lambda body, n: well(body, n) if n == 1 or n > 10 else (503, "no backend"))

    async def go() -> Completion:
        async with open_engine(spec(one, retries=1)) as engine:
            await engine.complete(call("r0"))
            return await engine.complete(call())

    assert asyncio.run(go()).text == "hi there"


def test_a_server_that_recovers_when_the_harmless_call_comes_is_asked_once_more(serve: Serve):
    def behave(body: dict[str, Any], n: int) -> Answer:
        recovered.append(body["messages"][-1]["content"] == "Hello")
        return (200, chat()) if any(recovered) else BOOM

    recovered: list[bool] = []
    assert ask(serve(behave), retries=2)[0].text == "hi there"
    assert recovered == [False, False, False, True, False]


def test_a_refused_connection_is_waited_for_up_to_the_deadline(serve: Serve, log: Callable[[], list[str]]):
    one = serve()
    again: list[Server] = []

    async def go() -> Completion:
        async with open_engine(spec(one, retries=1)) as engine:
            await engine.complete(call())
            one.stop()
            waiting = asyncio.create_task(engine.complete(call("r2")))
            await asyncio.sleep(1.2)
            assert engine.slots == 0, "no new rows meanwhile"
            again.append(serve(named("restarted"), port=one.port))
            return await waiting

    assert asyncio.run(go()).text == "restarted"
    assert [line.removeprefix(f"{one.url}/v1 ").split(" (")[0] for line in log()] == [
        "does not answer",
        "answers again.",
    ]


def test_a_call_that_waits_for_a_dead_server_is_never_dropped(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    """It has failed while others were answered; but then the server died, and that is not the call's fault."""
    monkeypatch.setattr("cai.engines.server.FIRST_BACKOFF_SECONDS", 1.0)
    monkeypatch.setattr(endpoints, "FIRST_PAUSE_SECONDS", 30.0)

    def behave(body: dict[str, Any], n: int) -> Answer:
        if body["messages"][-1]["content"] == "bad luck":
            time.sleep(0.3)
            one.stop()
            return BOOM
        return 200, chat()

    one = serve(behave)

    async def go() -> list[Any]:
        async with open_engine(spec(one, deadline_seconds=2.0)) as engine:
            unlucky = asyncio.create_task(engine.complete(call("r9", "bad luck")))
            await engine.complete(call())
            while not one.stopped.is_set():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            others = (engine.complete(call(f"r{n}")) for n in range(2))  # they find it dead while the first one pauses
            return await asyncio.gather(unlucky, *others, return_exceptions=True)

    assert [type(end) for end in asyncio.run(go())] == [EngineGaveUp] * 3


def test_a_server_that_hangs_ends_the_run_within_the_deadline(serve: Serve):
    begun = time.monotonic()
    with pytest.raises(EngineGaveUp, match=r"no answer within 1 s \(no answer within 0\.4 s\)"):
        ask(serve(lambda body, n: HANGS), timeout_seconds=0.4, deadline_seconds=1.0, retries=20)
    assert time.monotonic() - begun < 20, "the deadline, and a harmless call"


def test_a_server_that_comes_back_with_another_model_ends_the_run(serve: Serve):
    one = serve()

    async def go() -> None:
        async with open_engine(spec(one)) as engine:
            await engine.complete(call())
            one.models = ["other"]
            one.behave = lambda body, n: (404, {"error": {"message": "no model m"}})
            await engine.complete(call("r2"))

    with pytest.raises(EngineGaveUp, match=r"serves other now, and not 'm'\. Start that model again"):
        asyncio.run(go())


# Several endpoints


@pytest.mark.parametrize("way", ["refuses", HANGS, CLOSES, "HTML", BOOM, (502, "bad gateway"), "404"])
def test_a_bad_endpoint_is_taken_out_and_its_calls_are_answered_by_the_other(
    serve: Serve, log: Callable[[], list[str]], way: Any
):
    bad, good = serve(), serve(named("good"))

    async def go() -> tuple[list[Completion], int, int]:
        async with open_engine(spec(bad, good, retries=3, timeout_seconds=0.7 if way == HANGS else 9.0)) as engine:
            while not bad.calls:
                await engine.complete(call(f"r{len(good.calls)}"))
            slots = engine.slots
            if way == "refuses":
                bad.stop()
            elif way == "404":
                bad.models, bad.behave = ["other"], lambda body, n: (404, {"error": {"message": "no such model"}})
            else:
                bad.behave = lambda body, n: (200, "<html>") if way == "HTML" else way
            rows = [asyncio.create_task(engine.complete(call(f"s{n}"))) for n in range(16)]
            return await asyncio.gather(*rows), slots, engine.slots

    answers, slots_before, slots_after = asyncio.run(go())
    assert {answer.text for answer in answers} == {"good"}
    assert (slots_before, slots_after) == (128, 64)
    (line,) = log()
    assert line.startswith(f"{bad.url}/v1 is taken out (")
    assert line.endswith("). 1 of 2 endpoints left; it is tried again now and then.")


def test_an_endpoint_that_never_knew_the_model_is_left_to_the_others_and_is_bad_where_all_are_so(serve: Serve):
    unknown, good = serve(lambda body, n: (404, {"error": {"message": "no model m"}}), models=[]), serve(named("good"))

    async def go(*servers: Any) -> set[str]:
        async with open_engine(spec(*servers)) as engine:
            return {
                answer.text for answer in await asyncio.gather(*(engine.complete(call(f"s{n}")) for n in range(16)))
            }

    assert asyncio.run(go(unknown, good)) == {"good"} and unknown.calls
    begun = time.monotonic()
    with pytest.raises(EngineGaveUp, match=r"404: no model m\. Check --model"):
        asyncio.run(go(unknown, serve(unknown.behave, models=[])))
    assert time.monotonic() - begun < 5, "not the deadline"


def test_a_look_at_a_server_that_never_answers_ends_at_once_when_it_is_cancelled():
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def go() -> None:
            engine = open_engine(Spec("server", "m", (f"http://127.0.0.1:{silent.getsockname()[1]}/v1",)))
            entering = asyncio.create_task(engine.__aenter__())
            await asyncio.sleep(0.3)
            entering.cancel()
            await asyncio.wait([entering])

        begun = time.monotonic()
        asyncio.run(go())  # a thread would be waited for
        assert time.monotonic() - begun < 5


def test_a_pause_between_tries_stays_bounded_however_often_a_call_has_failed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Endpoints, "fails", lambda self, turn, fault: False)
    engine: Any = open_engine(Spec("server", "m", ("http://127.0.0.1:9/v1",)))
    (endpoint,) = engine._endpoints.all
    tried = _Call(failed_at=Counter({endpoint: 5000}))
    pause = engine._pause_after(tried, Turn(endpoint, False, 0.0, 0), Fault("busy", "429"))
    assert 4 <= pause <= 8


def test_an_endpoint_that_is_out_is_tried_by_one_call_after_pauses_that_double_and_is_back_when_it_answers(
    serve: Serve, log: Callable[[], list[str]]
):
    bad, good = serve(lambda body, n: BREAKS), serve(named("good"))

    async def rows(engine: Engine, until: Callable[[], bool]) -> None:
        number = 0
        while not until():
            await asyncio.gather(*(engine.complete(call(f"{until}{number}-{n}")) for n in range(4)))
            number += 1

    async def go() -> float:
        async with open_engine(spec(bad, good)) as engine:
            begun = time.monotonic()
            await rows(engine, lambda: len(bad.calls) >= 7)
            took = time.monotonic() - begun
            bad.behave = named("back")
            calls = len(bad.calls)
            await rows(engine, lambda: len(bad.calls) > calls + 4)
            assert engine.slots == 128
            return took

    # Two failures, or as many as were under way, and then trials after 0.05, 0.1, 0.2, 0.4 s.
    assert asyncio.run(go()) >= 0.7
    assert [line.split(" (")[0] for line in log()] == [f"{bad.url}/v1 is taken out", f"{bad.url}/v1 answers again."]


def test_when_no_endpoint_is_left_the_run_ends_and_says_how_to_go_on(serve: Serve, log: Callable[[], list[str]]):
    one, two = serve(), serve()

    async def go() -> None:
        async with open_engine(spec(one, two, deadline_seconds=1.0)) as engine:
            await asyncio.gather(*(engine.complete(call(f"r{n}")) for n in range(4)))
            one.stop()
            two.stop()
            await asyncio.gather(*(engine.complete(call(f"r{n}")) for n in range(4)))

    words = (
        r"None of the 2 endpoints answers any more: no answer within 1 s \(.*\)\. The same command goes on later, also"
    )
    with pytest.raises(EngineGaveUp, match=words):
        asyncio.run(go())
    first, second = log()
    assert "1 of 2 endpoints left" in first
    assert second.endswith("). No endpoint is left; calls wait for one, each up to 1 s.")


def test_a_call_that_fails_everywhere_is_dropped_while_others_are_answered(serve: Serve):
    asked: Counter[str] = Counter()

    def behave(name: str) -> Callable[[dict[str, Any], int], Answer]:
        def by_content(body: dict[str, Any], n: int) -> Answer:
            said = body["messages"][-1]["content"]
            if said == "poison":
                asked[name] += 1
                time.sleep(0.2)
            return (200, chat()) if said == "good" else BOOM

        return by_content

    async def go() -> Any:
        both = serve(behave("one")), serve(behave("two"))
        async with open_engine(spec(*both, retries=3)) as engine:
            poison = asyncio.create_task(engine.complete(call("r9", "poison")))
            while not poison.done():
                await asyncio.gather(*(engine.complete(call(f"r{n}", "good")) for n in range(4)))
            return poison.exception()

    dropped = asyncio.run(go())
    assert isinstance(dropped, RequestRefused)
    assert str(dropped) == "the server kept failing on this call while it answered others: 500: boom"
    assert asked == {"one": 2, "two": 2}, "the tries go round"


def test_an_endpoint_that_cannot_be_reached_at_the_start_is_taken_out_if_another_can(
    serve: Serve, log: Callable[[], list[str]]
):
    away = serve(named("late"))
    away.stop()
    good = serve(named("good"))

    async def go() -> str:
        async with open_engine(spec(away, good, model=None)) as engine:  # the model's name is the second's
            assert engine.slots == 64 and engine.model == "m@server"
            assert (await engine.complete(call())).text == "good"
            serve(named("late"), port=away.port)
            await asyncio.sleep(0.1)
            return (await engine.complete(call("r2"))).text

    assert asyncio.run(go()) == "late"
    assert log()[0].startswith(f"{away.url}/v1 is taken out (no server that answers (")
    good.stop()
    with pytest.raises(BadInput, match="no server that answers"):
        ask("http://127.0.0.1:9", good)


def test_a_wrong_model_at_one_of_several_endpoints_is_bad_input_at_the_start(serve: Serve):
    with pytest.raises(BadInput, match="no model 'm', expected one that it serves: other"):
        ask(serve(), serve(models=["other"]))


def test_an_endpoint_that_comes_back_with_another_model_is_not_asked(serve: Serve, log: Callable[[], list[str]]):
    away, good = serve(), serve(named("good"))
    away.stop()

    async def go() -> set[str]:
        async with open_engine(spec(away, good)) as engine:
            other = serve(named("other"), models=["other"], port=away.port)
            await asyncio.sleep(0.1)
            texts = {(await engine.complete(call(f"r{n}"))).text for n in range(4)}
            assert not other.calls
            return texts

    assert asyncio.run(go()) == {"good"}


# Where rows are put


def board(*urls: str) -> Endpoints:
    return Endpoints(urls, retries=1, deadline_seconds=1)


def test_a_row_goes_to_the_endpoint_with_the_fewest_calls_and_stays_there():
    async def go() -> None:
        both = board("a", "b")
        turns = [await both.take(f"r{n}", {}) for n in range(40)]
        assert Counter(turn.endpoint.url for turn in turns) == {"a": 20, "b": 20}
        for turn in turns:
            if turn.endpoint.url == "a":
                both.answers(turn)
                both.give_back(turn)
        for n, turn in enumerate(turns):
            assert (await both.take(f"r{n}", {})).endpoint is turn.endpoint, "also where the other has fewer"

    asyncio.run(go())


def test_rows_that_come_one_by_one_are_spread_by_their_names():
    async def go() -> set[str]:
        both, taken = board("a", "b"), set[str]()
        for n in range(16):
            turn = await both.take(f"r{n}", {})
            taken.add(turn.endpoint.url)
            both.give_back(turn)
        return taken

    assert asyncio.run(go()) == {"a", "b"}


def test_what_a_dying_server_still_had_in_its_pipe_does_not_bring_it_back():
    async def go() -> None:
        both = board("a", "b")
        early, late = (await both.take("r1", {}), await both.take("r1", {}))
        both.take_out(early.endpoint, Fault("gone", "dead"))
        both.answers(early)
        assert both.live == 1
        await asyncio.sleep(0.06)
        both.answers(late)
        assert both.live == 2, "its pause is over, and it answers"

    asyncio.run(go())


def test_only_so_many_rows_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(endpoints, "MOST_HOMES", 10)

    async def go() -> None:
        both = board("a", "b")
        for n in range(100):
            both.give_back(await both.take(f"r{n % 20}", {}))
        assert len(both._homes) == 10  # pyright: ignore[reportPrivateUsage]

    asyncio.run(go())


def test_a_given_number_of_slots_follows_the_live_endpoints(serve: Serve):
    async def go() -> list[int]:
        away, good = serve(), serve()
        away.stop()
        found: list[int] = []
        for slots in (None, 1, 100):
            async with open_engine(spec(away, good, slots=slots)) as engine:
                found.append(engine.slots)
        return found

    assert asyncio.run(go()) == [64, 1, 50]


# Whole runs


def revise(prompts: Path, out: Path, *servers: Server, **changes: Any) -> Outcome:
    told = {"rounds": 1, "retries": 6, "shard_rows": 10, "deadline_seconds": 20.0, "model": "m", **changes}
    where = tuple(one.url for one in servers)
    settings = ReviseSettings(prompts=str(prompts), out=str(out), endpoint=where, **told)
    return asyncio.run(revise_stage(settings, Quiet()))


def answer(body: dict[str, Any], number: int = 0) -> Answer:
    """An answer of its own for each conversation; a gate finds it broken."""
    said = digest(body["messages"])
    if body["max_tokens"] == 1:
        return 200, chat("Yes", logprobs=[("Yes", -0.1), ("No", -2.3), ("A", -3.0)])
    return 200, chat(f"This is what was said about {said[:8]}, and it ends with {said[8:16]}.")


def prompts_of(folder: Path, rows: int) -> Path:
    return write_jsonl(folder / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(rows)])


def test_a_hundred_times_slower_endpoint_takes_what_it_can_and_does_not_hold_up_the_run(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(endpoints, "NOT_WORTH_MOVING_SECONDS", 0.0)

    def after(seconds: float) -> Callable[[dict[str, Any], int], Answer]:
        def behave(body: dict[str, Any], n: int) -> Answer:
            time.sleep(seconds)
            return answer(body)

        return behave

    fast, slow = serve(after(0.015)), serve(after(1.5))
    begun = time.monotonic()
    outcome = revise(prompts_of(tmp_path, 30), tmp_path / "run", fast, slow, slots=8, rounds=2)
    took = time.monotonic() - begun
    calls = len(fast.calls) + len(slow.calls)
    assert outcome.entry["counts"]["kept"] == 30 and calls == outcome.session.asked_calls
    alone = calls / 12 * 1.5  # half as many calls again as there are slots are under way at once
    assert took < alone / 2, (took, alone, len(fast.calls), len(slow.calls))
    assert 0 < len(slow.calls) < calls / 4


def test_a_run_over_servers_that_fail_at_random_in_every_way_loses_no_row(serve: Serve, tmp_path: Path):
    asked: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    faults: dict[str, Callable[[dict[str, Any]], Answer]] = {
        "hangs": lambda body: HANGS,
        "closes": lambda body: CLOSES,
        "breaks": lambda body: BREAKS,
        "busy": lambda body: (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.05"}),
        "500": lambda body: BOOM,
        "503": lambda body: (503, "unavailable"),
        "HTML": lambda body: (200, "<html>gateway</html>"),
        "no choices": lambda body: (200, {**chat(), "choices": []}),
        "no logprobs": lambda body: (200, chat("Yes")) if body["max_tokens"] == 1 else answer(body),
        "wrong model": lambda body: (404, {"error": {"message": "no model m"}}),
        "too long": lambda body: (400, {"error": {"message": "maximum context length is 8192"}}),
        "filtered": lambda body: (200, chat(finish="content_filter")),
    }

    def behave(body: dict[str, Any], n: int) -> Answer:
        key = digest(body["messages"])
        asked[key] += 1
        drawn = random.Random(f"{key} {asked[key]}")  # so each call meets the same faults, in whatever order they come
        if drawn.random() > 0.3:
            return answer(body)
        rare = drawn.random() < 0.1
        way = drawn.choice(["wrong model", "too long", "filtered"] if rare else list(faults)[:9])
        ways[way] += 1
        return faults[way](body)

    both = serve(behave), serve(behave)
    outcome = revise(prompts_of(tmp_path, 60), tmp_path / "run", *both, timeout_seconds=1.5, slots=32)
    counts = outcome.entry["counts"]
    assert counts["read"] == 60 == counts["kept"] + counts["dropped"]
    assert counts["kept"] > 30 and set(counts["dropped_by_reason"]) <= {"refused_by_engine", "unchanged"}
    run = open_run(str(tmp_path / "run"))
    rows = [one["row_id"] for one in (*run.records("trajectories"), *run.dropped("revise", "trajectories"))]
    assert sorted(rows) == sorted(f"r{n}" for n in range(60))
    assert set(list(faults)[:9]) < set(ways), ways


def test_a_server_that_dies_ends_the_run_with_exit_code_3_and_it_goes_on_at_another_port(serve: Serve, tmp_path: Path):
    asked: Counter[str] = Counter()

    def until_it_dies(body: dict[str, Any], n: int) -> Answer:
        if n > 30:
            one.stop()
            return BREAKS
        asked[digest(body)] += 1
        return answer(body)

    def counted(body: dict[str, Any], n: int) -> Answer:
        asked[digest(body)] += 1
        return answer(body)

    one, prompts, out = serve(until_it_dies), prompts_of(tmp_path, 16), tmp_path / "run"

    def cai(server: Server) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cai", "revise", str(prompts), "--out", str(out), "--rounds", "1"]
        options = ["--endpoint", server.url, "--deadline-seconds", "2", "--slots", "8"]
        return subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)

    dead = cai(one)
    assert dead.returncode == 3, dead.stderr
    assert f"{one.url}/v1 does not answer any more: no answer within 2 s (" in " ".join(dead.stderr.split())
    assert dead.stderr.count("Its calls wait for it, each up to 2 s.") == 1 and "Traceback" not in dead.stderr
    finished = asked.total()
    done = cai(serve(counted))
    assert done.returncode == 0, done.stderr
    assert "reused from the" in done.stdout and open_run(str(out)).manifest()["revise"]["counts"]["read"] == 16
    assert asked.total() > finished and set(asked.values()) == {1}, "nothing is asked twice"
