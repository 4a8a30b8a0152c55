"""One row's whole story, read from its run: what was asked and answered, by which principle, and where it went.

    trace(run, "q7")["trajectories"][0]["rounds"]     the rounds, as docs/tables.md has them
                    ["pairs"][0]["verdicts"]          a pair with its verdicts and its label
                    ["drops"]                         why a row could not be used
                    ["principles"]                    by stage, the wording of each principle that was applied
                    ["gate"]                          what the gate asked, and from where on an answer is broken
                    ["calls"]                         each call: its key, what for, model, tokens, time, its line
                    ["exports"]                       the rows of the datasets that were made of it
                    ["left_out"]                      what of it is in which dataset not, and why

What stands in the tables stands here as it is; nothing is summed up.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cai.audit import TABLES
from cai.errors import BadInput
from cai.journal import Entry, entries_with
from cai.kept import kept_constitution
from cai.lineage import Exported, datasets_of, differences, left_out, made_anew, rows_in
from cai.pairs import row_of
from cai.seal import Json
from cai.store import Run

# The calls of a round, in the order in which they are asked.
ROUND_CALLS = ("choice", "gate", "critique", "revision")
_TOLD_OF_A_CALL = ("model", "asked_at", "seconds", "finish", "prompt_tokens", "cached_tokens", "completion_tokens")


def trace(run: Run, row_id: str, datasets: Sequence[str] = (), known: Sequence[Exported] = ()) -> Json:
    """The story of the row, prompt or pair with this id. `datasets` are folders of datasets that do not lie beside it,
    `known` are datasets of which it is known that they were made of this run.

    Raises BadInput if the run has no such id, or if what is read of it is damaged.
    """
    found: Json = {"run": str(run.folder), "row_id": row_id, "notes": []}
    shards = set[int]()
    keys: list[Json] = []
    pairs = _judged(run, row_id)
    # An answer of a pair may come from another row; with the pair's own id, both are its story.
    names = {row_id, *(name for _, one in pairs if one["pair"]["pair_id"] == row_id for name in _rows_of(one["pair"]))}
    for stage in run.settings():
        table = TABLES[stage][-1]
        drops = [drop for drop in run.dropped(stage, table) if drop["row_id"] == row_id]
        rows = pairs if table == "labels" else list(_with_id(run, table, names))
        shards |= {index for index, _ in rows}
        for _, row in rows:
            keys += [{"stage": stage, **use} for use in uses_in(table, row)]
        if rows:
            found["pairs" if table == "labels" else table] = [row for _, row in rows]
        if drops:
            found["drops"] = found.get("drops", []) + drops
    if not {"responses", "trajectories", "pairs", "drops"} & found.keys():
        raise _unknown(run, row_id)
    found["principles"] = _principles(run, keys, found["notes"])
    if "trajectories" in found:
        found["gate"] = gate_of(run)
    found["calls"] = _calls(run, keys, shards, row_id if "drops" in found else None, found["notes"])
    found["exports"], found["left_out"] = exports_of(run, found, datasets, known)
    return found


def _with_id(run: Run, table: str, names: set[str]) -> Iterator[tuple[int, Json]]:
    """The rows of these ids with their shards; of a shard without one, only the ids are read."""
    for index in run.finished_shards(table):
        if any(names & {one["row_id"], one["prompt_id"]} for one in run.shard_records(table, index, _IDS)):
            rows = run.shard_records(table, index)
            yield from ((index, row) for row in rows if names & {row["row_id"], row["prompt_id"]})


_IDS = ["row_id", "prompt_id"]
_PAIR_IDS = ["pair_id", "prompt_id", "row_id", "a_from", "b_from"]


def _judged(run: Run, row_id: str) -> list[tuple[int, Json]]:
    """The row's pairs, each with its verdicts and its label; `row_id` may also be a pair's id."""
    found: list[tuple[int, Json]] = []
    for index in run.finished_shards("labels"):
        ids = {pair["pair_id"] for pair in run.shard_records("pairs", index, _PAIR_IDS) if row_id in _names(pair)}
        if not ids:
            continue
        tables = {name: list(run.shard_records(name, index)) for name in TABLES["label"]}
        labels = {label["pair_id"]: label for label in tables["labels"]}
        for pair in tables["pairs"]:
            if pair["pair_id"] in ids and pair["pair_id"] in labels:
                verdicts = [one for one in tables["verdicts"] if one["pair_id"] == pair["pair_id"]]
                found.append((index, {"pair": pair, "verdicts": verdicts, "label": labels[pair["pair_id"]]}))
    return found


def _names(pair: Json) -> set[str]:
    """The ids by which a pair is found: its own, its prompt's, and those of the rows that its answers come from."""
    return {pair["pair_id"], pair["prompt_id"], *_rows_of(pair)}


