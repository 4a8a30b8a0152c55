"""The supervised phase of Constitutional AI, one row from top to bottom (Bai et al. 2022, section 3).

    prompt -> response -> [ is the principle broken? -> critique -> revision ] x rounds -> trajectory

Every question is the next turn of the row's own conversation, as in the paper: the model is shown the whole history,
the answer as its own last turn, and then the request. That is also the cheapest order, since a call's prompt begins
with all that the row's earlier calls have put into the engine's cache.

Where we depart from the paper: before a critique the model is asked, in one token, whether the answer breaks the
principle at all (the *gate*), because revising a clean answer makes it worse; principles and seeds are derived, not
drawn; and instead of one principle a round may go through all of them. `flows/recipes/bai-2022.yaml` turns these off.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from cai import checks
from cai.constitution import Constitution, Principle
from cai.engines import Completion, Engine, Request, Sampling
from cai.errors import RequestRefused, RowDropped
from cai.ids import choose, derived_seed
from cai.rows import Message, Response, Round, Row, Trajectory
from cai.templates import Templates

GATE_WORDS = ("Yes", "No")

Ask = Callable[[Engine, Request], Awaitable[tuple[str, Completion]]]


@dataclass(frozen=True, slots=True)
class Roles:
    """Who answers, who judges and criticises, who rewrites. They may be one engine."""

    generator: Engine
    critic: Engine
    reviser: Engine


@dataclass(frozen=True, slots=True)
class Method:
    """The settings of the supervised phase. `gate_threshold` None means no gate: every answer is revised."""

    seed: int
    response: Sampling
    rounds: int
    gate_threshold: float | None
    principles: Literal["one", "all"]
    critique: Sampling
    revision: Sampling


@dataclass(slots=True)
class _Calls:
    """The calls of one row: asks them, and adds up their tokens."""

    row: Row
    ask: Ask
    seed: int
    finished: list[Completion] = field(default_factory=list[Completion])

    async def __call__(
        self,
        engine: Engine,
        purpose: str,
        messages: tuple[Message, ...],
        sampling: Sampling,
        at: tuple[int, str] = (0, ""),
        choices: tuple[str, str] | None = None,
    ) -> tuple[str, Completion]:
        seed = 0 if choices else derived_seed(self.seed, self.row.row_id, at[0], purpose, at[1])
        request = Request(purpose, self.row.row_id, messages, sampling, seed, choices, self.row.position)
        try:
            key, completion = await self.ask(engine, request)
        except RequestRefused as error:
            raise RowDropped("refused_by_engine", f"{purpose}: {error}") from error
        self.finished.append(completion)
        return key, completion

    def tokens(self) -> dict[str, int]:
        names = ("prompt_tokens", "cached_tokens", "completion_tokens")
        return {name: sum(getattr(completion, name) for completion in self.finished) for name in names}


async def generate(
    row: Row, ask: Ask, generator: Engine, templates: Templates, seed: int, sampling: Sampling
) -> Response:
    """One response to the row's prompt. Raises RowDropped if there is none."""
    calls = _Calls(row, ask, seed)
    call, response = await _respond(row, calls, generator, templates, sampling)
    return Response(
        row.row_id, row.prompt_id, row.sample, row.prompt, row.source, row.extra, response.text, response.finish, call,
        generator.model, templates.sha, seed, **calls.tokens(),
    )  # fmt: skip


async def revise(
    row: Row, ask: Ask, roles: Roles, constitution: Constitution, templates: Templates, method: Method
) -> Trajectory:
    """The row's response, its rounds of critique and revision, and its final answer. Raises RowDropped."""
    calls = _Calls(row, ask, method.seed)
    response_call, response = await _respond(row, calls, roles.generator, templates, method.response)
    answer = _said(response, roles.generator)
    rounds: list[Round] = []
    for number in range(1, method.rounds + 1):
        principles = _principles(row, number, constitution, method)
        gates = await _together(_gate(row, calls, roles, templates, method, answer, p) for p in principles)
        for principle, gate in zip(principles, gates, strict=True):
            if gate.broken:
                one, answer = await _round(row, calls, roles, templates, method, answer, number, principle, gate)
                rounds.append(one)
            else:
                rounds.append(_clean(number, principle, gate))
        if not any(gate.broken for gate in gates):
            break
    return Trajectory(
        row.row_id, row.prompt_id, row.sample, row.prompt, row.source, row.extra,
        response.text, response.finish, response_call, tuple(rounds), answer.content, answer.content != response.text,
        roles.generator.model, roles.critic.model, roles.reviser.model,
        constitution.name, constitution.sha, templates.sha, method.seed, **calls.tokens(),
    )  # fmt: skip


