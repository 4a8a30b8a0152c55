"""The key of the servers: from the environment only, and taken out of all that a server says in an error."""

import html
import os
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from typing import Any

from cai.errors import BadInput

NO_KEY = "none"
# What is shorter is no secret: servers that want no key are given EMPTY or x, which may well stand in an answer.
SHORTEST_SECRET = 8


def server_key() -> str:
    """The key. Raises BadInput, without showing it, for one that no header can hold."""
    for name in ("CAI_API_KEY", "OPENAI_API_KEY"):
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable() and " " not in key):
                raise BadInput(name, "a key with spaces or special characters", "letters, digits and signs", "Mend it.")
            return key
    return NO_KEY


@contextmanager
def without(key: str) -> Generator[None]:
    """Take the key out of an error, and of those that led to it: a server may say what it was sent."""
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None:
            found.args = tuple(hidden(one, key) for one in found.args)
            for name, value in vars(found).items():
                if isinstance(value, str | bytes | dict | list | tuple):
                    setattr(found, name, hidden(value, key))
            found = found.__cause__ or found.__context__
        raise


def hidden(said: Any, key: str) -> Any:
    """What was said, as text without the key if the key is in it, however it is spelled there."""
    if key == NO_KEY:
        return said
    text, times = _spelled(key).subn("[key]", str(said))
    return text if times else said


def gives_away(text: str, asked: Iterable[str], key: str) -> bool:
    """Whether an answer tells a secret key that was not in what was asked."""
    if key == NO_KEY or len(key) < SHORTEST_SECRET or _spelled(key).search(text) is None:
        return False
    return not any(_spelled(key).search(one) for one in asked)


@lru_cache
def _spelled(key: str) -> re.Pattern[str]:
    """Finds the key as it is, and as JSON, Python, an address or HTML write it, also within one another."""
    return re.compile("".join(_ways(one, len(list(same))) for one, same in groupby(key)))


def _ways(one: str, times: int) -> str:
    """A pattern of the ways to write a character so many times in a row.

    All leave letters and digits as they are. A backslash may stand before anything else, and what is quoted again has
    two for each. Nothing is without a bound: a server may send a long row of whatever would take long.
    """
    if one.isalnum():
        return one * times
    number = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{ord(one):x}")
    written = rf"%{number}|\\{{1,16}}+(?:u00|x){number}|&#(?:0{{0,5}}{ord(one)}|[xX]0{{0,5}}{number});"
    if (named := html.escape(one)) != one:
        written += f"|{named}"
    if one == "\\":
        return rf"(?:\\{{{times},{16 * times}}}+|(?:{written}){{{times}}})"
    return rf"(?:\\{{0,16}}+{re.escape(one)}|{written}){{{times}}}"
