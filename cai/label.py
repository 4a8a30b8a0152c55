"""The feedback phase of Constitutional AI, one pair from top to bottom (Bai et al. 2022, section 4.1; Lee et al. 2023).

    pair -> verdicts (principle x order) -> label

A judge is asked which of two answers keeps a principle better, and the label is soft: the normalised probabilities of
the two letters, as in Bai et al. Both orders are always asked and averaged, as in Lee et al., section 2.1.1, since a
judge leans towards a place. In `logprob` mode the letter is forced, in `reasoned` mode it follows a text in which the
judge reasons, and its probability is clamped (Bai et al., section 4.1: to 40-60 %). In `pointwise` mode each
answer is judged alone, as the continuation of its own conversation: is the principle kept? The difference of the two
log-odds is the verdict. There is no order to lean to, and the prompt begins with what the answer's own making has left
in the engine's cache.

Where we depart from the papers: a verdict that cannot be read counts for nothing, instead of 0.5; a pair may be judged
by several principles and their mean taken, instead of one that is drawn; and a label that the order decides, or that
the principles disagree about, decides nothing.

All that is added up is odd (a swap of a and b changes the sign and nothing else), so the labels of swapped pairs mirror
each other to the last bit.
"""

import math
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from cai.calls import FORCED, Ask, Calls, together
from cai.constitution import Constitution, Principle
from cai.engines import Engine, Sampling
from cai.ids import choose_several
from cai.rows import Label, Message, Pair, Verdict
from cai.templates import Templates

T = TypeVar("T")

LETTERS = ("A", "B")
KEPT = ("Good", "Bad")
# Why a label decides nothing, in the order in which they are looked at.
REASONS = ("too_few_readable", "order_decides", "tie", "principles_conflict")
# The same, where a person has the last word.
NEITHER = "person_chose_neither"
LARGEST_MARGIN = 5.0
# What is sampled where no log-probabilities are given: room for "Answer: A".
SAMPLED = Sampling(max_tokens=8, temperature=1.0)


@dataclass(frozen=True, slots=True)
class Rule:
    """When verdicts make a label, and when the label decides.

    Log-odds are divided by `temperature` before anything is added up (1 leaves them as they are; `cai calibrate` finds
    the one that fits a judge). A label decides unless fewer than `min_readable` of the principles (by weight) were read
    in both orders, the two orders name different answers, its probability lies within `tie_band` of 0.5, or fewer than
    `min_agreement` of the principles (by weight) side with it.
    """

    temperature: float
    tie_band: float
    min_readable: float
    min_agreement: float


@dataclass(frozen=True, slots=True)
class Judging:
    """The settings of the feedback phase.

    `principles` is how many of them judge a pair, chosen by hash in proportion to their weights; None means all.
    `clamp` is how far the probability of a reasoned verdict may lie from 0.5. Where an engine gives no
    log-probabilities, `letters` letters are sampled instead and counted. A verdict of which less than `min_mass` fell
    on the two words is unread.
    """

    seed: int
    mode: Literal["logprob", "reasoned", "pointwise"]
    principles: int | None
    reasoning: Sampling
    clamp: float
    letters: int
    min_mass: float
    rule: Rule


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair with all that was said of it."""

    pair: Pair
    verdicts: tuple[Verdict, ...]
    label: Label


async def judge(
    pair: Pair, ask: Ask, judge: Engine, constitution: Constitution, templates: Templates, method: Judging,
    principles: Mapping[str, tuple[str, ...]] | None = None,
) -> Judged:  # fmt: skip
    """The pair's verdicts and its label. `principles`, by pair_id, come before those of `method`. Raises RowDropped."""
    calls = Calls(pair.row_id, pair.position, ask, method.seed, pair.pair_id)
    named = principles[pair.pair_id] if principles else _principles(pair, constitution, method)
    asked = [constitution.principle(name) for name in named]
    if method.mode == "pointwise":
        alone = partial(_alone, pair=pair, calls=calls, judge=judge, templates=templates, method=method)
        kept = await _shared_first(alone, (pair.a, pair.b), asked)
        answers = [(_apart(a, b, method), principle, "none") for principle, (a, b) in zip(asked, kept, strict=True)]
    else:
        compare = partial(_compare, pair=pair, calls=calls, judge=judge, templates=templates, method=method)
        compared = await _shared_first(compare, ("ab", "ba"), asked)
        answers = [
            (answer, principle, order)
            for principle, both in zip(asked, compared, strict=True)
            for order, answer in zip(("ab", "ba"), both, strict=True)
        ]
    verdicts = tuple(
        Verdict(
            pair.pair_id, principle.id, order, answer.mode, answer.probability_a, answer.logprob_a, answer.logprob_b,
            answer.mass, answer.reasoning, answer.raw, answer.calls, judge.model, templates.sha,
        )
        for answer, principle, order in answers
    )  # fmt: skip
    told = label(verdicts, constitution.weights(), method.rule)
    return Judged(
        pair,
        verdicts,
        Label(
            pair.pair_id, pair.row_id, told.probability_a, told.chosen, told.margin, told.position_gap,
            tuple(principle.id for principle in asked), told.agreement, told.chosen, told.reason, None,
            method.mode, judge.model, constitution.name, constitution.sha, templates.sha, method.seed, **calls.totals(),
        ),
    )  # fmt: skip


