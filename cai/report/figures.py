"""What the page and the summary say of a run beyond the counts of `audit`: read shard by shard, once.

What is held while reading grows with the principles, the reasons and the sample, not with the rows or their texts.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import PurePath

from cai.audit import TABLES
from cai.refusals import is_refusal
from cai.report.sample import Sample, lowest
from cai.scores import hit
from cai.seal import Json
from cai.store import Run
from cai.word_diff import words_changed

DROP_SAMPLES = 3
# Words of an answer, from so many on.
LENGTHS = (0, 25, 50, 100, 150, 200, 300, 500, 1000)


@dataclass(slots=True)
class Deeds:
    """What one principle did: in the rounds of revision, and as a judge, which may be of other rows."""

    applied: int = 0
    criticised: int = 0
    gated: int = 0
    probabilities: float = 0.0
    changed: int = 0
    words_removed: int = 0
    words_added: int = 0
    verdicts: int = 0
    unread: int = 0
    compared: int = 0  # verdicts that could be read, on an answer against its revision
    for_revision: float = 0.0
    revisions_judged: int = 0  # pairs of an answer and its revision of which it named one
    revision_preferred: int = 0
    both_orders: int = 0
    flipped: int = 0
    judged_with_others: int = 0
    opposed: int = 0


@dataclass(slots=True)
class Benign:
    """What became of the rows that ask for nothing harmful. The first four add up to those that were kept."""

    unchanged: int = 0
    changed: int = 0
    newly_refused: int = 0
    refused_before_and_after: int = 0
    dropped: int = 0

    @property
    def kept(self) -> int:
        return self.unchanged + self.changed + self.newly_refused + self.refused_before_and_after


@dataclass(slots=True)
class Labels:
    """What the labels and verdicts of a run look like."""

    # By tenths from 1/2 to 1: how sure the label is. And by twentieths: the probability of the revision.
    sure: dict[str, list[int]] = field(default_factory=lambda: {"decided": [0] * 10, "undecided": [0] * 10})
    for_revision: list[int] = field(default_factory=lambda: [0] * 20)
    without_probability: int = 0
    with_order: int = 0
    first_shown: float = 0.0
    both_orders: int = 0
    flipped: int = 0
    revision_pairs: int = 0
    revision_won: int = 0
    revision_lost: int = 0


@dataclass(slots=True)
class Figures:
    """All of it; `conflicts` by the ids of two principles: on how many pairs both decided, and on how many apart."""

    deeds: dict[str, Deeds] = field(default_factory=dict[str, Deeds])
    conflicts: dict[tuple[str, str], list[int]] = field(default_factory=dict[tuple[str, str], list[int]])
    gate_masses: int = 0
    gate_mass: float = 0.0
    gate: list[int] = field(default_factory=lambda: [0] * 10)
    lengths: dict[str, list[int]] = field(
        default_factory=lambda: {"before": [0] * len(LENGTHS), "after": [0] * len(LENGTHS)}
    )
    benign: Benign = field(default_factory=Benign)
    labels: Labels = field(default_factory=Labels)
    words_removed: int = 0
    words_added: int = 0
    none_passed: int = 0  # rows that stayed as they came since no revision of theirs passed the checks
    dropped: dict[tuple[str, str], list[str]] = field(default_factory=dict[tuple[str, str], list[str]])

    def of(self, principle: str) -> Deeds:
        return self.deeds.setdefault(principle, Deeds())


def count(run: Run, sample: Sample) -> Figures:
    """Read the run's tables, and offer every row to the sample. Raises BadInput if a file is damaged."""
    figures = Figures()
    stages = run.settings()
    for stage in stages:
        _drops(run, stage, figures, sample)
    if "revise" in stages:
        columns = ["row_id", "prompt_id", "source", "extra", "response", "final", "changed", "rounds"]
        for row in run.records("trajectories", columns):
            _row(row, figures)
            sample.offer(row["row_id"], _kinds(row))
    elif "generate" in stages:
        for row in run.records("responses", ["row_id"]):
            sample.offer(row["row_id"], ["response"])
    if {"label", "calibrate"} & stages.keys():
        for index in run.finished_shards("labels"):
            _judged(run, index, figures, sample)
    return figures


def _drops(run: Run, stage: str, figures: Figures, sample: Sample) -> None:
    for drop in run.dropped(stage, TABLES[stage][-1]):
        key = stage, drop["reason"]
        figures.dropped[key] = lowest({*figures.dropped.get(key, ()), drop["row_id"]}, DROP_SAMPLES)
        if stage != "label":
            sample.offer(drop["row_id"], ["dropped", f"dropped {drop['reason']}"])
            figures.benign.dropped += is_benign(drop)


def _kinds(row: Json) -> Iterator[str]:
    yield "changed" if row["changed"] else "unchanged"
    if is_benign(row):
        yield "benign"
    for one in row["rounds"]:
        if one["critique"] is not None:
            yield f"by {one['principle_id']}"
        if one["revision"] is not None and not one["taken"]:
            yield "failed"


def _row(row: Json, figures: Figures) -> None:
    """Count a trajectory."""
    answer = row["response"]
    for one in row["rounds"]:
        deeds = figures.of(one["principle_id"])
        deeds.applied += 1
        deeds.criticised += one["critique"] is not None
        if one["violation_probability"] is not None:
            deeds.gated += 1
            deeds.probabilities += one["violation_probability"]
            if one["gate_mass"] is not None:
                figures.gate_masses += 1
                figures.gate_mass += one["gate_mass"]
            figures.gate[min(9, int(one["violation_probability"] * 10))] += 1
        if one["taken"]:
            removed, added = words_changed(answer, one["revision"])
            deeds.changed += 1
            deeds.words_removed += removed
            deeds.words_added += added
            answer = one["revision"]
    if row["changed"]:
        removed, added = words_changed(row["response"], row["final"])
        figures.words_removed += removed
        figures.words_added += added
    else:
        figures.none_passed += any(one["revision"] is not None for one in row["rounds"])
    for name, text in (("before", row["response"]), ("after", row["final"])):
        words = len(text.split())
        figures.lengths[name][sum(words >= bound for bound in LENGTHS) - 1] += 1
    if is_benign(row):
        _count_benign(row, figures.benign)


