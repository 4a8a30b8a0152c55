"""The settings of whatever asks a model: which engine, where it runs, and what its data is compared by."""

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cai.cluster import Cluster
from cai.engines import Spec
from cai.settings_fields import Name, Several

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

    model: Name | None = Field(
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
    templates: Name | None = Field(
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

    adapter: Name | None = Field(
        default=None, description="vLLM: a LoRA adapter for the model, a folder or a Hugging Face id."
    )
    engine_option: Several = Field(
        default=(), description="vLLM: an engine argument, such as tensor_parallel_size=2; may be given several times."
    )

    @model_validator(mode="after")
    def _whoever_names_a_cluster_uses_it(self) -> Self:
        # Compared with the defaults, since a deployment gives every parameter.
        fields = type(self).model_fields
        given = [name for name in fields if name.startswith("ray_") and getattr(self, name) != fields[name].default]
        if given and self.on != "ray":
            raise ValueError(f"{', '.join(given)} without on ray: the engines would run in this process")
        return self

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
