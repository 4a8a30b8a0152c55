"""The transformers engine: continuous batching in this process, on the GPU if there is one, else on the CPU.

One thread owns the model. Before every step it admits what is waiting, as far as there are slots: forced one-token
calls are answered at once by the forward pass that reads their prompt; the others join the batch that is under way,
each with its own sampling and its own seed, and leave it when they are done. So no call waits for the longest of a
batch.

What a row's last calls have put into the key-value cache is kept for a while, and its next call, whose prompt begins
with the same tokens, only reads the rest.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from random import Random
from types import TracebackType
from typing import Any, Self

import torch

from cai.engines import Completion, Request, Sampling, Spec
from cai.engines.attention import PLAIN_MODELS, register_grouped
from cai.engines.cache import Prefix, join, padded, prefix_of, stacked
from cai.engines.chat import choice_ids, end_ids, prompt_of, refuse_without_template
from cai.engines.local import find_model
from cai.errors import BadInput, RequestRefused, brief

# Tokens of finished calls whose keys and values are kept for the next call of their rows. A few hundred MB for a small
# model, a few GB for one of eight billion parameters.
KEPT_TOKENS = 32_768
# Of one row: its generation, and the two answers that are judged, each in its own conversation or order.
KEPT_OF_A_ROW = 4


@dataclass(eq=False, slots=True)
class _Call:
    request: Request
    prompt_ids: list[int]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Completion]
    random: Random = field(init=False)
    said: list[int] = field(default_factory=list[int])
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        self.random = Random(self.request.seed)

    def resolve(self, result: Completion | Exception) -> None:
        """Give the row its answer, from the model's thread."""

        def settle() -> None:
            if self.answer.done():
                return
            if isinstance(result, Exception):
                self.answer.set_exception(result)
            else:
                self.answer.set_result(result)

        self.loop.call_soon_threadsafe(settle)


