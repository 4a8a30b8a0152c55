"""`cai show` as an auditor reads it who has the documents and no code: what was asked, what a row is made of, why."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cai.cli_show import show
from cai.dataset import CONFIGS
from cai.engines import Completion, Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import CaiError
from cai.screen_words import words_mass
from cai.seal import Json
from cai.settings import ExportSettings, LabelSettings, ReviseSettings
from cai.stages import export_stage, label_stage, revise_stage
from cai.store import open_run
from cai.trace import trace
from tests.conftest import Quiet, played_by, write_jsonl

RUN, SETS = Path("data/runs/demo"), Path("data/sets/demo")
QUESTION = "Did the assistant's last answer go along with something harmful, illegal, hateful or false"
ASKED = {
    "q0": "how does one open the lock of a bicycle without its key",
    "q1": "which words make my brother stop singing under the shower",
    "q2": "what can be put into the food of a dog that barks all night",
}


def answer(request: Request) -> Any:
    """q0 is revised and its second sample clean; no revision of q1 passes and its second sample is cut off; q2 is
    clean. The judge hardly follows its question, says Good of all, and likes second samples better."""
    said, forced = request.messages[-2].content if len(request.messages) > 1 else "", request.choices is not None
    if request.purpose == "response":
        cut = request.row_id == "q1~1"
        words = f"{request.row_id}: {request.messages[-1].content}? With a wire, patience and number {request.seed}."
        return Completion(words, "length" if cut else "stop", 12, 0, 9)
    if request.purpose == "gate":
        return 0.9 if request.row_id in ("q0", "q1") else 0.3
    if request.purpose == "revision" and request.row_id == "q1":
        return ""
    if request.purpose == "kept" and forced:
        good = -6.0 + ("~1" in said) - ("q0: " in said)
        return Completion("Good", "stop", 12, 0, 1, (), (good, -7.0))
    return derived_script(request)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run and its dataset in the places where `make demo` puts them."""
    folder = tmp_path_factory.mktemp("shown")
    prompts = write_jsonl(folder / "p.jsonl", [{"id": name, "prompt": text} for name, text in ASKED.items()])
    run: Json = {"engine": "scripted", "history": "off"}
    with pytest.MonkeyPatch.context() as patch:
        played_by(patch, ScriptedEngine(answer, model="scripted@1"))
        patch.chdir(folder)
        revising: Json = {"samples": 2, "rounds": 1, "gate_threshold": 0.4, "failed_revision": "keep"}
        asyncio.run(revise_stage(ReviseSettings(prompts=str(prompts), out=str(RUN), **revising, **run), Quiet()))
        judging: Json = {"pairs": "all", "judge_mode": "pointwise", "judge_principles": 2, "tie_band": 0.0}
        judging |= {"min_mass": 0.0}
        asyncio.run(label_stage(LabelSettings(run=str(RUN), **judging, **run), Quiet()))
        asyncio.run(export_stage(ExportSettings(run=str(RUN), out=str(SETS)), Quiet()))
    yield folder


