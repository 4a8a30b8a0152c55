"""Kill the pipeline at random moments, start it again until it is done, and compare with a run that nobody touched.

    python -m benchmarks.crash --kills 200 --seed 0

Each stage (`cai revise`, `cai label`, a review that is applied to the labels, `cai export`, and an export with other
settings that replaces it) is a process of its own, with a scripted engine that writes each call that it is asked, and
each that it has answered, to files outside the run. Every other SIGKILL comes at a moment drawn from the time for which
the stage holds its folder (not from the time in which it loads its libraries and writes nothing); the others in the
middle of something that it does to the disk, drawn first by its kind, since a shard is written far more seldom than a
line of the journal. A stage that ends before is done; one that was killed three times is let be. When all are done the
next round begins in an empty folder, until there were so many kills.

After each kill, and at the end of each stage:
- every file of the run that a reader takes for data is, byte by byte, the unbroken run's; of labels, as it was before
  the review or after it, and if the manifest answers for them, all as before or all as after;
- the dataset's folder is not there, or holds one of the two datasets whole;
- every other file has a scratch name, which begins with a dot;
- the history beside the run tells, in the end, of every row once, with the unbroken run's figures;
- every call that was answered is in the journal, but for the one that was being written.

`repeated_calls` are calls asked again although the journal had them at an earlier kill; `in_flight_calls` those that a
kill cost, asked and not yet answered. `lost_rows` are rows of the unbroken run that a broken one has not, in the end.
The command exits 1 if anything was lost, repeated or different.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.forks import Act, Forks
from benchmarks.runs import write_prompts
from cai.history import History

ENGINE = ["--engine", "scripted", "--model", "script.yaml", "--slots", "8"]
STAGES = {
    "revise": ["revise", "prompts.jsonl", "--out", "run", "--shard-rows", "16", *ENGINE],
    "label": ["label", "run", "--judge-principles", "2", "--review-share", "1", *ENGINE],
    "review": ["label", "run", "--apply-review", "filled.jsonl", "--review-share", "1"],
    "export": ["export", "run", "--out", "set"],
    "replace": ["export", "run", "--out", "set", "--test-share", "0.5"],
}
LOCKS = {stage: ".set.cai-lock" if stage in ("export", "replace") else "run/.lock" for stage in STAGES}
OURS = {"prompts.jsonl", "script.yaml", "filled.jsonl", "asked.txt", "answered.txt", "log.txt"}
# An export begins anew each time, so it would hardly ever get to its end.
KILLS_OF_A_STAGE = 3

Files = dict[str, bytes]
End = float | Act


@dataclass(slots=True)
class Tally:
    """What the kills came to; `faults` says what went wrong, and where."""

    kills: int = 0
    rounds: int = 0
    kills_by_stage: Counter[str] = field(default_factory=Counter[str])
    lost_rows: int = 0
    repeated_calls: int = 0
    in_flight_calls: int = 0
    faults: list[str] = field(default_factory=list[str])

    def good(self) -> bool:
        return not (self.faults or self.lost_rows or self.repeated_calls)


@dataclass(frozen=True, slots=True)
class Unbroken:
    """The run that nobody touched: its tables before and after the review, the two datasets, how long each stage held
    its folder, and what it did to the disk."""

    folder: Path
    unreviewed: Files
    run: Files
    sets: tuple[Files, ...]
    seconds: dict[str, float]
    acts: dict[str, Counter[str]]


class StageFailed(Exception):
    """A stage that nobody killed ended with an error."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=96)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = crash(
            Path(folder), options.kills, options.rows, options.seed, lambda said: print(said, file=sys.stderr)
        )
    print("\n".join(tally.faults), file=sys.stderr)
    names = ("kills", "lost_rows", "repeated_calls", "in_flight_calls", "rounds")
    figures = {name: getattr(tally, name) for name in names}
    print(json.dumps({**figures, "identical": not tally.faults, "kills_by_stage": dict(tally.kills_by_stage)}))
    sys.exit(0 if tally.good() else 1)


