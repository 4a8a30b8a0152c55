"""Which pairs a run's rows make, and what has none."""

from pathlib import Path
from typing import Any

import pytest

from cai.errors import BadInput
from cai.ids import first_of_two
from cai.pairs import Kind, RunPairs
from cai.rows import Drop, Message, Pair, Response, Round, Trajectory
from cai.store import Run, ShardMark, open_run


def taken(number: int, revision: str, took: bool = True) -> Round:
    return Round(number, "p", 0.9, 1.0, "c", revision, "stop", took, (), (), None, None, "k", "k")


def trajectory(prompt_id: str, sample: int, response: str, *rounds: Round) -> Trajectory:
    row_id = f"{prompt_id}~{sample}" if sample else prompt_id
    final = next((one.revision for one in reversed(rounds) if one.taken and one.revision), response)
    return Trajectory(
        row_id, prompt_id, sample, (Message("user", "q"),), "here:1", "{}", response, "stop", "k", rounds, final,
        final != response, "m", "m", "m", "c", "sha", "sha", 0, 1, 0, 1, 0,
    )  # fmt: skip


def a_run(folder: Path, shards: list[list[Any]], table: str = "trajectories", finished: bool = True) -> Run:
    stage = {"trajectories": "revise", "responses": "generate"}[table]
    with Run(folder) as run:
        run.belong(stage, {"settings": {}, "models": {}, "texts": {}}, {})
        for index, rows in enumerate(shards):
            run.write_shard(stage, index, {table: rows}, [], ShardMark("s", (), 0))
        if finished:
            run.write_manifest(stage, {})
    return open_run(str(folder))


def made(run: Run, kind: Kind, limit: int | None = None) -> list[list[Pair | Drop]]:
    return [list(chunk.items) for chunk in RunPairs(run, kind, limit).chunks(0)]  # type: ignore[arg-type]


def told(items: list[Pair | Drop]) -> list[str]:
    return [item.pair_id if isinstance(item, Pair) else f"{item.row_id}: {item.reason}" for item in items]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    twice = trajectory("q1", 0, "x", taken(1, "y"), taken(1, "bad", took=False), taken(2, "z"))
    return a_run(
        tmp_path / "run",
        [[twice, trajectory("q1", 1, "w"), trajectory("q2", 0, "u", taken(1, "v"))], [trajectory("q3", 0, "t")]],
    )


def test_each_kind_makes_its_pairs_and_a_row_without_one_is_a_drop(run: Run):
    assert [told(items) for items in made(run, "revision")] == [
        ["q1/response+revision-2", "q1~1: no_pair", "q2/response+revision-1"],
        ["q3: no_pair"],
    ]
    assert told(made(run, "consecutive")[0]) == [
        "q1/response+revision-1", "q1/revision-1+revision-2", "q1~1: no_pair", "q2/response+revision-1",
    ]  # fmt: skip
    assert told(made(run, "samples")[0]) == ["q1/sample-0+sample-1", "q2: no_pair"]
    assert told(made(run, "all")[0]) == [
        "q1/response+revision-2", "q1/response+revision-1", "q1/revision-1+revision-2", "q1/sample-0+sample-1",
        "q2/response+revision-1",
    ]  # fmt: skip
    assert made(run, "auto") == made(run, "revision")


def test_texts_and_their_origins_go_together_and_the_side_is_derived(run: Run):
    texts = {"response": "x", "revision-1": "y", "revision-2": "z", "sample-0": "x", "sample-1": "w"}
    pairs = [item for item in made(run, "all")[0] if isinstance(item, Pair) and item.row_id == "q1"]
    for one in pairs:
        assert (one.a, one.b) == (texts[one.a_from], texts[one.b_from])
        first, second = one.pair_id.removeprefix("q1/").split("+")
        assert (one.a_from, one.b_from) == ((first, second) if first_of_two(one.pair_id) else (second, first))
    assert [item.position for items in made(run, "all") for item in items if isinstance(item, Pair)] == list(range(5))


def test_equal_texts_are_never_a_pair(tmp_path: Path):
    rows = [trajectory("q1", n, text) for n, text in enumerate(["same", "same", "other"])]
    assert told(made(a_run(tmp_path / "r", [rows]), "samples")[0]) == ["q1/sample-0+sample-2", "q1~1/sample-1+sample-2"]
    rows = [trajectory("q1", n, "same") for n in range(2)]
    (drop,) = made(a_run(tmp_path / "s", [rows]), "samples")[0]
    assert isinstance(drop, Drop) and (drop.row_id, drop.reason, drop.raw) == ("q1", "no_pair", "same")


def test_responses_are_paired_as_samples_and_a_limit_counts_rows(tmp_path: Path):
    rows = [
        Response(f"q{n // 2}" + ("~1" if n % 2 else ""), f"q{n // 2}", n % 2, (Message("user", "q"),), "here:1", "{}",
                 f"text {n}", "stop", "k", "m", "sha", 0, 1, 0, 1, 0)
        for n in range(8)
    ]  # fmt: skip
    run = a_run(tmp_path / "r", [rows[:4], rows[4:]], "responses")
    every = ["q0/sample-0+sample-1", "q1/sample-0+sample-1", "q2/sample-0+sample-1", "q3/sample-0+sample-1"]
    assert [name for items in made(run, "auto") for name in told(items)] == every
    assert [name for items in made(run, "samples", limit=6) for name in told(items)] == every[:3]
    assert len(made(run, "samples", limit=4)) == 1
    with pytest.raises(BadInput, match="responses, which have no revisions"):
        RunPairs(run, "revision", None)


def test_a_run_without_rows_or_with_an_unfinished_stage_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="no rows"):
        RunPairs(a_run(tmp_path / "r", []), "auto", None)
    with pytest.raises(BadInput, match="an unfinished cai revise"):
        RunPairs(a_run(tmp_path / "s", [[trajectory("q", 0, "x")]], finished=False), "auto", None)
