"""The three stages on a run as small as one with two shards and a drop can be, for tests that run them often."""

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai import export as exporting
from cai import stages
from cai.engines import Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.settings import ExportSettings, LabelSettings, ReviseSettings
from cai.stages import export_stage, label_stage, revise_stage
from tests.conftest import Quiet, played_by, write_jsonl

# The keys of the calls that the engine answered.
Asked = list[str]
# In one place, since the tables say where a row was read.
PROMPTS = Path(tempfile.mkdtemp(prefix="cai-tests-")) / "prompts.jsonl"
write_jsonl(PROMPTS, [{"id": "r0", "prompt": "question 0"}, {"id": "r1", "prompt": "question 1"}, {"prompt": ""}])
atexit.register(shutil.rmtree, PROMPTS.parent, ignore_errors=True)


def answer_by_script(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Let a scripted engine answer, and read constitutions and templates once, since these stages run often."""
    keys: Asked = []

    def answer(request: Request) -> Any:
        keys.append(request.key("scripted"))
        return derived_script(request)

    played_by(monkeypatch, ScriptedEngine(answer))
    for module, name in ((stages, "load_constitution"), (stages, "load_templates"), (exporting, "load_constitution")):
        monkeypatch.setattr(module, name, _once(getattr(module, name)))
    return keys


def _once(load: Callable[..., Any]) -> Callable[..., Any]:
    loaded: dict[str, Any] = {}

    def load_once(*arguments: Any, **named: Any) -> Any:
        texts = [Path(one).read_bytes() for one in arguments if isinstance(one, str) and Path(one).is_file()]
        key = repr((texts or arguments, named))
        return loaded[key] if key in loaded else loaded.setdefault(key, load(*arguments, **named))

    return load_once


def revise(folder: Path) -> Quiet:
    """Rows in one shard, and a drop in another."""
    settings = ReviseSettings(
        prompts=str(PROMPTS), out=str(folder / "run"), engine="scripted", shard_rows=2, rounds=1, gate="off",
        rows_in_flight=1, revision_tries=1, principles="one", history="off",
    )  # fmt: skip
    asyncio.run(revise_stage(settings, watch := Quiet()))
    return watch


def label(folder: Path) -> Quiet:
    settings = LabelSettings(
        run=str(folder / "run"), engine="scripted", judge_principles=1, rows_in_flight=1, history="off"
    )
    asyncio.run(label_stage(settings, watch := Quiet()))
    return watch


def export(folder: Path) -> Quiet:
    settings = ExportSettings(run=str(folder / "run"), out=str(folder / "set"))
    asyncio.run(export_stage(settings, watch := Quiet()))
    return watch


STAGES: dict[str, Callable[[Path], Quiet]] = {"revise": revise, "label": label, "export": export}


def before(stage: str, folder: Path) -> Path:
    """A folder in which all stages before this one are finished; with "" all are."""
    folder.mkdir()
    for name, run in STAGES.items():
        if name == stage:
            break
        run(folder)
    return folder
