"""What changed between two constitutions, principle by principle, and what of a run each change would ask anew.

A principle is known by its id, and one whose id is new by its statement: then it was renamed. For each change the
prompts of the run are worked out with that change alone, and once with all of them, see `constitution_calls`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from cai.constitution import WORDINGS, Constitution, Example, Principle, Reference, load_constitution
from cai.constitution_calls import STAGES, Asked, Counted, count_calls
from cai.errors import BadInput
from cai.progress import Progress
from cai.runner import Watch
from cai.seal import Json
from cai.store import Run, open_run
from cai.verify_dataset import is_dataset, versions_in
from cai.word_diff import Piece, word_diff, words_changed

Fate = Literal["added", "removed", "renamed", "changed"]
# The stages of a run that keep the constitution they used, in the order in which they are looked for.
_STAGES = ("revise", "label")


def constitution_of(name: str) -> Constitution:
    """The constitution that a path, a known name, or a run's folder means. Raises BadInput."""
    folder = Path(name)
    if not (folder / "settings.json").is_file():
        if folder.is_dir():
            data = is_dataset(folder) or bool(versions_in(folder))
            found = "a dataset, which keeps no constitution" if data else "a folder that is no run"
            remedy = "Give the run that it was made of; its card names the constitution." if data else "Check the path."
            raise BadInput(name, found, "a constitution's file or known name, or the folder of a run", remedy)
        return load_constitution(name)
    run = open_run(name)
    kept = next((path for stage in _STAGES if (path := run.constitution(stage)) is not None), None)
    if kept is None:
        raise BadInput(name, "a run that keeps no constitution", "one that was revised or labelled", "Give a file.")
    return load_constitution(str(kept))


@dataclass(frozen=True, slots=True)
class Change:
    """One thing about a principle, or about the whole file, that is not as it was. `pieces` where words changed."""

    field: str
    said: str
    pieces: tuple[Piece, ...] = ()
    asked: Asked | None = None


@dataclass(frozen=True, slots=True)
class Principled:
    """What became of one principle. `was` is its id before, where it has another one now."""

    id: str
    fate: Fate
    was: str | None = None
    changes: tuple[Change, ...] = ()
    asked: Asked | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """All that changed: of the file as a whole, and of each principle, those of B in their order and then the removed.

    `made_with` says of each stage of the run which of the two it used, "a", "b", "both" if they are the same, or
    "neither". `asked` is what all changes together come to, `counted` the run's calls that were worked out for that,
    and `not_counted` says in sentences what was not.
    """

    file: tuple[Change, ...] = ()
    principles: tuple[Principled, ...] = ()
    unchanged: tuple[str, ...] = ()
    made_with: Mapping[str, str] | None = None
    asked: Asked | None = None
    counted: Counted | None = None
    not_counted: tuple[str, ...] = ()


def diff(a: Constitution, b: Constitution, run: Run | None = None, watch: Watch | None = None) -> Difference:
    """From `a` to `b`, with what each change asks anew in `run` if one is given. Raises BadInput if that is damaged."""
    pairs = _paired(a.principles, b.principles)
    gone = {old.id for old, _ in pairs if old is not None}
    made = [_became(old, new) for old, new in pairs]
    made += [_became(old, None) for old in a.principles if old.id not in gone]
    changed = tuple(one for one in made if one is not None)
    same = tuple(new.id for (_, new), one in zip(pairs, made, strict=False) if one is None)
    found = Difference(tuple(_of_file(a, b)), changed, same)
    return found if run is None else _counted(found, a, b, run, watch or Progress())


def as_json(difference: Difference, a: Constitution, b: Constitution) -> Json:
    """The difference for machines."""
    told: Json = {side: {"name": one.name, "version": one.version, "sha": one.sha, "path": str(one.path)}
                  for side, one in (("a", a), ("b", b))}  # fmt: skip
    counted = difference.counted
    return {
        **told,
        "same_version": is_same_version(a, b),
        "file": [_change_json(one) for one in difference.file],
        "principles": [
            {"id": one.id, "fate": one.fate, "was": one.was, "asked": one.asked and one.asked.as_json(),
             "changes": [_change_json(change) for change in one.changes]}
            for one in difference.principles
        ],
        "unchanged": list(difference.unchanged),
        "made_with": difference.made_with,
        "asked": difference.asked and difference.asked.as_json(),
        "counted": counted and {"rows": counted.rows, "calls": dict(counted.calls)},
        "not_counted": list(difference.not_counted),
    }  # fmt: skip


