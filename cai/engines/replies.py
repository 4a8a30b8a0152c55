"""What a server's chat completion says: its text, its token counts, and the log-probabilities of two given words."""

import math
from collections.abc import Sequence
from typing import Any

from openai.types.chat import ChatCompletion

from cai.engines import Completion
from cai.errors import RequestRefused
from cai.rows import is_text


class BadAnswer(Exception):
    """A reply with a good status and no completion in it. Said in full: half a key is not found in it."""


def free(answer: ChatCompletion) -> Completion:
    """The completion. Raises BadAnswer if there is no text in it, RequestRefused if the server held it back."""
    choice, usage = answer.choices[0], answer.usage
    details = usage.prompt_tokens_details if usage else None
    text: Any = choice.message.content or ""
    if not isinstance(text, str) or not is_text(text):
        raise BadAnswer(f"content that is not text: {text!r}")
    if choice.finish_reason not in (None, "stop", "length"):
        raise RequestRefused(f"the server ended the answer with '{choice.finish_reason}'")
    return Completion(
        text=text,
        finish="length" if choice.finish_reason == "length" else "stop",
        prompt_tokens=(usage.prompt_tokens or 0) if usage else 0,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        completion_tokens=(usage.completion_tokens or 0) if usage else 0,
    )


def forced(answer: ChatCompletion, choices: tuple[str, ...]) -> Completion:
    """The completion of a forced choice, with the log-probabilities of the choices if the server gives any."""
    said = free(answer)
    told = answer.choices[0].logprobs
    tops: Any = told.content[0].top_logprobs if told is not None and told.content else None
    # What is no log-probability (NaN, infinite, above 0 by more than rounding) says nothing.
    likeliest = [
        (str(top.token), min(top.logprob, 0.0))
        for top in tops or ()
        if isinstance(top.logprob, int | float) and top.logprob <= 1e-3 and top.logprob > -math.inf
    ]
    if not likeliest:
        return said
    found = choice_logprobs(likeliest, choices)
    text = choices[found.index(max(found))] if found else said.text
    return Completion(text, "stop", said.prompt_tokens, said.cached_tokens, said.completion_tokens, (), found)


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


def short(text: str) -> str:
    return " ".join(text.split())[:200]
