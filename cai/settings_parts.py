"""The parts of which the flows' settings are put together, each shared by several flows: how pairs are judged, how good
the judge must be, which pairs are labelled, what goes into a dataset, how sessions are compared.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cai.contents import ExportMethod
from cai.engines import Sampling, Spec
from cai.figures import BOUNDS, Bound, bound_of
from cai.label import Judging, Rule
from cai.pairs import Kind
from cai.settings_engine import EngineSettings
from cai.settings_fields import Alarms, Several, Switch, SwitchOrName, Temperature, Tokens, Told
from cai.views import Trainer


def _count(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


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


class Comparing(BaseModel):
    """How a session is compared with the ones before."""

    history: SwitchOrName = Field(
        default="on",
        description="Folder for the figures of each session, which the next are compared with; on: 'history' beside "
        "the run; off: none.",
    )
    alarm: Alarms = Field(
        default=(),
        description="How far a figure may move before it is said, as in refusal_rate=0.05; may be given several times.",
    )

    def bounds(self) -> dict[str, Bound]:
        """The bound of each figure."""
        return {**BOUNDS, **dict(bound_of(told) for told in self.alarm)}
