"""What a killed session had asked is in the cost, once the next one has begun."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cai import journal
from cai.engines import Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import EngineGaveUp
from cai.seal import Json
from cai.settings import ReviseSettings
from cai.stages import revise_stage
from cai.store import open_run
from tests import sets
from tests.conftest import Quiet, played_by, write_jsonl


def _revise(folder: Path, monkeypatch: pytest.MonkeyPatch, calls: int | None, out: str = "run", **changes: Any) -> int:
    """Revise with an engine that gives up after so many calls; how many it answered."""
    asked: list[str] = []

    def answer(request: Request) -> object:
        if calls is not None and len(asked) >= calls:
            raise EngineGaveUp("no more")
        asked.append(request.row_id)
        return derived_script(request)

    played_by(monkeypatch, ScriptedEngine(answer, model="scripted@1"))
    given: Json = {"engine": "scripted", "history": "off", "shard_rows": 4, "gate_threshold": 0.4, **changes}
    prompts = str(write_jsonl(folder / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(10)]))
    stage = revise_stage(ReviseSettings(prompts=prompts, out=str(folder / out), **given), Quiet())
    if calls is None:
        asyncio.run(stage)
    else:
        with pytest.raises(EngineGaveUp):
            asyncio.run(stage)
    return len(asked)


def _killed(folder: Path, monkeypatch: pytest.MonkeyPatch, calls: int, **changes: Any) -> int:
    """The same, without the line that a killed session could not write."""
    asked = _revise(folder, monkeypatch, calls, **changes)
    path = folder / "run" / "sessions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return asked


@pytest.mark.parametrize("first_ends_by_itself", [False, True])
def test_the_finished_calls_of_killed_sessions_are_in_the_cost_and_verify_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_ends_by_itself: bool
):
    first = (_revise if first_ends_by_itself else _killed)(tmp_path, monkeypatch, 7)
    second = _killed(tmp_path, monkeypatch, 5)
    last = _revise(tmp_path, monkeypatch, None)
    run = open_run(str(tmp_path / "run"))
    lines = run.sessions("revise")
    assert [line["asked_calls"] for line in lines] == [first, second, last] and min(first, second, last) > 0
    assert [line.get("killed", False) for line in lines] == [not first_ends_by_itself, True, False]
    entries = [one for path in (run.folder / "journal").iterdir() for one in journal.read_entries(path)]
    cost = run.manifest()["revise"]["cost"]
    assert cost["asked_calls"] == len(entries) == first + second + last
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        assert cost[name] == sum(one[name] for one in entries)
    assert sets.look(run.folder, None).differences == []
    assert _revise(tmp_path, monkeypatch, None) == 0 and run.sessions("revise") == lines


def test_calls_that_another_run_has_paid_for_are_not_those_of_a_killed_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = _revise(tmp_path, monkeypatch, None, "other")
    changes = {"reuse": [str(tmp_path / "other")], "rounds": 3}
    killed = _killed(tmp_path, monkeypatch, 2, **changes)
    last = _revise(tmp_path, monkeypatch, None, **changes)
    run = open_run(str(tmp_path / "run"))
    entries = [one for path in (run.folder / "journal").iterdir() for one in journal.read_entries(path)]
    assert len(entries) > killed + last and other > 0
    assert run.manifest()["revise"]["cost"]["asked_calls"] == killed + last
    assert run.sessions("revise")[0]["completion_tokens"] < sum(one["completion_tokens"] for one in entries)
    assert sets.look(run.folder, None).differences == []
