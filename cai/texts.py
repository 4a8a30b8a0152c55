"""Reading a text: its words, sentences and language, what it is about, and how much of it stands in another one."""

import json
import re
import unicodedata
from functools import cache, lru_cache
from typing import Any

# What cannot be seen in a text, as parts of a regular expression's class. Controls without tab and new line; what turns
# the direction of writing; what takes no room (zero-width spaces, the letters of the tag block, selectors beyond the
# first sixteen); and what joins letters and emoji, which is unseen too but belongs to many languages.
CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
TURNS = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
NO_ROOM = r"\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\U000e0000-\U000e0fff"
JOINS = r"\u00ad\u034f\u200c\u200d\ufe00-\ufe0f"

# Letters and symbols by Unicode's word that nobody sees.
_BLANKS = "\u115f\u1160\u2800\u3164\uffa0"

# What joins letters and emoji stays as it is.
_UNSEEN = re.compile(f"[{CONTROLS}{TURNS}{NO_ROOM}]")


def visible(text: str) -> str:
    """`text` with what cannot be seen in it spelled out: what a model, a server or a file says must not drive the
    terminal, and a reader is to find what a judge was shown."""
    return _UNSEEN.sub(lambda match: _spelled(ord(match[0])), text)


def visible_json(value: object) -> str:
    """The same for what is written out as JSON: it means what it meant."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], text)


def is_seen(text: str) -> bool:
    """Whether a reader sees anything in it: a letter, a number, a sign or a symbol."""
    return any(unicodedata.category(one)[0] in "LNPS" and one not in _BLANKS for one in text)


# What joins letters is at home in Arabic, Indic and other scripts and in emoji; between two Latin letters it is not.
_HIDDEN = re.compile(f"[{CONTROLS}{TURNS}{NO_ROOM}{_BLANKS}]|(?<=[A-Za-z])[{JOINS}]+(?=[A-Za-z])")


def hidden_in(text: str) -> list[str]:
    """What nobody sees in a text and a model is shown all the same: each character spelled out, once."""
    return list(dict.fromkeys(_spelled(ord(one)) for match in _HIDDEN.findall(text) for one in match))


def _spelled(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def straight(text: str) -> str:
    """With straight apostrophes."""
    return text.replace("\u2019", "'")


def opening_of(text: str, length: int) -> str:
    """Its first so many characters, on one line, with straight apostrophes."""
    return " ".join(straight(text[:length]).split())


def sentences_of(text: str) -> list[str]:
    """Its sentences and lines; some may be empty."""
    return re.split(r"[.!?]+(?:\s|$)|\n+", text)


@lru_cache(maxsize=256)  # several checks look at the same few texts
def words_of(text: str) -> tuple[str, ...]:
    """Its words in lower case, without punctuation."""
    return tuple(re.findall(r"\w+", text.casefold()))


@lru_cache(maxsize=256)
def phrases(text: str, words: int = 8) -> frozenset[str]:
    """Every run of so many words in a text, in lower case and without punctuation."""
    found = words_of(text)
    return frozenset(" ".join(found[n : n + words]) for n in range(len(found) - words + 1))


def share_copied(text: str, source: str, known: str) -> float:
    """How much of `text` is in `source`, by runs of five words; what is also in `known` does not count as copied."""
    runs = phrases(text, 5)
    shared = runs & phrases(source, 5)
    return len(shared - phrases(known, 5)) / len(runs) if shared else 0.0


def content_of(text: str) -> set[str]:
    """The words that say what a text is about: from four letters on, cut to five, without the common ones."""
    return {word[:5] for word in re.findall(r"[^\W\d_]{4,}", straight(text).casefold()) if word not in _COMMON}


_COMMON = frozenset(
    """able about after also always answer anyone anything back because been before being best better between both
    cannot could does doing done each even everything feel feeling find from good have help helpful helps here however
    important instead into just keep know like made make makes many may might more most much must need never only other
    people person please provide question respect respectful should some someone something such sure take than that
    their them then there these they thing things think this those through understand used using very want ways well
    were what when where which while will with within without would your""".split()  # noqa: SIM905
)


@lru_cache(maxsize=512)
def language_of(text: str, letters: int, probability: float) -> str | None:
    """The language of a text with at least so many letters, if it is at least so probable."""
    if sum(letter.isalpha() for letter in text) < letters:
        return None
    language, found = _identifier().classify(text[:2000])
    return str(language) if found >= probability else None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # a second to load, so only when it is needed

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
