"""`cai verify` on a dataset: what its manifest and its card say is made once more, so that no number and no sentence can
be changed, also where every digest was made to fit; and nothing is found in what cai wrote, whatever went into it."""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cai import contents, verify_contents
from cai.card import card
from cai.dataset import KIND, file_entry, json_text
from cai.export import constitutions_of
from cai.findings import Findings
from cai.ids import digest
from cai.seal import sealed
from cai.settings import ExportSettings, GenerateSettings, LabelSettings, ReviseSettings
from cai.stages import export_stage, generate_stage, label_stage, revise_stage
from cai.store import Run
from cai.verify import verify
from cai.versions import number_of
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


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that people have reviewed, a dataset of it, and two versions of another."""
    with pytest.MonkeyPatch.context() as patch:
        answer_by_script(patch)
        folder = tmp_path_factory.mktemp("contents")
        revise(folder, limit=10)
        label(folder)
        export(folder, "sets", versions=True)
        revise(folder)
        label(folder)
        review_all(folder / "run")
        export(folder, "sets", versions=True)
        export(folder, trainer="llama-factory", near_duplicates=0.9, length_ratio=9.0)
        return folder


@pytest.fixture
def finished(tmp_path: Path, made_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    answer_by_script(monkeypatch)
    return shutil.copytree(made_once, tmp_path / "finished")


# Forged


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list) and value:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(one, (*path, key))
    else:
        yield path


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


# Untouched

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
    assert "cai revise, limit: found 14 rows, 1 of each prompt, expected at most the 2 prompts of its limit." in every
    assert "manifest.json, cai revise: found rows that are made of 'x', expected None." in every
    assert any("its versions are not those that its last calls were asked with" in note for note in found.notes)
