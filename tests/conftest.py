"""Helpers that several tests share: rows, roles played by scripted engines, a constitution, a quiet watch."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from cai import journal, stages
from cai.constitution import Constitution, load_constitution
from cai.engines import Completion, Engine, Request, Sampling
from cai.engines.scripted import ScriptedEngine
from cai.journal import Tally
from cai.revise import Method, Roles
from cai.rows import Message, Row
from cai.templates import Templates, load_templates
from tests.servers import Server

# No example fails for its time: a busy machine has taken half a second for one of ten milliseconds.
settings.register_profile("cai", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cai")

# Datasets that a test loads are cached in a folder of this session, and found by no other one.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="cai-tests-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


class Quiet:
    """A watch that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.rows: list[bool] = []
        self.shards: list[Path] = []

    def begin(self, stage: str, rows: int, finished: int) -> None:
        self.begun = (stage, rows, finished)

    def asking(self, tally: Tally) -> None:
        self.tally = tally

    def row(self, kept: bool) -> None:
        self.rows.append(kept)

    def shard(self, path: Path, rows: int, drops: int) -> None:
        self.shards.append(path)

    def end(self) -> None:
        self.ended = True

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


class Recorder:
    """An `ask` without a journal that keeps every request."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def __call__(self, engine: Engine, request: Request) -> tuple[str, Completion]:
        self.requests.append(request)
        return request.key(engine.model), await engine.complete(request)

    def purposes(self) -> list[str]:
        return [request.purpose for request in self.requests]


def row(prompt: str | list[tuple[str, str]] = "How do I pick a lock?", row_id: str = "r1") -> Row:
    turns = [("user", prompt)] if isinstance(prompt, str) else prompt
    return Row(row_id, row_id, 0, tuple(Message(*turn) for turn in turns), "here:1", "{}", 0)


def script(
    response: str = "first answer",
    gate: float | str | Callable[[Request], float | str] = 0.9,
    critique: str | Callable[[Request], str] = "a critique",
    revision: str | Callable[[Request], str | Completion] = "a better answer",
    choice: str = "A",
) -> Callable[[Request], Any]:
    """A script by purpose; a gate given as text answers without log-probabilities."""

    def answer(request: Request) -> Any:
        said: Any = {
            "response": response, "choice": choice, "gate": gate, "critique": critique, "revision": revision
        }[request.purpose]  # fmt: skip
        said = said(request) if callable(said) else said
        if request.choices and isinstance(said, str):
            return Completion(said, "stop", 1, 0, 1)
        return said

    return answer


def roles(answer: Callable[[Request], Any] | None = None) -> Roles:
    engine = ScriptedEngine(answer or script())
    return Roles(engine, engine, engine)


def method(**changes: Any) -> Method:
    sampling = Sampling(max_tokens=50)
    values: dict[str, Any] = {
        "seed": 0, "response": sampling, "rounds": 2, "gate_threshold": 0.5, "principles": "one",
        "critique": sampling, "revision": sampling, "revision_tries": 1, "failed_revision": "keep",
    }  # fmt: skip
    return Method(**{**values, **changes})


def write_jsonl(path: Path, records: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def table_bytes(run: Path) -> dict[str, bytes]:
    """Every Parquet file of a run, by its path in the run."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.parquet"))}


def journaled(run: Path) -> set[str]:
    """The keys of the calls that the journal of a run has in lines that are whole."""
    segments = sorted((run / "journal").glob("*.jsonl"))
    return {entry["key"] for segment in segments for _, entry in journal._entries(segment, [])}


def played_by(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """Let this engine play every role in the stages."""
    monkeypatch.setattr(stages, "open_engine", lambda spec: engine)


@pytest.fixture(scope="session")
def constitution() -> Constitution:
    return load_constitution("harmlessness")


@pytest.fixture(scope="session")
def templates() -> Templates:
    return load_templates(few_shot=True)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers, with the arguments of `Server`; all of them are stopped in the end."""
    servers: list[Server] = []

    def start(*arguments: Any, **options: Any) -> Server:
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are asked again after hundredths of a second."""
    monkeypatch.setattr("cai.engines.endpoints.FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("cai.engines.server.FIRST_BACKOFF_SECONDS", 0.02)
