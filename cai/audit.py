"""The report of a run: what was read, kept, dropped and changed, and what it cost. Counted from the tables."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cai.calibrate import agreement
from cai.checks import CHECKS, boilerplate_endings
from cai.journal import Tally
from cai.label import NEITHER, REASONS, why_none
from cai.refusals import is_refusal
from cai.seal import Json
from cai.store import Run

# The tables of each stage; the last one is written last, and has one row for each row or pair that was kept.
TABLES = {
    "generate": ("responses",),
    "revise": ("trajectories",),
    "label": ("pairs", "verdicts", "labels"),
    "calibrate": ("pairs", "verdicts", "labels"),
}


def count_stage(run: Run, stage: str) -> Json:
    """The counts of a stage, from its tables: rows, drops by reason, tokens.

    For `revise` also, of the kept rows: what each round and each principle did, how revisions failed, refusals and
    length before and after, and the closing sentences that too many revisions have in common (over the whole run). For
    `label`: what was decided and why not, what won, each principle's verdicts, and how people and the judge agree.
    """
    table = TABLES[stage][-1]
    columns = ["prompt_tokens", "cached_tokens", "completion_tokens"] + (
        ["changed", "rounds", "response", "final"] if stage == "revise" else []
    )
    kept = 0
    tokens: Counter[str] = Counter()
    rows = _Rows()
    for record in run.records(table, columns):
        kept += 1
        tokens.update({name: record[name] for name in columns[:3]})
        if stage == "revise":
            rows.add(record)
    reasons = Counter(drop["reason"] for drop in run.dropped(stage, table))
    counts: Json = {
        "read": kept + reasons.total(),
        "kept": kept,
        "dropped": reasons.total(),
        "dropped_by_reason": dict(sorted(reasons.items())),
        "tokens": {name: tokens[name] for name in columns[:3]},
    }
    if stage == "revise":

        def finals() -> Iterator[str]:
            return (row["final"] for row in run.records(table, ["changed", "final"]) if row["changed"])

        counts |= {**rows.counts(), "boilerplate_endings": boilerplate_endings(finals)}
    return counts | count_labels(run) if table == "labels" else counts


def count_labels(run: Run) -> Json:
    """What the labels of a run come to, and the verdicts behind them.

    `won` counts, for what the two answers of a pair are, how often each was chosen. A principle `decided` where it was
    among those that sided with the label.
    """
    columns = ["pair_id", "a_from", "b_from"]
    kinds = {row["pair_id"]: (row["a_from"], row["b_from"]) for row in run.records("pairs", columns)}
    chosen: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    won: dict[str, Counter[str]] = {}
    decided: dict[str, str] = {}
    gaps: list[float] = []
    reviewed: list[tuple[str, str]] = []
    for row in run.records("labels", ["pair_id", "chosen", "judged", "reason", "reviewed", "position_gap"]):
        chosen[row["chosen"]] += 1
        if row["chosen"] == "none":
            reasons[why_none(row)] += 1
        if row["position_gap"] is not None:
            gaps.append(row["position_gap"])
        if row["reviewed"] is not None:
            reviewed.append((row["judged"], row["reviewed"]))
        a, b = kinds.get(row["pair_id"], ("?", "?"))
        winner = {"a": a, "b": b}.get(row["chosen"], "none")
        won.setdefault(" against ".join(sorted((a, b))), Counter())[winner] += 1
        decided[row["pair_id"]] = row["chosen"]
    principles: dict[str, Counter[str]] = {}
    for row in run.records("verdicts", ["pair_id", "principle_id", "probability_a", "letter_mass", "mode"]):
        group = principles.setdefault(row["principle_id"], Counter())
        mass: Any = row["letter_mass"] or 0.0
        group.update(verdicts=1, mass=mass, sampled=int(row["mode"] == "sampled"))
        if row["probability_a"] is None:
            group["unread"] += 1
        else:
            side = "a" if row["probability_a"] > 0.5 else "b" if row["probability_a"] < 0.5 else ""
            group.update(decided=int(decided.get(row["pair_id"]) == side), apart=abs(row["probability_a"] - 0.5))
    return {
        "decided": chosen["a"] + chosen["b"],
        "undecided_by_reason": {reason: reasons[reason] for reason in (*REASONS, NEITHER) if reasons[reason]},
        "won": {kind: dict(sorted(won[kind].items())) for kind in sorted(won)},
        "mean_position_gap": round(sum(gaps) / len(gaps), 4) if gaps else None,
        "verdicts": {name: _verdict_rates(principles[name]) for name in sorted(principles)},
        "reviewed": agreement(reviewed),
    }


def _verdict_rates(group: Counter[str]) -> Json:
    read = group["verdicts"] - group["unread"]
    return {
        "asked": group["verdicts"],
        "unread": group["unread"],
        "sampled": group["sampled"],
        "with_the_label": group["decided"],
        "mean_distance_from_half": round(group["apart"] / read, 4) if read else None,
        "mean_letter_mass": round(group["mass"] / group["verdicts"], 4),
    }


@dataclass(slots=True)
class _Rows:
    """What the rows of `revise` come to."""

    rounds: dict[int, Counter[str]] = field(default_factory=dict[int, Counter[str]])
    principles: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    flags: Counter[str] = field(default_factory=Counter[str])
    texts: dict[str, Counter[str]] = field(default_factory=lambda: {"response": Counter(), "final": Counter()})
    changed: int = 0

    def add(self, row: Json) -> None:
        self.changed += row["changed"]
        for name, group in self.texts.items():
            group.update(rows=1, refusals=is_refusal(row[name]), words=len(row[name].split()))
        for one in row["rounds"]:
            self.flags.update(one["flags"])
            for failed in one["failed_tries"]:
                self.flags.update(failed["flags"])
            _count_round(self.rounds.setdefault(one["round"], Counter()), one)
            _count_round(self.principles.setdefault(one["principle_id"], Counter()), one)

    def counts(self) -> Json:
        return {
            "changed": self.changed,
            "texts": {
                name: {"refusals": group["refusals"], "mean_words": round(group["words"] / max(1, group["rows"]), 1)}
                for name, group in self.texts.items()
            },
            "by_round": {str(number): _rates(self.rounds[number]) for number in sorted(self.rounds)},
            "by_principle": {name: _rates(self.principles[name]) for name in sorted(self.principles)},
            "flags": {name: count for name, count in sorted(self.flags.items()) if name not in CHECKS},
            "failed_revisions": {name: self.flags[name] for name in CHECKS if self.flags[name]},
        }


def _count_round(group: Counter[str], one: Json) -> None:
    probability = one["violation_probability"]
    group["asked"] += 1
    if probability is not None:
        group["gated"] += 1
        group["probability_sum"] += probability
    if one["critique"] is not None:
        group["criticised"] += 1
        group["cleared"] += one["revision"] is None
    if one["revision"] is not None:
        group["tries"] += 1 + len(one["failed_tries"])
        group["changed"] += one["taken"]


def _rates(group: Counter[str]) -> Json:
    mean = group["probability_sum"] / group["gated"] if group["gated"] else None
    return {
        "applied": group["asked"],
        "found_broken": group["criticised"],
        "cleared_by_critique": group["cleared"],
        "revisions_asked": group["tries"],
        "changed": group["changed"],
        "mean_violation_probability": None if mean is None else round(mean, 4),
    }


def cost(sessions: list[Json]) -> Json:
    """What all sessions of a stage took together. Rates are over the time that engines were open."""
    names = [*Tally.__dataclass_fields__, "seconds"]
    total: dict[str, Any] = {name: sum(session.get(name, 0) for session in sessions) for name in names}
    seconds = total["seconds"]
    total["seconds"] = round(seconds, 1)
    total["calls_per_second"] = round(total["asked_calls"] / seconds, 2) if seconds else 0.0
    total["completion_tokens_per_second"] = round(total["completion_tokens"] / seconds, 1) if seconds else 0.0
    return total


def unread(stage: str, prompts: Json) -> str | None:
    """The sentence that a limit has left some of a stage's source unread, by the `prompts` of its manifest entry; None
    if it has not, or if an earlier version did not write it down."""
    if not prompts.get("unread"):
        return None
    what = {"label": "rows", "calibrate": "pairs"}.get(stage, "prompts")
    return f"--limit {prompts['limit']}: {prompts['source']} has more {what}; they are not read."


def report(run: Run) -> Json:
    """Every stage of a run: its counts, its cost, and whether it is finished."""
    manifest = run.manifest()
    return {
        stage: {
            "finished": stage in manifest,
            "models": belongs["models"],
            "constitution": belongs["texts"].get("constitution"),
            "unread": unread(stage, manifest.get(stage, {}).get("prompts", {})),
            **(manifest[stage]["counts"] if stage in manifest else count_stage(run, stage)),
            "cost": cost(run.sessions(stage)),
            "last_session": next(reversed(run.sessions(stage)), None),
        }
        for stage, belongs in run.settings().items()
    }


def examples(run: Run) -> Iterator[Json]:
    """Trajectories to show: changed ones first, in input order, then the others."""
    yield from (row for row in run.records("trajectories") if row["changed"])
    yield from (row for row in run.records("trajectories") if not row["changed"])
