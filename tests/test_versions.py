"""Versions of a dataset: each says what is new, none is ever changed, and no row changes its split."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from cai import cli, contents
from cai import export as exporting
from cai.errors import BadInput, CannotWrite
from cai.export import export_version
from cai.hygiene import prompt_key
from cai.options import chosen
from cai.rows import as_messages
from cai.seal import Json
from cai.settings import ExportSettings
from cai.settings_load import repeat
from cai.splits import split_of
from cai.versions import CHANGES
from tests.faults import Disk
from tests.runs import label, one_round, pair, said, text, trajectory, write_run
from tests.test_export import all_bytes, method


class Nights:
    """Runs that grow, each written by hand, and versions of their dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "sets"
        self.written = 0
        self.said: list[str] = []

    def night(self, prompts: Sequence[str], pairs: Sequence[Any] | None = None, **changes: Any) -> tuple[Path, Json]:
        """Export the rows r0, r1, ... that these prompts have, with a pair for each or those that are given."""
        rows = [
            trajectory(f"r{n}", [one_round(text(("revision", n)))], prompt=prompt) for n, prompt in enumerate(prompts)
        ]
        two = [pair(f"r{n}/p", prompt=prompt) for n, prompt in enumerate(prompts)] if pairs is None else pairs
        self.written += 1
        run = write_run(
            self.folder / f"run-{self.written}", trajectories=rows, pairs=two,
            labels=[label(one.pair_id) for one in two], verdicts=[],
        )  # fmt: skip
        given = method(**{"test_share": 0.3, **changes})
        self.said = []
        return export_version(run, self.out, given, "cai export RUN --out DIR --versions", self.said.append)


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    few = contents.separability([], {})
    monkeypatch.setattr(contents, "separability", lambda pairs, groups: few)  # a second, and nothing of these tests
    return Nights(tmp_path)


def prompts_of(seed: str, count: int) -> list[str]:
    return [text((seed, n), words=12) for n in range(count)]


def where(folder: Path) -> dict[str, set[str]]:
    """The split of each prompt in any config, by its key."""
    found: dict[str, set[str]] = {}
    for config, column in (("sft", "messages"), ("preference", "prompt"), ("kto", "prompt")):
        for path in folder.glob(f"{config}/*.parquet"):
            for row in pq.read_table(path).to_pylist():
                turns = row[column][:-1] if column == "messages" else row[column]
                found.setdefault(prompt_key(as_messages(turns)), set()).add(path.name.split("-")[0])
    return found


def test_each_version_is_whole_says_what_was_added_and_leaves_the_others_as_they_are(nights: Nights):
    prompts = prompts_of("a", 30)
    first, manifest = nights.night(prompts[:20])
    assert first == nights.out / "v0001" and manifest["version"]["before"] is None
    assert manifest["version"]["counts"]["sft"]["train"]["added"] == manifest["counts"]["sft"]["written"]["train"]
    before = all_bytes(first)
    second, manifest = nights.night(prompts)
    assert (second.name, all_bytes(first)) == ("v0002", before)
    counts = manifest["version"]["counts"]
    for config, rows in (("sft", 10), ("preference", 10), ("reward", 10), ("kto", 20)):
        total = {change: sum(split[change] for split in counts[config].values()) for change in CHANGES}
        assert total == {"added": rows, "removed": 0, "changed": 0, "moved": 0}
    changes = pq.read_table(second / "changes.parquet").to_pylist()
    added = {row["row_id"] for row in changes if row["config"] == "sft"}
    assert added == {f"r{n}" for n in range(20, 30)} and {row["change"] for row in changes} == {"added"}
    assert {row["pair_id"] for row in changes if row["config"] == "kto"} == {f"r{n}/p" for n in range(20, 30)}
    assert manifest["version"]["before"] == {
        "name": "v0001", "content_sha": json.loads((first / "manifest.json").read_bytes())["content_sha"],
    }  # fmt: skip
    card = (second / "README.md").read_text()
    assert "## What is new in v0002" in card and f"| `sft` | train | {counts['sft']['train']['added']} | 0 | 0" in card
    assert "makes the dataset again, byte for byte" not in card
    for folder, rows in ((first, 20), (second, 30)):
        loaded = load_dataset(str(folder), "preference")
        assert sum(len(split) for split in loaded.values()) == rows
    assert {file["path"] for file in manifest["files"]} >= {"changes.parquet", "README.md"}


