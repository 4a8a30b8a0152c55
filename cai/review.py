"""What people say of pairs: which ones they are asked about, and how their answers come before the judge's.

    RUN/review.jsonl         to be filled in: pair_id, prompt, a, b, and "answer": null
    RUN/reviews.jsonl        the answers so far, one a line, each with the digest of the texts that were shown
    RUN/review-unused.jsonl  filled-in lines of review.jsonl about pairs that the run has no more, where there are any

Whoever reviews sees neither the judge's opinion nor where an answer comes from.
"""

import codecs
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cai.errors import BadInput, brief
from cai.files import write_atomically
from cai.ids import digest
from cai.rows import Label
from cai.seal import Json
from cai.sources import each_key_once
from cai.store import Run

ANSWERS = ("a", "b", "none")
TOLD = ("pair_id", "prompt", "a", "b")
# No text in the line is taken for it, since there a quote has a backslash before it.
_FILLED = re.compile(rb'"answer"[ \t]*:[ \t]*"(a|b|none)"[ \t]*')
# How scripts write the lines anew that fill it in: Python's json.dumps, and jq -c.
_FORMS: tuple[Json, ...] = ({}, {"ensure_ascii": False, "separators": (",", ":")})
# What a person has said of a pair, or None.
Answers = Callable[[Json], str | None]


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
    for place, record in _lines(path):
        pair_id, answer, shown = record["pair_id"], record["answer"], record.get("shown")
        if answer in (None, ""):
            continue
        if answer not in ANSWERS:
            raise BadInput(place, f"the answer {json.dumps(answer)[:40]}", ", ".join(ANSWERS), "Mend that line.")
        if pair_id in answers and answers[pair_id].answer != answer:
            found = f"another answer for '{pair_id}' than in {answers[pair_id].place}"
            raise BadInput(place, found, "one answer for each pair", "Remove one of them.")
        answers[pair_id] = Reviewed(answer, place, _shown(record) if set(TOLD) <= record.keys() else shown)
    return answers


