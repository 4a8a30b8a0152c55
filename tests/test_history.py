"""What a session made is compared with the sessions before, and no row is told of twice or never."""

import asyncio
import errno
import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cai import stage_run, stages
from cai.cli import cai
from cai.engines import Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import BadInput
from cai.figures import BOUNDS, Mean
from cai.history import COST, History, _compared, _seal, too_few
from cai.journal import Tally
from cai.rows import Figure
from cai.seal import Json
from cai.settings import GenerateSettings, LabelSettings, ReviseSettings
from cai.settings_load import load_settings
from cai.stage_run import Outcome
from cai.stages import generate_stage, label_stage, revise_stage
from cai.store import Run, open_run
from cai.trends import sessions_of
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
        assert (told["drop_rate"]["values"], told["drop_rate"]["mean"]) == (len(labels), 0)
    assert {drop["reason"] for drop in run.dropped("label", "labels")} == {"no_pair"}, "which is no drop of a pair"
    assert len(labelled) == 2 and sum(told["undecided_rate"]["values"] for told in labelled) == len(
        list(run.records("labels"))
    )


def test_a_label_that_finds_no_pair_at_all_has_no_figures_and_the_next_one_has(nights: Nights):
    nights.revise(6, rounds=0)
    outcome, said = nights.label()
    assert outcome.entry["counts"]["dropped"] == 6 - 1 and not [one for one in said if "larm" in one]
    assert nights.told("label") == []
    outcome, _ = nights.label()
    assert (nights.told("label"), outcome.session.asked_calls) == ([], 0)


def test_what_a_session_took_is_told_with_what_stopped_ones_took_and_nothing_twice(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
):
    def took() -> list[tuple[int, int, int, float]]:
        columns = ("asked_calls", "prompt_tokens", "completion_tokens", "seconds")
        return [tuple(one["drop_rate"][name] for name in columns) for one in nights.told()]

    first, _ = nights.generate(6)
    with monkeypatch.context() as patch:
        patch.setattr(stage_run, "tell", lambda *_: ())  # as if it had been killed there
        second, _ = nights.generate(9)
    third, _ = nights.generate(12)
    tallies = [one.session for one in (first, second, third)]
    assert [one.asked_calls for one in tallies] == [5, 3, 3]
    both = [sum(values) for values in zip(*(_numbers(one) for one in tallies[1:]), strict=True)]
    assert [one[:3] for one in took()] == [tuple(_numbers(tallies[0])), tuple(both)]
    lines = open_run(str(nights.folder / "run")).sessions("generate")
    assert [one[3] for one in took()] == pytest.approx(
        [lines[0]["seconds"], lines[1]["seconds"] + lines[2]["seconds"]], abs=0.11
    )
    # What an earlier version has written says nothing of it, and what a session after it says is its own.
    for path in nights.history.iterdir():
        rows = [{name: row[name] for name in row if name not in COST} for row in pq.read_table(path).to_pylist()]
        table = pq.read_table(path).drop_columns(list(COST)).replace_schema_metadata({"cai": _seal(path.name, rows)})
        pq.write_table(table, path)
    fourth, _ = nights.generate(14)
    assert [one[0] for one in took()] == [None, None, fourth.session.asked_calls] == [None, None, 2]
    fifth, _ = nights.generate(15)
    assert took()[-1][:3] == tuple(_numbers(fifth.session))


def _numbers(tally: Tally) -> list[int]:
    return [tally.asked_calls, tally.prompt_tokens, tally.completion_tokens]


def test_labels_made_anew_do_not_pay_for_the_old_ones(nights: Nights):
    nights.revise(8)
    nights.label()
    nights.script = lambda request: derived_script(replace(request, seed=1))
    outcome, _ = nights.label(judge_principles=2, replace=True)
    asked = outcome.session.asked_calls
    assert [one["drop_rate"]["asked_calls"] for one in nights.told("label")][-1] == asked > 0


@pytest.mark.parametrize("figure", ["refusal_rate", "length_words"])
def test_of_too_few_values_no_difference_is_a_shift_and_of_one_more_the_greatest_is(figure: str):
    for now in range(1, 25):
        for before in range(1, 25):
            told = Figure(
                "", "", "generate", "", 0, now, figure, now, 1000.0, 0.0, None, False, "", "", "", "", "",
                sessions=1, asked_calls=0, prompt_tokens=0, completion_tokens=0, seconds=0.0,
            )  # fmt: skip
            earlier = [{"figure": figure, "values": before, "mean": 1.0, "deviation": 0.0}]
            # A hair's breadth of rounding is no matter: at 16 the two are equal.
            if now + before != 16:
                assert _compared(told, [earlier], BOUNDS).shifted is not too_few(now, before), (now, before)
    assert too_few(8, 8) and not too_few(9, 8)


def test_the_table_of_all_sessions_fits_80_columns_and_tells_runs_and_costs_apart(nights: Nights):
    runs = [f"a-rather-long-name-of-a-folder-for-a-run-{number}" for number in (1, 2, 3)]
    nights.script = lambda request: 0.9 if request.choices else REFUSAL
    nights.revise(4, runs[0], gate="on", failed_revision="keep")
    nights.script = lambda request: 0.1 if request.choices else "Here you are."
    nights.revise(5, runs[1])
    nights.revise(80, runs[2])
    told = CliRunner().invoke(cai, ["report", "--history", str(nights.history)], env={"COLUMNS": "80"})
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert max(map(len, lines)) <= 80
    folded = "".join(line[3:].split("  ")[0].strip() for line in lines)
    assert all(run in folded for run in runs) and "…" not in told.output
    flat = " ".join(told.output.split())
    sessions = sessions_of(History(nights.history))
    for session in sessions:
        assert f"{session['asked_calls']:,} {session['prompt_tokens']:,} {session['completion_tokens']:,} " in flat
    few = [[name for name, one in session["figures"].items() if one["too_few"]] for session in sessions]
    assert few[0] == few[2] == [] and "refusal_rate" in few[1], "nothing to compare with; too few; enough"
    assert (
        told.output.count(" ?\n") + told.output.count(" ?  ") == len(few[1])
        and f"{len(few[1])} figures are marked with ?" in flat
    )
    assert "Up to 16 values" in flat
    assert sessions[2]["figures"]["refusal_rate"]["shifted"], "80 of them are enough"


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
