"""What is read in a server's reply, whatever a server may have put into it."""

import json
import math
from typing import Any

import pytest

from cai.engines import Completion
from cai.engines.replies import BadAnswer, completion_of, model_names
from tests.servers import chat

USUAL = Completion("hi there", "stop", 9, 4, 2)


def read(said: Any, choices: tuple[str, ...] | None = None) -> Completion:
    return completion_of(said if isinstance(said, bytes) else json.dumps(said).encode(), choices)


def with_choice(**changes: Any) -> dict[str, Any]:
    said = chat()
    said["choices"][0].update(changes)
    return said


def with_logprobs(told: Any) -> dict[str, Any]:
    said = chat("No")
    said["choices"][0]["logprobs"] = told
    return said


def with_top(*tops: Any) -> dict[str, Any]:
    return with_logprobs({"content": [{"token": "No", "logprob": -0.1, "top_logprobs": list(tops)}]})


DEEP = b'{"choices": ' + b"[" * 100_000
UNREADABLE: dict[str, Any] = {
    "no JSON": b"{not json", "nothing": b"", "half a character": b'{"choices": "\xff"}', "deep JSON": DEEP,
    "a number of 5000 digits": b'{"choices": ' + b"9" * 5000 + b"}",
    "a list": [1], "null": None, "a number": 3, "a text": "x", "an error": {"error": {"message": "no"}},
    **{f"{choices} for choices": {**chat(), "choices": choices}
       for choices in ({}, {"0": 1}, "abc", 5, [5], [None], [])},
    **{f"{message} for a message": with_choice(message=message) for message in (None, "hello", ["x"], 5, True)},
    **{f"{content} for content": with_choice(message={"content": content})
       for content in (5, ["x"], [{"text": "x"}], {}, True, "half \ud83d")},
    **{f"{finish} for an end": with_choice(finish_reason=finish) for finish in (["stop"], {"a": 1}, 0, False)},
}  # fmt: skip


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_is_no_chat_completion_cannot_be_read(what: str):
    with pytest.raises(BadAnswer):
        read(UNREADABLE[what])


ODD_LOGPROBS: dict[str, Any] = {
    **{f"{told} for all": with_logprobs(told) for told in ("x", [1], 5, True)},
    **{f"{content} for content": with_logprobs({"content": content}) for content in ("abc", {"a": 1}, 5, [1], [None])},
    **{f"{tops} for the likeliest": with_logprobs({"content": [{"top_logprobs": tops}]})
       for tops in (5, "ab", {"a": 1})},
    **{f"{top} for one of them": with_top({"token": "No", "logprob": -1.0}, top)
       for top in (5, None, "No", {}, {"token": "x"}, {"token": 5, "logprob": -1.0}, {"token": "x", "logprob": "-1"})},
}  # fmt: skip


@pytest.mark.parametrize("what", ODD_LOGPROBS)
def test_log_probabilities_that_are_none_cannot_be_read_where_they_are_asked_for(what: str):
    with pytest.raises(BadAnswer):
        read(ODD_LOGPROBS[what], ("Yes", "No"))
    assert read(ODD_LOGPROBS[what]).text == "No"


@pytest.mark.parametrize("told", [None, {}, {"content": None}, {"content": []}, {"content": [{"token": "No"}]}])
def test_where_no_log_probabilities_are_given_the_word_is_the_answer(told: Any):
    assert read(with_logprobs(told), ("Yes", "No")) == Completion("No", "stop", 9, 4, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1000.0, 10**400, -(10**400), True])
def test_a_number_that_is_no_log_probability_says_nothing_beside_those_that_are(bad: Any):
    found = read(with_top({"token": "Yes", "logprob": bad}, {"token": "No", "logprob": -0.5}), ("Yes", "No"))
    assert found.text == "No" and found.choice_logprobs is not None and found.choice_logprobs[1] == -0.5


ODD_COUNTS = (None, -3, 9.5, 1e30, 10**26, 2**31, [1], {"a": 1}, "9", True, math.nan, math.inf)


@pytest.mark.parametrize("odd", ODD_COUNTS)
def test_a_token_count_that_is_none_is_0_and_the_answer_is_taken(odd: Any):
    said = chat()
    said["usage"] = {"prompt_tokens": odd, "completion_tokens": odd, "prompt_tokens_details": {"cached_tokens": odd}}
    assert read(said) == Completion("hi there", "stop", 0, 0, 0)
    assert read({**chat(), "usage": odd, "created": math.nan}) == Completion("hi there", "stop", 0, 0, 0)
    said["usage"] = {"prompt_tokens": 9.0, "completion_tokens": 2**31 - 1, "prompt_tokens_details": odd}
    assert read(said) == Completion("hi there", "stop", 9, 0, 2**31 - 1)


def test_an_answer_in_full_and_one_with_only_its_text_are_read():
    assert read(chat()) == USUAL
    assert read({"choices": [{"message": {"content": "hi there"}}]}) == Completion("hi there", "stop", 0, 0, 0)
    assert read({"choices": [{"message": {}, "finish_reason": "length"}]}) == Completion("", "length", 0, 0, 0)


@pytest.mark.parametrize(
    "said", [b"[" * 100_000, b"[]", b"x", {"data": "abc"}, {"data": 5}, {"data": [5, None, {}]}, {"data": {"id": "m"}}]
)
def test_what_is_no_list_of_models_names_none(said: Any):
    assert model_names(said if isinstance(said, bytes) else json.dumps(said).encode()) == []


def test_a_name_that_no_model_has_is_left_out():
    odd = [5, None, ["m"], "m\ud800", "m\x00x", "m\x1b[31m"]
    assert model_names(json.dumps({"data": [{"id": name} for name in [*odd, "m"]]}).encode()) == ["m"]
