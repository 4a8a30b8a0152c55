"""Labels per second, with the principle at the end of the prompt (as shipped) and at its beginning, and pointwise.

    python -m benchmarks.judging --endpoint http://127.0.0.1:8000/v1 --pairs 64 --principles 4
    python -m benchmarks.judging --model embedded --pairs 8 --principles 4

The same pairs, principles and engine in one run, one arm after another; no arm finds another's prompts in the cache,
since they differ from the first words on. The order of the arms can be turned round with --reverse. Verdicts per second
are what an engine does; a label is principles x 2 of them (x 2 questions with pointwise).
"""

import argparse
import asyncio
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from cai.constitution import load_constitution
from cai.engines import Completion, Engine, Request, Sampling, Spec, open_engine
from cai.errors import CaiError
from cai.gold import ConstitutionPairs, GoldPairs
from cai.label import Judging, Rule, judge
from cai.rows import Pair
from cai.templates import JUDGE, load_templates

ARMS: dict[str, tuple[Any, str | None]] = {
    "principle last": ("logprob", None),
    "principle first": ("logprob", str(Path(__file__).parent / "principle_first")),
    "pointwise": ("pointwise", None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", action="append", default=[], help="server; may be given several times")
    parser.add_argument("--model", help="model, or 'embedded'")
    parser.add_argument("--gold", help="gold pairs to judge (default: the examples of the constitution)")
    parser.add_argument("--constitution", default="harmlessness")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument(
        "--skip", type=int, default=0, help="pairs to pass over: a server still has the last run's cached"
    )
    parser.add_argument("--principles", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=16, help="pairs worked on at once")
    parser.add_argument("--reverse", action="store_true", help="the arms in the other order")
    try:
        figures = asyncio.run(_measure(parser.parse_args()))
    except CaiError as error:
        sys.exit(f"{error}")
    print(json.dumps(figures, indent=2))


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    constitution = load_constitution(options.constitution)
    source = GoldPairs(options.gold, None, False) if options.gold else ConstitutionPairs(constitution)
    items = (item for chunk in source.chunks(1000) for item in chunk.items)
    every = (item for item in items if isinstance(item, Pair))
    pairs = list(islice(every, options.skip, options.skip + options.pairs))
    figures: dict[str, Any] = {"pairs": len(pairs), "principles": options.principles}
    async with open_engine(Spec("auto", options.model, tuple(options.endpoint), send_seed=False)) as engine:
        figures["model"] = engine.model
        for arm in reversed(ARMS) if options.reverse else ARMS:
            figures[arm] = await _one(engine, arm, pairs, options, constitution)
            print(arm, figures[arm], file=sys.stderr)
    figures["last over first"] = round(
        figures["principle last"]["labels_per_second"] / figures["principle first"]["labels_per_second"], 2
    )
    return figures


async def _one(engine: Engine, arm: str, pairs: list[Pair], options: argparse.Namespace, constitution: Any) -> Any:
    mode, folder = ARMS[arm]
    templates = load_templates(folder, principles=constitution.principles, names=JUDGE[mode])
    rule = Rule(1.0, 0.0, 0.0, 0.0)
    method = Judging(0, mode, options.principles, Sampling(1), 0.1, 1, 0.0, rule)
    done: list[Completion] = []

    async def ask(engine: Engine, request: Request) -> tuple[str, Completion]:
        completion = await engine.complete(request)
        done.append(completion)
        return "", completion

    free = asyncio.Semaphore(options.in_flight)

    async def label(pair: Pair) -> None:
        async with free:
            await judge(pair, ask, engine, constitution, templates, method)

    begun = time.monotonic()
    await asyncio.gather(*(label(pair) for pair in pairs))
    seconds = time.monotonic() - begun
    prompt, cached = (sum(getattr(one, name) for one in done) for name in ("prompt_tokens", "cached_tokens"))
    return {
        "labels_per_second": round(len(pairs) / seconds, 3),
        "calls_per_second": round(len(done) / seconds, 2),
        "prompt_tokens": prompt,
        "cached_share": round(cached / prompt, 3),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