def tables(judged: Sequence[Judged]) -> dict[str, list[Any]]:
    """The rows of each table that judged pairs make."""
    return {
        "pairs": [one.pair for one in judged],
        "verdicts": [verdict for one in judged for verdict in one.verdicts],
        "labels": [one.label for one in judged],
    }


# Labels


@dataclass(frozen=True, slots=True)
class Told:
    """What verdicts come to; the fields are those of `rows.Label`."""

    probability_a: float | None
    chosen: str
    margin: float | None
    position_gap: float | None
    agreement: float | None
    reason: str


def label(verdicts: Sequence[Verdict], weights: Mapping[str, float], rule: Rule) -> Told:
    """The label that the verdicts on one pair make: the weighted mean over principles and orders, and what it decides.

    A principle counts if all its verdicts were read; one order alone would count its lean as an opinion.
    """
    by_principle: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_principle.setdefault(verdict.principle_id, []).append(verdict)
    leans: dict[str, list[float]] = {}
    for name, group in by_principle.items():
        read = [lean(log_odds(one.probability_a), rule.temperature) for one in group if one.probability_a is not None]
        if len(read) == len(group):
            leans[name] = read
    total = math.fsum(weights[name] for name in leans)
    if not leans or total < rule.min_readable * math.fsum(weights[name] for name in by_principle):
        return Told(None, "none", None, None, None, "too_few_readable")
    mean = _mean([(weights[name], group) for name, group in leans.items()])
    agreement = math.fsum(weights[name] for name, group in leans.items() if math.fsum(group) * mean > 0) / total
    gap: float | None = None
    sides = 1.0
    if verdicts[0].order != "none":
        gap = math.fsum(weights[name] * abs(ab - ba) for name, (ab, ba) in leans.items()) / total
        sides = math.prod(math.fsum(weights[name] * group[place] for name, group in leans.items()) for place in (0, 1))
    reason = ""
    if sides < 0:
        reason = "order_decides"
    elif abs(mean) <= rule.tie_band:
        reason = "tie"
    elif agreement < rule.min_agreement:
        reason = "principles_conflict"
    chosen = "none" if reason else "a" if mean > 0 else "b"
    margin = min(LARGEST_MARGIN, 2 * math.atanh(min(2 * abs(mean), 0.999)))
    return Told(0.5 + mean, chosen, margin, gap, agreement, reason)


def why_none(label_row: Mapping[str, Any]) -> str:
    """Why a row of `labels` decides nothing: a person's word comes before the judge's reason."""
    return label_row["reason"] if label_row["reviewed"] is None else NEITHER


