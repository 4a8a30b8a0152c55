"""The settings of each flow: one model is the command line, the YAML file, and the deployment's parameters.

It stops at the stage: what lies below gets the few values that it uses.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cai.cluster import Cluster
from cai.engines import Sampling, Spec
from cai.errors import BadInput, brief_value
from cai.export import ExportMethod
from cai.figures import BOUND_PATTERN, BOUNDS, Bound, bound_of
from cai.files import find_shipped, shipped_names
from cai.label import Judging, Rule
from cai.pairs import Kind
from cai.plain_yaml import read_yaml
from cai.revise import Method
from cai.rows import is_text
from cai.views import Trainer


def _switch(value: object) -> object:
    # YAML reads the words on and off as booleans.
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _count(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _bound(value: str) -> str:
    bound_of(value)
    return value


def _text(value: str) -> str:
    if not is_text(value):
        raise ValueError("text that UTF-8 can hold")
    return value


Told = Annotated[str, AfterValidator(_text)]
Several = Annotated[tuple[Told, ...], Field(strict=False), BeforeValidator(_list)]
# The pattern is for a deployment's schema, by which Prefect's server refuses a value before there is a run.
Bounding = Annotated[str, AfterValidator(_bound), Field(json_schema_extra={"pattern": BOUND_PATTERN})]
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
        *("out", "prompts", "run", "gold", "limit", "strict", "reuse", "replace", "slots", "rows_in_flight"),
        *("endpoint", "critic_endpoint", "reviser_endpoint", "timeout_seconds", "deadline_seconds", "retries"),
        *("engine", "model", "critic", "reviser", "adapter", "engine_option", "constitution", "templates"),
        *("on", "ray_address", "ray_actors", "ray_gpus", "ray_cpus"),
        *("history", "alarm", "review_share", "apply_review", "min_accuracy", "min_decided", "max_flip"),
    }
)


class EngineSettings(BaseModel):
    """What every stage that asks a model has in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    positional: ClassVar[str]  # the field that a command takes as its argument

    model: str | None = Field(
        default=None, description="A Hugging Face id, a local folder, or 'embedded' (the default without --endpoint)."
    )
    engine: Literal["auto", "transformers", "vllm", "server", "scripted"] = Field(
        default="auto", description="What runs the model; auto: a server if --endpoint is given, else transformers."
    )
    endpoint: Several = Field(
        default=(), description="Address of an OpenAI-compatible server; may be given several times."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Run seed; all sampling seeds and choices are derived from it."
    )
    templates: str | None = Field(
        default=None, description="Folder with templates that come before ./prompts and the shipped ones."
    )
    reuse: Several = Field(
        default=(), description="Folder of another run whose finished calls may be used; may be given several times."
    )
    slots: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Calls that the engine works on at once "
        "(transformers: 32, server: 64 an endpoint, vllm: as many as it has room for).",
    )
    long_prompts: Literal["drop", "shorten"] = Field(
        default="drop",
        description="A prompt beyond the model's window: drop the row, or leave the conversation's oldest turns out.",
    )
    rows_in_flight: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Rows worked on at once, at most; default: as many as keep the slots full.",
    )
    timeout_seconds: float = Field(default=300.0, gt=0, description="Server: time for one try of a call.")
    deadline_seconds: float = Field(default=900.0, gt=0, description="Server: time for a call with all its retries.")
    retries: int = Field(default=6, ge=0, le=20, description="Server: retries of a call, with backoff and jitter.")
    send_seed: bool = Field(
        default=True, description="Server: send each call's seed (vLLM's CPU build cannot take one)."
    )
    on: Literal["local", "ray"] = Field(
        default="local",
        description="Where the engines run: in this process, or in actors of a Ray cluster, see docs/ray.md.",
    )
    ray_address: str | None = Field(
        default=None,
        description="Ray: a running cluster, HOST:PORT, or auto for the one on this machine; default: start one here.",
    )
    ray_actors: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Ray: actors, each with engines of its own; default: as many as the GPUs allow, or one per node.",
    )
    ray_gpus: float | None = Field(
        default=None,
        ge=0,
        le=64,
        allow_inf_nan=False,
        description="Ray: GPUs of an actor, under 1 to share one; default: 1 for a model on a cluster that has GPUs.",
    )
    ray_cpus: float = Field(
        default=1.0, ge=0, le=1024, allow_inf_nan=False, description="Ray: CPU cores of an actor, and its threads."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run code that comes with the model. Only for models you trust."
    )

    adapter: str | None = Field(
        default=None, description="vLLM: a LoRA adapter for the model, a folder or a Hugging Face id."
    )
    engine_option: Several = Field(
        default=(), description="vLLM: an engine argument, such as tensor_parallel_size=2; may be given several times."
    )

    @model_validator(mode="after")
    def _whoever_shortens_counts_tokens(self) -> Self:
        fields = type(self).model_fields
        served = any(getattr(self, name) for name in fields if name == "endpoint" or name.endswith("_endpoint"))
        if self.long_prompts == "shorten" and (served or self.engine == "server"):
            raise ValueError("long_prompts shorten with a server, whose window and tokens cai does not know")
        return self

    def spec(self, model: str | None = None, endpoints: tuple[str, ...] = ()) -> Spec:
        """The engine to open: that of `model`, or with arguments another that is otherwise like it, but without the
        adapter, which belongs to the model."""
        adapter = None if model or endpoints else self.adapter
        model = model or (None if endpoints else self.model)
        endpoints = endpoints or self.endpoint
        if model is None and not endpoints and self.engine in ("auto", "transformers", "vllm"):
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
            adapter=adapter,
            options=self.engine_option,
        )

    def specs(self) -> dict[str, Spec]:
        """The engine of each role."""
        return {"generator": self.spec()}

    def actors(self) -> Cluster:
        """The Ray actors to ask for."""
        return Cluster(self.ray_address, self.ray_actors, self.ray_gpus, self.ray_cpus)

    def compared(self) -> dict[str, Any]:
        """The settings that make the data what it is: a run folder belongs to one set of them."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in NOT_COMPARED}


class Comparing(BaseModel):
    """How a session is compared with the ones before."""

    history: Annotated[Name, BeforeValidator(_switch)] = Field(
        default="on",
        description="Folder for the figures of each session, which the next are compared with; on: 'history' beside "
        "the run; off: none.",
    )
    alarm: Annotated[tuple[Bounding, ...], Field(strict=False), BeforeValidator(_list)] = Field(
        default=(),
        description="How far a figure may move before it is said, as in refusal_rate=0.05; may be given several times.",
    )

    def bounds(self) -> dict[str, Bound]:
        """The bound of each figure."""
        return {**BOUNDS, **dict(bound_of(told) for told in self.alarm)}


class GenerateSettings(Comparing, EngineSettings):
    """Answer prompts with a model: K responses per prompt."""

    positional: ClassVar[str] = "prompts"

    prompts: Name = Field(description="Prompts: a .jsonl, .parquet or .csv file, or datasets:NAME[:CONFIG]:SPLIT.")
    out: Name = Field(description="Folder of the run. The same command with the same folder goes on where it stopped.")
    limit: int | None = Field(default=None, ge=1, description="Read only so many prompts.")
    samples: int = Field(default=1, ge=1, le=64, description="Responses per prompt.")
    temperature: Temperature = Field(default=1.0, description="Temperature of the response.")
    top_p: TopP = Field(default=1.0, description="Nucleus sampling, for all sampled text.")
    max_tokens: Tokens = Field(default=512, description="Token limit of the response.")
    strict: bool = Field(default=False, description="A record that cannot be used is an error instead of a drop.")
    shard_rows: int = Field(default=256, ge=1, le=100_000, description="Prompts in one Parquet file.")

    def response(self) -> Sampling:
        return Sampling(self.max_tokens, self.temperature, self.top_p)


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

    def specs(self) -> dict[str, Spec]:
        return {
            "generator": self.spec(),
            "critic": self.spec(self.critic, self.critic_endpoint),
            "reviser": self.spec(self.reviser, self.reviser_endpoint),
        }

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


class JudgeSettings(EngineSettings):
    """How pairs of answers are judged. The judge is `model`."""

    judge_mode: Literal["logprob", "reasoned", "pointwise"] = Field(
        default="pointwise",
        description="One forced letter; a letter after reasoning; or each answer alone, as the last turn it was.",
    )
    judge_principles: Annotated[Literal["all"] | Annotated[int, Field(ge=1, le=1000)], BeforeValidator(_count)] = Field(
        default="all", description="Principles that judge a pair: all, or so many of them, chosen by hash."
    )
    reasoning_temperature: Temperature = Field(default=0.0, description="Temperature of the judge's reasoning.")
    reasoning_max_tokens: Tokens = Field(default=256, description="Token limit of the judge's reasoning.")
    clamp: float = Field(
        default=0.1, gt=0, le=0.5, description="How far the probability of a reasoned verdict may lie from 0.5."
    )
    letters: int = Field(
        default=8, ge=1, le=64, description="Letters to sample where a server gives no log-probabilities."
    )
    min_mass: float = Field(
        default=0.01, ge=0, le=1, description="Probability that must fall on the two words, or a verdict is unread."
    )
    judge_temperature: float = Field(
        default=1.0, gt=0, le=100, description="The judge's log-odds are divided by it; cai calibrate finds it."
    )
    tie_band: float = Field(default=0.02, ge=0, lt=0.5, description="So near to 0.5 a label decides nothing.")
    min_readable: float = Field(
        default=0.5, ge=0, le=1, description="Share of the principles, by weight, that must have been read."
    )
    min_agreement: float = Field(
        default=0.5, ge=0, le=1, description="Share of the principles, by weight, that must side with the label."
    )

    def specs(self) -> dict[str, Spec]:
        return {"judge": self.spec()}

    def judging(self) -> Judging:
        return Judging(
            seed=self.seed,
            mode=self.judge_mode,
            principles=None if self.judge_principles == "all" else self.judge_principles,
            reasoning=Sampling(self.reasoning_max_tokens, self.reasoning_temperature),
            clamp=self.clamp,
            letters=self.letters,
            min_mass=self.min_mass,
            rule=Rule(self.judge_temperature, self.tie_band, self.min_readable, self.min_agreement),
        )


class Labelling(BaseModel):
    """Which pairs are judged, and which of them people are asked about."""

    pairs: Kind = Field(
        default="auto",
        description="Response against final revision, consecutive revisions, two samples, or all of these; auto: "
        "revision where there are trajectories, else samples.",
    )
    review_share: float = Field(
        default=0.05, ge=0, le=1, description="Share of the clear pairs that goes to review.jsonl with the unclear."
    )
    replace: bool = Field(
        default=False, description="Replace labels that were made with other settings; finished calls are kept."
    )


class LabelSettings(Labelling, Comparing, JudgeSettings):
    """Judge pairs of a run's answers against a constitution: pairs, verdicts, labels."""

    positional: ClassVar[str] = "run"

    run: Name = Field(description="Folder of a finished run of cai revise or cai generate; the labels go into it.")
    constitution: str | None = Field(
        default=None, description="A constitution file or name; default: the one that the run was revised with."
    )
    limit: int | None = Field(default=None, ge=1, description="Read only so many rows of the run.")
    apply_review: str | None = Field(
        default=None,
        description="A review.jsonl with people's answers: they come before the judge's. No model is asked, and the "
        "other settings stay those that the labels were made with.",
    )