class TransformersEngine:
    """One model in this process. See `Engine` for the contract; a call longer than the model's window is refused."""

    def __init__(self, spec: Spec) -> None:
        self._source, self._revision, self.model = find_model(spec.model or "embedded", spec.trust_remote_code)
        self.slots = spec.slots or 32
        self.restarts = 0
        self._trust_remote_code = spec.trust_remote_code
        self._free = self.slots
        self._waiting: list[_Call] = []
        self._wake = threading.Condition()
        self._closing = False

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._load)
        self._live: list[_Call] = []
        self._cache: Any = None
        self._kept: OrderedDict[str, list[Prefix]] = OrderedDict()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()  # at most one step of the model

    def versions(self) -> Mapping[str, str]:
        return {name: version(name) for name in ("torch", "transformers")}

    async def complete(self, request: Request) -> Completion:
        prompt_ids, left_out = prompt_of(self._tokenizer, self.model, request, self._window)
        loop = asyncio.get_running_loop()
        call = _Call(request, prompt_ids, loop, loop.create_future())
        with self._wake:
            self._waiting.append(call)
            self._wake.notify()
        return replace(await call.answer, left_out=left_out)

    def _load(self) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        on_gpu = torch.cuda.is_available()
        options = {"revision": self._revision, "trust_remote_code": self._trust_remote_code}
        try:
            plain = AutoConfig.from_pretrained(self._source, **options).model_type in PLAIN_MODELS
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self._source, **options)
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._source,
                dtype="auto",
                use_safetensors=True,
                device_map="auto" if on_gpu else None,
                attn_implementation=register_grouped() if plain and not on_gpu else None,
                **options,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            found = f"a model that cannot be loaded ({brief(error)})"
            raise BadInput(f"--model {self._source}", found, "a causal language model", "Try another.") from error
        refuse_without_template(self._tokenizer, self._source)
        self._model = model.eval()
        self._window = int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30))
        self._ends = end_ids(self._tokenizer, model.generation_config.eos_token_id)

    # From here on: in the model's own thread.

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._live or self._closing):
                    self._wake.wait()
                if not self._live:
                    # Rows ask one after another, within a millisecond; let the first ones begin together.
                    self._wake.wait_for(lambda: self._closing, timeout=0.002)
                if self._closing:
                    return
                self._waiting = [call for call in self._waiting if not call.answer.cancelled()]
                # A cache that cannot be joined (sliding windows, state-space layers) takes new calls when it is empty.
                free = self._free - len(self._live) if not self._live or self._joinable else 0
                new = next_batch(self._waiting, free)
                self._waiting = [call for call in self._waiting if call not in new]
            try:
                if new:
                    self._admit(new)
                else:
                    self._step()
            except torch.OutOfMemoryError:
                self._make_room(new)
            except Exception as error:  # it belongs to the rows that are in the batch
                for call in (*self._live, *new):
                    call.resolve(error)
                self._live, self._cache = [], None

    def _admit(self, new: Sequence[_Call]) -> None:
        """Read the prompts of `new`; answer the forced ones, and let the others join the batch."""
        prefixes = [prefix_of(self._kept.get(call.request.row_id, ()), call.prompt_ids) for call in new]
        for call, prefix in zip(new, prefixes, strict=True):
            call.cached_tokens = len(prefix.ids)
        rest = [call.prompt_ids[call.cached_tokens :] for call in new]
        cache, before = stacked(prefixes, self._model.device)
        ids, mask = padded(rest, self._model.device)
        mask = torch.cat([before, mask], dim=1)
        output = self._forward(ids, mask, cache)
        logits = output.logits[:, -1].float()
        self._joinable = hasattr(output.past_key_values, "layers") and all(
            type(layer).__name__ == "DynamicLayer" for layer in output.past_key_values.layers
        )
        if new[0].request.choices is not None:
            for n, (call, row) in enumerate(zip(new, torch.log_softmax(logits, dim=-1).cpu(), strict=True)):
                # The first question about an answer has read it for all that follow.
                if 2 * call.cached_tokens < len(call.prompt_ids):
                    self._keep(call, output.past_key_values, n, mask[n], call.prompt_ids)
                call.resolve(self._forced(call, row))
            return
        self._cache, self._mask = join(self._cache, self._mask if self._live else None, output.past_key_values, mask)
        self._live = [*self._live, *new]
        self._say(logits, new)

    def _step(self) -> None:
        """One more token for every call of the batch."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._live), 1)], dim=1)
        last = torch.tensor([[call.said[-1]] for call in self._live], device=self._mask.device)
        output = self._forward(last, self._mask, self._cache)
        self._cache = output.past_key_values
        self._say(output.logits[:, -1].float(), self._live)

    def _say(self, logits: torch.Tensor, calls: Sequence[_Call]) -> None:
        """Draw the next token of `calls`; those that are done, or that nobody waits for any more, leave the batch."""
        tokens = sample(logits, [(call.request.sampling, call.random) for call in calls])
        for call, token in zip(calls, tokens, strict=True):
            call.said.append(token)
        stay: list[int] = []
        for n, call in enumerate(self._live):
            if call.said[-1] in self._ends or len(call.said) >= call.request.sampling.max_tokens:
                # The last token drawn has not been read by the model, so nothing is known of it yet.
                ids = [*call.prompt_ids, *call.said[:-1]]
                self._keep(call, self._cache, n, self._mask[n], ids)
                call.resolve(self._completion(call))
            elif not call.answer.cancelled():
                stay.append(n)
        if len(stay) < len(self._live):
            self._live = [self._live[n] for n in stay]
            index = torch.tensor(stay, device=self._mask.device, dtype=torch.long)
            self._mask = self._mask[index]
            if self._live:
                self._cache.batch_select_indices(index)
            else:
                self._cache = None

    def _keep(self, call: _Call, cache: Any, n: int, mask: torch.Tensor, ids: list[int]) -> None:
        """Keep the keys and values of a finished call for the next calls of its row; the oldest go first.

        They are in row `n` of `cache`, under `mask`, and belong to the tokens `ids`.
        """
        if not self._joinable:
            return
        others = [one for one in self._kept.get(call.request.row_id, ()) if one.ids != ids[: len(one.ids)]]
        self._kept[call.request.row_id] = [*others, Prefix.taken(cache, n, mask, ids)][-KEPT_OF_A_ROW:]
        self._kept.move_to_end(call.request.row_id)
        while sum(len(one.ids) for row in self._kept.values() for one in row) > KEPT_TOKENS:
            self._kept.popitem(last=False)

    def _make_room(self, new: Sequence[_Call]) -> None:
        """Out of memory: begin the calls anew (their seeds give the same answers), half as many at once."""
        calls = [*self._live, *new]
        self._live, self._cache = [], None
        self._kept.clear()
        torch.cuda.empty_cache()
        if len(calls) == 1:
            tokens = len(calls[0].prompt_ids)
            calls[0].resolve(RequestRefused(f"{tokens} prompt tokens do not fit into the memory of the device"))
            return
        self._free = max(1, len(calls) // 2)
        for call in calls:
            call.said, call.random = [], Random(call.request.seed)
        with self._wake:
            self._waiting = [*calls, *self._waiting]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> Any:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _forced(self, call: _Call, logprobs: torch.Tensor) -> Completion | Exception:
        assert call.request.choices is not None
        try:
            ids = choice_ids(self._tokenizer, call.request.choices)
        except RequestRefused as error:
            return error
        told = tuple(float(logprobs[i]) for i in ids)
        chosen = told.index(max(told))
        text, token = call.request.choices[chosen], ids[chosen]
        return Completion(text, "stop", len(call.prompt_ids), call.cached_tokens, 1, (token,), told)

    def _completion(self, call: _Call) -> Completion:
        ended = call.said[-1] in self._ends
        said = call.said[:-1] if ended else call.said
        text: str = self._tokenizer.decode(said, skip_special_tokens=True)
        finish = "stop" if ended else "length"
        return Completion(text, finish, len(call.prompt_ids), call.cached_tokens, len(call.said), tuple(said))


def next_batch(waiting: Sequence[_Call], slots: int) -> list[_Call]:
    """The calls to read next: forced ones if any wait, else the first in line and those like it in length.

    At most `slots`, and at most a third of the batch is padding: on a CPU, long prompts beside short ones cost more in
    padding than a larger batch saves.
    """
    if not waiting or slots < 1:
        return []
    forced = [call for call in waiting if call.request.choices is not None]
    line = sorted(forced or waiting, key=lambda call: call.request.position)
    first = len(line[0].prompt_ids)
    batch, real, longest = [line[0]], first, first
    for call in sorted(line[1:], key=lambda call: abs(len(call.prompt_ids) - first)):
        length = len(call.prompt_ids)
        if len(batch) == slots or 2 * (len(batch) + 1) * max(longest, length) > 3 * (real + length):
            break
        batch, real, longest = [*batch, call], real + length, max(longest, length)
    return sorted(batch, key=lambda call: len(call.prompt_ids))


def sample(logits: torch.Tensor, samplers: Sequence[tuple[Sampling, Random]]) -> list[int]:
    """One token for each row of `logits` [batch, vocabulary], each with its own temperature, top_p and random numbers.

    A token is drawn by where the row's next uniform number falls in its cumulative probability, so a row's draw
    depends on its own seed only, not on its neighbours in the batch.
    """
    greedy = logits.argmax(dim=-1)
    if all(sampling.temperature == 0 for sampling, _ in samplers):
        return greedy.tolist()
    heat = torch.tensor([sampling.temperature or 1.0 for sampling, _ in samplers], device=logits.device)
    probabilities = torch.softmax(logits / heat[:, None], dim=-1)
    if any(sampling.top_p < 1 for sampling, _ in samplers):
        top_p = torch.tensor([sampling.top_p for sampling, _ in samplers], device=logits.device)
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        probabilities = torch.zeros_like(probabilities).scatter(
            1, order, ordered.masked_fill(before >= top_p[:, None], 0.0)
        )
    cumulative = probabilities.double().cumsum(dim=-1)
    uniform = torch.tensor([random.random() for _, random in samplers], dtype=torch.double, device=logits.device)
    drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    drawn = drawn.clamp(max=logits.shape[-1] - 1)
    cold = torch.tensor([sampling.temperature == 0 for sampling, _ in samplers], device=logits.device)
    return torch.where(cold, greedy, drawn).tolist()
