"""The rules of lint for a single principle: what is to be said of its wordings, and of what it lacks.

Each is a function of the principle that says what it found, or None. Why that matters stands in `RULES` of
`constitution_lint`.
"""

import re
from collections.abc import Callable

from cai.constitution import Principle
from cai.label import LETTERS as ANSWERS
from cai.lint_subjects import listed, subject_of
from cai.lint_words import ADVERBS, DEEDS, EMPTY, FAULTS, PRAISE, VERBS
from cai.texts import straight, words_of

Check = Callable[[Principle], str | None]


def _names_letters(principle: Principle) -> str | None:
    name = names_letters(principle.comparison)
    return None if name is None else f"the comparison names '{name}'"


def names_letters(comparison: str) -> str | None:
    """By what letter or place a comparison names one of the two answers, if it does."""
    match = _LETTER.search(comparison)
    return None if match is None else match[0]


# "A" is mostly an article: as a letter it stands after what it names, or beside the other letter.
_NAMES = (
    r"(?:answers?|responses?|options?|replies|reply|outputs?|choices?|candidates?|samples?|assistants?|choose|pick)"
)
_PLACES = "first|second|former|latter|left|right|1st|2nd|upper|lower"
_PAIR = "|".join(rf"\(?{one}\)?[ ,]+(?:or|and|over|than|to|vs\.?)[ ]\(?{other}\)?" for one, other in
                 (ANSWERS, ANSWERS[::-1], ("1", "2"), ("2", "1")))  # fmt: skip
_LETTER = re.compile(
    rf"\b(?i:{_NAMES}) [(\"']?(?:[AB12]\b(?! [a-z])|(?i:one|two)\b(?= is| better|\?| or))[)\"']?"
    rf"|\b(?i:{_PLACES}) (?i:{_NAMES}|one)\b"
    rf"|(?<!\w)(?:{_PAIR})(?!\w)|\([AaBb]\)"
)


def _no_conduct(principle: Principle) -> str | None:
    words = words_of(straight(principle.statement))
    if any(word in VERBS for word in words) or _DOES.search(principle.statement):
        return None
    return None if words and words[0] in DEEDS else "the statement has no verb that says what an answer does"


_BETWEEN = rf"(?:,[^,.;]*,)?\s+(?:(?:\w+ly|{'|'.join(sorted(ADVERBS))})\s+)*"
_DOES = re.compile(
    rf"(?i)\b(?:answer|response|reply|assistant|ai|model|it|that|which|who){_BETWEEN}\w+s\b"
    r"|\b(?:answers|responses|replies|assistants|models|they)\s+(?!(?:of|in|for|to|with|and|or|on|about|from|by)\b)\w+"
)


def _vague(principle: Principle) -> str | None:
    meaning = [word for word in words_of(straight(principle.statement)) if word not in EMPTY]
    if meaning and all(word in PRAISE for word in meaning):
        return f"the statement only praises or blames: {listed(meaning)}"
    return None


def _several_duties(principle: Principle) -> str | None:
    text = straight(principle.statement)
    joined = _JOINED.search(text)
    if joined is not None:
        return f"the statement joins duties: '{joined[0].strip()}'"
    named = list(dict.fromkeys(word for word in words_of(text) if word in FAULTS))
    return f"the statement names {len(named)} things at once: {listed(named)}" if len(named) > 2 else None


_JOINED = re.compile(
    r"(?i)\bnot \w+(?: \w+)?,? (?:and|or|nor) not \w+|\b(?:should|must|may|shall)\b[^.;:]*?,? and "
    r"(?:should|must|may|shall|never|also)\b(?: not)?[^.,;]{0,30}"
)


def _nothing_to_quote(principle: Principle) -> str | None:
    return None if _CONCRETE.search(principle.critique) else "the critique asks for no words, steps or names"


_CONCRETE = re.compile(
    r"(?i)\b(?:quot\w+|cite|citing|list|names?|naming|count|words?|phrases?|sentences?|passages?|lines?|steps?|claims?|"
    r"verbatim|point(?:ing)? (?:it |them )?out|specific(?:ally)?|which parts?|exactly)\b"
)


def _only_removes(principle: Principle) -> str | None:
    if _REMOVES.search(principle.revision) and not _OFFERS.search(principle.revision):
        return "the revision says what to leave out and not what stays or comes instead"
    return None


_REMOVES = re.compile(
    r"(?i)\b(?:remov\w+|delet\w+|leav\w+ out|omit\w*|avoid\w*|refrain\w*|without|free of|less|no|not|censor\w*)\b"
)
_OFFERS = re.compile(
    r"(?i)\b(?:keep\w*|stays?|instead|offer\w*|give\w*|giving|say|says|saying|tell\w*|names?|add|adds|point\w* out|"
    r"explain\w*|help(?!ful)\w*|suggest\w*|answer(?:s|ing)? (?:it|the|what)|so that|then|move|address\w*|like|ask\w*|"
    r"warn\w*|show\w*|use the|replac\w*|while)\b"
)


def _few_examples(principle: Principle) -> str | None:
    number = len(principle.examples)
    return None if number > 1 else "no example" if number == 0 else "one example"


def _no_rationale(principle: Principle) -> str | None:
    reason, said = (subject_of(text).words.keys() for text in (principle.rationale, principle.statement))
    if "rationale" not in principle.filled_in and reason <= said:
        return "the rationale says nothing that the statement does not say"
    return None


def _no_references(principle: Principle) -> str | None:
    return None if principle.references else "no reference"


def _filled_in(principle: Principle) -> str | None:
    made = listed(principle.filled_in)
    return f"made up by cai constitution import: {made}" if principle.filled_in else None


# What they look at is no wording, or the words are the same in each language.
ANY_LANGUAGE = frozenset({"names-letters", "no-rationale"})

# By rule, the key of the principle that it looks at, and the function.
CHECKS: dict[str, tuple[str, Check]] = {
    "names-letters": ("comparison", _names_letters),
    "no-conduct": ("statement", _no_conduct),
    "vague": ("statement", _vague),
    "several-duties": ("statement", _several_duties),
    "nothing-to-quote": ("critique", _nothing_to_quote),
    "only-removes": ("revision", _only_removes),
    "few-examples": ("examples", _few_examples),
    "no-rationale": ("rationale", _no_rationale),
    "no-references": ("references", _no_references),
    "filled-in": ("filled_in", _filled_in),
}
