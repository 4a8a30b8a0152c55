"""Exported datasets: which rows, in which split, in which bytes, what is left out, and what the card says."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cai import dataset
from cai.audit import TABLES
from cai.candidates import run_answers, run_pairs
from cai.card import card, smoothing
from cai.contents import ExportMethod
from cai.errors import BadInput, CaiError
from cai.export import export
from cai.folder import new_folder
from cai.hygiene import found_in, near_duplicates, prompt_groups, prompt_key, read_evaluation, shingles
from cai.ids import file_digest
from cai.markdown import plain
from cai.probes import separability
from cai.rows import Message
from cai.splits import split_of
from cai.store import Run
from cai.views import make_view
from tests.conftest import write_jsonl
from tests.runs import label, one_round, pair, response, said, text, trajectory, verdict, write_run


def method(**changes: Any) -> ExportMethod:
    values: dict[str, Any] = {
        "seed": 0, "sft": "final", "clean_answers": True, "helpful": None, "helpful_share": 0.5, "test_share": 0.2,
        "near_duplicates": 0.8, "length_ratio": None, "decontaminate": (), "licence": "apache-2.0", "trainer": "trl",
    }  # fmt: skip
    return ExportMethod(**{**values, **changes})


def make(run: Run, out: Path, **changes: Any) -> dict[str, Any]:
    return export(run, out, method(**changes), "cai export RUN --out DIR", lambda sentence: None)


def some_run(folder: Path, rows: int = 30) -> Run:
    """Revised rows and a decided pair for each; in every third pair b is the chosen one."""
    names = [f"r{n}" for n in range(rows)]
    labels = [label(name, "b", 0.2) if n % 3 == 0 else label(name) for n, name in enumerate(names)]
    return write_run(
        folder,
        shard_rows=7,
        trajectories=[trajectory(name, [one_round(text(("revision", name)))]) for name in names],
        pairs=[pair(name) for name in names],
        labels=labels,
        verdicts=[verdict(name) for name in names],
    )


def rows_of(out: Path, config: str, split: str = "*") -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob(f"{config}/{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Which rows


def answers(tmp_path: Path, rows: Sequence[object], which: Any = "final", clean: bool = True) -> tuple[Any, Any]:
    found = run_answers(write_run(tmp_path / "run", trajectories=rows), which, clean)
    return [(one.row_id, one.answer, one.answer_from, one.principle_ids) for one in found.answers], found.left_out


def test_the_final_answer_is_the_last_revision_that_was_taken(tmp_path: Path):
    rounds = [
        one_round("first", principle_id="p1"),
        one_round("second", principle_id="p2"),
        one_round(None, principle_id="p3"),
    ]
    found, left_out = answers(tmp_path, [trajectory("r", rounds)])
    assert found == [("r", "second", "revision-2", ("p1", "p2"))] and not left_out


def test_all_gives_every_revision_that_was_taken(tmp_path: Path):
    rounds = [one_round("first"), one_round("bad", taken=False, gate=False), one_round("second", principle_id="p2")]
    found, _ = answers(tmp_path, [trajectory("r", rounds)], "all")
    assert [one[1:3] for one in found] == [("first", "revision-1"), ("second", "revision-2")]


@pytest.mark.parametrize(
    ("row", "clean", "reason"),
    [
        (trajectory("r", [one_round("bad", taken=False)]), True, "revision_failed"),
        (trajectory("r", [one_round("bad", taken=False, gate=False)]), True, "revision_failed"),
        (trajectory("r", [one_round("good"), one_round("bad", taken=False)]), True, "still_broken"),
        (trajectory("r", [one_round(None)]), False, "clean_left_out"),
        (trajectory("r", [one_round(None)], response_finish="length"), True, "cut_off"),
        (trajectory("r"), True, "not_judged"),
    ],
)
@pytest.mark.parametrize("which", ["final", "all"])
def test_an_answer_that_is_not_known_to_be_good_is_left_out_with_its_reason(
    tmp_path: Path, row: object, clean: bool, reason: str, which: str
):
    found, left_out = answers(tmp_path, [row], which, clean)
    assert found == [] and left_out == {reason: 1}


def test_an_answer_that_the_gate_or_the_critique_found_clean_is_one_without_principles(tmp_path: Path):
    cleared = one_round(None, critique="nothing to criticise", flags=("nothing_found",))
    refusal = one_round(None, gate_call=None, flags=("plain_refusal",))
    found, _ = answers(tmp_path, [trajectory(name, [one]) for name, one in (("c", cleared), ("p", refusal))])
    assert [(one[0], one[2], one[3]) for one in found] == [("c", "response", ()), ("p", "response", ())]


def test_without_a_gate_a_later_revision_that_failed_says_nothing_against_the_one_before(tmp_path: Path):
    rounds = [one_round("good", gate=False), one_round("bad", taken=False, gate=False)]
    found, _ = answers(tmp_path, [trajectory("r", rounds)])
    assert [one[1] for one in found] == ["good"]


@pytest.mark.parametrize(
    ("told", "chosen", "probability", "margin"),
    [
        (label("p", "a", 0.9), "the a", 0.9, 2.2),
        (label("p", "b", 0.2), "the b", 0.8, 2.2),
        (label("p", "b", 0.9, reviewed="b"), "the b", 1.0, 0.0),
        (label("p", "a", None, margin=None, reviewed="a"), "the a", 1.0, 0.0),
        (label("p", "a", 0.7, reviewed="a"), "the a", 0.7, 2.2),
    ],
)
def test_a_label_is_seen_from_the_chosen_answer(
    tmp_path: Path, told: Any, chosen: str, probability: float, margin: float
):
    run = write_run(tmp_path / "run", pairs=[pair("p", a="the a", b="the b")], labels=[told])
    (one,) = run_pairs(run).pairs
    assert (one.chosen, one.rejected) == (chosen, "the b" if chosen == "the a" else "the a")
    assert (one.chosen_probability, one.margin) == (pytest.approx(probability), margin)


def test_pairs_that_nothing_decides_are_counted_by_reason(tmp_path: Path):
    names = ["t", "n", "r", "ok"]
    labels = [label("t", "none", 0.5), label("r", "none", 0.9, reviewed="none"), label("ok")]
    found = run_pairs(write_run(tmp_path / "run", pairs=[pair(name) for name in names], labels=labels))
    assert [one.pair_id for one in found.pairs] == ["ok"]
    assert found.left_out == {"tie": 1, "no_label": 1, "person_chose_neither": 1}


@pytest.mark.parametrize("probability", [0.3, None])
def test_a_label_that_chooses_the_less_likely_answer_is_refused(tmp_path: Path, probability: float | None):
    run = write_run(tmp_path / "run", pairs=[pair("p")], labels=[label("p", "a", probability)])
    with pytest.raises(BadInput, match="less likely"):
        run_pairs(run)


def test_a_chosen_answer_that_was_cut_off_is_left_out(tmp_path: Path):
    revised = write_run(
        tmp_path / "revised",
        trajectories=[trajectory("r", response_finish="length"), trajectory("q")],
        # Responses of the same name in the same folder are not what these pairs are made of.
        responses=[response("q", "length")],
        pairs=[
            pair("1", row_id="r", a_from="response", b_from="revision-1"),
            pair("2", row_id="r", a_from="revision-1", b_from="response"),
            pair("5", row_id="q", a_from="response", b_from="revision-1"),
        ],
        labels=[label(name) for name in "125"],
    )
    sampled = write_run(
        tmp_path / "sampled",
        responses=[response("q~1", "length"), response("q")],
        pairs=[
            pair("3", row_id="q", prompt_id="q", a_from="sample-1", b_from="sample-0"),
            pair("4", row_id="q", prompt_id="q", a_from="sample-0", b_from="sample-1"),
        ],
        labels=[label(name) for name in "34"],
    )
    found, others = run_pairs(revised), run_pairs(sampled)
    assert [one.pair_id for one in found.pairs] == ["2", "5"] and found.left_out == {"cut_off": 1}
    assert [one.pair_id for one in others.pairs] == ["4"] and others.left_out == {"cut_off": 1}


# Files


def test_every_row_is_written_also_those_of_the_last_partial_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset, "FILE_ROWS", 8)
    run = some_run(tmp_path / "run", 30)
    manifest = make(run, tmp_path / "out", test_share=0.0)
    names = [f"train-{n:05d}-of-00004.parquet" for n in range(4)]
    assert sorted(path.name for path in (tmp_path / "out" / "preference").iterdir()) == names
    assert [pq.read_metadata(tmp_path / "out" / "preference" / name).num_rows for name in names] == [8, 8, 8, 6]
    for config in ("sft", "preference", "reward"):
        assert [row["row_id"] for row in rows_of(tmp_path / "out", config)] == [f"r{n}" for n in range(30)]
    assert manifest["counts"]["kto"] == {"read": 60, "left_out": {}, "written": {"train": 60, "test": 0}}


def test_load_dataset_reads_every_config_and_split_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    manifest = make(some_run(tmp_path / "run"), tmp_path / "out")
    for config, columns in {
        "sft": ["messages", "answer_from", "row_id", "principle_ids"],
        "preference": [
            "prompt", "chosen", "rejected", "chosen_probability", "pair_id", "row_id", "principle_ids",
        ],
        "reward": [
            "prompt", "chosen", "rejected", "chosen_probability", "margin", "pair_id", "row_id", "principle_ids",
        ],
        "kto": ["prompt", "completion", "label", "pair_id", "row_id", "principle_ids"],
    }.items():  # fmt: skip
        loaded: Any = datasets.load_dataset(str(tmp_path / "out"), config, cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in loaded.items()} == manifest["counts"][config]["written"]
        assert loaded["train"].column_names == columns
    first = datasets.load_dataset(str(tmp_path / "out"), "preference", split="train", cache_dir=str(tmp_path / "c"))[0]
    assert [turn["role"] for turn in first["prompt"]] == ["user"] and first["chosen"][0]["role"] == "assistant"


def test_a_dataset_that_was_exported_anew_is_not_read_from_a_cache(tmp_path: Path):
    """datasets caches a folder by its name and its card's front, not by its files."""
    from datasets import load_dataset

    out = tmp_path / "the-same-name"
    for rows in (20, 30):
        make(some_run(tmp_path / f"run-{rows}", rows), out, test_share=0.0)
        assert len(load_dataset(str(out), "preference")["train"]) == rows


