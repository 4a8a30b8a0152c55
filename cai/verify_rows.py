"""What the tables of a run say, against each other and against what else the run keeps.

    each shard   its rows and drops are as many as it read, of the settings of its stage
    each row     its calls are in the journal, and what they said stands in the row
    each stage   kept + dropped = read, and all other numbers of the manifest, counted anew

and each row and drop is held against what was read, see `verify_read`, and worked out once more from what the model has
answered, see `verify_again`. One shard at a time is in memory.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import pyarrow.parquet as pq

from cai.audit import TABLES, count_stage
from cai.errors import BadInput
from cai.findings import Findings
from cai.ids import digest, sample_row_id
from cai.journal import read_entries
from cai.review import Answers, answers_given
from cai.seal import Json
from cai.store import Run
from cai.verify_again import again
from cai.verify_entry import check_entry
from cai.verify_read import Reading, Shard, id_of
from cai.verify_source import reread


def check_rows(run: Run, stage: str, sound: set[str], findings: Findings) -> None:
    """Look at every row of a stage. `sound` are the tables that are as they were written; others are not looked at."""
    belongs, entry = run.settings()[stage], run.manifest().get(stage)
    tables, skipped = TABLES[stage], False
    findings.step(f"cai {stage}: looking at the rows, and at the calls that they are made of.")
    try:
        remade = again(run, stage, belongs, entry, findings)
    except BadInput as error:  # its texts are not what was written, which has been named
        findings.note(f"cai {stage}: its rows were not worked out again ({error.place}: {error.found}).")
        remade = None
    answers = _answers(run, stage, findings)
    read: list[str] = []
    reading = Reading(reread(run, stage, entry, findings), remade, findings)
    indexes = run.finished_shards(tables[-1])
    between = 0
    with remade.loop if remade is not None else nullcontext():
        for index in indexes:
            shard = _opened(run, stage, index, sound, answers)
            if shard is None:
                skipped = True
                continue
            if entry is None and _is_between(shard, belongs):
                between += 1
                continue
            read.append(digest(list(shard.mark["inputs"])))
            _check_shard(shard, belongs, entry is not None, reading, index == indexes[-1])
    reading.end(stage, skipped)
    if between:
        findings.note(
            f"cai {stage}: {between} shards were being made anew, with other settings or rows, when a command was "
            "killed; they were not looked into."
        )
    if skipped:
        findings.note(f"cai {stage}: shards of which a file is not what was written were not looked into.")
    elif entry is not None:
        _check_counts(run, stage, entry, read, findings)


def _opened(run: Run, stage: str, index: int, sound: set[str], answers: Answers | None) -> Shard | None:
    """A shard; None if one of its files is not as it was written."""
    tables, drops = TABLES[stage], run.drops(stage, index)
    names = [f"{table}/part-{index:05d}.parquet" for table in tables]
    if drops.exists():
        names.append(drops.relative_to(run.folder).as_posix())
    if not sound.issuperset(names):
        return None
    mark = _mark(run, tables[-1], index)
    segment = run.folder / "journal" / f"part-{index:05d}.jsonl"
    return Shard(run, stage, index, mark, {one["key"]: one for one in read_entries(segment)}, answers)


def _mark(run: Run, table: str, index: int) -> Json:
    """The footer of a table's shard as it stands there, see `store.ShardMark`."""
    return json.loads((pq.read_schema(run.shard(table, index)).metadata or {})[b"cai"])


def _is_between(shard: Shard, belongs: Json) -> bool:
    """Whether a command that makes a shard anew was killed before it, or when some of its files were written."""
    run, stage, index = shard.run, shard.stage, shard.index
    marks = [_mark(run, table, index) for table in TABLES[stage]]
    if shard.mark["settings_sha"] != digest(belongs) or any(mark != shard.mark for mark in marks):
        return True
    return _dropped(shard) != shard.mark["dropped"]


def _dropped(shard: Shard) -> int:
    drops = shard.run.drops(shard.stage, shard.index)
    return pq.read_metadata(drops).num_rows if drops.exists() else 0


def _check_shard(shard: Shard, belongs: Json, finished: bool, reading: Reading, is_last: bool) -> None:
    stage, inputs = shard.stage, shard.mark["inputs"]
    remade, findings = reading.remade, reading.findings
    last = TABLES[stage][-1]
    if finished:
        findings.same(shard.place(last), shard.mark["settings_sha"], digest(belongs), "rows of the settings")
    dropped = _dropped(shard)
    findings.same(shard.place(last), dropped, shard.mark["dropped"], "so many drops beside it:")
    judged = last == "labels"
    first = "pairs" if judged else last
    kept = shard.rows(first)
    findings.same(shard.place(first), len(kept) + dropped, len(inputs), "rows and drops, together")
    reading.check(shard, first, kept, is_last)
    verdicts: dict[str, list[Json]] = {}
    labels: list[Json] = []
    if judged:
        labels = shard.rows("labels")
        for verdict in shard.rows("verdicts"):
            verdicts.setdefault(verdict["pair_id"], []).append(verdict)
        named = [row["pair_id"] for row in kept]
        findings.same(shard.place("labels"), [row["pair_id"] for row in labels], named, "labels of the pairs")
        for other in verdicts.keys() - set(named):
            findings.differ(shard.place("verdicts"), f"a verdict on '{other}'", "one on a pair of this shard")
        _check_reviewed(shard, kept, labels, finished, findings)
    for number, row in enumerate(kept):
        if "sample" in row and sample_row_id(row["prompt_id"], row["sample"]) != row["row_id"]:
            found = f"the sample {row['sample']} of '{row['prompt_id']}'"
            findings.differ(f"{shard.place(last)}, '{id_of(row)}'", found, "the one that its row_id says")
        told = verdicts.get(row["pair_id"], []) if judged else []
        label = labels[number] if number < len(labels) else None
        if finished:
            _check_origin(shard, label or row, belongs, findings)
        for one in told if judged else [row]:
            _check_calls(shard, one, findings)
        if remade is not None:
            for table, *difference in remade.of(row, told, label, shard.entries):
                findings.differ(f"{shard.place(table)}, '{id_of(row)}'", *difference)
        findings.looked["rows"] += 1 + len(told) + (label is not None)
    findings.looked["drops"] += dropped


