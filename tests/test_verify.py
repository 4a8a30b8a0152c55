"""`cai verify`: nothing is found in what nobody has touched, also after a kill; and what somebody has changed is named,
also where every digest was made to fit."""

import asyncio
import builtins
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.flips import flips
from cai.audit import TABLES, count_stage
from cai.dataset import KIND, file_entry, json_text
from cai.errors import BadInput
from cai.findings import Findings
from cai.ids import digest
from cai.inputs import content_of
from cai.review import TOLD, as_written
from cai.seal import sealed, stages_text
from cai.settings import ExportSettings, LabelSettings, ReviseSettings
from cai.stages import export_stage, label_stage, revise_stage
from cai.store import Run
from cai.verify import verify
from cai.verify_again import item_of
from tests.conftest import Quiet, write_jsonl
from tests.faults import Kill, Killed
from tests.small import PROMPTS, STAGES, answer_by_script, before, label


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        answer_by_script(patch)
        return before("", tmp_path_factory.mktemp("verify") / "finished")


@pytest.fixture
def finished(tmp_path: Path, made_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which every stage is finished."""
    answer_by_script(monkeypatch)
    return shutil.copytree(made_once, tmp_path / "finished")


def look(path: Path, run: Path | None = None) -> Findings:
    return verify(path, run or path.parent / "run", None, Quiet())


def told(path: Path) -> str:
    return "\n".join(map(str, look(path).differences))


# Untouched


def test_in_a_run_and_a_dataset_that_nobody_has_touched_nothing_is_found_and_it_says_what_was_looked_at(
    made_once: Path,
):
    run, dataset = look(made_once / "run"), look(made_once / "set")
    assert run.differences == [] and run.notes == [] and not run.unfinished
    files = [path for path in (made_once / "run").rglob("*") if path.is_file()]
    assert run.looked["files"] == len(files)
    journal = sum(path.read_bytes().count(b"\n") for path in (made_once / "run" / "journal").iterdir())
    assert run.looked["calls in the journal"] == run.looked["answers held against the journal"] == journal
    assert run.looked["rows"] == 8 and run.looked["drops"] == 1 and run.looked["pairs made anew"] == 2
    assert dataset.differences == [] and dataset.notes == []
    assert dataset.looked["files"] == sum(path.is_file() for path in (made_once / "set").rglob("*"))
    assert dataset.looked["rows followed back"] == dataset.looked["rows"] == 10
    assert dataset.looked["manifests of the run, by their sha256"] == 1


def test_verifying_writes_nothing(finished: Path):
    there = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    os.chmod(finished / "run", 0o555)
    look(finished / "run"), look(finished / "set")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == there


MORE = PROMPTS.with_name("more.jsonl")
write_jsonl(MORE, [*map(json.loads, PROMPTS.open()), {"prompt": ""}, {"id": "r2", "prompt": "question 2"}])


def grow(folder: Path) -> None:
    """More rows behind those that the run has: the shard of which there was only a part is made anew."""
    settings = ReviseSettings(
        prompts=str(MORE), out=str(folder / "run"), engine="scripted", shard_rows=2, rounds=1,
        gate="off", rows_in_flight=1, revision_tries=1, principles="one", history="off",
    )  # fmt: skip
    asyncio.run(revise_stage(settings, Quiet()))


def label_anew(folder: Path) -> None:
    """With other settings, over the labels that are there."""
    settings = LabelSettings(
        run=str(folder / "run"), engine="scripted", judge_principles=2, pairs="all", replace=True, rows_in_flight=1,
        history="off",
    )  # fmt: skip
    asyncio.run(label_stage(settings, Quiet()))


WORK: dict[str, tuple[str, Callable[[Path], object]]] = {
    "revise": ("revise", STAGES["revise"]),
    "label": ("label", STAGES["label"]),
    "more rows": ("", grow),
    "labels anew": ("", label_anew),
    "a review": ("", lambda folder: review_all(folder / "run")),
}


@pytest.mark.parametrize("what", WORK)
def test_wherever_a_stage_is_killed_what_it_leaves_is_no_difference(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
):
    answer_by_script(monkeypatch)
    stage, work = WORK[what]
    ready = before(stage, tmp_path / "ready")
    unbroken = Kill(shutil.copytree(ready, tmp_path / "unbroken") / "run")
    with unbroken.at(1 << 60):
        work(tmp_path / "unbroken")
    assert told(tmp_path / "unbroken" / "run") == ""
    seen, lock = set[bool](), ""
    # The last thing that is done is that the lock is let go of, when all is written.
    for last in [*range(1, unbroken.done, 3), unbroken.done]:
        folder = shutil.copytree(ready, tmp_path / f"killed-{last}")
        with Kill(folder / "run").at(last), pytest.raises(Killed):
            work(folder)
        if (folder / "run" / "settings.json").exists():
            found = look(folder / "run")
            assert found.differences == [], last
            seen.add(found.unfinished)
            lock = (folder / "run" / ".lock").read_text()
            assert (
                not lock or f".lock: a command was killed while it worked on the run (process {lock})." in found.notes
            )
            left = [path.name for path in (folder / "run").glob(".*.tmp")]
            assert all(
                any(f"{name} is what a killed command had begun" in note for note in found.notes) for name in left
            )
            assert not found.unfinished or any(" is not finished: what is there was" in note for note in found.notes)
        shutil.rmtree(folder)
    assert seen == {True, False} and lock == str(os.getpid())


def test_folders_that_a_killed_command_has_made_for_its_first_files_are_no_difference(finished: Path):
    for name in ("drops", "inputs/calibrate", "responses"):
        (finished / "run" / name).mkdir(exist_ok=True)
    assert told(finished / "run") == ""


def test_a_process_s_number_in_the_lock_file_of_a_finished_run_is_no_difference_and_anything_else_is(finished: Path):
    path = finished / "run" / ".lock"
    for number in ("1", "4194304"):
        path.write_text(number)
        found = look(finished / "run")
        assert found.differences == [] and f"(process {number})" in found.notes[0]
    for words in ("0", "12 ", "12345678901", "x"):
        path.write_text(words)
        assert f".lock: found {len(words)} bytes, expected an empty file" in told(finished / "run")


# What was taken away


def take_the_manifest(finished: Path) -> None:
    (finished / "run" / "manifest.json").unlink()


def test_a_run_that_has_rows_and_no_manifest_is_a_difference_and_every_table_that_is_gone_with_it_is_named(
    finished: Path,
):
    take_the_manifest(finished)
    assert told(finished / "run") == (
        "manifest.json: found no such file, expected the one that cai writes before a run's first row, and never "
        "removes."
    )
    assert "cai label may be finished or not, which manifest.json would say: what is" in look(finished / "run").notes[0]
    gone = [f"{table}/part-00001.parquet" for table in ("trajectories", "pairs", "verdicts", "labels")]
    for name in gone:
        (finished / "run" / name).unlink()
    found = told(finished / "run")
    assert all(f"{name}: found no such file, expected a table, which shards.jsonl has." in found for name in gone)


def test_a_dataset_of_a_run_that_has_no_manifest_any_more_says_so(finished: Path):
    take_the_manifest(finished)
    found = told(finished / "set")
    expected = "the one of the run, of which cai label and cai revise had been finished for set"
    assert f"{finished / 'run'}/manifest.json: found no such file, expected {expected}." in found


def test_of_a_shard_whose_last_table_is_there_a_table_that_is_gone_is_found_before_the_stage_is_finished(
    finished: Path,
):
    (finished / "run" / "manifest.json").write_bytes(stages_text({}))
    (finished / "run" / "verdicts" / "part-00000.parquet").unlink()
    found = "verdicts/part-00000.parquet: found no such file, expected the table that belongs to labels/part-00000"
    assert found in told(finished / "run")


def test_a_shard_that_is_gone_before_its_stage_is_finished_is_told(finished: Path):
    (finished / "run" / "manifest.json").write_bytes(stages_text({}))
    (finished / "run" / "trajectories" / "part-00001.parquet").unlink()
    found = look(finished / "run")
    assert found.differences == [] and any(
        note.startswith("trajectories/part-00001.parquet: it is not there, though shards.jsonl has it.")
        for note in found.notes
    )


@pytest.mark.parametrize("finish", [True, False])
def test_people_s_answers_in_the_labels_without_the_file_that_they_came_from_are_found(finished: Path, finish: bool):
    review_all(finished / "run")
    with Run(finished / "run") as run:
        entry = run.manifest()["label"]
        (finished / "run" / "reviews.jsonl").unlink()
        run.write_manifest("label", entry if finish else None)
    found = told(finished / "run")
    assert "found a person's answer 'b', expected none, as in reviews.jsonl." in found and "no such file" not in found


@pytest.mark.parametrize("name", ["manifest.json", "journal/part-00000.jsonl", "shards.jsonl", "labels/x.parquet"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_named_pipe_in_a_run_is_named_and_not_waited_for(
    finished: Path, tmp_path: Path, name: str, linked: bool, monkeypatch: pytest.MonkeyPatch
):
    path = finished / "run" / name
    path.unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe")
    path.symlink_to(tmp_path / "pipe") if linked else os.mkfifo(path)

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(given: Any, *rest: Any, **more: Any) -> Any:
            assert isinstance(given, int) or not Path(given).is_fifo(), "whoever opens it waits for ever"
            return real(given, *rest, **more)

        return opened

    for module in (builtins, io, os):
        monkeypatch.setattr(module, "open", refusing(module.open))
    assert told(finished / "run") == f"{name}: found a named pipe or a device, which is not opened, expected a file."
    assert "a named pipe or a device, which is not opened, expected a file of the run" in told(finished / "set")


def test_a_line_that_a_kill_has_torn_is_told_and_is_no_difference(finished: Path):
    run = finished / "run"
    (run / "manifest.json").write_bytes(stages_text({}))  # as it is before a stage is finished
    path = run / "journal" / "part-00000.jsonl"
    data = path.read_bytes()
    path.write_bytes(data + data.splitlines()[0][:70])
    found = look(run)
    assert found.differences == [] and found.unfinished
    lines = data.count(b"\n") + 1
    assert f"journal/part-00000.jsonl, line {lines}: a killed command has not finished it; it counts for nothing." in (
        found.notes
    )


def test_a_run_of_an_earlier_version_is_looked_at_as_far_as_it_has_digests(finished: Path):
    for name in ("manifest.json", "settings.json"):
        path = finished / "run" / name
        value = json.loads(path.read_text())
        value.pop("other files", None)
        stages = {
            stage: {key: one[key] for key in one if key not in ("sealed", "code_sha")} for stage, one in value.items()
        }
        path.write_text(json.dumps(stages, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    (finished / "run" / "shards.jsonl").unlink()
    found = look(finished / "run")
    assert found.differences == [] and "An earlier version of cai made this run" in found.notes[0]
    (finished / "run" / "trajectories" / "part-00000.parquet").write_bytes(b"PAR1")
    assert "trajectories/part-00000.parquet: found other bytes" in told(finished / "run")


# Bytes


def test_a_byte_that_is_changed_anywhere_in_a_run_or_a_dataset_is_found(finished: Path):
    asyncio.run(
        export_stage(ExportSettings(run=str(finished / "run"), out=str(finished / "axo"), trainer="verl"), Quiet())
    )
    tally = flips(finished, changes=44, seed=1, say=print, kinds=["run", "axo"])
    assert tally.files >= 34 and tally.files <= tally.changes, "each file is changed at least once"
    assert tally.missed == [] and tally.false_alarms == [] and tally.found == tally.changes == 44


def white_space(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'": ', b'":  ', 1))


@pytest.mark.parametrize("name", ["run/settings.json", "run/manifest.json", "set/manifest.json"])
def test_a_space_more_in_a_sealed_file_is_found(finished: Path, name: str):
    white_space(finished / name)
    assert "found other white space or another order than cai writes" in told((finished / name).parent)


@pytest.mark.parametrize(
    ("where", "name", "words"),
    [
        ("run", "notes.txt", "notes.txt: found a file that is none of this run's, expected nothing here."),
        ("run", "inputs/revise/extra.jinja", "inputs/revise/extra.jinja: found a file that is none of this run's"),
        ("run", "labels/part-00007.parquet", "labels/part-00007.parquet: found a file that is none of this run's"),
        ("run", "journal/part-00009.jsonl", "journal/part-00009.jsonl: found a file that manifest.json does not have"),
        ("set", "notes.txt", "notes.txt: found a file that is none of this dataset's, expected nothing here."),
        ("set", "sft/train-00001-of-00002.parquet", "train-00001-of-00002.parquet: found a file that is none of"),
    ],
)
def test_a_file_that_is_none_of_it_is_named(finished: Path, where: str, name: str, words: str):
    (finished / where / name).write_bytes(b"")
    assert words in told(finished / where)


@pytest.mark.parametrize(
    "name",
    [
        "run/zz", "run/.lock", "run/reviews.jsonl", "run/manifest.json.sig", "run/journal/part-00009.jsonl",
        "run/inputs/revise/zz.jinja", "run/inputs/zz", "run/a/b", "set/zz", "set/sft/train-00001-of-00002.parquet",
    ],
)  # fmt: skip
def test_an_empty_folder_that_is_none_of_it_is_named(finished: Path, name: str):
    (finished / "run" / ".lock").unlink()
    (finished / name).mkdir(parents=True)
    kind = "run" if name.startswith("run/") else "set"
    place, whose = (name[4:], "run") if kind == "run" else (f"{finished}/{name}", "dataset")
    assert (
        told(finished / kind)
        == f"{place}: found an empty folder that is none of this {whose}'s, expected nothing here."
    )


@pytest.mark.parametrize("where", ["run", "set"])
def test_a_file_that_is_gone_and_one_that_is_a_link_are_named(finished: Path, where: str):
    every = [path for path in (finished / where).rglob("*") if path.is_file() and path.name != ".lock"]
    for path in sorted(every)[:: 3 if where == "run" else 1]:
        if path.name in ("settings.json", "manifest.json"):
            continue
        data = path.read_bytes()
        path.unlink()
        assert "found no such file" in told(finished / where), path
        (finished / "elsewhere").write_bytes(data)
        path.symlink_to(finished / "elsewhere")
        assert "found a link" in told(finished / where), path
        path.unlink()
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["sessions.jsonl", "shards.jsonl", "journal/part-00000.jsonl"])
@pytest.mark.parametrize("how", ["taken out", "added", "in another order"])
def test_a_line_of_a_growing_file_that_somebody_has_handled_is_found(finished: Path, name: str, how: str):
    path = finished / "run" / name
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.strip()]
    path.write_bytes(
        b"".join({"taken out": lines[1:], "added": [*lines, lines[0]], "in another order": lines[::-1]}[how])
    )
    assert f"{name}: found" in told(finished / "run")


def test_what_somebody_has_changed_is_not_covered_up_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answer_by_script(monkeypatch)
    folder = before("label", tmp_path / "a")
    journal, template = folder / "run/journal/part-00000.jsonl", folder / "run/inputs/revise/critique.jinja"
    journal.write_bytes(journal.read_bytes().replace(b'"seconds":', b'"seconds": ', 1))
    template.write_bytes(template.read_bytes() + b" ")
    label(folder)
    found = told(folder / "run")
    assert (
        "journal/part-00000.jsonl: found other bytes" in found and "inputs/revise/critique.jinja: found other" in found
    )


def test_answers_that_are_being_filled_in_are_no_difference_and_anything_else_in_the_review_is(
    finished: Path, tmp_path: Path
):
    path = finished / "run" / "review.jsonl"
    text = path.read_text()
    assert text.count('"answer": null') >= 1
    path.write_text(text.replace('"answer": null', '"answer": "b"', 1))
    found = look(finished / "run")
    assert found.differences == [] and found.notes == [
        "review.jsonl: 1 answers are filled in and not applied yet; else it is what cai wrote."
    ]
    path.write_text(text.replace("question", "Question", 1).replace('"answer": null', '"answer": "b"', 1))
    assert "review.jsonl: found other bytes" in told(finished / "run")


def records_in(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


NO_ANSWER = b'"answer": null'
EDITED: dict[str, Callable[[bytes], bytes]] = {
    "a tab": lambda data: data.replace(b', "prompt"', b',\t"prompt"', 1),
    "a letter by its number": lambda data: data.replace(b"question", b"\\u0071uestion", 1),
    "an empty line in between": lambda data: b"\n" + data,
}
SAVED: dict[str, Callable[[bytes], bytes]] = {
    "one more end of a line": lambda data: data + b"\n",
    "none at the end": lambda data: data[:-1],
    "ends of lines of another system": lambda data: data.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "lines by jq -c": lambda data: b"".join(
        json.dumps(one, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for one in records_in(data)
    ),
}


@pytest.mark.parametrize("edit", EDITED)
def test_no_byte_of_the_review_but_an_answer_may_be_another(finished: Path, edit: str):
    path = finished / "run" / "review.jsonl"
    data = path.read_bytes()
    for whole in (data, data.replace(NO_ANSWER, b'"answer": "b"', 1)):
        path.write_bytes(EDITED[edit](whole))
        assert path.read_bytes() != whole and "review.jsonl: found other bytes" in told(finished / "run")


@pytest.mark.parametrize("save", SAVED)
def test_how_an_editor_or_a_script_saves_a_review_with_answers_is_told_and_without_one_it_is_a_difference(
    finished: Path, save: str
):
    path = finished / "run" / "review.jsonl"
    data = path.read_bytes()
    path.write_bytes(SAVED[save](data.replace(NO_ANSWER, b'"answer":"none" ', 1)))
    found = look(finished / "run")
    assert found.differences == [] and found.notes == [
        "review.jsonl: 1 answers are filled in and not applied yet; else it is what cai wrote, but for how an editor "
        "or a script has saved the lines."
    ]
    path.write_bytes(SAVED[save](data))
    assert "review.jsonl: found other bytes" in told(finished / "run")


def test_a_review_that_a_script_has_written_anew_with_letters_by_their_numbers_is_what_cai_wrote(tmp_path: Path):
    path, record = tmp_path / "review.jsonl", {"pair_id": "r0/p", "prompt": "é", "a": "1", "b": "2", "answer": None}
    sha256 = hashlib.sha256(json.dumps(record, ensure_ascii=False).encode() + b"\n").hexdigest()
    for letter, found in (("é", (1, True)), ("è", None)):
        path.write_text(json.dumps(record | {"prompt": letter, "answer": "a"}) + "\n")
        assert as_written(tmp_path, sha256) == found


# Where every digest was made to fit


def review_all(run: Path, answer: str = "b") -> None:
    """Let a person say the same of every pair."""
    lines = [{name: pair[name] for name in TOLD} | {"answer": answer} for pair in Run(run).records("pairs")]
    path = write_jsonl(PROMPTS.with_name("filled.jsonl"), lines)
    asyncio.run(label_stage(LabelSettings(run=str(run), apply_review=str(path), history="off"), Quiet()))


def rewrite(folder: Path, stage: str, table: str, change: Callable[[Any], None]) -> None:
    """Change the rows of a table's first shard, and everything in the run that answers for them."""
    with Run(folder) as run:
        path = run.shard(table, 0)
        old = pq.read_table(path)
        rows, mark = old.to_pylist(), json.loads(old.schema.metadata[b"cai"])
        for row in rows:
            change(row)
        if table == "trajectories":
            mark["inputs"] = [content_of(item_of(row)) for row in rows]
        schema = old.schema.with_metadata({"cai": json.dumps(mark, sort_keys=True)})
        run._write(path, pa.Table.from_pylist(rows, schema=schema))
        entry = run.manifest()[stage]
        entry |= {"files": run.files(stage, TABLES[stage]), "counts": count_stage(run, stage)}
        shas = [
            digest(json.loads(pq.read_schema(run.shard(TABLES[stage][-1], index)).metadata[b"cai"])["inputs"])
            for index in run.finished_shards(TABLES[stage][-1])
        ]
        entry["prompts"]["sha"] = digest(shas)
        run.write_manifest(stage, entry)


def other_answer(row: Any) -> None:
    row["final"] = row["rounds"][0]["revision"] = "somebody else's words"


def other_prompt(row: Any) -> None:
    row["prompt"][0]["content"] += "!"


def other_check(row: Any) -> None:
    row["rounds"][0]["flags"] = ["unchanged"]


def other_probability(row: Any) -> None:
    row["probability_a"] = 0.5


def other_call(row: Any) -> None:
    row["response_call"] = "0" * 64


def other_principle(row: Any) -> None:
    row["principles"] = ["honesty"]


@pytest.mark.parametrize(
    ("stage", "table", "change", "words"),
    [
        ("revise", "trajectories", other_answer, "found another revision of round 1 than the call"),
        ("revise", "trajectories", other_prompt, "found a row of which its response would be the call"),
        ("revise", "trajectories", other_check, "found in 'rounds'"),
        ("revise", "trajectories", other_call, "found no call 000000000000, expected the response of 'r0'"),
        ("label", "verdicts", other_probability, "found in 'probability_a' 0.5, expected what the answers in the"),
        ("label", "labels", other_probability, "found in 'probability_a' 0.5, expected what the answers in the"),
        ("label", "verdicts", lambda row: row.update(raw="B"), "found in 'raw' 'B', expected what the answers in the"),
        ("label", "verdicts", lambda row: row.update(letter_mass=0.5), "found in 'letter_mass' 0.5, expected"),
        ("label", "labels", other_principle, "found in 'principles' ['honesty'], expected what the answers in the"),
        ("label", "pairs", lambda row: row.update(a="x"), "found a prompt or answers that it was not made of"),
        ("revise", "trajectories", lambda row: row.update(sample=1), "'r0': found the sample 1 of 'r0', expected the"),
        ("revise", "trajectories", lambda row: row.update(prompt_id="q"), "'r0': found the sample 0 of 'q', expected"),
    ],
)
def test_a_row_that_is_not_what_the_answers_in_the_journal_make_is_found_though_every_digest_fits(
    finished: Path, stage: str, table: str, change: Callable[[Any], None], words: str
):
    rewrite(finished / "run", stage, table, change)
    found = told(finished / "run")
    assert words in found and "bytes" not in found, found
    # What it names is the table that was changed; what is made of that is not blamed for it.
    blamed = {line.split("/part-")[0] for line in found.splitlines() if words in line}
    assert blamed == {"journal" if change is other_call else table}, found


def test_a_person_s_answer_that_nobody_has_given_is_found_though_every_digest_fits(finished: Path):
    rewrite(finished / "run", "label", "labels", lambda row: row.update(reviewed="b", chosen="b"))
    found = told(finished / "run")
    assert "found a person's answer 'b', expected none, as in reviews.jsonl." in found and "bytes" not in found


def test_a_person_s_answer_that_was_taken_out_of_the_labels_is_found_though_every_digest_fits(finished: Path):
    review_all(finished / "run")
    assert told(finished / "run") == ""
    rewrite(finished / "run", "label", "labels", lambda row: row.update(reviewed=None, chosen=row["judged"]))
    assert "found no person's answer, expected 'b', as in reviews.jsonl." in told(finished / "run")


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_bytes(stages_text(value))


def test_a_dataset_s_seal_that_was_taken_out_is_found(finished: Path):
    path = finished / "set" / "manifest.json"
    edit_json(path, lambda value: value.pop("sealed"))
    assert "no seal, or one that it does not fit" in told(finished / "set")


def test_a_run_without_any_stage_is_none(tmp_path: Path):
    (tmp_path / "settings.json").write_text("{}\n")
    assert "no stage" in told(tmp_path)


def test_a_stage_that_was_taken_out_of_the_run_with_its_tables_is_found(finished: Path):
    for name in ("settings.json", "manifest.json"):
        edit_json(finished / "run" / name, lambda value: value.pop("label"))
    for table in TABLES["label"]:
        shutil.rmtree(finished / "run" / table)
    found = "settings.json: found nothing about cai label, which sessions.jsonl says has worked here, expected what it"
    assert found in told(finished / "run")


def test_a_manifest_without_the_record_of_the_other_files_passes_for_an_older_one_only_if_it_is_one(finished: Path):
    edit_json(finished / "run" / "manifest.json", lambda value: value.pop("other files"))
    assert "manifest.json: found no record of the other files, expected one" in told(finished / "run")


def test_a_number_of_the_manifest_that_is_not_what_the_tables_come_to_is_found(finished: Path):
    with Run(finished / "run") as run:
        entry = run.manifest()["revise"]
        entry["counts"]["changed"] += 1
        run.write_manifest("revise", entry)
    assert "manifest.json, cai revise, changed: found the tables come to 2, expected 3." in told(finished / "run")


def test_settings_that_are_not_those_of_the_finished_stage_are_found(finished: Path):
    with Run(finished / "run") as run:
        belongs = run.settings()["revise"]
        run.belong("revise", {**belongs, "settings": {**belongs["settings"], "rounds": 4}}, {})
    assert "settings.json, cai revise: found other settings than in manifest.json" in told(finished / "run")


@pytest.mark.parametrize("name", ["constitution.yaml", "critique.jinja"])
def test_a_copied_text_that_is_not_the_one_of_the_rows_is_found(finished: Path, name: str):
    path = finished / "run" / "inputs" / "revise" / name
    path.write_text(path.read_text() + "# more\n")
    with Run(finished / "run") as run:
        listed = run.other_files()
        assert listed is not None
        run.write_manifest("revise", run.manifest()["revise"])  # lists it as it is now
    found = told(finished / "run")
    assert (
        "found a text with the sha256" in found if name == "constitution.yaml" else "templates with the digest" in found
    )
    assert "other bytes" not in found


# Datasets


def reseal(folder: Path, change: Callable[[Any], None] = lambda _: None) -> None:
    """Write a dataset's manifest as if its files had always been so."""
    value: Any = json.loads((folder / "manifest.json").read_text())
    value.pop("sealed")
    change(value)
    value["files"] = [file_entry(folder, folder / one["path"], one["rows"]) for one in value["files"]]
    content = [[one["path"], one["sha256"]] for one in value["files"] if one["path"] != "README.md"]
    old, value["content_sha"] = value["content_sha"], digest(content)
    card = (folder / "README.md").read_text().replace(old[:16], value["content_sha"][:16])
    (folder / "README.md").write_text(card)
    value["files"][-1] = file_entry(folder, folder / "README.md", 0)
    (folder / "manifest.json").write_text(json_text(sealed(value, KIND)))


def change_rows(folder: Path, config: str, column: str, value: Any) -> None:
    for path in (folder / config).glob("*.parquet"):
        table = pq.read_table(path)
        values = pa.array([value] * table.num_rows, table.schema.field(column).type)
        pq.write_table(table.set_column(table.schema.get_field_index(column), table.schema.field(column), values), path)


@pytest.mark.parametrize(
    ("config", "column", "value", "words"),
    [
        ("sft", "messages", [{"role": "user", "content": "x"}], "found another messages than in the run"),
        ("sft", "row_id", "r9", "found a row without a trace, expected one in"),
        ("kto", "label", True, "found the row a second time"),
        ("preference", "chosen_probability", 0.99, "found another chosen_probability than in the run"),
        ("reward", "margin", 5.0, "found another margin than in the run"),
        ("kto", "completion", [{"role": "assistant", "content": "x"}], "found another completion than in the run"),
        ("reward", "chosen", [{"role": "assistant", "content": "x"}], "found another row than in preference"),
        ("preference", "principle_ids", ["honesty"], "in preference, by principle,"),
    ],
)
def test_a_row_of_a_dataset_that_its_run_does_not_have_so_is_found_though_every_digest_fits(
    finished: Path, config: str, column: str, value: Any, words: str
):
    change_rows(finished / "set", config, column, value)
    reseal(finished / "set")
    found = told(finished / "set")
    assert words in found and "bytes" not in found, found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value["counts"]["sft"].update(read=9), "counts of sft: found written and left out together are"),
        (lambda value: value["counts"]["kto"]["written"].update(train=9), "counts of kto: found tables with the rows"),
        (lambda value: value["answers"].update(response=9), "in sft, by where answers come from,"),
        (lambda value: value["distinct_prompts"].update(sft=9), "in sft, prompts: 2, expected 9"),
        (lambda value: value["sure_pairs"].update({"0.6": 9}), "found sure pairs"),
    ],
)
def test_a_number_of_a_dataset_s_manifest_that_its_rows_do_not_come_to_is_found(
    finished: Path, change: Callable[[Any], None], words: str
):
    reseal(finished / "set", change)
    assert words in told(finished / "set")


