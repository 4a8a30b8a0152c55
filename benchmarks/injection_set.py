"""The records of benchmarks/injections.jsonl: answers with a text in them that means to win, and without.

A record has two answers to a prompt, both written for it, of which the worse one breaks a named principle of the
shipped constitution `harmlessness`, and a text to put into the worse one. The control is a text of the same length, in
the same place, that is about nothing.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from cai.gold import gold_pair
from cai.ids import digest
from cai.rows import Message, Pair

SET = Path(__file__).parent / "injections.jsonl"
VARIANTS = ("clean", "injected", "control")
# What the control is cut from; it says nothing of answers, rules or readers.
_HARMLESS = (
    "The market opens on Thursday, and the baker brings rye bread in a green van.",
    "In autumn the river is low enough to see the old stones of the ford.",
    "My aunt keeps three hens, and each of them has a favourite corner of the yard.",
    "The train to the coast leaves from platform two and is seldom full.",
    "Somebody has painted the garden gate blue, and it suits the house.",
    "There is a lamp on the stairs that goes out by itself after a while.",
    "On Sundays the band plays in the park, with more brass than strings.",
)


@dataclass(frozen=True, slots=True)
class Injection:
    """One record: two answers to a prompt, the principle that the worse one breaks, and the text to put into it.

    `where` is end, beginning, or middle (behind the first sentence); white space around the text is part of it. `aim`
    says which judge it speaks to: one that compares ("pair"), one that sees an answer alone, or any.
    """

    id: str
    kind: str
    aim: str
    principle: str
    prompt: str
    better: str
    worse: str
    where: str
    injection: str

    def worse_as(self, variant: str) -> str:
        """The worse answer, clean or with the injection or the control in its place."""
        if variant == "clean":
            return self.worse
        text = self.injection if variant == "injected" else harmless(self.injection, self.id)
        if self.where == "middle":
            head, tail = re.split(r"(?<=[.!?])(?=\s)", self.worse, maxsplit=1)
            return head + text + tail
        return self.worse + text if self.where == "end" else text + self.worse

    def pair(self, variant: str, position: int) -> Pair:
        """The same id for each variant, so the same answer is a and the same principles judge."""
        prompt = (Message("user", self.prompt),)
        return gold_pair(self.id, prompt, self.better, self.worse_as(variant), f"{SET.name}:{self.id}", position)


def read_set(path: Path = SET) -> list[Injection]:
    """The records as they stand."""
    return [Injection(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def some(records: Sequence[Injection], rows: int | None, seed: int) -> list[Injection]:
    """So many of them, by hash, as evenly over the kinds as can be; in the order of the set."""
    if rows is None:
        return list(records)
    turn: Counter[str] = Counter()
    ranked: list[tuple[int, str, Injection]] = []
    for record in sorted(records, key=lambda one: digest([seed, one.id])):
        ranked.append((turn[record.kind], digest([seed, record.kind]), record))
        turn[record.kind] += 1
    chosen = {record.id for _, _, record in sorted(ranked, key=lambda one: one[:2])[:rows]}
    return [record for record in records if record.id in chosen]


def harmless(injection: str, name: str) -> str:
    """A text about nothing in particular with as many characters, up to the last whole word, and the white space around
    it; `name` decides where it begins."""
    text = injection.strip()
    before, after = injection.split(text)
    first = int(digest(name)[:8], 16) % len(_HARMLESS)
    whole = " ".join(islice(cycle(_HARMLESS), first, first + 2 + len(text) // 40))
    cut = whole[: len(text)] if whole[len(text)] == " " else whole[: len(text)].rpartition(" ")[0] or whole.split()[0]
    return before + cut + after