class JudgeBar(JudgeSettings):
    """How good a judge has to be."""

    min_accuracy: float | None = Field(default=None, ge=0, le=1, description="Exit 1 under this accuracy.")
    min_decided: float = Field(
        default=0.3, ge=0, le=1, description="Share of the pairs that must be decided for --min-accuracy to hold."
    )
    max_flip: float | None = Field(default=None, ge=0, le=1, description="Exit 1 if more verdicts flip with the order.")

    @model_validator(mode="after")
    def _flips_need_an_order(self) -> Self:
        if self.max_flip is not None and self.judge_mode == "pointwise":
            raise ValueError("max_flip with judge_mode pointwise, which has no order")
        return self


class GoldSettings(JudgeBar):
    """How a judge is measured on pairs of which the better answer is known."""

    out: str | None = Field(default=None, description="Folder for the verdicts; default: one of its own per setting.")


class ConstitutionTestSettings(GoldSettings):
    """Judge a constitution's own examples, each by its principle."""

    positional: ClassVar[str] = "constitution"

    constitution: Name = Field(default="harmlessness", description="A constitution file or name.")


class CalibrateSettings(GoldSettings):
    """Judge gold pairs, and measure the judge."""

    positional: ClassVar[str] = "gold"

    gold: Name = Field(description="Gold pairs: .jsonl, .parquet, .csv or datasets:..., with prompt, chosen, rejected.")
    constitution: Name = Field(default="harmlessness", description="A constitution file or name.")
    limit: int | None = Field(default=None, ge=1, description="Read only so many pairs.")
    strict: bool = Field(default=False, description="A record that cannot be used is an error instead of a drop.")
    shard_rows: int = Field(default=256, ge=1, le=100_000, description="Pairs in one Parquet file.")


