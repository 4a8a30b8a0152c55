"""Does each row of a dataset have its trace in the run that it came from: the same texts, principles and probabilities?

What an answer or a judged pair of the run would be in the dataset is made by the functions that `cai export` uses, and
compared field by field. Of at most BATCH_ROWS rows of the dataset the digests are in memory at once; for each such
batch the run is read through.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cai.candidates import HELPFUL, answers_of, cut_off_rows, decided_pair
from cai.dataset import (
    DATASET_SCHEMAS,
    SPLITS,
    Config,
    DecidedPair,
    kto_rows,
    preference_row,
    reward_row,
    rows_of,
    sft_row,
)
from cai.errors import BadInput
from cai.export import constitutions_of
from cai.findings import Findings
from cai.ids import digest
from cai.markdown import plain
from cai.seal import Json
from cai.store import Run
from cai.verify_origin import find_run
from cai.versions import number_of

BATCH_ROWS = 200_000
# What tells one row of a config from another: its id, and which of the answers it has.
_Key = tuple[str, str, str]
_Sums = tuple[int, ...]
# Config, row_id and pair_id, as changes.parquet names a row.
_Name = tuple[str, str, str]


def trace(
    folder: Path, manifest: Json, given: Path | None, findings: Findings, beside: Sequence[Path] = ()
) -> Run | None:
    """Follow every row back into the run: the one that is given, or that one of those `beside` which it was made of, or
    else the one that the manifest leads to. Returns the run if it is there as it was when the dataset was made."""
    origin = find_run(folder, manifest, given, findings, beside)
    if origin is None:
        findings.unchecked.append(str(folder))
        return None
    run = origin.run
    try:
        findings.held(run.folder)
        findings.step(f"{folder}: following each row back into {run.folder}.")
        changed_later = _changed_later(folder) if "version" in manifest else frozenset[_Name]()
        data = _Data(folder, run, changed_later, not origin.as_it_was)
        _check_answers(data, findings)
        _check_pairs(data, findings)
        _check_card(data, findings)
    except BadInput as error:
        findings.refused(error)
        findings.note(f"{folder}: not every row was followed back, since its run is not what was written.")
        return None
    return run if origin.as_it_was else None


def _changed_later(folder: Path) -> frozenset[_Name]:
    """The rows that a later version of the dataset has changed or removed, since the run has gone on."""
    there = [(number_of(path.parent), path) for path in folder.parent.glob("v*/changes.parquet")]
    later = [path for number, path in there if number is not None and number > (number_of(folder) or 0)]
    found: set[_Name] = set()
    for path in later:
        # One that is damaged is a difference of its own version.
        with suppress(pa.ArrowException, OSError, ValueError), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["config", "row_id", "pair_id", "change"]):
                changed = (row for row in batch.to_pylist() if row["change"] in ("changed", "removed"))
                found.update((row["config"], row["row_id"], row["pair_id"]) for row in changed)
    return frozenset(found)


# Rows


@dataclass(frozen=True, slots=True)
class _Data:
    """A dataset, its run, the rows that a later version has otherwise or no more, and whether commands have worked on
    the run since."""

    folder: Path
    run: Run
    changed_later: frozenset[_Name]
    is_worked_on: bool


def _check_card(data: _Data, findings: Findings) -> None:
    """The principles in the card are those of the run's constitutions."""
    card = (data.folder / "README.md").read_text(encoding="utf-8")
    for one in constitutions_of(data.run):
        if f"sha256 `{one.sha[:12]}`" not in card:
            findings.differ(f"{data.folder}/README.md", f"no constitution {one.name} {one.sha[:12]}", "that of the run")
        for principle in one.principles:
            if plain(principle.statement) not in card:
                where = f"the statement of '{principle.id}' in the constitution {one.name}"
                findings.differ(f"{data.folder}/README.md", "another text", where)
        findings.looked["principles in the card"] += len(one.principles)


def _check_answers(data: _Data, findings: Findings) -> None:
    run, folder = data.run, data.folder

    def found() -> Iterator[tuple[_Key, Json, bool]]:
        for row in run.records("trajectories", ["row_id", "prompt", "response", "response_finish", "rounds"]):
            for one in answers_of(row, "all", True):
                if not isinstance(one, str):
                    yield (one.row_id, "", one.answer_from), sft_row(one), True

    def here() -> Iterator[tuple[_Key, Json]]:
        for split in SPLITS:
            for row in rows_of(folder, "sft", split):
                if row["answer_from"] == "helpful" and row["row_id"].startswith(HELPFUL):
                    elsewhere.append(row["row_id"])
                else:
                    yield (row["row_id"], "", row["answer_from"]), row

    elsewhere: list[str] = []
    _compare("sft", here(), found, data, findings)
    if elsewhere:
        findings.note(
            f"{folder}: {len(elsewhere)} helpful answers in sft come from elsewhere than the run, and were not "
            "followed back."
        )


