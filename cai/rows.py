"""Every row that is read or written. Imports nothing of ours.

A field appears in the dataclass and in the schema of its table, see `schemas.py`, under the same name and in the same
order. All text is stored as it was read or generated, never trimmed or normalised.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is system, user or assistant.

    `token_ids` are the ids that the model `model` generated for `content`. That same model gets them spliced into a
    later prompt, so that the prompt is bit-identical to what was generated and its prefix is found in the cache (the
    same text may tokenise differently). They are a hint: two messages with the same role and content are equal.

    An `optional` turn may be left out of a call that does not fit into the model's window.
    """

    role: str
    content: str
    token_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    model: str = field(default="", compare=False, repr=False)
    optional: bool = field(default=False, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt to answer. `prompt` is the whole conversation; its last turn is the user's, and that is answered.

    `prompt_id` is the id in the input, `sample` counts the responses asked for that prompt (0, 1, ...), and `row_id`
    names the two together: "q7", "q7~1", "q7~2". `source` is where it was read ("redteam.jsonl:12"), `extra` the
    columns that are carried along, as a JSON object. `position` is its place in the input; lower ones go first when
    the engine is busy.
    """

    row_id: str
    prompt_id: str
    sample: int
    prompt: tuple[Message, ...]
    source: str
    extra: str
    position: int


@dataclass(frozen=True, slots=True)
class FailedTry:
    """A revision that failed a check and was asked for once more: its text, why it ended, what failed, its call."""

    revision: str
    finish: str
    flags: tuple[str, ...]
    call: str


@dataclass(frozen=True, slots=True)
class Round:
    """One principle applied in one round of the supervised method.

    `violation_probability` is P(broken) over the two gate words, None with the gate off or when the engine gave no
    probabilities; `gate_mass` is the probability that fell on the two words at all. Critique and revision are None
    when the gate found the answer clean, the revision alone when the critique found nothing to criticise. `revision`
    is what the model wrote last, whether or not it was taken (`taken`); `finish` is why it ended (stop or length).
    `flags` are countable remarks and faults, see `checks.py`; `failed_tries` the revisions before the last, all of
    which failed. The `_call` keys find the calls in the journal.
    """

    round: int
    principle_id: str
    violation_probability: float | None
    gate_mass: float | None
    critique: str | None
    revision: str | None
    finish: str | None
    taken: bool
    flags: tuple[str, ...]
    failed_tries: tuple[FailedTry, ...]
    choice_call: str | None
    gate_call: str | None
    critique_call: str | None
    revision_call: str | None


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled answer, as `cai generate` writes it."""

    row_id: str
    prompt_id: str
    sample: int
    prompt: tuple[Message, ...]
    source: str
    extra: str
    response: str
    finish: str
    call: str
    model: str
    templates_sha: str
    seed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    left_out_turns: int


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One row's way from the first response through its rounds to the final answer, as `cai revise` writes it."""

    row_id: str
    prompt_id: str
    sample: int
    prompt: tuple[Message, ...]
    source: str
    extra: str
    response: str
    response_finish: str
    response_call: str
    rounds: tuple[Round, ...]
    final: str
    changed: bool
    model: str
    critic: str
    reviser: str
    constitution: str
    constitution_sha: str
    templates_sha: str
    seed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    left_out_turns: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two different answers to one prompt, to be judged. `a_from` and `b_from` say where each comes from: "response",
    "revision-2" (the second one taken), "sample-1"; in gold, "chosen" and "rejected".

    Which of the two is a is derived from `pair_id`. `row_id` is the row that both come from; of two samples, the
    first one's. `position` is the pair's place in its stage; lower ones go first when the engine is busy.
    """

    pair_id: str
    row_id: str
    prompt_id: str
    prompt: tuple[Message, ...]
    a: str
    b: str
    a_from: str
    b_from: str
    source: str
    position: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of a pair by one principle, in one order.

    `order` is "ab" where a was shown first, "ba" where b was, "none" where each answer was judged alone (`pointwise`).
    `mode` is logprob, reasoned or pointwise, or "sampled" where the engine gave no log-probabilities and letters were
    counted. `probability_a` is the probability that a is the better one, None where the verdict cannot be read; it is
    never 0.5 for want of an answer. `logprob_a` and `logprob_b` are the log-probabilities of the letters that meant a
    and b; of `pointwise` verdicts, the log-odds that a and b keep the principle. `letter_mass` is the probability that
    fell on the two words at all (of two calls, the smaller). `raw` is what the judge wrote where the answer was due.
    `calls` find what was said in the journal.
    """

    pair_id: str
    principle_id: str
    order: str
    mode: str
    probability_a: float | None
    logprob_a: float | None
    logprob_b: float | None
    letter_mass: float | None
    reasoning: str | None
    raw: str
    calls: tuple[str, ...]
    judge: str
    templates_sha: str


@dataclass(frozen=True, slots=True)
class Label:
    """What all verdicts on a pair come to: a soft label, and a decision or the reason why there is none.

    `probability_a` is the weighted mean over principles and orders, after calibration. `judged` is what it decides: a,
    b or none, and then `reason` counts why (`label.REASONS`). `reviewed` is what a person chose, if one did; `chosen`
    is that, else `judged`. `margin` is the log-odds of the likelier answer, at most `label.LARGEST_MARGIN`.
    `position_gap` is how far the two orders lie apart (mean over principles; None without orders), `agreement` the
    share of the principles, by weight, that side with the mean.
    """

    pair_id: str
    row_id: str
    probability_a: float | None
    chosen: str
    margin: float | None
    position_gap: float | None
    principles: tuple[str, ...]
    agreement: float | None
    judged: str
    reason: str
    reviewed: str | None
    mode: str
    judge: str
    constitution: str
    constitution_sha: str
    templates_sha: str
    seed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    left_out_turns: int


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that could not be used: `reason` is countable, `detail` a sentence, `raw` what was read or generated."""

    row_id: str
    stage: str
    reason: str
    detail: str
    raw: str
    source: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of what a session of a stage made, as `history.py` keeps it: the mean over `values` values.

    The session told of the run's records from number `first_row` on, `rows_read` of them. `earlier` is the mean over
    the sessions before it on the same source, None without one; `shifted` says that the figure is too far from it.
    Calls, tokens and seconds are those that it took; `sessions` counts the lines of sessions.jsonl that were told of.
    """

    finished: str
    run: str
    stage: str
    source: str
    first_row: int
    rows_read: int
    figure: str
    values: int
    mean: float
    deviation: float
    earlier: float | None
    shifted: bool
    models: str
    constitution_sha: str
    templates_sha: str
    checks_sha: str
    settings_sha: str
    sessions: int
    asked_calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float


def shortenable(item: Row | Pair) -> Row | Pair:
    """The row or pair with all its older turns optional: all but the last, and but for system messages."""
    *older, last = item.prompt
    optional = (turn if turn.role == "system" else replace(turn, optional=True) for turn in older)
    return replace(item, prompt=(*optional, last))


def is_text(value: str) -> bool:
    """Whether UTF-8, and so a table, can hold it: JSON can spell half a surrogate pair, which is no character."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def as_turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as tables and servers hold them. The token ids are a hint for engines, not data."""
    return [{"role": message.role, "content": message.content} for message in messages]


def as_messages(turns: Iterable[Mapping[str, str]]) -> tuple[Message, ...]:
    """What `as_turns` made, as messages again."""
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)
