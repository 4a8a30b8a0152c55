"""Which calls of a run another constitution would ask anew, and which prompts of it hold a changed wording.

A run keeps all that its prompts are made of, and every call's key is the digest of its prompt and seed. So each row is
worked out twice with the journal's answers (`replay.py`): as it was, and with the other constitution. Keys that come
out otherwise are calls that `--reuse` would not find. No model is asked.

What a model would say to a changed prompt is not known. It is taken to say the same, to see which later prompts of the
row hold changed words too; but only what comes before any such answer is certain:

    certain     asked anew, whatever the model says: a lower bound
    expected    asked anew too, if the answers before come out as they did
    following   later calls of the same rows, as they were: asked anew if an answer before comes out otherwise
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from cai.audit import TABLES
from cai.constitution import Constitution, Principle
from cai.engines import Completion, Request
from cai.errors import RowDropped
from cai.journal import Entry, completion_of, read_entries
from cai.label import Judged
from cai.pairs import NO_PAIR
from cai.replay import CannotRebuild, Texts, kept_texts, work_again
from cai.revise import LETTERS
from cai.rows import Pair, Row
from cai.runner import Watch
from cai.seal import Json
from cai.store import Run
from cai.templates import Templates
from cai.verify_again import item_of

STAGES = ("revise", "label")
# What a call is for, as people say it; judging one answer alone is a verdict too.
KINDS = {
    "choice": "choice", "gate": "gate", "critique": "critique", "revision": "revision", "verdict": "verdict",
    "kept": "verdict", "reasoning": "reasoning",
}  # fmt: skip
_Calls = Counter[str]


@dataclass(slots=True)
class Asked:
    """What a change comes to in a run, by the kinds of calls; see above. `gone` are calls that are not asked any more.

    In `open_rows` rows a call is asked for whose like the run never asked, so what comes after that is not known.
    `labels` are those whose probability comes out otherwise though all answers are the same, as by another weight.
    """

    rows: set[str] = field(default_factory=set[str])
    certain: _Calls = field(default_factory=_Calls)
    expected: _Calls = field(default_factory=_Calls)
    following: _Calls = field(default_factory=_Calls)
    gone: _Calls = field(default_factory=_Calls)
    open_rows: int = 0
    labels: int = 0

    def as_json(self) -> Json:
        counts = {name: dict(getattr(self, name)) for name in ("certain", "expected", "following", "gone")}
        return {"rows": len(self.rows), **counts, "open_rows": self.open_rows, "labels": self.labels}


@dataclass(frozen=True, slots=True)
class Counted:
    """What each of several constitutions comes to in one run, over `calls` calls of `rows` rows and judged pairs.

    `left_out` are sentences about what could not be counted.
    """

    rows: int
    calls: Mapping[str, int]
    asked: Sequence[Asked]
    left_out: Sequence[str]


def count_calls(run: Run, old: Constitution, others: Sequence[Constitution], watch: Watch) -> Counted:
    """What each of `others` would ask anew in the stages of `run` that used `old`. Raises BadInput if it is damaged."""
    asked, calls, left_out, rows = [Asked() for _ in others], _Calls(), list[str](), 0
    stages = [stage for stage in STAGES if stage in run.settings()]
    with asyncio.Runner() as loop:
        for stage in stages:
            try:
                texts = kept_texts(run, stage)
            except CannotRebuild as error:
                left_out.append(f"cai {stage}: its calls were not counted. {error}")
                continue
            assert texts.constitution is not None
            if texts.constitution.sha != old.sha:
                used = f"{texts.constitution.name} {texts.constitution.version} ({texts.constitution.sha[:12]})"
                left_out.append(f"cai {stage} used another text, {used}, so its calls were not counted.")
                continue
            fitting = [one if _fits(one, texts) else None for one in others]
            counted, lost = _count_stage(run, texts, fitting, asked, calls, loop, watch)
            rows += counted
            if None in fitting:
                left_out.append(
                    f"cai {stage} --principles fitting takes {len(LETTERS)} principles, and there are more."
                )
            if lost:
                left_out.append(
                    f"cai {stage}: {lost} rows were not counted, since the run does not lead to their calls."
                )
            drops = run.dropped(stage, TABLES[stage][-1])
            if dropped := sum(1 for one in drops if one["reason"] != NO_PAIR):
                left_out.append(f"cai {stage}: {dropped} rows were dropped; the run does not keep their prompts.")
    return Counted(rows, dict(calls), asked, left_out)


def _fits(constitution: Constitution, texts: Texts) -> bool:
    return texts.settings.get("principles") != "fitting" or len(constitution.principles) <= len(LETTERS)


def _count_stage(
    run: Run, texts: Texts, others: Sequence[Constitution | None], asked: Sequence[Asked], calls: _Calls,
    loop: asyncio.Runner, watch: Watch,
) -> tuple[int, int]:  # fmt: skip
    """How many rows were counted, and how many could not be."""
    table = "pairs" if texts.stage == "label" else TABLES[texts.stage][-1]
    shards = run.finished_shards(TABLES[texts.stage][-1])
    counted = lost = 0
    assert texts.constitution is not None
    watch.say(f"cai {texts.stage}: working out the prompts of {len(shards)} shard(s) with {len(others)} change(s).")
    for number, index in enumerate(shards, start=1):
        entries = {one["key"]: one for one in read_entries(run.folder / "journal" / f"part-{index:05d}.jsonl")}
        for row in run.shard_records(table, index):
            item = item_of(row)
            was = _Was(entries, _names(texts.constitution))
            was.made, whole = loop.run(_walk(texts, item, was))
            if not whole:
                lost += 1
                continue
            counted += 1
            calls.update(KINDS[one.purpose] for one in was.slots.values())
            for one, other in zip(asked, others, strict=True):
                if other is not None:
                    _count_row(loop, texts, other, item, was, one)
        if len(shards) > 1:
            watch.say(f"cai {texts.stage}: {number} of {len(shards)} shards, {counted} rows.")
    return counted, lost


# One row


@dataclass(frozen=True, slots=True)
class _Call:
    purpose: str
    entry: Entry


# What a call is for, by which principle, and the how manieth of these it is in its row.
_Slot = tuple[str, str, int]


@dataclass(slots=True)
class _Was:
    """An `ask` for a row as it was: the answers are the journal's."""

    entries: Mapping[str, Entry]
    names: tuple[str, ...]
    slots: dict[_Slot, _Call] = field(default_factory=dict[_Slot, _Call])
    heard: "_Heard | None" = None
    made: object = None

    async def __call__(self, engine: Any, request: Request) -> tuple[str, Completion]:
        key = request.key(engine.model)
        if key not in self.entries:
            raise _NotKnown
        if request.purpose in KINDS:
            assert self.heard is not None
            self.slots[self.heard.slot(request)] = _Call(request.purpose, self.entries[key])
        return key, completion_of(self.entries[key])


