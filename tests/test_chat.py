"""Which turns are left out of a call that does not fit into the window (a token is a word there)."""

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from cai.engines import Request, Sampling
from cai.engines.chat import encode, prompt_of
from cai.errors import RequestRefused
from cai.rows import Message


class Words:
    """A tokenizer of words, whose chat template puts each turn's role before it."""

    all_special_tokens: tuple[str, ...] = ()
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    chat_template = "words"

    def __call__(self, text: str, **_: Any) -> Any:
        return SimpleNamespace(input_ids=text.split())

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return " ".join(f"<{one['role']}> {one['content']}" for one in messages) + " <assistant>"


SYSTEM, FIRST, ANSWER, SECOND, OTHER, LAST = (
    Message("system", "be good"),
    Message("user", "one " * 10, optional=True),
    Message("assistant", "two " * 10, optional=True),
    Message("user", "three " * 10, optional=True),
    Message("assistant", "four " * 10, optional=True),
    Message("user", "five " * 10),
)
WHOLE = (SYSTEM, FIRST, ANSWER, SECOND, OTHER, LAST)


def prompt(messages: tuple[Message, ...], window: int) -> tuple[list[int], int]:
    return prompt_of(Words(), "m", Request("critique", "r", messages, Sampling(5), 0), window)


@pytest.mark.parametrize(
    ("window", "kept"), [(64, WHOLE), (63, (SYSTEM, SECOND, OTHER, LAST)), (41, (SYSTEM, LAST)), (20, (SYSTEM, LAST))]
)
def test_the_oldest_questions_go_with_their_answers_until_the_rest_fits(window: int, kept: tuple[Message, ...]):
    ids, left_out = prompt(WHOLE, window)
    assert ids == encode(Words(), "m", kept) and left_out == len(WHOLE) - len(kept)
    assert len(ids) + 5 <= window


def test_a_call_that_does_not_fit_without_them_either_is_refused_with_the_numbers_of_the_whole():
    with pytest.raises(RequestRefused, match="59 prompt tokens and 5 for the answer exceed the window of 19"):
        prompt(WHOLE, 19)


def test_nothing_is_left_out_unasked():
    with pytest.raises(RequestRefused, match="exceed the window of 63"):
        prompt(tuple(Message(turn.role, turn.content) for turn in WHOLE), 63)
