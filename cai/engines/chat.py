"""From messages to the token ids of a prompt, for engines that tokenise themselves."""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import jinja2

from cai.engines import Request
from cai.errors import BadInput, RequestRefused
from cai.ids import digest
from cai.rows import Message


def encode(tokenizer: Any, model: str, messages: Sequence[Message]) -> list[int]:
    """The prompt's token ids, by the model's own chat template, ready for the assistant's turn.

    Two kinds of content are spliced in as ids instead of being rendered with the rest: what `model` itself generated
    (`Message.token_ids`, so that the prompt continues bit for bit what lies in the cache), and content in which a
    control token is spelled out, so that text from people never becomes one. Raises RequestRefused if the template does
    not accept the conversation (some demand that user and assistant alternate).
    """
    spliced: dict[str, Sequence[int]] = {}
    rendered: list[dict[str, str]] = []
    for index, message in enumerate(messages):
        content = message.content
        ids: Sequence[int] = message.token_ids if message.model == model else ()
        ids = ids or _spelled_out(tokenizer, content)
        if ids:
            # The mark holds a digest, so no text can contain it by chance or by design.
            content = f"[splice-{digest([index, content])}]"
            spliced[content] = ids
        rendered.append({"role": message.role, "content": content})
    try:
        text: str = tokenizer.apply_chat_template(rendered, tokenize=False, add_generation_prompt=True)
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise RequestRefused(f"the model's chat template does not accept this conversation: {error}") from error
    if not spliced:
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    prompt: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, spliced)) + ")", text):
        if part in spliced:
            prompt.extend(spliced[part])
        elif part:
            prompt.extend(tokenizer(part, add_special_tokens=False).input_ids)
    return prompt


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Any) -> tuple[frozenset[str], frozenset[str]]:
    """The texts that become control tokens: those that the tokenizer calls special, and other tokens of their own that
    its chat template writes.

    `all_special_tokens` alone is too few: Llama 3 does not list the headers of its turns there, and DeepSeek's turns
    and Qwen's <think> are not special at all.
    """
    added = list(tokenizer.added_tokens_decoder.values())
    special = {*tokenizer.all_special_tokens, *(one.content for one in added if one.special)}
    template = str(tokenizer.chat_template)
    written = {one.content for one in added if not one.special and one.content in template and one.content.strip()}
    return frozenset(special - {""}), frozenset(written)


def _spelled_out(tokenizer: Any, content: str) -> list[int]:
    """The ids of content that spells out a control token, as the characters that it is; none if it spells out none.

    A tokenizer splits what it calls special if asked to. The others are cut behind their first character.
    """
    special, written = _control_tokens(tokenizer)
    found = [text for text in written if text in content]
    if not found and not any(text in content for text in special):
        return []
    cuts = {place.start() + 1 for text in found for place in re.finditer(f"(?={re.escape(text)})", content)}
    parts = (content[start:end] for start, end in pairwise([0, *sorted(cuts), len(content)]))
    told = (tokenizer(part, add_special_tokens=False, split_special_tokens=True).input_ids for part in parts if part)
    return [token for ids in told for token in ids]


def prompt_of(tokenizer: Any, model: str, request: Request, window: int) -> tuple[list[int], int]:
    """The prompt's token ids of a call that fits into the window, and how many of its turns were left out for that.

    Optional turns go first to last, each question with its answer, until the rest fits. Raises RequestRefused, with the
    numbers of the whole, if it does not fit without them either.
    """
    wanted = 1 if request.choices else request.sampling.max_tokens
    messages = whole = request.messages
    prompt_ids = first = encode(tokenizer, model, whole)
    while len(prompt_ids) + wanted > window:
        messages = _shorter(messages)
        if messages is None:
            raise RequestRefused(
                f"{len(first)} prompt tokens and {wanted} for the answer exceed the window of {window}"
            )
        prompt_ids = encode(tokenizer, model, messages)
    return prompt_ids, len(whole) - len(messages)


def _shorter(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """The messages without their first optional question and all up to the next one; None if there is none."""
    first = next((place for place, message in enumerate(messages) if message.optional), None)
    if first is None:
        return None
    after = (place for place, message in enumerate(messages) if place > first and message.role == "user")
    return messages[:first] + messages[next(after) :]


def refuse_without_template(tokenizer: Any, source: str) -> None:
    """Raise BadInput for a model that cannot chat."""
    if not tokenizer.chat_template:
        remedy = "Take its instruct version."
        raise BadInput(f"--model {source}", "no chat template", "an instruction-tuned model", remedy)


def end_ids(tokenizer: Any, configured: int | Sequence[int] | None) -> set[int]:
    """The tokens that end an answer: those of the generation config, which names none, one or several, and the
    tokenizer's own."""
    named = configured if isinstance(configured, Sequence) else [configured]
    return {int(end) for end in (*named, tokenizer.eos_token_id) if end is not None}


def choice_ids(tokenizer: Any, choices: tuple[str, ...]) -> tuple[int, ...]:
    """The first token of each word. Raises RequestRefused if two of them begin with the same token."""
    ids = tuple(tokenizer(word, add_special_tokens=False).input_ids[0] for word in choices)
    if len(set(ids)) < len(ids):
        raise RequestRefused(f"two of {', '.join(choices)} begin with the same token in this model")
    return ids
