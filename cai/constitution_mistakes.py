"""What is wrong with the file of a constitution, in sentences for those who write one and are no programmers.

The parser of YAML and pydantic name their own terms ("mapping", "dictionary", a pattern); what is said here names what
stands in the file, and what to write instead.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from cai.errors import BadInput, brief_value
from cai.texts import hidden_in

_README = "constitutions/README.md says what each key is for."
_QUOTES = 'Put the whole text into "double quotes".'
_BESIDE = "Let each key of a principle begin below the one above it; only spaces count."

# What stands in a file, what belongs there and what to do, by how PyYAML's own sentence begins: it has no other name
# for its errors. What is not here gets a sentence that is true of all.
_YAML: dict[str, tuple[str, str, str]] = {
    "found character '\\t'": ("a tab", "spaces", "YAML sets lines in by spaces only: put spaces in its place."),
    "found character": ("a text that begins with '{sign}'", "quotes around such a text", _QUOTES),
    "mapping values are not allowed": (
        "a colon where none can stand",
        "'key: text', with quotes around a text that has a colon in it",
        _QUOTES + " Or, if it is a key, let it begin below the keys that it belongs to; look at the line above too.",
    ),
    "could not find expected ':'": ("a line that is no 'key: text'", "a key, a colon and a space", _BESIDE),
    "sequence entries are not allowed": (
        "a '-' behind a key",
        "each item of a list on a line of its own",
        "Begin a new line with the '-', or put the text into quotes.",
    ),
    "mapping keys are not allowed": ("a '?' in front of a text", "quotes around such a text", _QUOTES),
    "expected <block end>, but found '<scalar>'": (
        "words behind a closing quote",
        "nothing behind it",
        "Put the whole text into double quotes, and write \\\" for each one inside.",
    ),
    "expected <block end>": ("a line that is set in too far, or not far enough", "it to stand below its like", _BESIDE),
    "expected ',' or ']'": ("a list after a '[' that does not end", "commas, and ']' at its end", "Close it."),
    "expected ',' or '}'": ("keys after a '{' that does not end", "commas, and '}' at the end", "Close it."),
    "found undefined alias": ("a text that begins with '*'", "quotes around such a text", _QUOTES),
    "expected alphabetic or numeric": ("a text that begins with '*' or '&'", "quotes around such a text", _QUOTES),
    "could not determine a constructor": ("a text that begins with '!'", "quotes around such a text", _QUOTES),
    "expected the node content": ("a text that begins with '{sign}'", "quotes around such a text", _QUOTES),
    "expected a comment or a line break": ("words behind a '>' or '|'", "them below it", "Begin a new line, set in."),
    "expected chomping or": ("words behind a '>' or '|'", "them below it", "Begin a new line, set in."),
    "found unknown escape": (
        "a backslash with '{sign}' behind it", "two backslashes", "Write \\\\, or put the text into 'single quotes'."
    ),
    "expected escape sequence": ("a backslash with too few digits", "two backslashes", "Write \\\\ for a backslash."),
    "but found another document": ("a second '---'", "one constitution in a file", "Take that line out."),
    "expected '<document start>'": ("text behind the end", "one constitution in a file", "Take '...' or '%' out."),
}  # fmt: skip
# Found at the line behind, or at the end of the file.
_BEGUN = ("could not find expected ':'", "expected ',' or")


def unreadable(path: Path, error: Exception) -> BadInput:
    """For a file that cannot be opened, or is no text."""
    if isinstance(error, UnicodeDecodeError):
        before: bytes = error.object[: error.start]
        remedy = "Save it as UTF-8 (text editors offer that under Save as)."
        return BadInput(f"{path}:{before.count(10) + 1}", "a byte that is no letter in UTF-8", "UTF-8 text", remedy)
    found = "a folder" if isinstance(error, IsADirectoryError) else f"a file that cannot be read ({error})"
    return BadInput(str(path), found, "a file of text", "Check the path.")


def in_yaml(path: Path, text: str, error: yaml.YAMLError) -> BadInput:
    """For a text that is no YAML."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        sign = "".join(hidden_in(text[error.position : error.position + 1])) or "one"
        return BadInput(f"{path}:{line}", f"a character that no text has ({sign})", "none", "Take it out.")
    mark: Any = getattr(error, "problem_mark", None)
    begun: Any = getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or "")
    if problem.startswith("found unexpected") and begun is not None:  # where the file ends; the quote began long before
        return BadInput(f"{path}:{begun.line + 1}", "a quote that is never closed", "one at the end of the text too",
                        "Close it.")  # fmt: skip
    if problem.startswith(_BEGUN) and begun is not None:
        mark = begun
    place = path if mark is None else f"{path}:{mark.line + 1}"
    for begins, (found, expected, remedy) in _YAML.items():
        if problem.startswith(begins):
            sign = "" if mark is None else text[mark.index : mark.index + 1].strip()
            return BadInput(str(place), found.replace("{sign}", sign), expected, remedy)
    return BadInput(str(place), "text that YAML cannot read", "'key: text', lists, and quotes around all else", _QUOTES)


