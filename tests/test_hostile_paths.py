"""Names in data that are paths: nothing is written outside of the folders that were named."""

import asyncio
from pathlib import Path

import pytest

from cai.settings import ExportSettings, GenerateSettings, LabelSettings, ReviseSettings
from cai.stages import export_stage, generate_stage, label_stage, revise_stage
from cai.store import open_run
from tests.conftest import Quiet, write_jsonl

IDS = (
    "../../../escaped", "/abs", "..", ".", "~", "~root/x", "a/b/c", "C:\\x", "$(touch x)", "`touch x`", "%2e%2e%2f",
    "*", "x" * 500, "part-00000.parquet", "../journal/part-00000", "-rf", "NUL",
    "\u2025/\uff0e\uff0e\uff0fx", "file:///etc/x",
)  # fmt: skip
NO_IDS = ("\x00", "a\nb", "x" * 501, "\u202e..", " ", "../\r")


def snapshot(folder: Path, ours: tuple[Path, ...]) -> dict[str, bytes | None]:
    """Everything below the folder but what lies in ours."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not any(path == one or one in path.parents for one in ours)
    }


def test_ids_that_are_paths_write_nothing_outside_of_the_run_and_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home, deep = tmp_path / "home", tmp_path / "some" / "what" / "deep"
    home.mkdir()
    deep.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(deep)
    told = "The assistant should say no and explain why it will not help with number"
    rows = [{"id": one, "prompt": f"question {n}", "source": "../../x"} for n, one in enumerate((*IDS, *NO_IDS))]
    prompts = write_jsonl(tmp_path / "p.jsonl", rows)
    evaluation = write_jsonl(tmp_path / "..%2fevil;x.jsonl", [{"text": f"{told} one"}])
    out, dataset, samples = deep / "run", deep / "set", deep / "samples"
    ours = (out, dataset, samples, deep / "history")
    before = snapshot(tmp_path, ours)
    revised = asyncio.run(
        revise_stage(
            ReviseSettings(prompts=str(prompts), out=str(out), engine="scripted", gate="off", failed_revision="keep"),
            Quiet(),
        )
    )
    counts = revised.entry["counts"]
    assert (counts["kept"], counts["dropped_by_reason"]) == (len(IDS), {"bad_id": len(NO_IDS)})
    asyncio.run(label_stage(LabelSettings(run=str(out), engine="scripted"), Quiet()))
    asyncio.run(
        generate_stage(GenerateSettings(prompts=str(prompts), out=str(samples), engine="scripted", limit=5), Quiet())
    )
    exporting = ExportSettings(
        run=str(out), out=str(dataset), helpful=str(samples), decontaminate=(str(evaluation),), trainer="llama-factory"
    )
    asyncio.run(export_stage(exporting, Quiet()))
    assert {row["row_id"] for row in open_run(str(out)).records("trajectories")} == set(IDS)
    assert snapshot(tmp_path, ours) == before
    assert sorted(path.name.split("-")[0] for path in ours[-1].iterdir()) == ["generate", "label", "revise"]
    names = {path.name for folder in (out, dataset, samples) for path in folder.rglob("*")}
    assert not names & {"escaped", "abs", "x", "c"} and all(len(name) < 50 for name in names)