def soft_label(evidence: Sequence[tuple[float, Sequence[float]]], temperature: float) -> float:
    """The probability of a: the weighted mean over principles and orders. `evidence` has each principle's weight, and
    the log-odds of a in each order."""
    return 0.5 + _mean([(weight, [lean(one, temperature) for one in group]) for weight, group in evidence])


def _mean(leans: Sequence[tuple[float, Sequence[float]]]) -> float:
    """The weighted mean over principles, of the plain mean over each one's orders."""
    total = math.fsum(weight for weight, _ in leans)
    return _rounded(math.fsum(weight * math.fsum(group) / len(group) for weight, group in leans) / total)


def lean(log_odds: float, temperature: float) -> float:
    """How far the probability with these log-odds lies above 0.5, after calibration. Odd: a swap changes its sign."""
    return math.tanh(log_odds / temperature / 2) / 2


def log_odds(probability: float) -> float:
    """Odd about 0.5, and finite at 0 and 1: nearer to certainty than 2**-41 no verdict is, see `_rounded`."""
    return 2 * math.copysign(math.atanh(2 * min(abs(probability - 0.5), 0.5 - 2**-41)), probability - 0.5)


def _rounded(lean: float) -> float:
    """To a multiple of 2**-40, so that 0.5 + lean and 0.5 - lean are both exact."""
    return round(lean * 2**40) / 2**40


# Verdicts


@dataclass(frozen=True, slots=True)
class _Answer:
    """One verdict as it was read; the fields are those of `rows.Verdict`."""

    mode: str
    probability_a: float | None
    logprob_a: float | None
    logprob_b: float | None
    mass: float
    reasoning: str | None
    raw: str
    calls: tuple[str, ...]


def _principles(pair: Pair, constitution: Constitution, method: Judging) -> tuple[str, ...]:
    """The principles that judge a pair, in the constitution's order."""
    if method.principles is None or method.principles >= len(constitution.principles):
        return tuple(principle.id for principle in constitution.principles)
    chosen = choose_several(method.seed, pair.pair_id, 0, constitution.weights(), method.principles)
    return tuple(principle.id for principle in constitution.principles if principle.id in chosen)


async def _shared_first(
    ask: Callable[[str, Principle], Coroutine[Any, Any, T]], sides: tuple[str, str], principles: Sequence[Principle]
) -> list[tuple[T, T]]:
    """What is asked of both sides, by each principle.

    The first questions are asked one after the other, and only then the rest together: so the second side finds the
    conversation in the engine's cache, and every further principle all that stands before it.
    """
    first, *others = principles
    heads = [await ask(side, first) for side in sides]
    rest = await together(ask(side, one) for one in others for side in sides)
    every = [*heads, *rest]
    return list(zip(every[::2], every[1::2], strict=True))


async def _compare(
    order: str, principle: Principle, pair: Pair, calls: Calls, judge: Engine, templates: Templates, method: Judging
) -> _Answer:
    """Both answers in one order, by one principle."""
    name = "judge_reasoned" if method.mode == "reasoned" else "judge"
    first, second = (pair.a, pair.b) if order == "ab" else (pair.b, pair.a)
    question = templates.render(name, principle, conversation=pair.prompt, first=first, second=second)
    messages: tuple[Message, ...] = (Message("user", question),)
    reasoning: str | None = None
    keys: tuple[str, ...] = ()
    # The seeds know the pair and the principle, not the order: a swapped pair asks the very same calls.
    if method.mode == "reasoned":
        key, reasoned = await calls(judge, "reasoning", messages, method.reasoning, (0, principle.id))
        reasoning, keys = reasoned.text, (key,)
        said = Message("assistant", reasoned.text, reasoned.token_ids, judge.model)
        messages = (*messages, said, Message("user", templates.render("judge_letter", principle)))
    read = await _read(messages, LETTERS, "verdict", principle, calls, judge, method)
    logprobs = read.logprobs
    if logprobs is not None and order == "ba":
        logprobs = logprobs[1], logprobs[0]
    return _answer(method, read.sampled, logprobs, read.mass, reasoning, read.raw, (*keys, *read.keys))