def crash(folder: Path, kills: int, rows: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Rounds of kills in folders below `folder`, until there were so many, or something went wrong."""
    chance, tally = random.Random(seed), Tally()
    with Forks() as forks:
        unbroken = _unbroken(forks, folder / "unbroken", rows, seed)
        while tally.kills < kills and not tally.faults:
            broken = folder / f"broken-{tally.rounds}"
            _prepare(broken, rows, seed)
            shutil.copy(unbroken.folder / "filled.jsonl", broken)
            try:
                _round(forks, broken, unbroken, kills, chance, tally, say)
            except StageFailed as error:
                tally.faults.append(f"round {tally.rounds}: {error}")
            tally.rounds += 1
    return tally


def _unbroken(forks: Forks, folder: Path, rows: int, seed: int) -> Unbroken:
    _prepare(folder, rows, seed)
    seconds: dict[str, float] = {}
    acts: dict[str, Counter[str]] = {}
    sets: list[Files] = []
    unreviewed: Files = {}
    for stage in STAGES:
        if stage == "review":
            _fill_in(folder)
            unreviewed = _tables(folder)
        pid = forks.start(folder, STAGES[stage], note=folder.with_suffix(".acts"))
        _wait_for_its_lock(forks, pid, folder / LOCKS[stage])
        begun = time.monotonic()
        _expect(forks.ended(pid), stage, folder)
        seconds[stage] = time.monotonic() - begun
        acts[stage] = Counter(folder.with_suffix(".acts").read_text().splitlines())
        if stage in ("export", "replace"):
            sets.append(_dataset(folder))
    return Unbroken(folder, unreviewed, _tables(folder), tuple(sets), seconds, acts)


def _round(
    forks: Forks, broken: Path, unbroken: Unbroken, kills: int, chance: random.Random, tally: Tally,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Every stage to its end, killed on the way."""
    journaled: set[str] = set()
    for stage in STAGES:
        done, spare = False, KILLS_OF_A_STAGE
        while not done:
            end = _end_of(unbroken, stage, tally.kills, chance) if tally.kills < kills and spare else None
            before = len(_calls(broken / "asked.txt"))
            done = _run(forks, broken, stage, end)
            asked = _calls(broken / "asked.txt")[before:]
            tally.repeated_calls += sum(key in journaled for key in asked)
            journaled = _journaled(broken)
            place = f"round {tally.rounds}, {stage}, after kill {tally.kills}"
            if not done:
                spare -= 1
                tally.kills += 1
                tally.kills_by_stage[stage] += 1
                place = f"round {tally.rounds}, {stage}, kill {tally.kills} at {end}"
                answered = set(_calls(broken / "answered.txt"))
                tally.in_flight_calls += len(set(asked) - answered)
                if len(answered - journaled) > 1:
                    lost = len(answered - journaled)
                    tally.faults.append(f"{place}: {lost} calls that were answered are not in the journal")
            tally.faults += [f"{place}: {fault}" for fault in _look(broken, unbroken)]
        say(f"round {tally.rounds}, {stage}: {tally.kills} kills")
    missing = unbroken.run.keys() - _tables(broken).keys()
    tally.faults += [f"round {tally.rounds}: {name} is missing" for name in sorted(missing)]
    tally.faults += [f"round {tally.rounds}: {fault}" for fault in _end(broken, unbroken)]
    tally.lost_rows += (_rows(unbroken.folder) - _rows(broken)).total()


def _prepare(folder: Path, rows: int, seed: int) -> None:
    write_prompts(folder, rows, seed)
    (folder / "script.yaml").write_text("latency_seconds: 0.01\nledger: asked.txt\nanswered: answered.txt\n")


def _fill_in(folder: Path) -> None:
    """A review that has an answer for every third pair: neither is better, so every shard of labels changes."""
    lines = [json.loads(line) for line in (folder / "run" / "review.jsonl").read_text().splitlines()]
    filled = [{**line, "answer": "none" if number % 3 == 0 else None} for number, line in enumerate(lines)]
    (folder / "filled.jsonl").write_text("".join(json.dumps(line) + "\n" for line in filled))


def _end_of(unbroken: Unbroken, stage: str, kills: int, chance: random.Random) -> End:
    """When to kill: so many seconds after the stage has its folder, or in the middle of something that it does."""
    if kills % 2:
        return chance.uniform(0, unbroken.seconds[stage])
    act = chance.choice(sorted(unbroken.acts[stage]))
    return act, chance.randint(1, unbroken.acts[stage][act])


def _run(forks: Forks, folder: Path, stage: str, end: End | None) -> bool:
    """Run a stage, and kill it at its end if it has one. Whether it ended by itself."""
    pid = forks.start(folder, STAGES[stage], last=end if isinstance(end, tuple) else None)
    moment = None
    if isinstance(end, float):
        _wait_for_its_lock(forks, pid, folder / LOCKS[stage])
        moment = end
    code = forks.ended(pid, moment)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        code = forks.ended(pid)
    if code != -signal.SIGKILL:
        _expect(code, stage, folder)
    return code != -signal.SIGKILL


def _wait_for_its_lock(forks: Forks, pid: int, lock: Path) -> None:
    while forks.ended(pid, 0) is None:
        try:
            if lock.read_text() == str(pid):
                return
        except OSError:
            pass
        time.sleep(0.001)


def _expect(code: int | None, stage: str, folder: Path) -> None:
    if code != 0:
        raise StageFailed(f"cai {stage} ended with {code}:\n{(folder / 'log.txt').read_text()[-3000:]}")


# What is there


def _look(broken: Path, unbroken: Unbroken) -> list[str]:
    """What is wrong with the files as a kill has left them."""
    tables, states = _tables(broken), (unbroken.unreviewed, unbroken.run)
    faults = [
        f"{name} is not what the unbroken run has"
        for name, content in tables.items()
        if content not in [state.get(name) for state in states]
    ]
    if "label" in _manifest(broken) and _labels(tables) not in [_labels(state) for state in states]:
        faults.append("the manifest answers for labels of which some are as before the review and some as after")
    if _dataset(broken) not in ({}, *unbroken.sets):
        faults.append("the dataset's folder holds neither of the two datasets whole")
    for path in (path for path in broken.rglob("*") if path.is_file()):
        name = path.relative_to(broken).as_posix()
        known = (
            name in OURS
            or name.startswith(("set/", "history/"))
            or name in unbroken.run
            or (unbroken.folder / name).is_file()
        )
        if not known and not any(part.startswith(".") for part in Path(name).parts):
            faults.append(f"{name} is left, which the unbroken run has not")
    return faults


def _end(broken: Path, unbroken: Unbroken) -> list[str]:
    """What is wrong with a round that is done."""
    faults = [f"{path.name} is left" for path in broken.rglob("*") if path.name.endswith(".tmp")]
    faults += [f"{path.name} is left" for path in broken.glob(".set.cai-*")]
    if _dataset(broken) != unbroken.sets[-1]:
        faults.append("the dataset is not the unbroken run's")
    if _tables(broken) != unbroken.run:
        faults.append("the tables are not the unbroken run's")
    if _told(broken) != _told(unbroken.folder):
        faults.append("the history does not tell what the unbroken run's tells")
    told, wanted = _manifest(broken), _manifest(unbroken.folder)
    for stage in ("revise", "label"):
        for name in ("counts", "files", "settings", "models", "texts"):
            if told[stage][name] != wanted[stage][name]:
                faults.append(f"the manifest's {name} of cai {stage} are not the unbroken run's")
    return faults


def _tables(folder: Path) -> Files:
    """Every Parquet file of the run that a reader would take for data, whatever folder it lies in."""
    run = folder / "run"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in run.rglob("*.parquet")}


