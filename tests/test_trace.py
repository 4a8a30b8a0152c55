"""A row's whole story: every call proven, every exported row led back to its origin, whatever has become of either."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cai import journal
from cai.call_story import call_story
from cai.cli_show import show
from cai.dataset_story import dataset_story
from cai.engines import Completion, Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import BadInput, CaiError
from cai.lineage import differences, ids_in, made_anew, open_datasets, rows_in
from cai.row_list import rows_of_run
from cai.seal import Json
from cai.settings import ExportSettings, GenerateSettings, LabelSettings, ReviseSettings
from cai.stages import export_stage, generate_stage, label_stage, revise_stage
from cai.store import Run, open_run
from cai.trace import trace
from tests import runs as hand
from tests.conftest import Quiet, journaled, played_by, write_jsonl

KEYS: dict[str, Request] = {}


def answer(request: Request) -> Any:
    """Every row has something of its own; q2 has no revision that passes, q3 a clean answer, q4 one failed try."""
    KEYS[request.key("scripted@1")] = request
    if request.purpose == "gate":
        return 0.1 if request.row_id == "q3" else 0.9
    if request.purpose == "revision" and request.row_id == "q2":
        return ""
    if request.purpose == "revision" and request.row_id == "q4" and request.seed % 2:
        return Completion("cut off in", "length", 9, 4, 3, (7, 8, 9))
    if request.purpose == "response":
        text = f"{request.row_id}: the answer to {request.messages[-1].content} is a wire and [bold]some[/] patience."
        return Completion(text, "stop", 12, 0, 9, tuple(range(9)))
    return derived_script(request)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run that is revised and labelled, and its dataset in two versions."""
    folder = tmp_path_factory.mktemp("traced")
    prompts = write_jsonl(folder / "p.jsonl", [_record(number) for number in range(6)])
    with pytest.MonkeyPatch.context() as patch:
        played_by(patch, ScriptedEngine(answer, model="scripted@1"))
        patch.chdir(folder)
        _revise(prompts)
        _do(label_stage(LabelSettings(run="run", engine="scripted", judge_principles=2, tie_band=0.0), Quiet()))
        _do(export_stage(ExportSettings(run="run", out="sets", versions=True), Quiet()))
        _do(export_stage(ExportSettings(run="run", out="sets", versions=True, sft="all"), Quiet()))
    yield folder


def _record(number: int) -> Json:
    asked = f"how to open lock number {number}, which is quite unlike the others{' indeed' * number}"
    turns = [("user", f"about {asked}"), ("assistant", "yes?"), ("user", asked)]
    return {"id": f"q{number}", "prompt": [{"role": role, "content": text} for role, text in turns]}


def _revise(prompts: Path, out: str = "run", **changes: Any) -> None:
    given: dict[str, Any] = {"prompts": str(prompts), "out": out, "engine": "scripted", "shard_rows": 4, "rounds": 2}
    settings = ReviseSettings(**{**given, "history": "off", "few_shot": "on", "revision_tries": 3, **changes})
    _do(revise_stage(settings, Quiet()))


