"""Constitutions in the forms in which others have published theirs, as files of ours.

What the source says is taken word for word. A wording that cai needs and the source does not have is made from what it
has, in a fixed way, and named in `filled_in`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import yaml

from cai.constitution import WORDINGS, check_text
from cai.errors import BadInput
from cai.lint_wordings import names_letters
from cai.plain_yaml import LONGEST
from cai.published import Form, Said, read_published
from cai.seal import Json
from cai.texts import straight, words_of

# Characters of all that a source says: what is made from it is up to six times as long, and no YAML text may be longer.
_LONGEST = LONGEST // 6


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported constitution: its text, the form of its source, how many principles, and what was left out."""

    text: str
    form: Form
    principles: int
    filled_in: tuple[str, ...]
    left_out: tuple[str, ...]


def import_constitution(path: Path, form: Form | None, source: str | None, out: Path) -> Imported:
    """Read the file at `path` in the given form, or in the one that it seems to have.

    `source` is the name that is kept, else the path as it was given; the constitution gets its name from `out`. Raises
    BadInput for a file that cannot be read, is in none of the forms, or holds what no constitution can.
    """
    data = _bytes(path)
    text = _text(path, data)
    known, said, left_out = read_published(path, text, form)
    said, same = _once(said)
    left_out = [*left_out, *([f"{same} that stood there before, word for word"] if same else [])]
    if not said:
        raise BadInput(str(path), "no principle", "at least one", "Check that it is the right file.")
    long = sum(len(text) for one in said for text in one.wordings.values())
    if long > _LONGEST:
        raise BadInput(str(path), f"statements of {long} characters", f"at most {_LONGEST}", "Check the file.")
    principles = _principles(said)
    made = tuple(name for name in WORDINGS if any(name in one["filled_in"] for one in principles))
    origin: Json = {"name": source or str(path), "form": known, "sha256": sha256(data).hexdigest()}
    file: Json = {
        "name": _slug(out.stem, 64) or "imported",
        "version": "imported",
        "description": f"Imported from {origin['name']} (form {known}). What 'filled_in' names was made up by cai.",
        "source": origin | ({"left_out": left_out} if left_out else {}),
        "principles": principles,
    }
    written = _yaml(file)
    for problem in check_text(written, out):
        raise BadInput(
            str(path), f"what no constitution can hold ({problem.found})", problem.expected, "Mend it there."
        )
    return Imported(written, known, len(principles), made, tuple(left_out))


# Reading a file


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror or error})"
        raise BadInput(str(path), found, "a file", "Check the path.") from error


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(str(path), "a file that is not UTF-8 text", "text", "Save it as UTF-8.") from error


# What a constitution of ours needs


def _once(said: Sequence[Said]) -> tuple[list[Said], int]:
    """Without those that say word for word what one before them said, and how many these were."""
    kept: dict[tuple[tuple[str, str], ...], Said] = {}
    for one in said:
        kept.setdefault(tuple(one.wordings.items()), one)
    return list(kept.values()), len(said) - len(kept)


def _principles(said: Sequence[Said]) -> list[Json]:
    taken: set[str] = set()
    made: list[Json] = []
    for one in said:
        name = _free(_slug(one.name, 56) if one.name else _name_of(next(iter(one.wordings.values()))), taken)
        taken.add(name)
        filled = _filled(one)
        missing = [key for key in WORDINGS if key not in one.wordings or filled[key] != one.wordings[key]]
        made.append({"id": name, **{key: filled[key] for key in WORDINGS}, "filled_in": _Row(missing)})
    return made


def _filled(one: Said) -> dict[str, str]:
    """All wordings of a principle: those of the source, and the others made from them."""
    has = dict(one.wordings)
    if "revision" in has:
        request = has["revision"]
        has.setdefault("statement", f'The answer needs no change to meet this request: "{request}"')
        has.setdefault("comparison", f'Which answer has less to change to meet this request: "{request}"?')
    elif "comparison" in has:
        has.setdefault("statement", _stated_by(has["comparison"]))
        if names_letters(has["comparison"]) is not None:
            has["comparison"] = "Which answer does more of what the principle asks for, and less of what it rules out?"
    rule = has["statement"]
    has.setdefault("critique", f'Quote the words in the answer that go against this, or name what is missing: "{rule}"')
    has.setdefault("revision", f'Rewrite the answer so that it keeps to this, and keep what is right in it: "{rule}"')
    has.setdefault("comparison", f'Which answer keeps better to this: "{rule}"?')
    has.setdefault("rationale", "The source gives no reason.")
    return {key: has[key] for key in WORDINGS}


def _stated_by(choice: str) -> str:
    """The statement in a request to choose: "Select the response that is brief." asks for an answer that is brief."""
    match = _OF_THAT.fullmatch(choice)
    return f"The answer {match[1]}" if match else f'The answer is the one that this request would take: "{choice}"'


_OF_THAT = re.compile(
    r"(?i)(?:please\s+)?\w+ the (?:assistant )?(?:response|answer|output|sample) that (\w+s\b(?:(?![.?!]\s).)*)"
)


def _name_of(text: str) -> str:
    common = set(_COMMON.split())
    words = [word for word in words_of(straight(text)) if word not in common and not word.isdigit()]
    return _slug(" ".join(words[:4]), 56)


# Words that say nothing about a principle, and are no part of its id.
_COMMON = """
    a ai al also an and any anything are as assistant assistants at be been by can carefully choose contain
    contained content could deliberately did discuss do does explain for from furthermore give had has have he
    her how human humans i identify if in include included into is it its last less look make may might model
    most must never no not of on or output please point possible preceding prefer provided read remove
    response responses revise rewrite s said say says select should shouldn shouldnt so some something
    strongest such t take than that the their them then there they think this to try user users was way ways
    were what whether which who will with would you your
"""


def _slug(text: str, longest: int) -> str:
    slug = "-".join(re.findall(r"[a-z0-9]+", straight(text).replace("'", "").casefold()))
    return slug if len(slug) <= longest else slug[:longest].rpartition("-")[0] or slug[:longest]


def _free(wanted: str, taken: set[str]) -> str:
    name, number = wanted or "principle", 1
    while name in taken:
        number += 1
        name = f"{wanted or 'principle'}-{number}"
    return name


# Writing it


class _Row(list[str]):
    """Names that are written on one line."""


class _Folded(yaml.SafeDumper):
    """YAML as people write it: long texts folded below their key."""

    def write_text(self, data: str) -> yaml.ScalarNode:
        style = ">" if len(data) > 80 and "\n" not in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def write_row(self, data: _Row) -> yaml.SequenceNode:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Folded.add_representer(str, _Folded.write_text)
_Folded.add_representer(_Row, _Folded.write_row)


def _yaml(file: Json) -> str:
    return yaml.dump(file, Dumper=_Folded, sort_keys=False, allow_unicode=True, width=110)
