"""The settings of each flow: one model is the command line, the YAML file, and the deployment's parameters.

It stops at the stage: what lies below gets the few values that it uses. `settings_engine.py` has what every model that
is asked has in common, `settings_parts.py` what several flows share, `settings_fields.py` the kinds of field, and
`settings_load.py` reads them from a file and the command line.
"""

import os
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from cai.engines import Sampling, Spec
from cai.revise import Method
from cai.settings_engine import EngineSettings
from cai.settings_fields import Name, Several, Switch, Temperature, Tokens, TopP
from cai.settings_parts import Comparing, Exporting, JudgeBar, JudgeSettings, Labelling


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
    critic: Name | None = Field(default=None, description="Model for gate and critique; default: the generator.")
    critic_endpoint: Several = Field(default=(), description="Server of the critic; may be given several times.")
    reviser: Name | None = Field(default=None, description="Model for the revision; default: the generator.")
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


class LabelSettings(Labelling, Comparing, JudgeSettings):
    """Judge pairs of a run's answers against a constitution: pairs, verdicts, labels."""

    positional: ClassVar[str] = "run"

    run: Name = Field(description="Folder of a finished run of cai revise or cai generate; the labels go into it.")
    constitution: Name | None = Field(
        default=None, description="A constitution file or name; default: the one that the run was revised with."
    )
    limit: int | None = Field(default=None, ge=1, description="Read only so many rows of the run.")
    apply_review: Name | None = Field(
        default=None,
        description="A review.jsonl with people's answers: they come before the judge's. No model is asked, and the "
        "other settings stay those that the labels were made with.",
    )


class GoldSettings(JudgeBar):
    """How a judge is measured on pairs of which the better answer is known."""

    out: Name | None = Field(default=None, description="Folder for the verdicts; default: one of its own per setting.")


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


class ExportSettings(Exporting):
    """Write a run's answers and labels as datasets that trainers load."""

    positional: ClassVar[str] = "run"

    run: Name = Field(description="Folder of a finished run.")
    out: Name = Field(description="Folder for the datasets; an earlier export in it is replaced.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Splits and shares are derived from it.")


class PipelineSettings(ReviseSettings, Labelling, JudgeBar, Exporting):
    """The whole pipeline: revise, label, export. Before that, if gold is given: is the judge good enough?"""

    positional: ClassVar[str] = "prompts"

    dataset: Name | None = Field(default=None, description="Folder for the datasets; default: OUT-dataset.")
    judge: Name | None = Field(default=None, description="Model that judges; default: the generator.")
    judge_endpoint: Several = Field(default=(), description="Server of the judge; may be given several times.")
    judge_adapter: Name | None = Field(
        default=None, description="vLLM: a LoRA adapter for the judge; default: the generator's, if it judges."
    )
    gold: Name | None = Field(
        default=None, description="Gold pairs that the judge is measured on before anything else."
    )
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
