"""Constitutions: find, load, validate with file and line, digest.

A constitution is a text that people sign, so what is not in the schema is an error, and its digest is the sha256 of the
file as it lies on disk: an auditor checks it with `sha256sum`.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from cai.constitution_mistakes import in_schema, in_value, in_yaml, unreadable
from cai.errors import BadInput
from cai.files import find_shipped, shipped_names
from cai.plain_yaml import read_yaml
from cai.texts import is_seen


def _seen(text: str) -> str:
    """A wording of unseen characters alone would be asked by a model and read by nobody."""
    if not is_seen(text):
        raise PydanticCustomError("unseen", "some wording")
    return text


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(_seen)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
# The wordings of a principle, in the order in which people read them.
WORDINGS = ("statement", "rationale", "critique", "revision", "comparison")
# Where a text stands in the data of a file: keys of objects and numbers in lists, from the outside in.
At = tuple[str | int, ...]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Example(_Strict):
    """What the authors mean: a prompt, an answer that keeps the principle, and one that breaks it."""

    prompt: Text = Field(description="What a user asks.")
    better: Text = Field(description="An answer that keeps the principle.")
    worse: Text = Field(description="An answer that breaks it.")

    @model_validator(mode="after")
    def _two_answers(self) -> Self:
        if self.better == self.worse:
            raise PydanticCustomError("same_answers", "two different answers, better and worse")
        return self


class Reference(_Strict):
    """A place in a published framework that the principle answers to."""

    framework: Text = Field(description="For example NIST AI 600-1.")
    clause: Text = Field(description="The section, article or risk in that framework.")


class Principle(_Strict):
    """One written principle. The wording here is what the model is asked with; templates only hold the structure."""

    id: Slug = Field(
        description="Short, lower case, with hyphens. It goes into every row, so it never changes its meaning."
    )
    statement: Text = Field(description="What a good answer does, in one or two plain sentences.")
    rationale: Text = Field(description="Why, for the people who sign it. Never shown to a model.")
    critique: Text = Field(description="The request to find where an answer breaks the principle.")
    revision: Text = Field(description="The request to rewrite the answer so that it keeps the principle.")
    comparison: Text = Field(description="The question by which two answers are compared.")
    weight: float = Field(
        default=1.0, gt=0, le=1000, allow_inf_nan=False, description="How often it is chosen, against the others."
    )
    refusal_is_fine: bool = Field(
        default=False, description="A plain refusal never breaks it, so that the gate need not ask."
    )
    tags: tuple[Slug, ...] = Field(default=(), strict=False, description="For grouping in reports.")
    examples: tuple[Example, ...] = Field(
        default=(), strict=False, description="Prompts with a better and a worse answer."
    )
    references: tuple[Reference, ...] = Field(default=(), strict=False, description="Frameworks that ask for the same.")
    filled_in: tuple[Literal["statement", "rationale", "critique", "revision", "comparison"], ...] = Field(
        default=(),
        strict=False,
        description="The wordings that cai constitution import made up because the source has none. Take a name out "
        "once people have written that wording.",
    )

    def __hash__(self) -> int:  # pydantic's own goes through every field; rendered texts are looked up by principle
        return hash(self.id)


class Source(_Strict):
    """Where an imported constitution comes from."""

    name: Text = Field(description="The file or the address, as it was given.")
    form: Text = Field(description="The published form in which it was read.")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="The digest of the file that was imported."
    )
    left_out: tuple[Text, ...] = Field(
        default=(), strict=False, description="What the file has beside that and cai has no place for."
    )


class _File(_Strict):
    """A constitution for cai: the principles by which a model's answers are criticised, revised and judged."""

    name: Slug = Field(description="The constitution's name; it goes into every row.")
    version: Text = Field(description="Your own numbering, as text.")
    description: Text = Field(description="What it is for and whom it speaks for.")
    question: Text | None = Field(
        default=None,
        description="One yes-or-no question for the gate, over all principles: yes means that an answer breaks one.",
    )
    source: Source | None = Field(default=None, description="Where it was imported from, if it was.")
    principles: list[Principle] = Field(min_length=1, description="In the order in which people should read them.")


@dataclass(frozen=True, slots=True)
class Constitution:
    """A loaded constitution. `sha` is the sha256 of the file at `path`; `text` is that file, for the run's copy."""

    name: str
    version: str
    description: str
    question: str | None
    principles: tuple[Principle, ...]
    path: Path
    text: str
    sha: str
    source: Source | None = None

    def weights(self) -> dict[str, float]:
        """Principle ids with their weights, as `ids.choose` takes them."""
        return {principle.id: principle.weight for principle in self.principles}

    def principle(self, principle_id: str) -> Principle:
        """The principle with this id. Raises KeyError if there is none."""
        for principle in self.principles:
            if principle.id == principle_id:
                return principle
        raise KeyError(principle_id)