async def _respond(
    row: Row, calls: _Calls, generator: Engine, templates: Templates, sampling: Sampling
) -> tuple[str, Completion]:
    instructions = templates.render("respond")
    messages = (
        (Message("system", instructions), *row.prompt)
        if instructions and row.prompt[0].role != "system"
        else row.prompt
    )
    call, response = await calls(generator, "response", messages, sampling)
    if not response.text.strip():
        raise RowDropped("empty_response", "the model answered with nothing", response.text)
    return call, response


def _principles(row: Row, number: int, constitution: Constitution, method: Method) -> tuple[Principle, ...]:
    if method.principles == "all":
        return constitution.principles
    return (constitution.principle(choose(method.seed, row.row_id, number, constitution.weights())),)


@dataclass(frozen=True, slots=True)
class _Gate:
    """What the gate found. Without a gate, or where its word cannot be read, the answer counts as broken."""

    broken: bool
    probability: float | None = None
    mass: float | None = None
    flags: tuple[str, ...] = ()
    call: str | None = None


async def _gate(
    row: Row, calls: _Calls, roles: Roles, templates: Templates, method: Method, answer: Message, principle: Principle
) -> _Gate:
    if method.gate_threshold is None:
        return _Gate(broken=True)
    question = Message("user", templates.render("gate", principle))
    messages = (*row.prompt, answer, question)
    call, completion = await calls(
        roles.critic, "gate", messages, Sampling(max_tokens=1, temperature=0.0), choices=GATE_WORDS
    )
    if completion.choice_logprobs is None:
        word = completion.text.strip().strip(".\"'*").casefold()
        if word not in ("yes", "no"):
            return _Gate(broken=True, flags=(checks.GATE_UNREAD,), call=call)
        return _Gate(broken=word == "yes", flags=(checks.GATE_FROM_TEXT,), call=call)
    yes, no = completion.choice_logprobs
    probability = 1 / (1 + math.exp(min(no - yes, 700.0)))
    return _Gate(probability >= method.gate_threshold, probability, math.exp(yes) + math.exp(no), (), call)


async def _round(
    row: Row, calls: _Calls, roles: Roles, templates: Templates, method: Method,
    answer: Message, number: int, principle: Principle, gate: _Gate,
) -> tuple[Round, Message]:  # fmt: skip
    """Critique the answer by the principle and rewrite it. Returns the round and the answer that stands after it."""
    at = (number, principle.id)
    request = Message("user", templates.render("critique", principle))
    critique_call, critique = await calls(roles.critic, "critique", (*row.prompt, answer, request), method.critique, at)
    conversation = (*row.prompt, answer, request, _said(critique, roles.critic))
    rewrite = Message("user", templates.render("revise", principle))
    revision_call, revision = await calls(roles.reviser, "revision", (*conversation, rewrite), method.revision, at)
    flags = checks.revision_flags(
        answer.content, critique.text, critique.finish, revision.text, revision.finish, templates.shown
    )
    taken = answer if checks.NOT_TAKEN.intersection(flags) else _said(revision, roles.reviser)
    one = Round(
        number, principle.id, gate.probability, gate.mass, critique.text, revision.text, revision.finish,
        (*gate.flags, *flags), gate.call, critique_call, revision_call,
    )  # fmt: skip
    return one, taken


def _clean(number: int, principle: Principle, gate: _Gate) -> Round:
    return Round(number, principle.id, gate.probability, gate.mass, None, None, None, gate.flags, gate.call, None, None)


async def _together(gates: Iterable[Coroutine[Any, Any, _Gate]]) -> list[_Gate]:
    """All of them, or the first error once the others have ended: a row that is over has no call under way."""
    tasks = [asyncio.ensure_future(gate) for gate in gates]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _said(completion: Completion, by: Engine) -> Message:
    return Message("assistant", completion.text, completion.token_ids, by.model)
