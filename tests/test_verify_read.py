"""`cai verify` on what a stage has read: each row and drop is what the source and the answers make, also where every
digest was made to fit; and a source that has grown, was edited, is gone or lies elsewhere is no alarm."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cai import as_read, verify_source
from cai.as_read import file_as_read, reader_sha, still_has
from cai.audit import TABLES, count_stage
from cai.engines import Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import RequestRefused
from cai.findings import Findings
from cai.ids import digest
from cai.inputs import content_of
from cai.rows import Drop
from cai.settings import CalibrateSettings, ConstitutionTestSettings, LabelSettings, ReviseSettings
from cai.stages import calibrate_stage, constitution_stage, label_stage, revise_stage
from cai.store import Run
from cai.verify import verify
from cai.verify_again import item_of
from tests.conftest import Quiet, played_by, write_jsonl

Json = dict[str, Any]

RECORDS: list[Json] = [
    {"id": "kept", "prompt": "question 0", "topic": "locks"},
    {"id": "empty", "prompt": "question 1", "topic": "locks"},
    {"id": "failed", "prompt": "question 2"},
    {"id": "refused", "prompt": "question 3"},
    {"id": "bad", "prompt": ""},
    {"id": "last", "prompt": "question 5", "topic": "cars"},
]  # fmt: skip


def answer(request: Request) -> Any:
    if request.row_id == "empty":
        return " "
    if request.row_id == "failed" and request.purpose == "revision":
        return ""
    if request.row_id == "refused" and request.purpose == "critique":
        raise RequestRefused("too long")
    return derived_script(request)


def revise(prompts: str, run: Path, **more: Any) -> None:
    settings = ReviseSettings(
        prompts=prompts, out=str(run), engine="scripted", shard_rows=3, rounds=1, gate="off", revision_tries=2,
        principles="one", history="off", **more,
    )  # fmt: skip
    asyncio.run(revise_stage(settings, Quiet()))


def label(run: Path) -> None:
    settings = LabelSettings(run=str(run), engine="scripted", judge_principles=1, history="off")
    asyncio.run(label_stage(settings, Quiet()))


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("read") / "finished"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        played_by(patch, ScriptedEngine(answer))
        patch.chdir(folder)
        write_jsonl(Path("p.jsonl"), RECORDS)
        revise("p.jsonl", folder / "run")
        label(folder / "run")
    return folder


@pytest.fixture
def finished(tmp_path: Path, made_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with prompts, which the run names without a folder, and a run of them."""
    played_by(monkeypatch, ScriptedEngine(answer))
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made_once, tmp_path / "finished")


def look(run: Path) -> Findings:
    return verify(run, None, None, Quiet())


def told(folder: Path) -> str:
    return "\n".join(map(str, look(folder / "run").differences))


def forge(run: Path, stage: str, path: Path, change: Callable[[Json], None], row_id: str) -> None:
    """Change a row of a table or a drop, and everything in the run that answers for it."""
    table = pq.read_table(path)
    rows: list[Json] = table.to_pylist()
    new = dict[str, str]()
    for row in rows:
        was = _content(row)
        if row_id in (row.get("pair_id"), row["row_id"]):
            change(row)
        new[was] = _content(row)
    with Run(run) as opened:
        opened._write(path, pa.Table.from_pylist(rows, schema=table.schema))
        for one in TABLES[stage]:
            footed = opened.shard(one, int(path.stem[-5:]))
            there = pq.read_table(footed)
            mark = json.loads(there.schema.metadata[b"cai"])
            mark["inputs"] = [new.get(sha, sha) for sha in mark["inputs"]]
            opened._write(footed, there.replace_schema_metadata({"cai": json.dumps(mark, sort_keys=True)}))
        _enter(opened, stage)


def _content(row: Json) -> str:
    return content_of(Drop(**row) if "reason" in row else item_of(row))


def _enter(run: Run, stage: str) -> None:
    entry = run.manifest()[stage]
    entry |= {"files": run.files(stage, TABLES[stage]), "counts": count_stage(run, stage)}
    last = TABLES[stage][-1]
    shards = [run.shard(last, index) for index in run.finished_shards(last)]
    entry["prompts"]["sha"] = digest(
        [digest(json.loads(pq.read_schema(one).metadata[b"cai"])["inputs"]) for one in shards]
    )
    run.write_manifest(stage, entry)


