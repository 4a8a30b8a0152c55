"""What a summary beside another run says is not the same, on pairs of runs that differ in one thing each."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from cai.audit import count_stage
from cai.report.summary import summary
from cai.rows import Drop, Trajectory
from cai.schemas import to_table
from cai.seal import write_stages
from cai.store import Run, open_run
from tests.runs import pair, said, trajectory, write_run

ROWS = [trajectory("r1"), trajectory("r2"), trajectory("r3")]
SAME = ["The prompts are the same in both runs.", "The principles are the same in both runs."]


def beside(this: Run, other: Run) -> list[str]:
    """The list at the top of the summary."""
    lines = summary(this, "mine", against=(other, "theirs")).split("##")[0].splitlines()
    return [line.removeprefix("- ") for line in lines if line.startswith("- ")]


def run_of(folder: Path, rows: list[Trajectory] = ROWS, dropped: tuple[tuple[str, str, str], ...] = ()) -> Run:
    run = write_run(folder, trajectories=rows)
    (folder / "settings.json").write_text(json.dumps({"revise": run.settings()["revise"]}))
    (folder / "drops").mkdir()
    drops = [Drop(row_id, "revise", "bad_prompt", "x", raw, place) for row_id, place, raw in dropped]
    pq.write_table(to_table(drops, "drops"), folder / "drops" / "revise-00000.parquet")
    return finished(run)


def finished(run: Run, code: str = "1") -> Run:
    stages = {
        stage: {"counts": count_stage(run, stage), "versions": {"cai": code, "python": "3"}, "code_sha": code}
        for stage in run.settings()
    }
    write_stages(run.folder / "manifest.json", stages)
    return open_run(str(run.folder))


def reworded(run: Run, change: Callable[[dict[str, Any]], object], stage: str = "revise") -> Run:
    """The run, as if it had been made with another constitution."""
    path = run.folder / "inputs" / stage / "constitution.yaml"
    told = yaml.safe_load(path.read_text())
    change(told)
    path.write_text(yaml.safe_dump(told, sort_keys=False))
    settings = json.loads((run.folder / "settings.json").read_text())
    settings[stage]["texts"] = settings[stage]["texts"] | {
        "constitution_sha": hashlib.sha256(path.read_bytes()).hexdigest()
    }
    (run.folder / "settings.json").write_text(json.dumps(settings))
    return open_run(str(run.folder))


def test_equal_runs_are_said_to_be_equal(tmp_path: Path):
    dropped = (("d1", "mine:4", "x"), ("mine:5", "mine:5", "{raw"))
    moved = (("d1", "yours:4", "x"), ("yours:5", "yours:5", "{raw"))
    one, other = run_of(tmp_path / "a", dropped=dropped), run_of(tmp_path / "b", list(reversed(ROWS)), moved)
    assert beside(one, other) == SAME


def test_prompts_that_are_not_the_same_are_said_first(tmp_path: Path):
    run = run_of(tmp_path / "run")
    others = [trajectory("q1"), trajectory("q2")]
    found = beside(run, run_of(tmp_path / "none", others))
    assert found == [
        "**The prompts are other ones: none of this run's 3 rows is among the other's 2. "
        "What differs below may come from that alone.**",
        SAME[1],
    ]
    same_ids = [replace(row, prompt=said(f"Something else, {row.row_id}")) for row in ROWS]
    assert "none of this run's 3 rows is among the other's 3" in beside(run, run_of(tmp_path / "ids", same_ids))[0]
    mixed = [ROWS[0], same_ids[1], trajectory("q1"), trajectory("q2")]
    assert beside(run, run_of(tmp_path / "mixed", mixed))[0] == (
        "**The prompts are not the same (rows only in this run: 1 of 3; rows only in the other: 2 of 4; "
        "rows with the same id and another text: 1). What differs below may come from that.**"
    )
    lost = run_of(tmp_path / "lost", dropped=(("here:5", "here:5", "{another"),))
    assert "(rows only in the other: 1 of 4)" in beside(run, lost)[0]
    columns = run_of(tmp_path / "columns", [replace(ROWS[0], extra='{"k": 1}'), *ROWS[1:]])
    assert beside(run, columns) == [
        SAME[0],
        "Rows with the same prompt and other columns beside it: 1.",
        SAME[1],
    ]


def test_pairs_that_came_from_elsewhere_are_compared_with_their_answers(tmp_path: Path):
    runs: list[Run] = []
    for name, a in (("run", "x"), ("same", "x"), ("other", "y")):
        runs.append(write_run(tmp_path / name, pairs=[pair("p1", a=a), pair("p2")], labels=[], verdicts=[]))
        told = json.loads((tmp_path / name / "settings.json").read_text())
        (tmp_path / name / "settings.json").write_text(json.dumps({"label": told["label"]}))
        (tmp_path / name / "manifest.json").unlink()
    assert "The pairs are the same in both runs." in beside(runs[0], runs[1])
    assert "**The pairs are not the same (rows with the same id and another text: 1)." in beside(runs[0], runs[2])[0]


def _swap(told: dict[str, Any], one: int, other: int) -> None:
    principles = told["principles"]
    principles[one], principles[other] = principles[other], principles[one]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "question": (
        lambda told: told.update(question="Is it | bad?"),
        ["The constitution's question: Did the assistant's last answer go along with something harmful", SAME[1]],
    ),
    "no question": (lambda told: told.pop("question"), [" Was: none.", SAME[1]]),
    "name": (lambda told: told.update(name="mine"), ["The constitution's name: `harmlessness`, was `mine`", SAME[1]]),
    "description": (
        lambda told: told.update(description="Words."),
        ["The constitution's description: reworded, ", SAME[1]],
    ),
    "order": (lambda told: _swap(told, 0, 1), ["The principles stand in another order."]),
    "examples": (
        lambda told: told["principles"][0]["examples"].reverse(),
        [SAME[1], "The files of the two constitutions differ in spaces, comments or the order of examples only."],
    ),
    "renamed": (
        lambda told: told["principles"][0].update(id="body", critique="Quote it."),
        ["Renamed principles: `physical-safety`, was `body` (critique)"],
    ),
    "tags": (
        lambda told: told["principles"][0]["tags"].reverse(),
        [
            "Principles with the same wording, other in something else: `physical-safety` "
            "(the tags stand in another order)"
        ],
    ),
    "refusals": (
        lambda told: told["principles"][0].update(refusal_is_fine=False),
        ["something else: `physical-safety` (whether a plain refusal breaks it)"],
    ),
    "worded": (
        lambda told: told["principles"][0].update(statement="The answer hurts nobody.", tags=["body"]),
        ["Principles worded or weighted in another way: `physical-safety` (statement, added: "],
    ),
    "weight": (
        lambda told: told["principles"][0].update(weight=2.0),
        ["Principles worded or weighted in another way: `physical-safety` (weight)"],
    ),
    "removed": (lambda told: told["principles"].pop(0), ["Added principles: `physical-safety`"]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_one_change_of_the_constitution_is_said_and_nothing_else(tmp_path: Path, what: str):
    change, expected = CHANGES[what]
    run, other = run_of(tmp_path / "run"), reworded(run_of(tmp_path / "other"), change)
    first, *told = beside(run, other)
    assert first == SAME[0]
    assert len(told) == len(expected) and all(words in line for words, line in zip(expected, told, strict=True)), told


def test_stages_that_used_two_constitutions_are_told_apart(tmp_path: Path):
    runs: list[Run] = []
    for name in ("run", "other"):
        run = write_run(tmp_path / name, trajectories=ROWS, pairs=[], labels=[], verdicts=[])
        (run.folder / "inputs" / "label").mkdir()
        text = (run.folder / "inputs" / "revise" / "constitution.yaml").read_text()
        (run.folder / "inputs" / "label" / "constitution.yaml").write_text(text)
        (run.folder / "manifest.json").unlink()
        runs.append(run)
    assert beside(*runs) == [*SAME, *(f"{stage}: the other run is not finished." for stage in ("revise", "label"))]
    other = reworded(runs[1], lambda told: told.update(version="9"), "label")
    told = beside(runs[0], other)
    assert told[1].startswith("revise: The principles are the same")
    assert told[2].startswith("label: The constitution's version: ") and told[3] == f"label: {SAME[1]}"


def test_settings_versions_and_stages_that_differ_are_listed(tmp_path: Path):
    run = run_of(tmp_path / "run")
    other = write_run(tmp_path / "other", trajectories=ROWS, pairs=[], labels=[], verdicts=[])
    settings = other.settings()
    settings["revise"] |= {"models": {"generator": "m@2"}, "settings": {"seed": 1}}
    settings["revise"]["texts"]["templates_sha"] = "2"
    (other.folder / "settings.json").write_text(json.dumps(settings))
    assert beside(run, finished(open_run(str(other.folder)), "2")) == [
        *SAME,
        "label: only in the other run.",
        "revise: other models: `generator`: `m@1`, was `m@2`",
        "revise: other settings: `seed`: `0`, was `1`",
        "revise: other texts: `templates_sha`: `None`, was `2`",
        "revise: other versions: `cai`: `1`, was `2`",
        "revise: other code of cai: `code_sha`: `1`, was `2`",
    ]
