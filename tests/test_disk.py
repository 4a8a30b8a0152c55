"""A disk that is full, closed or taken away: one sentence that names the place, and nothing finished is lost."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cai import journal, stages
from cai.engines import Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import CannotWrite
from cai.export import KIND
from cai.folder import refuse_other_files
from cai.settings import ExportSettings, LabelSettings, ReviseSettings
from cai.stages import export_stage, label_stage, revise_stage
from tests.conftest import Quiet, table_bytes, write_jsonl
from tests.faults import Disk

Asked = list[str]
ROWS = 3


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The keys of the calls that the engine answers."""
    keys: Asked = []

    def answer(request: Request) -> Any:
        keys.append(request.key("scripted"))
        return derived_script(request)

    monkeypatch.setattr(stages, "open_engine", lambda spec: ScriptedEngine(answer))
    for name in ("load_constitution", "load_templates"):  # read once, since these tests run the stages often
        monkeypatch.setattr(stages, name, _once(getattr(stages, name)))
    return keys


def _once(load: Callable[..., Any]) -> Callable[..., Any]:
    loaded: dict[str, Any] = {}

    def load_once(*arguments: Any, **named: Any) -> Any:
        key = repr((arguments, named))
        return loaded[key] if key in loaded else loaded.setdefault(key, load(*arguments, **named))

    return load_once


def revise(folder: Path) -> None:
    """Two shards' worth of rows, one of them a drop."""
    prompts = folder.parent / "prompts.jsonl"
    if not prompts.exists():
        records = [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(ROWS)]
        write_jsonl(prompts, [*records, {"id": "bad", "prompt": ""}])
    settings = ReviseSettings(
        prompts=str(prompts), out=str(folder / "run"), engine="scripted", shard_rows=2, rounds=1, gate="off",
        rows_in_flight=1, revision_tries=1, principles="one",
    )  # fmt: skip
    asyncio.run(revise_stage(settings, Quiet()))


def label(folder: Path) -> None:
    settings = LabelSettings(run=str(folder / "run"), engine="scripted", judge_principles=1, rows_in_flight=1)
    asyncio.run(label_stage(settings, Quiet()))


def export(folder: Path) -> None:
    settings = ExportSettings(run=str(folder / "run"), out=str(folder / "set"))
    asyncio.run(export_stage(settings, Quiet()))


STAGES: dict[str, Callable[[Path], None]] = {"revise": revise, "label": label, "export": export}


def before(stage: str, folder: Path) -> Path:
    """A folder in which all stages before this one are finished."""
    folder.mkdir()
    for name, run in STAGES.items():
        if name == stage:
            return folder
        run(folder)
    raise KeyError(stage)


def journaled(folder: Path) -> set[str]:
    """The keys of the calls that the journal has in lines that are whole."""
    segments = sorted((folder / "run" / "journal").glob("*.jsonl"))
    return {entry["key"] for segment in segments for _, entry in journal._entries(segment, [])}


def files_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("stage", STAGES)
def test_wherever_the_disk_fills_up_the_place_is_named_and_the_same_command_goes_on(
    tmp_path: Path, asked: Asked, stage: str
):
    start = before(stage, tmp_path / "start")
    shutil.copytree(start, tmp_path / "unbroken")
    unbroken = Disk(tmp_path / "unbroken")
    with unbroken.full_after(1 << 60):
        STAGES[stage](tmp_path / "unbroken")
    wanted = table_bytes(tmp_path / "unbroken")
    for last in range(unbroken.done):
        folder = tmp_path / f"full-{last}"
        shutil.copytree(start, folder)
        asked.clear()
        with Disk(folder).full_after(last), pytest.raises(CannotWrite) as told:
            STAGES[stage](folder)
        assert str(folder) in str(told.value) and ": found no space left on the disk, expected room" in str(told.value)
        for name, content in table_bytes(folder).items():
            assert wanted[name] == content, f"{name} at {last}"
        refuse_other_files(folder / "set", KIND)
        with Disk(folder).full_after(1 << 60):
            STAGES[stage](folder)
        # What was in flight: one call of a row, and a pair's two, since both orders are asked at once.
        assert sum((Counter(asked) - Counter(set(asked))).values()) <= 2, last
        assert table_bytes(folder) == wanted, last
        assert journaled(folder) == journaled(tmp_path / "unbroken"), last
        left = [path for path in files_in(folder) if path.name.endswith(".tmp") or ".cai-" in str(path)]
        assert not left, last
        shutil.rmtree(folder)
