"""vLLM in this process: the engine for GPUs and, with vLLM's own CPU build, for the CPU.

vLLM keeps the model in a process of its own. When that dies it is started anew, after a pause that grows, and what was
in flight is asked again. A call that was in flight at two such ends is then asked alone; if the engine dies of it once
more, that call is refused and the others go on.

Calls are served in the order of their rows: rows under way are finished, while their prefixes are still in the cache,
before new ones begin. How many calls the engine holds is learnt from its scheduler, see `vllm_calls`.
"""

import asyncio
import itertools
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

from cai.engines import Completion, Request, Sampling, Spec
from cai.engines.chat import choice_ids, encode, end_ids, prompt_of, refuse_without_template
from cai.engines.guard import Guard
from cai.engines.local import find_adapter, find_model
from cai.engines.vllm_calls import Door, Gauge, Held
from cai.engines.vllm_options import ONLY_SPEED, engine_options, installed_package, rank_of, refusal, told
from cai.errors import BadInput, EngineGaveUp, RequestRefused, brief
from cai.ids import digest
from cai.rows import Message

# Ends in a row, with no answer between them, after which the engine is given up.
MOST_ENDS = 5
FIRST_PAUSE_SECONDS = 1.0
# An engine may take this long to end in its own way; then its processes are killed.
END_SECONDS = 3.0
CPU_CACHE_BYTES = 2 << 30

log = logging.getLogger(__name__)