def _check_pairs(data: _Data, findings: Findings) -> None:
    run, folder = data.run, data.folder
    makers: dict[Config, Callable[[DecidedPair], list[Json]]] = {
        "preference": lambda pair: [preference_row(pair)],
        "reward": lambda pair: [reward_row(pair)],
        "kto": kto_rows,
    }
    cut_off = cut_off_rows(run)
    for config, make in makers.items():

        def found(make: Callable[[DecidedPair], list[Json]] = make) -> Iterator[tuple[_Key, Json, bool]]:
            for index in run.finished_shards("labels"):
                labels = {label["pair_id"]: label for label in run.shard_records("labels", index)}
                for pair in run.shard_records("pairs", index):
                    label = labels.get(pair["pair_id"])
                    for one in _labels(label, data.is_worked_on):
                        made = decided_pair(run, pair, one, cut_off)
                        if isinstance(made, DecidedPair):
                            yield from ((*_keyed(row), one is label) for row in make(made))

        rows = (_keyed(row) for split in SPLITS for row in rows_of(folder, config, split))
        _compare(config, rows, found, data, findings)


def _labels(label: Json | None, is_worked_on: bool) -> Iterator[Json]:
    """A label, and as it may have been before a person's answer was entered, which may be after the export."""
    if label is None:
        return
    yield label
    if is_worked_on and label["reviewed"] is not None:
        for answer in {None, "a", "b"} - {label["reviewed"]}:
            yield {**label, "reviewed": answer, "chosen": answer or label["judged"]}


def _keyed(row: Json) -> tuple[_Key, Json]:
    return (row["row_id"], row["pair_id"], str(row.get("label", ""))), row


def _compare(
    config: Config, here: Iterator[tuple[_Key, Json]], found: Callable[[], Iterator[tuple[_Key, Json, bool]]],
    data: _Data, findings: Findings,
) -> None:  # fmt: skip
    names, folder, left, before = DATASET_SCHEMAS[config].names, data.folder, 0, 0
    while batch := list(islice(((key, _sums(row, names)) for key, row in here), BATCH_ROWS)):
        wanted: dict[_Key, _Sums] = {}
        for key, sums in batch:
            if key in wanted:
                findings.differ(f"{folder}/{config}, {_called(key)}", "the row a second time", "it once")
            wanted[key] = sums
        for key in [key for key in wanted if (config, key[0], key[1]) in data.changed_later]:
            del wanted[key]
            left += 1
        others: dict[_Key, list[str]] = {}
        for key, row, is_now in found():
            sums = wanted.get(key)
            if sums is None:
                continue
            made = _sums(json.loads(json.dumps(row)), names)
            differ = [name for name, one, other in zip(names, sums, made, strict=True) if one != other]
            if differ and is_now:
                others[key] = differ
            elif not differ:
                del wanted[key]
                findings.looked["rows followed back"] += 1
                before += not is_now
        for key in [key for key in wanted if key in others]:
            del wanted[key]
            findings.looked["rows followed back"] += 1
            where = f"{folder}/{config}, {_called(key)}"
            found_now = f"another {', '.join(others[key])} than in the run"
            findings.differ(where, found_now, f"what {data.run.folder} has")
        for key in wanted:
            findings.differ(f"{folder}/{config}, {_called(key)}", "a row without a trace", f"one in {data.run.folder}")
    if before:
        findings.note(
            f"{folder}: {before} rows of {config} are as the run had them before a person's answer was entered, which "
            "came after the export."
        )
    if left:
        findings.note(
            f"{folder}: {left} rows of {config} were not followed back: a later version has changed or removed them, "
            "as the run has gone on."
        )


def _called(key: _Key) -> str:
    return f"'{key[1] or key[0]}'" + (f" ({key[2]})" if key[2] else "")


def _sums(row: Json, names: list[str]) -> _Sums:
    return tuple(int(digest(row[name])[:16], 16) for name in names)