def _lines(path: Path) -> Iterator[tuple[str, Json]]:
    """The lines of a review file with their places. Raises BadInput for one that cannot be read."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record: Any = json.loads(line, object_pairs_hook=each_key_once)
            if not isinstance(record["pair_id"], str) or "answer" not in record:
                raise KeyError("answer")
            digest(record)  # a text that no file can hold
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            found, remedy = f"a line that cannot be read ({brief(error)})", "Start from the run's review.jsonl."
            raise BadInput(place, found, "pair_id and answer", remedy) from error
        yield place, record


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


def answers_given(run: Run) -> Answers:
    """What people have said so far of a pair with the texts that it has. Raises BadInput as `read_review` does."""
    path = run.folder / "reviews.jsonl"
    every = read_review(str(path)) if path.is_file() else {}

    def answer(pair: Json) -> str | None:
        one = every.get(pair["pair_id"])
        return one.answer if one is not None and one.shown in (None, _shown(pair)) else None

    return answer


def labels_entry(run: Run) -> Json | None:
    """What the manifest says of the labels, also where a kill has broken off a review that was being entered."""
    return run.manifest().get("label", run.reopened("label"))


def review(run: Run, answers: Mapping[str, Reviewed], share: float, seed: int, say: Callable[[str], None]) -> None:
    """Enter people's answers into the finished labels, and write down what is to be reviewed.

    Answers given before stay, unless `answers` has others; one about other texts than the pair has now decides nothing.
    Before a file changes the stage is taken out of the manifest, which answers for every file; whoever calls this
    enters it again. Raises BadInput, CannotWrite.
    """
    texts = {row["pair_id"]: _shown(row) for row in run.records("pairs", list(TOLD))}
    path = run.folder / "reviews.jsonl"
    every = (read_review(str(path)) if path.is_file() else {}) | dict(answers)
    if answers:
        told = (
            {"pair_id": name, "answer": one.answer, "shown": one.shown or texts.get(name)}
            for name, one in every.items()
        )
        lines = [json.dumps(record) + "\n" for record in sorted(told, key=lambda record: str(record["pair_id"]))]
        _write(run, path, "".join(lines).encode())
    outdated = [name for name, one in every.items() if name in texts and one.shown not in (None, texts[name])]
    if outdated:
        say(
            f"{path}: {len(outdated)} answers are about other texts than the run has now, that of '{outdated[0]}' "
            "first. They stay there and decide nothing."
        )
    given = {name: one.answer for name, one in every.items() if name in texts and name not in outdated}
    for index in run.finished_shards("labels"):
        old = [Label(**row) for row in run.shard_records("labels", index)]
        new = [_reviewed(label, given.get(label.pair_id)) for label in old]
        if new != old:
            _reopen(run)
            run.rewrite_shard("labels", index, new)
    _write_questions(run, given, texts, share, seed, say)


def _reviewed(label: Label, answer: str | None) -> Label:
    return replace(label, reviewed=answer, chosen=answer or label.judged)


def _write_questions(
    run: Run, given: Mapping[str, str], texts: Mapping[str, str], share: float, seed: int, say: Callable[[str], None]
) -> None:
    """Every pair that the judge did not decide, and of the others a share of each stratum, in an order by hash, so that
    a part of the file, filled in, is a sample too. What somebody has written into the file stays."""
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
    path = run.folder / "review.jsonl"
    try:
        begun = {record["pair_id"]: record for _, record in _lines(path)} if path.is_file() else {}
        read_review(str(path)) if begun else {}
    except BadInput:  # somebody is writing in it: leave it to them
        return
    touched = {name: record for name, record in begun.items() if record["answer"] or record.keys() - {*TOLD, "answer"}}
    gone = {name for name, record in touched.items() if not (name in texts and _is_about(record, texts[name]))}
    _set_aside(run, [touched[name] for name in sorted(gone)], say)
    asked |= touched.keys() - gone
    rows = [row for row in run.records("pairs") if row["pair_id"] in asked]
    rows.sort(key=lambda row: _rank(seed, row["pair_id"]))
    lines: list[Json] = []
    for row in rows:
        name = row["pair_id"]
        written: Json = touched[name] if name in touched and name not in gone else {}
        told = {one: row[one] for one in TOLD} | {"answer": given.get(name, written.get("answer"))}
        lines.append({**told, **{key: written[key] for key in written if key not in told}})
    _write(run, path, _written(lines))


def _write(run: Run, path: Path, data: bytes) -> None:
    """Write a file of the review, unless it is so already. The manifest answers for these files too."""
    if not path.is_file() or path.read_bytes() != data:
        _reopen(run)
        write_atomically(path, data)


def _reopen(run: Run) -> None:
    if "label" in run.manifest():
        run.reopen("label")


def as_written(folder: Path, sha256: str) -> tuple[int, bool] | None:
    """How many answers somebody has filled into review.jsonl since it was written with this sha256, and whether their
    editor or script has saved the rest in a way of its own: other ends of lines, another end of the file, a byte order
    mark, or all lines as one of _FORMS has them.

    None if anything else has changed in it, or if no answer was filled in: who fills in none has no reason to save it.
    """
    path, lines, filled = folder / "review.jsonl", list[bytes](), 0
    try:
        told = read_review(str(folder / "reviews.jsonl")) if (folder / "reviews.jsonl").is_file() else {}
        data = path.read_bytes()
        plain = data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
        records = [record for _, record in _lines(path)]
        if any(plain == [json.dumps(record, **form).encode() for record in records] for form in _FORMS):
            plain = [_written([record]).removesuffix(b"\n") for record in records]
        for record, line in zip(records, plain, strict=True):
            is_filled = record["answer"] in ANSWERS and record["pair_id"] not in told
            # All other bytes of the line stay, so that the digest answers for them.
            lines.append((_FILLED.sub(b'"answer": null', line, count=1) if is_filled else line) + b"\n")
            filled += is_filled
    except (BadInput, OSError, ValueError):
        return None
    if not filled or hashlib.sha256(b"".join(lines)).hexdigest() != sha256:
        return None
    return filled, data != b"".join(line + b"\n" for line in plain)


def _written(records: Iterable[Json]) -> bytes:
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode()


def _is_about(record: Json, shown: str) -> bool:
    return not set(TOLD) <= record.keys() or _shown(record) == shown


def _set_aside(run: Run, records: list[Json], say: Callable[[str], None]) -> None:
    """Keep what people wrote about pairs that the run has no more."""
    path = run.folder / "review-unused.jsonl"
    there = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    new = [line for line in (json.dumps(record, ensure_ascii=False) for record in records) if line not in there]
    if new:
        _write(run, path, "".join(f"{line}\n" for line in [*there, *new]).encode())
        say(f"{len(new)} lines that somebody has filled in are about pairs that are no more; they are in {path}.")


def _rank(seed: int, pair_id: str) -> str:
    return digest([seed, "review", pair_id])