def test_the_footer_carries_the_features_and_the_page_index(tmp_path: Path):
    make(some_run(tmp_path / "run"), tmp_path / "out")
    metadata = pq.read_metadata(tmp_path / "out" / "reward" / "train-00000-of-00001.parquet")
    features = json.loads(metadata.metadata[b"huggingface"])["info"]["features"]
    assert features["margin"] == {"dtype": "float64", "_type": "Value"}
    assert features["chosen"]["_type"] == "List"
    assert metadata.row_group(0).column(0).has_offset_index and metadata.row_group(0).column(0).has_column_index


def test_a_null_or_an_unknown_column_is_refused():
    row = {"messages": [], "answer_from": "response", "row_id": "r", "principle_ids": []}
    dataset.arrow_table([row], dataset.DATASET_SCHEMAS["sft"])
    for wrong in (row | {"row_id": None}, row | {"more": 1}, {"row_id": "r"}):
        with pytest.raises(ValueError, match=r"null|keys"):
            dataset.arrow_table([wrong], dataset.DATASET_SCHEMAS["sft"])


def test_the_same_run_and_method_give_the_same_bytes(tmp_path: Path):
    run = some_run(tmp_path / "run")
    make(run, tmp_path / "one", trainer="llama-factory")
    make(run, tmp_path / "two", trainer="llama-factory")
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")


