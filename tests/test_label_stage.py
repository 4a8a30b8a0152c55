"""Whole label runs with a scripted judge: tables, restarts, other settings, and what people say."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.audit import report, unread
from cai.engines import Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import BadInput, CheckFailed, EngineGaveUp, RequestRefused
from cai.seal import Json
from cai.settings import (
    CalibrateSettings,
    ConstitutionTestSettings,
    GenerateSettings,
    LabelSettings,
    ReviseSettings,
)
from cai.stage_run import Outcome
from cai.stages import calibrate_stage, check_judge, constitution_stage, generate_stage, label_stage, revise_stage
from cai.store import open_run
from tests.conftest import Quiet, played_by, table_bytes, write_jsonl
from tests.test_label import likes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of twelve rows in three shards, all revised."""
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(12)])
    settings = ReviseSettings(
        prompts=str(prompts), out=str(tmp_path / "run"), engine="scripted", gate="off", rounds=1, shard_rows=5,
        revision_tries=1, failed_revision="keep", principles="one",
    )  # fmt: skip
    asyncio.run(revise_stage(settings, Quiet()))
    return tmp_path / "run"


def run(folder: Path, **changes: Any) -> Outcome:
    return asyncio.run(label_stage(LabelSettings(run=str(folder), engine="scripted", **changes), Quiet()))


def use(monkeypatch: pytest.MonkeyPatch, script: Callable[[Request], Any]) -> list[Request]:
    """Let the judge answer by `script`; returns the requests that it is asked."""
    asked: list[Request] = []

    def answer(request: Request) -> Any:
        asked.append(request)
        return script(request)

    played_by(monkeypatch, ScriptedEngine(answer))
    return asked


def labels(folder: Path) -> dict[str, Json]:
    return {row["pair_id"]: row for row in open_run(str(folder)).records("labels")}


def is_revision(text: str) -> bool:
    return text.startswith("Scripted revision")


def test_every_pair_has_its_verdicts_and_its_label(folder: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, likes(is_revision))
    outcome = run(folder, judge_mode="logprob", judge_principles=3)
    opened = open_run(str(folder))
    pairs = {row["pair_id"]: row for row in opened.records("pairs")}
    assert len(pairs) == 12 and list(pairs) == list(labels(folder))
    verdicts = list(opened.records("verdicts"))
    assert len(verdicts) == 12 * 3 * 2
    for pair_id, label in labels(folder).items():
        assert pairs[pair_id][f"{label['chosen']}_from"] == "revision-1"
        assert label["constitution"] == "harmlessness" and label["judge"] == "scripted"
        mine = [one for one in verdicts if one["pair_id"] == pair_id]
        assert sorted({one["principle_id"] for one in mine}) == sorted(label["principles"])
    counts = outcome.entry["counts"]
    assert counts["won"] == {"response against revision-1": {"revision-1": 12}}
    assert (counts["read"], counts["kept"], counts["decided"]) == (12, 12, 12)
    assert report(opened)["label"]["decided"] == 12
    paths = {file["path"].split("/")[0] for file in outcome.entry["files"]}
    assert paths == {"pairs", "verdicts", "labels"}


def test_the_same_command_asks_nothing_again_and_a_broken_run_ends_in_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    count = 0

    def breaks(request: Request) -> Any:
        nonlocal count
        count += 1
        if count == 60:
            raise EngineGaveUp("gone")
        return derived_script(request)

    first = use(monkeypatch, breaks)
    with pytest.raises(EngineGaveUp):
        run(folder, judge_principles=4)
    second = use(monkeypatch, derived_script)
    run(folder, judge_principles=4)
    answered = [request.key("scripted") for request in first[:59]]
    assert not {request.key("scripted") for request in second} & set(answered)
    broken = table_bytes(folder)
    again = use(monkeypatch, derived_script)
    assert run(folder, judge_principles=4).session.asked_calls == 0 and not again
    for path in ("pairs", "verdicts", "labels"):
        for shard in (folder / path).iterdir():
            shard.unlink()
    run(folder, judge_principles=4)
    assert table_bytes(folder) == broken


def test_other_settings_are_refused_unless_labels_are_to_be_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, derived_script)
    run(folder, judge_principles=2)
    before = table_bytes(folder)
    with pytest.raises(BadInput, match=r"judge_principles \(2 there, 3 now\).*--replace"):
        run(folder, judge_principles=3)
    assert table_bytes(folder) == before
    asked = use(monkeypatch, derived_script)
    run(folder, judge_principles=3, replace=True)
    # The two principles that were there are among the three, and both answers are asked about the third alone.
    assert len(asked) == 12 * 2
    assert all(len(label["principles"]) == 3 for label in labels(folder).values())