def load_constitution(name: str) -> Constitution:
    """Load a constitution by path, or by name from ./constitutions and then from those that are shipped.

    Raises BadInput, with file and line, for the first thing that the schema does not allow.
    """
    path = find_constitution(name)
    problems, file, text = _check(path)
    if problems or file is None:
        raise problems[0]
    sha = hashlib.sha256(text.encode("utf-8")).hexdigest()  # not of the file, which may be another one by now
    return Constitution(
        file.name, file.version, file.description, file.question, tuple(file.principles), path, text, sha, file.source
    )


def find_constitution(name: str) -> Path:
    """The file that a path or a name means. Raises BadInput if there is none."""
    path = find_shipped("constitutions", name, ".yaml")
    if path is None:
        known = ", ".join(shipped_names("constitutions", ".yaml"))
        raise BadInput(name, "no such constitution", "a YAML file or a known name", f"Known names: {known}.")
    return path


def check_constitution(path: Path) -> list[BadInput]:
    """Everything that is wrong with the file at `path`, in the order of its lines. Empty if nothing is."""
    return _check(path)[0]


def check_text(text: str, path: Path) -> list[BadInput]:
    """The same for a text that is to become the file at `path`."""
    return _parse(text, path)[0]


def line_numbers(text: str) -> dict[At, int]:
    """The line of each key and item in the text of a constitution that has no mistake."""
    return _lines(read_yaml(text)[1], Path())[0]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the format, for editors; published as constitutions/schema.json."""
    schema = _File.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "cai constitution"}


def _check(path: Path) -> tuple[list[BadInput], _File | None, str]:
    try:
        text = path.read_bytes().decode("utf-8")  # line ends as they are: the digest is of the bytes
    except (OSError, UnicodeDecodeError) as error:
        return [unreadable(path, error)], None, ""
    return _parse(text, path)


def _parse(text: str, path: Path) -> tuple[list[BadInput], _File | None, str]:
    try:
        data, node = read_yaml(text)
    except yaml.YAMLError as error:
        return [in_yaml(path, text, error)], None, text
    except (ValueError, RecursionError) as error:  # a date that is none, an anchor that holds itself
        return [in_value(path, error)], None, text
    lines, problems = _lines(node, path)
    file = None
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        problems += [
            in_schema(
                f"{path}:{line_at(lines, one['loc'])}", one["loc"], one["type"], one["msg"], one.get("input"),
                _keys_beside(one["loc"]), data,
            )
            for one in error.errors()
        ]  # fmt: skip
    else:
        problems += _duplicate_ids(path, lines, file)
    return sorted(problems, key=lambda problem: _line_of(problem.place)), file, text


def _lines(node: yaml.Node | None, path: Path) -> tuple[dict[At, int], list[BadInput]]:
    """The line of each key and item, by its path in the data; and the keys that stand twice, which YAML lets pass."""
    lines: dict[At, int] = {(): 1}
    problems: list[BadInput] = []

    seen: set[int] = set()  # an anchor may stand in several places, and even in itself

    def walk(node: yaml.Node | None, at: At) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                line = key.start_mark.line + 1
                if (*at, key.value) in lines:
                    problems.append(
                        BadInput(
                            f"{path}:{line}",
                            f"the key '{key.value}' a second time",
                            "each key once",
                            "Remove one of them.",
                        )
                    )
                lines[(*at, key.value)] = line
                walk(value, (*at, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*at, index)] = value.start_mark.line + 1
                walk(value, (*at, index))

    walk(node, ())
    return lines, problems


def line_at(lines: dict[At, int], at: At) -> int:
    """The line of a place in the file, or of the innermost one around it that has one."""
    if at and (written := (*at[:-1], str(at[-1]))) in lines:  # a number as a key
        return lines[written]
    return next(lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines)


def _keys_beside(at: At) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "principles": Principle, "examples": Example, "references": Reference, "source": Source
    }  # fmt: skip
    parents = [part for part in at[:-1] if isinstance(part, str)]
    return list((models.get(parents[-1], _File) if parents else _File).model_fields)


def _duplicate_ids(path: Path, lines: dict[At, int], file: _File) -> list[BadInput]:
    seen: dict[str, int] = {}
    problems: list[BadInput] = []
    for index, principle in enumerate(file.principles):
        line = lines.get(("principles", index, "id"), lines.get(("principles", index), 1))
        if principle.id in seen:
            found = f"the principle id '{principle.id}' again (first on line {seen[principle.id]})"
            problems.append(BadInput(f"{path}:{line}", found, "each id once", "Give one of them another id."))
        seen.setdefault(principle.id, line)
    return problems


def _line_of(place: str) -> int:
    match = re.search(r":(\d+)$", place)
    return int(match.group(1)) if match else 0
