"""What was not the same for two runs, said before their figures are compared: a difference then has a cause more."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cai.audit import TABLES
from cai.constitution import WORDINGS, Constitution, load_constitution
from cai.constitution_diff import Change, Difference, diff
from cai.markdown import code, plain
from cai.seal import Json
from cai.store import Run

# What of a principle a model reads by itself; all else is the rest.
_WORDED = {*WORDINGS, "weight"}


def differences(this: Run, other: Run, mine: Mapping[str, Json], theirs: Mapping[str, Json]) -> Iterator[str]:
    """A Markdown list of what differs but for the results: prompts, constitutions, models, settings, templates, and the
    versions that finished stages name. `mine` and `theirs` are the counts of the runs by stage.

    Raises BadInput if a file is damaged.
    """
    both = [stage for stage in mine if stage in theirs]
    if both:
        yield from _prompts(both[0], this, other)
    yield from _constitutions(both, this, other)
    for stages, which in ((mine, "this"), (theirs, "the other")):
        for stage in stages:
            if stage not in both:
                yield f"- {stage}: only in {which} run."
    for stage in both:
        if not theirs[stage]["finished"]:
            yield f"- {stage}: the other run is not finished."
        yield from _settings(stage, this, other)


# Prompts


@dataclass(slots=True)
class _Rows:
    """The rows that a stage read: what each kept one was given, as numbers, since the texts may not all have room; of a
    dropped one only the id is known, or what stood in the source where it had none."""

    given: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    ids: set[str] = field(default_factory=set[str])


def _prompts(stage: str, this: Run, other: Run) -> Iterator[str]:
    mine, theirs = _rows(this, stage), _rows(other, stage)
    if not mine.ids and not theirs.ids:
        return
    gone, come = len(theirs.ids - mine.ids), len(mine.ids - theirs.ids)
    pairs = [(given, theirs.given[row_id]) for row_id, given in mine.given.items() if row_id in theirs.given]
    others = sum(one[0] != old[0] for one, old in pairs)
    beside = sum(one[0] == old[0] and one[1] != old[1] for one, old in pairs)
    what, mine_all, theirs_all = "pairs" if stage not in _GIVEN else "prompts", len(mine.ids), len(theirs.ids)
    if not gone and not come and not others:
        yield f"- The {what} are the same in both runs."
    elif not mine.ids & theirs.ids or others == mine_all == theirs_all:
        yield (
            f"- **The {what} are other ones: none of this run's {mine_all:,} rows is among the other's {theirs_all:,}. "
            "What differs below may come from that alone.**"
        )
    else:
        told = [
            f"rows only in this run: {come:,} of {mine_all:,}" if come else "",
            f"rows only in the other: {gone:,} of {theirs_all:,}" if gone else "",
            f"rows with the same id and another text: {others:,}" if others else "",
        ]
        said = "; ".join(one for one in told if one)
        yield f"- **The {what} are not the same ({said}). What differs below may come from that.**"
    if beside:
        yield f"- Rows with the same prompt and other columns beside it: {beside:,}."


# By stage, what its first table keeps of what a row was given. All others judge pairs.
_GIVEN = {"generate": "responses", "revise": "trajectories"}


def _rows(run: Run, stage: str) -> _Rows:
    rows = _Rows()
    table = _GIVEN.get(stage)
    columns = ["row_id", "prompt", "extra"] if table else ["pair_id", "prompt", "a", "b"]
    for row in run.records(table or "pairs", columns):
        first, prompt, *rest = (row[name] for name in columns)
        # of a pair, the two answers are given as well
        rows.given[first] = (hash(repr(prompt)), hash(rest[0])) if table else (hash(repr((prompt, rest))), 0)
    for drop in run.dropped(stage, TABLES[stage][-1]):
        rows.ids.add(drop["raw"] if drop["row_id"] == drop["source"] else drop["row_id"])
    rows.ids |= rows.given.keys()
    return rows


# Constitutions


def _constitutions(stages: Sequence[str], this: Run, other: Run) -> Iterator[str]:
    """How the constitutions differ that the stages used, each two of them told once."""
    told: dict[tuple[str, str], tuple[Constitution, Constitution, list[str]]] = {}
    for stage in stages:
        paths = this.constitution(stage), other.constitution(stage)
        if paths[0] is not None and paths[1] is not None:
            new, old = (load_constitution(str(path)) for path in paths)
            told.setdefault((old.sha, new.sha), (old, new, []))[2].append(stage)
    for old, new, used_by in told.values():
        who = f"{', '.join(used_by)}: " if len(told) > 1 else ""
        found = diff(old, new)
        for line in (*_of_file(found, old, new), *_of_principles(found)):
            yield f"- {who}{line}"
        if not found.principles and not any(one.field == "order" for one in found.file):
            yield f"- {who}The principles are the same in both runs."
        if old.sha != new.sha and not found.principles and not found.file:
            yield f"- {who}The files of the two constitutions differ in spaces, comments or the order of examples only."


def _of_file(found: Difference, old: Constitution, new: Constitution) -> Iterator[str]:
    for one in found.file:
        if one.field == "order":
            yield "The principles stand in another order."
        elif one.field == "source":
            yield "The constitution names another origin."
        elif one.field == "question":
            yield f"The constitution's question: {_asked(new)} Was: {_asked(old)}"
        elif one.field == "description":
            yield f"The constitution's description: {plain(one.said)}."
        else:
            now, was = (code(getattr(each, one.field)) for each in (new, old))
            yield f"The constitution's {one.field}: {now}, was {was}"


def _asked(constitution: Constitution) -> str:
    return "none." if constitution.question is None else plain(constitution.question)


def _of_principles(found: Difference) -> Iterator[str]:
    fates = {fate: [one for one in found.principles if one.fate == fate]
             for fate in ("added", "removed", "renamed", "changed")}  # fmt: skip
    worded = [one for one in fates["changed"] if any(change.field in _WORDED for change in one.changes)]
    told = {
        "Added principles": [code(one.id) for one in fates["added"]],
        "Removed principles": [code(one.id) for one in fates["removed"]],
        "Renamed principles": [
            f"{code(one.id)}, was {code(one.was)}{_changes(one.changes)}" for one in fates["renamed"]
        ],
        "Principles worded or weighted in another way": [f"{code(one.id)}{_changes(one.changes)}" for one in worded],
        "Principles with the same wording, other in something else": [
            f"{code(one.id)}{_changes(one.changes)}" for one in fates["changed"] if one not in worded
        ],
    }
    for title, ones in told.items():
        if ones:
            yield f"{title}: {'; '.join(ones)}"


def _changes(changes: Sequence[Change]) -> str:
    names = [plain(one.said if one.field == "tags" else _NAMES.get(one.field, one.field)) for one in changes]
    return f" ({', '.join(names)})" if names else ""


_NAMES = {"refusal_is_fine": "whether a plain refusal breaks it", "filled_in": "what an import filled in"}


# Settings


def _settings(stage: str, this: Run, other: Run) -> Iterator[str]:
    mine, theirs = this.settings()[stage], other.settings()[stage]
    for kind in ("models", "settings", "texts"):
        old, new = theirs.get(kind, {}), mine.get(kind, {})
        names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        if kind == "texts":
            names = [name for name in names if not name.startswith("constitution")]
        if names:
            yield f"- {stage}: other {kind}: {_now_and_was(names, new, old)}"
    new, old = (run.manifest().get(stage, {}) for run in (this, other))
    if new and old:
        versions = [one.get("versions", {}) for one in (new, old)]
        names = sorted(name for name in {*versions[0], *versions[1]} if versions[0].get(name) != versions[1].get(name))
        if names:
            yield f"- {stage}: other versions: {_now_and_was(names, *versions)}"
        if new.get("code_sha") != old.get("code_sha"):
            yield f"- {stage}: other code of cai: {_now_and_was(['code_sha'], new, old)}"


def _now_and_was(names: Sequence[str], new: Json, old: Json) -> str:
    return ", ".join(f"{code(name)}: {code(new.get(name))}, was {code(old.get(name))}" for name in names)
