"""From messages to the token ids of a prompt, for engines that tokenise themselves."""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
from tokenizers import Tokenizer

from cai.engines import Request
from cai.errors import BadInput, RequestRefused
from cai.ids import digest
from cai.rows import Message


def encode(tokenizer: Any, model: str, messages: Sequence[Message]) -> list[int]:
    """The prompt's token ids, by the model's own chat template, ready for the assistant's turn.

    Two kinds of content are spliced in as ids instead of being rendered with the rest: what `model` itself generated
    (`Message.token_ids`, so that the prompt continues bit for bit what lies in the cache), and content in which a
    control token is spelled out, so that text never becomes one. What was generated with a special token in it is
    taken as its text. Raises RequestRefused if the template does not accept the conversation (some demand that user and
    assistant alternate), or the tokenizer cannot write a control token's name as text.
    """
    control = _control(tokenizer)
    spliced: dict[str, Sequence[int]] = {}
    rendered: list[dict[str, str]] = []
    for index, message in enumerate(messages):
        content = message.content
        ids: Sequence[int] = message.token_ids if message.model == model else ()
        if control.special.intersection(ids):
            ids = ()
        if not ids and control.spelled_in(content):
            ids = control.as_text(content)
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


@dataclass(frozen=True, slots=True)
class _Control:
    """The tokens of a tokenizer that are more than text, and how to write their names as text.

    `names` finds a name in folded text. `special` are the ids of those that the tokenizer calls special; `ids` are all.
    """

    names: re.Pattern[str] | None
    special: frozenset[int]
    ids: frozenset[int]
    tokenizer: Any
    without_names: Tokenizer | None

    def spelled_in(self, text: str) -> bool:
        """Whether the tokenizer might find a control token in the text."""
        return self.names is not None and self.names.search(_folded(text)) is not None

    def as_text(self, text: str) -> list[int]:
        """The ids of the text as nothing but text. Raises RequestRefused if there are none."""
        if self.without_names is not None:
            ids = self.without_names.encode(text, add_special_tokens=False).ids
        else:
            ids = list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
        if self.ids.intersection(ids):
            raise RequestRefused("a control token is spelled out, and the model's tokenizer cannot write it as text")
        return ids


@lru_cache(maxsize=8)
def _control(tokenizer: Any) -> _Control:
    """The control tokens: all that are marked as special, not only those with a part to play (begin, end, padding), and
    of the added ones that are not marked those that the chat template uses (<tool_call>) or that look it (<|fim|>)."""
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    named = [token for token in tokenizer.all_special_tokens if token]
    special = {str(token): number for number, token in added.items() if token.special}
    special |= {token: tokenizer.convert_tokens_to_ids(token) for token in named}
    template = str(tokenizer.chat_template)
    others = {
        name: number
        for number, token in added.items()
        if (name := str(token)).strip() and (name in template or re.fullmatch(r"<([|\uff5c]).+\1>", name, re.DOTALL))
    }
    names = sorted({folded for name in special | others if (folded := _folded(name))})
    return _Control(
        names=re.compile("|".join(map(re.escape, names))) if names else None,
        special=frozenset(special.values()),
        ids=frozenset((special | others).values()),
        tokenizer=tokenizer,
        without_names=_without_names(getattr(tokenizer, "backend_tokenizer", None)),
    )


def _without_names(backend: Any) -> Tokenizer | None:
    """The same tokenizer without added tokens. Its own switch for that (`split_special_tokens`) leaves those in that
    are added and not marked as special."""
    if not isinstance(backend, Tokenizer):
        return None
    told = json.loads(backend.to_str()) | {"added_tokens": [], "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(told))


def _folded(text: str) -> str:
    """Text as the loosest tokenizer compares it: without case, compatibility forms, accents, and what is unseen."""
    if text.isascii():
        return re.sub(r"[\x00-\x20\x7f]+", "", text.casefold())
    flat = unicodedata.normalize("NFKD", text).casefold()
    return "".join(one for one in flat if unicodedata.category(one)[0] not in "MCZ")


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
