"""A row worked out once more: the same code, with what the model has answered read from the journal.

`revise.py` and `label.py` ask for the same calls only if prompt, constitution, templates, settings and every answer
before are the same, since a call's key is the digest of all that. So a row that comes out the same is what they make
of the answers in the journal, and each of its calls was asked with the words that the constitution and the templates
have. A dropped row is worked out likewise, and must be dropped for the same reason. What another version of cai decided
on cannot be worked out again; then only the keys are held against the journal.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cai.audit import TABLES
from cai.checks import checks_sha
from cai.engines import Completion, Engine, Request
from cai.errors import RowDropped
from cai.findings import Findings, brief_of
from cai.journal import Entry, completion_of
from cai.label import Judged
from cai.replay import TEMPLATE_OF, CannotRebuild, Texts, kept_texts, work_again
from cai.rows import Drop, Label, Pair, Row, as_messages
from cai.schemas import record_of
from cai.seal import Json
from cai.stage_run import code_sha
from cai.store import Run

# What was found, and what was expected.
Found = tuple[str, str]
REFUSED = "refused_by_engine"  # the reason of a drop that leaves no answer in the journal
_MADE = "what the answers in the journal make"


class _NotJournaled(Exception):
    """A call that the row would ask for is not in the journal."""


@dataclass(slots=True)
class _Journaled:
    """An `ask` that has the journal's answers. `missing` is what the calls were for that have none; `only_own` says
    that every answer was given to the row that asks."""

    entries: Mapping[str, Entry]
    missing: list[str] = field(default_factory=list[str])
    only_own: bool = True

    async def __call__(self, engine: Engine, request: Request) -> tuple[str, Completion]:
        key = request.key(engine.model)
        entry = self.entries.get(key)
        if entry is None:
            self.missing.append(request.purpose)
            raise _NotJournaled(f"its {request.purpose} would be the call {key[:12]}")
        self.only_own = self.only_own and entry.get("row_id") == request.row_id
        return key, completion_of(entry)


@dataclass(frozen=True, slots=True)
class Again:
    """How a stage works on a row or a pair."""

    texts: Texts
    loop: asyncio.Runner

    def of(
        self, row: Json, verdicts: list[Json], label: Json | None, entries: Mapping[str, Entry]
    ) -> Iterator[tuple[str, str, str]]:
        """In which table what was found, and what was expected, wherever a row is not what comes out."""
        table = TABLES[self.texts.stage][0]
        # An example of a constitution is judged by its own principle, which is in no setting.
        own = tuple(label["principles"]) if label is not None and self.texts.stage == "calibrate" else None
        try:
            made: Any = self.loop.run(work_again(self.texts, item_of(row), _Journaled(entries), own))
        except _NotJournaled as error:
            yield table, f"a row of which {error}", "calls that are in the journal, if nothing was changed"
            return
        except RowDropped as error:
            yield table, f"a row that would be dropped ({error.reason})", "one that is kept"
            return
        if not isinstance(made, Judged):
            yield from _in(table, differing(record_of(made), row, _MADE))
            return
        yield from _in("pairs", differing(record_of(made.pair), row, _MADE))
        if len(made.verdicts) != len(verdicts):
            yield "verdicts", f"{len(verdicts)} verdicts", f"{len(made.verdicts)}"
        for one, verdict in zip(made.verdicts, verdicts, strict=False):
            yield from _in("verdicts", differing(record_of(one), verdict, _MADE))
        if label is not None:
            # What a person has said comes before the judge.
            reviewed = label["reviewed"]
            told: Label = replace(made.label, reviewed=reviewed, chosen=reviewed or made.label.judged)
            yield from _in("labels", differing(record_of(told), label, _MADE))

    def dropped(
        self, item: Row | Pair, drop: Json, entries: Mapping[str, Entry], own: tuple[str, ...] | None, but: set[str]
    ) -> Iterator[Found]:
        """What was found and what was expected, wherever a drop is not what comes out, `but` in these columns. `own`
        are the principles that judge a pair, if no setting says that."""
        ask, made = _Journaled(entries), None
        try:
            self.loop.run(work_again(self.texts, item, ask, own))
        except _NotJournaled:
            pass
        except RowDropped as error:
            made = Drop(item.row_id, self.texts.stage, error.reason, error.detail, error.raw, item.source)
        if drop["reason"] == REFUSED:
            made = Drop(item.row_id, self.texts.stage, REFUSED, drop["detail"], "", item.source)
            what = drop["detail"].partition(": ")[0]
            # Equal calls are one: what a server kept failing on for this row, it may have answered for another.
            if what in TEMPLATE_OF and what not in ask.missing and ask.only_own and isinstance(item, Row):
                yield f"a refusal of its {what}", "none, since the journal has that answer"
        if made is not None:
            yield from differing({name: one for name, one in record_of(made).items() if name not in but}, drop, _MADE)
        elif ask.missing:
            yield f"a drop of a row whose {ask.missing[0]} is not in the journal", "one that the answers there make"
        else:
            yield "a drop", "a row that is kept, as the answers in the journal make it"


def item_of(row: Json) -> Row | Pair:
    """The row or pair that a row of the tables was made of."""
    values: Json = {**row, "prompt": as_messages(row["prompt"])}
    if "pair_id" in row:
        return Pair(**values)
    return Row(
        **{name: values[name] for name in ("row_id", "prompt_id", "sample", "prompt", "source", "extra")}, position=0
    )


def _in(table: str, differences: Iterator[Found]) -> Iterator[tuple[str, str, str]]:
    return ((table, *difference) for difference in differences)


def differing(made: Json, row: Json, what: str) -> Iterator[Found]:
    """Where a row of a table has another value than was made; `what` says of what."""
    for name, value in made.items():
        wanted = _plain(value)
        if row.get(name) != wanted:
            yield f"in '{name}' {brief_of(row.get(name))}", f"{what}: {brief_of(wanted)}"


def _plain(value: Any) -> Any:
    """Tuples as lists, as a table gives them back."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def again(run: Run, stage: str, belongs: Json, entry: Json | None, findings: Findings) -> Again | None:
    """How to work out the rows of a stage again; None, with a note, where this version of cai cannot."""
    code = entry.get("code_sha") if entry is not None else code_sha()
    checks = belongs["texts"].get("checks_sha", checks_sha())
    why = "another version of cai made them" if code != code_sha() or checks != checks_sha() else None
    try:
        texts = kept_texts(run, stage) if why is None else None
    except CannotRebuild as error:
        texts, why = None, str(error).rstrip(".")
    if texts is None:
        findings.note(f"cai {stage}: the rows were not worked out again, since {why}; each call was looked up.")
        return None
    return Again(texts, asyncio.Runner())
