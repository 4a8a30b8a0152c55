"""People's answers are entered whole: whenever the process is killed, the same command ends in the same bytes."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cai.audit import report
from cai.errors import BadInput, EngineGaveUp
from cai.settings import ExportSettings, LabelSettings, ReviseSettings
from cai.stages import export_stage, label_stage, revise_stage
from cai.store import Run, open_run
from tests.conftest import Quiet, table_bytes, write_jsonl
from tests.faults import Kill, Killed
from tests.small import Asked, answer_by_script


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return answer_by_script(monkeypatch)


@pytest.fixture
def labelled(tmp_path: Path, asked: Asked) -> Path:
    """A run with labels in three shards, and beside it a review that changes two of them."""
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(6)])
    settings = ReviseSettings(
        prompts=str(prompts), out=str(tmp_path / "a" / "run"), engine="scripted", shard_rows=2, rounds=1, gate="off",
        revision_tries=1, principles="one",
    )  # fmt: skip
    asyncio.run(revise_stage(settings, Quiet()))
    label(tmp_path / "a", review_share=1.0)
    lines = [json.loads(line) for line in (tmp_path / "a" / "run" / "review.jsonl").read_text().splitlines()]
    answers = {"r0": "none", "r4": "none", "r5": "a"}
    filled = [{**one, "answer": answers.get(one["pair_id"].split("/")[0])} for one in lines]
    write_jsonl(tmp_path / "a" / "filled.jsonl", filled)
    asked.clear()
    return tmp_path / "a"


def label(folder: Path, **changes: Any) -> list[str]:
    """What is said meanwhile."""
    settings = LabelSettings(run=str(folder / "run"), engine="scripted", judge_principles=1, **changes)
    watch = Quiet()
    asyncio.run(label_stage(settings, watch))
    return watch.said


def review(folder: Path) -> None:
    label(folder, review_share=1.0, apply_review=str(folder / "filled.jsonl"))


def labels(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in table_bytes(folder / "run").items() if name.startswith("labels/")}


def kept(folder: Path) -> dict[str, bytes]:
    """All that a review may change."""
    names = ("manifest.json", "review.jsonl", "reviews.jsonl")
    return {**table_bytes(folder / "run"), **{name: (folder / "run" / name).read_bytes() for name in names}}


def test_wherever_a_review_is_killed_the_same_command_ends_in_the_same_bytes(tmp_path: Path, labelled: Path):
    unbroken = Kill(shutil.copytree(labelled, tmp_path / "unbroken"))
    with unbroken.at(1 << 60):
        review(tmp_path / "unbroken")
    before, after, wanted = labels(labelled), labels(tmp_path / "unbroken"), kept(tmp_path / "unbroken")
    assert sum(before[name] != after[name] for name in before) == 2
    assert open_run(str(tmp_path / "unbroken" / "run")).manifest()["label"]["counts"]["reviewed"]["n"] == 3
    for last in range(1, unbroken.done + 1):
        folder = shutil.copytree(labelled, tmp_path / f"killed-{last}")
        with Kill(folder).at(last), pytest.raises(Killed):
            review(folder)
        run = open_run(str(folder / "run"))
        if report(run)["label"]["finished"]:
            run.check_files("label")
            assert labels(folder) in (before, after), f"at {last} half of the labels pass for finished"
        else:
            with pytest.raises(BadInput, match="found an unfinished cai label"):
                asyncio.run(export_stage(ExportSettings(run=str(folder / "run"), out=str(folder / "set")), Quiet()))
        review(folder)
        assert kept(folder) == wanted, last
        shutil.rmtree(folder)


def half_reviewed(folder: Path) -> Path:
    """The run as a kill leaves it when some of the labels are rewritten."""
    before, last = labels(folder), 0
    while labels(folder) == before or "label" in Run(folder / "run").manifest():
        last += 1
        with Kill(folder).at(last), pytest.raises(Killed):
            review(folder)
    return folder


def test_a_killed_review_is_also_finished_by_cai_label_itself(tmp_path: Path, labelled: Path, asked: Asked):
    review(shutil.copytree(labelled, tmp_path / "unbroken"))
    label(half_reviewed(labelled), review_share=1.0)
    assert kept(labelled) == kept(tmp_path / "unbroken") and asked == []


def test_labels_that_are_being_made_anew_are_not_finished_by_the_review_that_was_killed_before(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
):
    async def gone(*_: object) -> None:
        raise EngineGaveUp("the engine is gone")

    monkeypatch.setattr("cai.runner.run_rows", gone)
    with pytest.raises(EngineGaveUp):
        label(half_reviewed(labelled), seed=3, replace=True)
    with pytest.raises(BadInput, match="found no finished labels"):
        review(labelled)


def with_other_texts(labelled: Path) -> Path:
    """A run with pairs of the same names, and other texts in them."""
    prompts = write_jsonl(labelled.parent / "q.jsonl", [{"id": f"r{n}", "prompt": f"query {n}"} for n in range(6)])
    folder = labelled.parent / "b"
    settings = ReviseSettings(
        prompts=str(prompts), out=str(folder / "run"), engine="scripted", rounds=1, gate="off", revision_tries=1,
        principles="one",
    )  # fmt: skip
    asyncio.run(revise_stage(settings, Quiet()))
    return folder


def questions(folder: Path, name: str = "review.jsonl") -> list[Any]:
    return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]


def test_answers_decide_nothing_of_texts_that_nobody_was_shown(labelled: Path):
    review(labelled)
    other = with_other_texts(labelled)
    shutil.copy(labelled / "run" / "reviews.jsonl", other / "run")
    said = label(other, review_share=1.0)
    (sentence,) = [one for one in said if "other texts" in one]
    assert sentence.endswith("They stay there and decide nothing.") and ": 3 answers are about" in sentence
    assert not [row for row in open_run(str(other / "run")).records("labels") if row["reviewed"]]
    assert not [one for one in questions(other) if one["answer"]]
    assert questions(other, "reviews.jsonl") == questions(labelled, "reviews.jsonl")


def test_what_somebody_has_filled_in_about_pairs_that_are_no_more_is_set_aside(labelled: Path):
    other = with_other_texts(labelled)
    shutil.copy(labelled / "filled.jsonl", other / "run" / "review.jsonl")
    for again in (False, True):
        said = label(other, review_share=1.0)
        assert any("3 lines that somebody has filled in" in one for one in said) != again
        assert {one["pair_id"].split("/")[0] for one in questions(other, "review-unused.jsonl")} == {"r0", "r4", "r5"}
        assert len(questions(other)) == 6 and not [one for one in questions(other) if one["answer"]]


def test_whatever_somebody_writes_beside_an_answer_stays(labelled: Path):
    path = labelled / "run" / "review.jsonl"
    first, *others = questions(labelled)
    write_jsonl(path, [{**first, "note": "unsure"}, *others])
    for _ in range(2):
        label(labelled, review_share=0.0)
        assert [one["note"] for one in questions(labelled) if "note" in one] == ["unsure"]
    write_jsonl(path, [{**first, "answer": "b", "note": "sure"}, *others])
    label(labelled, review_share=0.0, apply_review=str(path))
    (left,) = [one for one in questions(labelled) if "note" in one]
    assert left == {**first, "answer": "b", "note": "sure"}