def forge_row(folder: Path, change: Callable[[Json], None], row_id: str = "kept") -> None:
    index = 0 if row_id in ("kept", "empty", "failed") else 1
    forge(folder / "run", "revise", Run(folder / "run").shard("trajectories", index), change, row_id)


def forge_drop(folder: Path, change: Callable[[Json], None], row_id: str) -> None:
    index = 0 if row_id in ("kept", "empty", "failed") else 1
    forge(folder / "run", "revise", Run(folder / "run").drops("revise", index), change, row_id)


def put(**values: Any) -> Callable[[Json], None]:
    return lambda row: row.update(values)


# Untouched


def test_rows_and_drops_that_nobody_has_touched_are_what_the_source_and_the_answers_make(finished: Path):
    found = look(finished / "run")
    assert found.differences == [] and found.notes == []
    assert found.looked["records read again"] == 6 and found.looked["drops"] == 4
    assert found.looked["drops worked out again"] == 3, "all but the refused one"


def test_the_source_is_found_from_any_folder_as_long_as_both_lie_as_they_did(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere").mkdir()
    write_jsonl(tmp_path / "elsewhere" / "p.jsonl", [{"id": "x", "prompt": "quite another file of that name"}])
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = look(finished / "run")
    assert found.differences == [] and found.notes == [] and found.looked["records read again"] == 6


# Changed, with every digest made to fit


@pytest.mark.parametrize(
    ("row_id", "change", "words"),
    [
        ("failed", put(reason="cut_off_revision"), "in 'reason' 'cut_off_revision', expected what the answers in the"),
        ("failed", put(detail="it was bad"), "in 'detail' 'it was bad', expected what the answers in the journal make"),
        ("failed", put(raw="a slander"), "in 'raw' 'a slander', expected what the answers in the journal make: ''"),
        ("failed", put(source="p.jsonl:9"), "in 'source' 'p.jsonl:9', expected what the answers in the journal make"),
        ("failed", put(row_id="other"), "in 'row_id' 'other', expected what the answers in the journal make: 'failed'"),
        ("failed", put(reason="refused_by_engine", detail="revision: too long", raw=""), "a refusal of its revision"),
        ("empty", put(reason="refused_by_engine", detail="response: too long", raw=""), "a refusal of its response"),
        ("empty", put(reason="not_readable"), "in 'reason' 'not_readable'"),
        ("refused", put(reason="empty_response"), "a drop of a row whose critique is not in the journal"),
        ("refused", put(detail="response: too long"), "a refusal of its response, expected none, since the journal"),
        ("refused", put(raw="a slander"), "in 'raw' 'a slander'"),
        ("bad", put(reason="no_prompt"), "found 3 records, and another one in place 2, expected the 3 that "),
        ("bad", put(raw='{"prompt": "fine"}'), "found 3 records, and another one in place 2, expected the 3 that "),
        ("bad", put(detail="it was bad"), "in 'detail' 'it was bad', expected what"),
        ("bad", put(source="p.jsonl:1"), "in 'source' 'p.jsonl:1', expected what"),
    ],
)
def test_a_drop_that_is_not_what_became_of_its_record_is_found(
    finished: Path, row_id: str, change: Callable[[Json], None], words: str
):
    forge_drop(finished, change, row_id)
    found = told(finished)
    assert words in found and "bytes" not in found, found


def test_a_row_that_somebody_has_made_a_drop_is_found(finished: Path):
    drops, rows = Run(finished / "run").drops("revise", 0), Run(finished / "run").shard("trajectories", 0)
    row = pq.read_table(rows).to_pylist()[0]
    drop = {
        "row_id": "kept",
        "stage": "revise",
        "reason": "empty_response",
        "detail": "the model answered with nothing",
    }
    drop |= {"raw": row["response"], "source": row["source"]}
    with Run(finished / "run") as run:
        was = pq.read_table(drops)
        run._write(drops, pa.Table.from_pylist([drop, *was.to_pylist()], schema=was.schema))
        table = pq.read_table(rows)
        mark = json.loads(table.schema.metadata[b"cai"]) | {"dropped": 3}
        run._write(rows, table.slice(0, 0).replace_schema_metadata({"cai": json.dumps(mark, sort_keys=True)}))
        _enter(run, "revise")
    assert "found a drop, expected a row that is kept, as the answers in the journal make it." in told(finished)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(extra='{"topic": "cars"}'), "found in 'extra' '{\"topic\": \"cars\"}', expected what "),
        (put(source="p.jsonl:7"), "found in 'source' 'p.jsonl:7', expected what "),
        (put(prompt_id="q"), "found in 'prompt_id' 'q', expected what "),
        (put(prompt=[{"role": "user", "content": "x"}]), "found in 'prompt' [{'role': 'user', 'content': 'x'}], expec"),
        (put(row_id="other", prompt_id="other"), "found 3 records, and another one in place 1, expected the 3 that "),
    ],
)
def test_a_row_that_is_not_what_was_read_is_found(finished: Path, change: Callable[[Json], None], words: str):
    forge_row(finished, change)
    found = told(finished)
    assert words in found and "p.jsonl" in found and "bytes" not in found, found


