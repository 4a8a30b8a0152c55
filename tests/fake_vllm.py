"""A vLLM that plays dead, for the tests of the engine around it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from cai.engines import Request, Sampling, Spec
from cai.engines import vllm as module
from cai.engines import vllm_options as options
from cai.engines.vllm import VllmEngine
from cai.rows import Message


def asked(text: str = "Say something.", **changes: Any) -> Request:
    request = Request("respond", "r1", (Message("user", text),), Sampling(8, 0.7, 0.9), seed=3)
    return replace(request, **changes)


class Dead(RuntimeError):
    pass


@dataclass
class Fake:
    """What stands for vLLM: `dies` says of a prompt whether the engine dies of it; `starts` are engines so far."""

    dies: Callable[[str], bool] = lambda prompt: False
    starts: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)
    gauges: list[Any] = field(default_factory=list)
    made: list["FakeLLM"] = field(default_factory=list)
    fails_to_start: list[Exception] = field(default_factory=list)
    at_start: Callable[[], object] = lambda: None
    at_end: Callable[[], object] = lambda: None
    refuses_adapter: Exception | None = None
    reasons: list[str] = field(default_factory=list)
    fails: dict[str, Exception] = field(default_factory=dict)
    window: int = 256
    known: dict[str, None] = field(
        default_factory=lambda: dict.fromkeys(
            ("tensor_parallel_size", "dtype", "data_parallel_size", "model", "load_format", "max_model_len")
        )
    )
    most: int = 64


class FakeLLM:
    def __init__(self, fake: Fake, arguments: dict[str, Any], tokenizer: Any) -> None:
        fake.at_start()
        if fake.fails_to_start:
            raise fake.fails_to_start.pop(0)
        fake.starts.append(arguments)
        fake.made.append(self)
        self.fake, self.tokenizer, self.dead = fake, tokenizer, asyncio.Event()
        ends = SimpleNamespace(max_model_len=fake.window, try_get_generation_config=lambda: {"eos_token_id": [7, 2]})
        scheduler = SimpleNamespace(max_num_seqs=arguments.get("max_num_seqs", fake.most))
        self.vllm_config = SimpleNamespace(model_config=ends, scheduler_config=scheduler)

    async def generate(self, prompt: Any, params: Any, number: str, **options: Any) -> AsyncIterator[Any]:
        text = self.tokenizer.decode(prompt["prompt_token_ids"])
        self.fake.calls.append((text, params, options))
        if self.fake.dies(text):
            self.dead.set()
        else:
            answering = asyncio.create_task(asyncio.sleep(0.01))
            dying = asyncio.create_task(self.dead.wait())
            await asyncio.wait([answering, dying], return_when=asyncio.FIRST_COMPLETED)
            dying.cancel()
        if self.dead.is_set():
            raise Dead
        for word, error in self.fake.fails.items():
            if word in text:
                raise error
        reason = self.fake.reasons.pop() if self.fake.reasons else "stop"
        ids = self.tokenizer("Fine.", add_special_tokens=False).input_ids
        logprobs = [{token: SimpleNamespace(logprob=-float(n + 1)) for n, token in enumerate(params.ids)}]
        answer = SimpleNamespace(token_ids=[*ids, 2], finish_reason=reason, logprobs=logprobs)
        yield SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], num_cached_tokens=5, outputs=[answer])

    @property
    def errored(self) -> bool:
        return self.dead.is_set()

    async def add_lora(self, adapter: Any) -> bool:
        if self.fake.refuses_adapter is not None:
            raise self.fake.refuses_adapter
        return True

    def shutdown(self) -> None:
        self.dead.set()
        self.fake.at_end()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    from transformers import AutoTokenizer

    from cai.engines.embedded import embedded_model

    made = Fake()
    tokenizer = AutoTokenizer.from_pretrained(embedded_model()[0])

    def start(arguments: Any, stat_loggers: list[Any]) -> FakeLLM:
        made.gauges.append(stat_loggers[0](None, 0))
        return FakeLLM(made, vars(arguments), tokenizer)

    class Arguments(SimpleNamespace):
        __dataclass_fields__ = made.known

    def params(**given: Any) -> Any:
        return SimpleNamespace(ids=given.get("logprob_token_ids", []), **given)

    parts = {
        "vllm": SimpleNamespace(AsyncEngineArgs=Arguments),
        "vllm.v1.engine.async_llm": SimpleNamespace(
            AsyncLLM=SimpleNamespace(from_engine_args=start), EngineDeadError=Dead, EngineGenerateError=KeyError
        ),
        "vllm.exceptions": SimpleNamespace(VLLMClientError=LookupError),
        "vllm.lora.request": SimpleNamespace(LoRARequest=lambda *told: told),
        "vllm.platforms": SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: False)),
        "vllm.sampling_params": SimpleNamespace(
            SamplingParams=params, RequestOutputKind=SimpleNamespace(FINAL_ONLY="final")
        ),
    }
    for one in (module, options):
        monkeypatch.setattr(one, "import_module", parts.__getitem__)
        monkeypatch.setattr(one, "installed_package", lambda: "transformers")
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    yield made


def answers(requests: list[Request], spec: Spec | None = None) -> tuple[list[Any], VllmEngine]:
    async def all_of_them() -> tuple[list[Any], VllmEngine]:
        async with VllmEngine(spec or Spec("vllm", "embedded")) as engine:
            return await asyncio.gather(*map(engine.complete, requests), return_exceptions=True), engine

    return asyncio.run(all_of_them())
