"""Whole runs with the scripted engine: what is on disk, what is asked again, what is refused."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cai import inputs, journal
from cai.audit import report
from cai.cli import cai
from cai.engines import Completion, Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import BadInput, CheckFailed, EngineGaveUp, RequestRefused
from cai.ids import file_digest
from cai.report.page import page
from cai.report.summary import summary
from cai.screen import print_report
from cai.settings import GenerateSettings, ReviseSettings
from cai.settings_load import load_settings
from cai.stage_run import Outcome
from cai.stages import generate_stage, revise_stage
from cai.store import Run, open_run
from tests.conftest import Quiet, played_by, table_bytes, write_jsonl


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_jsonl(
        tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}", "category": "c"} for n in range(20)]
    )


def settings(prompts: Path, out: Path, **changes: Any) -> ReviseSettings:
    return ReviseSettings(prompts=str(prompts), out=str(out), engine="scripted", **{"shard_rows": 6, **changes})


def run(prompts: Path, out: Path, **changes: Any) -> Outcome:
    return asyncio.run(revise_stage(settings(prompts, out, **changes), Quiet()))


def use(monkeypatch: pytest.MonkeyPatch, script: Callable[[Request], Any], **options: Any) -> list[str]:
    """Let the scripted engine answer by `script`; returns the keys of the calls that it is asked."""
    asked: list[str] = []

    def answer(request: Request) -> Any:
        asked.append(request.key("scripted"))
        return script(request)

    played_by(monkeypatch, ScriptedEngine(answer, **options))
    return asked


def test_a_run_has_every_row_in_input_order_also_in_the_last_partial_shard(prompts: Path, tmp_path: Path):
    outcome = run(prompts, tmp_path / "run")
    files = sorted((tmp_path / "run" / "trajectories").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [6, 6, 6, 2]
    assert [row["row_id"] for row in open_run(str(tmp_path / "run")).records("trajectories")] == [
        f"r{n}" for n in range(20)
    ]
    counts = outcome.entry["counts"]
    assert (counts["read"], counts["kept"], counts["dropped"]) == (20, 20, 0)
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_datasets_and_duckdb_read_the_tables(prompts: Path, tmp_path: Path):
    import datasets

    run(prompts, tmp_path / "run")
    files = str(tmp_path / "run" / "trajectories" / "*.parquet")
    loaded: Any = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 20
    assert loaded[0]["prompt"] == [{"role": "user", "content": "question 0"}]
    ((rows, rounds),) = duckdb.execute(f"select count(*), sum(len(rounds)) from '{files}' where final <> ''").fetchall()
    assert rows == 20 and rounds >= 20


def test_older_turns_may_be_left_out_if_asked_and_the_row_says_how_many_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    talk = [
        {"role": role, "content": content}
        for role, content in (("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"))
    ]
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": "talk", "prompt": talk}, {"id": "one", "prompt": "u"}])
    optional: set[tuple[str, bool]] = set()

    def script(request: Request) -> Any:
        optional.update((turn.content, turn.optional) for turn in request.messages[:4])
        return Completion("said", "stop", 1, 0, 1, left_out=2 if request.messages[0].content == "s" else 0)

    for long_prompts, may in (("drop", False), ("shorten", True)):
        optional.clear()
        use(monkeypatch, script)
        folder = tmp_path / long_prompts
        chosen = GenerateSettings(prompts=str(prompts), out=str(folder), long_prompts=long_prompts)
        outcome = asyncio.run(generate_stage(chosen, Quiet()))
        assert optional == {("s", False), ("u1", may), ("a1", may), ("u2", False), ("u", False)}
    rows = list(open_run(str(folder)).records("responses"))
    assert [(row["row_id"], row["left_out_turns"], len(row["prompt"])) for row in rows] == [
        ("talk", 2, 4),
        ("one", 0, 1),
    ]
    assert outcome.entry["cost"]["shortened_calls"] == 1
    print_report(report(open_run(str(folder))))
    assert "1 calls went without a conversation's oldest turns" in capsys.readouterr().out


def test_what_a_limit_leaves_unread_is_said_and_stands_where_the_reader_looks(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    records = [json.loads(line) for line in prompts.read_text().splitlines()]
    write_jsonl(prompts, records[:4])
    out, whole = tmp_path / "run", tmp_path / "whole"
    sentence = f"--limit 4: {prompts} has more prompts; they are not read."

    def night(**changes: Any) -> list[str]:
        asyncio.run(revise_stage(settings(prompts, out, history="off", **changes), watch := Quiet()))
        return watch.said

    assert sentence not in night(limit=4), "there are no more"
    run(prompts, whole, history="off")
    manifest = (out / "manifest.json").read_bytes()
    write_jsonl(prompts, records[:9])
    assert sentence in night(limit=4), "there is nothing to do, and it is said all the same"
    assert (out / "manifest.json").read_bytes() == manifest, "signatures and datasets hang on it"
    (out / "manifest.json").unlink()
    assert sentence in night(limit=4)
    told = open_run(str(out)).manifest()["revise"]["prompts"]
    assert (told["limit"], told["unread"], told["rows"]) == (4, True, 4)
    opened = open_run(str(out))
    print_report(report(opened))
    flat = " ".join(capsys.readouterr().out.split())
    assert "not read --limit 4:" in flat and "they are not read." in flat
    assert report(opened)["revise"]["unread"] == sentence
    assert sentence in page(opened, "run") and "has more prompts; they are not read" in summary(opened, "run")
    assert table_bytes(out) == table_bytes(whole)
    done = CliRunner().invoke(cai, ["verify", str(out)])
    assert done.exit_code == 0, done.output
    assert sentence not in night() and open_run(str(out)).manifest()["revise"]["prompts"]["unread"] is False
    # As an earlier version left it.
    entry = open_run(str(out)).manifest()["revise"]
    del entry["prompts"]["unread"]
    with Run(out) as old:
        old.write_manifest("revise", entry)
    assert report(open_run(str(out)))["revise"]["unread"] is None
    assert night() == [] and "unread" not in open_run(str(out)).manifest()["revise"]["prompts"]
    assert CliRunner().invoke(cai, ["verify", str(out)]).exit_code == 0


def test_a_server_shortens_nothing(prompts: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="long_prompts shorten with a server"):
        ReviseSettings(prompts=str(prompts), out="x", endpoint=("http://127.0.0.1:9",), long_prompts="shorten")


@pytest.mark.parametrize(
    "given", [{"ray_address": "127.0.0.1:1"}, {"ray_actors": 2}, {"ray_gpus": 0.0}, {"ray_cpus": 2.0}]
)
def test_an_option_of_ray_needs_ray_and_its_default_does_not(prompts: Path, given: dict[str, Any]):
    (name,) = given
    needed = {"prompts": str(prompts), "out": "x"}
    with pytest.raises(BadInput, match=f"found {name} without on ray"):
        load_settings(ReviseSettings, None, {**needed, **given})
    assert load_settings(ReviseSettings, None, {**needed, **given, "on": "ray"}).on == "ray"
    default = ReviseSettings.model_fields[name].default
    assert load_settings(ReviseSettings, None, {**needed, name: default}).on == "local"


def test_the_manifest_answers_for_every_file_digest_setting_count_and_token(prompts: Path, tmp_path: Path):
    entry = run(prompts, tmp_path / "run", seed=5).entry
    for file in entry["files"]:
        assert file_digest(tmp_path / "run" / file["path"]) == file["sha256"]
    assert {file["path"] for file in entry["files"]} == set(table_bytes(tmp_path / "run"))
    assert entry["settings"]["seed"] == 5 and entry["models"]["critic"] == "scripted"
    assert entry["texts"]["constitution_sha"] == file_digest(
        tmp_path / "run" / "inputs" / "revise" / "constitution.yaml"
    )
    rows = list(open_run(str(tmp_path / "run")).records("trajectories"))
    assert entry["counts"]["tokens"]["prompt_tokens"] == sum(row["prompt_tokens"] for row in rows)
    assert entry["counts"]["changed"] == sum(row["changed"] for row in rows) > 0
    assert entry["cost"]["completion_tokens"] == entry["counts"]["tokens"]["completion_tokens"]
    assert {row["constitution_sha"] for row in rows} == {entry["texts"]["constitution_sha"]}
    assert {row["templates_sha"] for row in rows} == {entry["texts"]["templates_sha"]}


def test_every_call_of_every_row_is_in_the_journal(prompts: Path, tmp_path: Path):
    run(prompts, tmp_path / "run")
    lines = [line for path in (tmp_path / "run" / "journal").iterdir() for line in path.read_text().splitlines()]
    journaled = {entry["key"]: entry for entry in (json.loads(line[9:]) for line in lines)}
    for row in open_run(str(tmp_path / "run")).records("trajectories"):
        assert journaled[row["response_call"]]["text"] == row["response"]
        for one in row["rounds"]:
            assert journaled[one["gate_call"]]["purpose"] == "gate"
            if one["revision"] is not None:
                assert journaled[one["critique_call"]]["text"] == one["critique"]
                assert journaled[one["revision_call"]]["text"] == one["revision"]


def test_the_same_command_again_asks_nothing_and_changes_nothing(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(prompts, tmp_path / "run")
    before = {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"
    }
    asked = use(monkeypatch, derived_script)
    outcome = run(prompts, tmp_path / "run")
    assert asked == [] and outcome.session.asked_calls == 0
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("in_flight", [1, 7, 64])
def test_a_run_that_dies_goes_on_without_repeating_a_finished_call_and_ends_in_the_same_bytes(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_flight: int
):
    run(prompts, tmp_path / "unbroken")
    asked: list[str] = []
    for patience in (5, 11, 17, 23, 1000):
        fresh: list[str] = []

        def answer(request: Request, fresh: list[str] = fresh, patience: int = patience) -> Any:
            if len(fresh) == patience:
                raise EngineGaveUp("gone")
            fresh.append(request.key("scripted"))
            return derived_script(request)

        played_by(monkeypatch, ScriptedEngine(answer, latency_seconds=0.001))
        try:
            run(prompts, tmp_path / "run", rows_in_flight=in_flight)
        except EngineGaveUp:
            assert not open_run(str(tmp_path / "run")).manifest()
        asked += fresh
    assert len(asked) == len(set(asked)), "no finished call is asked again"
    assert table_bytes(tmp_path / "run") == table_bytes(tmp_path / "unbroken")


def test_rows_that_finish_in_any_order_are_written_in_input_order(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Uneven(ScriptedEngine):
        async def complete(self, request: Request) -> Any:
            await asyncio.sleep(0.02 - 0.001 * int(request.row_id[1:]))
            return await super().complete(request)

    played_by(monkeypatch, Uneven(derived_script))
    run(prompts, tmp_path / "uneven")
    monkeypatch.undo()
    run(prompts, tmp_path / "even")
    assert table_bytes(tmp_path / "uneven") == table_bytes(tmp_path / "even")


def test_a_row_that_fails_is_one_drop_and_the_others_go_on(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def answer(request: Request) -> Any:
        if request.row_id == "r7":
            raise RequestRefused("too long")
        return "" if request.row_id == "r9" and request.purpose == "response" else derived_script(request)

    use(monkeypatch, answer)
    outcome = run(prompts, tmp_path / "run")
    counts = outcome.entry["counts"]
    assert (counts["read"], counts["kept"]) == (20, 18)
    assert counts["dropped_by_reason"] == {"empty_response": 1, "refused_by_engine": 1}
    drops = list(open_run(str(tmp_path / "run")).dropped("revise", "trajectories"))
    assert [(drop["row_id"], drop["reason"]) for drop in drops] == [
        ("r7", "refused_by_engine"),
        ("r9", "empty_response"),
    ]


def test_a_bug_in_one_row_is_not_swallowed(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def answer(request: Request) -> Any:
        if request.row_id == "r7":
            raise ZeroDivisionError("a bug")
        return derived_script(request)

    use(monkeypatch, answer)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(prompts, tmp_path / "run")


def test_bad_records_are_counted_and_kept_plus_dropped_is_read(tmp_path: Path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "x"}, {"prompt": ""}, {"prompt": "y"}, {"prompt": 5}])
    counts = run(path, tmp_path / "run", shard_rows=2).entry["counts"]
    assert (counts["read"], counts["kept"], counts["dropped_by_reason"]) == (4, 2, {"bad_prompt": 1, "empty_text": 1})


def test_one_more_principle_asks_again_only_where_the_choice_moved(prompts: Path, tmp_path: Path):
    first = run(prompts, tmp_path / "first", principles="one", gate="off")
    old = open_run(str(tmp_path / "first"))
    text = (old.folder / "inputs" / "revise" / "constitution.yaml").read_text()
    changed = tmp_path / "more.yaml"
    changed.write_text(text + NEW_PRINCIPLE)
    reuse = (str(tmp_path / "first"),)
    second = run(prompts, tmp_path / "second", principles="one", gate="off", constitution=str(changed), reuse=reuse)
    before = {row["row_id"]: row for row in old.records("trajectories")}
    moved = 0
    for row in open_run(str(tmp_path / "second")).records("trajectories"):
        if any(one["principle_id"] == "brevity" for one in row["rounds"]):
            moved += 1
        else:
            assert row["rounds"] == before[row["row_id"]]["rounds"]
    assert 0 < moved < 12
    assert second.session.reused_calls + second.session.asked_calls >= first.session.asked_calls - 4 * moved
    assert 0 < second.session.asked_calls <= 5 * moved


def test_a_run_belongs_to_one_version_of_the_checks(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(prompts, tmp_path / "run", limit=6)
    monkeypatch.setattr("cai.stages.checks_sha", lambda: "other")
    with pytest.raises(BadInput, match="checks_sha"):
        run(prompts, tmp_path / "run")
    again = run(prompts, tmp_path / "second", limit=6, reuse=(str(tmp_path / "run"),))
    assert again.session.asked_calls == 0


def test_a_fitting_principle_needs_a_letter_for_each(prompts: Path, tmp_path: Path):
    text = Path("constitutions/harmlessness.yaml").read_text()
    more = tmp_path / "more.yaml"
    more.write_text(text + "".join(NEW_PRINCIPLE.replace("brevity", f"brevity-{n}") for n in range(11)))
    with pytest.raises(BadInput, match=r"--principles fitting: found 27 principles .* at most 26"):
        run(prompts, tmp_path / "run", constitution=str(more))
    assert run(prompts, tmp_path / "run", constitution=str(more), principles="one").entry["counts"]["kept"] == 20


NEW_PRINCIPLE = """
  - id: brevity
    statement: The answer is short.
    rationale: Time is short.
    critique: Say what is too long.
    revision: Shorten it.
    comparison: Which is shorter?
