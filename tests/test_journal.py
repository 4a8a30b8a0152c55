import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai import journal as journal_module
from cai.engines import Completion, Request, Sampling
from cai.engines.scripted import ScriptedEngine
from cai.errors import BadInput, CannotWrite
from cai.journal import Journal, OtherRuns, Tally
from cai.rows import Message

REQUEST = Request("response", "r1", (Message("user", "hello"),), Sampling(10), seed=1)
FULL = Completion("text \u2028 with\nlines", "length", 5, 3, 7, (1, 2, 3), (-0.1, -2.5), 2)


class Counting(ScriptedEngine):
    """An engine that counts what it is asked."""

    def __init__(self, answer: Any = FULL) -> None:
        self.asked = 0

        def count(_: Request) -> Any:
            self.asked += 1
            return answer

        super().__init__(count)


def ask(
    path: Path, engine: ScriptedEngine, *requests: Request, others: OtherRuns | None = None
) -> tuple[list[Completion], Tally]:
    async def all_of_them() -> list[Completion]:
        with Journal(path, tally, others) as journal:
            return [(await journal.ask(engine, request))[1] for request in requests]

    tally = Tally()
    return asyncio.run(all_of_them()), tally


def test_a_finished_call_is_never_asked_again_and_comes_back_whole(tmp_path: Path):
    engine = Counting()
    ask(tmp_path / "j.jsonl", engine, REQUEST, REQUEST)
    (again,), tally = ask(tmp_path / "j.jsonl", engine, REQUEST)
    assert engine.asked == 1
    assert again == FULL
    assert (tally.asked_calls, tally.reused_calls, tally.prompt_tokens) == (0, 1, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"purpose": "critique"},
        {"messages": (Message("user", "hello "),)},
        {"messages": (Message("system", "hello"),)},
        {"messages": (Message("user", "hello", optional=True),)},
        {"sampling": Sampling(11)},
        {"sampling": Sampling(10, temperature=0.5)},
        {"sampling": Sampling(10, top_p=0.5)},
        {"seed": 2},
        {"choices": ("Yes", "No")},
    ],
)
def test_everything_that_changes_the_answer_changes_the_address(changes: dict[str, Any]):
    assert replace(REQUEST, **changes).key("m") != REQUEST.key("m")
    assert REQUEST.key("m") != REQUEST.key("another model")


@pytest.mark.parametrize(
    "changes", [{"row_id": "r2"}, {"position": 9}, {"messages": (Message("user", "hello", (5,), "m"),)}]
)
def test_nothing_else_changes_it(changes: dict[str, Any]):
    assert replace(REQUEST, **changes).key("m") == REQUEST.key("m")


def test_a_seed_does_not_matter_where_nothing_is_sampled():
    greedy = replace(REQUEST, sampling=Sampling(10, temperature=0))
    assert replace(greedy, seed=2).key("m") == greedy.key("m")


def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, fields = tmp_path / "j.jsonl", journal_module._COMPLETION_FIELDS
    monkeypatch.setattr(journal_module, "_COMPLETION_FIELDS", tuple(name for name in fields if name != "left_out"))
    ask(path, Counting(), REQUEST)
    monkeypatch.undo()
    assert "left_out" not in path.read_text()
    (again,), tally = ask(path, Counting(), REQUEST)
    assert again == replace(FULL, left_out=0) and tally.asked_calls == 0


def test_a_token_count_that_no_table_holds_is_read_as_0_and_its_call_is_kept(tmp_path: Path):
    """Earlier versions wrote down whatever a server told."""
    path = tmp_path / "j.jsonl"
    ask(path, Counting(replace(FULL, prompt_tokens=10**26, cached_tokens=2**31, completion_tokens=2**31 - 1)), REQUEST)
    engine = Counting()
    (again,), _ = ask(path, engine, REQUEST)
    assert again == replace(FULL, prompt_tokens=0, cached_tokens=0, completion_tokens=2**31 - 1)
    (copied,), _ = ask(tmp_path / "other.jsonl", engine, REQUEST, others=_others(tmp_path, path))
    assert copied == again and engine.asked == 0


def _others(folder: Path, segment: Path) -> OtherRuns:
    (folder / "run" / "journal").mkdir(parents=True)
    (folder / "run" / "journal" / segment.name).write_bytes(segment.read_bytes())
    return OtherRuns([folder / "run"])


@pytest.mark.parametrize(("cut", "lost"), [(1, 0), (2, 1), (20, 1), (200, 1)])
def test_a_torn_last_line_costs_only_its_own_call(tmp_path: Path, cut: int, lost: int):
    path, second = tmp_path / "j.jsonl", replace(REQUEST, seed=2)
    ask(path, Counting(), REQUEST, second)
    path.write_bytes(path.read_bytes()[:-cut])
    engine = Counting()
    for asked in (lost, 0):  # the torn call is asked once more, and then it is there
        _, tally = ask(path, engine, REQUEST, second)
        assert tally.asked_calls == asked


def test_a_damaged_line_is_named_and_passed_over(tmp_path: Path):
    path, second = tmp_path / "j.jsonl", replace(REQUEST, seed=2)
    ask(path, Counting(), REQUEST, second)
    data = bytearray(path.read_bytes())
    data[data.index(b"text")] ^= 1
    path.write_bytes(bytes(data))
    with Journal(path, Tally()) as journal:
        assert journal.damaged == [f"{path}:1"]
    assert ask(path, Counting(), REQUEST, second)[1].asked_calls == 1


