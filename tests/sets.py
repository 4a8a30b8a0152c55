"""A small run with datasets of it, and what changes a dataset's manifest so that every digest fits."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.card import card
from cai.dataset import KIND, file_entry, json_text
from cai.export import constitutions_of
from cai.findings import Findings
from cai.seal import sealed
from cai.settings import ExportSettings, LabelSettings, ReviseSettings
from cai.stages import export_stage, label_stage, revise_stage
from cai.store import Run
from cai.verify import verify
from tests.conftest import Quiet, write_jsonl
from tests.small import answer_by_script
from tests.test_verify import review_all

PROMPTS = 14


def revise(folder: Path, limit: int | None = None, **changes: Any) -> None:
    source = folder / "p.jsonl"
    if not source.exists():
        write_jsonl(source, [{"id": f"r{n}", "prompt": f"question {n} of {'many ' * (n % 3)}"} for n in range(PROMPTS)])
    settings = ReviseSettings(
        prompts=str(source), out=str(folder / "run"), engine="scripted", shard_rows=4, limit=limit, history="off",
        **{"gate_threshold": 0.4, **changes},
    )  # fmt: skip
    asyncio.run(revise_stage(settings, Quiet()))


def label(folder: Path, **changes: Any) -> None:
    settings = LabelSettings(
        run=str(folder / "run"), engine="scripted", judge_principles=2, history="off", review_share=1, **changes
    )
    asyncio.run(label_stage(settings, Quiet()))


def export(folder: Path, out: str = "set", **changes: Any) -> Path:
    settings = ExportSettings(run=str(folder / "run"), out=str(folder / out), **{"test_share": 0.3, **changes})
    return Path(asyncio.run(export_stage(settings, Quiet())).folder)


def look(path: Path, run: Path | None) -> Findings:
    return verify(path, run, None, Quiet())


def told(path: Path, run: Path) -> str:
    return "\n".join(map(str, look(path, run).differences))


def write_helpful(folder: Path) -> str:
    rows = [{"id": n, "prompt": f"help {n}", "response": f"gladly, {n} times {n + 1}"} for n in range(6)]
    return str(write_jsonl(folder / "helpful.jsonl", rows))


def make_finished(folder: Path) -> Path:
    """A run that people have reviewed, a dataset of it, and two versions of another."""
    with pytest.MonkeyPatch.context() as patch:
        answer_by_script(patch)
        revise(folder, limit=10)
        label(folder)
        export(folder, "sets", versions=True)
        revise(folder)
        label(folder)
        review_all(folder / "run")
        export(folder, "sets", versions=True)
        export(folder, trainer="llama-factory", near_duplicates=0.9, length_ratio=9.0)
        return folder


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, dict):
        return {**value, "x": 1}
    return 1 if value is None else [*value, "x"]


def forge(folder: Path, run: Path, change: Callable[[Any], object]) -> None:
    """Change a dataset's manifest, and make its card, every digest and the seal fit."""
    value: Any = json.loads((folder / "manifest.json").read_text())
    value.pop("sealed")
    change(value)
    (folder / "README.md").write_text(card(value, constitutions_of(Run(run))))
    value["files"][-1] = file_entry(folder, folder / "README.md", 0)
    (folder / "manifest.json").write_text(json_text(sealed(value, KIND)))


def change_at(path: tuple[Any, ...]) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = other(value[path[-1]])

    return change
