"""Templates: load, check for undefined variables, render in a sandbox, fence, digest.

Templates hold the structure of what a model is asked, principles hold the wording, few-shot files hold examples. Text
from people and from models goes in as values and is never rendered as a template. Where such text is quoted, the filter
`fence` puts it between two lines that the text itself cannot contain.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import jinja2
import yaml
from jinja2 import meta, nodes
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from cai.constitution import Principle
from cai.errors import BadInput
from cai.files import find_in
from cai.ids import digest
from cai.plain_yaml import read_yaml
from cai.rows import Message
from cai.sandbox import EXPECTED, Refused, checked, environment
from cai.texts import phrases

# What each template may use. A name that is not listed here is an error when the template is loaded, before a model
# runs.
VARIABLES: dict[str, frozenset[str]] = {
    "respond": frozenset(),
    "choose": frozenset({"options"}),
    "gate": frozenset({"principle", "question", "examples"}),
    "critique": frozenset({"principle", "examples"}),
    "revise": frozenset({"principle", "examples"}),
    "judge": frozenset({"principle", "conversation", "first", "second"}),
    "judge_reasoned": frozenset({"principle", "conversation", "first", "second"}),
    "judge_letter": frozenset({"principle"}),
    "judge_alone": frozenset({"principle"}),
}
_OF_A_ROW = frozenset({"conversation", "first", "second"})
# Which of them the supervised phase uses, and which each mode of the judge.
SUPERVISED = ("respond", "choose", "gate", "critique", "revise")
JUDGE = {"logprob": ("judge",), "reasoned": ("judge_reasoned", "judge_letter"), "pointwise": ("judge_alone",)}
# The few-shot files, and what each of their examples must have beside question, answer, principle and broken.
EXAMPLES_NEED: dict[str, tuple[str, ...]] = {"gate": (), "critique": ("critique",), "revise": ("critique", "revision")}

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
    """A loaded set. `sha` is the digest of all texts; `texts` are the files by name, kept for the run's copy; `shown`
    are the phrases of the few-shot examples, by which a copy of them is known.

    With `few_shot` off the examples are empty everywhere and their files are not part of the digest.
    """

    compiled: Mapping[str, jinja2.Template]
    examples: Mapping[str, tuple[FewShot, ...]]
    texts: Mapping[str, str]
    paths: Mapping[str, Path]
    sha: str
    shown: frozenset[str]
    # What does not depend on a row is rendered once; the sandbox takes its time.
    _rendered: dict[object, str] = field(default_factory=dict[object, str], compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # Compiled code does not travel to another process; there it is compiled from the same texts.
        return _compiled_anew, (self.examples, self.texts, self.paths, self.sha, self.shown)

    def render(self, name: str, principle: Principle | None = None, **given: object) -> str:
        """The text of template `name`, stripped of outer white space.

        `given` are `question`, the constitution's own for the gate; `options`, the letters and principles for the
        choice; `conversation`, `first` and `second`, the messages and the two answers that are compared.
        """
        if given.keys() & _OF_A_ROW:
            return self._render(name, principle, given)
        known = (name, principle, *given.items())
        if known not in self._rendered:
            self._rendered[known] = self._render(name, principle, given)
        return self._rendered[known]

    def _render(self, name: str, principle: Principle | None, given: Mapping[str, object]) -> str:
        values: dict[str, Any] = {"question": None, "options": (), "examples": self.examples.get(name, ()), **given}
        values["principle"] = principle
        return self.compiled[name].render({key: values[key] for key in VARIABLES[name]}).strip()


def load_templates(
    folder: str | None = None,
    wording: str = "detailed",
    few_shot: bool = False,
    principles: Sequence[Principle] = (),
    question: str | None = None,
    names: Sequence[str] = SUPERVISED,
) -> Templates:
    """Load the templates `names` and, with `few_shot`, their examples.

    A file is taken from FOLDER/WORDING or `folder` if it is there, else from ./prompts/WORDING or ./prompts, else from
    those that are shipped: `wording` is the set for small models ("short") or for large ones ("detailed"), and what
    both have in common lies above them. Each template is rendered once with each of `principles`, with and
    without the constitution's `question`, so that its faults are found before a model runs. Raises BadInput, with
    file and line where there is one, for a syntax error, an undefined variable, a template that renders to nothing, a
    file that no template has, or a few-shot file that does not fit its schema.
    """
    if folder is not None:
        _check_folder(Path(folder))
    made = environment()
    templates = _loaded(made, {file: _path(folder, wording, file) for file in template_files(names, few_shot)})
    for principle in principles:
        _try_each(templates, principle, question)
    return templates


def load_kept_templates(folder: Path, names: Sequence[str], few_shot: bool) -> Templates:
    """The copies that a run keeps in `folder` of the templates `names` and, with `few_shot`, of their examples.

    What is not there is left out, and the digest is then another one. Raises BadInput as `load_templates` does.
    """
    paths = {file: folder / file for file in template_files(names, few_shot)}
    return _loaded(environment(), {file: path for file, path in paths.items() if path.is_file()})


def template_files(names: Sequence[str], few_shot: bool) -> list[str]:
    """The names of the files of the templates `names` and, with `few_shot`, of their examples."""
    return [f"{name}.jinja" for name in names] + [f"{name}.examples.yaml" for name in EXAMPLES_NEED if few_shot]


def _loaded(made: jinja2.Environment, paths: Mapping[str, Path]) -> Templates:
    """The templates and examples in these files, by the files' names."""
    texts = {name: _read(path) for name, path in paths.items()}
    names = [file.removesuffix(".jinja") for file in texts if file.endswith(".jinja")]
    compiled = {name: _compile(made, name, paths[f"{name}.jinja"], texts[f"{name}.jinja"]) for name in names}
    examples_of = [(name, file) for name in EXAMPLES_NEED if (file := f"{name}.examples.yaml") in texts]
    examples = {name: _examples(paths[file], texts[file], EXAMPLES_NEED[name]) for name, file in examples_of}
    told = [text for group in examples.values() for one in group for text in _told(one)]
    shown = frozenset(phrase for text in told for phrase in phrases(text))
    return Templates(compiled, examples, texts, paths, digest(texts), shown)


