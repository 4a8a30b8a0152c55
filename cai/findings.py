"""What `cai verify` finds: differences, what a person should know beside them, and how much was looked at."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cai.errors import BadInput
from cai.runner import Watch


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not what was written: where, what was found, what was expected."""

    place: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.place}: found {self.found}, expected {self.expected}."


@dataclass(slots=True)
class Findings:
    """`looked` counts what was looked at, by the words for it; `notes` are sentences that are no difference.

    `unfinished` says whether a run's commands are still to be given to their end. `held_against` are the runs that the
    rows of a dataset were held against, and `unchecked` the datasets, or versions of one, that were held against none.
    `uncovered` are the notes of bytes that are not in the manifest, so that no signature covers them.
    """

    watch: Watch
    differences: list[Difference] = field(default_factory=list[Difference])
    notes: list[str] = field(default_factory=list[str])
    looked: Counter[str] = field(default_factory=Counter[str])
    unfinished: bool = False
    held_against: list[str] = field(default_factory=list[str])
    unchecked: list[str] = field(default_factory=list[str])
    uncovered: list[str] = field(default_factory=list[str])

    def held(self, run: Path) -> None:
        """The rows of a dataset were held against this run, which may have been named in another way before."""
        if run.resolve() not in (Path(one).resolve() for one in self.held_against):
            self.held_against.append(str(run))

    def differ(self, place: Path | str, found: str, expected: str) -> None:
        self.differences.append(Difference(str(place), found, expected))

    def refused(self, error: BadInput) -> None:
        """A difference that a reader has named."""
        self.differ(error.place, error.found, error.expected)

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def note_uncovered(self, sentence: str) -> None:
        self.note(sentence)
        self.uncovered.append(sentence)

    def same(self, place: Path | str, found: object, expected: object, what: str) -> bool:
        """Whether two values are the same; a difference if not. `what` says what they are."""
        if found != expected:
            self.differ(place, f"{what} {brief_of(found)}", brief_of(expected))
        return found == expected

    def step(self, sentence: str) -> None:
        """Say what is looked at now, which may take long."""
        self.watch.say(sentence)


def brief_of(value: object) -> str:
    """A value in a sentence: text in quotes, the rest as it is, none of it long."""
    told = f"'{value}'" if isinstance(value, str) else str(value)
    return told if len(told) <= 200 else f"{told[:200]}..."
