"""What a server's answer says: its text, its token counts, and the log-probabilities of two given words."""

import json
import math
from collections.abc import Sequence
from typing import Any

from cai.engines import Completion, token_count
from cai.errors import RequestRefused
from cai.rows import is_text


class BadAnswer(Exception):
    """A reply with a good status and no completion in it. Said in full: half a key is not found in it."""


def completion_of(body: bytes, choices: tuple[str, ...] | None = None) -> Completion:
    """The completion in a reply to a chat, whatever a server may have put into it.

    With `choices` it is one of them, with the log-probabilities of all, if the server gives any. Token counts that are
    none are 0. Raises BadAnswer if it is no chat completion, RequestRefused if the server held the answer back.
    """
    told = _json(body)
    choice = _first(_of(told, "choices"))
    text = _of(_of(choice, "message"), "content", "")
    finish = _of(choice, "finish_reason", "stop")
    if not isinstance(_of(choice, "message"), dict) or not isinstance(finish, str):
        raise BadAnswer(f"an answer that is not a chat completion: {_shown(body)}")
    if not isinstance(text, str) or not is_text(text):
        raise BadAnswer(f"content that is not text: {_shown(body)}")
    if finish not in ("stop", "length"):
        raise RequestRefused(f"the server ended the answer with '{finish}'")
    found: tuple[float, ...] | None = None
    likeliest = [] if choices is None else _likeliest(choice)
    if likeliest is None:
        raise BadAnswer(f"log-probabilities that are none: {_shown(body)}")
    if choices is not None and likeliest:
        found = choice_logprobs(likeliest, choices)
        text, finish = choices[found.index(max(found))] if found else text, "stop"
    usage = _of(told, "usage")
    return Completion(
        text=text,
        finish=finish,
        prompt_tokens=token_count(_of(usage, "prompt_tokens")),
        cached_tokens=token_count(_of(_of(usage, "prompt_tokens_details"), "cached_tokens")),
        completion_tokens=token_count(_of(usage, "completion_tokens")),
        choice_logprobs=found,
    )


def model_names(body: bytes) -> list[str]:
    """The models that a server lists; empty if it keeps no list."""
    models = _of(_json(body), "data")
    names = [_of(model, "id") for model in models] if isinstance(models, list) else []
    return [name for name in names if isinstance(name, str) and is_text(name) and name.isprintable()]


def _likeliest(choice: Any) -> list[tuple[str, float]] | None:
    """The likeliest first tokens with their log-probabilities; empty if the server gives none, None if they are odd."""
    told = _of(choice, "logprobs", {})
    tokens = _of(told, "content", [])
    tops = _of(_first(tokens), "top_logprobs", [])
    if not isinstance(told, dict) or not isinstance(tokens, list) or not isinstance(tops, list):
        return None
    if tokens and not isinstance(tokens[0], dict):
        return None
    likeliest: list[tuple[str, float]] = []
    for top in tops:
        token, logprob = _of(top, "token"), _of(top, "logprob")
        if not isinstance(token, str) or not isinstance(logprob, int | float):
            return None
        # What is no log-probability (NaN, infinite, above 0 by more than rounding) says nothing.
        if -1e300 < logprob <= 1e-3:
            likeliest.append((token, min(logprob, 0.0)))
    return likeliest


def _json(body: bytes) -> Any:
    """What a JSON text says; None if it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _of(told: Any, name: str, otherwise: Any = None) -> Any:
    """What an object says under a name; `otherwise` if it says nothing there, or is no object."""
    value: Any = told.get(name) if isinstance(told, dict) else None
    return otherwise if value is None else value


def _first(told: Any) -> Any:
    return told[0] if isinstance(told, list) and told else None


def _shown(body: bytes) -> str:
    return body.decode("utf-8", "replace")


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