def test_records_that_were_taken_out_of_the_run_are_found_shard_and_all(finished: Path):
    shutil.rmtree(finished / "run" / "labels")
    for path in (finished / "run").glob("*/*00001*"):
        path.unlink()
    with Run(finished / "run") as run:
        run.write_manifest("label", None)
        entry = run.manifest()["revise"]
        entry["prompts"]["rows"] = 3
        run.write_manifest("revise", entry)
        _enter(run, "revise")
    assert "cai revise: found fewer shards than" in told(finished)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(source="p.jsonl:7"), "in 'source' 'p.jsonl:7', expected what the table trajectories has"),
        (put(position=7), "in 'position' 7, expected what the table trajectories has"),
        (put(prompt_id="q"), "in 'prompt_id' 'q', expected what the table trajectories has"),
    ],
)
def test_a_pair_that_is_not_what_the_run_s_answers_make_is_found(
    finished: Path, change: Callable[[Json], None], words: str
):
    run = Run(finished / "run")
    forge(run.folder, "label", run.shard("pairs", 0), change, "kept/response+revision-1")
    assert words in told(finished)


MADE_OF = (
    "cai label: made_of in manifest.json does not fit the run's answers: either they have been worked on since it was "
    "labelled, or somebody has changed it."
)


def test_a_made_of_that_somebody_has_changed_is_not_said_to_be_work_on_the_run(finished: Path):
    say_of_prompts(finished / "run", "label", made_of="0" * 64)
    assert MADE_OF in look(finished / "run").notes
    say_of_prompts(finished / "run", "label", made_of=None)
    assert MADE_OF.rstrip(".") + ". So no pairs were made anew." in look(finished / "run").notes


def test_the_pairs_of_a_run_that_has_grown_since_are_held_against_its_answers(finished: Path):
    grown(finished / "p.jsonl")
    revise("finished/p.jsonl", finished / "run")
    found, run = look(finished / "run"), Run(finished / "run")
    assert found.differences == [] and found.looked["pairs made anew"] == 2
    assert MADE_OF in found.notes
    forge(run.folder, "label", run.shard("pairs", 0), put(position=7), "kept/response+revision-1")
    assert "pairs/part-00000.parquet, 'kept/response+revision-1': found in 'position' 7, expected" in told(finished)


def test_a_row_that_is_kept_at_last_in_a_run_that_has_grown_is_no_other_answer(
    finished: Path, monkeypatch: pytest.MonkeyPatch
):
    path, run = write_jsonl(Path("q.jsonl"), [RECORDS[3], RECORDS[0]]), Run(finished / "new")
    revise(str(path), run.folder)
    label(run.folder)
    played_by(monkeypatch, ScriptedEngine(derived_script))
    write_jsonl(path, [RECORDS[3], RECORDS[0], RECORDS[5]])
    revise(str(path), run.folder)
    assert [row["row_id"] for row in run.records("trajectories")] == ["refused", "kept", "last"]
    assert look(run.folder).differences == []
    assert [pair["position"] for pair in run.records("pairs")] == [0]
    forge(run.folder, "label", run.shard("pairs", 0), put(a="other words"), "kept/response+revision-1")
    expected = "another one in place 1, expected the 3 that the table trajectories gives."
    assert f"pairs/part-00000.parquet: found 1 records, and {expected}" in "\n".join(
        map(str, look(run.folder).differences)
    )