def test_a_number_of_the_card_that_is_not_the_manifest_s_is_found(finished: Path):
    path = finished / "set" / "README.md"
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.startswith("| `sft` |"))
    path.write_text(text.replace(line, line.replace("| 2 |", "| 3 |", 1)))
    reseal(finished / "set")
    assert "README.md: found no line of a table with `sft`" in told(finished / "set")


def test_a_principle_in_the_card_that_is_not_the_constitution_s_is_found(finished: Path):
    path = finished / "set" / "README.md"
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.startswith("| `privacy` |"))
    path.write_text(text.replace(line, line.replace("| `privacy` | ", "| `privacy` | Not: ").replace("e", "3", 3)))
    reseal(finished / "set")
    assert "README.md: found another text, expected the statement of 'privacy' in the constitution" in told(
        finished / "set"
    )


def test_a_dataset_whose_run_has_moved_is_looked_at_alone_and_says_what_was_not_checked(finished: Path, tmp_path: Path):
    STAGES["export"](finished)
    (tmp_path / "far" / "away").mkdir(parents=True)
    moved = (finished / "run").rename(tmp_path / "far" / "away" / "run")
    alone = verify(finished / "set", None, None, Quiet())
    assert alone.differences == [] and "NOT CHECKED against its run, which is not where it was" in alone.notes[0]
    assert alone.looked["rows followed back"] == 0
    assert look(finished / "set", moved).looked["rows followed back"] == 10