def test_the_manifest_answers_for_every_file(tmp_path: Path):
    manifest = make(some_run(tmp_path / "run"), tmp_path / "out", trainer="nemo-rl")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    for file in manifest["files"]:
        path = tmp_path / "out" / file["path"]
        assert (file_digest(path), path.stat().st_size) == (file["sha256"], file["bytes"])
    assert {file["path"] for file in manifest["files"]} | {"manifest.json"} == set(all_bytes(tmp_path / "out"))
    assert manifest["run"]["manifest_sha256"] == file_digest(tmp_path / "run" / "manifest.json")


def test_an_earlier_export_is_replaced_and_other_files_are_never_lost(tmp_path: Path):
    run, out = some_run(tmp_path / "run"), tmp_path / "out"
    make(run, out, trainer="axolotl")
    make(run, out, test_share=0.0)
    assert not (out / "axolotl").exists() and not list((out / "sft").glob("test-*"))
    (out / "notes.txt").write_text("mine")
    before = all_bytes(out)
    with pytest.raises(BadInput, match=r"somebody else's \(notes\.txt\)"):
        make(run, out)
    (out / "notes.txt").unlink()
    (out / "README.md").write_text("my own words")
    with pytest.raises(BadInput, match=r"changed since it was exported \(README\.md\)"):
        make(run, out)
    with pytest.raises(BadInput, match="the run, or a folder that it lies in"):
        make(run, run.folder)
    assert (out / "README.md").read_text() == "my own words"
    assert set(all_bytes(out)) == set(before) - {"notes.txt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"], "no scratch folder stays"


def test_an_export_that_fails_leaves_the_earlier_one_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, out = some_run(tmp_path / "run"), tmp_path / "out"
    make(run, out)
    before = all_bytes(out)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cai.export.write_configs", fail)
    with pytest.raises(ZeroDivisionError):
        make(run, out)
    assert all_bytes(out) == before and sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    out.rename(tmp_path / ".out.cai-old")  # killed between the two renames
    with pytest.raises(ZeroDivisionError):
        make(run, out)
    assert all_bytes(out) == before, "the earlier one has its name back"
    monkeypatch.undo()
    shutil.copytree(out, tmp_path / ".out.cai-old")  # killed behind them
    make(run, out)
    assert all_bytes(out) == before and sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


# Splits


prompts = st.lists(
    st.lists(st.sampled_from(["a b c d e", "A  b c d e", "f g h i j", "a b c d e f g", "k", "l m"]), min_size=1,
             max_size=3),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=60)
@given(prompts=prompts, seed=st.integers(0, 5))
def test_no_prompt_and_no_near_duplicate_is_in_two_splits(prompts: list[list[str]], seed: int):
    made = [tuple(Message(("user", "assistant")[n % 2], turn) for n, turn in enumerate(one)) for one in prompts]
    made = [one if len(one) % 2 else one[:-1] for one in made]
    groups = prompt_groups(made, 0.6)
    splits = split_of(set(groups.values()), seed, 0.5)
    side = {prompt_key(one): splits[groups[prompt_key(one)]] for one in made}
    for one in made:
        for other in made:
            near = {"\n".join(turn.content for turn in each) for each in (one, other)}
            runs = [shingles(each) for each in near]
            if len(runs) == 1 or len(runs[0] & runs[1]) / len(runs[0] | runs[1]) >= 0.6:
                assert side[prompt_key(one)] == side[prompt_key(other)]
            if other[: len(one)] == one:
                assert side[prompt_key(one)] == side[prompt_key(other)]
    assert prompt_groups(reversed(made), 0.6) == groups, "the order does not matter"


