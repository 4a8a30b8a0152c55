"""How busy the pipeline keeps an engine: scripted, with 64 slots and heavy-tailed latencies.

    python -m benchmarks.saturation
    python -m benchmarks.saturation --rows 2000 --slots 64

`busy_share` is the mean share of the slots that work on a call, from the first call until 2 % of the rows are left: the
last rows of a run cannot fill an engine. `most_waiting` is how many calls ever waited for a slot: a pipeline that
throws everything at an engine keeps it busy too, and loses every prefix on the way.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from pathlib import Path

from benchmarks.runs import revise_on, write_prompts
from benchmarks.texts import heavy_tailed
from cai.engines import Completion, Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.settings import ReviseSettings


class Metered(ScriptedEngine):
    """Works on `slots` calls at once, each as long as its address says, and writes down how many at which moment."""

    def __init__(self, slots: int, seconds: float, seed: int) -> None:
        super().__init__(derived_script, slots=slots)
        self._seconds, self._seed = seconds, seed
        self._free = asyncio.Semaphore(slots)
        self.moments: list[tuple[float, int]] = []
        self.most_waiting = self._asked = self._busy = 0

    async def complete(self, request: Request) -> Completion:
        self._asked += 1
        self.most_waiting = max(self.most_waiting, self._asked - self._busy)
        async with self._free:
            self._change(1)
            chance = random.Random(f"{self._seed} {request.key(self.model)}")
            # A forced word takes one step, a text as many as it has tokens.
            await asyncio.sleep(heavy_tailed(chance, self._seconds if request.choices is None else self._seconds / 10))
            answer = await super().complete(request)
            self._change(-1)
        self._asked -= 1
        return answer

    def _change(self, by: int) -> None:
        self._busy += by
        self.moments.append((time.perf_counter(), self._busy))

    def busy_share(self, until: float) -> float:
        """The mean share of the slots that were busy, up to `until`."""
        area = sum(
            busy * (min(later, until) - earlier)
            for (earlier, busy), (later, _) in zip(self.moments, self.moments[1:], strict=False)
            if earlier < until
        )
        return area / (self.slots * (min(until, self.moments[-1][0]) - self.moments[0][0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.4, help="median time of a sampled text")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(_measure(options))))


async def _measure(options: argparse.Namespace) -> dict[str, float]:
    engine = Metered(options.slots, options.seconds, options.seed)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        prompts = write_prompts(Path(folder), options.rows, options.seed)
        settings = ReviseSettings(prompts=str(prompts), out=f"{folder}/run", engine="scripted", rounds=2)
        await revise_on(engine, settings, lambda: ends.append(time.perf_counter()))
    nearly = sorted(ends)[int(0.98 * len(ends)) - 1]
    return {
        "rows": options.rows,
        "slots": options.slots,
        "busy_share": round(engine.busy_share(nearly), 4),
        "busy_share_to_the_end": round(engine.busy_share(engine.moments[-1][0]), 4),
        "most_waiting": engine.most_waiting,
        "seconds": round(engine.moments[-1][0] - engine.moments[0][0], 1),
    }


if __name__ == "__main__":
    main()