def test_a_refused_pair_is_a_drop_and_an_unchanged_row_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
):
    def refuse(request: Request) -> Any:
        if request.row_id == "r3":
            raise RequestRefused("too long")
        return derived_script(request)

    use(monkeypatch, refuse)
    counts = run(folder).entry["counts"]
    assert (counts["read"], counts["kept"], counts["dropped_by_reason"]) == (12, 11, {"refused_by_engine": 1})
    assert "r3" not in {label["row_id"] for label in labels(folder).values()}


class Told(Quiet):
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def say(self, sentence: str) -> None:
        self.told.append(sentence)


def test_a_run_of_which_nothing_was_revised_has_no_pairs_and_opens_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": "r0", "prompt": "question"}])
    settings = ReviseSettings(prompts=str(prompts), out=str(tmp_path / "o"), engine="scripted", rounds=0)
    asyncio.run(revise_stage(settings, Quiet()))
    opened: list[str] = []

    class Slow(ScriptedEngine):
        async def __aenter__(self) -> Any:
            opened.append("opened")
            return self

    played_by(monkeypatch, Slow(derived_script))
    watch = Told()
    outcome = asyncio.run(label_stage(LabelSettings(run=str(tmp_path / "o"), engine="scripted"), watch))
    assert outcome.entry["counts"]["dropped_by_reason"] == {"no_pair": 1} and opened == []
    assert any("no pairs to judge" in sentence for sentence in watch.told)


def test_other_pairs_and_fewer_rows_are_replaced_when_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, derived_script)
    run(folder)
    with pytest.raises(BadInput, match=r"at least the 12 that the run already holds.*--replace"):
        run(folder, limit=3)
    run(folder, limit=3, replace=True)
    assert len(labels(folder)) == 3 and len(list((folder / "labels").iterdir())) == 1
    run(folder, limit=7)
    run(folder)
    assert len(labels(folder)) == 12
    with pytest.raises(BadInput, match="--replace"):
        run(folder, pairs="consecutive", judge_principles=1)
    run(folder, pairs="consecutive", replace=True)
    assert len(labels(folder)) == 12


def test_a_limit_never_cuts_through_the_samples_of_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(6)])
    made = GenerateSettings(prompts=str(prompts), out=str(tmp_path / "o"), engine="scripted", samples=4)
    asyncio.run(generate_stage(made, Quiet()))
    use(monkeypatch, derived_script)
    for limit, pairs in ((5, 12), (10, 18), (None, 36)):
        outcome = run(tmp_path / "o", limit=limit, judge_principles=1)
        assert len(labels(tmp_path / "o")) == pairs
        left = None if limit is None else f"--limit {limit}: {tmp_path / 'o'} has more rows; they are not read."
        assert unread("label", outcome.entry["prompts"]) == left


def test_a_review_that_is_being_filled_in_is_not_written_over(folder: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, likes(is_revision))
    run(folder, review_share=0.5)
    lines = [json.loads(line) for line in (folder / "review.jsonl").read_text().splitlines()]
    write_jsonl(folder / "review.jsonl", [{**lines[0], "answer": "none"}, *lines[1:]])
    run(folder, review_share=0.1)
    again = [json.loads(line) for line in (folder / "review.jsonl").read_text().splitlines()]
    assert {one["pair_id"]: one["answer"] for one in again}[lines[0]["pair_id"]] == "none"
    (folder / "review.jsonl").write_text('{"pair_id": "half a li')
    run(folder, review_share=0.1)
    assert (folder / "review.jsonl").read_text() == '{"pair_id": "half a li'


def test_an_answer_about_other_texts_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, derived_script)
    with pytest.raises(BadInput, match="no finished labels"):
        run(folder, apply_review=str(write_jsonl(folder.parent / "f.jsonl", [{"pair_id": "x", "answer": "a"}])))
    assert not (folder / "labels").exists(), "nothing was judged first"
    run(folder, review_share=1.0)
    line = json.loads((folder / "review.jsonl").read_text().splitlines()[0])
    other = write_jsonl(folder.parent / "f.jsonl", [{**line, "a": "something else", "answer": "a"}])
    with pytest.raises(BadInput, match=r"f.jsonl:1: found .* with other texts"):
        run(folder, apply_review=str(other))


