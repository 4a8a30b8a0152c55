"""The calls of one row as they were asked, rebuilt from what its run keeps, and proven by their content addresses.

The journal keeps the answers, not the prompts: those would be ten times as large, and all that they are made of is in
the run already: the row's conversation, the templates and the constitution as the stage used them, its settings. So the
row's own coroutine (`revise.py`, `label.py`) is run once more, with an `ask` that looks each answer up in the journal
and asks no model. A request is what was sent if its content address is the key that stands in the tables: whatever was
changed since, a word of a template or a turn of the conversation, would give another one.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cai.calls import Ask
from cai.constitution import Constitution
from cai.engines import Completion, Request
from cai.engines.scripted import ScriptedEngine
from cai.errors import BadInput, EngineGaveUp, RowDropped
from cai.journal import Entry, completion_of
from cai.kept import kept_constitution
from cai.label import judge
from cai.revise import Roles, generate, revise
from cai.rows import Pair, Row, shortenable
from cai.seal import Json
from cai.settings import GenerateSettings, ReviseSettings
from cai.settings_parts import JudgeSettings
from cai.store import Run
from cai.templates import JUDGE, SUPERVISED, Templates, load_kept_templates, template_files

# The template that makes the last turn of a call, by what the call is for.
TEMPLATE_OF = {
    "response": "respond",
    "choice": "choose",
    "gate": "gate",
    "critique": "critique",
    "revision": "revise",
    "verdict": "judge",
    "kept": "judge_alone",
    "reasoning": "judge_reasoned",
}
Find = Callable[[str], Entry | None]
Told = GenerateSettings | ReviseSettings | JudgeSettings


class CannotRebuild(Exception):
    """The calls of a row cannot be asked once more; the message is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The requests of a row's calls by their keys, in the order in which they were asked.

    `whole` says that every one of them has its answer in the journal. If not, `missing` is the first without one: from
    there on the row cannot be followed.
    """

    requests: Mapping[str, Request]
    missing: str | None

    @property
    def whole(self) -> bool:
        return self.missing is None


@dataclass(frozen=True, slots=True)
class Texts:
    """What a stage of a run asked with, as the run keeps it: its settings, models, templates and constitution."""

    stage: str
    settings: Json
    models: Mapping[str, str]
    templates: Templates
    constitution: Constitution | None
    told: Told


def kept_texts(run: Run, stage: str) -> Texts:
    """What a stage of a run asked with.

    Raises CannotRebuild if a copy is missing or is not what was used, or if a setting is one of another version of cai.
    """
    belongs = run.settings()[stage]
    settings, texts = belongs["settings"], belongs["texts"]
    folder = run.folder / "inputs" / stage
    try:
        templates = load_kept_templates(folder, *_templates(stage, settings))
        constitution = kept_constitution(run, stage)
    except BadInput as error:
        raise CannotRebuild(str(error)) from error
    if templates.sha != texts.get("templates_sha"):
        found = "are not those that the stage used" if templates.texts else "are not there"
        raise CannotRebuild(f"{folder}: the templates {found}; cai {stage}, given once more, copies them again.")
    if constitution is None and stage != "generate":
        raise CannotRebuild(f"{folder}: the constitution is not there; cai {stage}, given once more, copies it again.")
    return Texts(stage, settings, belongs["models"], templates, constitution, _told(stage, settings))


def used_texts(folder: Path, stage: str, settings: Json) -> dict[str, str] | None:
    """The texts of the templates that a stage of these settings used, by file; None if a copy of one is not there.

    A stage that was given anew with other settings may have left others beside them.
    """
    try:
        return {
            name: (folder / name).read_bytes().decode("utf-8") for name in template_files(*_templates(stage, settings))
        }
    except (OSError, UnicodeDecodeError):
        return None


def _templates(stage: str, settings: Json) -> tuple[tuple[str, ...], bool]:
    """The names of the templates that a stage of these settings used, and whether with their examples."""
    mode = settings.get("judge_mode", JudgeSettings().judge_mode)
    names = ("respond",) if stage == "generate" else SUPERVISED if stage == "revise" else JUDGE[mode]
    return names, settings.get("few_shot") == "on"


async def rebuild(texts: Texts, item: Row | Pair, find: Find, principles: tuple[str, ...] | None = None) -> Rebuilt:
    """The calls of a row, or of a pair that these `principles` judged. `find` looks a key up in the journal."""
    ask = _Recorder(find)
    with suppress(RowDropped, _NotKept):  # as it ended then; or as far as the journal goes
        await work_again(texts, item, ask, principles)
    return Rebuilt(ask.requests, ask.missing)


async def work_again(texts: Texts, item: Row | Pair, ask: Ask, principles: tuple[str, ...] | None = None) -> object:
    """What a row, or a pair that these `principles` judged, comes to with the answers that `ask` has."""
    work = _work(texts, item, principles)
    return await work(shortenable(item) if texts.settings.get("long_prompts") == "shorten" else item, ask)


def _work(texts: Texts, item: Row | Pair, principles: tuple[str, ...] | None) -> Callable[[Any, Ask], Any]:
    models = {role: ScriptedEngine(_unasked, model) for role, model in texts.models.items()}
    templates, constitution, told = texts.templates, texts.constitution, texts.told
    if texts.stage == "generate":
        assert isinstance(told, GenerateSettings)
        engine, sampling = models["generator"], told.response()
        return partial(generate, generator=engine, templates=templates, seed=told.seed, sampling=sampling)
    assert constitution is not None
    if isinstance(told, ReviseSettings):
        roles = Roles(models["generator"], models["critic"], models["reviser"])
        return partial(revise, roles=roles, constitution=constitution, templates=templates, method=told.method())
    assert isinstance(told, JudgeSettings)
    judging = partial(judge, judge=models["judge"], constitution=constitution, templates=templates)
    named = {item.pair_id: principles} if isinstance(item, Pair) and principles is not None else None
    return partial(judging, method=told.judging(), principles=named)


def _told(stage: str, kept: Json) -> Told:
    """The settings that a run keeps, those that decide nothing left as they are by default."""
    kind: Any = {"generate": GenerateSettings, "revise": ReviseSettings}.get(stage, JudgeSettings)
    others = {} if kind is JudgeSettings else {"prompts": "-", "out": "-"}
    try:
        return kind.model_validate({name: value for name, value in kept.items() if name in kind.model_fields} | others)
    except ValidationError as error:
        raise CannotRebuild(f"the settings of cai {stage} are not of this version of cai ({error}).") from error


class _NotKept(Exception):
    """The journal has no answer to a call, so what came after it is not known."""


@dataclass(slots=True)
class _Recorder:
    """An `ask` that asks nobody: the answers are the journal's, the requests are written down."""

    find: Find
    requests: dict[str, Request] = field(default_factory=dict[str, Request])
    missing: str | None = None

    async def __call__(self, engine: Any, request: Request) -> tuple[str, Completion]:
        key = request.key(engine.model)
        self.requests[key] = request
        entry = self.find(key)
        if entry is None:
            self.missing = self.missing or key
            raise _NotKept(key)
        return key, completion_of(entry)


def _unasked(request: Request) -> Completion:
    raise EngineGaveUp(f"nothing is asked while calls are rebuilt, and this was: {request.purpose}")