def test_prompts_of_one_split_are_never_in_the_other_in_any_config(tmp_path: Path):
    names = [f"r{n}" for n in range(60)]
    shared = {name: text(("shared", n // 3)) for n, name in enumerate(names)}
    helpful = [{"prompt": shared[name], "response": text(("helpful", name))} for name in names]
    run = write_run(
        tmp_path / "run",
        trajectories=[trajectory(name, [one_round(text(name))], prompt=shared[name].upper()) for name in names],
        pairs=[pair(name, prompt=shared[name]) for name in names],
        labels=[label(name) for name in names],
    )
    file = write_jsonl(tmp_path / "helpful.jsonl", helpful)
    make(run, tmp_path / "out", test_share=0.4, helpful=str(file), near_duplicates=None)
    sides: dict[str, set[str]] = {"train": set(), "test": set()}
    for split, found in sides.items():
        for config in dataset.CONFIGS:
            rows = rows_of(tmp_path / "out", config, split)
            assert rows, (config, split)
            turns = [row["prompt"] if "prompt" in row else row["messages"][:-1] for row in rows]
            found |= {turn[-1]["content"].casefold() for turn in turns}
    assert not sides["train"] & sides["test"]


def test_a_prompt_stays_in_its_split_when_others_come(tmp_path: Path):
    make(some_run(tmp_path / "small", 30), tmp_path / "one", test_share=0.4)
    make(some_run(tmp_path / "large", 60), tmp_path / "two", test_share=0.4)
    small, large = ({row["row_id"] for row in rows_of(tmp_path / name, "sft", "test")} for name in ("one", "two"))
    assert small == {name for name in large if int(name[1:]) < 30} and 5 <= len(small) <= 19


def test_a_config_with_too_few_rows_for_two_splits_has_all_of_them_in_train(tmp_path: Path):
    manifest = make(some_run(tmp_path / "run", 2), tmp_path / "out", test_share=0.99)
    assert {config: entry["written"]["test"] for config, entry in manifest["counts"].items()} == dict.fromkeys(
        dataset.CONFIGS, 0
    )


# Hygiene


def test_read_is_written_and_left_out_for_every_config(tmp_path: Path):
    evaluation = tmp_path / "evaluation.txt"
    evaluation.write_text(text("secret", 20))
    same = text("same")
    pairs = [
        pair("first", prompt="p", a=same, b=text("x")),
        pair("again", prompt="P ", a=same.upper(), b=text("x")),
        pair("near", prompt="p", a=same + " indeed", b=text("x") + " indeed"),
        pair("other-prompt", prompt=text("q"), a=same + " indeed", b=text("x")),
        pair("for", prompt="c", a=text("y"), b=text("z")),
        pair("against", prompt="c", a=text("z"), b=text("y")),
        pair("long", a=text("l", 100), b=text("s", 10)),
        pair("in-test", a="so " + text("secret", 20)),
        pair("alike", a="One two three.", b="one  two three."),
        pair("tie"),
    ]
    labels = [label(one.pair_id, *(("none", 0.5) if one.pair_id == "tie" else ())) for one in pairs]
    run = write_run(tmp_path / "run", trajectories=[trajectory("r")], pairs=pairs, labels=labels)
    manifest = make(run, tmp_path / "out", test_share=0.0, length_ratio=4.0, decontaminate=(str(evaluation),))
    assert {row["pair_id"] for row in rows_of(tmp_path / "out", "preference")} == {"first", "other-prompt"}
    left_out = {
        "alike": 1, "contradicted": 2, "duplicate": 1, "in_evaluation_set:evaluation.txt": 1, "lengths_apart": 1,
        "near_duplicate": 1, "tie": 1,
    }  # fmt: skip
    assert manifest["counts"]["preference"]["left_out"] == left_out
    assert manifest["counts"]["kto"]["left_out"] == {reason: 2 * count for reason, count in left_out.items()}
    assert manifest["counts"]["sft"] == {"read": 1, "written": {"train": 0, "test": 0}, "left_out": {"not_judged": 1}}
    for entry in manifest["counts"].values():
        assert entry["read"] == sum(entry["written"].values()) + sum(entry["left_out"].values())


def test_an_answer_that_is_good_in_one_pair_and_bad_in_another_is_in_no_kto_row(tmp_path: Path):
    one, two, three = text(1), text(2), text(3)
    pairs = [
        pair("1", prompt="p", a=one, b=two),
        pair("2", prompt="p", a=two, b=three),
        pair("3", prompt="p", a=one, b=three),
    ]
    manifest = make(
        write_run(tmp_path / "run", pairs=pairs, labels=[label(n) for n in "123"]), tmp_path / "out", test_share=0.0
    )
    rows = rows_of(tmp_path / "out", "kto")
    assert [(row["completion"][0]["content"], row["label"]) for row in rows] == [(one, True), (three, False)]
    assert manifest["counts"]["kto"]["left_out"] == {"duplicate": 2, "good_and_bad": 2}


def test_refusals_in_the_same_words_to_different_prompts_all_stay(tmp_path: Path):
    refusal = "I am sorry, but I cannot help with that, whatever it is for."
    rows = [trajectory(f"r{n}", [one_round(refusal)]) for n in range(9)]
    manifest = make(write_run(tmp_path / "run", trajectories=rows), tmp_path / "out")
    assert sum(manifest["counts"]["sft"]["written"].values()) == 9


def test_near_duplicates_are_found_at_the_threshold_and_nothing_else(tmp_path: Path):
    base = text("base", 60).split()
    texts = [base, [*base[:-4], "a", "b", "c", "d"], [*base[:30], *text("other", 30).split()]]
    found = list(near_duplicates([shingles(" ".join(one)) for one in texts], 0.8, keep=True))
    assert found == [[], [0], []]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12).map(" ".join), min_size=2, max_size=12),
    st.sampled_from([0.3, 0.7, 0.9, 1.0]),
)
def test_near_duplicates_are_those_of_comparing_each_with_each(texts: list[str], threshold: float):
    runs = [shingles(one) for one in texts]
    found = list(near_duplicates(runs, threshold, keep=True))
    for number, one in enumerate(runs):
        for other in found[number]:
            assert len(one & runs[other]) / len(one | runs[other]) >= threshold
        assert [n for n in range(number) if runs[n] == one] == [n for n in found[number] if runs[n] == one]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "parquet"])
def test_evaluation_texts_are_found_whatever_their_columns_are_called(tmp_path: Path, kind: str):
    import pyarrow as pa

    long, short = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen", "Is it raining?"
    file = tmp_path / f"e.{kind}"
    if kind == "jsonl":
        write_jsonl(file, [{"turns": [{"said": long}], "n": 3}, {"goal": short}])
    elif kind == "parquet":
        pq.write_table(pa.table({"goal": [long, short]}), file)
    else:
        file.write_text("\n".join([*(["goal"] if kind == "csv" else []), long, short]) + "\n")
    evaluation = read_evaluation(str(file))
    assert found_in([f"Well, {' '.join(long.upper().split()[:13])}."], [evaluation]) == f"e.{kind}"
    assert found_in([" ".join(long.split()[:12]) + " no"], [evaluation]) is None
    assert found_in(["is it RAINING"], [evaluation]) == f"e.{kind}"
    assert found_in(["She asked: is it raining?"], [evaluation]) is None