def _rows_of(pair: Json) -> set[str]:
    return {pair["row_id"], *(row_of(pair, pair[f"{side}_from"]) for side in "ab")}


def uses_in(table: str, row: Json) -> Iterator[Json]:
    """The calls that a row of a table names, in their order: key, and what it was for. For labels, a judged pair."""
    if table == "responses":
        yield {"key": row["call"], "row_id": row["row_id"], "use": "response"}
    elif table == "trajectories":
        yield {"key": row["response_call"], "row_id": row["row_id"], "use": "response"}
        for one in row["rounds"]:
            told = {"row_id": row["row_id"], "round": one["round"], "principle_id": one["principle_id"]}
            for name in ROUND_CALLS:
                tries = one["failed_tries"] if name == "revision" else ()
                yield from ({"key": failed["call"], **told, "use": "failed try"} for failed in tries)
                if one[f"{name}_call"]:
                    yield {"key": one[f"{name}_call"], **told, "use": name}
    else:
        for one in row["verdicts"]:
            told = {"row_id": row["pair"]["row_id"], "pair_id": one["pair_id"], "principle_id": one["principle_id"]}
            for place, key in enumerate(one["calls"]):
                # Where each answer is judged alone, the calls about a come first, and there are as many about b.
                side = ("a" if 2 * place < len(one["calls"]) else "b") if one["order"] == "none" else None
                yield {"key": key, **told, "order": one["order"], "side": side, "use": "verdict"}


def _principles(run: Run, keys: Sequence[Json], notes: list[str]) -> Json:
    """By stage, the constitution and the wording of the principles that were applied, from the run's own copy."""
    found: Json = {}
    for stage in dict.fromkeys(key["stage"] for key in keys):
        applied = {key["principle_id"] for key in keys if key["stage"] == stage and "principle_id" in key}
        if not applied:
            continue
        try:
            constitution = kept_constitution(run, stage)
        except BadInput as error:
            notes.append(f"The wording of the principles is not shown. {error}")
            continue
        if constitution is None:
            notes.append(f"The run has no copy of the constitution of cai {stage}, so no wording is shown.")
            continue
        found[stage] = {
            "constitution": constitution.name,
            "version": constitution.version,
            "sha256": constitution.sha,
            "path": str(constitution.path),
            "wording": {
                one.id: one.model_dump(mode="json") for one in constitution.principles if one.id in applied
            },
        }  # fmt: skip
    return found


def gate_of(run: Run) -> Json:
    """What the gate of a run asked: `asks` is "question", one of the constitution over all its principles, or
    "principle", the one that was applied; None without a gate, or where no copy says so. `threshold` is the probability
    from which an answer is broken, and `chosen` how the principle of a round was found (`--principles`)."""
    settings = run.settings()["revise"]["settings"]
    found: Json = {"asks": None, "question": None, "threshold": None, "chosen": settings.get("principles")}
    if settings.get("gate") != "on":
        return found
    found["threshold"] = settings.get("gate_threshold")
    try:
        constitution = kept_constitution(run, "revise")
    except BadInput:  # `_principles` has said so
        return found
    if constitution is None:
        return found
    # As `revise.revise` does it: where every principle is gone through, each is asked about by itself.
    alone = found["chosen"] == "all" and len(constitution.principles) > 1
    by_question = constitution.question is not None and not alone
    found["asks"] = "question" if by_question else "principle"
    found["question"] = constitution.question if by_question else None
    return found


def _calls(run: Run, keys: Sequence[Json], shards: set[int], dropped: str | None, notes: list[str]) -> list[Json]:
    """What the journal says of each call; of a row that was dropped, its calls are found by its id."""
    wanted = {key["key"] for key in keys}
    segments = [segment_of(run, index) for index in sorted(shards)]
    if dropped is not None:  # a drop does not say in which shard it lies
        wanted, segments = wanted | {dropped}, segments_of(run)
    places, damaged = dict[str, tuple[str, Entry]](), list[str]()
    for segment in segments:
        for place, entry in entries_with(segment, wanted, damaged):
            if entry["key"] in wanted or entry.get("row_id") == dropped:
                places.setdefault(entry["key"], (place, entry))
    notes += [f"{place} is damaged; the call that it held may be missing here." for place in damaged]
    found = [_call(key, places.get(key["key"])) for key in keys]
    named = {key["key"] for key in keys}
    others = [(key, place) for key, place in places.items() if key not in named]
    found += [_call({"key": key, "row_id": dropped, "use": place[1]["purpose"]}, place) for key, place in others]
    return found


