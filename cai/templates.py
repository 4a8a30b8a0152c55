"""Templates: load, check for undefined variables, render in a sandbox, fence, digest.

Templates hold the structure of what a model is asked, principles hold the wording, few-shot files hold examples. Text
from people and from models goes in as values and is never rendered as a template. Where such text is quoted, the filter
`fence` puts it between two lines that the text itself cannot contain.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
import yaml
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from cai.constitution import Principle
from cai.errors import BadInput
from cai.files import find_shipped
from cai.ids import digest

# What each template may use. A name that is not listed here is an error when the template is loaded, before a model
# runs.
VARIABLES: dict[str, frozenset[str]] = {
    "respond": frozenset(),
    "gate": frozenset({"principle", "examples"}),
    "critique": frozenset({"principle", "examples"}),
    "revise": frozenset({"principle", "examples"}),
}
EXAMPLE_FILES = ("gate", "critique", "revise")

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class FewShot(BaseModel):
    """One worked example of a few-shot file. A template uses the fields that it needs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    question: _Text = Field(description="What the user asked.")
    answer: _Text = Field(description="What the assistant answered.")
    principle: _Text = Field(description="The statement of the principle that was applied.")
    broken: bool = Field(description="Whether the answer breaks the principle.")
    critique: _Text | None = Field(default=None, description="What a good critique says.")
    revision: _Text | None = Field(default=None, description="What a good revision says.")


@dataclass(frozen=True, slots=True)
class Templates:
    """A loaded set. `sha` is the digest of all texts; `texts` are the files by name, kept for the run's copy.

    With `few_shot` off the examples are empty everywhere and their files are not part of the digest.
    """

    compiled: Mapping[str, jinja2.Template]
    examples: Mapping[str, tuple[FewShot, ...]]
    texts: Mapping[str, str]
    paths: Mapping[str, Path]
    sha: str

    def render(self, name: str, principle: Principle | None = None) -> str:
        """The text of template `name`, stripped of outer white space."""
        values: dict[str, Any] = {"principle": principle, "examples": self.examples.get(name, ())}
        return self.compiled[name].render({key: values[key] for key in VARIABLES[name]}).strip()


def load_templates(folder: str | None, few_shot: bool) -> Templates:
    """Load every template and, with `few_shot`, its examples.

    A file is taken from `folder` if it is there, else from ./prompts, else from those that are shipped. Raises BadInput
    with file and line for a syntax error, an undefined variable, or a few-shot file that does not fit its schema.
    """
    if folder is not None and not Path(folder).is_dir():
        raise BadInput(
            folder, "no such folder", "a folder with *.jinja files", "Leave --templates out for the shipped ones."
        )
    environment = _environment()
    paths = {f"{name}.jinja": _path(folder, name, ".jinja") for name in VARIABLES}
    if few_shot:
        paths |= {f"{name}.examples.yaml": _path(folder, name, ".examples.yaml") for name in EXAMPLE_FILES}
    texts = {name: _read(path) for name, path in paths.items()}
    compiled = {
        name: _compile(environment, paths[f"{name}.jinja"], texts[f"{name}.jinja"], VARIABLES[name])
        for name in VARIABLES
    }
    examples = {
        name: _examples(paths[f"{name}.examples.yaml"], texts[f"{name}.examples.yaml"])
        for name in EXAMPLE_FILES
        if few_shot
    }
    templates = Templates(compiled, examples, texts, paths, digest(texts))
    _try_each(templates)
    return templates


def fence(text: str) -> str:
    """`text` between two lines of backticks longer than any run of backticks in it, so that it cannot close them."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    bar = "`" * max(3, longest + 1)
    return f"{bar}\n{text}\n{bar}"


def _environment() -> ImmutableSandboxedEnvironment:
    # No loader: a template cannot include or import another file, so its digest covers all of it.
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.clear()
    environment.filters["fence"] = fence
    return environment


def _path(folder: str | None, name: str, suffix: str) -> Path:
    if folder is not None and (Path(folder) / f"{name}{suffix}").is_file():
        return Path(folder) / f"{name}{suffix}"
    path = find_shipped("prompts", name, suffix)
    assert path is not None, f"the package lacks prompts/{name}{suffix}"
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(str(path), f"a file that cannot be read ({error})", "UTF-8 text", "Check the file.") from error


def _compile(environment: jinja2.Environment, path: Path, text: str, allowed: frozenset[str]) -> jinja2.Template:
    try:
        tree = environment.parse(text)
        undeclared = meta.find_undeclared_variables(tree) - allowed
        names = [node for node in tree.find_all(nodes.Name) if node.name in undeclared]
        if names:
            first = min(names, key=lambda node: node.lineno)
            known = ", ".join(sorted(allowed)) or "none"
            raise BadInput(
                f"{path}:{first.lineno}",
                f"the undefined variable '{first.name}'",
                f"one of: {known}",
                "Mend that line.",
            )
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise BadInput(
            f"{path}:{error.lineno}", error.message or "a syntax error", "a Jinja template", "Mend that line."
        ) from error


def _try_each(templates: Templates) -> None:
    """Render each template once, so that a misspelt attribute (`principle.statment`) is found before a model runs."""
    words = dict.fromkeys(("statement", "rationale", "critique", "revision", "comparison"), "x")
    principle = Principle(id="x", **words)
    for name in VARIABLES:
        try:
            templates.render(name, principle)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            path = templates.paths[f"{name}.jinja"]
            place = f"{path}:{_line_in(error) or 1}"
            raise BadInput(place, str(error), "a template that renders", "Mend that line.") from error


def _line_in(error: BaseException) -> int | None:
    # Jinja rewrites its tracebacks so that frames of a template carry the template's own lines.
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _examples(path: Path, text: str) -> tuple[FewShot, ...]:
    try:
        return TypeAdapter(tuple[FewShot, ...]).validate_python(tuple(yaml.safe_load(text)))
    except ValidationError as error:
        one = error.errors()[0]
        where = ".".join(str(part) for part in one["loc"])
        raise BadInput(
            str(path), f"{one['msg']} at '{where}'", "a list of worked examples", "See the shipped file."
        ) from error
    except (yaml.YAMLError, TypeError) as error:
        raise BadInput(
            str(path), f"text that is not a YAML list ({error})", "a list of worked examples", "See the shipped file."
        ) from error
