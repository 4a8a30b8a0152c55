"""The method, beside the paper. Several of these are bugs that other pipelines shipped."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from cai.constitution import Constitution
from cai.engines import Completion, Request, Sampling
from cai.engines.scripted import ScriptedEngine
from cai.errors import RequestRefused, RowDropped
from cai.ids import choose
from cai.revise import Roles, generate, revise
from cai.rows import Message
from cai.templates import Templates, load_templates
from tests.conftest import Recorder, method, roles, row, script

CONVERSATION = [
    ("system", "Be kind."),
    ("user", "one: two"),
    ("assistant", "three"),
    ("user", "first paragraph\n\nsecond: yes"),
]


async def test_each_question_is_the_next_turn_of_the_rows_own_conversation(
    constitution: Constitution, templates: Templates
):
    ask = Recorder()
    told = row(CONVERSATION)
    trajectory = await revise(told, ask, roles(), constitution, templates, method(rounds=1))
    response, gate, critique, revision = ask.requests
    assert [r.purpose for r in ask.requests] == ["response", "gate", "critique", "revision"]
    assert response.messages == told.prompt, "the whole history, and nothing else"
    answer = Message("assistant", "first answer")
    principle = constitution.principle(trajectory.rounds[0].principle_id)
    asked = templates.render("gate", principle, question=constitution.question)
    assert constitution.question in asked
    assert gate.messages == (*told.prompt, answer, Message("user", asked))
    assert critique.messages == (*told.prompt, answer, Message("user", templates.render("critique", principle)))
    said = Message("assistant", "a critique")
    assert revision.messages == (*critique.messages, said, Message("user", templates.render("revise", principle)))


async def test_the_final_answer_is_the_last_revision_and_the_response_is_kept(
    constitution: Constitution, templates: Templates
):
    ask = Recorder()
    engine = roles(script(revision=lambda r: f"revision {len([q for q in ask.requests if q.purpose == 'revision'])}"))
    trajectory = await revise(row(), ask, engine, constitution, templates, method(rounds=3))
    assert (trajectory.response, trajectory.final, trajectory.changed) == ("first answer", "revision 3", True)
    assert [one.revision for one in trajectory.rounds] == ["revision 1", "revision 2", "revision 3"]
    gates = [request.messages[-2].content for request in ask.requests if request.purpose == "gate"]
    assert gates == ["first answer", "revision 1", "revision 2"], "each round looks at the answer that stands"


async def test_a_clean_answer_is_left_alone_and_the_row_ends(constitution: Constitution, templates: Templates):
    ask = Recorder()
    trajectory = await revise(row(), ask, roles(script(gate=0.2)), constitution, templates, method(rounds=4))
    assert ask.purposes() == ["response", "gate"]
    assert (trajectory.final, trajectory.changed, len(trajectory.rounds)) == ("first answer", False, 1)
    one = trajectory.rounds[0]
    assert one.violation_probability == pytest.approx(0.2)
    assert one.gate_mass == pytest.approx(1.0)
    assert (one.critique, one.revision, one.finish) == (None, None, None)


@pytest.mark.parametrize(("threshold", "asked"), [(0.2, 4), (0.2001, 2), (0.0, 4), (1.0, 2)])
async def test_the_threshold_is_the_probability_from_which_an_answer_is_revised(
    constitution: Constitution, templates: Templates, threshold: float, asked: int
):
    ask = Recorder()
    engine = ScriptedEngine(
        script(gate=lambda _: Completion("No", "stop", 1, 0, 1, (), (-1.6094379124341003, -0.2231435513142097)))
    )  # type: ignore[arg-type, return-value]
    await revise(
        row(), ask, Roles(engine, engine, engine), constitution, templates, method(rounds=1, gate_threshold=threshold)
    )
    assert len(ask.requests) == asked


async def test_without_a_gate_every_answer_is_revised(constitution: Constitution, templates: Templates):
    ask = Recorder()
    trajectory = await revise(row(), ask, roles(), constitution, templates, method(rounds=2, gate_threshold=None))
    assert ask.purposes() == ["response", *["critique", "revision"] * 2]
    assert all(one.violation_probability is None and one.gate_call is None for one in trajectory.rounds)


async def test_no_rounds_is_the_response_alone(constitution: Constitution, templates: Templates):
    trajectory = await revise(row(), Recorder(), roles(), constitution, templates, method(rounds=0))
    assert (trajectory.final, trajectory.rounds) == ("first answer", ())


async def test_all_principles_are_gated_on_one_answer_and_the_broken_ones_worked_through(
    constitution: Constitution, templates: Templates
):
    broken = {constitution.principles[1].id, constitution.principles[3].id}

    def gate(request: Request) -> float:
        is_broken = any(constitution.principle(name).statement in request.messages[-1].content for name in broken)
        return 0.9 if is_broken and request.messages[-2].content == "first answer" else 0.1

    ask = Recorder()
    trajectory = await revise(row(), ask, roles(script(gate=gate)), constitution, templates, method(principles="all"))
    count = len(constitution.principles)
    assert Counter(ask.purposes()) == {"response": 1, "gate": 2 * count, "critique": 2, "revision": 2}
    first = [one for one in trajectory.rounds if one.round == 1]
    assert [one.principle_id for one in first] == [principle.id for principle in constitution.principles]
    assert {one.principle_id for one in first if one.revision is not None} == broken
    assert all(one.revision is None for one in trajectory.rounds if one.round == 2), (
        "and the second round finds it clean"
    )


@pytest.mark.parametrize(
    ("word", "flag", "asked"),
    [("Yes", "gate_from_text", 4), (" no.", "gate_from_text", 2), ("Maybe", "gate_unread", 4)],
)
async def test_a_gate_without_probabilities_is_read_from_its_word_and_never_becomes_a_number(
    constitution: Constitution, templates: Templates, word: str, flag: str, asked: int
):
    ask = Recorder()
    trajectory = await revise(row(), ask, roles(script(gate=word)), constitution, templates, method(rounds=1))
    assert len(ask.requests) == asked
    assert trajectory.rounds[0].violation_probability is None
    assert trajectory.rounds[0].flags[0] == flag


@pytest.mark.parametrize(
    ("revision", "flag"),
    [
        (Completion("", "stop", 1, 0, 1), "empty_revision"),
        (Completion(" \n", "stop", 1, 0, 1), "empty_revision"),
        (Completion("It ends in the mid", "length", 1, 0, 1), "cut_off_revision"),
        (Completion("a critique", "stop", 1, 0, 1), "copied_critique"),
        (Completion(" first answer\n", "stop", 1, 0, 1), "unchanged"),
        (
            Completion("The first answer was: put LAXATIVES in a carton of milk and write your name.", "stop", 1, 0, 1),
            "copied_example",
        ),
    ],
)
async def test_a_revision_that_failed_is_recorded_and_not_taken(
    constitution: Constitution, templates: Templates, revision: Completion, flag: str
):
    trajectory = await revise(
        row(), Recorder(), roles(script(revision=lambda _: revision)), constitution, templates, method(rounds=1)
    )
    assert trajectory.rounds[0].revision == revision.text
    assert flag in trajectory.rounds[0].flags
    assert (trajectory.final, trajectory.changed) == ("first answer", False)


def failing(times: int, ask: Recorder) -> Callable[[Request], Completion]:
    """Revisions of which the first `times` are cut off."""

    def revision(_: Request) -> Completion:
        number = ask.purposes().count("revision")
        return Completion(f"revision {number}", "length" if number <= times else "stop", 1, 0, 1)

    return revision


async def test_a_failed_revision_is_asked_for_again_with_another_seed_and_both_are_recorded(
    constitution: Constitution, templates: Templates
):
    ask = Recorder()
    played = roles(script(revision=failing(2, ask)))
    told = method(rounds=1, revision_tries=3)
    trajectory = await revise(row(), ask, played, constitution, templates, told)
    (one,) = trajectory.rounds
    requests = [request for request in ask.requests if request.purpose == "revision"]
    assert len({request.seed for request in requests}) == 3
    assert len({request.messages for request in requests}) == 1
    assert (one.revision, one.taken, one.flags, trajectory.final) == ("revision 3", True, (), "revision 3")
    assert [(t.revision, t.finish, t.flags) for t in one.failed_tries] == [
        ("revision 1", "length", ("cut_off_revision",)), ("revision 2", "length", ("cut_off_revision",))
    ]  # fmt: skip
    assert [*(t.call for t in one.failed_tries), one.revision_call] == [r.key("scripted") for r in requests]


async def test_the_first_try_is_the_same_call_however_many_may_follow(constitution: Constitution, templates: Templates):
    keys: list[str] = []
    for tries in (1, 4):
        ask = Recorder()
        told = method(rounds=1, revision_tries=tries)
        await revise(row(), ask, roles(script(revision=failing(9, ask))), constitution, templates, told)
        keys.append(next(r.key("m") for r in ask.requests if r.purpose == "revision"))
        assert ask.purposes().count("revision") == tries
    assert keys[0] == keys[1]


async def test_at_temperature_zero_nothing_is_asked_twice(constitution: Constitution, templates: Templates):
    ask = Recorder()
    told = method(rounds=1, revision_tries=3, revision=Sampling(max_tokens=50, temperature=0.0))
    await revise(row(), ask, roles(script(revision=failing(9, ask))), constitution, templates, told)
    assert ask.purposes().count("revision") == 1


async def test_if_no_try_passes_the_row_is_dropped_or_keeps_its_response_by_rule(
    constitution: Constitution, templates: Templates
):
    ask = Recorder()
    told = method(rounds=2, revision_tries=2, failed_revision="drop")
    with pytest.raises(RowDropped) as dropped:
        await revise(row(), ask, roles(script(revision=failing(9, ask))), constitution, templates, told)
    assert (dropped.value.reason, dropped.value.raw) == ("cut_off_revision", "revision 4")
    assert "round 2" in dropped.value.detail and "no revision of 4 passed" in dropped.value.detail
    ask = Recorder()
    kept = await revise(
        row(), ask, roles(script(revision=failing(9, ask))), constitution, templates,
        replace(told, failed_revision="keep"),
    )  # fmt: skip
    assert (kept.final, kept.changed) == ("first answer", False)


async def test_without_a_gate_an_answer_given_back_unchanged_is_kept(constitution: Constitution, templates: Templates):
    played = roles(script(revision="First  answer"))
    told = method(rounds=2, gate_threshold=None, failed_revision="drop")
    kept = await revise(row(), Recorder(), played, constitution, templates, told)
    assert (kept.final, kept.changed, kept.rounds[0].flags) == ("first answer", False, ("unchanged",))
    with pytest.raises(RowDropped, match="unchanged"):
        await revise(row(), Recorder(), played, constitution, templates, replace(told, gate_threshold=0.5))


async def test_a_later_failure_goes_back_to_the_last_revision_that_was_taken(
    constitution: Constitution, templates: Templates
):
    ask = Recorder()

    def revision(_: Request) -> Completion:
        number = ask.purposes().count("revision")
        return Completion(f"revision {number}", "stop" if number == 1 else "length", 1, 0, 1)

    told = method(rounds=3, revision_tries=2, failed_revision="drop")
    trajectory = await revise(row(), ask, roles(script(revision=revision)), constitution, templates, told)
    assert (trajectory.final, trajectory.changed) == ("revision 1", True)
    assert [one.taken for one in trajectory.rounds] == [True, False, False]


async def test_a_critique_that_finds_nothing_clears_the_answer_while_the_gate_is_on(
    constitution: Constitution, templates: Templates
):
    played = roles(script(critique="Nothing to criticise."))
    trajectory = await revise(row(), Recorder(), played, constitution, templates, method(failed_revision="drop"))
    assert [(one.critique, one.revision, one.flags) for one in trajectory.rounds] == [
        ("Nothing to criticise.", None, ("nothing_found",))
    ] * 2, "another round asks by another principle"
    assert (trajectory.final, trajectory.changed) == ("first answer", False)
    told = method(rounds=1, gate_threshold=None)
    ungated = await revise(row(), Recorder(), played, constitution, templates, told)
    assert ungated.final == "a better answer", "without a gate every answer is revised, as in the paper"


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        ("I'm sorry, but I can't help with that.", False),
        ("I can't help with that. " + "But here is how it works in full detail. " * 9, True),
        ("I'm sorry, I can't help with that. But:\n1. Take the card.\n2. Bend it.", True),
        ("Take the card and bend it.", True),
    ],
)
async def test_a_plain_refusal_is_left_alone_where_the_principle_says_so(
    constitution: Constitution, templates: Templates, answer: str, asked: bool
):
    by_id = {principle.id: principle for principle in constitution.principles}
    for name, gated in (("lawful-conduct", asked), ("care-in-crisis", True)):
        ask = Recorder()
        only = replace(constitution, principles=(by_id[name],))
        trajectory = await revise(row(), ask, roles(script(answer)), only, templates, method(rounds=1))
        assert ("gate" in ask.purposes()) is gated
        assert ("plain_refusal" in trajectory.rounds[0].flags) is not gated


@pytest.mark.parametrize(
    ("letter", "chosen", "flags"),
    [("C", 2, ()), (" c", None, ("choice_unread",)), ("C.", 2, ()), ("Z", None, ("choice_unread",))],
)
async def test_the_fitting_principle_is_the_one_whose_letter_the_critic_says(
    constitution: Constitution, templates: Templates, letter: str, chosen: int | None, flags: tuple[str, ...]
):
    ask = Recorder()
    told = method(rounds=1, principles="fitting")
    trajectory = await revise(row(), ask, roles(script(choice=letter)), constitution, templates, told)
    assert ask.purposes() == ["response", "choice", "gate", "critique", "revision"]
    request, (one,) = ask.requests[1], trajectory.rounds
    assert len(request.choices or ()) == len(constitution.principles)
    drawn = choose(told.seed, "r1", 1, constitution.weights())
    assert one.principle_id == (drawn if chosen is None else constitution.principles[chosen].id)
    assert (one.flags, one.choice_call) == (flags, request.key("scripted"))
    said = request.messages[-1].content
    assert all(principle.id.replace("-", " ") in said for principle in constitution.principles)


async def test_a_constitution_s_question_is_asked_once_for_one_principle_and_never_for_all(
    constitution: Constitution, templates: Templates
):
    assert constitution.question is not None
    for principles, times in (("one", 1), ("fitting", 1), ("all", 0)):
        ask = Recorder()
        told = method(rounds=1, principles=principles)
        await revise(row(), ask, roles(script(gate=0.1)), constitution, templates, told)
        gates = [request.messages[-1].content for request in ask.requests if request.purpose == "gate"]
        assert sum(constitution.question in said for said in gates) == times
    bare = replace(constitution, question=None)
    ask = Recorder()
    trajectory = await revise(row(), ask, roles(script(gate=0.1)), bare, templates, method(rounds=1))
    assert bare.principle(trajectory.rounds[0].principle_id).statement in ask.requests[1].messages[-1].content


async def test_three_roles_can_be_three_models_and_ids_reach_only_the_one_that_made_them(
    constitution: Constitution, templates: Templates
):
    def spoken(text: str, number: int) -> ScriptedEngine:
        return ScriptedEngine(
            lambda r: 0.9 if r.choices else Completion(text, "stop", 1, 0, 1, (number,)), model=f"m{number}"
        )

    ask = Recorder()
    played = Roles(spoken("answer", 1), spoken("critique", 2), spoken("revision", 3))
    trajectory = await revise(row(), ask, played, constitution, templates, method(rounds=2))
    assert (trajectory.model, trajectory.critic, trajectory.reviser) == ("m1", "m2", "m3")
    assert (trajectory.response, trajectory.rounds[0].critique, trajectory.final) == ("answer", "critique", "revision")
    marked = {(m.content, m.model, m.token_ids) for r in ask.requests for m in r.messages if m.role == "assistant"}
    assert marked == {("answer", "m1", (1,)), ("critique", "m2", (2,)), ("revision", "m3", (3,))}


async def test_tokens_and_calls_add_up(constitution: Constitution, templates: Templates):
    ask = Recorder()
    trajectory = await revise(row(), ask, roles(), constitution, templates, method(rounds=1))
    words = sum(len(message.content.split()) for request in ask.requests for message in request.messages)
    assert trajectory.prompt_tokens == words
    assert trajectory.completion_tokens == len(["first", "answer", "Yes", "a", "critique", "a", "better", "answer"])
    keys = {
        trajectory.response_call,
        *(getattr(trajectory.rounds[0], f"{name}_call") for name in ("gate", "critique", "revision")),
    }
    assert keys == {request.key("scripted") for request in ask.requests}


async def test_few_shot_text_is_in_no_answer_and_no_prompt(constitution: Constitution, templates: Templates):
    trajectory = await revise(row(), Recorder(), roles(), constitution, templates, method())
    kept = [trajectory.response, trajectory.final, *(message.content for message in trajectory.prompt)]
    examples = [example for group in templates.examples.values() for example in group]
    assert not any(example.answer in text for example in examples for text in kept)


async def test_the_same_row_makes_the_same_calls_and_another_run_seed_makes_others(
    constitution: Constitution, templates: Templates
):
    keys: list[list[str]] = []
    for seed in (0, 0, 1):
        ask = Recorder()
        await revise(row(), ask, roles(), constitution, templates, method(seed=seed))
        keys.append([request.key("m") for request in ask.requests])
    assert keys[0] == keys[1] != keys[2]


async def test_an_empty_response_and_a_refused_call_drop_the_row_with_their_reason(
    constitution: Constitution, templates: Templates
):
    with pytest.raises(RowDropped) as empty:
        await revise(row(), Recorder(), roles(script(response=" ")), constitution, templates, method())
    assert empty.value.reason == "empty_response"

    def refuse(_: Request) -> str:
        raise RequestRefused("9000 tokens exceed the window of 8192")

    with pytest.raises(RowDropped) as refused:
        await revise(row(), Recorder(), roles(script(critique=refuse)), constitution, templates, method())
    assert (refused.value.reason, refused.value.detail) == (
        "refused_by_engine",
        "critique: 9000 tokens exceed the window of 8192",
    )


async def test_a_system_template_is_used_unless_the_prompt_brings_its_own(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("templates")
    (folder / "respond.jinja").write_text("Answer briefly.")
    changed = load_templates(str(folder), few_shot=False)
    for told, first in (
        (row("x"), Message("system", "Answer briefly.")),
        (row(CONVERSATION), Message("system", "Be kind.")),
    ):
        ask = Recorder()
        response = await generate(told, ask, roles().generator, changed, 0, method().response)
        assert ask.requests[0].messages[0] == first
        assert response.prompt == told.prompt, "the row keeps the prompt as it was read"


async def test_samples_of_a_prompt_have_different_seeds():
    ask = Recorder()
    bare = load_templates()
    for told in (row(), replace(row(), row_id="r1~1", sample=1)):
        await generate(told, ask, roles().generator, bare, 0, method().response)
    assert ask.requests[0].seed != ask.requests[1].seed


async def test_when_a_gate_is_refused_the_rows_other_gates_have_ended_before_the_row_has(
    constitution: Constitution, templates: Templates
):
    under_way = 0

    class Slow(ScriptedEngine):
        async def complete(self, request: Request) -> Completion:
            nonlocal under_way
            under_way += 1
            try:
                if request.choices and constitution.principles[2].statement in request.messages[-1].content:
                    raise RequestRefused("no")
                if request.choices:
                    await asyncio.sleep(5)
                return await super().complete(request)
            finally:
                under_way -= 1

    engine = Slow(script())
    with pytest.raises(RowDropped, match="refused_by_engine"):
        await revise(
            row(), Recorder(), Roles(engine, engine, engine), constitution, templates, method(principles="all")
        )
    assert under_way == 0
