"""What the pipeline itself costs: rows per second and memory with an engine that answers at once.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --rows 2000 --large 0

Every row asks five calls (response, choice of a principle, gate, critique, revision), each is journaled, and the tables
are written as Parquet. One core: the process binds itself to it. Each measurement is a process of its own, so that peak
memory is its own too; what the interpreter and the libraries take before the first row is told apart.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.runs import Silent, write_prompts
from cai.settings import ReviseSettings
from cai.stages import revise_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the timed run, and of the smaller in memory")
    parser.add_argument("--large", type=int, default=200_000, help="rows of the larger run; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(_run(options.rows, options.seed, Path(options.one))))
        return
    small = _apart(options.rows, options.seed)
    print("small", small, file=sys.stderr)
    figures = {"rows": options.rows, "rows_per_second": small["rows_per_second"], "peak_mb_10k": small["peak_mb"]}
    figures["mb_before_the_first_row"] = small["mb_before"]
    if options.large:
        large = _apart(options.large, options.seed)
        print("large", large, file=sys.stderr)
        figures |= {"peak_mb_200k": large["peak_mb"], "rows_per_second_200k": large["rows_per_second"]}
        figures["memory_ratio"] = round(large["peak_mb"] / small["peak_mb"], 3)
        grown = (one["peak_mb"] - one["mb_before"] for one in (large, small))
        figures["memory_ratio_without_libraries"] = round(next(grown) / next(grown), 3)
    print(json.dumps(figures))


def _apart(rows: int, seed: int) -> dict[str, float]:
    """The figures of a run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.overhead",
            "--one",
            folder,
            "--rows",
            str(rows),
            "--seed",
            str(seed),
        ]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(told.splitlines()[-1])


def _run(rows: int, seed: int, folder: Path) -> dict[str, float]:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    prompts = write_prompts(folder, rows, seed)
    settings = ReviseSettings(
        prompts=str(prompts), out=str(folder / "run"), engine="scripted", rounds=1, gate_threshold=0.0
    )
    before = peak_mb()
    begun = time.perf_counter()
    outcome = asyncio.run(revise_stage(settings, Silent()))
    seconds = time.perf_counter() - begun
    calls = outcome.session.asked_calls
    assert calls == 5 * rows, f"{calls} calls for {rows} rows"
    return {
        "rows_per_second": round(rows / seconds, 1),
        "peak_mb": round(peak_mb(), 1),
        "mb_before": round(before, 1),
    }


def peak_mb() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
