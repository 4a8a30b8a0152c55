"""The whole pipeline with the scripted engine: what it ends with, and what it finds out before it spends anything."""

import asyncio
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from cai import stages
from cai.constitution import load_constitution
from cai.engines import Engine, Request, Spec, open_engine, scripted
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import BadInput, CheckFailed
from cai.pipeline import Finished, pipeline
from cai.settings import CalibrateSettings, ExportSettings, GenerateSettings, PipelineSettings
from cai.settings_load import load_settings
from cai.stages import calibrate_stage, export_stage, generate_stage
from cai.store import open_run
from tests.conftest import Quiet, played_by, write_jsonl


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The purposes of all calls; the gate finds every second answer broken."""
    purposes: list[str] = []

    def answer(request: Request) -> Any:
        purposes.append(request.purpose)
        if request.purpose == "gate":
            return 0.9 if int(request.row_id[1:]) % 2 else 0.1
        return derived_script(request)

    played_by(monkeypatch, ScriptedEngine(answer))
    return purposes


def run(tmp_path: Path, rows: int = 30, **changes: Any) -> Finished:
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(rows)])
    given = {"prompts": str(prompts), "out": str(tmp_path / "run"), "engine": "scripted", "judge_principles": 2}
    settings = load_settings(PipelineSettings, None, {**given, **changes})
    return asyncio.run(pipeline(settings, Quiet()))


def test_it_ends_with_datasets_and_the_same_command_asks_nothing_again(tmp_path: Path, asked: list[str]):
    finished = run(tmp_path, failed_revision="keep")
    counts = finished.dataset.manifest["counts"]
    for config in ("sft", "preference", "reward", "kto"):
        written = sum(counts[config]["written"].values())
        loaded = load_dataset(str(tmp_path / "run-dataset"), config)
        assert sum(len(split) for split in loaded.values()) == written > 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run-dataset").rglob("*") if path.is_file()}
    asked.clear()
    run(tmp_path, failed_revision="keep")
    assert asked == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "run-dataset").rglob("*") if path.is_file()} == before


def test_where_nothing_is_revised_the_clean_answers_are_still_exported(tmp_path: Path, asked: list[str]):
    finished = run(tmp_path, rows=8, gate_threshold=1.0)
    assert finished.labelled.entry["counts"]["dropped_by_reason"] == {"no_pair": 8}
    counts = finished.dataset.manifest["counts"]
    assert sum(counts["sft"]["written"].values()) == 8 and not any(counts["preference"]["written"].values())
    assert "verdict" not in asked and "kept" not in asked


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decontaminate": ("nope.jsonl",)}, "nope.jsonl: found no such file"),
        ({"helpful": "nope.jsonl"}, "nope.jsonl"),
        ({"pairs": "samples"}, "pairs of samples with one sample per prompt"),
        ({"templates": "nowhere"}, "no such folder"),
        ({"dataset": "other"}, "a file or a link"),
        ({"dataset": "folder"}, "somebody else's"),
        ({"dataset": "."}, "a folder that it lies in"),
        ({"dataset": "run"}, "the run, or a folder"),
        ({"dataset": "other/set"}, "no writable folder"),
        ({"dataset": "set[1]"}, "a pattern"),
        ({"judge": "typo.yaml"}, "no script"),
        ({"judge_endpoint": "http://127.0.0.1:9/v1"}, "endpoints together with the engine 'scripted'"),
        ({"long_prompts": "shorten", "judge_endpoint": "http://127.0.0.1:9/v1"}, "shorten with a server"),
        ({"min_accuracy": 0.5}, "without gold"),
    ],
)
def test_what_a_later_stage_cannot_use_is_found_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str], changes: dict[str, Any], words: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").write_text("of somebody else")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "other").write_text("of somebody else")
    monkeypatch.setattr(stages, "open_engine", lambda spec: _open(spec, asked))
    with pytest.raises(BadInput, match=words):
        run(tmp_path, **changes)
    assert asked == [] and not (tmp_path / "run").exists()


def _open(spec: Spec, asked: list[str]) -> Engine:
    """The real engines, and of the scripted one whose calls are written down."""

    def answer(request: Request) -> Any:
        asked.append(request.purpose)
        return derived_script(request)

    return ScriptedEngine(answer) if spec.model is None and not spec.endpoints else open_engine(spec)


def test_other_labels_in_the_folder_are_found_before_new_rows_are_paid_for(tmp_path: Path, asked: list[str]):
    run(tmp_path, rows=6, failed_revision="keep")
    asked.clear()
    with pytest.raises(BadInput, match=r"other settings: tie_band"):
        run(tmp_path, rows=12, failed_revision="keep", tie_band=0.1)
    assert asked == []
    run(tmp_path, rows=12, failed_revision="keep", tie_band=0.1, replace=True)
    assert "response" in asked


def test_with_an_edited_constitution_the_first_message_names_what_mends_the_whole_run(tmp_path: Path, asked: list[str]):
    run(tmp_path, rows=4, failed_revision="keep")
    asked.clear()
    text = load_constitution("harmlessness").text
    (tmp_path / "mine.yaml").write_text(text.replace("version: ", "version: 9", 1))
    for more in ({}, {"replace": True}):
        with pytest.raises(
            BadInput, match=r"found a cai revise with other settings: .* Choose another --out, with --reuse"
        ):
            run(tmp_path, rows=4, failed_revision="keep", constitution=str(tmp_path / "mine.yaml"), **more)
    assert asked == []


def test_of_samples_that_nobody_has_labelled_an_export_says_that_labels_are_missing(tmp_path: Path, asked: list[str]):
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": "r1", "prompt": "question 1"}])
    sampling = GenerateSettings(prompts=str(prompts), out=str(tmp_path / "my run"), engine="scripted", history="off")
    asyncio.run(generate_stage(sampling, Quiet()))
    exporting = ExportSettings(run=str(tmp_path / "my run"), out=str(tmp_path / "set"))
    with pytest.raises(BadInput, match="found nothing to train on: no answer that was revised") as refused:
        asyncio.run(export_stage(exporting, Quiet()))
    assert refused.value.remedy == f"Give cai label '{tmp_path}/my run' first."


def test_each_judge_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]):
    monkeypatch.chdir(tmp_path)
    gold = write_jsonl(tmp_path / "g.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "x"}])
    for own in ({"engine": "scripted"}, {"model": "m"}, {"engine": "vllm", "model": "m", "adapter": "a"}):
        asyncio.run(calibrate_stage(CalibrateSettings(gold=str(gold), **own), Quiet()))
    assert len(list((tmp_path / "data" / "runs").glob("calibrate-*"))) == 3


def test_gold_and_answers_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]):
    monkeypatch.chdir(tmp_path)
    gold = write_jsonl(tmp_path / "g.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "x"}])
    run(tmp_path, rows=6, failed_revision="keep")
    measure = {"gold": str(gold), "engine": "scripted"}
    with pytest.raises(BadInput, match=r"the folder of a cai (label|revise)"):
        asyncio.run(calibrate_stage(CalibrateSettings(**measure, out=str(tmp_path / "run")), Quiet()))
    asyncio.run(calibrate_stage(CalibrateSettings(**measure, out=str(tmp_path / "gold")), Quiet()))
    asked.clear()
    with pytest.raises(BadInput, match="the folder of a cai calibrate"):
        run(tmp_path, rows=6, out=str(tmp_path / "gold"))
    assert asked == []


def test_a_judge_under_the_bar_stops_it_and_other_gold_is_judged_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
):
    monkeypatch.chdir(tmp_path)
    records = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": "x"} for n in range(12)]
    gold = write_jsonl(tmp_path / "g.jsonl", records)
    with pytest.raises(CheckFailed, match="under --min-accuracy"):
        run(tmp_path, gold=str(gold), min_accuracy=1.0)
    assert set(asked) == {"kept"} and not (tmp_path / "run").exists()
    write_jsonl(gold, [{**records[0], "chosen": "another"}, *records[1:]])
    run(tmp_path, gold=str(gold), min_accuracy=0.0, failed_revision="keep")
    assert len(list((tmp_path / "data" / "runs").glob("calibrate-*"))) == 2


@pytest.mark.parametrize("purpose", ["kept", "response", "revision"])
def test_a_constitution_and_templates_that_are_edited_meanwhile_are_used_as_they_were_at_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purpose: str
):
    """Edited at the first call for the gold, of revise, and at the last ones of revise."""
    monkeypatch.chdir(tmp_path)
    texts = load_constitution("harmlessness").text
    (tmp_path / "mine").mkdir()
    files = {tmp_path / "mine.yaml": texts, tmp_path / "mine" / "judge_alone.jinja": "{{ principle.comparison }} Good?"}
    for path, text in files.items():
        path.write_text(text)
    asked: list[Request] = []

    def answer(request: Request) -> Any:
        asked.append(request)
        if request.purpose == purpose:
            (tmp_path / "mine.yaml").write_text(texts.replace("answer", "EDITED"))
            (tmp_path / "mine" / "judge_alone.jinja").write_text("{{ principle.comparison }} EDITED?")
        return 0.9 if request.purpose == "gate" else derived_script(request)

    played_by(monkeypatch, ScriptedEngine(answer))
    gold = write_jsonl(tmp_path / "g.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "x"}])
    mine = {"constitution": "mine.yaml", "templates": "mine", "judge_mode": "pointwise", "failed_revision": "keep"}
    finished = run(tmp_path, rows=6, gold=str(gold), **mine)
    assert "EDITED" in (tmp_path / "mine.yaml").read_text() and {"kept", purpose} <= {one.purpose for one in asked}
    assert not [one for one in asked for turn in one.messages if "EDITED" in turn.content]
    made = [finished.revised.entry, finished.labelled.entry]
    made += [open_run(str(path)).manifest()["calibrate"] for path in (tmp_path / "data" / "runs").iterdir()]
    assert {one["texts"]["constitution_sha"] for one in made} == {sha256(texts.encode()).hexdigest()}
    assert len(made) == 3
    copies = list(tmp_path.rglob("inputs/*/*"))
    assert copies and not [path for path in copies if "EDITED" in path.read_text()]
    with pytest.raises(BadInput, match="other settings: constitution_sha"):
        run(tmp_path, rows=6, **mine)


@pytest.mark.parametrize(("judge", "loads"), [(None, 1), ("judge.yaml", 3)])
def test_a_model_that_answers_and_judges_is_loaded_once_and_another_judge_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: str | None, loads: int
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.yaml").write_text("latency_seconds: 0\n")
    gold = write_jsonl(
        tmp_path / "g.jsonl", [{"prompt": "q", "chosen": f"good {n}", "rejected": "x"} for n in range(4)]
    )
    loaded: list[ScriptedEngine] = []
    ended: list[ScriptedEngine] = []

    class Loaded(ScriptedEngine):
        async def __aenter__(self) -> "Loaded":
            assert len(loaded) == len(ended), "never two models at a time"
            loaded.append(self)
            return self

        async def __aexit__(self, *_: object) -> None:
            ended.append(self)

    monkeypatch.setattr(scripted, "ScriptedEngine", Loaded)
    run(tmp_path, rows=20, gold=str(gold), judge=judge, gate="off", failed_revision="keep")
    assert len(loaded) == loads and loaded == ended
