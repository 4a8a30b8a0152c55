"""`cai verify` finds nothing in what cai wrote, whatever went into it, and says what it did not make once more; what a
run's manifest says of its cost and its limit is held against what else the run keeps."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai import verify_contents
from cai.findings import Findings
from cai.settings import GenerateSettings
from cai.stages import generate_stage
from cai.store import Run
from cai.versions import number_of
from tests.conftest import Quiet, write_jsonl
from tests.sets import change_at, export, forge, label, look, make_finished, revise, told, write_helpful
from tests.small import answer_by_script


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_finished(tmp_path_factory.mktemp("contents"))


@pytest.fixture
def finished(tmp_path: Path, made_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    answer_by_script(monkeypatch)
    return shutil.copytree(made_once, tmp_path / "finished")


EXPORTS: dict[str, dict[str, Any]] = {
    "all revisions": {"sft": "all", "clean_answers": "off"},
    "no test split": {"test_share": 0.0, "near_duplicates": 1.0},
    "half a test split": {"test_share": 0.5, "seed": 7, "length_ratio": 1.1},
    "a licence with everything": {"licence": "-x 'a' \"b\" | é \\ $ # \u2028 1", "trainer": "trl"},
    **{trainer: {"trainer": trainer} for trainer in ("openrlhf", "llama-factory", "axolotl", "verl", "nemo-rl")},
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_in_what_cai_exports_nothing_is_found(finished: Path, kind: str):
    found = look(export(finished, f"its {kind}", **EXPORTS[kind]), finished / "run")
    assert found.differences == [] and found.notes == []
    assert found.looked["cards made once more"] == 1 and found.looked["numbers of the manifest made once more"] > 300


def test_helpful_answers_and_evaluation_sets_are_read_again_where_they_are_and_told_where_they_are_not(
    finished: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluation = finished / "evaluation.txt"
    evaluation.write_text("question 3 of\nhelp 2\n")
    monkeypatch.chdir(finished)
    helpful = write_helpful(finished)
    one = export(finished, "one", helpful=helpful, decontaminate=("evaluation.txt",), helpful_share=0.2)
    manifest = json.loads((one / "manifest.json").read_text())
    assert manifest["answers"]["helpful"] and any(
        "evaluation" in name for name in manifest["counts"]["sft"]["left_out"]
    )
    found = look(one, finished / "run")
    assert found.differences == [] and all("come from elsewhere than the run" in note for note in found.notes)
    for path in (Path(helpful), evaluation):
        path.rename(path.with_suffix(".away"))
        found = look(one, finished / "run")
        assert found.differences == [] and any("it was not made once more, since the" in note for note in found.notes)
        forge(one, finished / "run", change_at(("labels", "decided")))
        assert "manifest.json, labels.decided: found" in told(one, finished / "run")
        forge(one, finished / "run", lambda value: value["labels"].update(decided=manifest["labels"]["decided"]))
        forge(one, finished / "run", lambda value: value["counts"]["kto"]["left_out"].update(near_duplicate=99))
        assert "counts of kto" in told(one, finished / "run")
        forge(one, finished / "run", lambda value: value.update(counts=manifest["counts"]))
        path.with_suffix(".away").rename(path)
    assert look(one, finished / "run").differences == []


def samples(folder: Path) -> None:
    write_jsonl(folder / "p.jsonl", [{"prompt": f"q {n}"} for n in range(5)])
    settings = GenerateSettings(
        prompts=str(folder / "p.jsonl"), out=str(folder / "run"), engine="scripted", samples=3, temperature=1.0,
        history="off", limit=4,
    )  # fmt: skip
    asyncio.run(generate_stage(settings, Quiet()))
    label(folder, pairs="samples", limit=9)


def without_labels(folder: Path) -> None:
    revise(folder, limit=3)
    revise(folder)


def labelled_before_it_grew(folder: Path) -> None:
    revise(folder, limit=6)
    label(folder, pairs="all", judge_mode="reasoned")
    revise(folder)


def reused(folder: Path) -> None:
    revise(folder)
    label(folder)
    (folder / "run").rename(folder / "old")
    revise(folder, reuse=(str(folder / "old"),), rounds=2, few_shot="on")
    label(folder, min_agreement=1.0)


@pytest.mark.parametrize("make", [samples, without_labels, labelled_before_it_grew, reused])
def test_in_runs_of_many_kinds_and_their_datasets_nothing_is_found(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
):
    answer_by_script(monkeypatch)
    make(tmp_path)
    one = export(tmp_path)
    found, run = look(one, tmp_path / "run"), look(tmp_path / "run", None)
    assert found.differences == [] and found.notes == [] and run.differences == []
    assert found.looked["cards made once more"] == 1 and run.looked["numbers of the cost"] > 0


def test_a_dataset_of_another_version_of_cai_is_told_and_its_numbers_are_left(
    finished: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verify_contents, "code_sha", lambda: "another")
    found = look(finished / "set", finished / "run")
    assert found.differences == [] and found.notes == [
        f"{finished}/set: another version of cai wrote it, so its card and the numbers of its manifest were not made "
        "once more."
    ]


def test_with_other_libraries_what_hangs_on_them_is_left_and_told(finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify_contents, "versions", lambda: {"datasketch": "9"})
    found = look(finished / "set", finished / "run")
    assert found.differences == [] and "since the libraries have other versions now" in found.notes[0]
    forge(finished / "set", finished / "run", change_at(("reviewed",)))
    assert "manifest.json, reviewed: found" in told(finished / "set", finished / "run")


def test_words_that_another_machine_would_find_are_no_difference_and_others_are():
    made = {"pairs": 50, "auc": 0.7, "verdict": "leaning", "chosen_words": ["a", "b"], "rejected_words": ["c", "d"]}
    near = verify_contents.is_nearly
    assert near(made, made) and near({**made, "auc": 0.708, "chosen_words": ["b", "e"]}, made)
    assert not near({**made, "auc": 0.72}, made) and not near({**made, "verdict": "content"}, made)
    assert not near({**made, "pairs": 51}, made) and not near({**made, "rejected_words": ["x", "y"]}, made)
    assert not near(None, made) and not near({**made, "auc": None}, made)


def test_every_version_is_held_against_a_run_that_is_named_once(finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(finished)
    found = Findings(Quiet())
    for place in (finished / "run", Path("run"), finished / "sets" / ".." / "run"):
        found.held(place)
    assert found.held_against == [str(finished / "run")]
    assert [number_of(path) for path in sorted((finished / "sets").iterdir())] == [1, 2]
    assert look(finished / "sets", Path("run")).held_against == ["run"]


# The run's manifest


@pytest.mark.parametrize("stage", ["revise", "label"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entry: entry["cost"].update(asked_calls=1), "cost, asked_calls: found 1, expected what the sessions"),
        (lambda entry: entry["cost"].update(seconds=1e9), "cost, seconds: found 1000000000.0, expected what the sess"),
        (lambda entry: entry["cost"].pop("seconds"), "cost, seconds: found None, expected what the sessions"),
        (lambda entry: entry["cost"].update(euros=3), "cost, euros: found 3, expected what the sessions"),
    ],
)
def test_a_cost_that_the_sessions_do_not_come_to_is_found(
    finished: Path, stage: str, change: Callable[[Any], object], words: str
):
    with Run(finished / "run") as run:
        entry = run.manifest()[stage]
        change(entry)
        run.write_manifest(stage, entry)
    assert f"manifest.json, cai {stage}, {words}" in told(finished / "run", finished / "run")


def test_a_limit_and_an_origin_that_the_rows_do_not_have_are_found_and_other_versions_are_told(finished: Path):
    with Run(finished / "run") as run:
        entry = run.manifest()["revise"]
        entry["prompts"] |= {"limit": 2, "made_of": "x"}
        entry["versions"] = {**entry["versions"], "pyarrow": "0"}
        run.write_manifest("revise", entry)
    found = look(finished / "run", None)
    every = "\n".join(map(str, found.differences))
    assert (
        "cai revise, prompts, limit: found 14 rows, 1 of each prompt, expected at most the 2 prompts of its limit."
        in every
    )
    assert "manifest.json, cai revise, prompts, made_of: found 'x', expected none." in every
    assert any("its versions are not those that its last calls were asked with" in note for note in found.notes)
