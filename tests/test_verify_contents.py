"""`cai verify` on a dataset: what its manifest and its card say is made once more, so that no number and no sentence
can be changed, also where every digest was made to fit."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cai import contents
from cai.dataset import KIND, file_entry, json_text
from cai.ids import digest
from cai.seal import sealed
from tests.sets import change_at, forge, look, make_finished, told
from tests.small import answer_by_script


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_finished(tmp_path_factory.mktemp("contents"))


@pytest.fixture
def finished(tmp_path: Path, made_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    answer_by_script(monkeypatch)
    return shutil.copytree(made_once, tmp_path / "finished")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list) and value:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(one, (*path, key))
    else:
        yield path


def unfound(folder: Path, run: Path, drawn: Iterable[tuple[Any, ...]]) -> dict[str, str]:
    """The leaves, of these, of a manifest that can be changed without a difference, and what is noted instead."""
    before = {name: (folder / name).read_bytes() for name in ("manifest.json", "README.md")}
    found: dict[str, str] = {}
    for path in drawn:
        if path[0] in ("sealed", "files", "kind"):  # bytes, and what makes it a dataset
            continue
        try:
            forge(folder, run, change_at(path))
        except (KeyError, ValueError, TypeError, AttributeError):
            continue  # no card can be made of it
        seen = look(folder, run)
        if not seen.differences:
            found[".".join(map(str, path))] = " ".join(seen.notes)
        for name, data in before.items():
            (folder / name).write_bytes(data)
    return found


NOT_HELD = {"code_sha", "command", "run.manifest_sha256", *(f"versions.{name}" for name in contents.versions())}


@pytest.mark.parametrize("name", ["set", "sets/v0002"])
def test_no_leaf_of_a_manifest_can_be_changed_unseen_but_those_that_the_documentation_names(
    finished: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    every = list(leaves(json.loads((finished / name / "manifest.json").read_text())))
    drawn = [path for number, path in enumerate(every) if number % 11 == 0 or ".".join(map(str, path)) in NOT_HELD]
    assert len(drawn) > 45 and len(every) > 450
    found = unfound(finished / name, finished / "run", drawn)
    assert found.keys() == NOT_HELD
    assert {name for name, note in found.items() if not note} == {"command"}, "the others are told"


@pytest.mark.parametrize(
    "path",
    [
        "reviewed", "by_person", "mean_chosen_probability", "mean_letter_mass", "pair_kinds.revision-1 over response",
        "sides.longer_chosen", "sides.chosen.mean_words", "separability.pairs", "sft_rejected", "labels.decided",
        "labels.reviewed.n", "run.stages.revise.counts.changed", "run.stages.label.counts.tokens.prompt_tokens",
        "run.stages.revise.prompts.name", "run.labels_are_older", "method.seed", "method.licence", "helpful_share",
        "view_left_out", "helpful", "principles.preference", "distinct_prompts.sft",
    ],
)  # fmt: skip
def test_a_number_that_was_made_to_fit_is_named_with_what_the_run_makes(finished: Path, path: str):
    keys = tuple(path.split("."))
    forge(finished / "set", finished / "run", change_at(keys))
    found = told(finished / "set", finished / "run")
    assert f"set/manifest.json, {path}" in found, found
    assert "bytes" not in found and "README.md" not in found


def test_rows_that_were_never_left_out_and_an_evaluation_set_that_was_never_looked_at_are_found(finished: Path):
    def change(value: Any) -> None:
        value["counts"]["sft"]["read"] += 5
        value["counts"]["sft"]["left_out"]["in_evaluation_set:mmlu.txt"] = 5
        value["evaluation_sets"] = [{"name": "mmlu.txt", "sha256": "0" * 64}]

    forge(finished / "set", finished / "run", change)
    found = told(finished / "set", finished / "run")
    assert "manifest.json, counts.sft.read: found" in found and "manifest.json, evaluation_sets: found" in found
    assert (
        "manifest.json, counts.sft.left_out.in_evaluation_set:mmlu.txt: found 5, expected what the run makes" in found
    )


def test_something_more_and_something_less_in_a_manifest_is_found(finished: Path):
    forge(finished / "set", finished / "run", lambda value: value.update(checked_by="a panel of experts"))
    assert "manifest.json, checked_by: found 'a panel of experts', expected what the run makes: 'nothing'" in told(
        finished / "set", finished / "run"
    )
    forge(finished / "set", finished / "run", lambda value: value["run"]["stages"]["revise"]["counts"].pop("changed"))
    assert "manifest.json, run.stages.revise.counts.changed: found 'nothing', expected what the run" in told(
        finished / "set", finished / "run"
    )


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("No person wrote the answers; people wrote", "People wrote the answers, and"),
        ("people wrote the constitution", "a panel of experts decided"),
        ("| of the pairs judged, decided | ", "| of the pairs judged, decided | 4"),
        ("tags:\n", "tags:\n- human\n"),
    ],
)
def test_a_sentence_or_a_number_of_the_card_that_cai_did_not_write_is_found_also_without_the_run(
    finished: Path, old: str, new: str, alone: bool
):
    path = finished / "set" / "README.md"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    value: Any = json.loads((finished / "set" / "manifest.json").read_text())
    value.pop("sealed")
    value["files"][-1] = file_entry(finished / "set", path, 0)
    (finished / "set" / "manifest.json").write_text(json_text(sealed(value, KIND)))
    if alone:
        for other_run in (finished / "run").iterdir():
            shutil.rmtree(other_run) if other_run.is_dir() else other_run.unlink()
    found = look(finished / "set", None if alone else finished / "run")
    assert len(found.differences) == 1 and found.looked["cards made once more"] == 0
    assert "README.md, line " in found.differences[0].place
    assert "what the manifest and the constitution make: " in found.differences[0].expected
    assert new.splitlines()[-1] in found.differences[0].found, "the line is cut where it differs"


def change_files(folder: Path, run: Path, names: str, change: Callable[[list[Any]], list[Any]]) -> None:
    """Change rows of a dataset's files, and make its manifest and card fit."""
    for path in folder.glob(names):
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in change(lines)))
        else:
            table = pq.read_table(path)
            pq.write_table(type(table).from_pylist(change(table.to_pylist()), schema=table.schema), path)

    def fit(value: Any) -> None:
        value["files"] = [file_entry(folder, folder / one["path"], one["rows"]) for one in value["files"]]
        of_rows = [one for one in value["files"] if one["path"] not in ("README.md", "changes.parquet")]
        value["content_sha"] = digest([[one["path"], one["sha256"]] for one in of_rows])

    forge(folder, run, fit)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("llama-factory/sft-train.jsonl", "sft-train.jsonl: found other rows than those of the dataset"),
        ("sft/train-*.parquet", "set/sft, train, row 1: found another row, expected what the run gives by this method"),
    ],
)
def test_rows_in_another_order_and_rows_for_a_trainer_that_are_others_are_found(finished: Path, names: str, words: str):
    change_files(finished / "set", finished / "run", names, lambda rows: rows[::-1])
    found = told(finished / "set", finished / "run")
    assert words in found and "bytes" not in found, found


def test_a_version_that_says_it_came_after_another_is_found(finished: Path):
    folder = finished / "sets" / "v0002"
    forge(folder, finished / "run", lambda value: value["version"]["before"].update(name="v0007"))
    found = told(folder, finished / "run")
    assert "manifest.json, version: found the version before is 'v0007', expected 'v0001'." in found
    shutil.copytree(folder, finished / "sets" / "v0001", dirs_exist_ok=True)
    forge(finished / "sets" / "v0001", finished / "run", lambda value: value["version"].update(name="v0001"))
    assert "the version before is 'v0007', expected None" in told(finished / "sets" / "v0001", finished / "run")