def test_where_nothing_is_new_no_version_is_written_and_it_is_said(nights: Nights):
    prompts = prompts_of("a", 12)
    nights.night(prompts)
    before = all_bytes(nights.folder / "sets")
    folder, manifest = nights.night(prompts)
    assert (folder.name, manifest["version"]["name"]) == ("v0001", "v0001")
    assert nights.said[-1] == f"Nothing is new since {folder}, so no version is written."
    assert all_bytes(nights.out) == before and os.listdir(nights.out) == ["v0001"]
    assert not [path for path in nights.folder.iterdir() if "cai-" in path.name], "no lock, no scratch folder"
    folder, _ = nights.night(prompts, licence="mit")
    assert folder.name == "v0002", "another licence is another dataset"


def test_rows_that_changed_or_went_are_named_too(nights: Nights):
    prompts = prompts_of("a", 12)
    pairs = [pair(f"r{n}/p", prompt=prompt) for n, prompt in enumerate(prompts)]
    nights.night(prompts, pairs)
    pairs[3] = replace(pairs[3], b=text("another answer"))
    folder, manifest = nights.night(prompts, pairs[:-1])
    changes = pq.read_table(folder / "changes.parquet").to_pylist()
    assert {(row["change"], row["pair_id"]) for row in changes} == {("changed", "r3/p"), ("removed", "r11/p")}
    assert {row["config"] for row in changes} == {"preference", "reward", "kto"}
    assert sum(split["removed"] for split in manifest["version"]["counts"]["kto"].values()) == 2


def near(prompt: str, place: int) -> str:
    """The prompt with another word: nearly the same."""
    words = prompt.split()
    return " ".join([*words[:place], f"other{place}", *words[place + 1 :]])


def test_no_prompt_changes_its_split_whatever_comes_beside_it(nights: Nights):
    """With prompts of 60 words one other word leaves them nearly the same. Each night adds such ones, which may give a
    group another name and so another hash."""
    base = [text(("long", n), words=60) for n in range(24)]
    first, _ = nights.night(base)
    settled = where(first)
    assert {split for splits in settled.values() for split in splits} == {"train", "test"}
    grown = [*base, *(near(prompt, 0) for prompt in base)]
    second, manifest = nights.night(grown)
    assert all(len(splits) == 1 for splits in where(second).values())
    assert {key: where(second)[key] for key in settled} == settled
    for one in base:  # a prompt and its like are in one split
        keys = [prompt_key(said(prompt)) for prompt in (one, near(one, 0))]
        assert where(second)[keys[0]] == where(second)[keys[1]]
    third, manifest = nights.night([*grown, *prompts_of("more", 30)], test_share=0.9, seed=7)
    assert {key: where(third)[key] for key in where(second)} == where(second), "also with another share and seed"
    moved = [split["moved"] for config in manifest["version"]["counts"].values() for split in config.values()]
    assert not any(moved)


def test_so_few_prompts_that_none_would_be_trained_on_stay_where_the_first_version_put_them(nights: Nights):
    few = [next(prompt for prompt in prompts_of("few", 99) if hashed(prompt) == "test")]
    first, _ = nights.night(few)
    assert list(where(first).values()) == [{"train"}]
    second, _ = nights.night([*few, *prompts_of("more", 20)])
    assert where(second)[prompt_key(said(few[0]))] == {"train"}


def hashed(prompt: str) -> str:
    """The split that a prompt has by itself."""
    return split_of([prompt_key(said(prompt))], 0, 0.3)[prompt_key(said(prompt))]


