"""What changed between two texts, by words: a revision beside its answer, a principle beside its older self."""

import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

Kind = Literal["same", "removed", "added"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text and what became of it."""

    kind: Kind
    text: str


def word_diff(before: str, after: str) -> list[Piece]:
    """The pieces of both texts in order: without the added ones they are `before`, without the removed ones `after`.

    Neighbours differ in kind, and between two same pieces what was removed comes before what was added. White space
    that lies between two changes belongs to both, so that a reworded sentence reads as one.
    """
    old, new = _tokens(before), _tokens(after)
    steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    pieces: list[Piece] = []
    removed = added = ""
    for number, (step, i, j, k, m) in enumerate(steps):
        gone, come = "".join(old[i:j]), "".join(new[k:m])
        is_gap = step == "equal" and gone.isspace() and 0 < number < len(steps) - 1
        if step != "equal" or is_gap:
            removed, added = removed + gone, added + come
        else:
            pieces += [*_changed(removed, added), Piece("same", gone)]
            removed = added = ""
    return pieces + _changed(removed, added)


def words_changed(before: str, after: str) -> tuple[int, int]:
    """How many words were taken away and how many added, wherever they stand: moved ones count as neither."""
    old, new = Counter(before.split()), Counter(after.split())
    return (old - new).total(), (new - old).total()


def _changed(removed: str, added: str) -> list[Piece]:
    pieces = [Piece("removed", removed), Piece("added", added)]
    return [piece for piece in pieces if piece.text]


def _tokens(text: str) -> list[str]:
    return re.findall(r"\s+|\S+", text)
