"""What people say of pairs: which ones they are asked about, and how their answers come before the judge's.

    RUN/review.jsonl    to be filled in: pair_id, prompt, a, b, and "answer": null
    RUN/reviews.jsonl   the answers that were given so far, one a line

Whoever reviews sees neither the judge's opinion nor where an answer comes from.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cai.errors import BadInput, brief
from cai.files import write_atomically
from cai.ids import digest
from cai.rows import Label
from cai.sources import each_key_once
from cai.store import Json, Run

ANSWERS = ("a", "b", "none")
TOLD = ("pair_id", "prompt", "a", "b")


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What a person said of a pair, where it stands, and the texts that they were shown (None if the line has none)."""

    answer: str
    place: str
    shown: str | None


def read_review(name: str) -> dict[str, Reviewed]:
    """The answers in a review file by pair_id; lines without one are passed over.

    Raises BadInput with file and line.
    """
    path = Path(name)
    if not path.is_file():
        raise BadInput(f"--apply-review {name}", "no such file", "a filled-in review.jsonl", "Check the path.")
    answers: dict[str, Reviewed] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record: Any = json.loads(line, object_pairs_hook=each_key_once)
            pair_id, answer = record["pair_id"], record["answer"]
            shown = _shown(record) if set(TOLD) <= record.keys() else None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            found, remedy = f"a line that cannot be read ({brief(error)})", "Start from the run's review.jsonl."
            raise BadInput(place, found, "pair_id and answer", remedy) from error
        if answer in (None, ""):
            continue
        if not isinstance(pair_id, str) or answer not in ANSWERS:
            raise BadInput(place, f"the answer {json.dumps(answer)[:40]}", ", ".join(ANSWERS), "Mend that line.")
        if pair_id in answers and answers[pair_id].answer != answer:
            found = f"another answer for '{pair_id}' than in {answers[pair_id].place}"
            raise BadInput(place, found, "one answer for each pair", "Remove one of them.")
        answers[pair_id] = Reviewed(answer, place, shown)
    return answers


def check_review(run: Run, answers: Mapping[str, Reviewed]) -> None:
    """Raise BadInput unless every answer is about a pair of the run's labels, and about the texts that it has now."""
    if labels_entry(run) is None:
        found = "no finished labels"
        raise BadInput(str(run.folder), found, "labels to review", "Run cai label without --apply-review first.")
    if not answers:
        raise BadInput("--apply-review", "no answers", 'an "answer" of a, b or none on some line', "Fill it in.")
    left = dict(answers)
    for row in run.records("pairs"):
        one = left.pop(row["pair_id"], None)
        if one is not None and one.shown is not None and one.shown != _shown(row):
            found = f"'{row['pair_id']}' with other texts than in {run.folder}"
            raise BadInput(one.place, found, "the texts as the run has them", "Take this run's review.jsonl.")
    for pair_id, one in left.items():
        found = f"an answer about the pair '{pair_id}', which is not in {run.folder}"
        raise BadInput(one.place, found, "pairs of this run", "Take this run's review.jsonl.")


def _shown(row: Any) -> str:
    return digest([row[name] for name in TOLD])


def labels_entry(run: Run) -> Json | None:
    """What the manifest says of the labels, also where a kill has broken off a review that was being entered."""
    return run.manifest().get("label", run.reopened("label"))


def review(run: Run, answers: Mapping[str, Reviewed], share: float, seed: int) -> None:
    """Enter people's answers into the finished labels, and write down what is to be reviewed.

    Answers given before stay, unless `answers` has others. Before a label changes the stage is taken out of the
    manifest, which answers for every file; whoever calls this enters it again. Raises BadInput, CannotWrite.
    """
    given = _answers(run.folder / "reviews.jsonl") | {pair_id: one.answer for pair_id, one in answers.items()}
    if answers:
        lines = [json.dumps({"pair_id": pair_id, "answer": given[pair_id]}) + "\n" for pair_id in sorted(given)]
        write_atomically(run.folder / "reviews.jsonl", "".join(lines).encode())
    finished = "label" in run.manifest()
    for index in run.finished_shards("labels"):
        old = [Label(**row) for row in run.shard_records("labels", index)]
        new = [_reviewed(label, given.get(label.pair_id)) for label in old]
        if new != old:
            if finished:
                run.reopen("label")
                finished = False
            run.rewrite_shard("labels", index, new)
    _write_questions(run, given, share, seed)


def _reviewed(label: Label, answer: str | None) -> Label:
    return replace(label, reviewed=answer, chosen=answer or label.judged)


def _answers(path: Path) -> dict[str, str]:
    """The answers in a file of ours that may not be there yet. Raises BadInput."""
    return {pair_id: one.answer for pair_id, one in read_review(str(path)).items()} if path.is_file() else {}


def _write_questions(run: Run, given: Mapping[str, str], share: float, seed: int) -> None:
    """Every pair that the judge did not decide, and of the others a share of each stratum, in an order by hash, so that
    a part of the file, filled in, is a sample too."""
    columns = ["pair_id", "a_from", "b_from"]
    origins = {row["pair_id"]: (row["a_from"], row["b_from"]) for row in run.records("pairs", columns)}
    asked: set[str] = set()
    strata: dict[tuple[str, int], list[str]] = {}
    for row in run.records("labels", ["pair_id", "judged", "margin"]):
        if row["judged"] == "none":
            asked.add(row["pair_id"])
        else:
            # By what won, and by how clearly.
            won = origins[row["pair_id"]][0 if row["judged"] == "a" else 1]
            strata.setdefault((won, min(3, int(row["margin"]))), []).append(row["pair_id"])
    for pair_ids in strata.values():
        asked.update(sorted(pair_ids, key=lambda one: _rank(seed, one))[: math.ceil(share * len(pair_ids))])
    try:
        begun = _answers(run.folder / "review.jsonl")  # filled in, and not applied yet
    except BadInput:  # somebody is writing in it: leave it to them
        return
    asked |= begun.keys()
    filled = {**begun, **given}
    rows = [row for row in run.records("pairs") if row["pair_id"] in asked]
    rows.sort(key=lambda row: _rank(seed, row["pair_id"]))
    questions: list[Json] = [
        {name: row[name] for name in TOLD} | {"answer": filled.get(row["pair_id"])} for row in rows
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in questions]
    write_atomically(run.folder / "review.jsonl", "".join(lines).encode())


def _rank(seed: int, pair_id: str) -> str:
    return digest([seed, "review", pair_id])