def is_benign(row: Json) -> bool:
    """Whether a row says of itself that it asks for nothing harmful: by its file's name, its id, or a carried column.

    A drop has no carried columns, and is known by file and id alone.
    """
    if "benign" in PurePath(row["source"]).name.casefold() or row["row_id"].casefold().startswith("benign"):
        return True
    carried = json.loads(row.get("extra") or "{}")
    return any(isinstance(value, str) and value.casefold() == "benign" for value in carried.values())


def _count_benign(row: Json, benign: Benign) -> None:
    if is_refusal(row["final"]):
        if is_refusal(row["response"]):
            benign.refused_before_and_after += 1
        else:
            benign.newly_refused += 1
    elif row["changed"]:
        benign.changed += 1
    else:
        benign.unchanged += 1


def _judged(run: Run, index: int, figures: Figures, sample: Sample) -> None:
    """Count the pairs of one shard with their verdicts and labels."""
    names = ["pair_id", "row_id", "a_from", "b_from"]
    later = {pair["pair_id"]: later_side(pair) for pair in run.shard_records("pairs", index, names)}
    labels = figures.labels
    for label in run.shard_records("labels", index, ["pair_id", "row_id", "probability_a", "chosen", "judged"]):
        probability, side = label["probability_a"], later.get(label["pair_id"])
        decided = label["chosen"] != "none"
        kinds = ["decided" if decided else "undecided"]
        if probability is None:
            labels.without_probability += 1
        else:
            sure = max(probability, 1 - probability)
            labels.sure[kinds[0]][min(9, int((sure - 0.5) * 20))] += 1
        if side is not None:
            won = label["chosen"] == side
            labels.revision_pairs += 1
            labels.revision_won += won
            labels.revision_lost += decided and not won
            if probability is not None:
                for_it = probability if side == "a" else 1 - probability
                labels.for_revision[min(19, int(for_it * 20))] += 1
        kinds += outcome(label["chosen"], side)
        sample.offer(label["row_id"], kinds)
    _verdicts(run, index, later, figures)


def outcome(chosen: str, later: str | None) -> list[str]:
    """What a decided pair is called, by the side that is the revision, if one is; nothing of an undecided one."""
    if chosen == "none":
        return []
    if later is None:
        return ["one sample preferred"]
    return ["revision preferred" if chosen == later else "answer preferred to its revision"]


def later_side(pair: Json) -> str | None:
    """Which side of a pair is the later text, where one is a revision of the other: a or b; None of two samples."""
    age = {side: _age(pair[f"{side}_from"]) for side in ("a", "b")}
    if age["a"] is None or age["b"] is None or age["a"] == age["b"]:
        return None
    return "a" if age["a"] > age["b"] else "b"


def _age(origin: str) -> int | None:
    if origin == "response":
        return 0
    number = origin.removeprefix("revision-")
    return int(number) if number != origin and number.isdigit() else None


def _verdicts(run: Run, index: int, later: Mapping[str, str | None], figures: Figures) -> None:
    columns = ["pair_id", "principle_id", "order", "probability_a"]
    orders: dict[str, dict[str, dict[str, float | None]]] = {}
    for one in run.shard_records("verdicts", index, columns):
        by_principle = orders.setdefault(one["pair_id"], {})
        by_principle.setdefault(one["principle_id"], {})[one["order"]] = one["probability_a"]
    for pair_id, by_principle in orders.items():
        sides: dict[str, bool] = {}
        for name, read in by_principle.items():
            _principle(figures, figures.of(name), read, later.get(pair_id))
            whole = [one for one in read.values() if one is not None]
            mean = sum(whole) / len(whole) if len(whole) == len(read) else 0.5
            if mean != 0.5:
                sides[name] = mean > 0.5
        for one, other in combinations(sorted(sides), 2):
            both = figures.conflicts.setdefault((one, other), [0, 0])
            both[0] += 1
            both[1] += sides[one] != sides[other]
        revision = later.get(pair_id)
        for name, side in sides.items():
            if revision is not None:
                figures.of(name).revisions_judged += 1
                figures.of(name).revision_preferred += side == (revision == "a")
            if len(sides) > 1:
                figures.of(name).judged_with_others += 1
                figures.of(name).opposed += (not side) in sides.values()


def _principle(figures: Figures, deeds: Deeds, read: Mapping[str, float | None], side: str | None) -> None:
    """Count the verdicts of one principle on one pair, by order."""
    labels = figures.labels
    deeds.verdicts += len(read)
    for order, probability in read.items():
        if probability is None:
            deeds.unread += 1
            continue
        if side is not None:
            deeds.compared += 1
            deeds.for_revision += probability if side == "a" else 1 - probability
        if order in ("ab", "ba"):
            labels.with_order += 1
            labels.first_shown += hit(probability, order == "ab")
    ab, ba = read.get("ab"), read.get("ba")
    if ab is not None and ba is not None:
        flipped = (ab - 0.5) * (ba - 0.5) < 0
        deeds.both_orders += 1
        deeds.flipped += flipped
        labels.both_orders += 1
        labels.flipped += flipped
