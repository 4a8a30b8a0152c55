"""What a session made is compared with the sessions before, and no row is told of twice or never."""

import asyncio
import errno
import json
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cai import stage_run, stages
from cai.engines import Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import BadInput
from cai.figures import Mean
from cai.history import History
from cai.settings import GenerateSettings, LabelSettings, ReviseSettings
from cai.settings_load import load_settings
from cai.stage_run import Outcome
from cai.stages import generate_stage, label_stage, revise_stage
from cai.store import Json, Run, open_run
from tests.conftest import Quiet, table_bytes, write_jsonl

REFUSAL = "I'm sorry, but I can't help with that."
Script = Callable[[Request], Any]


class Nights:
    """Sessions of runs over one source below a folder, answered by a script."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.history = folder, folder / "history"
        self.script: Script = derived_script
        self.model = "scripted"
        self.prompts = folder / "prompts.jsonl"
        monkeypatch.setattr(stages, "open_engine", lambda spec: ScriptedEngine(lambda r: self.script(r), self.model))

    def write(self, rows: int) -> None:
        bad = {3: {"prompt": ""}}
        write_jsonl(self.prompts, [bad.get(n, {"id": f"r{n}", "prompt": f"question {n}"}) for n in range(rows)])

    def generate(self, rows: int, run: str = "run", **changes: Any) -> tuple[Outcome, list[str]]:
        self.write(rows)
        given = {"prompts": str(self.prompts), "out": str(self.folder / run), "engine": "scripted", "shard_rows": 64}
        settings = load_settings(GenerateSettings, None, {**given, **changes})
        outcome = asyncio.run(generate_stage(settings, watch := Quiet()))
        return outcome, watch.said

    def revise(self, rows: int, run: str = "run", **changes: Any) -> tuple[Outcome, list[str]]:
        self.write(rows)
        given = {"prompts": str(self.prompts), "out": str(self.folder / run), "engine": "scripted", "shard_rows": 4}
        settings = load_settings(ReviseSettings, None, {**given, "rounds": 1, "principles": "one", **changes})
        outcome = asyncio.run(revise_stage(settings, watch := Quiet()))
        return outcome, watch.said

    def label(self, run: str = "run", **changes: Any) -> tuple[Outcome, list[str]]:
        given = {"run": str(self.folder / run), "engine": "scripted", "judge_principles": 1, "judge_mode": "logprob"}
        outcome = asyncio.run(label_stage(load_settings(LabelSettings, None, {**given, **changes}), watch := Quiet()))
        return outcome, watch.said

    def told(self, stage: str = "") -> list[dict[str, Json]]:
        """The figures of each session, by name."""
        return [{row["figure"]: row for row in rows} for rows in History(self.history).sessions(stage)]


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nights]:
    yield Nights(tmp_path, monkeypatch)


def test_each_session_that_makes_rows_leaves_the_figures_of_those_rows_and_no_others(nights: Nights):
    """The source grows inside a shard, so that its old rows are written once more."""
    for rows in (6, 6, 11):
        nights.revise(rows)
        nights.label()
    run = open_run(str(nights.folder / "run"))
    revised, labelled = nights.told("revise"), nights.told("label")
    assert [(one["drop_rate"]["first_row"], one["drop_rate"]["rows_read"]) for one in revised] == [(0, 6), (6, 5)]
    ids = {f"r{n}" for n in range(6)}
    for place, told in enumerate(revised):
        rows = [row for row in run.records("trajectories") if (row["row_id"] in ids) == (place == 0)]
        assert told["changed_rate"]["mean"] == pytest.approx(statistics.fmean(row["changed"] for row in rows))
        words = [len(row["final"].split()) for row in rows]
        assert (told["length_words"]["values"], told["length_words"]["mean"]) == (len(rows), statistics.fmean(words))
        assert told["length_words"]["deviation"] == pytest.approx(statistics.pstdev(words))
        gates = [one["violation_probability"] for row in rows for one in row["rounds"]]
        assert told["gate_probability"]["mean"] == pytest.approx(statistics.fmean(gates))
        assert told["drop_rate"]["mean"] == pytest.approx(1 - len(rows) / told["drop_rate"]["rows_read"])
    for place, told in enumerate(labelled):
        labels = [row for row in run.records("labels") if (row["row_id"] in ids) == (place == 0)]
        gaps = [row["position_gap"] for row in labels if row["position_gap"] is not None]
        assert told["position_gap"]["mean"] == pytest.approx(statistics.fmean(gaps))
        assert told["undecided_rate"]["mean"] == pytest.approx(statistics.fmean(r["judged"] == "none" for r in labels))
        assert told["drop_rate"]["source"] == str(nights.prompts), "labels are compared by where the prompts came from"
    assert len(labelled) == 2 and sum(told["undecided_rate"]["values"] for told in labelled) == len(
        list(run.records("labels"))
    )


@pytest.mark.parametrize("moment", ["before the figures", "before the session's line", "after the figures"])
def test_a_session_killed_at_its_end_is_told_of_once(nights: Nights, monkeypatch: pytest.MonkeyPatch, moment: str):
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "before the figures":
            patch.setattr(stage_run, "tell", die)
        elif moment == "before the session's line":
            patch.setattr(Run, "add_session", die)
        else:
            patch.setattr(stage_run, "Outcome", die)
        with pytest.raises(Killed):
            nights.generate(6)
    assert len(nights.told()) == (moment == "after the figures")
    nights.generate(6)
    nights.generate(6)
    nights.generate(9)
    assert [one["drop_rate"]["rows_read"] for one in nights.told()] == [6, 3]


def test_a_run_that_is_moved_is_the_same_and_one_begun_anew_in_its_place_is_another(nights: Nights):
    nights.generate(6, "one")
    (nights.folder / "one").rename(nights.folder / "other")
    nights.generate(6, "other")
    assert len(nights.told()) == 1
    nights.script = lambda request: REFUSAL
    nights.generate(6, "one")
    assert [one["refusal_rate"]["mean"] for one in nights.told()] == [0, 1]


def refusing(share: float) -> Script:
    return lambda request: REFUSAL if int(request.row_id[1:]) % 100 < 100 * share else "Here you are."


def test_a_shift_beyond_bound_and_chance_is_said_carried_and_written_down(nights: Nights):
    nights.script = refusing(0.1)
    for run in ("one", "two"):
        outcome, said = nights.generate(300, run)
        assert (outcome.alarms, said) == ((), [])
    nights.script, nights.model = refusing(0.4), "another"
    outcome, said = nights.generate(300, "three")
    (alarm,) = [one for one in outcome.alarms if one.figure == "refusal_rate"]
    assert (alarm.run, alarm.stage) == (str(nights.folder / "three"), "generate")
    assert (alarm.now, alarm.earlier) == (pytest.approx(0.4, abs=0.01), pytest.approx(0.1, abs=0.01))
    assert alarm.sentence in said
    assert "refusal_rate is 0.398; over the 2 sessions before it was 0.097." in alarm.sentence
    assert alarm.sentence.endswith("Since the last of them the model changed.")
    first, _, last = nights.told()
    assert not first["refusal_rate"]["shifted"] and first["refusal_rate"]["earlier"] is None
    assert last["refusal_rate"]["shifted"] and last["refusal_rate"]["earlier"] == alarm.earlier
    nights.script = refusing(0.9)
    outcome, _ = nights.generate(300, "four")
    assert outcome.alarms[0].sentence.endswith("Nothing that it was made with has changed since.")
    nights.prompts = nights.folder / "others.jsonl"
    assert nights.generate(300, "five")[0].alarms == (), "another source is not compared with this one"


def test_what_chance_or_the_bound_allows_is_no_alarm_and_the_bound_can_be_set(nights: Nights):
    nights.script = refusing(0.1)
    nights.generate(300, "one")
    nights.script = lambda request: REFUSAL if request.row_id == "r0" else "Here you are."
    assert nights.generate(3, "few")[0].alarms == (), "one refusal of three is beyond the bound, not beyond chance"
    nights.script = refusing(0.19)
    assert nights.generate(2000, "within", alarm=("length_words=9",))[0].alarms == ()
    nights.script = refusing(0.28)
    outcome, _ = nights.generate(2000, "beyond", alarm=("refusal_rate=0.05", "length_words=9"))
    assert [alarm.figure for alarm in outcome.alarms] == ["refusal_rate"]


@pytest.mark.parametrize("told", ["refusals=0.1", "refusal_rate", "refusal_rate=0", "refusal_rate=nan", "drop_rate=x"])
def test_a_bound_that_means_none_is_refused_with_the_names_there_are(told: str):
    with pytest.raises(BadInput, match=r"--alarm: found .*NAME=NUMBER with a number above 0 and one of drop_rate, "):
        load_settings(GenerateSettings, None, {"prompts": "p", "out": "o", "alarm": (told,)})


def test_a_damaged_file_is_named_and_passed_over_and_what_it_spoke_of_is_not_told_again(nights: Nights):
    nights.generate(6)
    (path,) = nights.history.iterdir()
    sound = path.read_bytes()
    (wanted,) = nights.told()
    for place in range(0, len(sound), 23):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x41]) + sound[place + 1 :])
        history = History(nights.history)
        found = [{row["figure"]: row for row in rows} for rows in history.sessions()]
        assert (found, history.damaged) in (([], [str(path)]), ([wanted], [])), place
    path.write_bytes(sound[: len(sound) // 2])
    _, said = nights.generate(9)
    assert [sentence for sentence in said if str(path) in sentence and "damaged and passed over" in sentence]
    assert [one["drop_rate"]["rows_read"] for one in nights.told()] == [3]


def test_a_history_that_cannot_be_written_costs_the_run_nothing_and_is_made_up_for(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
):
    nights.history.write_text("a file of somebody else's")
    outcome, said = nights.generate(6)
    assert outcome.entry["counts"]["kept"] == 5 and len(said) == 1
    assert f"{nights.history}: found a file where a folder belongs" in said[0]
    nights.history.unlink()

    def full(scratch: Path, path: Path) -> None:
        if path.parent == nights.history:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(scratch, path)

    with monkeypatch.context() as patch:
        replace = os.replace
        patch.setattr(os, "replace", full)
        outcome, said = nights.generate(9)
    assert outcome.entry["counts"]["kept"] == 8 and "no space left on the disk" in said[0]
    assert list(nights.history.iterdir()) == [], "what was begun makes room again"
    nights.generate(9)
    assert [one["drop_rate"]["rows_read"] for one in nights.told()] == [9]
    _, said = nights.generate(11, history=str(nights.folder / "run"))
    assert "run: found a run, expected a folder for the figures of runs" in said[0]


def test_the_run_is_the_same_with_a_history_without_one_and_from_one_session_to_the_next(nights: Nights):
    nights.revise(6, "with")
    nights.revise(6, "without", history="off")
    assert len(list(nights.history.iterdir())) == 1
    assert table_bytes(nights.folder / "with") == table_bytes(nights.folder / "without")
    one, other = ((nights.folder / name / "settings.json").read_bytes() for name in ("with", "without"))
    assert one == other and b"alarm" not in one
    outcome, _ = nights.revise(6, "with", history="off", alarm=("drop_rate=0.5",))
    assert outcome.session.asked_calls == 0


def test_values_added_in_any_portions_have_the_same_mean_and_deviation():
    values = [0.0, 1.5, -2.0, 7.25, 7.25, 7.25, 1e3]
    whole, first, second = Mean(), Mean(), Mean()
    for place, value in enumerate(values):
        whole.add(value)
        (first if place < 3 else second).add(value)
    first.join(Mean())
    first.join(second)
    for mean in (whole, first):
        assert (mean.values, mean.mean) == (7, pytest.approx(statistics.fmean(values)))
        assert mean.deviation == pytest.approx(statistics.pstdev(values))
    twice = Mean()
    twice.add(3.0, times=2)
    assert (twice.values, twice.mean, twice.deviation) == (2, 3.0, 0.0)


def test_a_file_of_figures_is_plain_parquet_with_one_row_for_each(nights: Nights):
    nights.generate(6)
    (path,) = nights.history.iterdir()
    assert path.name.startswith("generate-") and path.name.endswith("-00000000-00000006.parquet")
    rows = pq.read_table(path).to_pylist()
    assert [row["figure"] for row in rows] == ["drop_rate", "refusal_rate", "length_words"]
    assert json.loads(json.dumps(rows)) == rows