def test_calls_of_other_runs_are_used_and_copied(tmp_path: Path):
    ask(tmp_path / "old" / "journal" / "part-00003.jsonl", Counting(), REQUEST)
    others = OtherRuns([tmp_path / "old"])
    engine = Counting()
    (found,), tally = ask(tmp_path / "new.jsonl", engine, REQUEST, others=others)
    assert (found, engine.asked, tally.reused_calls) == (FULL, 0, 1)
    assert ask(tmp_path / "new.jsonl", engine, REQUEST)[1].asked_calls == 0


def other_lines(path: Path) -> None:
    """Sound lines of the same length as before, at the same places, and each of another call."""
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(second + first)


def cut(path: Path) -> None:
    path.write_bytes(b"")


def folder_gone(path: Path) -> None:
    shutil.rmtree(path.parent.parent)


@pytest.mark.parametrize("change", [other_lines, cut, Path.unlink, folder_gone])
def test_a_run_that_changes_while_it_is_reused_never_answers_for_another_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
):
    # The seconds that a call took stand in its line: with all equal, so are the lines' lengths.
    monkeypatch.setattr("cai.journal.time", SimpleNamespace(monotonic=lambda: 0.0))
    requests = [replace(REQUEST, seed=seed) for seed in (1, 2)]
    path, said = tmp_path / "old" / "journal" / "part-00000.jsonl", list[str]()
    ask(path, ScriptedEngine(lambda request: f"answer {request.seed}"), *requests)
    assert len({len(line) for line in path.read_bytes().splitlines()}) == 1
    others = OtherRuns([tmp_path / "old"], said.append)
    change(path)
    found, tally = ask(tmp_path / "new.jsonl", ScriptedEngine(lambda r: f"answer {r.seed}"), *requests, others=others)
    assert [one.text for one in found] == ["answer 1", "answer 2"] and tally.asked_calls == 2
    told = f"{path} is gone or has changed since it was read; what it no longer holds is asked anew."
    assert said == [told], "once"
    again, _ = ask(tmp_path / "new.jsonl", Counting(), *requests)
    assert [one.text for one in again] == ["answer 1", "answer 2"]


def test_a_folder_without_a_journal_cannot_be_reused(tmp_path: Path):
    with pytest.raises(BadInput, match="no journal"):
        OtherRuns([tmp_path])


def test_a_call_that_fails_leaves_nothing_behind(tmp_path: Path):
    def fail(_: Request) -> str:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        ask(tmp_path / "j.jsonl", ScriptedEngine(fail), REQUEST)
    assert (tmp_path / "j.jsonl").read_bytes() == b""


def test_equal_calls_at_the_same_time_are_one_call(tmp_path: Path):
    count = 0

    def answer(_: Request) -> str:
        nonlocal count
        count += 1
        return f"answer {count}"

    async def together() -> list[str]:
        with Journal(tmp_path / "j.jsonl", Tally()) as journal:
            engine = ScriptedEngine(answer, latency_seconds=0.01)
            return [said.text for _, said in await asyncio.gather(*(journal.ask(engine, REQUEST) for _ in range(5)))]

    assert asyncio.run(together()) == ["answer 1"] * 5


def test_if_the_first_of_equal_calls_fails_the_next_one_asks(tmp_path: Path):
    answers = iter([RuntimeError("boom"), "fine"])

    def answer(_: Request) -> str:
        said = next(answers)
        if isinstance(said, Exception):
            raise said
        return said

    async def together() -> list[Any]:
        with Journal(tmp_path / "j.jsonl", Tally()) as journal:
            engine = ScriptedEngine(answer, latency_seconds=0.01)
            return await asyncio.gather(*(journal.ask(engine, REQUEST) for _ in range(2)), return_exceptions=True)

    failed, answered = asyncio.run(together())
    assert isinstance(failed, RuntimeError) and answered[1].text == "fine"


def test_a_closed_journal_refuses_a_late_answer(tmp_path: Path):
    async def late() -> None:
        with Journal(tmp_path / "j.jsonl", Tally()) as journal:
            task = asyncio.ensure_future(journal.ask(ScriptedEngine(lambda _: "x", latency_seconds=0.01), REQUEST))
            await asyncio.sleep(0)
        with pytest.raises(CannotWrite, match=r"j\.jsonl: found Bad file descriptor"):
            await task

    asyncio.run(late())


def moved(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


def removed(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    path.rename(path.with_suffix(".bak"))
    path.write_bytes(b"")


@pytest.mark.parametrize("away", [moved, removed, replaced])
def test_no_answer_goes_into_a_journal_that_has_been_taken_away(tmp_path: Path, away: Callable[[Path], None]):
    path = tmp_path / "journal" / "part-00000.jsonl"
    second = replace(REQUEST, seed=2)

    async def one_after_another() -> None:
        with Journal(path, Tally()) as journal:
            await journal.ask(engine, REQUEST)
            lines = path.read_bytes()
            away(path)
            with pytest.raises(CannotWrite, match=r"part-00000\.jsonl: found no such folder any more"):
                await journal.ask(engine, second)
            left = [other.read_bytes() for other in tmp_path.rglob("*.*") if other.is_file()]
            assert set(left) <= {lines, b""}

    engine = Counting()
    asyncio.run(one_after_another())


def test_the_first_of_two_entries_for_a_call_is_the_one(tmp_path: Path):
    for name, text in (("a", "first"), ("b", "second")):
        ask(tmp_path / name, ScriptedEngine(lambda _, text=text: text), REQUEST)
    (tmp_path / "j.jsonl").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    assert ask(tmp_path / "j.jsonl", Counting(), REQUEST)[0][0].text == "first"
