"""vLLM with answers whose lengths are given, so that every arm of a benchmark does the same work, and with a record of
each call."""

import argparse
import random
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.texts import heavy_tailed
from cai.engines import Request, Spec
from cai.engines.vllm import VllmEngine

# Two rounds of choice, gate, critique and revision for every row, whatever the answers are.
METHOD: dict[str, Any] = {
    "rounds": 2, "gate_threshold": 0.0, "revision_tries": 1, "failed_revision": "keep", "wording": "short",
    "max_tokens": 400, "critique_max_tokens": 300, "revision_max_tokens": 400,
}  # fmt: skip
MEDIANS = {"response": 60, "critique": 50, "revision": 60}


@dataclass(slots=True)
class Call:
    """One call as it was made: the tokens of prompt and answer, when it was asked and answered, and from the cache how
    much of the prompt came."""

    request: Request
    prompt_ids: list[int]
    words: tuple[int, ...]
    begun: float
    ended: float = 0.0
    output_ids: list[int] = field(default_factory=list[int])
    cached_tokens: int = 0


class FixedLengths(VllmEngine):
    """Every sampled answer is as long as its row, purpose and place in the row say; the median is `MEDIANS`' one, and
    the lengths are heavy-tailed."""

    def __init__(self, spec: Spec, seed: int) -> None:
        super().__init__(spec)
        self._seed = seed
        self.calls: list[Call] = []

    def _params(self, request: Request, words: tuple[int, ...]) -> Any:
        params = super()._params(request, words)
        if not words:
            params.ignore_eos = True
            params.max_tokens = self.length(request)
        return params

    def length(self, request: Request) -> int:
        chance = random.Random(f"{self._seed} {request.row_id} {request.purpose} {len(request.messages)}")
        longest = request.sampling.max_tokens
        return max(4, min(longest, round(heavy_tailed(chance, MEDIANS.get(request.purpose, 50)))))

    async def _generate(self, llm: Any, request: Request, prompt_ids: list[int], words: tuple[int, ...]) -> Any:
        call = Call(request, prompt_ids, words, time.perf_counter())
        output = await super()._generate(llm, request, prompt_ids, words)
        call.ended, call.output_ids = time.perf_counter(), list(output.outputs[0].token_ids)
        call.cached_tokens = output.num_cached_tokens or 0
        self.calls.append(call)
        return output

    @property
    def block_size(self) -> int:
        """Tokens in a block of the prefix cache."""
        return int(self._llm.vllm_config.cache_config.block_size)

    async def again(self, call: Call, priority: int) -> None:
        """The very same call once more, straight to vLLM, with as many tokens of answer."""
        params = self._params(call.request, call.words)
        if not call.words:
            params.max_tokens = len(call.output_ids)
        prompt = {"prompt_token_ids": call.prompt_ids}
        async for _ in self._llm.generate(prompt, params, f"again-{priority}", priority=priority):
            pass

    async def forget(self) -> None:
        """Empty the prefix cache and the record."""
        self.calls = []
        await self._llm.reset_prefix_cache()


def parser(doc: str | None, rows: int) -> argparse.ArgumentParser:
    """The options of the benchmarks on vLLM."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", type=int, default=rows)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--model", default="embedded")
    made.add_argument("--engine-option", action="append", default=[], help="as for cai")
    return made


def spec_of(options: argparse.Namespace) -> Spec:
    return Spec("vllm", options.model, options=tuple(options.engine_option))
