"""What the benchmarks share: the command of those that compare variants, made-up prompts, and a stage that runs
unwatched on an engine of our own."""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from benchmarks.texts import heavy_tailed_words
from cai import stages
from cai.engines import Engine, Kept
from cai.errors import CaiError
from cai.journal import Tally
from cai.settings import ReviseSettings
from cai.stage_run import Outcome
from cai.stages import revise_stage


def run_variants(
    parser: argparse.ArgumentParser,
    variants: Iterable[str],
    measure: Callable[[argparse.Namespace], Coroutine[Any, Any, dict[str, Any]]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """The command of a benchmark that compares variants: parse, measure, and print a table or JSON."""
    parser.add_argument("--variant", action="append", choices=list(variants), help="only these; several times")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    options = parser.parse_args()
    try:
        figures = asyncio.run(measure(options))
    except CaiError as error:
        sys.exit(f"{error}")
    print(json.dumps(figures, indent=2) if options.json else table(figures))


class Silent:
    """A watch that says nothing; `done` is called for each row that is done."""

    def __init__(self, done: Callable[[], None] = lambda: None) -> None:
        self._done = done

    def begin(self, stage: str, rows: int, finished: int) -> None: ...

    def asking(self, tally: Tally) -> None: ...

    def row(self, kept: bool) -> None:
        self._done()

    def shard(self, path: Path, rows: int, drops: int) -> None: ...

    def end(self) -> None: ...

    def say(self, sentence: str) -> None: ...


async def revise_on(engine: Engine, settings: ReviseSettings, done: Callable[[], None] = lambda: None) -> Outcome:
    """`cai revise` with every role played by `engine`, which is open already and stays so."""
    real = stages.open_engine
    stages.open_engine = lambda spec: Kept(engine, loaded=True)
    try:
        return await revise_stage(settings, Silent(done))
    finally:
        stages.open_engine = real


def write_prompts(folder: Path, rows: int, seed: int) -> Path:
    """A file of made-up prompts with heavy-tailed lengths."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.jsonl"
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"id": f"row-{number}", "prompt": heavy_tailed_words(chance)}) + "\n")
    return path
