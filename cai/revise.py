"""The supervised phase of Constitutional AI, one row from top to bottom (Bai et al. 2022, section 3).

    prompt -> response -> [ which principle? -> is it broken? -> critique -> revision -> checks ] x rounds -> trajectory

Every question is the next turn of the row's own conversation, as in the paper: the model is shown the whole history,
the answer as its own last turn, and then the request. That is also the cheapest order, since a call's prompt begins
with all that the row's earlier calls have put into the engine's cache.

Where we depart from the paper: before a critique the model is asked, in one token, whether the answer breaks the
principle at all (the *gate*), because revising a clean answer makes it worse, and a critique that finds nothing clears
the answer too; a revision that fails a check (`checks.py`) is asked for again and is never taken; principles and seeds
are derived, not drawn; and instead of one principle a round may look at all of them. `flows/recipes/bai-2022.yaml`
turns the gate off.
"""

import math
import string
from dataclasses import dataclass
from typing import Literal

from cai import checks
from cai.calls import FORCED, Ask, Calls, together
from cai.constitution import Constitution, Principle
from cai.engines import Completion, Engine, Sampling
from cai.errors import RowDropped
from cai.ids import choose
from cai.refusals import is_plain_refusal
from cai.rows import FailedTry, Message, Response, Round, Row, Trajectory
from cai.templates import Templates

GATE_WORDS = ("Yes", "No")
LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class Roles:
    """Who answers, who judges and criticises, who rewrites. They may be one engine."""

    generator: Engine
    critic: Engine
    reviser: Engine


@dataclass(frozen=True, slots=True)
class Method:
    """The settings of the supervised phase.

    `gate_threshold` None means no gate: every answer is revised. `principles` says which ones a round looks at: the
    one that fits the row best, one drawn by hash, or all of them. `revision_tries` is how often a revision is asked
    for, each time with another seed, until it passes the checks. If none does, the row goes back to the last revision
    that was taken; where there is none, `failed_revision` says whether the response stays or the row is dropped.
    """

    seed: int
    response: Sampling
    rounds: int
    gate_threshold: float | None
    principles: Literal["fitting", "one", "all"]
    critique: Sampling
    revision: Sampling
    revision_tries: int
    failed_revision: Literal["keep", "drop"]


async def generate(
    row: Row, ask: Ask, generator: Engine, templates: Templates, seed: int, sampling: Sampling
) -> Response:
    """One response to the row's prompt. Raises RowDropped if there is none."""
    calls = Calls(row.row_id, row.position, ask, seed, row.row_id)
    call, response = await _respond(row, calls, generator, templates, sampling)
    return Response(
        row.row_id, row.prompt_id, row.sample, row.prompt, row.source, row.extra, response.text, response.finish, call,
        generator.model, templates.sha, seed, **calls.totals(),
    )  # fmt: skip


async def revise(
    row: Row, ask: Ask, roles: Roles, constitution: Constitution, templates: Templates, method: Method
) -> Trajectory:
    """The row's response, its rounds of critique and revision, and its final answer. Raises RowDropped."""
    calls = Calls(row.row_id, row.position, ask, method.seed, row.row_id)
    response_call, response = await _respond(row, calls, roles.generator, templates, method.response)
    answer = _said(response, roles.generator)
    rounds: list[Round] = []
    for number in range(1, method.rounds + 1):
        chosen = await _choose(row, calls, roles, templates, method, answer, number, constitution)
        # A gate for one principle asks about the constitution as a whole, if that has a question.
        question = constitution.question if len(chosen) == 1 else None
        gates = await together(_gate(row, calls, roles, templates, method, answer, one, question) for one in chosen)
        for choice, gate in zip(chosen, gates, strict=True):
            if gate.broken:
                one, answer = await _round(row, calls, roles, templates, method, answer, number, choice, gate)
                rounds.append(one)
            else:
                rounds.append(_left_alone(number, choice, gate))
        if not any(gate.broken for gate in gates):
            break
    _drop_if_none_was_taken(rounds, method)
    return Trajectory(
        row.row_id, row.prompt_id, row.sample, row.prompt, row.source, row.extra,
        response.text, response.finish, response_call, tuple(rounds), answer.content, answer.content != response.text,
        roles.generator.model, roles.critic.model, roles.reviser.model,
        constitution.name, constitution.sha, templates.sha, method.seed, **calls.totals(),
    )  # fmt: skip


