"""The forms in which others have published their constitutions.

    bai-2022   requests for critique and revision: {"name": {"prompt": ["CritiqueRequest: ..."], "edit_request": "..."}}
    llm-swarm  {"constitutions": [{"critic": "...", "revision": "..."}], "system_chat": [...]}
    icai       inverse constitutional AI: a numbered text, principles by cluster, or the principles among annotators
    list       one statement a line, or a JSON list of them; a CSV file with a column comment-body (Pol.is)

Labels such as "CritiqueRequest:" and numbers before a line are not part of what a source says; the rest is taken word
for word. Nothing is fetched, and nothing in a file is executed.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from cai.errors import BadInput
from cai.seal import Json

Form = Literal["bai-2022", "llm-swarm", "icai", "list"]


@dataclass(frozen=True, slots=True)
class Said:
    """What a source says of one principle: its name if it has one, and the wordings of ours that it has."""

    name: str | None = None
    wordings: dict[str, str] = field(default_factory=dict[str, str])


def read_published(path: Path, text: str, form: Form | None) -> tuple[Form, list[Said], list[str]]:
    """The form of a text, what it says of each principle, and what else is in it that no constitution of ours can hold.

    The form is found out if none is given. Raises BadInput for a text in none of the forms, or not in the one given.
    """
    data = _json_of(path, text)
    if re.search("^principles:", text, re.MULTILINE):
        raise BadInput(str(path), "a constitution in the form of cai", "one in another form", "Use it as it is.")
    known = form or _form_of(data, text)
    if known is None:
        forms = (
            "the critique requests of the 2022 paper, an llm-swarm constitution, icai output, or a list of statements"
        )
        raise BadInput(str(path), "a form that cai does not know", forms, "Name the form with --form if it has one.")
    try:
        said, left_out = _READERS[known](data if data is not None else text)
        for one in said:
            _check_texts(list(one.wordings.values()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        remedy = "Leave --form out, or name another one." if form else "Check that it is the right file."
        raise BadInput(str(path), _why(error), f"a file in the form {known}", remedy) from error
    return known, said, left_out


def _check_texts(texts: list[Any]) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError
        if not text.strip():
            raise ValueError("an empty text")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("half a character")


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no {error} where the form has one"
    return str(error) if isinstance(error, ValueError) and str(error) else "values of another kind than the form has"


def _json_of(path: Path, text: str) -> Any:
    """The values of a JSON file; None for any other text. Raises BadInput for JSON that is broken."""
    begins = text.lstrip()[:1]
    if path.suffix != ".json" and begins not in ("{", "[") and not (begins == '"' and _is_json(text)):
        return None
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}"
        raise BadInput(place, f"text that is not JSON ({error.msg})", "JSON", "Mend that line.") from error
    except (ValueError, RecursionError) as error:
        found = str(error) if isinstance(error, _Twice) else "JSON that cannot be read"
        raise BadInput(str(path), found, "plain JSON", "Mend it.") from error


class _Twice(ValueError):
    pass


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _each_key_once(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(f"the key '{next(key for key in keys if keys.count(key) > 1)}' twice")
    return found


def _form_of(data: Any, text: str) -> Form | None:
    if isinstance(data, dict):
        values: list[Any] = list(cast("Json", data).values())
        if "constitutions" in data:
            return "llm-swarm"
        if values and all(isinstance(one, dict) and {"prompt", "edit_request"} <= one.keys() for one in values):
            return "bai-2022"
        numbered = all(re.fullmatch(r"-?\d+", key) for key in cast("Json", data))
        if "annotators" in data or (values and numbered and all(isinstance(one, str) for one in values)):
            return "icai"
        return None
    if isinstance(data, str):
        return "icai"
    if isinstance(data, list):
        return "list" if all(isinstance(one, str) for one in cast("list[Any]", data)) else None
    return None if text.lstrip().startswith("<") or "\0" in text else "list"


# The forms

Read = tuple[list[Said], list[str]]


def _bai(data: Any) -> Read:
    said: list[Said] = []
    for name, entry in data.items():
        asked = [entry["prompt"]] if isinstance(entry["prompt"], str) else list(entry["prompt"])
        if not asked:
            raise ValueError(f"no request for a critique in '{name}'")
        revision = _unlabelled(entry["edit_request"], "RevisionRequest", "Revision")
        for number, one in enumerate(asked):
            critique = _unlabelled(one, "CritiqueRequest", "Critique")
            called = name if len(asked) == 1 else f"{name}-{number + 1}"
            said.append(Said(called, {"critique": critique, "revision": revision}))
    return said, []


def _unlabelled(text: str, before: str, after: str) -> str:
    return re.sub(rf"\A\s*{before}:|\b{after}:\s*\Z", "", text).strip()


def _swarm(data: Any) -> Read:
    said = [Said(None, {"critique": one["critic"], "revision": one["revision"]}) for one in data["constitutions"]]
    chats = len(data.get("system_chat", ()))
    return said, [f"{chats} worked conversations (system_chat)"] if chats else []


def _icai(data: Any) -> Read:
    if isinstance(data, dict) and "annotators" in data:
        annotators: list[Any] = list(data["annotators"].values())
        texts = [one["description"] for one in annotators if one.get("type") == "principle"]
        pairs = len(data.get("comparisons", ()))
        return _stated(texts), [f"{pairs} compared pairs with their votes"] if pairs else []
    if isinstance(data, dict):
        return _stated(list(cast("Json", data).values())), []
    return _listed(data)


def _listed(data: Any) -> Read:
    if isinstance(data, list):
        return _stated(cast("list[Any]", data)), []
    if not isinstance(data, str):
        raise TypeError
    text = data
    if "comment-body" in text.partition("\n")[0]:
        return _polis(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    statements = [line for line in lines if not re.match(r"#|[-=*_]{3,}$", line)]
    headings = len(lines) - len(statements)
    return _stated(statements), [f"{headings} headings or comments"] if headings else []


def _polis(text: str) -> Read:
    """The comments of a Pol.is conversation, but for those that its moderators took out (moderated -1)."""
    rows = list(csv.DictReader(io.StringIO(text)))
    kept = [row["comment-body"] for row in rows if row.get("moderated", "1").strip() != "-1"]
    out = len(rows) - len(kept)
    return _stated(kept), ["the votes", *([f"{out} comments that the moderators took out"] if out else [])]


def _stated(texts: Sequence[Any]) -> list[Said]:
    """Statements about an answer, and requests to choose one, which are comparisons."""
    said: list[Said] = []
    for text in texts:
        if not isinstance(text, str):
            raise TypeError
        if _TURN.search(text):  # the 2022 paper's worked examples lie beside its requests
            raise ValueError("a conversation, with turns such as 'Human:', where a statement should be")
        one = re.sub(r"\A\s*(?:(?:\d{1,4}[.)]|[-*\u2022])\s+)?|\s*\bOptions:\s*\Z", "", text).strip()
        if one:
            said.append(Said(None, {"comparison" if _CHOOSES.match(one) else "statement": one}))
    return said


_TURN = re.compile(r"\n\s*(?:Human|User|Assistant):")
_CHOOSES = re.compile(
    r"(?i)(?:please\s+)?(?:choose|select|prefer|pick|prioriti[sz]e|favou?r|compare|consider|which)\s+"
    r"(?:\w+\s+){0,8}?(?:responses?|answers?|outputs?|samples?|one)\b"
)

_READERS: dict[Form, Callable[[Any], Read]] = {"bai-2022": _bai, "llm-swarm": _swarm, "icai": _icai, "list": _listed}
