"""What the benchmarks share: a watch that says nothing, and a stage that runs on an engine of our own."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from benchmarks.texts import heavy_tailed_words
from cai import stages
from cai.engines import Engine
from cai.settings import ReviseSettings
from cai.stages import Outcome, revise_stage


class Silent:
    """A watch that says nothing; `done` is called for each row that is done."""

    def __init__(self, done: Callable[[], None] = lambda: None) -> None:
        self._done = done

    def begin(self, stage: str, rows: int, finished: int) -> None: ...

    def row(self, kept: bool) -> None:
        self._done()

    def shard(self, path: Path, rows: int, drops: int) -> None: ...

    def end(self) -> None: ...

    def say(self, sentence: str) -> None: ...


async def revise_on(engine: Engine, settings: ReviseSettings, done: Callable[[], None] = lambda: None) -> Outcome:
    """`cai revise` with every role played by `engine`, which is open already and stays so."""
    real = stages.open_engine
    stages.open_engine = lambda spec: _Open(engine)
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


class _Open:
    """An engine that is neither opened nor closed by who uses it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None