async def _alone(
    answer: str, principle: Principle, pair: Pair, calls: Calls, judge: Engine, templates: Templates, method: Judging
) -> "_Read":
    """One answer, as the last turn of its own conversation: is the principle kept?"""
    request = Message("user", templates.render("judge_alone", principle))
    messages = (*pair.prompt, Message("assistant", answer), request)
    return await _read(messages, KEPT, "kept", principle, calls, judge, method)


def _apart(a: "_Read", b: "_Read", method: Judging) -> _Answer:
    """The verdict that two answers, each judged alone, come to: its log-odds are the difference of theirs."""
    odds: tuple[float, float] | None = None
    if a.logprobs is not None and b.logprobs is not None:
        odds = a.logprobs[0] - a.logprobs[1], b.logprobs[0] - b.logprobs[1]
    raw, keys = f"{a.raw} / {b.raw}", (*a.keys, *b.keys)
    return _answer(method, a.sampled or b.sampled, odds, min(a.mass, b.mass), None, raw, keys)


def _answer(
    method: Judging, sampled: bool, ab: tuple[float, float] | None, mass: float,
    reasoning: str | None, raw: str, calls: tuple[str, ...],
) -> _Answer:  # fmt: skip
    """The verdict that the log-odds of a against b make."""
    mode = "sampled" if sampled else method.mode
    if ab is None or not mass >= method.min_mass:
        return _Answer(mode, None, *(ab or (None, None)), mass, reasoning, raw, calls)
    bound = method.clamp if method.mode == "reasoned" else 0.5
    lean = _rounded(max(-bound, min(bound, math.tanh((ab[0] - ab[1]) / 2) / 2)))
    return _Answer(mode, 0.5 + lean, *ab, mass, reasoning, raw, calls)


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of one question with two words to answer it: their log-probabilities, and the mass on both."""

    logprobs: tuple[float, float] | None
    mass: float
    sampled: bool
    raw: str
    keys: tuple[str, ...]


async def _read(
    messages: tuple[Message, ...], words: tuple[str, str], purpose: str, principle: Principle, calls: Calls,
    judge: Engine, method: Judging,
) -> _Read:  # fmt: skip
    """Force one of the two words. Where the engine gives no log-probabilities, sample some and count them."""
    key, forced = await calls(judge, purpose, messages, FORCED, choices=words)
    if forced.choice_logprobs is None:
        return await _sampled(messages, words, purpose, principle, calls, judge, method)
    if not forced.choice_logprobs:  # there are log-probabilities, and neither word is among the likeliest
        return _Read(None, 0.0, False, forced.text, (key,))
    first, second = forced.choice_logprobs
    return _Read((first, second), math.exp(first) + math.exp(second), False, forced.text, (key,))


async def _sampled(
    messages: tuple[Message, ...], words: tuple[str, str], purpose: str, principle: Principle, calls: Calls,
    judge: Engine, method: Judging,
) -> _Read:  # fmt: skip
    asked = await together(
        calls(judge, purpose, messages, SAMPLED, (number, principle.id)) for number in range(1, method.letters + 1)
    )
    read = [word for _, completion in asked if (word := read_word(completion.text, words)) is not None]
    raw, keys = " | ".join(completion.text for _, completion in asked), tuple(key for key, _ in asked)
    if not read:
        return _Read(None, 0.0, True, raw, keys)
    # Half a count for each word, so that ten equal letters are not certainty.
    first, second = (math.log((read.count(word) + 0.5) / (len(read) + 1)) for word in words)
    return _Read((first, second), len(read) / len(asked), True, raw, keys)


def read_word(text: str, words: tuple[str, str]) -> str | None:
    """The one of two words that stands in a text; None if neither or both do, so that "A is no better than B" is
    nobody's verdict."""
    said = [word for word in words if re.search(rf"\b{word}\b", text)]
    return said[0] if len(said) == 1 else None
