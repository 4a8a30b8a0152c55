"""`cai report RUN --markdown`: what a run came to, for a change request, so that a changed constitution is
reviewed with its effect. No model is asked for it. Text from people and models is data in it, see `cai/markdown.py`.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from cai.audit import report
from cai.constitution import Constitution
from cai.markdown import code, percent, plain, table
from cai.report.against import differences
from cai.report.doubts import doubts
from cai.report.figures import Figures, count
from cai.report.gate import gate_of_run
from cai.report.page import STAGES, constitutions_of
from cai.report.sample import Sample, lowest
from cai.sandbox import fence
from cai.scores import NINETY_FIVE
from cai.seal import Json
from cai.store import Run
from cai.texts import visible

EXAMPLES = 4
_LONGEST = 1000  # characters of a text


@dataclass(frozen=True, slots=True)
class _Read:
    """A run, read: what the summary calls it, its counts by stage, its figures and its constitutions."""

    run: Run
    name: str
    counts: dict[str, Json]
    figures: Figures
    constitutions: list[Constitution]


@dataclass(frozen=True, slots=True)
class _Figure:
    """A line of the summary: a plain number, or `hits` of `of`, of which the share counts."""

    name: str
    value: float
    of: float | None = None

    def told(self) -> str:
        if self.of is None:
            return f"{self.value:,.1f}" if isinstance(self.value, float) else f"{self.value:,}"
        return f"{self.value:,} ({percent(self.value / self.of)})" if self.of else "-"


def summary(run: Run, name: str, stages: Collection[str] = STAGES, against: tuple[Run, str] | None = None) -> str:
    """The stages of a run as Markdown; `name` is what it is called. With another run, each figure beside its own.

    Raises BadInput if a file is damaged.
    """
    this = _read(run, name, stages)
    other = None if against is None else _read(*against, stages)
    lines = [f"# cai: {', '.join(this.counts)} of {plain(name)}", ""]
    if other is not None:
        lines += [f"Against {plain(other.name)}.", "", *differences(run, other.run, this.counts, other.counts), ""]
    for doubt in doubts(this.counts, this.figures, gate_of_run(run, this.constitutions), this.constitutions):
        lines += [f"**{plain(doubt)}**", ""]
    lines += [*_totals(this, other), *_principles(this, other), *_drops(this, other)]
    lines += [*_made_of(this, other), *_cost(this)]
    lines += _examples(this, other) if "revise" in this.counts else []
    return "\n".join(lines).rstrip("\n") + "\n"


def _read(run: Run, name: str, stages: Collection[str]) -> _Read:
    counts = report(run)
    there = {stage: counts[stage] for stage in STAGES if stage in counts and stage in stages}
    return _Read(run, name, there, count(run, Sample(0)), constitutions_of(run))


# Figures


def _totals(this: _Read, other: _Read | None) -> Iterator[str]:
    for stage, counts in this.counts.items():
        yield f"## {stage}"
        yield ""
        if not counts["finished"]:
            yield "Not finished: this is what is there so far."
            yield ""
        if counts["unread"] is not None:
            yield f"**{plain(counts['unread'])}**"
            yield ""
        theirs = other.counts.get(stage) if other is not None else None
        told = list(_figures(stage, counts, this.figures))
        yield from _lines("figure", told, None if other is None or theirs is None else
                          list(_figures(stage, theirs, other.figures)))  # fmt: skip


def _figures(stage: str, counts: Json, figures: Figures) -> Iterator[_Figure]:
    read, kept = counts["read"], counts["kept"]
    yield _Figure("read = kept + dropped", read)
    yield _Figure("kept", kept, read)
    yield _Figure("dropped", counts["dropped"], read)
    if stage == "revise":
        before, after = counts["texts"]["response"], counts["texts"]["final"]
        yield _Figure("answers changed, of the kept", counts["changed"], kept)
        yield _Figure("answers criticised of which no revision passed the checks", figures.none_passed, kept)
        yield _Figure("answers that refuse, before", before["refusals"], kept)
        yield _Figure("answers that refuse, after", after["refusals"], kept)
        yield _Figure("mean words, before", float(before["mean_words"]))
        yield _Figure("mean words, after", float(after["mean_words"]))
        benign = figures.benign
        answered = benign.unchanged + benign.changed + benign.newly_refused
        if answered:
            yield _Figure("benign rows answered at first that stayed so", answered - benign.newly_refused, answered)
    if "decided" in counts:
        labels = figures.labels
        yield _Figure("decided, of the kept", counts["decided"], kept)
        won = labels.revision_won + labels.revision_lost
        if won:
            yield _Figure("revisions preferred to the answer, of the decided", labels.revision_won, won)
        if labels.both_orders:
            yield _Figure("verdicts that changed with the order", labels.flipped, labels.both_orders)
        for reason, number in counts["undecided_by_reason"].items():
            yield _Figure(f"undecided: {reason}", number, kept)


def _lines(what: str, these: list[_Figure], those: list[_Figure] | None) -> Iterator[str]:
    """The figures as a table, beside those of the other run if there is one; what only one of them has is there too."""
    if those is None:
        yield from table((what, "value"), [(plain(one.name), one.told()) for one in these])
        return
    theirs = {one.name: one for one in those}
    mine = {one.name: one for one in these}
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys([*mine, *theirs]):
        one, old = mine.get(name), theirs.get(name)
        told = ("-" if one is None else one.told(), "-" if old is None else old.told())
        rows.append((plain(name), *told, *(("", "") if one is None or old is None else _difference(one, old))))
    yield from table((what, "this run", "the other", "difference", "more than chance?"), rows)


def _difference(one: _Figure, old: _Figure) -> tuple[str, str]:
    """The difference, of shares in points of a hundred, and whether chance alone would seldom make it so large."""
    if one.of is None or old.of is None:
        difference = one.value - old.value
        return f"{difference:+,.1f}" if isinstance(difference, float) else f"{difference:+,}", ""
    if not one.of or not old.of:
        return "", ""
    difference = one.value / one.of - old.value / old.of
    together = (one.value + old.value) / (one.of + old.of)
    error = math.sqrt(together * (1 - together) * (1 / one.of + 1 / old.of))
    sure = "" if not difference else "yes" if abs(difference) > NINETY_FIVE * error else "no"
    return f"{100 * difference:+.1f} points", sure


def _principles(this: _Read, other: _Read | None) -> Iterator[str]:
    names = [one.id for constitution in this.constitutions for one in constitution.principles]
    every = dict.fromkeys([*names, *sorted({*this.figures.deeds, *(other.figures.deeds if other else ())})])
    used = [
        name for name in every
        if any(deeds.applied or deeds.verdicts for read in (this, other) if read for deeds in [read.figures.of(name)])
    ]  # fmt: skip
    if not used:
        return
    yield "## By principle"
    yield ""
    yield from table(
        ("principle", "chosen", "answers criticised", "answers changed", "mean gate probability", "verdicts",
         "revision preferred"),
        [(code(name), *_deeds(name, this, other)) for name in used],
    )  # fmt: skip
    if other is not None:
        yield "Each cell: this run, and in brackets the other."
        yield ""
    if any(read.figures.labels.revision_pairs for read in (this, other) if read):
        yield (
            "Revision preferred: of the pairs of an answer and its revision that the judge compared by this principle "
            "and of which it named one, those where it named the revision. Another principle may have led to it."
        )
        yield ""
    yield from _gate(this, other)


def _gate(this: _Read, other: _Read | None) -> Iterator[str]:
    """What the gate was asked, and so what it says that an answer was criticised."""
    told: dict[str, list[str]] = {}
    for read in (this, other):
        if read is not None and "revise" in read.counts:
            gate = gate_of_run(read.run, read.constitutions)
            asked = "" if gate.question is None else (
                f"The gate was asked one question about all principles at once: {plain(gate.question)} "
            )  # fmt: skip
            told.setdefault(asked + gate.meaning, []).append("this run" if read is this else "the other")
    for text, runs in told.items():
        yield text if len(told) == 1 else f"{', '.join(runs).capitalize()}: {text}"
        yield ""


def _deeds(name: str, this: _Read, other: _Read | None) -> list[str]:
    mine = _cells(this.figures, name)
    return mine if other is None else [
        f"{one} ({old})" for one, old in zip(mine, _cells(other.figures, name), strict=True)
    ]  # fmt: skip


def _cells(figures: Figures, name: str) -> list[str]:
    deeds = figures.of(name)
    return [
        str(deeds.applied), str(deeds.criticised), str(deeds.changed),
        f"{deeds.probabilities / deeds.gated:.2f}" if deeds.gated else "-",
        str(deeds.verdicts),
        f"{deeds.revision_preferred} of {deeds.revisions_judged}" if deeds.revisions_judged else "-",
    ]  # fmt: skip


def _drops(this: _Read, other: _Read | None) -> Iterator[str]:
    def told(read: _Read) -> list[_Figure]:
        return [
            _Figure(f"{stage}: {reason}", number, counts["read"])
            for stage, counts in read.counts.items()
            for reason, number in counts["dropped_by_reason"].items()
        ]

    these, those = told(this), None if other is None else told(other)
    if these or those:
        yield "## Dropped rows, by reason"
        yield ""
        yield from _lines("reason", these, those)


# What it was made with


def _made_of(this: _Read, other: _Read | None) -> Iterator[str]:
    yield "## Made with"
    yield ""
    rows: list[tuple[str, ...]] = []
    for stage in this.counts:
        mine = _digests(this, stage)
        theirs = _digests(other, stage) if other is not None and stage in other.counts else {}
        for name, value in mine.items():
            rows.append((f"{stage}: {plain(name)}", code(value), *([code(theirs.get(name, "-"))] if other else [])))
    yield from table(("what", "this run", "the other") if other else ("what", "value"), rows)


def _digests(read: _Read, stage: str) -> dict[str, str]:
    told = read.run.settings()[stage]
    return {**told.get("models", {}), **{name.replace("_", " "): text for name, text in told.get("texts", {}).items()}}


def _cost(this: _Read) -> Iterator[str]:
    yield "## Cost"
    yield ""
    names = ("asked_calls", "reused_calls", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds")
    rows = [(stage, *(f"{counts['cost'][name]:,}" for name in names)) for stage, counts in this.counts.items()]
    yield from table(("stage", *(name.replace("_", " ") for name in names)), rows)


# Examples


def _examples(this: _Read, other: _Read | None) -> Iterator[str]:
    """Rows before and after: changed ones, and with another run those that end otherwise there; the same each time."""
    finals = _finals(other.run) if other is not None else {}
    changed: list[str] = []
    others: list[str] = []
    for row in this.run.records("trajectories", ["row_id", "changed", "final"]):
        worth = finals[row["row_id"]] != hash(row["final"]) if row["row_id"] in finals else row["changed"]
        (changed if worth else others).append(row["row_id"])
    chosen = lowest(changed, EXAMPLES)
    chosen += lowest(others, EXAMPLES - len(chosen))
    mine, theirs = _rows(this.run, chosen), _rows(other.run, chosen) if other is not None else {}
    yield "## Examples"
    yield ""
    for row_id in chosen:
        row = mine[row_id]
        yield from (f"### {code(row_id)}", "")
        yield from _quote("asked", row["prompt"][-1]["content"])
        yield from _quote("before", row["response"])
        if row_id in theirs:
            yield from _quote("after, in the other run", theirs[row_id]["final"])
        yield from _quote("after", row["final"])


def _finals(run: Run) -> dict[str, int]:
    """What each row ended in, as a number, since the texts may not all have room."""
    if "revise" not in run.settings():
        return {}
    return {row["row_id"]: hash(row["final"]) for row in run.records("trajectories", ["row_id", "final"])}


def _rows(run: Run, row_ids: Collection[str]) -> dict[str, Json]:
    if "revise" not in run.settings():
        return {}
    return {row["row_id"]: row for row in run.records("trajectories") if row["row_id"] in row_ids}


def _quote(title: str, text: str) -> Iterator[str]:
    yield from (f"**{title}**", "", fence(visible(text[:_LONGEST])), "")
