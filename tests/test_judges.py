"""The command that compares judges, with a scripted one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.judges import without_length
from cai.store import open_run
from tests.conftest import write_jsonl

ROOT = Path(__file__).parent.parent


def test_the_table_has_a_line_for_each_judge_and_one_order_is_read_off_both(tmp_path: Path):
    gold = write_jsonl(
        tmp_path / "g.jsonl", [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": "x"} for n in range(9)]
    )
    config = tmp_path / "c.yaml"
    config.write_text("engine: scripted\n")
    command = [
        sys.executable,
        "-m",
        "benchmarks.judges",
        "--gold",
        gold,
        "--config",
        config,
        "--out",
        tmp_path / "runs",
    ]
    command += ["--variant", "logprob, all", "--variant", "logprob, one", "--variant", "pointwise, one"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    head, _, *lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    names = ["logprob, all", "logprob, all, one order", "logprob, one", "logprob, one, one order", "pointwise, one"]
    assert [line[0] for line in lines] == names and all(len(line) == len(head) for line in lines)
    assert all(" of 9" in line[1] for line in lines)
    (session,) = open_run(str(tmp_path / "runs" / "logprob-one")).sessions("calibrate")
    assert session["asked_calls"] == 0 and session["reused_calls"] == 18, "one principle of those that all were asked"


def pair(number: int, words: tuple[int, int], gold_a: bool) -> dict[str, Any]:
    a, b = (" ".join(["word"] * count) for count in words)
    sides = ("chosen", "rejected") if gold_a else ("rejected", "chosen")
    return {"pair_id": f"p{number}", "a": a, "b": b, "a_from": sides[0], "b_from": sides[1]}


def test_what_length_explains_is_taken_out():
    words = [(9, 3), (3, 9), (7, 1), (1, 7)]
    pairs = [pair(n, two, gold_a=two[0] > two[1]) for n, two in enumerate(words)]
    by_length = [{"pair_id": f"p{n}", "probability_a": (1 + a) / (2 + a + b)} for n, (a, b) in enumerate(words)]
    told = without_length(pairs, by_length)
    assert told["correlation"] == pytest.approx(1.0)
    # Equal lengths in each order of a mirrored set: nothing is explained, and nothing taken out.
    mixed = [pair(0, (9, 3), gold_a=True), pair(1, (3, 9), gold_a=True)]
    sure = [{"pair_id": "p0", "probability_a": 0.9}, {"pair_id": "p1", "probability_a": 0.9}]
    told = without_length(mixed, [*sure, {"pair_id": "p9", "probability_a": None}])
    assert told == {"accuracy": 1.0, "correlation": pytest.approx(0.0)}
    assert without_length([], []) == {"accuracy": None, "correlation": None}
