"""The transformers engine: batches what is waiting, on the GPU if there is one, else on the CPU.

Whatever is waiting when the model is free becomes the next batch: the forced one-token calls first, since one forward
pass answers them and sets their rows free; otherwise the lowest position and the calls nearest to it in prompt
length, so that little of the batch is padding. Within a batch every row has its own sampling and its own seed, and a
row that is finished leaves the batch, so a long answer does not hold short ones' places.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import torch

from cai.engines import Completion, Request, Sampling, Spec
from cai.engines.chat import choice_ids, encode
from cai.engines.embedded import embedded_model, folder_fingerprint
from cai.errors import BadInput, EngineGaveUp, RequestRefused
from cai.ids import digest


@dataclass(eq=False, slots=True)
class _Call:
    request: Request
    prompt_ids: list[int]
    answer: asyncio.Future[Completion]


class TransformersEngine:
    """One model in this process. See `Engine` for the contract; a call longer than the model's window is refused."""

    def __init__(self, spec: Spec) -> None:
        self._source, self._revision, self.model = _find(spec.model or "embedded", spec.trust_remote_code)
        self.slots = spec.slots or 32
        self._trust_remote_code = spec.trust_remote_code
        self._waiting: list[_Call] = []
        self._serving: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._stop = threading.Event()

    async def __aenter__(self) -> Self:
        self._stop.clear()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()  # the batch under way ends at its next token
        if self._serving is not None:
            self._serving.cancel()
        self._thread.shutdown(wait=True)

    def versions(self) -> Mapping[str, str]:
        return {name: version(name) for name in ("torch", "transformers")}

    async def complete(self, request: Request) -> Completion:
        prompt_ids = encode(self._tokenizer, self.model, request.messages)
        wanted = 1 if request.choices else request.sampling.max_tokens
        if len(prompt_ids) + wanted > self._window:
            raise RequestRefused(
                f"{len(prompt_ids)} prompt tokens and {wanted} for the answer exceed the window of {self._window}"
            )
        call = _Call(request, prompt_ids, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        try:
            return await call.answer
        finally:
            if call in self._waiting:
                self._waiting.remove(call)

    async def _serve(self) -> None:
        while self._waiting:
            # The answers of the last batch have set rows free; two milliseconds let them all get back in line.
            await asyncio.sleep(0.002)
            batch = next_batch(self._waiting, self.slots)
            self._waiting = [call for call in self._waiting if call not in batch]
            try:
                completions = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, batch)
            except Exception as error:  # whatever went wrong belongs to the rows that wait for this batch
                for call in batch:
                    if not call.answer.done():
                        call.answer.set_exception(error)
                continue
            for call, completion in zip(batch, completions, strict=True):
                if call.answer.done():
                    continue
                if isinstance(completion, Completion):
                    call.answer.set_result(completion)
                else:
                    call.answer.set_exception(completion)

    # From here on: in the model's own thread.

    def _load(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        options = {"revision": self._revision, "trust_remote_code": self._trust_remote_code}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self._source, **options)
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._source,
                dtype="auto",
                use_safetensors=True,
                device_map="auto" if torch.cuda.is_available() else None,
                **options,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BadInput(
                f"--model {self._source}",
                f"a model that cannot be loaded ({_brief(error)})",
                "a causal language model",
                "Try another.",
            ) from error
        if not self._tokenizer.chat_template:
            raise BadInput(
                f"--model {self._source}",
                "no chat template",
                "an instruction-tuned model",
                "Take its instruct version.",
            )
        self._model = model.eval()
        self._window = int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30))
        ends: Any = model.generation_config.eos_token_id
        ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
        self._ends = {int(end) for end in (*ids, self._tokenizer.eos_token_id) if end is not None}

    def _answer(self, batch: Sequence[_Call]) -> list[Completion | Exception]:
        """One completion, or the reason why there is none, for each call."""
        try:
            if batch[0].request.choices is not None:
                return self._force(batch)
            return list(self._generate(batch))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(batch) == 1:
                return [
                    RequestRefused(f"{len(batch[0].prompt_ids)} prompt tokens do not fit into the memory of the device")
                ]
            half = len(batch) // 2
            return [*self._answer(batch[:half]), *self._answer(batch[half:])]

    @torch.inference_mode()
    def _force(self, batch: Sequence[_Call]) -> list[Completion | Exception]:
        logits = self._forward(*self._pad(batch), None).logits[:, -1].float()
        logprobs = torch.log_softmax(logits, dim=-1).cpu()
        return [self._forced(call, row) for call, row in zip(batch, logprobs, strict=True)]

    def _forced(self, call: _Call, logprobs: torch.Tensor) -> Completion | Exception:
        assert call.request.choices is not None
        try:
            ids = choice_ids(self._tokenizer, call.request.choices)
        except RequestRefused as error:
            return error
        first, second = (float(logprobs[i]) for i in ids)
        chosen = 0 if first >= second else 1
        text, token = call.request.choices[chosen], ids[chosen]
        return Completion(text, "stop", len(call.prompt_ids), 0, 1, (token,), (first, second))

    @torch.inference_mode()
    def _generate(self, batch: Sequence[_Call]) -> list[Completion]:
        ids, mask = self._pad(batch)
        answers: list[list[int]] = [[] for _ in batch]
        samplers = [(call.request.sampling, Random(call.request.seed)) for call in batch]
        live = list(range(len(batch)))
        output = self._forward(ids, mask, None)
        while True:
            if self._stop.is_set():
                raise EngineGaveUp("the engine was closed in the middle of an answer")
            tokens = sample(output.logits[:, -1].float(), [samplers[i] for i in live])
            for i, token in zip(live, tokens, strict=True):
                answers[i].append(token)
            stay = [n for n, i in enumerate(live) if not self._finished(batch[i], answers[i])]
            if not stay:
                break
            cache = output.past_key_values
            if len(stay) < len(live):
                index = torch.tensor(stay, device=mask.device)
                cache.batch_select_indices(index)
                mask, live = mask[index], [live[n] for n in stay]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            last = torch.tensor([[answers[i][-1]] for i in live], device=mask.device)
            output = self._forward(last, mask, cache)
        return [self._completion(call, answer) for call, answer in zip(batch, answers, strict=True)]

    def _pad(self, batch: Sequence[_Call]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt ids [batch, longest] padded on the left, and their mask, on the model's device."""
        longest = max(len(call.prompt_ids) for call in batch)
        ids = [[0] * (longest - len(call.prompt_ids)) + call.prompt_ids for call in batch]
        mask = [[0] * (longest - len(call.prompt_ids)) + [1] * len(call.prompt_ids) for call in batch]
        device = self._model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

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

    def _finished(self, call: _Call, answer: list[int]) -> bool:
        return answer[-1] in self._ends or len(answer) >= call.request.sampling.max_tokens

    def _completion(self, call: _Call, answer: list[int]) -> Completion:
        ended = answer[-1] in self._ends
        said = answer[:-1] if ended else answer
        text: str = self._tokenizer.decode(said, skip_special_tokens=True)
        return Completion(text, "stop" if ended else "length", len(call.prompt_ids), 0, len(answer), tuple(said))


def next_batch(waiting: Sequence[_Call], slots: int) -> list[_Call]:
    """The calls to serve next: forced ones if any wait, else the first in line and those like it in length.

    At most `slots`, and at most a third of the batch is padding: on a CPU, long prompts beside short ones cost more in
    padding than a larger batch saves.
    """
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


def _find(model: str, trust_remote_code: bool) -> tuple[str, str | None, str]:
    """Where to load a model from, which revision of it, and its name with revision as rows and call keys carry it."""
    if model == "embedded":
        folder, name = embedded_model()
        return str(folder), None, name
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BadInput(
                f"--model {model}", "a folder without config.json", "a model saved by transformers", "Check the path."
            )
        return model, None, f"{folder.resolve().name}@{folder_fingerprint(folder)}"
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"--model {model}",
            f"no local folder of that name, and the hub has none or does not answer ({_brief(error)})",
            "a local folder, a Hugging Face id, or 'embedded'",
            "Check the spelling; for a gated model set HF_TOKEN.",
        ) from error
    revision: str | None = getattr(config, "_commit_hash", None)
    return model, revision, f"{model}@{(revision or digest(config.to_dict()))[:12]}"


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
