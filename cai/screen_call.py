"""One call of a model in the terminal: what it was for, what was sent, what came back, what it took."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from cai.screen import console
from cai.seal import Json
from cai.texts import visible


def print_call(story: Json) -> None:
    """What `call_story.call_story` found of a call."""
    screen = console()
    screen.rule(f"call {story['key'][:16]}")
    for sentence in _told(story):
        _say(screen, sentence)
    _print_request(screen, story)
    answer = story["answer"]
    request, odds = story["request"], answer["choice_logprobs"]
    forced = request is not None and request["choices"] is not None
    how = "the likeliest of these" if forced and odds else _finish(answer["finish"])
    _boxed(screen, answer["text"] or "(nothing)", f"the answer ({how})")
    if request and request["choices"] and odds:
        words = zip(request["choices"], odds, strict=False)
        _say(screen, "log-probabilities: " + ", ".join(f"{word} {value:.4f}" for word, value in words))
    for note in story["notes"]:
        _say(screen, note, "yellow")


# What a call was for, where the journal's word for it does not say.
_PURPOSES = {
    "kept": "a verdict on one answer alone (kept)",
    "verdict": "a verdict on two answers (verdict)",
    "reasoning": "the judge's reasoning before its verdict (reasoning)",
}


def _told(story: Json) -> Iterator[str]:
    yield f"key      {story['key']}"
    purpose = _PURPOSES.get(story["purpose"], story["purpose"])
    yield f"for      {purpose}, in cai {story['stage']}, of the row {story['row_id']}"
    for use in story["used_by"]:
        yield f"used by  {_use(use)}"
    if not story["used_by"]:
        yield "used by  no row of the tables: what asked it was dropped, made anew since, or is not finished"
    tokens = story["tokens"]
    engine = f", engine {story['engine']}" if story["engine"] else ""
    yield f"model    {story['model']}{engine}"
    if story["versions"]:
        yield "versions " + ", ".join(f"{name} {number}" for name, number in sorted(story["versions"].items()))
    session = story["session"]
    when = f"{story['asked_at']}, " if story["asked_at"] else ""
    if session:
        which = f"session {session['number']} of {session['of']}, begun {session['started']}"
    else:
        which = f"session not known: {story['session_unknown']}"
    yield f"asked    {when}took {story['seconds']} s; {which}"
    yield (
        f"tokens   {tokens['prompt_tokens']} of the prompt ({tokens['cached_tokens']} of them cached), "
        f"{tokens['completion_tokens']} of the answer"
    )
    yield f"kept in  {story['place']}"
    if story.get("template"):
        yield f"template {story['template']['path']}, sha256 {story['template']['sha256']}"
    if story.get("templates_sha"):
        yield f"         all templates of the stage together: {story['templates_sha']}"
    if story.get("constitution"):
        one = story["constitution"]
        yield f"written  constitution {one['name']} {one['version']}, {one['path']}, sha256 {one['sha256']}"
    yield from _wordings(story)


def _wordings(story: Json) -> Iterator[str]:
    """What of the constitution stands in what was sent; of a principle that was only applied, that it does not."""
    sent = story.get("wordings_sent")
    if sent is None:
        for name in story.get("principles", {}):
            yield f"         applied was the principle {name}; what of it was sent is not known"
        return
    if sent["question"]:
        yield f"         its question, one for all principles: {sent['question']}"
    for name, wordings in sent["principles"].items():
        for wording in wordings:
            yield f"         {wording} of the principle {name}: {story['principles'][name][wording]}"
        if story["purpose"] == "choice":
            yield f"         the ids and tags of its principles, no wording; what came out: {name}"
        elif not wordings:
            yield f"         no wording of the principle {name}, which the round is about"


def _use(use: Json) -> str:
    if "pair_id" in use:
        order = {"ab": ", a shown first", "ba": ", b shown first"}.get(use["order"], f", on {use['side']} alone")
        return f"the verdict on {use['pair_id']} by {use['principle_id']}{order}"
    if "round" in use:
        return f"row {use['row_id']}, round {use['round']}, {use['use']}, principle {use['principle_id']}"
    return f"row {use['row_id']}, {use['use']}"


def _print_request(screen: Console, story: Json) -> None:
    request = story["request"]
    if request is None:
        _say(screen, f"What was sent cannot be shown. {story['why_not']}", "yellow")
        return
    _say(
        screen,
        "What was sent, built anew from the texts and settings that the run keeps. Its fingerprint is the key of this "
        "call, so it is what was sent, to the letter.",
    )
    for number, message in enumerate(request["messages"], start=1):
        optional = ", left out if the conversation is too long" if message.get("may_be_left_out") else ""
        _boxed(screen, message["content"], f"message {number}: {message['role']}{optional}")
        if message.get("token_ids"):
            count, model = len(message["token_ids"]), message["token_ids_of"]
            _say(screen, f"  sent as the {count} tokens that {model} had written")
    if request["choices"]:
        _say(screen, f"one token was forced, one of: {', '.join(request['choices'])}")
    else:
        how = request["sampling"]
        drawn = f"temperature {how['temperature']:g}, top-p {how['top_p']:g}, seed {request['seed']}"
        greedy = "temperature 0: the likeliest word each time"
        _say(screen, f"sampling {drawn if how['temperature'] else greedy}, at most {how['max_tokens']} tokens")
    if story["answer"]["left_out"]:
        _say(screen, f"{story['answer']['left_out']} of the oldest turns did not fit and were left out.", "yellow")


def _finish(finish: str) -> str:
    return {"stop": "ended by itself", "length": "cut off at the token limit"}.get(finish, finish)


def _boxed(screen: Console, text: str, title: str) -> None:
    screen.print(Panel(Text(visible(text)), title=escape(visible(title)), title_align="left"))


def _say(screen: Console, sentence: str, style: str = "") -> None:
    screen.print(Text(visible(sentence), style=style), soft_wrap=True)