def _call(use: Json, kept: tuple[str, Entry] | None) -> Json:
    if kept is None:
        return {**use, "place": None}
    place, entry = kept
    said = {"purpose": entry["purpose"]} | {name: entry.get(name) for name in _TOLD_OF_A_CALL}
    # Of a call that a table names the answer stands there; of others only here.
    return {**use, **said, "place": place} | ({} if "stage" in use else {"text": entry["text"]})


def segment_of(run: Run, index: int) -> Path:
    """The segment of the journal that has the calls of a shard."""
    return run.folder / "journal" / f"part-{index:05d}.jsonl"


def segments_of(run: Run) -> list[Path]:
    """All segments of a run's journal."""
    return sorted((run.folder / "journal").glob("*.jsonl"))


def exports_of(
    run: Run, found: Json, datasets: Sequence[str] = (), known: Sequence[Exported] = ()
) -> tuple[list[Json], list[Json]]:  # fmt: skip
    """The rows of the run's datasets that were made of a row: dataset, version, place, and whether it is still so; and
    what of the row is not in which dataset, and why.

    `found` is what `trace` has of the row. `differs` are the columns in which the row is not what the run gives now;
    None means that the run gives no such row any more.
    """
    ids = {row["row_id"] for row in found.get("trajectories", [])}
    ids |= {one["pair"]["pair_id"] for one in found.get("pairs", [])}
    exports: list[Json] = []
    absent: list[Json] = []
    places = _places(run, ids)
    for dataset in datasets_of(run, datasets, known) if ids else ():
        rows, pairs, before = found.get("trajectories", []), found.get("pairs", []), len(exports)
        anew = made_anew(run, dataset, rows, pairs)
        told: Json = {"dataset": str(dataset.folder), "version": dataset.manifest.get("version", {}).get("name")}
        for row in rows_in(dataset, ids):
            if row["row"].get("pair_id", row["row"]["row_id"]) in ids:  # of the row, or of one of its pairs
                place = {name: row[name] for name in ("config", "split", "file", "number")}
                exports.append({**told, **place, **_called(row["row"]), "differs": differences(row, anew)})
        absent += [told | one for one in left_out(run, dataset, rows, pairs, exports[before:], places)]
    return exports, absent


def _places(run: Run, ids: set[str]) -> dict[tuple[str, str], int]:
    """How many of its kind lie before the answer of a row ("sft") or a judged pair ("pairs") in the run."""
    found: dict[tuple[str, str], int] = {}
    for kind, table, column in (("sft", "trajectories", "row_id"), ("pairs", "labels", "pair_id")):
        names = (row[column] for row in run.records(table, [column]))
        found |= {(kind, name): place for place, name in enumerate(names) if name in ids}
    return found


def _called(row: Json) -> Json:
    return {name: row[name] for name in ("row_id", "pair_id", "answer_from", "label") if name in row}


def did_you_mean(row_id: str, known: Sequence[str]) -> str:
    """A question that names the ids nearest to an unknown one, to begin a remedy with; nothing if none is near."""
    close = difflib.get_close_matches(row_id, known, n=3, cutoff=0.5)
    return f"Did you mean {', '.join(map(repr, close))}? " if close else ""


def _unknown(run: Run, row_id: str) -> BadInput:
    """What to say of an id that the run does not have."""
    meant = did_you_mean(row_id, list(_ids_of(run)))
    remedy = f"{meant}Ids are in the columns row_id and pair_id of the tables, and {_where(run)}."
    return BadInput(str(run.folder), f"no row '{row_id}'", "the row_id of a row, a pair or a drop", remedy)


def _ids_of(run: Run) -> Iterator[str]:
    seen, stages = set[str](), run.settings()
    for stage in (one for one in TABLES if one in stages):  # in the order of `cai show RUN`
        table = TABLES[stage][-1]
        columns = ["pair_id", "row_id"] if table == "labels" else _IDS
        everything: Any = (*run.records(table, columns), *run.dropped(stage, table))
        for row in everything:
            for name in ("row_id", "prompt_id", "pair_id"):
                if row.get(name) and row[name] not in seen:
                    seen.add(row[name])
                    yield row[name]


def _where(run: Run) -> str:
    first = next(_ids_of(run), None)
    return "this run has none yet" if first is None else f"the first one is '{first}'"
