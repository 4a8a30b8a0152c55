"""The pipeline against the bare engine: the wall time of `cai revise` over that of its very calls thrown at vLLM.

    python -m benchmarks.replay --rows 96

Both arms run in one process on one engine, whose prefix cache is emptied before each. The answers have given lengths,
so the second arm generates as many tokens as the first. `ratio` is wall time over wall time. `prefix_reuse` is how many
prompt tokens came from the cache over how many could have: for each call the whole blocks at its beginning that some
earlier call had read or written by the time it was asked.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.fixed import METHOD, Call, FixedLengths, parser, spec_of
from benchmarks.runs import revise_on, write_prompts
from cai.settings import ReviseSettings


def main() -> None:
    options = parser(__doc__, rows=96).parse_args()
    print(json.dumps(asyncio.run(_measure(options))))


async def _measure(options: Any) -> dict[str, float]:
    async with FixedLengths(spec_of(options), options.seed) as engine:
        with tempfile.TemporaryDirectory() as folder:
            await _pipeline(engine, Path(folder) / "warm", 4, options.seed + 1)
            await engine.forget()
            pipeline = await _pipeline(engine, Path(folder) / "timed", options.rows, options.seed)
        calls, block = engine.calls, engine.block_size
        await engine.forget()
        ordered = sorted(calls, key=lambda call: call.begun)
        begun = time.perf_counter()
        await asyncio.gather(*(engine.again(call, number) for number, call in enumerate(ordered)))
        bare = time.perf_counter() - begun
    could = could_be_shared(ordered, block)
    cached, prompt = sum(call.cached_tokens for call in calls), sum(len(call.prompt_ids) for call in calls)
    print(f"pipeline {pipeline:.1f} s, bare engine {bare:.1f} s, {len(calls)} calls", file=sys.stderr)
    return {
        "rows": options.rows,
        "calls": len(calls),
        "ratio": round(pipeline / bare, 3),
        "prefix_reuse": round(cached / could, 3) if could else 1.0,
        "cached_share_of_prompts": round(cached / prompt, 3),
        "output_tokens_per_second": round(sum(len(call.output_ids) for call in calls) / pipeline, 1),
    }


async def _pipeline(engine: FixedLengths, folder: Path, rows: int, seed: int) -> float:
    """The seconds from the first call asked to the last one answered and written."""
    prompts = write_prompts(folder, rows, seed)
    settings = ReviseSettings(prompts=str(prompts), out=str(folder / "run"), **METHOD)
    await revise_on(engine, settings)
    return time.perf_counter() - min(call.begun for call in engine.calls)


def could_be_shared(calls: list[Call], block: int) -> int:
    """The prompt tokens that lay ready when their call was asked, in whole blocks; never a call's last token, which has
    to be read for the answer."""
    ready = sorted(
        [(call.begun, call.prompt_ids) for call in calls]
        + [(call.ended, [*call.prompt_ids, *call.output_ids[:-1]]) for call in calls],
        key=lambda one: one[0],
    )
    known: set[int] = set()
    place = total = 0
    for call in sorted(calls, key=lambda call: call.begun):
        while place < len(ready) and ready[place][0] < call.begun:
            known.update(_blocks(ready[place][1], block))
            place += 1
        for number, name in enumerate(_blocks(call.prompt_ids[:-1], block), start=1):
            if name not in known:
                break
            total += block if number else 0
    return total


def _blocks(ids: list[int], size: int) -> list[int]:
    """A name for each whole block that tells all before it too, as vLLM names them."""
    names: list[int] = []
    before = 0
    for start in range(0, len(ids) - size + 1, size):
        before = hash((before, *ids[start : start + size]))
        names.append(before)
    return names


if __name__ == "__main__":
    main()