def _answers(run: Run, stage: str, findings: Findings) -> Answers | None:
    """What people have said of each pair; None where it cannot be read."""
    if stage != "label":
        return None
    try:
        return answers_given(run)
    except BadInput as error:
        findings.note(f"cai {stage}: no label was held against reviews.jsonl ({error.place}: {error.found}).")
        return None


def _check_reviewed(
    shard: Shard, pairs: Sequence[Json], labels: Sequence[Json], finished: bool, findings: Findings
) -> None:
    """What a label says that a person said of the pair stands in reviews.jsonl, and the other way round.

    Answers are written there first: in labels that are not finished, one may not be entered yet, or another one.
    """
    if shard.answers is None:
        return
    for pair, label in zip(pairs, labels, strict=False):
        said, told = label["reviewed"], shard.answers(pair)
        if said != told and (finished or told is None):
            found = f"a person's answer '{said}'" if said is not None else "no person's answer"
            expected = f"'{told}', as in reviews.jsonl" if told is not None else "none, as in reviews.jsonl"
            findings.differ(f"{shard.place('labels')}, '{id_of(pair)}'", found, expected)


def _check_origin(shard: Shard, row: Json, belongs: Json, findings: Findings) -> None:
    """Models, texts and seed that a row names are its stage's."""
    models, texts = belongs["models"], belongs["texts"]
    wanted = {
        "model": models.get("generator"), "critic": models.get("critic"), "reviser": models.get("reviser"),
        "judge": models.get("judge"), **texts, "seed": belongs["settings"].get("seed"),
    }  # fmt: skip
    for name, value in wanted.items():
        if name in row and value is not None:
            place = f"{shard.place(TABLES[shard.stage][-1])}, '{id_of(row)}'"
            findings.same(place, row[name], value, f"the {name.removesuffix('_sha')}")


# Calls


def _check_calls(shard: Shard, row: Json, findings: Findings) -> None:
    """Every call that a row names is in the journal, with the answer that the row has of it.

    Each line of the journal has a checksum of its own, so the table is named where the two say different things.
    """
    table = shard.place("verdicts" if "calls" in row else TABLES[shard.stage][0])
    journal = f"journal/part-{shard.index:05d}.jsonl"
    for what, key, text in _calls(row):
        entry = shard.entries.get(key)
        if entry is None:
            where = f"the {what} of '{id_of(row)}', which {table} says is there"
            findings.differ(journal, f"no call {key[:12]}", where)
        elif text is not None and entry["text"] != text:
            found = f"another {what} than the call {key[:12]} in {journal} has"
            findings.differ(f"{table}, '{id_of(row)}'", found, "the answer in the journal")
        else:
            findings.looked["answers held against the journal"] += 1


def _calls(row: Json) -> Iterator[tuple[str, str, str | None]]:
    """What each call of a row was for, its key, and the text that the row has of it, if it has one."""
    if "calls" in row:
        read = row["calls"][1:] if row["reasoning"] is not None else row["calls"]
        if row["reasoning"] is not None:
            yield f"reasoning by {row['principle_id']}", row["calls"][0], row["reasoning"]
        for key in read:
            yield f"verdict by {row['principle_id']}", key, row["raw"] if len(read) == 1 else None
        return
    yield "response", row.get("response_call") or row["call"], row["response"]
    for one in row.get("rounds", ()):
        number = one["round"]
        for name in ("choice", "gate"):
            if one[f"{name}_call"] is not None:
                yield f"{name} of round {number}", one[f"{name}_call"], None
        for name in ("critique", "revision"):
            if one[f"{name}_call"] is not None:
                yield f"{name} of round {number}", one[f"{name}_call"], one[name]
        for failed in one["failed_tries"]:
            yield f"failed revision of round {number}", failed["call"], failed["revision"]


# Counts


def _check_counts(run: Run, stage: str, entry: Json, read: Sequence[str], findings: Findings) -> None:
    """The manifest's numbers of a finished stage, counted anew from its tables."""
    where, told = f"manifest.json, cai {stage}", entry["counts"]
    findings.same(where, told["kept"] + told["dropped"], told["read"], "kept and dropped, together")
    findings.same(where, sum(told["dropped_by_reason"].values()), told["dropped"], "drops by their reasons, together")
    prompts = entry.get("prompts", {})
    findings.same(where, told["read"], prompts.get("rows"), "rows that were read:")
    if prompts.get("sha") is not None:
        findings.same(where, digest(list(read)), prompts["sha"], "shards that have read the rows with the digest")
    check_entry(run, stage, entry, findings)
    findings.step(f"cai {stage}: counting the rows anew.")
    counts: Any = json.loads(json.dumps(count_stage(run, stage)))
    same_version = entry.get("versions", {}).get("cai") == version("cai")
    always = ("read", "kept", "dropped", "dropped_by_reason", "tokens")
    for name in told if same_version else always:
        findings.same(f"{where}, {name}", counts.get(name), told[name], "the tables come to")
    findings.looked["counts"] += len(told if same_version else always)
    reasons = Counter(drop["stage"] for drop in run.dropped(stage, TABLES[stage][-1]))
    findings.same(f"drops of cai {stage}", dict(reasons), {stage: reasons.total()} if reasons else {}, "drops by stage")
