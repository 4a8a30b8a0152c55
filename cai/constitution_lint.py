"""What is wrong with a constitution, and what its authors may want to look at again.

An error is something with which cai cannot work, or works wrongly. A remark is a question to the authors, by a rule so
simple that it can be argued with: each has a name, a reason, and a line of the file. The rules know English only and
know nothing of meaning; a remark that is wrong about a wording is passed over. A note says what they could not judge.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, cast

from cai.constitution import (
    WORDINGS,
    At,
    Constitution,
    Principle,
    check_constitution,
    line_at,
    line_numbers,
    load_constitution,
)
from cai.errors import BadInput
from cai.files import find_shipped
from cai.lint_subjects import against, both_speak_of, is_english, is_same, listed, subject_of
from cai.lint_wordings import ANY_LANGUAGE, CHECKS
from cai.revise import LETTERS
from cai.texts import hidden_in

Severity = Literal["error", "remark", "note"]

# Of each rule what kind of finding it makes, and why that matters.
RULES: dict[str, tuple[Severity, str]] = {
    "schema": (
        "error",
        "A key that is unknown, missing or of the wrong kind would mean nothing, and no run begins with one.",
    ),
    "names-letters": (
        "error",
        "Each pair is shown in both orders, so a letter or a place means another answer each time: the verdicts would "
        "cancel out.",
    ),
    "unseen": (
        "remark",
        "Who signs it does not see these characters, and the model is shown them: they can split a word, or turn the "
        "direction in which it is read.",
    ),
    "other-language": (
        "note",
        "The rules for wordings know English only, and take a text for it if one word in fifteen is a common one of "
        "it; people have to judge the others.",
    ),
    "no-conduct": (
        "remark",
        "A statement without a verb names a virtue, not a deed, so nobody can say whether an answer keeps it.",
    ),
    "vague": (
        "remark",
        "Words of praise alone are an opinion: two readers, or two models, will not agree on what breaks them.",
    ),
    "several-duties": (
        "remark",
        "If 'broken' may mean several things, neither the critique nor the report can tell which; one principle each.",
    ),
    "nothing-to-quote": (
        "remark",
        "A critique that is not asked for words, steps or names says that something 'could be seen as problematic', "
        "and the revision has nothing to change.",
    ),
    "only-removes": (
        "remark",
        "A rewrite that only leaves out teaches a model to refuse; say what stays or what comes instead.",
    ),
    "near-duplicate": (
        "remark",
        "Two principles about the same thing count twice wherever they are weighed, and split each other's figures.",
    ),
    "contradiction": (
        "remark",
        "Two principles that ask for opposite things of the same answers make labels in which they cancel each other.",
    ),
    "few-examples": (
        "remark",
        "With fewer than two examples nobody sees where the line runs, and cai constitution test measures little.",
    ),
    "no-rationale": (
        "remark",
        "A reason that only says the statement again gives the people who sign it nothing to agree with.",
    ),
    "no-references": (
        "remark",
        "Without a reference nobody sees which published framework asks for it; fine if none does.",
    ),
    "filled-in": (
        "remark",
        "The source has no such wording, so cai made one up; people should read it, and write a better one.",
    ),
    "same-version": (
        "remark",
        "Two texts that call themselves the same version cannot be told apart in a report; raise the version, or give "
        "yours a name of its own.",
    ),
    "too-many": (
        "remark",
        f"One letter chooses the fitting principle, and there are {len(LETTERS)}: above that a run needs "
        "--principles one or all.",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule found: in which line of the file, about which principle if about one, and what."""

    rule: str
    line: int
    principle: str | None
    found: str

    @property
    def severity(self) -> Severity:
        return RULES[self.rule][0]


