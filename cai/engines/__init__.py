"""What a model engine is: one method, `complete`. Everything else (batching, retries, loading) is behind it."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from cai.errors import BadInput
from cai.ids import digest
from cai.rows import Message


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw an answer. `temperature` 0 is greedy; `max_tokens` bounds the answer."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a model.

    `messages` is the conversation, ending with the user's turn. With `choices` the answer is one forced token, the most
    probable of these words, and the completion carries the log-probability of each; `sampling` is then ignored.
    `position` orders the calls when not all can be served at once: lower first, so that rows under way are finished
    before new ones start. `row_id` keeps a row on one server, where its prefix lies in the cache.
    """

    purpose: str
    row_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    choices: tuple[str, ...] | None = None
    position: int = 0

    def key(self, model: str) -> str:
        """The content address of this call on `model`: everything that the answer depends on, and nothing else.

        Not the row id, the constitution or the templates: a changed principle asks again only what is worded anew.
        """
        sampled = self.choices is None and self.sampling.temperature > 0
        return digest(
            {
                "model": model,
                "purpose": self.purpose,
                "messages": [
                    [message.role, message.content, "optional"] if message.optional else [message.role, message.content]
                    for message in self.messages
                ],
                "max_tokens": 1 if self.choices else self.sampling.max_tokens,
                "temperature": self.sampling.temperature if sampled else 0,
                "top_p": self.sampling.top_p if sampled else 1,
                "seed": self.seed if sampled else 0,
                "choices": list(self.choices or ()),
            }
        )


MOST_TOKENS = 2**31 - 1


def token_count(value: object) -> int:
    """A number of tokens as somebody else tells it; 0 if it is none, or more than any call has."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return 0
    return int(value) if value == int(value) else 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back. `finish` is stop or length (cut off at max_tokens).

    `choice_logprobs` are the log-probabilities of the choices in their order; None where the engine gives none, and
    empty where it gives some but none of the choices was among the likeliest.
    `cached_tokens` is how many of the prompt's tokens the engine had in its prefix cache; 0 where it does not say.
    `left_out` is how many optional turns did not fit into the window.
    """

    text: str
    finish: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] = ()
    choice_logprobs: tuple[float, ...] | None = None
    left_out: int = 0


class Engine(Protocol):
    """A model that answers requests.

    `model` names the model and its revision; it is part of every call's address and of every row. `slots` is how many
    calls it can work on at once, which may change while it works. `restarts` counts how often it died and was started
    anew. Entering the context loads or connects (raises BadInput if that cannot be done);
    leaving it ends what is under way. `versions` are the libraries whose version can change an answer.
    """

    model: str
    restarts: int

    @property
    def slots(self) -> int: ...

    async def complete(self, request: Request) -> Completion:
        """Answer one request. Raises RequestRefused for this request alone, EngineGaveUp if the engine is gone."""
        ...

    def versions(self) -> Mapping[str, str]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Spec:
    """Which engine to open. Within a run, equal specs are one engine, loaded once.

    `kind` is auto, transformers, vllm, server or scripted; auto is a server if there are endpoints, else transformers.
    `slots` None takes the engine's own default. `adapter` (a LoRA adapter: a folder or an id) and `options` (engine
    arguments as "name=value") are for vllm, `trust_remote_code` for the engines that load a model themselves, the rest
    for servers.
    """

    kind: str
    model: str | None
    endpoints: tuple[str, ...] = ()
    slots: int | None = None
    timeout_seconds: float = 300.0
    deadline_seconds: float = 900.0
    retries: int = 6
    send_seed: bool = True
    trust_remote_code: bool = False
    adapter: str | None = None
    options: tuple[str, ...] = ()


class Kept:
    """An engine that is loaded when it is first entered, if it is not yet, and stays so: its keeper ends it."""

    def __init__(self, engine: Engine, loaded: bool = False) -> None:
        self.engine, self.loaded = engine, loaded

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def __aenter__(self) -> Self:
        if not self.loaded:
            await self.engine.__aenter__()
            self.loaded = True
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


@dataclass(slots=True)
class _Keeper:
    spec: Spec | None
    kept: Kept | None = None


_keeper: ContextVar[_Keeper | None] = ContextVar("keeper", default=None)


@asynccontextmanager
async def kept_loaded(spec: Spec | None) -> AsyncGenerator[None]:
    """Inside, this spec is one engine for all stages, loaded once; None keeps nothing. Others come and go as ever."""
    keeper = _Keeper(spec)
    token = _keeper.set(keeper)
    try:
        yield
    finally:
        _keeper.reset(token)
        if keeper.kept is not None and keeper.kept.loaded:
            await keeper.kept.engine.__aexit__(None, None, None)


def open_engine(spec: Spec) -> Engine:
    """The engine that a spec means. Finds out which model it is and that it exists; loading waits for its context.

    Raises BadInput if there is no such model, or settings that do not go together.
    """
    keeper = _keeper.get()
    if keeper is None or keeper.spec != spec:
        return _made(spec)
    keeper.kept = keeper.kept or Kept(_made(spec))
    kept: Any = keeper.kept
    return kept


def kind_of(spec: Spec) -> str:
    """The engine that a spec means: transformers, vllm, server or scripted."""
    return spec.kind if spec.kind != "auto" else "server" if spec.endpoints else "transformers"


def _made(spec: Spec) -> Engine:
    kind = kind_of(spec)
    if spec.endpoints and kind != "server":
        raise BadInput(
            "endpoint", f"endpoints together with the engine '{kind}'", "the engine 'server'", "Leave one of them out."
        )
    if (spec.adapter or spec.options) and kind != "vllm":
        option = "--adapter" if spec.adapter else "--engine-option"
        raise BadInput(option, f"it together with the engine '{kind}'", "the engine 'vllm'", "Add --engine vllm.")
    match kind:
        case "transformers":
            from cai.engines.transformers import TransformersEngine

            return TransformersEngine(spec)
        case "server":
            from cai.engines.server import ServerEngine

            return ServerEngine(spec)
        case "vllm":
            from cai.engines.vllm import VllmEngine

            return VllmEngine(spec)
        case "scripted":
            from cai.engines.scripted import open_script

            return open_script(spec)
        case _:
            raise BadInput("engine", f"'{kind}'", "auto, transformers, vllm, server or scripted", "Give one of these.")