class Exporting(BaseModel):
    """What goes into a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sft: Literal["final", "all"] = Field(
        default="final", description="Answers for supervised fine-tuning: the final ones, or every revision taken."
    )
    clean_answers: Switch = Field(default="on", description="Responses that the gate left alone go into sft too.")
    helpful: Told | None = Field(
        default=None, description="Helpful answers for sft: a run with responses, or a file with messages."
    )
    helpful_share: float = Field(default=0.5, ge=0, lt=1, description="Share of the sft rows that are helpful ones.")
    test_share: float = Field(default=0.05, ge=0, lt=1, description="Share of the prompts that make the test split.")
    near_duplicates: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Similarity (Jaccard) from which two texts count as one; 1: equal ones only.",
    )
    length_ratio: float | None = Field(
        default=None,
        ge=1,
        allow_inf_nan=False,
        description="Leave a pair out if one answer has so many times the words of the other.",
    )
    decontaminate: Several = Field(
        default=(), description="Evaluation set: rows that share 13 words in a row with it are left out; several times."
    )
    versions: bool = Field(
        default=False,
        description="Add a version to the folder (v0001, v0002, ...) that says what is new; none is ever replaced.",
    )
    licence: Told = Field(default="unknown", description="Licence of the dataset, for its card.")
    trainer: Trainer = Field(
        default="trl",
        description="Files for another trainer beside those that TRL reads.",
        json_schema_extra={"option": "--for"},
    )
    sign: Told | None = Field(
        default=None, description="File with an Ed25519 private key (PEM or OpenSSH) that the dataset is signed with."
    )

    def export_method(self, seed: int) -> ExportMethod:
        return ExportMethod(
            seed=seed,
            sft=self.sft,
            clean_answers=self.clean_answers == "on",
            helpful=self.helpful,
            helpful_share=self.helpful_share,
            test_share=self.test_share,
            near_duplicates=None if self.near_duplicates == 1 else self.near_duplicates,
            length_ratio=self.length_ratio,
            decontaminate=self.decontaminate,
            licence=self.licence,
            trainer=self.trainer,
        )


class ExportSettings(Exporting):
    """Write a run's answers and labels as datasets that trainers load."""

    positional: ClassVar[str] = "run"

    run: Name = Field(description="Folder of a finished run.")
    out: Name = Field(description="Folder for the datasets; an earlier export in it is replaced.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Splits and shares are derived from it.")