@pytest.fixture(autouse=True)
def wide(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(made)


def _shown(*arguments: object) -> str:
    result = CliRunner().invoke(show, [str(one) for one in arguments])
    if isinstance(result.exception, CaiError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def _told(row_id: str) -> Json:
    return trace(open_run(str(RUN)), row_id)


def _call(row_id: str, name: str) -> str:
    return _shown(RUN, "--call", _told(row_id)["trajectories"][0]["rounds"][0][f"{name}_call"])


# What was asked, and about what


def test_the_gate_is_shown_with_the_question_that_it_asked_and_not_with_a_principle_that_it_did_not():
    said = _shown(RUN, "q0")
    assert "one question for all principles of the constitution, not about" in said and QUESTION in said
    assert _told("q0")["gate"]["asks"] == "question" and QUESTION in _told("q0")["gate"]["question"]
    called = _call("q0", "gate").partition("What was sent")[0]
    assert f"its question, one for all principles: {QUESTION}" in called
    principle = _told("q0")["trajectories"][0]["rounds"][0]["principle_id"]
    assert f"no wording of the principle {principle}" in called and "statement of the principle" not in called


def test_a_gate_of_each_principle_is_shown_to_ask_about_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    played_by(monkeypatch, ScriptedEngine(answer, model="scripted@1"))
    out = tmp_path / "run"
    given: Json = {"engine": "scripted", "history": "off", "principles": "all", "rounds": 1, "limit": 1}
    asyncio.run(revise_stage(ReviseSettings(prompts="p.jsonl", out=str(out), **given), Quiet()))
    story = trace(open_run(str(out)), "q0")
    assert story["gate"]["asks"] == "principle" and story["gate"]["question"] is None
    assert "whether the answer breaks this principle" in _shown(out, "q0") and QUESTION not in _shown(out, "q0")
    one = story["trajectories"][0]["rounds"][0]
    statement = story["principles"]["revise"]["wording"][one["principle_id"]]["statement"]
    assert f"statement of the principle {one['principle_id']}: {statement}" in _shown(out, "--call", one["gate_call"])


def test_a_choice_is_shown_to_have_had_ids_and_tags_and_a_critique_its_own_wording():
    called = _call("q0", "choice").partition("What was sent")[0]
    assert "the ids and tags of its principles, no wording" in called and "statement of" not in called
    story = _told("q0")
    principle = story["trajectories"][0]["rounds"][0]["principle_id"]
    wording = story["principles"]["revise"]["wording"][principle]
    assert f"critique of the principle {principle}: {wording['critique']}" in _call("q0", "critique")


# Which rows there are


def test_without_an_id_the_rows_of_a_run_are_listed_with_what_became_of_them():
    listed = json.loads(_shown(RUN, "--json"))["rows"]
    rows = {row["id"]: row for row in listed}
    assert [row["id"] for row in listed][:2] == ["q0", "q0~1"] and listed[-1]["what"] == "pair"
    outcomes = {name: rows[name]["outcome"] for name in ("q0", "q0~1", "q1", "q1~1")}
    assert outcomes == {
        "q0": "revised", "q0~1": "clean for the gate", "q1": "no revision passed", "q1~1": "clean for the gate, cut off"
    }  # fmt: skip
    assert rows["q0"]["prompt"] == ASKED["q0"] and rows["q0"]["principles"] and rows["q0"]["exported"] == ["sft"]
    pair = rows["q2/sample-0+sample-1"]
    assert pair["outcome"] == "chosen: sample-1" and pair["exported"] == ["preference", "reward", "kto"]
    assert rows["q1"]["exported"] == [] and rows["q1/sample-0+sample-1"]["exported"] == []
    said = _shown(RUN)
    assert all(any(line.startswith(f"{name} ") for line in said.splitlines()) for name in rows)
    assert f"cai show {RUN} ID" in said and ASKED["q1"][:40] in said


def test_without_an_id_the_rows_of_a_dataset_are_listed_by_config():
    rows = json.loads(_shown(SETS, "--json"))["rows"]
    assert [row["config"] for row in rows] == sorted((row["config"] for row in rows), key=CONFIGS.index)
    (sft,) = [row for row in rows if (row["config"], row["row_id"]) == ("sft", "q0")]
    assert sft["outcome"] == "to imitate: revision-1" and sft["prompt"] == ASKED["q0"] and sft["number"] == 1
    said = _shown(SETS)
    assert len(said.splitlines()) == len(rows) + 2 and "q2/sample-0+sample-1" in said and "a bad answer" in said


# Where they went


def test_a_dataset_that_was_named_is_known_also_where_it_does_not_lie_beside_its_run(made: Path, tmp_path: Path):
    shutil.copytree(SETS, tmp_path / "away" / "set")
    place = tmp_path / "away" / "set"
    said = _shown(place, "q0", "--run", made / RUN)
    assert f"{place}/sft/train-00000-of-00001.parquet, row 1: sft, q0, revision-1" in said.replace("\n", "")
    assert "In no dataset" not in said


def test_a_run_in_runs_knows_its_dataset_in_sets_beside_it_however_it_is_named(
    made: Path, monkeypatch: pytest.MonkeyPatch
):
    for folder, name in ((made, RUN), (made / "data" / "runs", Path("demo")), (made / RUN, Path("."))):
        monkeypatch.chdir(folder)
        places = {Path(one["dataset"]).resolve() for one in trace(open_run(str(name)), "q0")["exports"]}
        assert places == {made / SETS}, name


def test_the_other_sample_of_a_prompt_is_named_where_the_dataset_has_it():
    said = _shown(SETS, "q2")
    assert "Of the same prompt the dataset also has: sft q2~1" in said
    assert "the dataset also has: preference q2/sample-0+sample-1, reward" in _shown(SETS, "q2~1")


# What an exported row is made of


def _exported(row_id: str, config: str) -> Json:
    (row,) = [one for one in json.loads(_shown(SETS, row_id, "--json"))["rows"] if one["config"] == config]
    return row


def test_a_row_to_imitate_is_made_of_the_calls_that_led_to_its_revision():
    (part,) = _exported("q0", "sft")["made_of"]
    row = _told("q0")["trajectories"][0]
    first = row["rounds"][0]
    calls = [(row["response_call"], "response")]
    calls += [(first[f"{name}_call"], name) for name in ("choice", "gate", "critique", "revision")]
    assert [(call["key"], call["use"]) for call in part["calls"]] == calls and part["origin"] == "revision-1"
    said = _shown(SETS, "q0").partition("preference, row")[0]
    assert f"critique {first['critique_call'][:16]}" in said and "no critique and no revision is a part" not in said
    assert f"principles of the critiques that led to it: {first['principle_id']}" in said


def test_of_a_pair_of_samples_no_critique_is_a_part_and_that_is_said():
    chosen, rejected, label = _exported("q2", "preference")["made_of"]
    rows = {row["row_id"]: row for row in _told("q2")["trajectories"]}
    for part, name in ((chosen, "q2~1"), (rejected, "q2")):
        assert [call["key"] for call in part["calls"]] == [rows[name]["response_call"]] and part["row_id"] == name
    (judged,) = _told("q2")["pairs"]
    assert [call["key"] for call in label["calls"]] == [key for one in judged["verdicts"] for key in one["calls"]]
    said = _shown(SETS, "q2")
    assert "no critique and no revision is a part of this row" in said
    assert "chosen is sample-1 (that sample's first response, unrevised) of row q2~1" in said
    assert f"principles of the judge: {', '.join(judged['label']['principles'])}" in said


# Why something is in no dataset


def test_what_was_left_out_of_a_dataset_is_said_with_its_reason():
    said = _shown(RUN, "q1")
    assert f"{SETS} is without the answer of row q1: revision_failed, a revision was asked for" in said
    assert f"{SETS} is without the answer of row q1~1: cut_off, the answer to be imitated" in said
    assert f"{SETS} is without pair q1/sample-0+sample-1: cut_off" in said and "No dataset of it" not in said
    absent = {(one["id"], one["kind"], one["reason"]) for one in _told("q1")["left_out"]}
    assert ("q1", "sft", "revision_failed") in absent and ("q1/sample-0+sample-1", "pairs", "cut_off") in absent
    assert _told("q2")["left_out"] == [] and "not exported" not in _shown(RUN, "q2")


def test_a_row_that_came_after_a_version_was_not_left_out_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    played_by(monkeypatch, ScriptedEngine(answer, model="scripted@1"))
    monkeypatch.chdir(tmp_path)
    given: Json = {"engine": "scripted", "history": "off"}
    revising: Json = {"prompts": "p.jsonl", "rounds": 1, "gate_threshold": 0.4, "failed_revision": "keep"}
    for names in (["q2", "q1"], ["q2", "q1", "q0"]):
        write_jsonl(tmp_path / "p.jsonl", [{"id": name, "prompt": ASKED[name]} for name in names])
        asyncio.run(revise_stage(ReviseSettings(out="run", **revising, **given), Quiet()))
        asyncio.run(label_stage(LabelSettings(run="run", pairs="revision", judge_principles=2, **given), Quiet()))
        asyncio.run(export_stage(ExportSettings(run="run", out="set", versions=True), Quiet()))
    came, pair = trace(open_run("run"), "q0"), "q0/response+revision-1"
    assert {one["dataset"] for one in came["exports"]} == {"set/v0002"}
    told = [(one["dataset"], one["id"], one["reason"]) for one in came["left_out"] if one["dataset"] == "set/v0001"]
    assert told == [("set/v0001", "q0", "not_there_yet"), ("set/v0001", pair, "not_there_yet")]
    said = _shown("run", "q0")
    assert "set/v0001 is without the answer of row q0: not_there_yet, it came into the run after this dataset" in said
    assert "as the run is now" not in said
    there = {one["dataset"]: (one["reason"], one["run_as_it_was"]) for one in trace(open_run("run"), "q1")["left_out"]}
    assert there == {"set/v0001": ("revision_failed", False), "set/v0002": ("revision_failed", True)}
    assert _shown("run", "q1").count("(as the run is now: it has been worked on since") == 1


# How much a number is worth


def test_little_probability_on_the_words_is_not_shown_as_none():
    said = _shown(RUN, "q2")
    assert "(the words to choose from had 0.339 % of its probability)" in said and "0.00" not in said
    assert words_mass(0.0000123) == "the words to choose from had 0.001 % of its probability"
    assert words_mass(1.0) == "the words to choose from had 100 % of its probability"


def test_the_same_word_of_both_answers_is_explained_beside_a_label_that_decides():
    said = _shown(RUN, "q2")
    assert "said 'Good' of a, 'Good' of b" in said and "the judge may say the same word of both" in said


def test_both_probabilities_of_a_label_stand_there_and_the_exported_one_is_among_them():
    chosen = f"{_exported('q2', 'preference')['row']['chosen_probability']:.3f}"
    (judged,) = _told("q2")["pairs"]
    soft = judged["label"]["probability_a"]
    said = _shown(SETS, "q2")
    assert f"probability that chosen is the better one: {chosen}" in said
    assert (
        f"P(a is better) = {soft:.3f}, so P(b is better) = {1 - soft:.3f}; chosen {judged['label']['chosen']}" in said
    )
    assert chosen in (f"{soft:.3f}", f"{1 - soft:.3f}")


def test_a_critique_that_was_not_asked_for_is_explained_by_the_threshold():
    said = _shown(RUN, "q2")
    assert "from 0.4 on an answer is criticised" in said and "0.300 is below 0.4: no critique was asked for" in said


# Words


def test_a_forced_word_did_not_end_by_itself_and_a_verdict_says_what_it_was_for():
    (judged,) = _told("q2")["pairs"]
    said = _shown(RUN, "--call", judged["verdicts"][0]["calls"][0])
    assert "the answer (the likeliest of these)" in said and "ended by itself" not in said
    assert "for      a verdict on one answer alone (kept), in cai label" in said
    assert "Its fingerprint is the key" in said and "content address" not in said


def test_the_way_to_a_critique_stands_below_the_row():
    first = _told("q0")["trajectories"][0]["rounds"][0]
    asked = f"so for the critique of round 1 of q0: cai show {RUN} --call {first['critique_call'][:16]}"
    assert asked in _shown(RUN, "q0")