def in_value(path: Path, error: Exception) -> BadInput:
    """For YAML with a value that cannot be made: a date that is none, an anchor that holds itself."""
    remedy = "Put a date, and a text that begins with !, & or *, into quotes."
    return BadInput(str(path), f"a value that cannot be read ({error})", "texts, numbers and lists", remedy)


def in_schema(
    place: str, at: Sequence[str | int], kind: str, said: str, value: object, known: Sequence[str], data: object
) -> BadInput:
    """For a value that the schema does not allow: `kind` and `said` are pydantic's, `known` the keys that may stand
    beside it, `data` the whole file."""
    name = _named(at, data)
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(at[-1]), known, n=1)
        remedy = f"Did you mean '{close[0]}'?" if close else f"Known keys: {', '.join(known)}."
        return BadInput(place, f"the unknown key {name}", "a key that cai knows", remedy)
    if kind == "missing":
        return BadInput(place, f"no {name}", "it to be written", f"Add it; {_README}")
    if kind == "invalid_key":
        return BadInput(place, f"the key {brief_value(at[-1])}, which is no word", "a key that cai knows",
                        f"Known keys: {', '.join(known)}.")  # fmt: skip
    if kind == "same_answers":
        return BadInput(place, f"the same text twice in {name}", "two different answers, better and worse",
                        "Write what a worse answer would say.")  # fmt: skip
    if kind == "unseen":
        shown = ", ".join(hidden_in(str(value))) or "blanks"
        return BadInput(place, f"nothing that a reader can see in {name}, only {shown}", "some wording", "Write it.")
    if value is None or kind == "string_too_short":
        what = "an empty file" if not at else f"an empty {name}"
        expected = "name, version, description and principles" if not at else "something written there"
        return BadInput(place, what, expected, _README)
    expected, remedy = _expected(at, kind, value)
    return BadInput(place, f"{_shown(value)} for {name}", expected or said[0].lower() + said[1:], remedy)


def _expected(at: Sequence[str | int], kind: str, value: object) -> tuple[str, str]:
    """What belongs there, in words, and what to do. The first is empty for a kind of error that is not known here."""
    key = at[-1] if at else None
    if kind == "string_pattern_mismatch" and key == "sha256":
        return "the 64 digits that cai constitution import wrote", "Put them back, or import the file again."
    if kind in ("string_pattern_mismatch", "string_too_long"):
        slug = re.sub(r"[^a-z0-9]+", "-", str(value).casefold()).strip("-")[:64].strip("-")
        rule = "lower-case letters a to z and digits, with single hyphens between words, 64 characters at most"
        return rule, f"Write '{slug}'." if slug else "Write a short name, such as 'no-flattery'."
    if kind == "string_type":
        if isinstance(value, dict):
            return "text", "A text with a colon in it stands in double quotes."
        if isinstance(value, list):
            return "text", "Write one text, without - or [ ]."
        return "text in quotes", 'Put "quotes" around it, since YAML takes it for something else than text.'
    if kind in ("string_unicode", "string_sub_type"):
        return "text of whole characters", "Write the character itself, in place of \\u and digits."
    if kind in ("tuple_type", "list_type"):
        lists = {"tags": "[one, two]", "filled_in": "[rationale]"}
        return "a list", f"Write {lists[key]}." if key in lists else "Begin each item with '- ' on a line of its own."
    if key == "weight":
        return "a number above 0, 1000 at most", "Write a number such as 1 or 0.5, without quotes."
    if kind == "bool_type":
        return "true or false", "Write true or false, without quotes."
    if kind == "literal_error":
        return "statement, rationale, critique, revision or comparison", "Write one of these."
    if kind == "too_short":
        return "at least one principle", "Write one below it, as '- id: ...'."
    if kind == "model_type":
        keys = "name, version, description and principles" if not at else "keys of its own, such as 'id: no-flattery'"
        return keys if len(at) < 3 else "keys of its own", f"Write each as 'key: text', with a space. {_README}"
    return "", _README


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "keys with values"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, bool):
        return f"the answer {str(value).lower()}"  # which may stand there as yes, no, on or off
    return value.isoformat() if isinstance(value, date) else brief_value(value)


def _named(at: Sequence[str | int], data: object) -> str:
    """A place as people would say it: ('principles', 0, 'critique') is the 'critique' of principle 1 ('kind')."""
    if not at:
        return "the file"
    told: list[str] = []
    here: Any = data
    for key, inner in zip(at, [*at[1:], None], strict=True):
        here = here[key] if isinstance(here, dict) and key in here else _item(here, key)
        if isinstance(key, int):
            name = here.get("id") if isinstance(here, Mapping) else None
            told.append(f" {key + 1}" + (f" ('{name[:64]}')" if isinstance(name, str) and name else ""))
        else:
            told.append(_ITEMS.get(key, key) if isinstance(inner, int) else f"'{key}'")
    parts: list[str] = []
    for part in told:
        if part.startswith(" ") and parts:
            parts[-1] += part
        else:
            parts.append(part)
    return " of ".join(reversed(parts))


_ITEMS = {"principles": "principle", "examples": "example", "references": "reference", "tags": "tag",
          "filled_in": "filled-in wording"}  # fmt: skip


def _item(here: Any, key: str | int) -> Any:
    return here[key] if isinstance(here, list) and isinstance(key, int) and key < len(here) else None
