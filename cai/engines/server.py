"""Any server that speaks the OpenAI chat protocol: vLLM, SGLang, llama.cpp, transformers serve, hosted ones.

Several endpoints may serve the same model; a row sticks to one of them, where its prefix lies in the cache. Requests
are repeated with backoff and jitter on 408, 409, 429, 5xx, time-outs and broken connections (by the openai client,
which also honours Retry-After), within a deadline for the whole call. The key comes from CAI_API_KEY or
OPENAI_API_KEY only.
"""

import asyncio
import math
import os
import random
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

from cai.engines import Completion, Request, Spec
from cai.errors import BadInput, EngineGaveUp, RequestRefused
from cai.ids import digest
from cai.rows import as_turns, is_text

# Enough to find two given words among the likeliest first tokens; more is refused by common servers.
TOP_LOGPROBS = 20


class ServerEngine:
    """The model behind one or more endpoints. See `Engine` for the contract."""

    def __init__(self, spec: Spec) -> None:
        if not spec.endpoints:
            raise BadInput("endpoint", "none", "the address of a server", "Add --endpoint http://127.0.0.1:8000/v1.")
        self._spec = spec
        self._endpoints = tuple(_base_url(endpoint) for endpoint in spec.endpoints)
        self._key = os.environ.get("CAI_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        self._served = spec.model or _only_model(self._endpoints[0], self._key)
        self.model = f"{self._served}@server"
        self.slots = spec.slots or 64 * len(self._endpoints)
        self.restarts = 0
        self._logprobs = True
        self._answered = [0] * len(self._endpoints)

    async def __aenter__(self) -> Self:
        self._clients = [
            openai.AsyncOpenAI(
                base_url=endpoint,
                api_key=self._key,
                max_retries=self._spec.retries,
                timeout=openai.Timeout(self._spec.timeout_seconds, connect=10.0),
            )
            for endpoint in self._endpoints
        ]
        for endpoint in self._endpoints:
            served = await asyncio.to_thread(served_models, endpoint, self._key)
            if served and self._served not in served:
                await self._close()
                found = f"no model '{self._served}'"
                raise BadInput(
                    endpoint, found, f"one that it serves: {', '.join(served)}", "Give --model one of these."
                )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        for client in self._clients:
            await client.close()

    def versions(self) -> Mapping[str, str]:
        return {"openai": version("openai")}

    async def complete(self, request: Request) -> Completion:
        home = int(digest(request.row_id)[:8], 16) % len(self._clients)
        answered_before = self._answered[home]
        try:
            async with asyncio.timeout(self._spec.deadline_seconds):
                answer = await self._ask_until_read(home, request)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise EngineGaveUp(
                f"{self._endpoints[home]} refuses the key ({error.status_code}). Set CAI_API_KEY."
            ) from error
        except openai.NotFoundError as error:
            if self._answered[home] == 0:
                raise EngineGaveUp(
                    f"{self._endpoints[home]} answers 404: {_short(error.message)}. Check --model."
                ) from error
            raise RequestRefused(f"the server answered 404: {_short(error.message)}") from error
        except (
            openai.APITimeoutError,
            openai.APIConnectionError,
            openai.RateLimitError,
            openai.InternalServerError,
        ) as error:
            raise self._verdict(home, answered_before, error) from error
        except openai.APIStatusError as error:
            raise RequestRefused(f"the server answered {error.status_code}: {_short(error.message)}") from error
        except (TimeoutError, openai.APIError, _BadAnswer) as error:
            raise self._verdict(home, answered_before, error) from error
        self._answered[home] += 1
        return answer

    async def _ask_until_read(self, home: int, request: Request) -> Completion:
        """Ask, and ask again where the status was good and no completion came; the client itself repeats the rest."""
        for number in range(self._spec.retries + 1):
            try:
                return await self._ask(self._clients[home], request)
            except _BadAnswer:
                if number == self._spec.retries:
                    raise
                await asyncio.sleep(min(0.5 * 2**number, 8.0) * random.uniform(0.5, 1.0))
        raise AssertionError("the last try returns or raises")

    async def _ask(self, client: openai.AsyncOpenAI, request: Request) -> Completion:
        if request.choices is not None and self._logprobs:
            try:
                return _forced(
                    await self._create(client, request, logprobs=True, top_logprobs=TOP_LOGPROBS), request.choices
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                # Either the request itself is refused, and then it is again, or this server has no logprobs.
                answer = _free(await self._create(client, request))
                self._logprobs = False
                return answer
        return _free(await self._create(client, request))

    async def _create(self, client: openai.AsyncOpenAI, request: Request, **options: Any) -> ChatCompletion:
        forced = request.choices is not None
        if self._spec.send_seed and not forced and request.sampling.temperature > 0:
            options["seed"] = request.seed
        messages: Any = as_turns(request.messages)
        try:
            answer: Any = await client.chat.completions.create(
                model=self._served,
                messages=messages,
                max_tokens=1 if forced else request.sampling.max_tokens,
                temperature=0.0 if forced else request.sampling.temperature,
                top_p=1.0 if forced else request.sampling.top_p,
                **options,
            )
        except ValueError as error:
            raise _BadAnswer(f"an answer that is not JSON ({error})") from error
        if not isinstance(answer, ChatCompletion) or not answer.choices or not answer.choices[0].message:
            raise _BadAnswer(f"an answer that is not a chat completion: {_short(str(answer))}")
        return answer

    def _verdict(self, home: int, answered_before: int, error: Exception) -> Exception:
        """Whose fault a call's last failure was: the call's, if the server has answered others meanwhile, else its own.

        A row is dropped only for what is wrong with the row; a server in trouble ends the run, which can go on later.
        """
        what = _short(str(error)) or f"no answer within {self._spec.deadline_seconds:g} s"
        if self._answered[home] > answered_before and not isinstance(error, openai.RateLimitError):
            return RequestRefused(f"the server kept failing on this call while it answered others: {what}")
        return EngineGaveUp(
            f"{self._endpoints[home]} does not answer any more: {what}. The same command goes on later."
        )


class _BadAnswer(Exception):
    """A reply with a good status and no completion in it."""


def served_models(endpoint: str, key: str) -> list[str]:
    """The models that an endpoint lists; empty if it keeps no list. Raises BadInput if it cannot be reached."""
    try:
        with openai.OpenAI(base_url=endpoint, api_key=key, max_retries=0, timeout=30.0) as client:
            return [model.id for model in client.models.list()]
    except openai.APIConnectionError as error:
        cause = _short(str(error.__cause__ or error))
        raise BadInput(
            endpoint,
            f"no server that answers ({cause})",
            "an OpenAI-compatible server",
            "Start it, or mend --endpoint.",
        ) from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        found = f"a server that refuses the key ({error.status_code})"
        raise BadInput(endpoint, found, "access", "Set CAI_API_KEY.") from error
    except openai.InternalServerError as error:
        raise BadInput(
            endpoint, f"the status {error.status_code}", "a server that works", "See the server's log."
        ) from error
    except (openai.APIError, AttributeError, TypeError, ValueError):
        return []  # a server that keeps no such list may still answer chats


def _only_model(endpoint: str, key: str) -> str:
    served = served_models(endpoint, key)
    if len(served) != 1:
        found = f"{len(served)} models ({', '.join(served)})" if served else "no list of models"
        raise BadInput(endpoint, found, "exactly one, since --model is not given", "Give --model.")
    return served[0]


def _base_url(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BadInput("endpoint", f"'{endpoint}'", "an address such as http://127.0.0.1:8000/v1", "Mend --endpoint.")
    return endpoint.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def _free(answer: ChatCompletion) -> Completion:
    choice, usage = answer.choices[0], answer.usage
    details = usage.prompt_tokens_details if usage else None
    text: Any = choice.message.content or ""
    if not isinstance(text, str) or not is_text(text):
        raise _BadAnswer(f"content that is not text: {_short(repr(text))}")
    if choice.finish_reason not in (None, "stop", "length"):
        raise RequestRefused(f"the server ended the answer with '{choice.finish_reason}'")
    return Completion(
        text=text,
        finish="length" if choice.finish_reason == "length" else "stop",
        prompt_tokens=(usage.prompt_tokens or 0) if usage else 0,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        completion_tokens=(usage.completion_tokens or 0) if usage else 0,
    )


def _forced(answer: ChatCompletion, choices: tuple[str, ...]) -> Completion:
    free = _free(answer)
    told = answer.choices[0].logprobs
    tops: Any = told.content[0].top_logprobs if told is not None and told.content else None
    # What is no log-probability (NaN, infinite, above 0 by more than rounding) says nothing.
    likeliest = [
        (str(top.token), min(top.logprob, 0.0))
        for top in tops or ()
        if isinstance(top.logprob, int | float) and top.logprob <= 1e-3 and top.logprob > -math.inf
    ]
    if not likeliest:
        return free
    found = choice_logprobs(likeliest, choices)
    text = choices[found.index(max(found))] if found else free.text
    return Completion(text, "stop", free.prompt_tokens, free.cached_tokens, free.completion_tokens, (), found)


def choice_logprobs(likeliest: Sequence[tuple[str, float]], choices: tuple[str, ...]) -> tuple[float, ...]:
    """The log-probabilities of some words among the likeliest first tokens; empty if none of them is there.

    White space around a token is ignored and its spellings are added up. A word that is not listed is at most as
    probable as the last one that is, and as all that are not listed; that bound is taken, so that a probability is
    never made out of nothing.
    """
    sums = {word: sum(math.exp(logprob) for token, logprob in likeliest if token.strip() == word) for word in choices}
    if not any(sums.values()):
        return ()
    listed = [math.exp(logprob) for _, logprob in likeliest]
    bound = max(min(*listed, 1 - sum(listed)), 1e-30)  # some servers list -9999
    return tuple(math.log(sums[word] or bound) for word in choices)


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
