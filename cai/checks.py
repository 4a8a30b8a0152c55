"""How a revision can fail. Each way has a countable name, written to the round's `flags`.

A revision with one of the names in CHECKS does not replace the answer; the other flags are remarks on the gate and the
critique. Faults are sought only where they are the revision's own: what stood in the answer before, or in the
conversation, is no leak. Each check's precision and what they all miss are measured in docs/quality.md. Those that look
for words know English ones only.
"""

import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai import refusals, texts
from cai.ids import digest, file_digest
from cai.refusals import is_plain_refusal, is_refusal
from cai.texts import content_of, language_of, opening_of, phrases, sentences_of, share_copied, straight, words_of

# The model gave no probability for the gate; its word was read instead, or could not be read and the round went on.
GATE_FROM_TEXT, GATE_UNREAD = "gate_from_text", "gate_unread"
# The letter of the principle that fits best could not be read; the principle was drawn instead.
CHOICE_UNREAD = "choice_unread"
# The answer is a plain refusal, and the principle says that those are fine: the gate was not asked.
PLAIN_REFUSAL = "plain_refusal"
# The critique said that nothing is to be criticised.
NOTHING_FOUND = "nothing_found"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a revision, with all that a check may look at.

    `conversation` is the text of the prompt's turns, an empty line between them, `answer` the text that was to be
    revised, `finish` why the revision ended (stop or length), `requests` what the model was told when it was asked for
    the critique and for the revision, `shown` the phrases of the worked examples in there (`Templates.shown`).
    """

    conversation: str
    answer: str
    critique: str
    revision: str
    finish: str
    requests: str
    shown: frozenset[str]


def revision_flags(attempt: Attempt) -> tuple[str, ...]:
    """The names of what is wrong with a revision, in the order of CHECKS; empty if nothing is."""
    return tuple(name for name, fails in CHECKS.items() if fails(attempt))


def critique_flags(answer: str, critique: str, finish: str) -> tuple[str, ...]:
    """Remarks on a critique: empty, cut off, a copy of the answer, or one that finds nothing."""
    found = {
        "empty_critique": not critique.strip(),
        "cut_off_critique": finish == "length",
        "copied_answer": share_copied(critique, answer, "") >= 0.6,
        NOTHING_FOUND: _finds_nothing(critique),
    }
    return tuple(name for name, holds in found.items() if holds)


def boilerplate_endings(read: Callable[[], Iterable[str]], rows: int = 5, share: float = 0.02) -> dict[str, int]:
    """The last sentences that too many texts have in common, with the number of texts, most frequent first.

    A sentence counts from five words on, without regard to case and punctuation; "too many" is at least `rows` texts
    and at least the `share` of all. Repeated closing phrases made a reproduction of the method collapse, and no single
    row shows them: look at all that is to be trained on. The texts are read twice, so that memory stays flat.
    """
    candidates, count = _frequent(map(last_sentence, read()), math.ceil(1 / share))
    endings = Counter(ending for ending in map(last_sentence, read()) if ending in candidates)
    return {ending: n for ending, n in endings.most_common() if n >= max(rows, share * count)}


def _frequent(items: Iterable[str], most: int) -> tuple[set[str], int]:
    """At most so many items, among them each that is more than 1 / (most + 1) of all (Misra and Gries 1982); "" is
    none. And how many there were in all."""
    counters: dict[str, int] = {}
    count = 0
    for item in items:
        count += 1
        if item in counters or (item and len(counters) < most):
            counters[item] = counters.get(item, 0) + 1
        elif item:
            counters = {name: n - 1 for name, n in counters.items() if n > 1}
    return set(counters), count


def last_sentence(text: str) -> str:
    """The last sentence of a text as words in lower case; empty if it has fewer than five."""
    sentences = [words for part in sentences_of(text) if (words := words_of(part))]
    return " ".join(sentences[-1]) if sentences and len(sentences[-1]) >= 5 else ""


def checks_sha() -> str:
    """The digest of these rules: which revision is taken depends on them, so a run belongs to one version of them."""
    return digest([file_digest(Path(path)) for path in (__file__, refusals.__file__, texts.__file__)])


def _empty(attempt: Attempt) -> bool:
    """Nothing to read: no letter, digit or picture, only space, marks or invisible characters."""
    return not any(
        letter.isalnum() or (letter > "\x7f" and unicodedata.category(letter)[0] == "S") for letter in attempt.revision
    )


def _cut_off(attempt: Attempt) -> bool:
    return attempt.finish == "length"


def _unchanged(attempt: Attempt) -> bool:
    """The same text, but for spacing and case."""
    return attempt.answer.casefold().split() == attempt.revision.casefold().split()


def _copied_critique(attempt: Attempt) -> bool:
    """It opens as the critique does, or much of it stands there and not in the answer (a critique may quote that)."""
    if is_plain_refusal(attempt.revision) and len(attempt.revision.split()) <= 20:
        return False  # two refusals in a row are alike without one being a copy
    new, critique, old = (words_of(text) for text in (attempt.revision, attempt.critique, attempt.answer))
    opening = new[:5]
    return bool(new) and (
        new == critique
        or (len(opening) == 5 and opening == critique[:5] != old[:5])
        or share_copied(attempt.revision, attempt.critique, attempt.answer) >= 0.35
    )


def _copied_request(attempt: Attempt) -> bool:
    """It says back what it was told to do: ten words in a row of the request, or a quarter of it in runs of five."""
    known = _before(attempt)
    told = phrases(attempt.requests, 10) & phrases(attempt.revision, 10)
    if told and told - phrases(known, 10):
        return True
    return share_copied(attempt.revision, attempt.requests, known) >= 0.25


def _copied_example(attempt: Attempt) -> bool:
    copied = attempt.shown & phrases(attempt.revision)
    return bool(copied and copied - phrases(_before(attempt)))


_BETTER = (
    r"(?:re-?written|re-?worded|re-?phrased|revised|updated|improved|corrected|modified|edited|new|better|safer"
    r"|alternative|different)"
)
# Bounded, and without newlines: an open \W* at the start of a line takes quadratic time on a text of empty lines.
_LABEL = re.compile(
    rf"""
    ^[^\w\n"'-]{{0,6}}
    (?: Critique | Critique\ [Rr]equest | Revision | Revision\ [Rr]equest | Principle | Human | Assistant | User
         | (?i:(?:the\ |my\ )?{_BETTER}\ (?:assistant'?s?\ )?(?:answer|response|reply|version)) )[^\w\n"']{{0,4}}:
  | <\|\w{{1,20}}\|> | </?(?:answer|response|revision)> | \[(?:insert|revised)\b
    """,
    re.MULTILINE | re.VERBOSE,
)


def _leaked_label(attempt: Attempt) -> bool:
    """A line opens with "Critique:", "Revised answer:", "Human:" or the like, or the chat's own marks show."""
    return bool(_LABEL.search(straight(attempt.revision))) and not _LABEL.search(straight(_before(attempt)))


_PREAMBLE = re.compile(
    rf"""
    (?:^|[.!?]\s)\W{{0,6}}
    (?:(?:sure|certainly|of\ course|absolutely|okay|ok|yes|understood|got\ it|i\ understand|thank\ you|thanks)\b
         [^\n]{{0,80}}?)?
    (?: \b(?:here(?:'s|\ is|\ are)|this\ is|the\ following\ is|below\ is)\b (?!\ how\b) [^\n:]{{0,50}}?
        (?: \b{_BETTER}\b[^\n:]{{0,40}}?\b(?:answer|response|reply|version|statement)\b
          | \b(?:answer|response|reply|version)\b[^\n:]{{0,30}}\b{_BETTER}\b
          | \b(?:revision|rewrite|rewriting)\b )
      | \bi(?:'ve|\ have)\ (?:re-?written|revised|re-?phrased)\ (?:the|my|your)\ (?:answer|response|reply)\b )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_REWORK = re.compile(
    r"\b(?:re-?writ\w+|revise|re-?phrase|improve|edit|correct|version|reword|shorten|proofread)\b", re.IGNORECASE
)


def _preamble(attempt: Attempt) -> bool:
    """It opens with "Here is the rewritten answer" or the like, unless the user asked for something to be reworked."""
    return bool(_PREAMBLE.search(opening_of(attempt.revision, 300))) and not _REWORK.search(attempt.conversation)


_MENTION = re.compile(
    r"""
    \bnothing\ to\ criti[cs]i[sz]e\b
  | \b(?:an?|the|this|your|that|my|my\ own|following)\ (?:critique|review|reviewer)\b(?!\ of\b)
  | \Athank(?:s|\ you)\ for\ (?:your|the)\ (?:feedback|critique|correction|clarification|response|review)\b
  | (?:^|(?<=[.!?"]\s))(?:the|this)\ (?:new\ )?answer
        \ (?:does|do|did|will|should|must|provides|gives|contains|leaves|says|said|helps|offers|goes|suggests|could|you
          |alone)\b
  | (?:^|(?<=[.!?"]\s))the\ answer\ is\ (?:not\ |neither\ |in|un)?(?:helpful|suitable|harmful|appropriate)
  | \b(?:message|review|conversation)\ is\ over\b
  | (?:^|(?<=[.!?"]\s))the\ user\ (?:is|was|wants|asks|asked|has|had|will|does|did)\b
  | \bthe\ user's\ (?:(?:last|original)\ )?(?:anger|request|question|message)\b
  | \bthe\ assistant(?:'s)?
        \ (?:is|was|will|should|must|does|did|has|can|cannot|(?:last\ )?(?:answer|response|message))\b
  | \bmy\ (?:previous|prior|earlier|last|original|first|initial)\ (?:answer|response|reply)\b
  | \bthe\ (?:previous|prior|original|new|rewritten|revised)\ (?:answer|response|version)\b
  | \b(?:breaks?|violates?|violated|goes\ against|keeps?\ to)\ (?:the|this|that)\ principle\b(?!\ of\b)
  | \bstrict\ reviewer\b | \bfriendly\ and\ complete\b | \b(?:user|you|them)\ as\ ["\u201c]you
  | \byou(?:'re|\ are)\ (?:now\ )?an?\ (?:helpful\ )?(?:ai|assistant|ai\ assistant|language\ model)\b
  | \b(?:the|this)\ principle\ (?:states|says)\b | \bre-?write\ (?:the|my|your)\ (?:answer|response)\b
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)


def _mentions_critique(attempt: Attempt) -> bool:
    """It speaks of the critique, the principle or the answer before, which its reader has never seen, or takes thanks
    that its reader has not given."""
    text, before = straight(attempt.revision), straight(_before(attempt)).casefold()
    welcome = re.match(r"\W{0,6}you(?:'re| are) (?:very )?welcome\b", text, re.IGNORECASE) and "thank" not in before
    return bool(welcome) or any(match.casefold() not in before for match in _MENTION.findall(text))


_ASKS = re.compile(
    r"""
    \b(?:please|could\ you|can\ you|would\ you|kindly)\b[^.?!]{0,40}
        \b(?:provide|share|tell\ me|give\ me|send|ask\ me|ask\ your\ question|state|specify|type|enter|clarify
          |let\ me\ know)\b
  | \blet\ me\ know\ (?:what|how|which|if)\b
  | \b(?:what|how)\ (?:can|may|could)\ I\ (?:help|assist|do|be\ of)\b
  | \bwhat(?:\ is|'s)\ your\ (?:question|request|message)\b
  | \bwhat\ would\ you\ like\ (?:me\ to|to\ (?:know|ask|talk|discuss))\b
  | \bfeel\ free\ to\b | \bany\ (?:other|further|more)\ questions\b
  | \b(?:need|want)\ (?:any|other|further|more)\ (?:other\ |further\ |more\ )?(?:help|assistance)\b
  | \b(?:happy|glad|here|ready|able)\ to\ (?:help|assist)\b | \bdo\ my\ best\b
  | \bi(?:'ll|\ will)\ (?:provide|review|re-?write|write|give\ you|do\ that|do\ so|try)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def _asks_for_question(attempt: Attempt) -> bool:
    """It is no answer: short, and all it does is to ask for the question, or to offer or promise an answer."""

    def only_asks(text: str) -> bool:
        if len(words_of(text)) > 40 or is_refusal(text) or not _ASKS.search(straight(text)):
            return False
        rest = [part for part in sentences_of(text) if not _ASKS.search(straight(part))]
        return len(content_of(" ".join(rest)) - {"thank", "hello", "welco", "apolo", "misun", "confu", "glad"}) <= 3

    return only_asks(attempt.revision) and not only_asks(attempt.answer)


_REPEAT = re.compile(
    r"(?<!n't )(?<!not )\b(?:repeat|over and over|\d+ times|again and again|chorus|refrain|song|lyrics|poem|rhyme)\b",
    re.IGNORECASE,
)


def _loops(attempt: Attempt) -> bool:
    """It says the same again and again: one line or sentence three times, one phrase over and over, or little new."""
    text = attempt.revision
    if _REPEAT.search(straight(attempt.conversation)):
        return False
    words = words_of(text)
    parts = Counter(" ".join(part) for sentence in sentences_of(text) if len(part := words_of(sentence)) >= 4)
    again = sum(count * len(part.split()) for part, count in parts.items() if count > 1)
    if max(parts.values(), default=0) >= 3 or again >= 0.4 * len(words) > 6:
        return True
    if _periodic(words):
        return True
    length, share = (4, 0.6) if len(words) >= 60 else (3, 0.65)
    runs = [tuple(words[n : n + length]) for n in range(len(words) - length + 1)]
    if len(words) >= 15 and len(set(runs)) < share * len(runs):
        return True
    raw = text.encode("utf-8", "replace")
    return len(raw) >= 100 and len(zlib.compress(raw, 9)) < 0.2 * len(raw)


def _periodic(words: Sequence[str]) -> bool:
    """Whether the text ends in one run of words, four times over or more, and in at least 16 words of it."""
    for period in range(1, 31):
        length = max(4 * period, 16)
        tail = words[-length:]
        if len(tail) == length and all(tail[n] == tail[n + period] for n in range(length - period)):
            return True
    return False


_TRANSLATE = re.compile(
    r"translat|\b(?:in|into|to) (?:[a-z]+ and )?(?:english|french|german|spanish|italian|portuguese|dutch|polish"
    r"|russian|chinese|mandarin|japanese|korean|arabic|hindi|turkish|latin|greek|swedish)\b",
    re.IGNORECASE,
)


def _language_changed(attempt: Attempt) -> bool:
    """Another language than the answer's and than any turn's of the conversation, where that can be told.

    The revision's must be certain; that of the others need only be likely, since it speaks for the revision.
    """
    words = set(words_of(attempt.revision))
    if 2 * len(words.intersection(words_of(_before(attempt)))) >= len(words):
        return False  # no need to guess the language of words that stood there before
    new = language_of(attempt.revision, letters=20, probability=0.95)
    if new is None or _TRANSLATE.search(attempt.conversation):
        return False
    told = False
    for text in (attempt.answer, *attempt.conversation.split("\n\n")):
        old = language_of(text, letters=12, probability=0.5)
        if old == new:
            return False
        told = told or old is not None
    return told


def _off_topic(attempt: Attempt) -> bool:
    """None or next to none of its words were in the conversation or the answer: it speaks of something else.

    Small models turn to what the principle is about, or to a worked example. It takes a conversation of some length to
    tell: at least 20 words that are not common, in English; words count as equal from their first five letters.
    """
    new, known = content_of(attempt.revision), content_of(_before(attempt))
    if len(new) < 8 or len(known) < 20 or len(new & known) >= 0.1 * len(new):
        return False
    return language_of(attempt.revision, letters=20, probability=0.95) == "en"


def _needless_refusal(attempt: Attempt) -> bool:
    """It refuses where the answer did not, and where the critique found nothing to criticise."""
    return _finds_nothing(attempt.critique) and is_refusal(attempt.revision) and not is_refusal(attempt.answer)


def _refuses_and_helps(attempt: Attempt) -> bool:
    """It refuses in words, and then gives much of the answer that had to be rewritten."""
    if is_refusal(attempt.answer) or not is_refusal(attempt.revision):
        return False
    return share_copied(attempt.answer, attempt.revision, attempt.conversation) >= 0.3


CHECKS: dict[str, Callable[[Attempt], bool]] = {
    "empty_revision": _empty,
    "cut_off_revision": _cut_off,
    "unchanged": _unchanged,
    "copied_critique": _copied_critique,
    "copied_request": _copied_request,
    "copied_example": _copied_example,
    "leaked_label": _leaked_label,
    "preamble": _preamble,
    "mentions_critique": _mentions_critique,
    "asks_for_question": _asks_for_question,
    "loops": _loops,
    "language_changed": _language_changed,
    "off_topic": _off_topic,
    "needless_refusal": _needless_refusal,
    "refuses_and_helps": _refuses_and_helps,
}

_NOTHING = re.compile(
    r"""
    \bnothing\b[^.!?]{0,40}\b(?:to\ criti|wrong|to\ add|to\ change|harmful|that\ (?:breaks|goes\ against|violates))
  | \bno\ (?:critique|criticism|criticisms|issues?|problems?|parts?|changes?|words?|fault)\b[^.!?]{0,40}
        \b(?:needed|necessary|found|required|to\ criti|with|that\ (?:break|go|violate)|in\ (?:the|this|that))\b
  | \bthere\ (?:is|are)\ no\ (?:critique|criticism|criticisms|issues?|problems?)\b
  | ^\W{0,6}(?:nothing|none|n/a)\W{0,6}$
    """,
    re.IGNORECASE | re.VERBOSE,
)
_YET = re.compile(
    r"\b(?:but|however|although|though|yet|except|still|nevertheless|urges|tells|says|claims|implies|suggests|could)\b",
    re.IGNORECASE,
)


def _finds_nothing(critique: str) -> bool:
    """Whether the critique as a whole says that nothing is wrong. What it quotes are the answer's words."""
    own = re.sub(r"[\"\u201c][^\"\u201c\u201d]{0,400}[\"\u201d]", " ", critique)
    return bool(_NOTHING.search(opening_of(own, 160))) and len(own.split()) <= 40 and not _YET.search(own)


def _before(attempt: Attempt) -> str:
    return f"{attempt.conversation}\n\n{attempt.answer}"
