"""Any server that speaks the OpenAI chat protocol: vLLM, SGLang, llama.cpp, transformers serve, hosted ones.

Several endpoints may serve the same model; `endpoints.py` says which one a call goes to. A try that is not answered is
repeated with backoff and jitter, at another endpoint if there is one, within a deadline for the whole call. While a
server is not there at all (it is being restarted) or asks for fewer calls, its calls wait for it up to that deadline;
other faults are repeated `retries` times. The key comes from CAI_API_KEY or OPENAI_API_KEY only, see `key.py`.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import openai

from cai.engines import Completion, Request, Sampling, Spec
from cai.engines.addresses import LOOK_SECONDS, NotThere, base_url, models_at, only_model
from cai.engines.connection import client_of
from cai.engines.endpoints import Endpoint, Endpoints, Turn
from cai.engines.faults import Fault, cause_of, elsewhere, fault_of, retry_after_of, said
from cai.engines.key import gives_away, server_key, without
from cai.engines.replies import BadAnswer, completion_of
from cai.errors import BadInput, EngineGaveUp, RequestRefused
from cai.pasted import word
from cai.rows import Message, as_turns

# Enough to find two given words among the likeliest first tokens; more is refused by common servers.
TOP_LOGPROBS = 20
SLOTS = 64  # for each endpoint
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.5, 8.0
HARMLESS_SECONDS = 15.0
# So many calls in a row may be dropped because a harmless one was answered: a server that answers nothing else is ill.
MOST_BLAMED = 8


class ServerEngine:
    """The model behind one or more endpoints. See `Engine` for the contract."""

    def __init__(self, spec: Spec) -> None:
        if not spec.endpoints:
            raise BadInput("endpoint", "none", "the address of a server", "Add --endpoint http://127.0.0.1:8000/v1.")
        self._spec = spec
        urls = dict.fromkeys(base_url(endpoint) for endpoint in spec.endpoints)
        self._endpoints = Endpoints(urls, spec.retries, spec.deadline_seconds)
        self._key = server_key()
        self._served = spec.model or only_model(list(urls), self._key)
        self.model = f"{self._served}@server"
        self.restarts = 0
        self._blamed = 0

    @property
    def slots(self) -> int:
        live, all = self._endpoints.live, len(self._endpoints.all)
        return SLOTS * live if self._spec.slots is None else -(-self._spec.slots * live // all)

    async def __aenter__(self) -> Self:
        seconds = self._spec.timeout_seconds
        self._clients = {one: client_of(one.url, self._key, seconds) for one in self._endpoints.all}
        try:
            await self._look_at_all()
        except BaseException:
            await self._close()
            raise
        return self

    async def _look_at_all(self) -> None:
        """Take out those that cannot be reached. Raises BadInput if none can, or one serves another model."""
        found = await asyncio.gather(*map(self._models, self._endpoints.all), return_exceptions=True)
        away: list[tuple[Endpoint, NotThere]] = []
        for endpoint, served in zip(self._endpoints.all, found, strict=True):
            if isinstance(served, NotThere):
                away.append((endpoint, served))
            elif isinstance(served, BaseException):
                raise served
            elif served and self._served not in served:
                expected = f"one that it serves: {', '.join(served)}"
                raise BadInput(endpoint.url, f"no model '{self._served}'", expected, "Give --model one of these.")
        if len(away) == len(found):
            raise away[0][1]
        for endpoint, error in away:
            self._endpoints.take_out(endpoint, Fault("gone", error.found))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        for client in self._clients.values():
            await client.close()

    def versions(self) -> Mapping[str, str]:
        return {"openai": version("openai")}

    async def complete(self, request: Request) -> Completion:
        call = _Call()
        try:
            async with asyncio.timeout(self._spec.deadline_seconds):
                while True:
                    call.blamed = False  # a call that no endpoint takes has not failed
                    turn = await self._endpoints.take(request.row_id, call.failed_at)
                    call.blamed, call.answered_before = True, self._endpoints.answered
                    try:
                        answer = await self._try(turn, request)
                    except Fault as fault:
                        call.fault, pause = fault, self._pause_after(call, turn, fault)
                    else:
                        self._blamed = 0
                        return answer
                    finally:
                        self._endpoints.give_back(turn)
                    await asyncio.sleep(pause)
                    if call.tries > self._spec.retries and self._nowhere_else(call):
                        self._refuse_if_blamed(call, str(call.fault))
                        # The server may have come back just now: if it answers again, the call has one more try.
                        call.proven = call.blamed and await self._answers_a_harmless_call(call.failed_at)
                        if not call.proven and call.fault.kind in ("silent", "failing"):
                            raise self._end(str(call.fault)) from call.fault
        except TimeoutError:
            what = f"no answer within {self._spec.deadline_seconds:g} s" + (f" ({call.fault})" if call.fault else "")
        call.proven = call.proven or (call.blamed and await self._answers_a_harmless_call(call.failed_at))
        self._refuse_if_blamed(call, what)
        raise self._end(what) from call.fault

    async def _try(self, turn: Turn, request: Request) -> Completion:
        """One try at one endpoint. Raises Fault if it is not answered, RequestRefused, EngineGaveUp."""
        endpoint, seconds = turn.endpoint, self._spec.timeout_seconds
        if turn.trial:
            await self._look(endpoint)
        try:
            async with asyncio.timeout(seconds):  # the client's own time-out begins anew with every byte
                answer = await self._ask(endpoint, request)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise Fault("silent", f"no answer within {seconds:g} s") from error
        except openai.NotFoundError as error:
            await self._look(endpoint)
            if endpoint.answered == 0:
                # Another endpoint may know the model; the last one that is left, and never answered, ends the run.
                if turn.trial or self._endpoints.answered or self._endpoints.live > 1:
                    raise Fault("gone", said(error)) from error
                raise EngineGaveUp(f"{endpoint.url} answers {said(error)}. Check --model.") from error
            raise RequestRefused(f"the server answered {said(error)}") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise EngineGaveUp(f"{endpoint.url} refuses the key ({error.status_code}). Set CAI_API_KEY.") from error
        except (openai.APIError, BadAnswer) as error:
            if address := elsewhere(error):
                found = f"sends its callers on to {address}, and no prompt follows it there"
                raise EngineGaveUp(f"{endpoint.url} {found}. Give --endpoint {word(address)}.") from error
            fault = fault_of(error)
            if fault is not None:
                raise fault from error
            self._endpoints.answers(turn, refused=True)
            raise RequestRefused(f"the server answered {said(error)}") from error
        except RequestRefused:
            self._endpoints.answers(turn, refused=True)
            raise
        self._endpoints.answers(turn)
        return answer

    async def _look(self, endpoint: Endpoint) -> None:
        """Raise Fault if the endpoint is not there or serves another model now; EngineGaveUp if it is the only one."""
        try:
            served = await self._models(endpoint)
        except NotThere as error:
            assert error.__cause__ is not None
            raise Fault("gone", cause_of(error.__cause__), retry_after_of(error.__cause__)) from error
        except BadInput:  # the key: the call itself will be told
            return
        if served and self._served not in served:
            if len(self._endpoints.all) == 1:
                raise EngineGaveUp(
                    f"{endpoint.url} serves {', '.join(served)} now, and not '{self._served}'. Start that model again; "
                    "the same command then goes on."
                )
            raise Fault("gone", f"it serves {', '.join(served)}, and not '{self._served}'")

    async def _models(self, endpoint: Endpoint) -> list[str]:
        seconds = min(LOOK_SECONDS, self._spec.timeout_seconds)
        return await models_at(self._clients[endpoint], endpoint.url, self._key, seconds)

    async def _ask(self, endpoint: Endpoint, request: Request) -> Completion:
        if request.choices is not None and endpoint.logprobs:
            try:
                return await self._create(endpoint, request, logprobs=True, top_logprobs=TOP_LOGPROBS)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                # Either the request itself is refused, and then it is again, or this server has no logprobs.
                completion = await self._create(endpoint, request)
                endpoint.logprobs = False
                return completion
        return await self._create(endpoint, request)

    async def _create(self, endpoint: Endpoint, request: Request, **options: Any) -> Completion:
        one_word = request.choices is not None
        if self._spec.send_seed and not one_word and request.sampling.temperature > 0:
            options["seed"] = request.seed
        messages: Any = as_turns(request.messages)
        answer = await self._clients[endpoint].chat.completions.with_raw_response.create(
            model=self._served,
            messages=messages,
            max_tokens=1 if one_word else request.sampling.max_tokens,
            temperature=0.0 if one_word else request.sampling.temperature,
            top_p=1.0 if one_word else request.sampling.top_p,
            **options,
        )
        with without(self._key):
            completion = completion_of(answer.content, request.choices if "logprobs" in options else None)
        if gives_away(completion.text, (message.content for message in request.messages), self._key):
            raise EngineGaveUp(
                f"{endpoint.url} answers with the key in its text, as a gateway does that echoes what it was sent, and "
                "nothing of it is kept. Mend it, or give another --endpoint; if the key is none that matters, set "
                "CAI_API_KEY=none."
            )
        return completion

    # What a failed try leads to

    def _pause_after(self, call: "_Call", turn: Turn, fault: Fault) -> float:
        """The seconds until the call's next try. Raises EngineGaveUp if a server asks for more than a call may take."""
        call.blamed = self._endpoints.fails(turn, fault)
        call.failed_at[turn.endpoint] += 1
        call.tries += call.blamed
        if not self._nowhere_else(call):
            return 0.0
        told, deadline = fault.retry_after or 0.0, self._spec.deadline_seconds
        if told >= deadline and self._endpoints.soonest() > call.begun + deadline:
            raise self._end(str(fault)) from fault
        if call.tries > self._spec.retries or (told and not self._endpoints.ready()):
            return 0.0  # there is no other try, or whoever takes the next turn waits for as long as the server has said
        doubled = FIRST_BACKOFF_SECONDS * 2 ** min(call.failed_at.total() - 1, 10)
        return min(doubled, LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1.0)

    def _nowhere_else(self, call: "_Call") -> bool:
        """Whether the call has failed at every endpoint that may be asked now."""
        return all(one in call.failed_at for one in self._endpoints.ready())

    def _refuse_if_blamed(self, call: "_Call", what: str) -> None:
        """Raise RequestRefused if it is the call that fails, and not the server: others are answered meanwhile.

        A row is dropped only for what is wrong with the row; a server in trouble ends the run, which can go on later.
        """
        if call.blamed and self._endpoints.answered > call.answered_before:
            raise RequestRefused(f"the server kept failing on this call while it answered others: {what}")
        if call.blamed and call.proven and self._blamed < MOST_BLAMED:
            self._blamed += 1
            raise RequestRefused(f"the server kept failing on this call and answers a harmless one: {what}")

    def _end(self, what: str) -> EngineGaveUp:
        count = len(self._endpoints.all)
        who = f"None of the {count} endpoints answers" if count > 1 else f"{self._endpoints.all[0].url} does not answer"
        return EngineGaveUp(f"{who} any more: {what}. The same command goes on later, also with another --endpoint.")

    async def _answers_a_harmless_call(self, endpoints: Iterable[Endpoint]) -> bool:
        """Whether one of the endpoints at which a call has failed answers another; it is given some tries too.

        Perhaps nobody else waits for an answer: that call may be all that is left of the run.
        """
        if self._blamed >= MOST_BLAMED:
            return False
        harmless = Request("probe", "", (Message("user", "Hello"),), Sampling(1, 0.0), 0)
        with suppress(TimeoutError):
            async with asyncio.timeout(HARMLESS_SECONDS):
                for pause in (0.0, 1.0, 2.0):
                    await asyncio.sleep(pause * FIRST_BACKOFF_SECONDS)
                    for endpoint in endpoints or self._endpoints.ready():
                        with suppress(TimeoutError, openai.APIError, BadAnswer, RequestRefused):
                            async with asyncio.timeout(min(HARMLESS_SECONDS / 3, self._spec.timeout_seconds)):
                                await self._create(endpoint, harmless)
                            return True
        return False


@dataclass(slots=True)
class _Call:
    """How a call has fared so far. `tries` are the failed ones that count, `blamed` says whether the last one did.

    `answered_before` is what all endpoints had answered when the last try began; `proven` says that just before it the
    server has answered a harmless call.
    """

    begun: float = field(default_factory=time.monotonic)
    failed_at: Counter[Endpoint] = field(default_factory=Counter[Endpoint])
    tries: int = 0
    blamed: bool = True
    proven: bool = False
    fault: Fault | None = None
    answered_before: int = 0
