"""The settings of each flow: one model is the command line, the YAML file, and the deployment's parameters.

It stops at the stage: what lies below gets the few values that it uses.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cai.engines import Sampling, Spec
from cai.errors import BadInput
from cai.files import find_shipped, shipped_names
from cai.revise import Method


def _switch(value: object) -> object:
    # YAML reads the words on and off as booleans.
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Several = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_list)]
Switch = Annotated[Literal["on", "off"], BeforeValidator(_switch)]
Name = Annotated[str, Field(min_length=1)]
Temperature = Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1)]
Tokens = Annotated[int, Field(ge=1, le=131_072)]

# Settings that say where, how fast or how carefully, but not what; they may change from one session of a run to the
# next. Models, constitution and templates are compared by their revisions and digests instead of by the names given
# here.
NOT_COMPARED = frozenset(
    {
        *("out", "prompts", "limit", "strict", "reuse", "slots", "rows_in_flight"),
        *("endpoint", "critic_endpoint", "reviser_endpoint", "timeout_seconds", "deadline_seconds", "retries"),
        *("engine", "model", "critic", "reviser", "constitution", "templates"),
    }
)


class GenerateSettings(BaseModel):
    """Answer prompts with a model: K responses per prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompts: Name = Field(description="Prompts: a .jsonl, .parquet or .csv file, or datasets:NAME[:CONFIG]:SPLIT.")
    out: Name = Field(description="Folder of the run. The same command with the same folder goes on where it stopped.")
    model: str | None = Field(
        default=None, description="A Hugging Face id, a local folder, or 'embedded' (the default without --endpoint)."
    )
    engine: Literal["auto", "transformers", "server", "scripted"] = Field(
        default="auto", description="What runs the model; auto: a server if --endpoint is given, else transformers."
    )
    endpoint: Several = Field(
        default=(), description="Address of an OpenAI-compatible server; may be given several times."
    )
    limit: int | None = Field(default=None, ge=1, description="Read only so many prompts.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Run seed; all sampling seeds and choices are derived from it."
    )
    samples: int = Field(default=1, ge=1, le=64, description="Responses per prompt.")
    temperature: Temperature = Field(default=1.0, description="Temperature of the response.")
    top_p: TopP = Field(default=1.0, description="Nucleus sampling, for all sampled text.")
    max_tokens: Tokens = Field(default=512, description="Token limit of the response.")
    templates: str | None = Field(
        default=None, description="Folder with templates that come before ./prompts and the shipped ones."
    )
    strict: bool = Field(default=False, description="A record that cannot be used is an error instead of a drop.")
    reuse: Several = Field(
        default=(), description="Folder of another run whose finished calls may be used; may be given several times."
    )
    shard_rows: int = Field(default=256, ge=1, le=100_000, description="Prompts in one Parquet file.")
    slots: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Calls that the engine works on at once (transformers: 32, server: 64 an endpoint).",
    )
    rows_in_flight: int | None = Field(
        default=None, ge=1, le=65_536, description="Rows worked on at once; default: twice the slots."
    )
    timeout_seconds: float = Field(default=300.0, gt=0, description="Server: time for one try of a call.")
    deadline_seconds: float = Field(default=900.0, gt=0, description="Server: time for a call with all its retries.")
    retries: int = Field(default=6, ge=0, le=20, description="Server: retries of a call, with backoff and jitter.")
    send_seed: bool = Field(
        default=True, description="Server: send each call's seed (vLLM's CPU build cannot take one)."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run code that comes with the model. Only for models you trust."
    )

    def response(self) -> Sampling:
        return Sampling(self.max_tokens, self.temperature, self.top_p)

    def spec(self, model: str | None = None, endpoints: tuple[str, ...] = ()) -> Spec:
        """The engine to open: the generator's, or with `model` or `endpoints` another that is otherwise like it."""
        model = model or (None if endpoints else self.model)
        endpoints = endpoints or self.endpoint
        if model is None and not endpoints and self.engine in ("auto", "transformers"):
            model = "embedded"
        return Spec(
            kind=self.engine,
            model=model,
            endpoints=endpoints,
            slots=self.slots,
            timeout_seconds=self.timeout_seconds,
            deadline_seconds=self.deadline_seconds,
            retries=self.retries,
            send_seed=self.send_seed,
            trust_remote_code=self.trust_remote_code,
        )

    def compared(self) -> dict[str, Any]:
        """The settings that make the data what it is: a run folder belongs to one set of them."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in NOT_COMPARED}


class ReviseSettings(GenerateSettings):
    """Answer prompts, then criticise and revise the answers against a constitution, round by round."""

    constitution: Name = Field(
        default="harmlessness",
        description="A constitution file, or a name in ./constitutions or among the shipped ones.",
    )
    rounds: int = Field(default=2, ge=0, le=8, description="Rounds of critique and revision.")
    gate: Switch = Field(
        default="on", description="Ask first whether the principle is broken, and leave clean answers alone."
    )
    gate_threshold: float = Field(
        default=0.5, ge=0, le=1, description="Probability of 'broken' from which an answer is revised."
    )
    principles: Literal["fitting", "one", "all"] = Field(
        default="fitting",
        description="Principles per round: the one that fits the row best, one drawn by hash, or all in turn.",
    )
    wording: Literal["short", "detailed"] = Field(
        default="detailed", description="Set of templates: short for small models, detailed for large ones."
    )
    few_shot: Switch = Field(default="off", description="Show worked examples in gate, critique and revision.")
    critique_temperature: Temperature = Field(default=0.7, description="Temperature of the critique.")
    critique_max_tokens: Tokens = Field(default=256, description="Token limit of the critique.")
    revision_temperature: Temperature = Field(default=0.7, description="Temperature of the revision.")
    revision_max_tokens: Tokens = Field(default=512, description="Token limit of the revision.")
    revision_tries: int = Field(
        default=2,
        ge=1,
        le=8,
        description="How often a revision that fails a check is asked for, each with another seed.",
    )
    failed_revision: Literal["drop", "keep"] = Field(
        default="drop",
        description="If no try passes and none did before: drop the row, or keep it with its first response.",
    )
    critic: str | None = Field(default=None, description="Model for gate and critique; default: the generator.")
    critic_endpoint: Several = Field(default=(), description="Server of the critic; may be given several times.")
    reviser: str | None = Field(default=None, description="Model for the revision; default: the generator.")
    reviser_endpoint: Several = Field(default=(), description="Server of the reviser; may be given several times.")

    def method(self) -> Method:
        return Method(
            seed=self.seed,
            response=self.response(),
            rounds=self.rounds,
            gate_threshold=self.gate_threshold if self.gate == "on" else None,
            principles=self.principles,
            critique=Sampling(self.critique_max_tokens, self.critique_temperature, self.top_p),
            revision=Sampling(self.revision_max_tokens, self.revision_temperature, self.top_p),
            revision_tries=self.revision_tries,
            failed_revision=self.failed_revision,
        )


S = TypeVar("S", bound=GenerateSettings)


def load_settings(kind: type[S], config: str | None, given: Mapping[str, Any]) -> S:
    """Settings from a YAML file (a path, or the name of a recipe), with what is `given` on top.

    Raises BadInput for an unknown key, a wrong type or a value out of bounds; it names the file and line, or the
    option.
    """
    path, from_file, lines = _read_config(config) if config is not None else (None, {}, {})
    for key in from_file:
        if key not in kind.model_fields:
            close = difflib.get_close_matches(str(key), list(kind.model_fields), n=1)
            remedy = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(kind.model_fields)}."
            raise BadInput(
                f"{path}:{lines.get(key, 1)}", f"the unknown setting '{key}'", "a setting of this command", remedy
            )
    try:
        return kind.model_validate({**from_file, **given})
    except ValidationError as error:
        one = error.errors()[0]
        name = str(one["loc"][0])
        option = "--" + name.replace("_", "-") if name != "prompts" else "PROMPTS"
        if one["type"] == "missing":
            raise BadInput(option, "nothing", "a value", "Give it on the command line or in --config FILE.") from None
        place = option if name in given or path is None else f"{path}:{lines.get(name, 1)}"
        found = f"{one['input']!r}" + ("" if place == option else f" for '{name}'")
        expected = one["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise BadInput(place, found, expected, kind.model_fields[name].description or "") from None


def _read_config(config: str) -> tuple[Path, dict[str, Any], dict[str, int]]:
    path = find_shipped("flows/recipes", config, ".yaml")
    if path is None:
        known = ", ".join(shipped_names("flows/recipes", ".yaml"))
        raise BadInput("--config", f"no file and no recipe '{config}'", "a YAML file or a recipe", f"Recipes: {known}.")
    try:
        text = path.read_text(encoding="utf-8")
        data, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        brief = " ".join(str(error).split())
        raise BadInput(str(path), f"text that is not YAML ({brief})", "a YAML file of settings", "Mend it.") from error
    if not isinstance(data, dict) or not isinstance(node, yaml.MappingNode):
        raise BadInput(str(path), "no settings", "lines such as 'rounds: 2'", "See flows/recipes/demo.yaml.")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            found = f"the setting '{key.value}' a second time"
            raise BadInput(f"{path}:{line}", found, "each setting once", "Remove one of them.")
        lines[key.value] = line
    return path, data, lines
