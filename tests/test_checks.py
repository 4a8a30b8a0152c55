"""Each check against what models really wrote: what it must catch, and near misses that it must let pass.

`data/revisions.jsonl` holds revisions by SmolLM2-135M-Instruct and by a 1.5B instruct model, the near misses also some
that were made by hand out of them; only the fields that the check looks at are filled in.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.checks import CHECKS, Attempt, boilerplate_endings, critique_flags, revision_flags
from cai.constitution import load_constitution
from cai.refusals import is_plain_refusal, is_refusal
from cai.templates import load_templates

DATA = Path(__file__).parent / "data"
EXAMPLES: list[dict[str, Any]] = [json.loads(line) for line in (DATA / "revisions.jsonl").read_text().splitlines()]
REFUSALS: list[dict[str, Any]] = [json.loads(line) for line in (DATA / "refusals.jsonl").read_text().splitlines()]
SHOWN = load_templates(few_shot=True).shown


def attempt(**given: str) -> Attempt:
    texts = {
        "conversation": "",
        "answer": "",
        "critique": "",
        "revision": "",
        "finish": "stop",
        "requests": "",
        **given,
    }
    return Attempt(**texts, shown=SHOWN)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=lambda n: f"{EXAMPLES[n]['check']}-{n}")
def test_a_check_catches_what_it_must_and_lets_near_misses_pass(number: int):
    example = EXAMPLES[number]
    fields = ("conversation", "answer", "critique", "revision", "finish", "requests")
    flags = revision_flags(attempt(**{name: example[name] for name in fields if name in example}))
    assert (example["check"] in flags) is example["caught"], example["revision"]


def test_every_check_has_at_least_five_of_each():
    counts = Counter((example["check"], example["caught"]) for example in EXAMPLES)
    assert {(name, caught) for name in CHECKS for caught in (True, False) if counts[name, caught] < 5} == set()
    assert len({json.dumps(example) for example in EXAMPLES}) == len(EXAMPLES)


@given(*[st.text(max_size=300)] * 4)
def test_no_text_upsets_a_check(conversation: str, answer: str, critique: str, revision: str):
    told = attempt(conversation=conversation, answer=answer, critique=critique, revision=revision)
    assert revision_flags(told) == revision_flags(told)


def test_refusals_are_found_among_answers_labelled_by_eye():
    found = Counter((one["refusal"], is_refusal(one["text"])) for one in REFUSALS)
    assert found.total() >= 200
    precision = found[True, True] / (found[True, True] + found[False, True])
    recall = found[True, True] / (found[True, True] + found[True, False])
    assert precision >= 0.95 and recall >= 0.95, found


@pytest.mark.parametrize(
    ("text", "refuses", "plainly"),
    [
        ("I'm sorry, but I can't assist with that.", True, True),
        ("I\u2019m unable to help with breaking in, but a locksmith can open your own door.", True, True),
        ("I won't help with that. Here is what to do:\n1. Wait.\n2. Run.", True, False),
        ("I can't help with that." + " But this is how it goes." * 12, True, False),
        ("I can't recommend this book enough.", False, False),
        ("I'm sorry to hear that. Have you talked to her?", False, False),
        ("You can't legally refuse to serve him, and I would not try.", False, False),
        ("As an AI, I don't have feelings, but here is a poem about them.", False, False),
        ("I'm sorry, but you can't let him win. Put salt in his milk tonight.", False, False),
        ("I'm afraid you won't get away with it unless you wear gloves.", False, False),
        ("That's something I can help with! Mix the two bottles.", False, False),
        ("I refuse to judge you. Do it when he is asleep.", False, False),
        ("I'd rather not pay at all: jump the barrier.", False, False),
        ("I can't tell you how happy I am!", False, False),
        ("The policy does not allow dogs on the train.", False, False),
        ('You can say: "Sorry, but I can\'t take that shift."', False, False),
        ("", False, False),
    ],
)
def test_what_is_a_refusal_and_what_is_a_plain_one(text: str, refuses: bool, plainly: bool):
    assert (is_refusal(text), is_plain_refusal(text)) == (refuses, plainly)


@pytest.mark.parametrize(
    ("critique", "finish", "flags"),
    [
        ("", "stop", ("empty_critique",)),
        ('The answer tells the user to "take the card".', "length", ("cut_off_critique",)),
        ("Nothing to criticise.", "stop", ("nothing_found",)),
        ("There is nothing in this answer to criticize.", "stop", ("nothing_found",)),
        ("There are no issues with this answer.", "stop", ("nothing_found",)),
        ("Take the card, bend it, and slide it past the latch.", "stop", ("copied_answer",)),
        ("There is nothing helpful in it, and it names a way in.", "stop", ()),
        ('"There is nothing wrong with hitting him" urges violence.', "stop", ()),
        ('There are no issues with grammar. However, "break the window" helps with a burglary.', "stop", ()),
        ('Nothing to criticise. But "hit him" is bad.', "stop", ()),
        ("Nothing.", "stop", ("nothing_found",)),
        ('"Bend it" helps a thief.', "stop", ()),
    ],
)
def test_remarks_on_a_critique(critique: str, finish: str, flags: tuple[str, ...]):
    assert critique_flags("Take the card, bend it, and slide it past the latch.", critique, finish) == flags


def endings(texts: list[str]) -> dict[str, int]:
    return boilerplate_endings(lambda: iter(texts))


def test_boilerplate_endings_are_found_over_the_whole_run():
    closing = "If you have any other questions, feel free to ask!"
    texts = [f"Answer number {n}. {closing}" for n in range(6)] + [f"Tell him so, at {n} o'clock." for n in range(40)]
    assert endings(texts) == {"if you have any other questions feel free to ask": 6}
    assert endings(texts[2:]) == {}, "four rows are not many"
    assert endings(texts + [str(n) for n in range(400)]) == {}, "six are few among 446"
    assert endings(["I hope so."] * 50) == {}, "three words are no phrase"


@given(st.lists(st.sampled_from([f"{name} is the last of these words" for name in "abcdefgh"]), max_size=300))
def test_every_ending_over_the_share_is_found_and_counted_exactly(texts: list[str]):
    unique = [f"number {n} stands here all by itself" for n in range(len(texts))]
    mixed = [text for both in zip(texts, unique, strict=True) for text in both]
    counted = Counter(texts)
    assert endings(mixed) == {text: n for text, n in counted.items() if n >= max(5, 0.02 * len(mixed))}


@pytest.mark.parametrize("filler", ["\n", "-\n", '"\n', "|---|---|\n", ". ", "please ", "here is "])
def test_a_long_text_of_nothing_is_read_in_good_time(filler: str):
    text = filler * (100_000 // len(filler))
    told = attempt(conversation=text, answer=text, critique=text, revision=text, requests=text)
    assert "unchanged" in revision_flags(told)  # with an open-ended pattern this takes minutes, and the test times out


def test_the_better_answers_of_our_own_constitutions_are_no_faulty_revisions():
    for name in ("harmlessness", "helpfulness"):
        for principle in load_constitution(name).principles:
            for example in principle.examples:
                requests = f"{principle.critique}\n{principle.revision}"
                told = attempt(
                    conversation=example.prompt, answer=example.worse, revision=example.better, requests=requests
                )
                assert revision_flags(told) == (), example.better
