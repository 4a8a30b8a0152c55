"""What two wordings are about, for lint: whether they say much the same, or one the opposite of the other. It knows
English words and not what they mean."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cai.lint_words import BREAKS, DEGREES, EMPTY, ENGLISH, LESS, NOT, OPPOSITES, TURNS
from cai.texts import straight, words_of

# The share of the words that say what a wording is about which two of them have in common.
_SAME, _ABOUT_THE_SAME = 0.6, 0.5


def is_english(text: str) -> bool:
    """Whether the rules can judge a wording: one word in fifteen is a common one of English. Up to four words in plain
    letters are too few to tell, and are taken for it."""
    words = words_of(straight(text))
    if len(words) < 5 and straight(text).isascii():
        return True
    return bool(words) and 15 * sum(word in ENGLISH for word in words) >= len(words)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a wording is about: its words without endings, and as they stand there with commas and full stops; and for
    each pair of opposites of which it has one side, where that word stands, and which side it is."""

    plain: tuple[str, ...]
    words: dict[str, str]
    tokens: tuple[str, ...]
    sides: dict[int, tuple[int, int]]
    english: bool


def subject_of(wording: str) -> Subject:
    """What a wording is about."""
    text = _AMOUNT.sub(lambda match: _AMOUNTS[match[1].casefold()], straight(wording))
    plain = words_of(straight(wording))
    tokens = tuple(re.findall(r"\w+|[.,;:]", text.casefold()))
    about = [word for word in plain if word not in EMPTY and word not in TURNS and word not in NOT]
    sides: dict[int, tuple[int, int]] = {}
    for number, pair in enumerate(OPPOSITES):
        places = [
            (place, side) for place, word in enumerate(tokens) for side in (0, 1)
            if word in pair[side] and not (word in DEGREES and tokens[place + 1 : place + 2] in _TURNS_ALONE)
        ]  # fmt: skip
        if len({side for _, side in places}) == 1:  # who says both, says neither
            sides[number] = places[0]
    return Subject(plain, {_stem(word): word for word in about}, tokens, sides, is_english(wording))


# "Less formal" is about formality and not about more or less.
_TURNS_ALONE = frozenset((word,) for word in TURNS)
# "No more than two" sets a limit and denies nothing.
_AMOUNT = re.compile(r"(?i)\b(?:no|not) (more|less|fewer) than\b")
_AMOUNTS = {"more": "at most", "less": "at least", "fewer": "at least"}


def _turned(one: Subject, pairs: Collection[int]) -> tuple[dict[int, int], bool]:
    """On which side of these opposites it is, after the words that turn them ("not long", "gives no"); and whether what
    else it says is denied."""
    spent: set[int] = set()
    sides: dict[int, int] = {}
    for pair in sorted(pairs, key=lambda pair: one.sides[pair]):
        place, side = one.sides[pair]
        near: list[int] = []
        for at in range(place - 1, max(place - 4, -1), -1):
            if one.tokens[at] in BREAKS:
                break
            near += [at] if one.tokens[at] in NOT or (at == place - 1 and one.tokens[at] in LESS) else []
        near += [place + 1] if one.tokens[place + 1 : place + 2] == ("no",) else []
        own = [at for at in near if at not in spent]
        spent.update(own)
        sides[pair] = (side + len(own)) % 2
    left = sum(word in NOT for at, word in enumerate(one.tokens) if at not in spent)
    return sides, left % 2 == 1


def _stem(word: str) -> str:
    return re.sub(r"(?:ing|ed|es|s|ly|e)$", "", word) if len(word) > 3 else word


def _shared(one: Subject, other: Subject) -> float:
    every = one.words.keys() | other.words.keys()
    return len(one.words.keys() & other.words.keys()) / len(every) if every else 0.0


def is_same(one: Subject, other: Subject) -> bool:
    """Whether two wordings say much the same."""
    return one.plain == other.plain or (one.english and other.english and _shared(one, other) >= _SAME)


def against(one: Subject, other: Subject) -> str | None:
    """How one wording says the opposite of the other; None if it does not."""
    if not (one.english and other.english):
        return None
    (mine, denied), (theirs, denied_there) = (_turned(each, one.sides.keys() & other.sides.keys())
                                              for each in (one, other))  # fmt: skip
    turned = [pair for pair, side in mine.items() if theirs[pair] != side]
    same = _shared(one, other) >= _ABOUT_THE_SAME or (bool(turned) and one.words.keys() == other.words.keys())
    common = one.words.keys() & other.words.keys()
    if not turned and len(common) < 2 and one.words.keys() != other.words.keys():
        return None
    if not same or not (turned or denied != denied_there):
        return None
    spoken = [[each.tokens[each.sides[pair][0]] for each in (one, other)] for pair in turned]
    opposite = next((words for words, pair in zip(spoken, turned, strict=True)
                     if one.sides[pair][1] != other.sides[pair][1]), None)  # fmt: skip
    if opposite is not None:
        return f"there '{opposite[0]}', here '{opposite[1]}'"
    about = both_speak_of(one, other) if common else f"both speak of {listed(spoken[0][:1])}"
    return f"{about}, and only one of them denies it"


def both_speak_of(one: Subject, other: Subject) -> str:
    """The words, of those that say what they are about, that two wordings have in common, as `other` has them."""
    words = [other.words[stem] for stem in other.words if stem in one.words]
    return f"both speak of {listed(words[:5])}" + (f" and {len(words) - 5} words more" if len(words) > 5 else "")


def listed(words: Iterable[str]) -> str:
    """Words in a sentence."""
    return ", ".join(words)