def _change_json(change: Change) -> Json:
    return {
        "field": change.field, "said": change.said, "pieces": [asdict(one) for one in change.pieces],
        "asked": change.asked and change.asked.as_json(),
    }  # fmt: skip


def is_same_version(a: Constitution, b: Constitution) -> bool:
    """Whether two different texts of one name say that they are the same version."""
    return (a.name, a.version) == (b.name, b.version) and a.sha != b.sha


def _paired(old: Sequence[Principle], new: Sequence[Principle]) -> list[tuple[Principle | None, Principle]]:
    """Each new principle with the old one that it was: the one with its id, or else a lost one that says the same."""
    by_id = {one.id: one for one in old}
    kept = {one.id for one in new}
    lost = {_flat(one.statement): one for one in reversed(old) if one.id not in kept}
    return [(by_id.get(one.id) or lost.pop(_flat(one.statement), None), one) for one in new]


def _flat(text: str) -> str:
    return " ".join(text.split())


def _became(old: Principle | None, new: Principle | None) -> Principled | None:
    if old is None or new is None:
        there = new or old
        assert there is not None
        return Principled(there.id, "removed" if new is None else "added")
    changes = tuple(_changes(old, new))
    if old.id != new.id:
        return Principled(new.id, "renamed", old.id, changes)
    return Principled(new.id, "changed", changes=changes) if changes else None


def _changes(old: Principle, new: Principle) -> Iterator[Change]:
    for field in WORDINGS:
        if _flat(getattr(old, field)) != _flat(getattr(new, field)):
            yield _reworded(field, getattr(old, field), getattr(new, field))
    if old.weight != new.weight:
        yield Change("weight", f"reweighted from {old.weight:g} to {new.weight:g}")
    if old.refusal_is_fine != new.refusal_is_fine:
        said = "a plain refusal " + ("now never breaks it" if new.refusal_is_fine else "may break it now")
        yield Change("refusal_is_fine", said)
    for field in ("tags", "filled_in"):
        before, after = getattr(old, field), getattr(new, field)
        if set(before) != set(after):
            yield Change(field, _added(before, after))
        elif field == "tags" and before != after:
            yield Change(field, "the tags stand in another order")
    for field, name in (("examples", _example), ("references", _reference)):
        said = _added([name(one) for one in getattr(old, field)], [name(one) for one in getattr(new, field)])
        if said:
            yield Change(field, said)
    before, after = ({one.prompt: one for one in principle.examples} for principle in (old, new))
    for prompt in before:
        for key in ("better", "worse"):
            texts = [getattr(side[prompt], key) for side in (before, after) if prompt in side]
            if len(texts) == 2 and _flat(texts[0]) != _flat(texts[1]):
                yield _reworded(f"examples ({prompt}): {key}", texts[0], texts[1])


def _reworded(field: str, before: str, after: str) -> Change:
    old, new = " ".join(before.split()), " ".join(after.split())
    removed, added = words_changed(_bare(old), _bare(new))
    said = f"reworded, {removed} word(s) taken out and {added} put in"
    if not removed and not added:
        said = "words moved" if sorted(old.split()) == sorted(new.split()) else "other punctuation"
    return Change(field, said, tuple(word_diff(old, new)))


def _bare(text: str) -> str:
    """The words without what stands around them: a comma behind a word makes no other word of it."""
    return " ".join(bare for word in text.split() if (bare := word.strip(_AROUND)))


_AROUND = ".,;:!?()[]\"'\u2018\u2019\u201c\u201d\u2026"


def _added(before: Iterable[str], after: Iterable[str]) -> str:
    old, new = list(before), list(after)
    parts = [f"added: {', '.join(come)}" if (come := [one for one in new if one not in old]) else ""]
    parts.append(f"removed: {', '.join(gone)}" if (gone := [one for one in old if one not in new]) else "")
    return "; ".join(part for part in parts if part)


def _example(example: Example) -> str:
    return f"'{example.prompt}'"


def _reference(reference: Reference) -> str:
    return f"{reference.framework}, {reference.clause}"