"""


def test_a_folder_with_other_settings_is_refused_and_says_which_differ(prompts: Path, tmp_path: Path):
    run(prompts, tmp_path / "run", rounds=1)
    before = table_bytes(tmp_path / "run")
    with pytest.raises(BadInput, match=r"rounds \(1 there, 3 now\).*--reuse"):
        run(prompts, tmp_path / "run", rounds=3)
    with pytest.raises(BadInput, match="templates_sha"):
        run(prompts, tmp_path / "run", rounds=1, few_shot="on")
    assert table_bytes(tmp_path / "run") == before
    run(prompts, tmp_path / "run", rounds=1, rows_in_flight=2, retries=1)


def test_a_source_that_grew_is_gone_on_with_and_one_that_shrank_or_changed_is_refused(prompts: Path, tmp_path: Path):
    run(prompts, tmp_path / "run", limit=8)
    grown = run(prompts, tmp_path / "run")
    assert grown.session.reused_calls > 0
    run(prompts, tmp_path / "whole")
    assert table_bytes(tmp_path / "run") == table_bytes(tmp_path / "whole")
    for limit in (4, 19):
        told = f"found {limit} rows, expected at least the 20 that the run already holds. Raise --limit, or: "
        with pytest.raises(BadInput, match=told):
            run(prompts, tmp_path / "run", limit=limit)
    lines = prompts.read_text().splitlines(keepends=True)
    for left in (19, 6):  # within a shard, and whole shards
        shrunk = tmp_path / "shrunk.jsonl"
        shrunk.write_text("".join(lines[:left]))
        told = f"found {left} rows, expected at least the 20 that the run already holds. Put the rows back"
        with pytest.raises(BadInput, match=told):
            run(shrunk, tmp_path / "run")
    other = write_jsonl(tmp_path / "q.jsonl", [{"id": f"r{n}", "prompt": f"other {n}"} for n in range(20)])
    with pytest.raises(BadInput, match="other rows than this run was made from"):
        run(other, tmp_path / "run")
    assert table_bytes(tmp_path / "run") == table_bytes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("record", "changes"),
    [
        ({"prompt": ""}, {}),
        ({"promt": "x"}, {}),
        ({"prompt": "x"}, {"constitution": "none"}),
        ({"prompt": 1}, {"strict": True}),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path: Path, record: dict[str, Any], changes: dict[str, Any]):
    path = write_jsonl(tmp_path / "p.jsonl", [record])
    with pytest.raises(BadInput):
        run(path, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_files_is_not_touched(prompts: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="a folder with other files"):
        run(prompts, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_run_that_another_process_holds_is_refused_with_its_pid(prompts: Path, tmp_path: Path):
    import os

    with Run(tmp_path / "run"), pytest.raises(BadInput, match=f"process {os.getpid()} is working on"):
        run(prompts, tmp_path / "run")
    run(prompts, tmp_path / "run")


def test_a_damaged_shard_is_named(prompts: Path, tmp_path: Path):
    run(prompts, tmp_path / "run")
    shard = tmp_path / "run" / "trajectories" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(BadInput, match=r"part-00001\.parquet: found a damaged shard"):
        run(prompts, tmp_path / "run")
    shard.unlink()
    assert run(prompts, tmp_path / "run").session.asked_calls == 0


def test_a_lost_drops_file_is_written_again(tmp_path: Path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "x"}, {"prompt": ""}])
    run(path, tmp_path / "run")
    before = table_bytes(tmp_path / "run")
    (tmp_path / "run" / "drops" / "revise-00000.parquet").unlink()
    assert run(path, tmp_path / "run").session.asked_calls == 0
    assert table_bytes(tmp_path / "run") == before


def test_generate_writes_its_responses_and_revise_in_the_same_folder_uses_them(prompts: Path, tmp_path: Path):
    sampled = GenerateSettings(
        prompts=str(prompts), out=str(tmp_path / "run"), engine="scripted", shard_rows=6, samples=2
    )
    asyncio.run(generate_stage(sampled, Quiet()))
    responses = list(open_run(str(tmp_path / "run")).records("responses"))
    assert [row["row_id"] for row in responses[:4]] == ["r0", "r0~1", "r1", "r1~1"]
    assert len({row["response"] for row in responses}) == 40
    outcome = run(prompts, tmp_path / "run")
    assert outcome.session.reused_calls == 20
    assert set(report(open_run(str(tmp_path / "run")))) == {"generate", "revise"}


def test_the_report_adds_up_also_for_a_run_that_is_not_finished(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    count = 0

    def answer(request: Request) -> Any:
        nonlocal count
        count += 1
        if count > 50:
            raise EngineGaveUp("gone")
        return derived_script(request)

    use(monkeypatch, answer)
    with pytest.raises(EngineGaveUp):
        run(prompts, tmp_path / "run", rows_in_flight=3)
    half = report(open_run(str(tmp_path / "run")))["revise"]
    assert not half["finished"] and half["kept"] + half["dropped"] == half["read"] < 20
    monkeypatch.undo()
    run(prompts, tmp_path / "run")
    whole = report(open_run(str(tmp_path / "run")))["revise"]
    assert whole["finished"] and whole["read"] == 20
    assert whole["cost"]["asked_calls"] == sum(
        entry["asked_calls"] for entry in open_run(str(tmp_path / "run")).sessions("revise")
    )
    by_round, by_principle = whole["by_round"].values(), whole["by_principle"].values()
    for name in ("applied", "found_broken", "changed"):
        assert sum(group[name] for group in by_round) == sum(group[name] for group in by_principle) > 0


def test_the_report_counts_refusals_lengths_failures_and_boilerplate(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def answer(request: Request) -> Any:
        number = int(request.row_id[1:])
        if request.purpose == "response":
            return "I can't help with that." if number < 3 else "Do it on Monday."
        if request.purpose == "revision":
            last = request.messages[-2].content
            return "Critique: no" if number >= 15 else f"Answer {number} {last[-3:]}. Take good care of yourself there!"
        return derived_script(request) if request.choices is None or len(request.choices) > 2 else 0.9

    use(monkeypatch, answer)
    run(prompts, tmp_path / "run", rounds=1, failed_revision="keep", revision_tries=2)
    counts = report(open_run(str(tmp_path / "run")))["revise"]
    changed = counts["changed"]
    assert 12 <= changed <= 15, "the first three are plain refusals, and most principles leave those alone"
    assert counts["boilerplate_endings"] == {"take good care of yourself there": changed}
    assert counts["failed_revisions"] == {"leaked_label": 10}, "five rows, two tries each"
    assert counts["flags"].get("plain_refusal", 0) == 15 - changed
    assert counts["texts"]["response"] == {"refusals": 3, "mean_words": pytest.approx(4.2, abs=0.2)}
    assert counts["texts"]["final"]["refusals"] == 15 - changed
    (group,) = counts["by_round"].values()
    assert (group["revisions_asked"], group["changed"]) == (changed + 10, changed)


def test_a_run_that_keeps_nothing_fails_and_says_why(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: Request) -> str:
        raise RequestRefused("too long")

    use(monkeypatch, refuse)
    with pytest.raises(CheckFailed, match=r"none of 20 rows was kept \(refused_by_engine 20\)"):
        run(prompts, tmp_path / "run")
    assert open_run(str(tmp_path / "run")).manifest()["revise"]["counts"]["dropped"] == 20


def test_dropped_rows_are_tried_again_when_their_drops_are_removed(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse_some(request: Request) -> Any:
        if request.row_id in ("r3", "r8"):
            raise RequestRefused("the server kept failing")
        return derived_script(request)

    use(monkeypatch, refuse_some)
    run(prompts, tmp_path / "run")
    asked = use(monkeypatch, derived_script)
    for drops in (tmp_path / "run" / "drops").iterdir():
        drops.unlink()
    assert run(prompts, tmp_path / "run").entry["counts"]["kept"] == 20
    assert 0 < len(asked) <= 2 * 9, "the two rows alone: a response, and two rounds of four calls"
    monkeypatch.undo()
    run(prompts, tmp_path / "unbroken")
    assert table_bytes(tmp_path / "run") == table_bytes(tmp_path / "unbroken")


def test_a_source_that_shrinks_during_the_run_is_noticed(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Long enough not to lie in one buffer that was read before the file changed.
    write_jsonl(prompts, [{"id": f"r{n}", "prompt": f"question {n} " + "x" * 20_000} for n in range(20)])
    lines = prompts.read_text().splitlines(keepends=True)

    def shrink(request: Request) -> Any:
        prompts.write_text("".join(lines[:12]))
        return derived_script(request)

    use(monkeypatch, shrink, latency_seconds=0.001)
    with pytest.raises(BadInput, match="a moment ago"):
        run(prompts, tmp_path / "run", rows_in_flight=1)
    assert not open_run(str(tmp_path / "run")).manifest()


def test_a_resume_reads_the_journal_and_looks_twice_at_the_rows_of_unfinished_shards_only(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(prompts, tmp_path / "run", shard_rows=5)
    open_run(str(tmp_path / "run")).remove_shard("revise", ("trajectories",), 3)
    journals: list[str] = []
    looked: list[object] = []
    entries, content_of = journal._entries, inputs.content_of

    def entries_of(path: Path, damaged: list[str]) -> Any:
        journals.append(path.name)
        return entries(path, damaged)

    def content(item: Any) -> str:
        looked.append(item)
        return content_of(item)

    monkeypatch.setattr(journal, "_entries", entries_of)
    monkeypatch.setattr(inputs, "content_of", content)
    assert run(prompts, tmp_path / "run", shard_rows=5).session.asked_calls == 0
    assert journals == ["part-00003.jsonl"] and len(looked) == 20 + 5


def test_a_renamed_source_holds_the_same_rows(prompts: Path, tmp_path: Path):
    run(prompts, tmp_path / "run")
    other = prompts.rename(tmp_path / "other.jsonl")
    assert run(other, tmp_path / "run").session.asked_calls == 0


def test_a_run_that_died_before_its_first_row_can_go_on(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(
            "cai.store.write_atomically", lambda path, data: (_ for _ in ()).throw(OSError(28, "No space left"))
        )
        with pytest.raises(OSError, match="No space left"):
            run(prompts, folder)
    (folder / "inputs" / "revise").mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text("{}")
    assert run(prompts, folder).entry["counts"]["kept"] == 20


def test_a_torn_session_line_spoils_nothing(prompts: Path, tmp_path: Path):
    run(prompts, tmp_path / "run", limit=6)
    sessions = tmp_path / "run" / "sessions.jsonl"
    sessions.write_text(sessions.read_text() + '{"stage": "rev')
    run(prompts, tmp_path / "run")
    assert report(open_run(str(tmp_path / "run")))["revise"]["read"] == 20


@pytest.mark.parametrize("damage", ["part", "settings"])
def test_a_damaged_run_is_named_by_every_reader(prompts: Path, tmp_path: Path, damage: str):
    run(prompts, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    (tmp_path / "run" / "trajectories" / "part-abc.parquet").write_bytes(b"a stray file")
    report(open_run(str(tmp_path / "run")))
    broken = {"part": "trajectories/part-00001.parquet", "settings": "settings.json"}[damage]
    (tmp_path / "run" / broken).write_bytes(b"[]")
    with pytest.raises(BadInput, match="damaged"):
        report(open_run(str(tmp_path / "run")))


def test_failed_starts_leave_no_parent_folders(prompts: Path, tmp_path: Path):
    path = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": ""}])
    with pytest.raises(BadInput):
        run(path, tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()


def test_the_watch_is_told_the_end_also_when_a_run_breaks_off(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def gone(_: Request) -> str:
        raise EngineGaveUp("gone")

    use(monkeypatch, gone)
    watch = Quiet()
    with pytest.raises(EngineGaveUp):
        asyncio.run(revise_stage(settings(prompts, tmp_path / "run"), watch))
    assert watch.ended


def test_a_run_that_is_stopped_stays_held_until_its_last_shard_is_written(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write, held = Run.write_shard, list[bool]()

    async def stop_in_the_middle() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slowly(run: Run, *shard: Any) -> None:
            loop.call_soon_threadsafe(begun.set)
            time.sleep(0.2)
            run.check_held()
            write(run, *shard)
            held.append(run._hold is not None)

        monkeypatch.setattr(Run, "write_shard", slowly)
        work = asyncio.ensure_future(revise_stage(settings(prompts, tmp_path / "run", limit=6), Quiet()))
        await begun.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(stop_in_the_middle())
    assert held == [True] and open_run(str(tmp_path / "run")).finished_shards("trajectories") == [0]
