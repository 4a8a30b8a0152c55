"""Stage by stage against the pipeline: the same rows and lengths on one vLLM, in one process.

    python -m benchmarks.barrier --rows 96

`ratio_32` is the wall time of working through batches of 32 rows, in each of which no row goes on before all have
answered, over the pipeline's; `ratio_all` the same with all rows in one batch. The barrier arms write nothing.
"""

import asyncio
import json
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fixed import METHOD, FixedLengths, parser, spec_of
from benchmarks.runs import revise_on, write_prompts
from cai.constitution import load_constitution
from cai.engines import Completion, Engine, Request
from cai.errors import RowDropped
from cai.inputs import Prompts
from cai.revise import Roles, revise
from cai.rows import Row
from cai.settings import ReviseSettings
from cai.templates import load_templates


def main() -> None:
    options = parser(__doc__, rows=96).parse_args()
    print(json.dumps(asyncio.run(_measure(options))))


async def _measure(options: Any) -> dict[str, float]:
    seconds: dict[str, float] = {}
    tokens: dict[str, int] = {}
    async with FixedLengths(spec_of(options), options.seed) as engine:
        with tempfile.TemporaryDirectory() as folder:
            prompts = write_prompts(Path(folder), options.rows, options.seed)
            warm = write_prompts(Path(folder) / "warm", 4, options.seed + 1)
            await revise_on(engine, ReviseSettings(prompts=str(warm), out=f"{folder}/warm/run", **METHOD))
            for arm, size in (("pipeline", 0), ("32", 32), ("all", options.rows)):
                await engine.forget()
                begun = time.perf_counter()
                settings = ReviseSettings(prompts=str(prompts), out=f"{folder}/run", **METHOD)
                if size:
                    await _stage_by_stage(engine, settings, size)
                else:
                    await revise_on(engine, settings)
                seconds[arm] = time.perf_counter() - begun
                tokens[arm] = sum(len(call.output_ids) for call in engine.calls)
                print(arm, round(seconds[arm], 1), "s,", tokens[arm], "output tokens", file=sys.stderr)
    pace = {arm: seconds[arm] / tokens[arm] for arm in seconds}  # a row may end early in one arm and not in another
    return {
        "rows": options.rows,
        "ratio_32": round(pace["32"] / pace["pipeline"], 3),
        "ratio_all": round(pace["all"] / pace["pipeline"], 3),
        "output_tokens_per_second": round(tokens["pipeline"] / seconds["pipeline"], 1),
    }


async def _stage_by_stage(engine: Engine, settings: ReviseSettings, size: int) -> None:
    constitution = load_constitution(settings.constitution)
    templates = load_templates(None, settings.wording, False, constitution.principles, constitution.question)
    work = partial(
        revise, roles=Roles(engine, engine, engine), constitution=constitution, templates=templates,
        method=settings.method(),
    )  # fmt: skip
    source = Prompts(settings.prompts, "revise", None, 1, True)
    for chunk in source.chunks(size):
        rows = [item for item in chunk.items if isinstance(item, Row)]
        await _in_step(rows, work)


async def _in_step(rows: list[Row], work: Any) -> None:
    """Rows whose calls wait for each other: each step's calls go out once every row that is left has asked."""
    left = len(rows)
    waiting: list[tuple[Engine, Request, asyncio.Future[Completion]]] = []
    all_ask = asyncio.Event()

    def look() -> None:
        if len(waiting) == left:
            all_ask.set()

    async def ask(engine: Engine, request: Request) -> tuple[str, Completion]:
        answer = asyncio.get_running_loop().create_future()
        waiting.append((engine, request, answer))
        look()
        return "", await answer

    async def one(row: Row) -> None:
        nonlocal left
        with suppress(RowDropped):
            await work(row, ask)
        left -= 1
        look()

    async with asyncio.TaskGroup() as group:
        for row in rows:
            group.create_task(one(row))
        while left:
            await all_ask.wait()
            all_ask.clear()
            step, waiting[:] = list(waiting), []
            done = await asyncio.gather(*(engine.complete(request) for engine, request, _ in step))
            for (_, _, answer), completion in zip(step, done, strict=True):
                answer.set_result(completion)


if __name__ == "__main__":
    main()