@pytest.mark.parametrize("lines", [None, "", '{"a": 1}\n', '{"a": "some words are here"}\n{"torn'])
def test_an_evaluation_file_that_cannot_be_read_whole_is_refused(tmp_path: Path, lines: str | None):
    file = tmp_path / "e.jsonl"
    if lines is not None:
        file.write_text(lines)
    with pytest.raises(BadInput):
        read_evaluation(str(file))


def test_words_that_give_the_chosen_answer_away_are_found_and_others_are_not(tmp_path: Path):
    def measure(name: str, mark: str, rows: int = 60) -> dict[str, Any]:
        pairs = [pair(str(n), a=text((name, n)) + mark) for n in range(rows)]
        run = write_run(tmp_path / name, pairs=pairs, labels=[label(str(n)) for n in range(rows)])
        found = run_pairs(run).pairs
        return separability(found, prompt_groups((one.prompt for one in found), None))

    style = measure("style", " certainly")
    assert style["verdict"] == "style" and style["auc"] > 0.95 and style["chosen_words"][0] == "certainly"
    assert measure("content", "")["verdict"] == "content"
    assert measure("few", " certainly", 39) == {
        "pairs": 39, "auc": None, "verdict": "too_few", "chosen_words": [], "rejected_words": [],
    }  # fmt: skip


# Helpful answers


def test_helpful_answers_make_up_their_share(tmp_path: Path):
    helpful = [{"id": n, "prompt": text(("h", n)), "response": text(("a", n))} for n in range(40)]
    helpful += [
        {"prompt": "no answer"},
        {"messages": [{"role": "user", "content": "x"}]},
        {"prompt": "x", "response": " "},
    ]
    file = write_jsonl(tmp_path / "h.jsonl", helpful)
    manifest = make(some_run(tmp_path / "run", 30), tmp_path / "out", helpful=str(file), helpful_share=0.25)
    assert manifest["answers"] == {"helpful": 10, "revision-1": 30} and manifest["helpful_share"] == 0.25
    ids = {row["row_id"] for row in rows_of(tmp_path / "out", "sft") if row["answer_from"] == "helpful"}
    assert ids <= {f"helpful:{n}" for n in range(40)} and len(ids) == 10
    assert manifest["counts"]["sft"]["left_out"] == {"over_helpful_share": 30, "unusable": 3}
    order = [row["answer_from"] for row in rows_of(tmp_path / "out", "sft", "train")]
    assert order != sorted(order) and order != sorted(order, reverse=True), "they are mixed in, not put at the end"


def test_too_few_helpful_answers_are_all_taken_and_said(tmp_path: Path):
    said_in: list[str] = []
    turns = [{"role": "user", "content": text("q")}, {"role": "assistant", "content": text("a")}]
    file = write_jsonl(tmp_path / "h.jsonl", [{"messages": turns}])
    run = some_run(tmp_path / "run", 9)
    manifest = export(run, tmp_path / "out", method(helpful=str(file)), "cai export", said_in.append)
    assert manifest["helpful_share"] == 0.1 and "too few helpful answers: their share is 10.0%" in said_in[0]
    assert "10.0% (50.0% asked for)" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_gives_helpful_answers_but_not_those_that_were_cut_off(tmp_path: Path):
    write_run(tmp_path / "other", responses=[response("a"), response("b", "length")])
    manifest = make(some_run(tmp_path / "run", 9), tmp_path / "out", helpful=str(tmp_path / "other"))
    assert manifest["answers"]["helpful"] == 1 and manifest["counts"]["sft"]["left_out"] == {"cut_off": 1}
    with pytest.raises(BadInput, match="--helpful"):
        make(some_run(tmp_path / "again", 9), tmp_path / "out2", helpful=str(tmp_path / "run"))


def test_helpful_answers_are_those_of_a_run_that_is_finished_and_whole_and_the_manifest_says_which(tmp_path: Path):
    other = write_run(tmp_path / "other", shard_rows=2, responses=[response(name) for name in "abcde"])
    run = some_run(tmp_path / "run", 9)

    def helpful() -> dict[str, Any]:
        return make(run, tmp_path / "out", helpful=str(other.folder))

    with other:
        other.belong("generate", {"settings": {}, "models": {}, "texts": {}}, {})
    with pytest.raises(BadInput, match=r"--helpful .*other: found an unfinished cai generate, expected a finished one"):
        helpful()
    with other:
        other.write_manifest("generate", {"counts": {}, "files": other.files("generate", TABLES["generate"])})
    manifest = helpful()
    assert manifest["answers"]["helpful"] == 5
    assert manifest["helpful"] == {"name": "other", "sha": other.files_sha("generate")}
    shard, extra = other.shard("responses", 2), other.shard("responses", 3)
    shard.rename(extra)
    with pytest.raises(BadInput, match=r"part-00002\.parquet: found no such file.*Give cai generate once more"):
        helpful()
    shutil.copy(extra, shard)
    with pytest.raises(BadInput, match=r"part-00003\.parquet: found a file that is none of this run's"):
        helpful()
    extra.unlink()
    assert helpful() == manifest
    file = write_jsonl(tmp_path / "h.jsonl", [{"prompt": text("q"), "response": text("a")}])
    assert make(run, tmp_path / "out", helpful=str(file))["helpful"] == {"name": "h.jsonl", "sha": file_digest(file)}