def _do(work: Any) -> None:
    asyncio.run(work)


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def _shown(*arguments: object) -> str:
    result = CliRunner().invoke(show, [str(one) for one in arguments])
    if isinstance(result.exception, CaiError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_every_call_of_a_run_is_shown_as_it_was_sent_and_proven_by_its_key(made: Path):
    run, purposes = open_run(str(made / "run")), set[str]()
    by_purpose: dict[str, list[str]] = {}
    for key in sorted(journaled(made / "run")):
        by_purpose.setdefault(KEYS[key].purpose, []).append(key)
    for key in [key for keys in by_purpose.values() for key in keys[:4]]:
        story, sent = call_story(run, key), KEYS[key]
        assert story["request"] is not None, story["why_not"]
        assert [(one["role"], one["content"]) for one in story["request"]["messages"]] == [
            (one.role, one.content) for one in sent.messages
        ]
        ids = [one.get("token_ids", []) for one in story["request"]["messages"]]
        assert ids == [list(one.token_ids) for one in sent.messages]
        if sent.choices is None:
            assert story["request"]["sampling"]["temperature"] == sent.sampling.temperature
            assert story["request"]["seed"] == sent.seed
        purposes.add(story["purpose"])
    assert purposes >= {"response", "gate", "critique", "revision", "kept"}


def test_a_call_is_found_by_the_beginning_of_its_key_with_the_round_that_used_it(made: Path):
    run = open_run(str(made / "run"))
    row = trace(run, "q0")["trajectories"][0]
    first = row["rounds"][0]
    story = call_story(run, first["critique_call"][:12].upper())
    assert story["key"] == first["critique_call"] and story["answer"]["text"] == first["critique"]
    (use,) = story["used_by"]
    assert (use["row_id"], use["round"], use["use"]) == ("q0", 1, "critique")
    assert use["principle_id"] in story["principles"] and story["template"]["path"].endswith("critique.jinja")
    assert story["constitution"]["sha256"] == row["constitution_sha"] and story["engine"] == "scripted"
    assert story["session"]["number"] == 1 and story["versions"]["cai"] and story["asked_at"]


@pytest.mark.parametrize(
    ("key", "words"),
    [("abc", "found no key"), ("not-hexadecimal", "found no key"), ("0000000000", "found no such call")],
)
def test_a_key_that_leads_to_no_call_is_named(made: Path, key: str, words: str):
    with pytest.raises(BadInput, match=words):
        call_story(open_run(str(made / "run")), key)


def test_a_beginning_that_several_keys_share_is_named_with_them(copied: Path):
    path = copied / "run" / "journal" / "part-00000.jsonl"
    entry = next(one for _, one in journal._entries(path, []))
    other = entry["key"][:10] + ("0" if entry["key"][10] != "0" else "1") * 54
    with journal.Journal(path, journal.Tally()) as opened:
        opened.add({**entry, "key": other})
    with pytest.raises(BadInput, match="2 calls with keys that begin so") as caught:
        call_story(open_run(str(copied / "run")), entry["key"][:8])
    assert other[:16] in str(caught.value)


def test_a_template_that_somebody_changed_is_not_passed_off_as_what_was_sent(copied: Path):
    run = open_run(str(copied / "run"))
    key = trace(run, "q0")["trajectories"][0]["rounds"][0]["critique_call"]
    path = copied / "run" / "inputs" / "revise" / "critique.jinja"
    path.write_text(path.read_text() + "\nAnd be quick.")
    story = call_story(run, key)
    assert story["request"] is None and "are not those that the stage used" in story["why_not"]
    assert story["answer"]["text"], "the answer is there all the same"
    assert "cannot be shown" in _shown(copied / "run", "--call", key)


def test_a_journal_in_which_an_earlier_answer_was_changed_proves_nothing(copied: Path):
    run = open_run(str(copied / "run"))
    row = trace(run, "q0")["trajectories"][0]
    path = copied / "run" / "journal" / "part-00000.jsonl"
    lines: list[bytes] = []
    for _, entry in journal._entries(path, []):
        if entry["key"] == row["response_call"]:
            entry["text"] = "another answer"
        text = json.dumps(entry, separators=(",", ":"))
        lines.append(f"{journal.zlib.crc32(text.encode()):08x} {text}\n".encode())
    path.write_bytes(b"".join(lines))
    assert call_story(run, row["response_call"])["request"] is not None, "what was sent before it is proven"
    later = call_story(run, row["rounds"][0]["critique_call"])
    assert later["request"] is None and "another fingerprint" in later["why_not"]


def test_the_calls_of_a_dropped_row_are_shown_from_its_source_or_said_to_be_lost(copied: Path):
    run = open_run(str(copied / "run"))
    story = trace(run, "q2")
    assert story["drops"][0]["reason"] == "empty_revision"
    said = {one["use"]: one for one in story["calls"]}
    assert {"response", "gate", "critique", "revision"} <= said.keys() and said["critique"]["text"]
    shown = call_story(run, said["critique"]["key"])
    assert shown["request"]["messages"][2]["content"] == _record(2)["prompt"][2]["content"]
    assert "empty_revision" in _shown(copied / "run", "q2") and said["critique"]["text"] in _shown(copied / "run", "q2")
    manifest = json.loads((copied / "run" / "manifest.json").read_text())
    source = Path(manifest["revise"]["prompts"]["source"])
    write_jsonl(source.rename(source.with_name("moved.jsonl")).with_name("other.jsonl"), [])
    try:
        assert "does not keep the prompt" in call_story(run, said["critique"]["key"])["why_not"]
    finally:
        source.with_name("moved.jsonl").rename(source)


def test_a_row_knows_the_datasets_that_it_went_into_and_its_principles_in_words(made: Path):
    story = trace(open_run(str(made / "run")), "q0")
    places = {(Path(one["dataset"]).name, one["config"]) for one in story["exports"]}
    assert places >= {("v0001", "sft"), ("v0002", "sft"), ("v0001", "preference"), ("v0002", "kto")}
    assert all(one["differs"] == [] for one in story["exports"])
    round_ = story["trajectories"][0]["rounds"][0]
    wording = story["principles"]["revise"]["wording"][round_["principle_id"]]
    said = _shown(made / "run", "q0")
    assert wording["statement"] in " ".join(said.split()) and "[bold]some[/]" in said
    assert "[-" in said and "{+" in said, "without colours, marks say what was taken out and put in"
    assert all(one["place"] for one in story["calls"])


def test_every_exported_row_is_what_the_run_says_and_a_changed_one_is_not(made: Path):
    run = open_run(str(made / "run"))
    stories = {f"q{number}": trace(run, f"q{number}") for number in range(6)}
    for dataset in open_datasets(str(made / "sets")):
        for row in rows_in(dataset, stories):
            story = stories[row["row"]["row_id"]]
            anew = made_anew(run, dataset, story["trajectories"], story.get("pairs", []))
            assert differences(row, anew) == []
            principles = [*row["row"]["principle_ids"], "another"]
            assert differences({**row, "row": {**row["row"], "principle_ids": principles}}, anew) == ["principle_ids"]
            assert differences({**row, "row": {**row["row"], "row_id": "q99"}}, anew) is None


def test_a_row_of_a_dataset_is_shown_beside_its_origin_also_by_the_id_of_its_pair(made: Path):
    story = dataset_story(str(made / "sets"), "q0")
    assert story["versions"] == ["v0002", "v0001"] and Path(story["dataset"]).name == "v0002"
    assert story["run_as_it_was"] and Path(story["trace"]["run"]).resolve() == made / "run"
    assert {one["config"] for one in story["rows"]} == {"sft", "preference", "reward", "kto"}
    pair = story["trace"]["pairs"][0]["pair"]["pair_id"]
    by_pair = dataset_story(str(made / "sets" / "v0001"), pair)
    assert {one["row"]["row_id"] for one in by_pair["rows"]} == {"q0"} and "trajectories" in by_pair["trace"]
    said = _shown(made / "sets", "q0")
    assert "The run that it was made of" in said and "the run says the same" in said


def test_a_run_that_has_moved_is_asked_for_and_found_where_it_is_said_to_be(copied: Path, tmp_path: Path):
    away = tmp_path / "archive" / "somewhere"
    shutil.move(copied / "run", away)
    (copied / "other").mkdir()
    (copied / "other" / "settings.json").write_text("a damaged run that has nothing to do with it")
    with pytest.raises(BadInput, match=r"its run neither in its place nor near.*--run FOLDER"):
        dataset_story(str(copied / "sets"), "q0")
    found = dataset_story(str(copied / "sets"), "q0", [str(away)])
    assert found["trace"]["run"] == str(away) and found["run_as_it_was"]
    with pytest.raises(BadInput, match="no run that it was made of in"):
        dataset_story(str(copied / "sets"), "q0", [str(tmp_path)])
    key = found["trace"]["trajectories"][0]["response_call"]
    assert key in _shown(copied / "sets", "--call", key, "--run", away)


def test_a_dataset_of_another_run_is_refused_and_one_elsewhere_is_taken(copied: Path, tmp_path: Path):
    shutil.move(copied / "sets", tmp_path / "far" / "away")
    run = open_run(str(copied / "run"))
    assert trace(run, "q0")["exports"] == []
    assert trace(run, "q0", [str(tmp_path / "far" / "away")])["exports"]
    for place in ("v0001", "v0002"):
        path = tmp_path / "far" / "away" / place / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["run"] = {"manifest_sha256": "0" * 64, "stages": {}}
        path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="a dataset of 'cai export run"):
        trace(run, "q0", [str(tmp_path / "far" / "away")])