def _of_file(a: Constitution, b: Constitution) -> Iterator[Change]:
    for field in ("name", "version", "description", "question"):
        before, after = getattr(a, field) or "", getattr(b, field) or ""
        if _flat(before) != _flat(after):
            yield _reworded(field, before, after)
    if a.source != b.source:
        yield Change("source", "the constitution says another origin")
    if not (set(a.weights()) ^ set(b.weights())) and list(a.weights()) != list(b.weights()):
        yield Change("order", "the principles stand in another order")


# What of a run each change asks anew


def _counted(found: Difference, a: Constitution, b: Constitution, run: Run, watch: Watch) -> Difference:
    made_with = {
        stage: _side(belongs["texts"]["constitution_sha"], a, b)
        for stage, belongs in run.settings().items()
        if stage in STAGES and "constitution_sha" in belongs.get("texts", {})
    }
    found = replace(found, made_with=made_with)
    if not {"a", "b"} & set(made_with.values()):
        alike = "both" in made_with.values()
        return found if alike else replace(found, not_counted=("The run was made with neither text.",))
    forward = "a" in made_with.values()
    old, new = (a, b) if forward else (b, a)
    unsaid = _unsaid(run)
    changes = [(None, one) for one in found.file]
    changes += [(one, change) for one in found.principles for change in (None, *one.changes)]
    made = [_with(old, new, one, change, forward, unsaid) for one, change in changes]
    counted = count_calls(run, old, [new, *(one for one in made if one is not None)], watch)
    whole, *rest = counted.asked
    left = iter(rest)
    asked = [Asked() if one is None else next(left) for one in made]
    told = iter(asked)
    file = tuple(replace(change, asked=next(told)) for change in found.file)
    principles: list[Principled] = []
    for one in found.principles:
        own = next(told)
        changed = tuple(replace(change, asked=next(told)) for change in one.changes)
        principles.append(replace(one, changes=changed, asked=None if one.fate == "changed" else own))
    left_out = tuple(counted.left_out)
    return replace(
        found, file=file, principles=tuple(principles), asked=whole, counted=counted, not_counted=left_out
    )  # fmt: skip


def _side(sha: str, a: Constitution, b: Constitution) -> str:
    known = [side for side, one in (("a", a), ("b", b)) if one.sha == sha]
    return {0: "neither", 1: "".join(known), 2: "both"}[len(known)]


def _unsaid(run: Run) -> frozenset[str]:
    """The fields of a principle that no template of the run names, of those that the shipped ones do not."""
    texts = [path.read_text(encoding="utf-8") for path in run.folder.glob("inputs/*/*.jinja")]
    people = ("rationale", "examples", "references", "filled_in")
    return frozenset(field for field in people if not any(f"principle.{field}" in text for text in texts))


def _with(
    old: Constitution, new: Constitution, one: Principled | None, change: Change | None, forward: bool,
    unsaid: frozenset[str],
) -> Constitution | None:  # fmt: skip
    """The old constitution with one change only; None if that is one that no prompt can hold."""
    field = change.field.split(" (")[0] if change is not None else None
    if one is None:
        if field == "question":
            return replace(old, question=new.question)
        places = {principle.id: place for place, principle in enumerate(new.principles)}
        ordered = tuple(sorted(old.principles, key=lambda principle: places.get(principle.id, 0)))
        return replace(old, principles=ordered) if field == "order" else None
    if field in unsaid or (field is None and one.fate == "changed"):
        return None
    before, after = (one.was or one.id, one.id)[:: 1 if forward else -1]
    was = next((principle for principle in old.principles if principle.id == before), None)
    now = next((principle for principle in new.principles if principle.id == after), None)
    if was is None:
        assert now is not None
        place = new.principles.index(now)
        ahead = {principle.id for principle in new.principles[:place]}
        at = max((n + 1 for n, principle in enumerate(old.principles) if principle.id in ahead), default=0)
        return replace(old, principles=(*old.principles[:at], now, *old.principles[at:]))
    if now is None:
        return replace(old, principles=tuple(principle for principle in old.principles if principle is not was))
    name = field or "id"
    put = was.model_copy(update={name: getattr(now, name)})
    return replace(old, principles=tuple(put if principle is was else principle for principle in old.principles))