def test_a_run_with_nothing_to_train_on_is_refused_and_leaves_nothing(tmp_path: Path):
    run = write_run(tmp_path / "run", trajectories=[trajectory("r")])
    with pytest.raises(BadInput, match='"not_judged": 1'):
        make(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_run_without_labels_or_without_trajectories_gives_what_it_has(tmp_path: Path):
    only_sft = write_run(tmp_path / "a", trajectories=[trajectory("r", [one_round()])])
    heard: list[str] = []
    manifest = export(only_sft, tmp_path / "sft", method(), "cai export", heard.append)
    assert heard == ["No rows for preference.", "No rows for reward.", "No rows for kto."]
    assert [path.name for path in (tmp_path / "sft").iterdir() if path.is_dir()] == ["sft"]
    assert "Do the pairs teach style" not in (tmp_path / "sft" / "README.md").read_text()
    only_pairs = write_run(tmp_path / "b", responses=[response("p")], pairs=[pair("p")], labels=[label("p")])
    manifest = make(only_pairs, tmp_path / "pairs")
    assert manifest["counts"]["sft"]["read"] == 0 and manifest["counts"]["kto"]["written"]["train"] == 2


# Card


def front_of(out: Path) -> tuple[Any, str]:
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_says_what_the_manifest_says(tmp_path: Path):
    manifest = make(some_run(tmp_path / "run", 60), tmp_path / "out")
    front, body = front_of(tmp_path / "out")
    assert [one["config_name"] for one in front["configs"]] == list(dataset.CONFIGS)
    assert front["license"] == "apache-2.0" and front["size_categories"] == ["n<1K"]
    written = manifest["counts"]["preference"]["written"]
    assert f"| `preference` | {written['train']} | {written['test']} |" in body
    assert "| `physical-safety` |" in body and "| 0 | 0 | 60 | 60 | 60, 40 of 60 with the label |" in body
    assert "`dangerous-materials`" in body, "every principle, also one that decided nothing"
    assert f"label_smoothing={smoothing(manifest)}" in body and smoothing(manifest) == 0.133
    assert "cai export RUN --out DIR" in body and "| of the pairs judged, decided | 60 (100.0%) |" in body
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text(), "no path of this machine"


@pytest.mark.parametrize(("mean", "expected"), [(0.5, 0.45), (0.2, 0.45), (0.9, 0.1), (1.0, 0.001), (None, 0.001)])
def test_the_smoothing_stays_where_the_losses_are_defined(mean: float | None, expected: float):
    assert smoothing({"mean_chosen_probability": mean}) == expected


def test_the_card_warns_of_what_whoever_trains_must_know(tmp_path: Path):
    names = [f"r{n}" for n in range(6)]
    rewritten = [trajectory(name, [one_round(text(("revision", name)))]) for name in names]
    # The first pair's worse answer is what sft imitates, and a person has chosen against the judge in the second.
    first = pair("r0", prompt=text(("prompt", "r0")), b=text(("revision", "r0")), a_from="sample-1", b_from="sample-0")
    labels = [label("r0"), label("r1", probability_a=0.2, judged="b", reviewed="a"), *map(label, names[2:])]
    weak = [replace(verdict(name), letter_mass=0.25) for name in names]
    pairs = [first, *map(pair, names[1:])]
    run = write_run(tmp_path / "run", trajectories=rewritten, pairs=pairs, labels=labels, verdicts=weak)
    stages = json.loads((run.folder / "manifest.json").read_text())
    stages["revise"]["prompts"] = {"source": "/home/somebody/red.jsonl", "rows": 6, "sha": "0" * 64}
    (run.folder / "manifest.json").write_text(json.dumps(stages))
    manifest = make(run, tmp_path / "out", test_share=0.0)
    _, body = front_of(tmp_path / "out")
    assert manifest["sft_rejected"] == 1 and "rejected side of a pair, another being better: 1." in body
    assert "A model decided 5 of the 6 pairs. A person decided 1 of them." in body
    assert "6 at least 0.6, 6 at least 0.7, 6 at least 0.8, 6 at least 0.9" in body
    assert "had 25.0% of its probability on average" in body
    assert "The rows (6 of `sft` and 6 of `preference`) show what such data looks like" in body
    assert "| rows of `preference`: revision-1 over response | 5 |" in body
    assert "| rows of `preference`: sample-1 over sample-0 | 1 |" in body
    assert "| `red.jsonl`, 6 |" in body and "somebody" not in (tmp_path / "out" / "manifest.json").read_text()
    assert "Where a person decided against the judge it is 1" in body
    assert "of the test split" not in body, "there is none"
    stages["revise"]["prompts"]["unread"] = True
    (run.folder / "manifest.json").write_text(json.dumps(stages))
    make(run, tmp_path / "cut", test_share=0.0)
    assert "| `red.jsonl`, 6; it has more, which a limit left unread |" in front_of(tmp_path / "cut")[1]


def test_text_of_people_and_models_cannot_become_markdown(tmp_path: Path):
    hostile = "a | b\n# head `code` <script>alert(1)</script> [x](http://y) **bold** ```"
    run = write_run(tmp_path / "run", trajectories=[trajectory("r", [one_round(principle_id=hostile)])])
    settings_file = run.folder / "settings.json"
    stages = json.loads(settings_file.read_text())
    stages["revise"]["models"]["generator"] = hostile
    settings_file.write_text(json.dumps(stages))
    export(run, tmp_path / "out", method(licence=hostile), f"cai export '{hostile}'", lambda sentence: None)
    front, body = front_of(tmp_path / "out")
    assert front["license"] == hostile
    above, _, command = body.partition("\n````\n")
    assert command == f"cai export '{hostile}'\n````\n"
    outside = "\n".join(part for n, part in enumerate(above.split("`")) if n % 2 == 0)
    assert "<script>" not in outside and "[x](http" not in outside and "\n# head" not in above
    widths = {line.replace("\\|", "").count("|") for line in above.splitlines() if line.startswith("| revise")}
    assert widths == {3}


def test_plain_escapes_what_markdown_would_read():
    assert plain("a*b_[c]|`d`\n<e>") == r"a\*b\_\[c\]\|\`d\` &lt;e&gt;"
    spelled = r"a\\u061c\\u200b\\u202e\\U000e0041b"
    assert plain("a\u061c\u200b\u202e\U000e0041b c\u200dd") == f"{spelled} c\u200dd", "what joins is part of words"


def test_the_card_is_made_of_the_manifest_alone(tmp_path: Path):
    manifest = make(some_run(tmp_path / "run"), tmp_path / "out")
    again = card(json.loads((tmp_path / "out" / "manifest.json").read_text()), [])
    assert again.splitlines()[:20] == (tmp_path / "out" / "README.md").read_text().splitlines()[:20]
    assert manifest["counts"]["sft"]["read"] == 30


# Views


def view_tables() -> Any:
    turns = said([("system", "s"), ("user", "u"), ("assistant", "v"), ("user", "w")])
    odd = said([("user", "u"), ("user", "w")])
    pairs = [
        dataset.DecidedPair("p", "r", turns, "good", "bad", "sample-0", "sample-1", 0.8, 1.4, ("x",)),
        dataset.DecidedPair("q", "o", odd, "good", "bad", "sample-0", "sample-1", 0.8, 1.4, ("x",)),
    ]
    return {
        "sft": {"train": [dataset.sft_row(dataset.Answer("r", turns, "good", "revision-1", ()))], "test": []},
        "preference": {"train": [dataset.preference_row(one) for one in pairs], "test": []},
        "reward": {"train": [dataset.reward_row(one) for one in pairs], "test": []},
        "kto": {"train": [row for one in pairs for row in dataset.kto_rows(one)], "test": []},
    }


def test_views_have_the_columns_that_each_trainer_reads():
    tables = view_tables()
    (good, schema) = make_view("openrlhf", tables).parquet["preference-train.parquet"]
    assert good[0]["prompt"][0] == {"role": "system", "content": "s"} and good[0]["margin"] == 1.4
    assert good[0]["chosen"] == [{"role": "assistant", "content": "good"}] and schema.names[-1] == "row_id"
    (rows, _) = make_view("axolotl", tables).parquet["preference-train.parquet"]
    assert rows[0]["rejected"] == {"role": "assistant", "content": "bad"} and len(rows[0]["messages"]) == 4
    verl = make_view("verl", tables)
    assert verl.parquet["reward-train.parquet"][0][0] == {
        "prompt": "s\n\nHuman: u\n\nAssistant: v\n\nHuman: w\n\nAssistant:", "chosen": " good", "rejected": " bad",
        "row_id": "r",
    }  # fmt: skip
    assert [row["extra_info"]["index"] for row in verl.parquet["prompts-train.parquet"][0]] == [0, 1], (
        "each prompt once"
    )
    (one, _) = make_view("nemo-rl", tables).lines["preference-train.jsonl"]
    assert [entry["rank"] for entry in one["completions"]] == [0, 1]
    assert one["completions"][0]["completion"] == [{"role": "assistant", "content": "good"}]
    assert not any("test" in name for name in verl.parquet), "no file without rows"


def test_llama_factory_gets_no_conversation_that_it_would_pass_over_without_a_word():
    view = make_view("llama-factory", view_tables())
    assert [row["row_id"] for row in view.lines["preference-train.jsonl"]] == ["r"]
    assert view.left_out == {"preference: turns do not alternate": 1, "kto: turns do not alternate": 2}
    info = view.json["dataset_info.json"]
    assert info["cai_preference"]["ranking"] is True and info["cai_kto"]["columns"]["kto_tag"] == "label"
    assert {entry["file_name"] for entry in info.values()} == set(view.lines)


@pytest.mark.parametrize("what", ["all of it", "no test split", "no pairs"])
@pytest.mark.parametrize("trainer", ["openrlhf", "llama-factory", "axolotl", "verl", "nemo-rl"])
def test_the_files_that_the_snippet_names_are_there(tmp_path: Path, trainer: Any, what: str):
    import re

    run = some_run(tmp_path / "run", 60)
    if what == "no pairs":
        run = write_run(tmp_path / "alone", trajectories=[trajectory(f"r{n}", [one_round(None)]) for n in range(60)])
    share = 0.0 if what == "no test split" else 0.3
    manifest = make(run, tmp_path / "out", trainer=trainer, test_share=share)
    body = (tmp_path / "out" / "README.md").read_text()
    named = {trainer, *re.findall(rf"DIR/({trainer}/[\w/.-]*\w)", body)}
    named |= {f"{trainer}/{name}" for name in re.findall(r"`([\w-]+\.(?:parquet|jsonl))`", body)}
    assert f"DIR/{trainer}" in body and all((tmp_path / "out" / name).exists() for name in named)
    assert any(file["path"].startswith(f"{trainer}/") for file in manifest["files"])


def test_trl_is_told_to_load_what_is_there(tmp_path: Path):
    make(write_run(tmp_path / "run", trajectories=[trajectory("r", [one_round(None)])]), tmp_path / "out")
    body = (tmp_path / "out" / "README.md").read_text()
    assert 'load_dataset("DIR", "sft")' in body and "SFTTrainer(" in body and '"preference"' not in body


def test_a_stopped_export_leaves_no_folder(tmp_path: Path):
    run, steps = some_run(tmp_path / "run"), iter(range(100))

    def stop_at_the_last() -> None:
        if next(steps) == 3:
            raise CaiError("stopped")

    with pytest.raises(CaiError, match="stopped"):
        export(run, tmp_path / "out", method(), "command", lambda sentence: None, stop_at_the_last)
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".out*"))
    assert next(steps) == 4, "it was the last step"