def test_an_answer_that_was_mixed_in_leads_to_the_record_that_it_was_taken_from(
    copied: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(copied)
    asked = [f"what is the weather in place {number}{' truly' * number}" for number in range(9)]
    records = [{"id": f"h{n}", "prompt": text, "response": f"fair, as in {text}"} for n, text in enumerate(asked)]
    path = write_jsonl(copied / "h.jsonl", records)
    settings = ExportSettings(run="run", out="mixed", helpful="h.jsonl", helpful_share=0.5, near_duplicates=1.0)
    _do(export_stage(settings, Quiet()))
    (dataset,) = open_datasets("mixed")
    name = next(one for one in sorted(ids_in(dataset)) if one.startswith("helpful:"))
    (record,) = dataset_story("mixed", name)["helpful"]["records"]
    assert "helpful:" + record["record"]["id"] == name and record["record"] in records
    assert record["record"]["response"] in " ".join(_shown("mixed", name).split())
    path.write_text(path.read_text() + "\n")
    with pytest.raises(BadInput, match="what its helpful answers were taken from"):
        dataset_story("mixed", name)


def test_an_exported_file_that_was_changed_is_not_shown(copied: Path):
    (path,) = (copied / "sets" / "v0002" / "sft").glob("train-*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="not as cai export wrote it"):
        dataset_story(str(copied / "sets" / "v0002"), "q0")


def test_an_unknown_id_names_the_ones_like_it(made: Path):
    with pytest.raises(BadInput, match=r"no row 'q00'.*Did you mean 'q0'"):
        trace(open_run(str(made / "run")), "q00")
    with pytest.raises(BadInput, match=r"no row 'q00'.*Did you mean 'q0'"):
        dataset_story(str(made / "sets"), "q00")
    with pytest.raises(BadInput, match="a ROW_ID, or --call KEY"):
        _shown(made / "run", "q0", "--call", "0000")


def test_an_unknown_id_names_the_first_row_as_the_list_has_it_also_where_that_row_has_no_pair(tmp_path: Path):
    rows = [hand.trajectory("q1"), hand.trajectory("q1~1", [hand.one_round()], sample=1, prompt_id="q1")]
    run = hand.write_run(
        tmp_path / "run", trajectories=rows, pairs=[hand.pair("q1~1")], labels=[hand.label("q1~1")],
        verdicts=[hand.verdict("q1~1")],
    )  # fmt: skip
    assert next(rows_of_run(run))["id"] == "q1"
    with pytest.raises(BadInput, match="the first one is 'q1'"):
        trace(run, "zz")


def test_an_id_that_begins_with_a_minus_is_taken_behind_two_of_them_and_the_error_says_so(tmp_path: Path):
    run = hand.write_run(tmp_path / "run", trajectories=[hand.trajectory("-d1", response="an answer to it")])
    assert "an answer to it" in _shown(run.folder, "--", "-d1")
    said = CliRunner().invoke(show, [str(run.folder), "-d1"])
    assert said.exit_code == 2 and "A ROW_ID that begins with '-' comes after '--': show PATH -- ROW_ID" in said.output
    assert "ROW_ID that" not in CliRunner().invoke(show, [str(run.folder), "--jso"]).output


def test_calls_that_another_run_or_an_older_version_asked_are_not_given_a_session(copied: Path):
    run = open_run(str(copied / "run"))
    key = trace(run, "q0")["trajectories"][0]["response_call"]
    path = copied / "run" / "journal" / "part-00000.jsonl"
    entries = [entry for _, entry in journal._entries(path, [])]

    def asked(at: str | None) -> Json:
        lines: list[str] = []
        for entry in entries:
            entry.pop("asked_at", None)
            text = json.dumps({**entry, "asked_at": at} if at is not None else entry)
            lines.append(f"{journal.zlib.crc32(text.encode()):08x} {text}\n")
        path.write_text("".join(lines))
        return call_story(run, key)

    assert "--reuse" in asked("2001-01-01T00:00:00+00:00")["session_unknown"]
    assert "of one that was killed, the next one says it" in asked("2999-01-01T00:00:00+00:00")["session_unknown"]
    run.add_session({"stage": "revise", "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "reused_calls": 3})
    assert "did not write down" in asked(None)["session_unknown"]


def test_long_conversations_samples_and_reasoned_verdicts_are_rebuilt_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    played_by(monkeypatch, ScriptedEngine(answer, model="scripted@1"))
    prompts = write_jsonl(tmp_path / "p.jsonl", [_record(0)])
    given: dict[str, Any] = {"engine": "scripted", "history": "off"}
    _do(generate_stage(GenerateSettings(prompts=str(prompts), out="run", samples=2, **given), Quiet()))
    judging: dict[str, Any] = {"judge_mode": "reasoned", "judge_principles": 1}
    _do(label_stage(LabelSettings(run="run", **judging, **given), Quiet()))
    _revise(prompts, "short", long_prompts="shorten", principles="all", rounds=1, few_shot="off")
    for name in ("run", "short"):
        run: Run = open_run(name)
        keys = sorted(journaled(Path(name)))
        stories = [call_story(run, key) for key in keys[:: max(1, len(keys) // 8)]]
        assert all(one["request"] is not None for one in stories), [one["why_not"] for one in stories]
    assert any(one.get("may_be_left_out") for one in stories[0]["request"]["messages"])
    verdict = trace(open_run("run"), "q0")["pairs"][0]["verdicts"][0]["calls"][-1]
    assert call_story(open_run("run"), verdict)["template"]["name"] == "judge_letter"