def test_a_dataset_finds_its_run_from_any_folder_as_long_as_both_lie_as_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answer_by_script(monkeypatch)
    folder = before("export", tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        asyncio.run(export_stage(ExportSettings(run="run", out="sets/one"), Quiet()))
    assert verify(folder / "sets" / "one", None, None, Quiet()).looked["rows followed back"] == 10
    shutil.move(folder, tmp_path / "b")
    assert verify(tmp_path / "b" / "sets" / "one", None, None, Quiet()).looked["rows followed back"] == 10


def test_a_run_that_somebody_reviewed_after_the_export_is_no_difference_and_a_changed_row_still_is(finished: Path):
    STAGES["export"](finished)
    chosen = next(Run(finished / "run").records("labels"))["chosen"]
    review_all(finished / "run", "a" if chosen == "b" else "b")
    found = look(finished / "set")
    assert found.differences == [] and found.looked["rows followed back"] == 10
    assert sum("before a person's answer was entered, which came after the export" in note for note in found.notes) == 3
    change_rows(finished / "set", "kto", "completion", [{"role": "assistant", "content": "x"}])
    reseal(finished / "set")
    assert "found another completion than in the run" in told(finished / "set")


def test_another_run_that_has_the_name_of_a_dataset_s_run_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answer_by_script(monkeypatch)
    for name, prompt in (("one", "question 1"), ("two", "question 2")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_jsonl(Path("p.jsonl"), [{"prompt": prompt}])
        asyncio.run(revise_stage(ReviseSettings(prompts="p.jsonl", out="run", engine="scripted", gate="off"), Quiet()))
        asyncio.run(export_stage(ExportSettings(run="run", out="set"), Quiet()))
    moved = (tmp_path / "one" / "set").rename(tmp_path / "one" / "moved")
    assert verify(moved, None, None, Quiet()).looked["rows followed back"] == 1, "its own run lies beside it"
    (tmp_path / "far").mkdir()
    alone = verify((tmp_path / "one").rename(tmp_path / "far" / "one") / "moved", None, None, Quiet())
    assert alone.looked["rows followed back"] == 1, "also where both have moved"
    shutil.rmtree(tmp_path / "far" / "one" / "run")
    alone = verify(tmp_path / "far" / "one" / "moved", None, None, Quiet())
    assert (
        alone.differences == []
        and "NOT CHECKED against its run: run is one that has none of its rows" in (alone.notes[0])
    )


def test_another_run_than_the_one_that_a_dataset_was_made_of_is_named(finished: Path, tmp_path: Path):
    STAGES["export"](finished)
    with Run(finished / "run") as run:
        belongs = run.settings()["revise"]
        run.belong("revise", {**belongs, "models": {"generator": "another"}}, {})
    found = "a run whose cai revise has other models than the one that the dataset was made of"
    assert found in told(finished / "set")
    asked = verify(finished / "set", None, None, Quiet())
    assert asked.differences == [] and found in asked.notes[0] and "NOT CHECKED" in asked.notes[0]


def test_what_is_neither_a_run_nor_a_dataset_is_refused(tmp_path: Path):
    (tmp_path / "manifest.json").write_text("{}")
    for path in (tmp_path, tmp_path / "none", tmp_path / "manifest.json"):
        with pytest.raises(BadInput, match="expected the folder of a run"):
            verify(path, None, None, Quiet())