def _compiled_anew(
    examples: Mapping[str, tuple[FewShot, ...]],
    texts: Mapping[str, str],
    paths: Mapping[str, Path],
    sha: str,
    shown: frozenset[str],
) -> Templates:
    names = [file.removesuffix(".jinja") for file in texts if file.endswith(".jinja")]
    made = environment()
    compiled = {name: _compile(made, name, paths[f"{name}.jinja"], texts[f"{name}.jinja"]) for name in names}
    return Templates(compiled, examples, texts, paths, sha, shown)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        remedy = "Leave --templates out for the shipped ones."
        raise BadInput(str(folder), "no such folder", "a folder with *.jinja files", remedy)
    known = [f"{name}.jinja" for name in VARIABLES] + [f"{name}.examples.yaml" for name in EXAMPLES_NEED]
    places = [place for place in (folder, folder / "short", folder / "detailed") if place.is_dir()]
    files = sorted(path for place in places for path in place.iterdir() if path.suffix in (".jinja", ".yaml", ".yml"))
    for path in files:
        if path.name not in known:
            close = difflib.get_close_matches(path.name, known, n=1)
            remedy = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."
            raise BadInput(str(path), "a file that no template has", "a known name", remedy)
    if not files:
        raise BadInput(str(folder), "no template", f"at least one of {', '.join(known)}", "Leave --templates out.")


def _told(example: FewShot) -> list[str]:
    return [text for text in (example.question, example.answer, example.critique, example.revision) if text]


def _path(folder: str | None, wording: str, name: str) -> Path:
    roots = [Path(folder)] if folder is not None else []
    roots = [*roots, Path("prompts")]
    path = find_in([place for root in roots for place in (root / wording, root)], name)
    assert path is not None, f"the package lacks prompts/{wording}/{name}"
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(str(path), f"a file that cannot be read ({error})", "UTF-8 text", "Check the file.") from error


def _compile(made: jinja2.Environment, name: str, path: Path, text: str) -> jinja2.Template:
    allowed = VARIABLES[name]
    try:
        tree = checked(made, made.parse(text))  # first: what follows works out what it can
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
        return made.from_string(tree)
    except Refused as refused:
        raise BadInput(f"{path}:{refused.line}", refused.found, EXPECTED, "Mend that line.") from None
    except jinja2.TemplateSyntaxError as error:
        raise BadInput(
            f"{path}:{error.lineno}", error.message or "a syntax error", "a Jinja template", "Mend that line."
        ) from error
    except (RecursionError, SyntaxError, MemoryError) as error:
        raise BadInput(str(path), "expressions too deep within each other", EXPECTED, "Make it simpler.") from error


def _try_each(templates: Templates, principle: Principle, question: str | None) -> None:
    for name, asked in product(templates.compiled, {None, question}):
        path = templates.paths[f"{name}.jinja"]
        try:
            text = templates.render(
                name, principle, question=asked, options=(("A", principle),),
                conversation=(Message("user", "?"),), first="first", second="second",
            )  # fmt: skip
        except Exception as error:  # a template is a small program, and may fail in any way
            place = f"{path}:{_line_in(error) or 1}"
            found = f"{error or type(error).__name__} (for the principle '{principle.id}')"
            raise BadInput(place, found, "a template that renders", "Mend that line.") from error
        if not text and name != "respond":
            raise BadInput(str(path), "a template that renders to nothing", "a request to the model", "Write it.")


def _line_in(error: BaseException) -> int | None:
    # Jinja rewrites its tracebacks so that frames of a template carry the template's own lines.
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _examples(path: Path, text: str, needs: Sequence[str]) -> tuple[FewShot, ...]:
    try:
        examples = TypeAdapter(tuple[FewShot, ...]).validate_python(tuple(read_yaml(text)[0]))
    except ValidationError as error:
        one = error.errors()[0]
        where = ".".join(str(part) for part in one["loc"])
        found = f"{one['msg']} at '{where}'"
        raise BadInput(str(path), found, "a list of worked examples", "See the shipped file.") from error
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        found = f"text that is not a YAML list ({error})"
        raise BadInput(str(path), found, "a list of worked examples", "See the shipped file.") from error
    for number, example in enumerate(examples):
        for need in needs:
            if getattr(example, need) is None:
                raise BadInput(str(path), f"no '{need}' in example {number}", "one in each example", "Write it.")
    return examples