def test_a_change_in_the_answers_does_not_excuse_the_same_change_in_their_pairs(finished: Path):
    run = Run(finished / "run")
    forge_row(finished, put(prompt_id="q", source="p.jsonl:7"))
    found = told(finished)
    assert "pairs/part-00000.parquet, 'kept/response+revision-1': found in 'prompt_id' 'kept', expected what" in found
    forge(
        run.folder, "label", run.shard("pairs", 0), put(prompt_id="q", source="p.jsonl:7"), "kept/response+revision-1"
    )
    assert "'kept': found the sample 0 of 'q', expected the one that its row_id says." in told(finished)


def test_a_drop_of_a_pair_is_worked_out_too(finished: Path, monkeypatch: pytest.MonkeyPatch):
    equal = {("kept", "response"), ("kept", "revision")}

    def same(request: Request) -> Any:
        if request.purpose == "kept" and request.row_id == "last":
            raise RequestRefused("too long")
        return "the same answer" if (request.row_id, request.purpose) in equal else answer(request)

    played_by(monkeypatch, ScriptedEngine(same))
    prompts = write_jsonl(finished / "q.jsonl", [*RECORDS, {"id": "one more", "prompt": "question 6"}])
    revise(str(prompts), finished / "new")
    label(finished / "new")
    drops = {drop["row_id"]: drop for drop in Run(finished / "new").dropped("label", "labels")}
    assert (drops["kept"]["reason"], drops["last"]["reason"]) == ("no_pair", "refused_by_engine")
    found = look(finished / "new")
    assert found.differences == [] and found.notes == []
    for row_id, index in (("kept", 0), ("last", 1)):
        run = Run(finished / "new")
        forge(run.folder, "label", run.drops("label", index), put(source="p.jsonl:7"), row_id)
    assert str(look(finished / "new").differences).count("in 'source' 'p.jsonl:7'") == 2


# The source is another one now


def grown(path: Path) -> None:
    path.write_text(path.read_text() + '{"id": "more", "prompt": "question 6"}\n' * 9)


def edited(path: Path) -> None:
    path.write_text(path.read_text().replace("locks", "keys").replace("question 5", "question five"))


def without_a_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def with_another_end(path: Path) -> None:
    path.write_text(path.read_text().rstrip("\n") + " \n")


def of_no_use(path: Path) -> None:
    path.write_text('{"question": "x"}\n')


def gone(path: Path) -> None:
    path.unlink()


def moved(path: Path) -> None:
    path.rename(path.with_name("renamed.jsonl"))


CHANGES = [grown, edited, without_a_line, with_another_end, of_no_use, gone, moved]


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_a_source_that_is_another_one_now_gives_no_alarm_and_it_is_said(finished: Path, change: Callable[[Path], None]):
    change(finished / "p.jsonl")
    found = look(finished / "run")
    assert found.differences == []
    said = {
        grown: [],
        gone: ["NOT CHECKED against its source, since p.jsonl is not there any more", "3 dropped rows were"],
        moved: ["NOT CHECKED against its source, since p.jsonl is not there any more", "3 dropped rows were"],
        of_no_use: ["is not what it was", "was not read any further", "dropped rows were not worked out again"],
        edited: ["is not what it was when it was read, so a difference from it is none of the run's: 3 of 6 records"],
        without_a_line: ["is not what it was when it was read", "dropped rows were not worked out again"],
        with_another_end: ["is not what it was when it was read, so a difference from it is none of the run's: 6 of 6"],
    }[change]
    notes = "\n".join(found.notes)
    assert all(words in notes for words in said) and bool(notes) == bool(said), notes


def test_a_source_that_has_grown_is_still_what_the_rows_are_held_against(finished: Path):
    grown(finished / "p.jsonl")
    assert look(finished / "run").looked["drops worked out again"] == 3
    forge_row(finished, put(extra="{}"), "last")
    assert "found in 'extra' '{}', expected what" in told(finished)