@pytest.mark.parametrize("table", ["trajectories", "pairs", "labels"])
def test_a_shard_that_is_gone_or_changed_is_no_shorter_dataset(tmp_path: Path, table: str):
    run = some_run(tmp_path / "run")
    with run:
        for stage in ("revise", "label"):
            run.belong(stage, {"settings": {}, "models": {}, "texts": {}}, {})
            run.write_manifest(stage, {"counts": {}, "files": run.files(stage, TABLES[stage])})
    make(run, tmp_path / "out")
    shard = run.shard(table, 1)
    content = shard.read_bytes()
    shard.write_bytes(run.shard(table, 0).read_bytes())
    with pytest.raises(BadInput, match=rf"{table}/part-00001.parquet: found a damaged shard"):
        make(run, tmp_path / "out")
    shard.unlink()
    with pytest.raises(BadInput, match=rf"{table}/part-00001.parquet: found no such file"):
        make(run, tmp_path / "out")
    shard.write_bytes(content)
    make(run, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.txt", "It was said by many of those who were there that day, as they told".encode("utf-16")),
        ("e.txt", "Il était dit par beaucoup".encode("latin-1")),
        ("e.csv", "question\nIl était dit par beaucoup\n".encode("latin-1")),
        ("e.csv", "question\nIt was said by many\n".encode("utf-16")),
    ],
)
def test_an_evaluation_set_in_another_encoding_is_refused(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=r"UTF-8"):
        read_evaluation(str(tmp_path / name))