def test_a_review_is_entered_whatever_the_labels_were_made_with(folder: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, likes(is_revision))
    run(folder, review_share=1.0, judge_mode="logprob", judge_principles=1, seed=3)
    lines = [json.loads(line) for line in (folder / "review.jsonl").read_text().splitlines()]
    filled = write_jsonl(folder.parent / "f.jsonl", [{**lines[0], "answer": "none"}, *lines[1:]])
    asked = use(monkeypatch, likes(is_revision))
    outcome = run(folder, apply_review=str(filled))
    assert not asked and outcome.entry["settings"]["judge_mode"] == "logprob"
    counts = outcome.entry["counts"]
    assert counts["undecided_by_reason"] == {"person_chose_neither": 1}
    assert counts["decided"] + sum(counts["undecided_by_reason"].values()) == counts["kept"] == 12
    assert open_run(str(folder)).manifest()["label"] == outcome.entry


@pytest.mark.parametrize(
    "line",
    [
        '{"pair_id": "x", "answer": "a", "answer": "b"}',
        '{"pair_id": "x", "a": NaN, "b": "", "prompt": [], "answer": "a"}',
    ],
)
def test_a_line_that_says_two_things_or_nothing_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str):
    use(monkeypatch, derived_script)
    run(folder)
    (folder.parent / "f.jsonl").write_text(line + "\n")
    with pytest.raises(BadInput, match=r"f.jsonl:1: found a line that cannot be read"):
        run(folder, apply_review=str(folder.parent / "f.jsonl"))