def test_a_source_that_has_grown_within_the_last_shard_gives_no_alarm(finished: Path):
    path = write_jsonl(finished / "q.jsonl", RECORDS[:5])
    revise(str(path), finished / "new")
    grown(path)
    found = look(finished / "new")
    assert found.differences == [] and found.notes == [] and found.looked["records read again"] == 5


@pytest.mark.parametrize("change", [edited, gone, without_a_line])
def test_without_its_source_a_drop_s_text_is_an_answer_in_the_journal(finished: Path, change: Callable[[Path], None]):
    forge_drop(finished, put(raw="a slander"), "empty")
    change(finished / "p.jsonl")
    assert "'empty': found a text that is no answer in the journal, expected what the model said." in told(finished)


def test_of_an_edited_source_the_records_that_were_read_still_show_a_changed_drop(finished: Path):
    forge_drop(finished, put(reason="cut_off_revision"), "failed")
    edited(finished / "p.jsonl")
    assert "in 'reason' 'cut_off_revision'" in told(finished)


def test_what_was_read_by_another_version_gives_no_alarm(finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify_source, "reader_sha", lambda: "another")
    found = look(finished / "run")
    assert found.differences == [] and found.looked["drops worked out again"] == 3
    assert any("another version of cai, of Python or of a library read" in note for note in found.notes)
    forge_row(finished, put(source="p.jsonl:7"))
    assert told(finished) == ""


def test_a_run_that_wrote_down_less_gives_no_alarm(finished: Path):
    with Run(finished / "run") as run:
        for stage in ("revise", "label"):
            for table in TABLES[stage]:
                for index in run.finished_shards(table):
                    old = pq.read_table(run.shard(table, index))
                    mark = json.loads(old.schema.metadata[b"cai"])
                    del mark["places"]
                    run._write(run.shard(table, index), old.replace_schema_metadata({"cai": json.dumps(mark)}))
        entries = {stage: run.manifest()[stage] for stage in ("revise", "label")}
        for stage, entry in entries.items():
            entry["files"] = run.files(stage, TABLES[stage])
            for name in ("file", "read_by", "other_places"):
                del entry["prompts"][name]
            run.write_manifest(stage, entry)
            entry["prompts"]["made_of"] = entry["prompts"]["made_of"] and run.files_sha("revise")
            run.write_manifest(stage, entry)
    found = look(finished / "run")
    assert found.differences == [] and found.looked["drops worked out again"] == 3 + 0
    assert any("does not say what" in note and "6 of 6 records are as the run has them" in note for note in found.notes)
    # It goes on as ever, and then of the old shards only the content is held against the source.
    grown(finished / "p.jsonl")
    revise("finished/p.jsonl", finished / "run")
    assert Run(finished / "run").manifest()["revise"]["prompts"]["other_places"] == [0, 1]
    found = look(finished / "run")
    assert found.differences == [] and any("of 2 shards, which an earlier session read" in note for note in found.notes)


def test_rows_that_were_read_from_a_file_of_another_name_before_are_held_against_it_without_their_places(
    finished: Path,
):
    moved(finished / "p.jsonl")
    path = finished / "renamed.jsonl"
    path.write_text("\n" + path.read_text() + '{"id": "more", "prompt": "question 6"}\n')
    revise(str(path), finished / "run")
    label(finished / "run")
    assert Run(finished / "run").manifest()["revise"]["prompts"]["other_places"] == [0, 1]
    found = look(finished / "run")
    assert found.differences == [] and found.looked["drops worked out again"] == 3
    assert [note for note in found.notes if "of 2 shards, which an earlier session read" in note]
    forge_row(finished, put(extra="{}"))
    assert "found in 'extra' '{}', expected what" in told(finished)


def test_a_dataset_of_the_hub_is_not_fetched(finished: Path, monkeypatch: pytest.MonkeyPatch):
    with Run(finished / "run") as run:
        entry = run.manifest()["revise"]
        entry["prompts"] |= {"source": "datasets:somebody/prompts", "file": None}
        run.write_manifest("revise", entry)

    def fetch(_: str) -> Any:
        raise AssertionError("fetched")

    monkeypatch.setattr("cai.sources._datasets", fetch)
    found = look(finished / "run")
    assert found.differences == []
    assert "NOT CHECKED against its source, since datasets:somebody/prompts is not fetched." in found.notes[0]


