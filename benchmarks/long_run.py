"""A long run on an engine that answers at once: is memory flat, are files and journal bounded, is a resume quick?

    python -m benchmarks.long_run --rows 1000000 --seed 0
    python -m benchmarks.long_run --rows 2000

One `cai revise` over so many made-up prompts, five calls a row, all of it in one process. At each tenth of the run its
peak memory so far is noted; `slope_mb_per_100k_rows` is the line that fits these figures from the second tenth on (the
first holds what grows once: libraries, caches, rows in flight). Then the same command twice more: on the finished run,
and on one whose last shard was removed, where `first_row` is when work goes on and the rest is for the counts of the
whole run. The seconds of both are without the start of Python. A million rows take an hour or so, and some gigabytes of
disk. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.overhead import peak_mb
from benchmarks.runs import Silent, write_prompts
from cai.settings import ReviseSettings
from cai.stage_run import Outcome
from cai.stages import revise_stage
from cai.store import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options.rows, options.seed)))


@dataclass(slots=True)
class _Seen:
    """What was seen while rows were done: peak memory at each tenth of them, and the most open files."""

    rows: int
    done: int = 0
    peaks: list[float] = field(default_factory=list[float])
    open_files: int = 0

    def row(self) -> None:
        self.done += 1
        if self.done % 64 == 0 or self.done == self.rows:
            self.open_files = max(self.open_files, len(os.listdir("/proc/self/fd")))
        if self.done * 10 >= self.rows * (len(self.peaks) + 1):
            self.peaks.append(round(peak_mb(), 1))
            print(f"{self.done} rows: {self.peaks[-1]} MB", file=sys.stderr, flush=True)


def measure(folder: Path, rows: int, seed: int, shard_rows: int = 256) -> dict[str, Any]:
    """The figures of a run of so many rows in `folder`, and of two resumes of it."""
    settings = ReviseSettings(
        prompts=str(write_prompts(folder, rows, seed)), out=str(folder / "run"), engine="scripted", gate_threshold=0.0,
        rounds=1, shard_rows=shard_rows,
    )  # fmt: skip
    seen = _Seen(rows)
    first, seconds = _timed(settings, Silent(seen.row))
    assert first.session.asked_calls == 5 * rows, f"{first.session.asked_calls} calls for {rows} rows"
    run = open_run(settings.out)
    again, finished_seconds = _timed(settings, Silent())
    assert again.session.asked_calls + again.session.reused_calls == 0, "a finished run looks nothing up"
    last = run.finished_shards("trajectories")[-1]
    run.remove_shard("revise", ("trajectories",), last)
    moments: list[float] = []
    begun = time.perf_counter()
    lost, last_seconds = _timed(settings, Silent(lambda: moments.append(time.perf_counter() - begun)))
    assert lost.session.asked_calls == 0, "the journal has the calls of the shard that was removed"
    assert lost.entry["files"] == first.entry["files"], "it is made anew as it was"
    return {
        "rows": rows,
        "rows_per_second": round(rows / seconds, 1),
        "peak_mb": seen.peaks,
        "slope_mb_per_100k_rows": round(_slope(seen.peaks[1:]) * 10 / rows * 100_000, 2),
        "open_files_max": seen.open_files,
        "shards": last + 1,
        "journal_mb": round(sum(path.stat().st_size for path in (run.folder / "journal").iterdir()) / 2**20, 1),
        "resume_seconds": {
            "finished": round(finished_seconds, 2),
            "last_shard_removed": round(last_seconds, 2),
            "first_row": round(moments[0], 2),
        },
    }


def _timed(settings: ReviseSettings, watch: Silent) -> tuple[Outcome, float]:
    begun = time.perf_counter()
    return asyncio.run(revise_stage(settings, watch)), time.perf_counter() - begun


def _slope(values: list[float]) -> float:
    return statistics.linear_regression(range(len(values)), values).slope


if __name__ == "__main__":
    main()