def test_a_shard_of_which_one_table_is_damaged_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, derived_script)
    run(folder)
    (folder / "verdicts" / "part-00001.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(BadInput, match=r"verdicts/part-00001.parquet: found a damaged shard"):
        run(folder)
    (folder / "verdicts" / "part-00001.parquet").unlink()
    run(folder)
    assert len(list(open_run(str(folder)).records("verdicts"))) == 12 * 16


def test_people_come_before_the_judge_and_what_is_unclear_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def torn(request: Request) -> Any:
        # Clear for the first eight rows, and the same for every answer of the others.
        return likes(is_revision)(request) if int(request.row_id[1:]) < 8 else 0.6

    use(monkeypatch, torn)
    run(folder, review_share=0.25)
    questions = [json.loads(line) for line in (folder / "review.jsonl").read_text().splitlines()]
    unclear = {f"r{n}/response+revision-1" for n in range(8, 12)}
    asked = {one["pair_id"] for one in questions}
    assert unclear <= asked and len(asked - unclear) == 2
    assert all(set(one) == {"pair_id", "prompt", "a", "b", "answer"} and one["answer"] is None for one in questions)

    before = labels(folder)
    answers = {
        one["pair_id"]: "a" if one["pair_id"] in unclear else before[one["pair_id"]]["chosen"] for one in questions
    }
    answers["r9/response+revision-1"] = "none"
    filled = write_jsonl(
        folder.parent / "filled.jsonl", [{**one, "answer": answers[one["pair_id"]]} for one in questions]
    )
    asked_again = use(monkeypatch, torn)
    outcome = run(folder, review_share=0.25, apply_review=str(filled))
    assert not asked_again
    after = labels(folder)
    for pair_id, label in after.items():
        assert label["judged"] == before[pair_id]["judged"] and label["reason"] == before[pair_id]["reason"]
        assert label["reviewed"] == answers.get(pair_id)
        assert label["chosen"] == answers.get(pair_id, label["judged"])
    reviewed = outcome.entry["counts"]["reviewed"]
    assert reviewed["n"] == 6 and reviewed["same"]["value"] == 0.5 and reviewed["same_side"]["value"] == 1.0
    digests = {file["path"]: file["sha256"] for file in outcome.entry["files"]}
    assert digests == {file["path"]: file["sha256"] for file in run(folder).entry["files"]}
    # What people said stays when the labels are made anew.
    run(folder, judge_principles=1, replace=True)
    assert {one: label["reviewed"] for one, label in labels(folder).items()} == {
        one: answers.get(one) for one in before
    }


def test_a_review_that_cannot_be_used_is_refused_and_nothing_is_changed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, derived_script)
    run(folder)
    before = table_bytes(folder)
    good = {"pair_id": "r0/response+revision-1", "answer": "a"}
    cases: list[tuple[list[Any], str]] = [
        ([{**good, "answer": "c"}], r"f.jsonl:1: found the answer \"c\""),
        ([good, {**good, "answer": "b"}], r"f.jsonl:2: found another answer"),
        ([{"answer": "a"}], r"f.jsonl:1: found a line that cannot be read"),
        ([{**good, "answer": None}], "no answers"),
        ([{"pair_id": "r99/x+y", "answer": "a"}], r"f.jsonl:1: found an answer about the pair 'r99/x\+y'"),
    ]
    for lines, message in cases:
        with pytest.raises(BadInput, match=message):
            run(folder, apply_review=str(write_jsonl(folder.parent / "f.jsonl", lines)))
        assert table_bytes(folder) == before
    with pytest.raises(BadInput, match="no such file"):
        run(folder, apply_review="nowhere.jsonl")


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    records = [
        {"id": f"g{n}", "prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"a bad one {n}"}
        for n in range(40)
    ]
    return write_jsonl(tmp_path / "gold.jsonl", records)


@pytest.mark.parametrize("mode", ["logprob", "pointwise", "reasoned"])
def test_a_perfect_judge_is_always_right_and_an_adversarial_one_never(
    gold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
):
    for word, accuracy in (("good", 1.0), ("bad", 0.0)):
        use(monkeypatch, likes(lambda text, word=word: word in text))
        settings = CalibrateSettings(
            gold=str(gold), engine="scripted", judge_mode=mode, judge_principles=2, out=str(tmp_path / word),
            min_accuracy=0.7, shard_rows=7,
        )  # fmt: skip
        measured = asyncio.run(calibrate_stage(settings, Quiet()))
        assert measured.figures["accuracy"]["value"] == accuracy and measured.figures["n"] == 40
        assert (tmp_path / word / "reliability.svg").read_text().startswith("<svg")
        assert json.loads((tmp_path / word / "calibration.json").read_text())["n"] == 40
        if accuracy < 0.7:
            with pytest.raises(CheckFailed, match=r"accuracy is 0\.0, under --min-accuracy 0\.7"):
                check_judge(measured.figures, settings)
        else:
            check_judge(measured.figures, settings)


def test_a_judge_that_flips_is_under_the_bar(gold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, lambda request: 0.8)
    settings = CalibrateSettings(
        gold=str(gold), engine="scripted", judge_mode="logprob", out=str(tmp_path / "o"), max_flip=0.5
    )
    measured = asyncio.run(calibrate_stage(settings, Quiet()))
    assert measured.figures["flips"] == 1.0 and measured.figures["first_position"] == 1.0
    assert measured.figures["decided"] == 0
    with pytest.raises(CheckFailed, match=r"1\.0 of the judge's verdicts flip"):
        check_judge(measured.figures, settings)


def test_an_accuracy_on_few_decisions_holds_no_bar(gold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, likes(lambda text: "good" in text, sure=0.6))
    settings = CalibrateSettings(
        gold=str(gold), engine="scripted", out=str(tmp_path / "o"), min_accuracy=0.5, tie_band=0.45
    )
    measured = asyncio.run(calibrate_stage(settings, Quiet()))
    with pytest.raises(CheckFailed, match=r"decides 0\.00 of the pairs, under --min-decided 0\.3"):
        check_judge(measured.figures, settings)
    with pytest.raises(ValueError, match="which has no order"):
        CalibrateSettings(gold=str(gold), max_flip=0.1)


def test_a_folder_holds_labels_or_gold_but_not_both(gold: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, derived_script)
    run(folder)
    with pytest.raises(BadInput, match="the folder of a cai label"):
        asyncio.run(calibrate_stage(CalibrateSettings(gold=str(gold), engine="scripted", out=str(folder)), Quiet()))


def test_a_constitution_is_tested_by_its_own_examples_each_by_its_principle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constitution: Any
):
    better = {example.better for principle in constitution.principles for example in principle.examples}
    use(monkeypatch, likes(lambda text: text in better))
    settings = ConstitutionTestSettings(engine="scripted", out=str(tmp_path / "o"))
    measured = asyncio.run(constitution_stage(settings, Quiet()))
    assert measured.figures["n"] == len(better) and measured.figures["accuracy"]["value"] == 1.0
    for label in labels(tmp_path / "o").values():
        assert len(label["principles"]) == 1 and label["pair_id"].startswith(label["principles"][0])
