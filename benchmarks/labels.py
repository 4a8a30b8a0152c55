"""Labels per second with the principle at the end of the prompt, as shipped, and at its beginning.

    python -m benchmarks.labels --rows 48
    python -m benchmarks.labels --rows 24 --principles 4 --gold gold.jsonl --endpoint http://127.0.0.1:8000/v1

Both orders are asked, and pairs are admitted as in the pipeline. The same pairs, principles and engine in one run, one
arm after another, with vLLM's prefix cache emptied before each (a server's is not, but no arm finds another's prompts
in it, since they differ from the first words on). `ratio_4` and `ratio_16` are labels per second, last over first, with
so many principles; `pointwise_4` and `pointwise_16` judging each answer alone over the principle last.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.fixed import FixedLengths, parser, spec_of
from benchmarks.texts import heavy_tailed_words
from cai.constitution import Constitution, load_constitution
from cai.engines import Completion, Engine, Request, Sampling, Spec, open_engine
from cai.errors import CaiError
from cai.gold import GoldPairs
from cai.label import Judging, Rule, judge
from cai.rows import Message, Pair
from cai.runner import InFlight
from cai.templates import JUDGE, load_templates

ARMS: dict[str, tuple[Any, str | None]] = {
    "last": ("logprob", None),
    "first": ("logprob", str(Path(__file__).parent / "principle_first")),
    "pointwise": ("pointwise", None),
}


def main() -> None:
    made = parser(__doc__, rows=48)
    made.add_argument("--endpoint", action="append", default=[], help="a server instead of vLLM in this process")
    made.add_argument("--gold", help="gold pairs to judge, instead of made-up ones")
    made.add_argument("--constitution", default="harmlessness")
    made.add_argument("--principles", type=int, action="append", help="so many; several times (default: 4 and 16)")
    try:
        print(json.dumps(asyncio.run(_measure(made.parse_args()))))
    except CaiError as error:
        sys.exit(f"{error}")


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    constitution = load_constitution(options.constitution)
    pairs = list(islice(_gold(options.gold) if options.gold else _made_up(options.seed), options.rows))
    figures: dict[str, Any] = {"rows": len(pairs)}
    async with _engine(options) as engine:
        await _one(engine, "last", pairs[:2], 1, constitution)  # what is compiled or loaded at the first call
        for principles in options.principles or (4, 16):
            pace: dict[str, float] = {}
            for arm in ARMS:
                if isinstance(engine, FixedLengths):
                    await engine.forget()
                told = await _one(engine, arm, pairs, principles, constitution)
                print(f"{principles} principles, {arm}:", told, file=sys.stderr)
                pace[arm] = told["labels_per_second"]
            figures[f"ratio_{principles}"] = round(pace["last"] / pace["first"], 3)
            figures[f"pointwise_{principles}"] = round(pace["pointwise"] / pace["last"], 3)
            figures[f"labels_per_second_{principles}"] = round(pace["last"], 3)
    return figures


@asynccontextmanager
async def _engine(options: argparse.Namespace) -> Any:
    if options.endpoint:
        model = None if options.model == "embedded" else options.model
        opened: Engine = open_engine(Spec("server", model, tuple(options.endpoint), send_seed=False))
    else:
        opened = FixedLengths(spec_of(options), options.seed)
    async with opened as engine:
        yield engine


async def _one(engine: Engine, arm: str, pairs: list[Pair], principles: int, constitution: Constitution) -> Any:
    mode, folder = ARMS[arm]
    templates = load_templates(folder, principles=constitution.principles, names=JUDGE[mode])
    method = Judging(0, mode, principles, Sampling(1), 0.1, 1, 0.0, Rule(1.0, 0.0, 0.0, 0.0))
    done: list[Completion] = []
    in_flight = InFlight(lambda: engine.slots)

    async def ask(engine: Engine, request: Request) -> tuple[str, Completion]:
        completion = await engine.complete(request)
        done.append(completion)
        return "", completion

    async def label(pair: Pair, mine: Any) -> None:
        try:
            await judge(pair, partial(mine.ask, ask), engine, constitution, templates, method)
        finally:
            mine.end()

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for pair in pairs:
            group.create_task(label(pair, await in_flight.begin()))
    seconds = time.perf_counter() - begun
    prompt, cached = (sum(getattr(one, name) for one in done) for name in ("prompt_tokens", "cached_tokens"))
    return {
        "labels_per_second": len(pairs) / seconds,
        "calls_per_second": round(len(done) / seconds, 2),
        "prompt_tokens": prompt,
        "cached_share": round(cached / prompt, 3),
        "seconds": round(seconds, 1),
    }


def _gold(spec: str) -> Iterator[Pair]:
    return (item for chunk in GoldPairs(spec, None, False).chunks(1000) for item in chunk.items if type(item) is Pair)


def _made_up(seed: int) -> Iterator[Pair]:
    """Pairs without end: conversations of one to three questions, with heavy-tailed lengths."""
    chance = random.Random(seed)
    for number in range(sys.maxsize):
        turns: list[Message] = []
        for _ in range(chance.randint(0, 2)):
            turns += [Message("user", heavy_tailed_words(chance)), Message("assistant", heavy_tailed_words(chance, 60))]
        turns.append(Message("user", heavy_tailed_words(chance)))
        a, b = heavy_tailed_words(chance, 60), heavy_tailed_words(chance, 60)
        name = f"pair-{number}"
        yield Pair(name, name, name, tuple(turns), a, b, "response", "revision-1", "made up", number)


if __name__ == "__main__":
    main()