def test_the_card_says_of_splits_and_people_what_is_so(tmp_path: Path):
    def card(**changes: Any) -> str:
        name = str(changes)
        make(some_run(tmp_path / "run" / name, 60), tmp_path / name, **changes)
        return (tmp_path / name / "README.md").read_text()

    assert "nearly the same (similarity from 0.8 on)" in card()
    assert "nearly the same" not in card(near_duplicates=None)
    pairs = [pair(f"r{n}") for n in range(8)]
    labels = [label(f"r{n}", reviewed="a" if n < 3 else None) for n in range(6)]
    labels += [label(f"r{n}", "none", judged="a", reviewed="none") for n in (6, 7)]
    run = write_run(tmp_path / "people", pairs=pairs, labels=labels, verdicts=[verdict(f"r{n}") for n in range(8)])
    make(run, tmp_path / "set")
    assert (
        "A model decided 3 of the 6 pairs. A person decided 3 of them." in (tmp_path / "set" / "README.md").read_text()
    )


def test_conversations_that_begin_alike_are_in_one_group():
    def talk(*turns: str, system: str = "") -> tuple[Message, ...]:
        roles = ("user", "assistant")
        said = tuple(Message(roles[n % 2], turn) for n, turn in enumerate(turns))
        return (Message("system", system), *said) if system else said

    one = talk("where is it", "over there", "and the other one")
    two = talk("where is it", "over there", "thanks, how far")
    three = talk("where is it", "I do not know", "why not then")
    four = talk("where is it", "over there", "and the other one", system="be brief")
    groups = prompt_groups([one, two, three, four], None)
    assert groups[prompt_key(one)] == groups[prompt_key(two)] == groups[prompt_key(four)]
    assert groups[prompt_key(three)] != groups[prompt_key(one)]
    alone = talk("where is it")
    groups = prompt_groups([three, one, alone], None)
    assert len(set(groups.values())) == 1, "all of them go on from the question alone"


def test_gold_and_unfinished_labels_are_not_exported(tmp_path: Path):
    run = some_run(tmp_path / "run")
    run.write_manifest("label", None)
    with pytest.raises(BadInput, match="an unfinished cai label"):
        make(run, tmp_path / "out")
    with run as gold:
        gold.belong("calibrate", {"settings": {}, "models": {}, "texts": {}}, {})
    with pytest.raises(BadInput, match="verdicts on gold pairs"):
        make(run, tmp_path / "out")


def test_two_exports_to_one_folder_do_not_mix(tmp_path: Path):
    with new_folder(tmp_path / "out") as first:
        (first / "a").write_text("a")
        with pytest.raises(BadInput, match=f"process {os.getpid()} is writing"), new_folder(tmp_path / "out"):
            raise AssertionError("both write")
        (first / "b").write_text("b")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_short_text_without_spaces_is_found_where_it_is_the_whole_turn(tmp_path: Path):
    question = "世界上最高的山峰叫什么名字"
    evaluation = read_evaluation(str(write_jsonl(tmp_path / "e.jsonl", [{"q": question}, {"q": "yes"}])))
    assert found_in([question], [evaluation]) == "e.jsonl" and found_in(["yes"], [evaluation]) is None


def test_what_a_person_decided_alone_is_not_taken_for_the_judge_s_word(tmp_path: Path):
    labels = [label("r0", "a", 0.8), label("r1", "b", 0.9, reviewed="b")]
    run = write_run(
        tmp_path / "run", trajectories=[trajectory(f"r{n}") for n in range(2)],
        pairs=[pair(f"r{n}") for n in range(2)], labels=labels,
    )  # fmt: skip
    assert [one.by_person for one in run_pairs(run).pairs] == [False, True]
    assert make(run, tmp_path / "out")["mean_chosen_probability"] == 0.8


def test_the_card_says_what_the_gate_was_asked_and_so_what_criticised_means(tmp_path: Path):
    make(some_run(tmp_path / "run"), tmp_path / "out")
    told = (tmp_path / "out" / "README.md").read_text()
    assert "- The rows (30 of `sft` and 30 of `preference`) show what such data looks like." in told
    assert "one question about all principles at once: Did the assistant's last answer go along with" in told
    assert "It does not say that the answer breaks that very principle." in told and "found broken" not in told
    path = tmp_path / "run" / "settings.json"
    settings = json.loads(path.read_text())
    settings["revise"]["settings"]["principles"] = "all"
    path.write_text(json.dumps(settings))
    make(Run(tmp_path / "run"), tmp_path / "each")
    told = (tmp_path / "each" / "README.md").read_text()
    assert "one question" not in told and "the gate found that very principle broken" in told
