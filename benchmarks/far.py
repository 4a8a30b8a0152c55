"""What it costs to work on rows in Ray actors: rows per second here and in actors, with an engine that answers at once.

    python -m benchmarks.far --rows 4000 --actors 2

Every row asks five calls. The time is that from the first row that is done to the last, so that the start of Ray and of
its actors is told apart. With an engine that takes its time nothing of this is seen: the calls are what takes it.
"""

import argparse
import asyncio
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.runs import Silent, write_prompts
from cai.settings import ReviseSettings
from cai.stages import revise_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=1.0, help="CPU cores of an actor")
    parser.add_argument("--rounds", type=int, default=3, help="both are measured so often, in turn; the best counts")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that each call takes")
    options = parser.parse_args()
    far: dict[str, Any] = {"on": "ray", "ray_actors": options.actors, "ray_cpus": options.cpus}
    figures: dict[str, list[dict[str, float]]] = {"here": [], "ray": []}
    for _ in range(options.rounds):
        for name, where in (("here", {}), ("ray", far)):
            figures[name].append(_measure(options.rows, options.latency, where))
    best = {name: max(ones, key=lambda one: one["rows_per_second"]) for name, ones in figures.items()}
    print(json.dumps({"rows": options.rows, "actors": options.actors, **best}))


def _measure(rows: int, latency: float, where: dict[str, Any]) -> dict[str, float]:
    done: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        prompts = write_prompts(Path(folder), rows, 0)
        (Path(folder) / "script.yaml").write_text(f"latency_seconds: {latency}\n")
        settings = ReviseSettings(
            prompts=str(prompts), out=f"{folder}/run", engine="scripted", model=f"{folder}/script.yaml", rounds=1,
            gate_threshold=0.0, **where,
        )  # fmt: skip
        begun = time.perf_counter()
        asyncio.run(revise_stage(settings, Silent(lambda: done.append((time.perf_counter(), _cpu())))))
    (first, cpu_before), (last, cpu_after) = done[0], done[-1]
    return {
        "rows_per_second": round((rows - 1) / (last - first), 1),
        "cpu_milliseconds_a_row_of_this_process": round(1000 * (cpu_after - cpu_before) / (rows - 1), 2),
        "seconds_before_the_first_row": round(first - begun, 2),
    }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