def _labels(tables: Files) -> Files:
    return {name: content for name, content in tables.items() if name.startswith("run/labels/")}


def _manifest(folder: Path) -> Any:
    """What the run's manifest says of each stage that is finished."""
    path = folder / "run" / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _told(folder: Path) -> list[Any]:
    """What the history says of the run, but for when and in how many sessions; a run that is done has one line of each
    stage there, with the calls and tokens of killed sessions too."""
    sessions = History(folder / "history").sessions()
    told = ([row | {"finished": "", "sessions": 0, "seconds": 0.0} for row in rows] for rows in sessions)
    return sorted(told, key=lambda rows: rows[0]["stage"])


def _dataset(folder: Path) -> Files:
    """What lies in the dataset's folder, but for the digest of the run's manifest, in which times stand."""
    paths = [path for path in (folder / "set").rglob("*") if path.is_file()]
    files = {path.relative_to(folder / "set").as_posix(): path.read_bytes() for path in paths}
    if {"manifest.json", "README.md"} <= files.keys():
        manifest: Any = json.loads(files["manifest.json"])
        (card,) = [file for file in manifest["files"] if file["path"] == "README.md"]
        if card["sha256"] == hashlib.sha256(files["README.md"]).hexdigest():
            card["sha256"], run = None, manifest["run"].pop("manifest_sha256")
            del manifest["sealed"]
            files["README.md"] = files["README.md"].replace(run[:12].encode(), b"")
            files["manifest.json"] = json.dumps(manifest, sort_keys=True).encode()
    return files


def _rows(folder: Path) -> Counter[tuple[str, str]]:
    """The rows of every table, by the table and what they are called."""
    found: Counter[tuple[str, str]] = Counter()
    for path in (folder / "run").rglob("*.parquet"):
        schema = pq.read_schema(path).names
        names = [name for name in ("row_id", "pair_id", "principle_id", "order") if name in schema]
        found.update((path.parent.name, str(row)) for row in pq.read_table(path, columns=names).to_pylist())
    return found


def _calls(path: Path) -> list[str]:
    """The keys of the calls in one of the engine's files, in their order; a torn last line has none."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [line.split()[-1] for line in lines]


def _journaled(folder: Path) -> set[str]:
    """The keys of the calls that the journal has; a torn last line has none."""
    keys: set[str] = set()
    for segment in (folder / "run" / "journal").glob("*.jsonl"):
        for line in segment.read_text(errors="replace").split("\n"):
            try:
                keys.add(json.loads(line.partition(" ")[2])["key"])
            except ValueError:
                continue
    return keys


if __name__ == "__main__":
    main()