# What a limit has left


def say_of_prompts(folder: Path, stage: str, **values: Any) -> None:
    """Write other values of a stage's source into the manifest, and seal it."""
    with Run(folder) as run:
        entry = run.manifest()[stage]
        entry["prompts"] |= values
        run.write_manifest(stage, entry)


@pytest.mark.parametrize(("limit", "left"), [(2, True), (6, False), (None, False)])
def test_what_a_limit_has_left_is_held_against_the_source(finished: Path, limit: int | None, left: bool):
    run = finished / "new"
    revise("finished/p.jsonl", run, limit=limit)
    label(run)
    assert look(run).differences == []
    say_of_prompts(run, "revise", unread=not left)
    has = f"{left}, since finished/p.jsonl has {'more' if left else 'no more'}"
    assert list(map(str, look(run).differences)) == [
        f"manifest.json, cai revise, prompts, unread: found {not left}, expected {has}."
    ]
    # What is there now says nothing of what was left when the file was shorter, or another one.
    grown(finished / "p.jsonl")
    assert look(run).differences == []


def test_what_a_limit_has_left_of_the_run_s_own_rows_is_compared_as_long_as_they_are_the_same(finished: Path):
    settings = LabelSettings(
        run=str(finished / "run"), engine="scripted", judge_principles=1, history="off", limit=1, replace=True
    )
    asyncio.run(label_stage(settings, Quiet()))
    left = look(finished / "run")
    assert left.differences == []
    say_of_prompts(finished / "run", "label", unread=False)
    assert "cai label, prompts, unread: found False, expected True, since the table trajectories" in told(finished)
    say_of_prompts(finished / "run", "label", unread=None)
    assert told(finished) == ""


# Gold


def test_gold_pairs_and_the_examples_of_a_constitution_are_held_against_what_they_were_read_from(
    finished: Path, tmp_path: Path
):
    gold = write_jsonl(tmp_path / "gold.jsonl", [{"prompt": "q", "chosen": "yes", "rejected": "no"}, {"prompt": "q"}])
    given = {"engine": "scripted", "judge_principles": 1}
    asyncio.run(calibrate_stage(CalibrateSettings(gold=str(gold), out=str(tmp_path / "a"), **given), Quiet()))
    asyncio.run(constitution_stage(ConstitutionTestSettings(out=str(tmp_path / "b"), engine="scripted"), Quiet()))
    for name, counted in (("a", "records read again"), ("b", "examples made anew")):
        found = look(tmp_path / name)
        assert found.differences == [] and found.notes == [] and found.looked[counted] >= 2
        run = Run(tmp_path / name)
        row_id = next(run.records("pairs"))["row_id"]
        forge(run.folder, "calibrate", run.shard("pairs", 0), put(source="elsewhere:1"), row_id)
        assert "found in 'source' 'elsewhere:1', expected what" in str(look(tmp_path / name).differences[0])


# The file as it was read


def test_a_file_still_has_what_was_read_if_it_has_only_grown_by_whole_lines(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}')
    was = file_as_read(str(path))
    assert was is not None and still_has(path, was)
    for end, expected in ((' \n{"prompt": "b"}\n', False), ('\n{"prompt": "b"}\n', True)):
        path.write_text('{"prompt": "a"}' + end)
        assert still_has(path, was) == expected
    path.write_text('{"prompt": "b"}')
    assert not still_has(path, was) and not still_has(tmp_path / "none", was)
    path.write_text("{")
    assert not still_has(path, was)


def test_a_file_that_changes_while_it_is_read_is_not_said_to_be_what_was_read(
    finished: Path, monkeypatch: pytest.MonkeyPatch
):
    path, read = finished / "p.jsonl", as_read.file_as_read

    def then_more(spec: str | None) -> Json | None:
        found = read(spec)
        grown(path)
        return found

    monkeypatch.setattr("cai.stage_plan.file_as_read", then_more)
    revise(str(path), finished / "new", limit=6)
    assert Run(finished / "new").manifest()["revise"]["prompts"]["file"] is None
    assert len(reader_sha()) == 64
