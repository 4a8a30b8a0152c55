"""Three nights over a source that grows: only what is new is asked, and each night leaves a version and its figures."""

import asyncio
import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from datasets import load_dataset

from cai import stages
from cai.cli import cai, run_cli
from cai.engines import Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.pipeline import Finished, pipeline
from cai.settings import PipelineSettings
from cai.settings_load import load_settings
from tests.conftest import Quiet, write_jsonl
from tests.test_history import REFUSAL
from tests.test_versions import where

SVG = "{http://www.w3.org/2000/svg}"


def night(folder: Path, rows: int, **changes: Any) -> tuple[Finished, Quiet]:
    write_jsonl(folder / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(rows)])
    given = {
        "prompts": str(folder / "p.jsonl"), "out": str(folder / "run"), "dataset": str(folder / "sets"),
        "engine": "scripted", "gate": "off", "rounds": 1, "principles": "one", "judge_principles": 1,
        "gold": str(folder / "gold.jsonl"), "shard_rows": 16, "failed_revision": "keep", "versions": True,
    }  # fmt: skip
    settings = load_settings(PipelineSettings, None, {**given, **changes})
    return asyncio.run(pipeline(settings, watch := Quiet())), watch


def test_three_nights_ask_for_new_rows_only_and_leave_three_versions_and_three_sessions_of_each_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "gold.jsonl", [{"prompt": "q", "chosen": f"good {n}", "rejected": "x"} for n in range(3)])
    asked: list[Request] = []
    refuse = False

    def answer(request: Request) -> Any:
        asked.append(request)
        odd = request.choices is None and request.row_id[0] == "r" and int(request.row_id[1:]) % 2
        return REFUSAL if refuse and odd else derived_script(request)

    monkeypatch.setattr(stages, "open_engine", lambda spec: ScriptedEngine(answer))
    done, splits = 0, dict[str, set[str]]()
    for number, rows in enumerate((40, 90, 200), start=1):
        refuse = number == 3
        asked.clear()
        finished, watch = night(tmp_path, rows)
        assert (finished.revised.entry["counts"]["read"], finished.dataset.folder) == (
            rows, str(tmp_path / "sets" / f"v{number:04d}")
        )  # fmt: skip
        new = {f"r{n}" for n in range(done, rows)}
        answered = [request.row_id for request in asked if request.purpose == "response"]
        assert sorted(answered) == sorted(new), "each new row once, and no old one"
        if number > 1:
            assert {request.row_id for request in asked} <= new, "nor are old pairs or gold judged again"
            assert "kept" in {request.purpose for request in asked}, "but new pairs are"
        version = finished.dataset.manifest["version"]
        changes = pq.read_table(tmp_path / "sets" / f"v{number:04d}" / "changes.parquet") if number > 1 else None
        if changes is not None:
            told = [row for row in changes.to_pylist() if row["config"] == "sft"]
            kinds = Counter(row["change"] for row in told)
            assert {row["row_id"] for row in told if row["change"] == "added"} <= new and kinds["added"] > 0
            assert set(kinds) == {"added"}
            assert version["before"]["name"] == f"v{number - 1:04d}"
        now = where(tmp_path / "sets" / f"v{number:04d}")
        assert {key: now[key] for key in splits} == splits, "no row changes its split"
        splits, done = now, rows
    asked.clear()
    finished, watch = night(tmp_path, 200)
    assert asked == [] and finished.dataset.folder.endswith("v0003")
    assert any("Nothing is new since" in sentence for sentence in watch.said)
    assert sorted(path.name for path in (tmp_path / "sets").iterdir()) == ["v0001", "v0002", "v0003"]
    assert sum(len(split) for split in load_dataset(str(tmp_path / "sets" / "v0001"), "sft").values()) <= 40
    _read_history(tmp_path)


def _read_history(folder: Path) -> None:
    told = CliRunner().invoke(cai, ["report", "--history", "history", "--plot", "figures.svg", "--json"])
    assert told.exit_code == 0, told.output
    sessions = json.loads(told.stdout)
    assert [(one["stage"], one["first_row"]) for one in sessions if one["stage"] == "revise"] == [
        ("revise", 0), ("revise", 40), ("revise", 90)
    ]  # fmt: skip
    assert sum(one["stage"] == "label" for one in sessions) == 3
    shifted = [
        one["figures"]["refusal_rate"] for one in sessions if one["figures"].get("refusal_rate", {}).get("shifted")
    ]
    assert len(shifted) == 1 and shifted[0]["mean"] == 0.5 and shifted[0]["earlier"] == 0
    table = CliRunner().invoke(cai, ["report", "--history", "history"], terminal_width=200, env={"COLUMNS": "200"})
    assert "cai revise on" in table.output and "! 0.5 (0)" in table.output and "shifts (marked" in table.output
    root = ET.parse(folder / "figures.svg").getroot()
    hints = [
        one.findtext(f"{SVG}title") or ""
        for one in root.iter(f"{SVG}g")
        if one.get("id", "").startswith("drawing-point-")
    ]
    assert len(hints) == sum(len(one["figures"]) for one in sessions)
    shifts = [hint for hint in hints if "shifted" in hint]
    assert len(shifts) == sum(figure["shifted"] for one in sessions for figure in one["figures"].values())
    assert any("shifted from 0;" in hint for hint in shifts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "found nothing, expected a run, or --history FOLDER"),
        (["run", "--history", "h"], "found a run and --history"),
        (["--history", "nowhere"], "--history nowhere: found no such folder"),
        (["--history", "empty"], "--history empty: found no figures, expected those of a finished session"),
        (["run", "--plot", "a.svg"], "found a run, expected --history FOLDER"),
    ],
)
def test_a_history_that_is_not_there_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as end:
        run_cli(cai, ["report", *arguments])
    assert end.value.code == 2 and words in capsys.readouterr().err