def test_a_new_prompt_that_is_like_one_of_each_split_is_left_out_and_counted(nights: Nights):
    core, train_end = text("core", 48), text("end", 12)
    train = next(f"{core} {train_end} x{n}" for n in range(99) if hashed(f"{core} {train_end} x{n}") == "train")
    ends = (text(("end", n), 12) for n in range(99))
    test_end = next(end for end in ends if hashed(f"{core} {end}") == "test")
    test = f"{core} {test_end}"
    between = f"{core} {' '.join([*train_end.split()[:6], *test_end.split()[6:]])}"
    base = [*prompts_of("a", 10), train, test]
    first, _ = nights.night(base, near_duplicates=0.7)
    settled = where(first)
    assert [settled[prompt_key(said(prompt))] for prompt in (train, test)] == [{"train"}, {"test"}]
    second, manifest = nights.night([*base, between], near_duplicates=0.7, licence="mit")
    assert where(second) == settled
    for config, rows in (("sft", 1), ("preference", 1), ("kto", 2)):
        assert manifest["counts"][config]["left_out"] == {"between_splits": rows}
    assert "`between_splits`" in (second / "README.md").read_text()
    whole, manifest = nights.night([*base, between], near_duplicates=0.7, licence="mit")
    assert whole == second, "and is no news the next time"


@pytest.mark.parametrize("last", range(0, 24, 3))
def test_an_export_that_is_broken_off_leaves_no_version_and_the_next_one_is_made(nights: Nights, last: int):
    prompts = prompts_of("a", 12)
    nights.night(prompts[:8])
    before = all_bytes(nights.out)
    with Disk(nights.out).full_after(last), pytest.raises(CannotWrite, match="no space left"):
        nights.night(prompts)
    assert all_bytes(nights.out) == before
    folder, _ = nights.night(prompts)
    assert folder.name == "v0002" and sorted(os.listdir(nights.out)) == ["v0001", "v0002"]


def test_two_exports_at_a_time_make_no_version_twice(nights: Nights, monkeypatch: pytest.MonkeyPatch):
    """The other one is done between the look at the folder and the lock."""
    prompts = prompts_of("a", 12)
    nights.night(prompts[:8])
    real, calls = exporting.next_version, iter(range(9))

    def slow(out: Path) -> Path:
        target = real(out)
        if next(calls) == 0:
            nights.night(prompts[:10])
        return target

    monkeypatch.setattr(exporting, "next_version", slow)
    with pytest.raises(BadInput, match="v0002: found a folder that was not there a moment ago"):
        nights.night(prompts)
    before = all_bytes(nights.out / "v0002")
    folder, _ = nights.night(prompts)
    assert folder.name == "v0003" and all_bytes(nights.out / "v0002") == before


def test_a_folder_that_holds_no_versions_or_a_damaged_one_is_refused(nights: Nights):
    prompts = prompts_of("a", 12)
    folder, _ = nights.night(prompts[:8])
    with pytest.raises(BadInput, match=r"--near-duplicates 1: found versions in .* that were made with 0.8"):
        nights.night(prompts, near_duplicates=None)
    path = next(folder.glob("sft/*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BadInput, match=f"{path}: found a file that is not as cai export wrote it"):
        nights.night(prompts)
    path.write_bytes(whole)
    (folder / "manifest.json").rename(nights.folder / "manifest.json")
    with pytest.raises(BadInput, match=r"v0001/manifest.json: found a file that is not"):
        nights.night(prompts)
    (nights.folder / "manifest.json").rename(nights.out / "manifest.json")
    with pytest.raises(BadInput, match="found a dataset without versions, or a run"):
        nights.night(prompts)


def test_the_command_on_a_card_is_one_that_can_be_given_and_means_the_same():
    told: dict[str, Any] = {
        "versions": True,
        "sft": "all",
        "decontaminate": ("a b.jsonl", "c.jsonl"),
        "test_share": 0.1,
    }
    settings = ExportSettings(run="data/runs/a run", out="sets", **told)
    words = shlex.split(repeat("cai export", settings))
    assert words[:2] == ["cai", "export"]
    with cli.export.make_context("export", words[2:]) as given:
        given.params.pop("as_json")
        assert chosen(ExportSettings, given.params) == settings