@dataclass(slots=True)
class _Would:
    """An `ask` for the same row with another constitution. What is new gets the answer that stood in its place."""

    was: _Was
    names: tuple[str, ...]
    renamed: Mapping[str, str]
    heard: "_Heard | None" = None
    slots: dict[_Slot, tuple[Request, bool]] = field(default_factory=dict[_Slot, tuple[Request, bool]])
    is_open: bool = False

    async def __call__(self, engine: Any, request: Request) -> tuple[str, Completion]:
        key = request.key(engine.model)
        if request.purpose not in KINDS:
            return key, completion_of(self.was.entries[key])
        assert self.heard is not None
        slot = self.heard.slot(request, self.renamed)
        was = self.was.slots.get(slot)
        self.slots[slot] = request, key not in self.was.entries
        if key in self.was.entries:
            return key, completion_of(self.was.entries[key])
        if was is None:
            self.is_open = self.is_open or request.purpose == "gate"
            return key, _stand_in(request)
        answer = completion_of(was.entry)
        return key, answer if request.purpose != "choice" else self._same_principle(answer)

    def _same_principle(self, answer: Completion) -> Completion:
        """The letter that the principle has now which was chosen then."""
        letter = answer.text.strip().strip(".\"'*:()")
        if letter not in LETTERS[: len(self.was.names)]:
            return answer
        chosen = self.was.names[LETTERS.index(letter)]
        now = {self.renamed.get(name, name): letter for name, letter in zip(self.names, LETTERS, strict=False)}
        if chosen not in now:
            raise _NotKnown
        return replace(answer, text=now[chosen])


def _stand_in(request: Request) -> Completion:
    """An answer to a call that the run has never asked for, so that those after it that come anyway are counted.

    A gate that lets the answer pass leads to no more calls, and nothing is asked after a verdict.
    """
    if request.purpose in ("gate", "kept", "verdict"):
        words = request.choices or ("",)
        return Completion(words[-1], "stop", 0, 0, 0, choice_logprobs=tuple([-50.0] * (len(words) - 1) + [0.0]))
    if request.purpose == "reasoning":
        return Completion("-", "stop", 0, 0, 0)
    raise _NotKnown