class VllmEngine:
    """One model in vLLM. See `Engine` for the contract; a call longer than the model's window is refused.

    On the CPU calls carry no seed, of which vLLM's CPU build dies, so sampled text cannot be had a second time there.
    `restarts` counts how often the engine had died and was started anew.
    """

    def __init__(self, spec: Spec) -> None:
        self._package = installed_package()
        # Before vLLM is imported. Whoever wants its messages or statistics sets these otherwise.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR") == "ERROR":
            # Its CPU build warns of this before it has read its own settings, in every process.
            logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        # A forked child would hold this process's locks and open files, the run's among them, for as long as it lives,
        # and carry no mark of its guard's.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        self._spec, self._options = spec, engine_options(spec.options)
        asked = "load_format" in self._options  # then whoever asked may have pickled weights
        self._source, self._revision, self.model = find_model(spec.model or "embedded", spec.trust_remote_code, asked)
        self._adapter = find_adapter(spec.adapter, asked) if spec.adapter else None
        told = {name: value for name, value in self._options.items() if name not in ONLY_SPEED}
        self.model += (f"+{self._adapter.name}" if self._adapter else "") + (
            f" {json.dumps(told, sort_keys=True)}" if told else ""
        )
        self._most, self._trust_remote_code = spec.slots, spec.trust_remote_code
        self._ranks: int = self._options.get("data_parallel_size", 1)
        self._numbers = itertools.count()
        self._held = Held(1)
        self.restarts = 0

    async def __aenter__(self) -> Self:
        from transformers import AutoTokenizer

        self._door = Door()
        self._revival: asyncio.Task[None] | None = None
        self._closing, self._ends = False, 0
        self._guard = Guard()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                self._source, revision=self._revision, trust_remote_code=self._trust_remote_code
            )
            refuse_without_template(self._tokenizer, self._source)
            self._guard.watch()
            self._llm: Any = await self._started()
            await self._load_adapter()
        except BadInput:
            await self._clear()
            raise
        except Exception as error:  # whatever a library finds wrong with what a user has given
            await self._clear()
            raise refusal(error, self._spec) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        if self._revival is not None:
            self._revival.cancel()
            await asyncio.wait([self._revival], timeout=2 * END_SECONDS)
            if self._revival.done() and not self._revival.cancelled():
                self._revival.exception()  # looked at, or asyncio would complain of it
        await self._end(self._llm)
        await self._clear()

    def versions(self) -> Mapping[str, str]:
        return {name: version(name) for name in ("torch", "transformers", self._package)}

    @property
    def slots(self) -> int:
        return self._held.total(self._ranks)

    async def complete(self, request: Request) -> Completion:
        prompt_ids, left_out = prompt_of(self._tokenizer, self.model, request, self._window)
        words = choice_ids(self._tokenizer, request.choices) if request.choices else ()
        ends = 0
        while ends < 3:
            async with self._door.open(alone=ends == 2):
                while (llm := self._llm).errored:  # it had died before this call came
                    await self._revive(llm)
                try:
                    output = await self._generate(llm, request, prompt_ids, words)
                except self._dead:
                    ends += 1
                    await self._revive(llm)
                else:
                    self._ends = 0
                    return replace(self._completion(request, output, words), left_out=left_out)
        await self._prove()
        raise RequestRefused("the engine died of this call three times, the last time with no other beside it")

    async def _generate(self, llm: Any, request: Request, prompt_ids: list[int], words: tuple[int, ...]) -> Any:
        options: dict[str, Any] = {"priority": request.position, "lora_request": self._lora}
        if self._ranks > 1:  # a row stays where its prefix lies
            options["data_parallel_rank"] = int(digest(request.row_id)[:8], 16) % self._ranks
        params = self._params(request, words)
        number = str(next(self._numbers))
        try:
            outputs = [one async for one in llm.generate({"prompt_token_ids": prompt_ids}, params, number, **options)]
        except (ValueError, self._refusal, self._failed) as error:
            if llm.errored:
                raise self._dead from error
            raise RequestRefused(brief(error.__cause__ or error)) from error  # what it finds wrong with this one call
        match outputs[-1].outputs[0].finish_reason:
            case "stop" | "length":
                return outputs[-1]
            case "abort":  # somebody has told the engine's process to end
                raise self._dead
            case other:
                raise RequestRefused(f"vLLM ended the answer with '{other}'")

    def _params(self, request: Request, words: tuple[int, ...]) -> Any:
        made: Any = import_module("vllm.sampling_params")
        shared: dict[str, Any] = {"output_kind": made.RequestOutputKind.FINAL_ONLY, "detokenize": False}
        if words:
            return made.SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=list(words), **shared)
        sampling = request.sampling
        seed = request.seed % 2**63 if self._takes_seeds and sampling.temperature > 0 else None
        return made.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
            seed=seed,
            **shared,
        )

    def _completion(self, request: Request, output: Any, words: tuple[int, ...]) -> Completion:
        prompt, cached = len(output.prompt_token_ids), output.num_cached_tokens or 0
        said = list(output.outputs[0].token_ids)
        if words:
            assert request.choices is not None
            told = tuple(float(output.outputs[0].logprobs[0][word].logprob) for word in words)
            best = told.index(max(told))
            return Completion(request.choices[best], "stop", prompt, cached, 1, (words[best],), told)
        finish: str = output.outputs[0].finish_reason
        generated = len(said)
        if finish == "stop" and said and said[-1] in self._stops:
            said.pop()
        text: str = self._tokenizer.decode(said, skip_special_tokens=True)
        return Completion(text, finish, prompt, cached, generated, tuple(said))

    # Starts and ends

    async def _started(self) -> Any:
        """A new engine. Broken off, it leaves no process behind: the thread ends when it finds them killed."""
        starting = asyncio.create_task(asyncio.to_thread(self._start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._closing = True
            deadline = time.monotonic() + END_SECONDS
            while not starting.done() and time.monotonic() < deadline:
                await asyncio.to_thread(self._guard.kill, 1.0)
                await asyncio.wait([starting], timeout=0.1)
            if starting.done():  # else the guard stays, since the thread may still start something
                if starting.exception() is None:
                    await self._end(starting.result())
                await self._clear()
            raise

    async def _load_adapter(self) -> None:
        """Load it before it is asked for: one that does not fit the model would end the engine at every call."""
        if self._lora is not None:
            try:
                await self._llm.add_lora(self._lora)
            except Exception as error:
                await self._end(self._llm)
                expected, remedy = "one that was trained for this model", "Check --adapter and --model."
                raise BadInput(
                    f"--adapter {self._spec.adapter}", f"what vLLM refuses ({told(error)})", expected, remedy
                ) from error

    async def _end(self, llm: Any) -> None:
        """End an engine, in its own way if that comes to an end, and what it leaves behind."""
        ending = asyncio.create_task(asyncio.to_thread(llm.shutdown))
        await asyncio.wait([ending], timeout=END_SECONDS)
        await asyncio.to_thread(self._guard.kill)
        await asyncio.wait([ending], timeout=1.0)
        if ending.done() and (error := ending.exception()) is not None:
            log.debug("vLLM's engine did not end in its own way: %s", told(error))

    async def _clear(self) -> None:
        if await asyncio.to_thread(self._guard.kill):
            self._guard.dismiss()  # else it goes on, and kills what is left when this process ends

    def _start(self) -> Any:
        """Start vLLM's engine process with the model in it; a minute or more."""
        vllm: Any = import_module("vllm")
        engine: Any = import_module("vllm.v1.engine.async_llm")
        on_cpu: bool = import_module("vllm.platforms").current_platform.is_cpu()
        given: dict[str, Any] = {
            # A CPU has blocks of 128 by default, too coarse for short shared prefixes, and compiles for minutes.
            **({"block_size": 32, "enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE_BYTES} if on_cpu else {}),
            **({"max_num_seqs": self._most} if self._most else {}),
            **({"max_lora_rank": rank_of(self._adapter.rank)} if self._adapter else {}),
            **self._options,
        }
        arguments = vllm.AsyncEngineArgs(
            model=self._source,
            revision=self._revision,
            trust_remote_code=self._trust_remote_code,
            scheduling_policy="priority",
            enable_lora=self._adapter is not None,
            disable_log_stats=True,
            **{"load_format": "safetensors", "use_tqdm_on_load": False, **given},
        )
        with self._guard.births():
            if self._closing:  # the imports take long, and this thread cannot be broken off
                raise RuntimeError("broken off")
            llm: Any = engine.AsyncLLM.from_engine_args(arguments, stat_loggers=[self._gauge])
        self._dead: type[Exception] = engine.EngineDeadError
        self._failed: type[Exception] = engine.EngineGenerateError
        self._refusal: type[Exception] = import_module("vllm.exceptions").VLLMClientError
        self._takes_seeds = not on_cpu
        self._lora: Any = None
        if self._adapter:
            self._lora = import_module("vllm.lora.request").LoRARequest("adapter", 1, self._adapter.folder)
        self._window: int = llm.vllm_config.model_config.max_model_len
        generation: Any = llm.vllm_config.model_config.try_get_generation_config()
        self._stops = end_ids(self._tokenizer, generation.get("eos_token_id"))
        self._held = Held(llm.vllm_config.scheduler_config.max_num_seqs)
        return llm

    def _gauge(self, config: Any, rank: int = 0) -> Gauge:
        return Gauge(lambda running, waiting, usage: self._held.record(rank, running, waiting, usage))

    async def _revive(self, dead: Any) -> None:
        """Start the engine anew; the first of the calls that saw it die begins it, and all of them wait.

        Raises EngineGaveUp if it has died too often without an answer in between.
        """
        if self._llm is dead:
            if self._revival is None or self._revival.done():
                self._revival = asyncio.create_task(self._start_anew(dead))
            await asyncio.shield(self._revival)  # one call that is cancelled must not leave a second start behind it

    async def _start_anew(self, dead: Any) -> None:
        await self._end(dead)
        while True:
            self._ends += 1
            if self._ends >= MOST_ENDS:
                raise EngineGaveUp(
                    f"vLLM's engine has died {self._ends} times without an answer in between. Its messages are above; "
                    "the same command goes on from here."
                )
            log.warning("vLLM's engine has died; it is started anew, and what was in flight is asked again.")
            # Time also for a signal to all processes, which reaches the engine's before this one acts on it.
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (self._ends - 1))
            try:
                self._llm = await self._started()
            except Exception as error:  # it may be of any kind, and may be gone at the next try
                log.warning("It does not start: %s.", told(error))
                continue
            self.restarts += 1
            return

    async def _prove(self) -> None:
        """Raise EngineGaveUp if the engine dies of a call that nothing is wrong with: then no row is to blame."""
        innocent = Request("probe", "", (Message("user", "Hello"),), Sampling(1, 0.0), 0)
        llm = self._llm
        try:
            await self._generate(llm, innocent, encode(self._tokenizer, self.model, innocent.messages), ())
        except self._dead as error:
            raise EngineGaveUp("vLLM's engine dies of every call. Its messages are above.") from error