class PipelineSettings(ReviseSettings, Labelling, JudgeBar, Exporting):
    """The whole pipeline: revise, label, export. Before that, if gold is given: is the judge good enough?"""

    positional: ClassVar[str] = "prompts"

    dataset: str | None = Field(default=None, description="Folder for the datasets; default: OUT-dataset.")
    judge: str | None = Field(default=None, description="Model that judges; default: the generator.")
    judge_endpoint: Several = Field(default=(), description="Server of the judge; may be given several times.")
    judge_adapter: str | None = Field(
        default=None, description="vLLM: a LoRA adapter for the judge; default: the generator's, if it judges."
    )
    gold: str | None = Field(default=None, description="Gold pairs that the judge is measured on before anything else.")
    gold_limit: int | None = Field(default=None, ge=1, description="Read only so many gold pairs.")

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.pairs == "samples" and self.samples < 2:
            raise ValueError("pairs of samples with one sample per prompt")
        if self.gold is None and (self.min_accuracy is not None or self.max_flip is not None):
            raise ValueError("a bar for the judge (min_accuracy or max_flip) without gold")
        return self

    def revising(self) -> ReviseSettings:
        return ReviseSettings.model_validate(self._shared(ReviseSettings))

    def calibrating(self) -> CalibrateSettings | None:
        """How the judge is measured first; None without gold."""
        return None if self.gold is None else CalibrateSettings.model_validate(self.measuring())

    def measuring(self) -> dict[str, Any]:
        """The settings of `cai calibrate`, with or without its gold."""
        given = {"limit": self.gold_limit, "out": None} | ({"gold": self.gold} if self.gold is not None else {})
        shared = {name: value for name, value in self._shared(CalibrateSettings).items() if name != "gold"}
        return shared | self._judge() | given

    def labelling(self) -> LabelSettings:
        own = {"run": self.out, "limit": None}
        return LabelSettings.model_validate(self._shared(LabelSettings) | self._judge() | own)

    def exporting(self) -> ExportSettings:
        own = {"run": self.out, "out": self.dataset or f"{os.path.normpath(self.out)}-dataset"}
        return ExportSettings.model_validate(self._shared(ExportSettings) | own)

    def _judge(self) -> dict[str, Any]:
        own = bool(self.judge_endpoint)
        model = self.judge or (None if own else self.model)
        adapter = self.judge_adapter or (None if self.judge or own else self.adapter)
        return {"model": model, "endpoint": self.judge_endpoint or self.endpoint, "adapter": adapter}

    def _shared(self, kind: type[BaseModel]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in kind.model_fields if name in type(self).model_fields}