class _NotKnown(Exception):
    """What comes next in a row depends on an answer that nobody has given."""


@dataclass(slots=True)
class _Heard:
    """The templates, which remember for which principle they were rendered last: the next call is by that one."""

    templates: Templates
    principle: str = ""
    seen: _Calls = field(default_factory=_Calls)

    @property
    def sha(self) -> str:
        return self.templates.sha

    @property
    def shown(self) -> frozenset[str]:
        return self.templates.shown

    def render(self, name: str, principle: Principle | None = None, **given: object) -> str:
        self.principle = principle.id if principle is not None else ""
        return self.templates.render(name, principle, **given)

    def slot(self, request: Request, renamed: Mapping[str, str] | None = None) -> _Slot:
        # A letter's question stands in the conversation of its reasoning, and its seed is the same for both orders.
        principle = (renamed or {}).get(self.principle, self.principle)
        self.seen[f"{request.purpose} {principle}"] += 1
        return request.purpose, principle, self.seen[f"{request.purpose} {principle}"]


async def _walk(texts: Texts, item: Row | Pair, ask: _Was | _Would) -> tuple[object, bool]:
    """What the row comes to, and whether every answer on the way there is known."""
    ask.heard = _Heard(texts.templates)
    try:
        return await work_again(replace(texts, templates=cast("Templates", ask.heard)), item, ask), True
    except RowDropped:
        return None, True
    except _NotKnown:
        return None, False


def _count_row(
    loop: asyncio.Runner, texts: Texts, other: Constitution, item: Row | Pair, was: _Was, asked: Asked
) -> None:
    assert texts.constitution is not None
    would = _Would(was, _names(other), _renamed(other, texts.constitution))
    made, whole = loop.run(_walk(replace(texts, constitution=other), item, would))
    asked.open_rows += would.is_open or not whole
    tell = _judged if texts.stage == "label" else _revised
    touched = tell(would, asked)
    for slot, call in was.slots.items():
        if slot not in would.slots:
            kind = asked.gone if whole else asked.following
            kind[KINDS[call.purpose]] += 1
            touched = True
    if not touched and isinstance(made, Judged) and isinstance(was.made, Judged):
        told = made.label.probability_a, made.label.chosen
        if told != (was.made.label.probability_a, was.made.label.chosen):
            asked.labels += 1
            touched = True
    if touched:
        asked.rows.add(item.row_id)


def _revised(would: _Would, asked: Asked) -> bool:
    """Each call of a row stands on those before it; only the gates of a round are asked together."""
    first: str | None = None  # what the first new call is for, as long as those after it do not stand on its answer
    touched = False
    for request, is_new in would.slots.values():
        kind = KINDS[request.purpose]
        if not touched:
            if is_new:
                asked.certain[kind] += 1
                touched, first = True, request.purpose
            continue
        if not request.purpose == first == "gate":
            first = None
        counts = asked.following if not is_new else asked.certain if first == "gate" else asked.expected
        counts[kind] += 1
    return touched


def _judged(would: _Would, asked: Asked) -> bool:
    """Verdicts do not stand on each other; a letter stands on its reasoning, and is asked for whatever that says."""
    reasoned = {slot[1] for slot, (_, is_new) in would.slots.items() if slot[0] == "reasoning" and is_new}
    for slot, (request, is_new) in would.slots.items():
        if is_new:
            asked.certain[KINDS[request.purpose]] += 1
        elif slot[0] == "verdict" and slot[1] in reasoned:
            asked.following["verdict"] += 1
    return any(is_new for _, is_new in would.slots.values())


def _names(constitution: Constitution) -> tuple[str, ...]:
    return tuple(one.id for one in constitution.principles)


def _renamed(other: Constitution, old: Constitution) -> dict[str, str]:
    """The id that a principle had, by the one that it has in `other`: one that is new says what a lost one said."""
    known, kept = set(_names(old)), set(_names(other))
    lost = {" ".join(one.statement.split()): one.id for one in reversed(old.principles) if one.id not in kept}
    said = {one.id: lost.get(" ".join(one.statement.split())) for one in other.principles if one.id not in known}
    return {new: was for new, was in said.items() if was is not None}