def lint(path: Path, others: Iterable[Path] = ()) -> list[Finding]:
    """The findings of all rules for the file at `path`, by line. A file with mistakes in the schema has only those.

    Its version is compared with those of `others`, and of the known constitution that has its name.
    """
    problems = check_constitution(path)
    if problems:
        return [_of_schema(str(problem), problem.place, path) for problem in problems]
    constitution = load_constitution(str(path))
    lines = line_numbers(constitution.text)
    found = [*_of_principles(constitution.principles, lines), *_of_pairs(constitution.principles, lines)]
    found += _unseen(constitution, lines)
    known = find_shipped("constitutions", constitution.name, ".yaml")
    compared: set[Path] = {*others, *([known] if known is not None else [])}
    for other in sorted(compared):
        if _is_another_of_its_version(constitution, other):
            said = f"{other} is {constitution.name} {constitution.version} too, and has another text"
            found.append(Finding("same-version", lines.get(("version",), 1), None, said))
    if len(constitution.principles) > len(LETTERS):
        found.append(Finding("too-many", lines["principles",], None, f"{len(constitution.principles)} principles"))
    return sorted(found, key=lambda one: one.line)


def _is_another_of_its_version(constitution: Constitution, path: Path) -> bool:
    try:
        other = load_constitution(str(path))
    except BadInput:  # which is said of that file
        return False
    same = (other.name, other.version) == (constitution.name, constitution.version)
    return same and other.sha != constitution.sha


def _of_schema(said: str, place: str, path: Path) -> Finding:
    line = place.removeprefix(f"{path}:")
    return Finding("schema", int(line) if line.isdigit() else 1, None, said.removeprefix(f"{place}: "))


# Every text


def _unseen(constitution: Constitution, lines: dict[At, int]) -> Iterator[Finding]:
    tops = ("version", "description", "question")
    texts: list[tuple[At, object]] = [((key,), getattr(constitution, key)) for key in tops]
    texts += _texts(("principles",), [one.model_dump() for one in constitution.principles])
    for at, text in texts:
        hidden = hidden_in(text) if isinstance(text, str) else []
        if hidden:
            who = constitution.principles[int(at[1])].id if len(at) > 1 else None
            keys = " ".join(str(one + 1) if isinstance(one, int) else one for one in at[2:] or at)
            yield Finding(
                "unseen", line_at(lines, at), who, f"in {keys}, characters that cannot be seen: {listed(hidden)}"
            )


def _texts(at: At, value: object) -> Iterator[tuple[At, object]]:
    inner: Collection[tuple[str | int, object]] = ()
    if isinstance(value, dict):
        inner = cast("dict[str | int, object]", value).items()
    elif isinstance(value, list | tuple):
        inner = list(enumerate(cast("Sequence[object]", value)))
    else:
        yield at, value
    for key, one in inner:
        yield from _texts((*at, key), one)


# One principle


def _of_principles(principles: Sequence[Principle], lines: dict[At, int]) -> Iterator[Finding]:
    for number, principle in enumerate(principles):
        others = [key for key in WORDINGS if not is_english(getattr(principle, key))]
        if others:
            at = lines.get(("principles", number, others[0]), lines["principles", number])
            yield Finding("other-language", at, principle.id, f"not judged, since not in English: {listed(others)}")
        for rule, (key, check) in CHECKS.items():
            found = None if key in others and rule not in ANY_LANGUAGE else check(principle)
            if found is not None:
                at = ("principles", number, key)
                yield Finding(rule, lines.get(at, lines["principles", number]), principle.id, found)


# Two principles


def _of_pairs(principles: Sequence[Principle], lines: dict[At, int]) -> Iterator[Finding]:
    keys = [_own_wording(principle) for principle in principles]
    subjects = [subject_of(getattr(principle, key)) for principle, key in zip(principles, keys, strict=True)]
    at = [lines["principles", number, key] for number, key in enumerate(keys)]
    for (i, one), (j, other) in combinations(enumerate(subjects), 2):
        if one.words.keys().isdisjoint(other.words) and (one.words or other.words):
            continue
        named = f"'{principles[i].id}' (line {at[i]})"
        opposed = against(one, other)
        if opposed is not None:
            yield Finding("contradiction", at[j], principles[j].id, f"against {named}: {opposed}")
        elif is_same(one, other):
            yield Finding(
                "near-duplicate", at[j], principles[j].id, f"much the same as {named}: {both_speak_of(one, other)}"
            )


def _own_wording(principle: Principle) -> str:
    """What a principle is compared by: its statement, or, if cai made that up, what its source says."""
    return next((key for key in ("statement", "critique", "comparison") if key not in principle.filled_in), "statement")