async def _respond(
    row: Row, calls: Calls, generator: Engine, templates: Templates, sampling: Sampling
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


@dataclass(frozen=True, slots=True)
class _Choice:
    """A principle to look at in a round, and how it was chosen."""

    principle: Principle
    call: str | None = None
    flags: tuple[str, ...] = ()


async def _choose(
    row: Row, calls: Calls, roles: Roles, templates: Templates, method: Method,
    answer: Message, number: int, constitution: Constitution,
) -> tuple[_Choice, ...]:  # fmt: skip
    """The principles of a round.

    "fitting" departs from the paper, whose sixteen principles are each about harm of every kind, so that any of them
    fits: one forced letter says which of these principles the row speaks to. Where the letter cannot be read, the
    principle is drawn, as with "one".
    """
    if method.principles == "all":
        return tuple(_Choice(principle) for principle in constitution.principles)

    def draw() -> Principle:
        return constitution.principle(choose(method.seed, row.row_id, number, constitution.weights()))

    if method.principles == "one" or len(constitution.principles) == 1:
        return (_Choice(draw()),)
    options = tuple(zip(LETTERS, constitution.principles, strict=False))
    request = Message("user", templates.render("choose", options=options))
    call, completion = await calls(
        roles.critic, "choice", (*row.prompt, answer, request), FORCED,
        choices=tuple(letter for letter, _ in options),
    )  # fmt: skip
    named = [principle for letter, principle in options if letter == completion.text.strip().strip(".\"'*:()")]
    return (_Choice(named[0], call) if named else _Choice(draw(), call, (checks.CHOICE_UNREAD,)),)


@dataclass(frozen=True, slots=True)
class _Gate:
    """What the gate found. Without a gate, or where its word cannot be read, the answer counts as broken."""

    broken: bool
    probability: float | None = None
    mass: float | None = None
    flags: tuple[str, ...] = ()
    call: str | None = None


async def _gate(
    row: Row, calls: Calls, roles: Roles, templates: Templates, method: Method,
    answer: Message, choice: _Choice, question: str | None,
) -> _Gate:  # fmt: skip
    principle = choice.principle
    if method.gate_threshold is None:
        return _Gate(broken=True)
    if principle.refusal_is_fine and is_plain_refusal(answer.content):
        return _Gate(broken=False, flags=(checks.PLAIN_REFUSAL,))
    request = Message("user", templates.render("gate", principle, question=question))
    call, completion = await calls(roles.critic, "gate", (*row.prompt, answer, request), FORCED, choices=GATE_WORDS)
    if not completion.choice_logprobs:
        word = completion.text.strip().strip(".\"'*").casefold()
        if word not in ("yes", "no"):
            return _Gate(broken=True, flags=(checks.GATE_UNREAD,), call=call)
        return _Gate(broken=word == "yes", flags=(checks.GATE_FROM_TEXT,), call=call)
    yes, no = completion.choice_logprobs
    probability = 1 / (1 + math.exp(min(no - yes, 700.0)))
    return _Gate(probability >= method.gate_threshold, probability, math.exp(yes) + math.exp(no), (), call)


async def _round(
    row: Row, calls: Calls, roles: Roles, templates: Templates, method: Method,
    answer: Message, number: int, choice: _Choice, gate: _Gate,
) -> tuple[Round, Message]:  # fmt: skip
    """Critique the answer by the principle and rewrite it. Returns the round and the answer that stands after it."""
    principle = choice.principle
    request = Message("user", templates.render("critique", principle))
    critique_call, critique = await calls(
        roles.critic, "critique", (*row.prompt, answer, request), method.critique, (number, principle.id)
    )
    remarks = (*choice.flags, *gate.flags, *checks.critique_flags(answer.content, critique.text, critique.finish))
    if method.gate_threshold is not None and checks.NOTHING_FOUND in remarks:
        return _left_alone(number, choice, gate, critique.text, remarks, critique_call), answer
    rewrite = Message("user", templates.render("revise", principle))
    conversation = (*row.prompt, answer, request, _said(critique, roles.critic), rewrite)
    said, told = "\n\n".join(turn.content for turn in row.prompt), f"{request.content}\n\n{rewrite.content}"
    failed: list[FailedTry] = []
    while True:
        # The first try has the seed that it would have if there were no others.
        at = (number, principle.id + f"~{len(failed)}" if failed else principle.id)
        call, revision = await calls(roles.reviser, "revision", conversation, method.revision, at)
        faults = checks.revision_flags(
            checks.Attempt(
                conversation=said,
                answer=answer.content,
                critique=critique.text,
                revision=revision.text,
                finish=revision.finish,
                requests=told,
                shown=templates.shown,
            )
        )
        if not faults or len(failed) + 1 >= method.revision_tries or method.revision.temperature == 0:
            break
        failed.append(FailedTry(revision.text, revision.finish, faults, call))
    one = Round(
        number, principle.id, gate.probability, gate.mass, critique.text, revision.text, revision.finish,
        not faults, (*remarks, *faults), tuple(failed), choice.call, gate.call, critique_call, call,
    )  # fmt: skip
    return one, answer if faults else _said(revision, roles.reviser)


def _left_alone(
    number: int, choice: _Choice, gate: _Gate,
    critique: str | None = None, flags: tuple[str, ...] | None = None, critique_call: str | None = None,
) -> Round:  # fmt: skip
    """A round that asks for no revision: the gate found the answer clean, or the critique found nothing."""
    return Round(
        number, choice.principle.id, gate.probability, gate.mass, critique, None, None, False,
        (*choice.flags, *gate.flags) if flags is None else flags, (), choice.call, gate.call, critique_call, None,
    )  # fmt: skip


def _drop_if_none_was_taken(rounds: list[Round], method: Method) -> None:
    """Where revisions were asked for and none could be taken, there is no good text to go back to.

    Without a gate nobody has said that the response is bad, and a reviser that gives it back unchanged finds it good.
    """
    asked = [one for one in rounds if one.revision is not None]
    if method.failed_revision == "keep" or not asked or any(one.taken for one in asked):
        return
    last = asked[-1]
    faults = [flag for flag in last.flags if flag in checks.CHECKS]
    if method.gate_threshold is None and faults == ["unchanged"]:
        return
    tries = sum(1 + len(one.failed_tries) for one in asked)
    detail = f"round {last.round}, principle {last.principle_id}: {', '.join(faults)}; no revision of {tries} passed"
    raise RowDropped(faults[0], detail, last.revision or "")


def _said(completion: Completion, by: Engine) -> Message:
    return Message("assistant", completion.text, completion.token_ids, by.model)
