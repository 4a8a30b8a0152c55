"""Kill the pipeline at random moments, start it again until it is done, and compare with a run that nobody touched.

    python -m benchmarks.crash --kills 200 --seed 0

Each stage (`cai revise`, `cai label`, `cai export`) is a process of its own, with a scripted engine that writes each
call it is asked to a ledger outside the run. SIGKILL comes at a moment drawn from the stage's own duration; a stage
that ends before is done, and when all three are, the next round begins in an empty folder, until there were so many
kills. After each kill every Parquet file that can be read as data is compared with the unbroken run's, byte by byte.

`repeated_calls` are calls asked again although the journal had them at an earlier kill; `in_flight_calls` those that a
kill cost, asked and not yet journaled. `lost_rows` are rows of the unbroken run that a broken one has not, in the end.
The command exits 1 if anything was lost, repeated or different.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.runs import write_prompts

STAGES = {
    "revise": ["revise", "prompts.jsonl", "--out", "run", "--shard-rows", "16"],
    "label": ["label", "run"],
    "export": ["export", "run", "--out", "set"],
}
ENGINE = ["--engine", "scripted", "--model", "script.yaml"]


@dataclass(slots=True)
class Tally:
    """What the kills came to; `faults` says what went wrong, and where."""

    kills: int = 0
    kills_by_stage: Counter[str] = field(default_factory=Counter[str])
    lost_rows: int = 0
    repeated_calls: int = 0
    in_flight_calls: int = 0
    faults: list[str] = field(default_factory=list[str])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=96)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally, rounds = _crash(Path(folder), options.kills, options.rows, options.seed)
    print("\n".join(tally.faults), file=sys.stderr)
    figures = {name: getattr(tally, name) for name in ("kills", "lost_rows", "repeated_calls", "in_flight_calls")}
    identical = not tally.faults
    by_stage = dict(tally.kills_by_stage)
    print(json.dumps({**figures, "identical": identical, "rounds": rounds, "kills_by_stage": by_stage}))
    sys.exit(0 if identical and not tally.lost_rows and not tally.repeated_calls else 1)


def _crash(folder: Path, kills: int, rows: int, seed: int) -> tuple[Tally, int]:
    chance, tally, rounds = random.Random(seed), Tally(), 0
    unbroken = folder / "unbroken"
    _prepare(unbroken, rows, seed)
    seconds: dict[str, float] = {}
    for stage in STAGES:
        begun = time.monotonic()
        _start(unbroken, stage).wait()
        seconds[stage] = time.monotonic() - begun
    wanted = _tables(unbroken)
    while tally.kills < kills:
        broken = folder / f"broken-{rounds}"
        _prepare(broken, rows, seed)
        journaled: set[str] = set()
        for stage in STAGES:
            done = False
            while not done:
                moment = chance.uniform(0, seconds[stage]) if tally.kills < kills else None
                before = len(_ledger(broken))
                done = _run(broken, stage, moment)
                asked = _ledger(broken)[before:]
                tally.repeated_calls += sum(key in journaled for key in asked)
                journaled = _journaled(broken)
                if not done:
                    tally.kills += 1
                    tally.kills_by_stage[stage] += 1
                    tally.in_flight_calls += len(set(asked) - journaled)
                _compare(broken, wanted, f"round {rounds}, {stage}, kill {tally.kills}", tally)
            print(f"round {rounds}, {stage}: {tally.kills} kills", file=sys.stderr)
        found = _tables(broken)
        missing = wanted.keys() - found.keys()
        tally.faults += [f"round {rounds}: {name} is missing" for name in sorted(missing)]
        tally.lost_rows += max(0, _rows(unbroken) - _rows(broken))
        rounds += 1
    return tally, rounds


def _prepare(folder: Path, rows: int, seed: int) -> None:
    write_prompts(folder, rows, seed)
    (folder / "script.yaml").write_text("latency_seconds: 0.01\nledger: ledger.txt\n")


def _start(folder: Path, stage: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cai", *STAGES[stage], *(ENGINE if stage != "export" else [])]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def _run(folder: Path, stage: str, moment: float | None) -> bool:
    """Run a stage, and kill it at that moment; None lets it be. Whether it ended by itself."""
    process = _start(folder, stage)
    try:
        code = process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    if code:
        raise SystemExit(f"cai {stage} ended with {code}:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return True


def _files(folder: Path) -> list[Path]:
    """Every Parquet file that a reader would take for data, of run and dataset."""
    return [file for part in ("run", "set") for file in (folder / part).rglob("*.parquet")]


def _tables(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in _files(folder)}


def _compare(folder: Path, wanted: dict[str, bytes], place: str, tally: Tally) -> None:
    for name, content in _tables(folder).items():
        if content != wanted.get(name):
            tally.faults.append(f"{place}: {name} is not what the unbroken run has")


def _rows(folder: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in _files(folder))


def _ledger(folder: Path) -> list[str]:
    """The keys of the calls that the engine was asked, in their order."""
    path = folder / "ledger.txt"
    return [line.split()[-1] for line in path.read_text().splitlines()] if path.exists() else []


def _journaled(folder: Path) -> set[str]:
    """The keys of the calls that the journal has; a torn last line has none."""
    keys: set[str] = set()
    for segment in (folder / "run" / "journal").glob("*.jsonl"):
        for line in segment.read_text(errors="replace").splitlines():
            try:
                keys.add(json.loads(line.partition(" ")[2])["key"])
            except ValueError:
                continue
    return keys


if __name__ == "__main__":
    main()
