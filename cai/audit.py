"""The report of a run: what was read, kept, dropped and changed, and what it cost. Counted from the tables."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from cai.checks import NOT_TAKEN
from cai.journal import Tally
from cai.store import Json, Run
from cai.templates import fence

TABLES = {"generate": "responses", "revise": "trajectories"}


def count_stage(run: Run, stage: str) -> Json:
    """The counts of a stage, from its tables: rows, drops by reason, tokens, and for `revise` what each round did."""
    table = TABLES[stage]
    columns = ["prompt_tokens", "cached_tokens", "completion_tokens"] + (
        ["changed", "rounds"] if stage == "revise" else []
    )
    kept, changed = 0, 0
    tokens: Counter[str] = Counter()
    rounds: dict[int, Counter[str]] = {}
    principles: dict[str, Counter[str]] = {}
    flags: Counter[str] = Counter()
    for record in run.records(table, columns):
        kept += 1
        tokens.update({name: record[name] for name in columns[:3]})
        changed += bool(record.get("changed"))
        for one in record.get("rounds", ()):
            flags.update(one["flags"])
            for group in (
                rounds.setdefault(one["round"], Counter()),
                principles.setdefault(one["principle_id"], Counter()),
            ):
                _count_round(group, one)
    reasons = Counter(drop["reason"] for drop in run.dropped(stage, table))
    counts: Json = {
        "read": kept + reasons.total(),
        "kept": kept,
        "dropped": reasons.total(),
        "dropped_by_reason": dict(sorted(reasons.items())),
        "tokens": {name: tokens[name] for name in columns[:3]},
    }
    if stage == "revise":
        counts["changed"] = changed
        counts["by_round"] = {str(number): _rates(rounds[number]) for number in sorted(rounds)}
        counts["by_principle"] = {name: _rates(principles[name]) for name in sorted(principles)}
        counts["flags"] = dict(sorted(flags.items()))
    return counts


def _count_round(group: Counter[str], one: Json) -> None:
    probability = one["violation_probability"]
    group["asked"] += 1
    if probability is not None:
        group["gated"] += 1
        group["probability_sum"] += probability
    if one["revision"] is not None:
        group["revised"] += 1
        group["changed"] += not NOT_TAKEN.intersection(one["flags"])


def _rates(group: Counter[str]) -> Json:
    mean = group["probability_sum"] / group["gated"] if group["gated"] else None
    return {
        "applied": group["asked"],
        "found_broken": group["revised"],
        "changed": group["changed"],
        "mean_violation_probability": None if mean is None else round(mean, 4),
    }


def cost(sessions: list[Json]) -> Json:
    """What all sessions of a stage took together. Rates are over the time that engines were open."""
    names = [*Tally.__dataclass_fields__, "seconds"]
    total: dict[str, Any] = {name: sum(session[name] for session in sessions) for name in names}
    seconds = total["seconds"]
    total["seconds"] = round(seconds, 1)
    total["calls_per_second"] = round(total["asked_calls"] / seconds, 2) if seconds else 0.0
    total["completion_tokens_per_second"] = round(total["completion_tokens"] / seconds, 1) if seconds else 0.0
    return total


def report(run: Run) -> Json:
    """Every stage of a run: its counts, its cost, and whether it is finished."""
    manifest = run.manifest()
    return {
        stage: {
            "finished": stage in manifest,
            "models": belongs["models"],
            "constitution": belongs["texts"].get("constitution"),
            **(manifest[stage]["counts"] if stage in manifest else count_stage(run, stage)),
            "cost": cost(run.sessions(stage)),
            "last_session": next(reversed(run.sessions(stage)), None),
        }
        for stage, belongs in run.settings().items()
    }


def markdown(run: Run, stage: str) -> str:
    """A finished stage as Markdown: its counts and, for `revise`, three rows before and after."""
    entry = run.manifest()[stage]
    counts, money = entry["counts"], entry["cost"]
    lines = [f"# cai {stage}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {counts[name]} |" for name in ("read", "kept", "dropped", "changed") if name in counts]
    lines += [f"| dropped: {reason} | {count} |" for reason, count in counts["dropped_by_reason"].items()]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in money.items()]
    if stage == "revise":
        for row in islice(examples(run), 3):
            lines += ["", f"## {_cell(row['row_id'])}", ""]
            lines += [_quote("asked", row["prompt"][-1]["content"])]
            lines += [_quote("before", row["response"]), _quote("after", row["final"])]
    return "\n".join(lines) + "\n"


def examples(run: Run) -> Iterator[Json]:
    """Trajectories to show: changed ones first, in input order, then the others."""
    yield from (row for row in run.records("trajectories") if row["changed"])
    yield from (row for row in run.records("trajectories") if not row["changed"])


def _quote(title: str, text: str) -> str:
    return f"**{title}**\n\n{fence(text[:1000])}\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")