Settings = EngineSettings | ExportSettings
S = TypeVar("S", bound=Settings)


def load_settings(kind: type[S], config: str | None, given: Mapping[str, Any]) -> S:
    """Settings from a YAML file (a path, or the name of a recipe), with what is `given` on top.

    A file that holds settings of the whole pipeline may be given to the command of each stage, which then takes what
    the pipeline would hand to that stage.

    Raises BadInput for an unknown key, a wrong type or a value out of bounds; it names the file and line, or the
    option.
    """
    path, from_file, lines = _read_config(config) if config is not None else (None, {}, {})
    foreign = [key for key in from_file if key not in kind.model_fields]
    for key in foreign:
        if key not in PipelineSettings.model_fields:
            close = difflib.get_close_matches(str(key), list(kind.model_fields), n=1)
            remedy = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(kind.model_fields)}."
            raise BadInput(
                f"{path}:{lines.get(key, 1)}", f"the unknown setting '{key}'", "a setting of this command", remedy
            )
    try:
        if foreign:
            from_file = _stage_of_pipeline(kind, from_file)
        return kind.model_validate({**from_file, **given})
    except ValidationError as error:
        one = error.errors()[0]
        if not one["loc"]:  # settings that do not go together
            found = one["msg"].removeprefix("Value error, ")
            raise BadInput(str(path or "the settings"), found, "settings that go together", "Mend them.") from None
        name = str(one["loc"][0])
        option = option_of(kind, name)
        if one["type"] == "missing":
            raise BadInput(option, "nothing", "a value", "Give it on the command line or in --config FILE.") from None
        place = option if name in given or path is None else f"{path}:{lines.get(name, 1)}"
        found = brief_value(one["input"]) + ("" if place == option else f" for '{name}'")
        told = [other["msg"] for other in error.errors() if other["loc"][0] == name]  # of each kind that it may be
        expected = " or ".join(text.removeprefix("Input should be ").removeprefix("Value error, ") for text in told)
        raise BadInput(place, found, expected, _described(kind, name)) from None


def option_of(kind: type[Settings], name: str) -> str:
    """What a setting is called on the command line: its option, or the argument in capitals."""
    if name == kind.positional:
        return name.upper()
    field = {**PipelineSettings.model_fields, **kind.model_fields}.get(name)
    named: Any = (field.json_schema_extra if field is not None else None) or {}
    return named.get("option", "--" + name.replace("_", "-"))


def _described(kind: type[Settings], name: str) -> str:
    return {**PipelineSettings.model_fields, **kind.model_fields}[name].description or ""


def _stage_of_pipeline(kind: type[Settings], from_file: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline with these settings hands to one stage, without what hangs on a missing PROMPTS or --out."""
    missing = "\x00"
    whole = PipelineSettings.model_validate({"prompts": missing, "out": missing, **from_file})
    told: dict[str, Any]
    if kind is LabelSettings:
        told = whole.labelling().model_dump()
    elif kind is ExportSettings:
        told = whole.exporting().model_dump()
    elif issubclass(kind, GoldSettings):
        told = whole.measuring()
    else:
        told = whole.revising().model_dump()
    return {
        name: value
        for name, value in told.items()
        if name in kind.model_fields and not (isinstance(value, str) and value.startswith(missing))
    }


def _read_config(config: str) -> tuple[Path, dict[str, Any], dict[str, int]]:
    path = find_shipped("flows/recipes", config, ".yaml")
    if path is None:
        known = ", ".join(shipped_names("flows/recipes", ".yaml"))
        raise BadInput("--config", f"no file and no recipe '{config}'", "a YAML file or a recipe", f"Recipes: {known}.")
    try:
        text = path.read_text(encoding="utf-8")
        data, node = read_yaml(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why, place = " ".join(str(error).split()), str(path)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            # Without the line itself, which may hold a key.
            why, place = str(error.problem), f"{path}:{error.problem_mark.line + 1}"
        raise BadInput(place, f"text that is not YAML ({why})", "a YAML file of settings", "Mend it.") from None
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
