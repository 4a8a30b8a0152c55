"""Every row that is read or written, and the Arrow schema of each table. Imports nothing of ours.

A field appears in the dataclass and in the schema under the same name and in the same order; `store.to_table` refuses a
record where they differ. All text is stored as it was read or generated, never trimmed or normalised.
"""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is system, user or assistant.

    `token_ids` are the ids that the model `model` generated for `content`. That same model gets them spliced into a
    later prompt, so that the prompt is bit-identical to what was generated and its prefix is found in the cache (the
    same text may tokenise differently). They are a hint: two messages with the same role and content are equal.
    """

    role: str
    content: str
    token_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    model: str = field(default="", compare=False, repr=False)


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


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that could not be used: `reason` is countable, `detail` a sentence, `raw` what was read or generated."""

    row_id: str
    stage: str
    reason: str
    detail: str
    raw: str
    source: str


def is_text(value: str) -> bool:
    """Whether UTF-8, and so a table, can hold it: JSON can spell half a surrogate pair, which is no character."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _required(*fields: tuple[str, Any]) -> Any:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string(), False), pa.field("content", pa.string(), False)]))

_FAILED_TRY = pa.struct(
    [
        pa.field("revision", pa.string(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        pa.field("call", pa.string(), nullable=False),
    ]
)

_ROUND = pa.struct(
    [
        pa.field("round", pa.int32(), nullable=False),
        pa.field("principle_id", pa.string(), nullable=False),
        pa.field("violation_probability", pa.float64()),
        pa.field("gate_mass", pa.float64()),
        pa.field("critique", pa.string()),
        pa.field("revision", pa.string()),
        pa.field("finish", pa.string()),
        pa.field("taken", pa.bool_(), nullable=False),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        pa.field("failed_tries", pa.list_(_FAILED_TRY), nullable=False),
        pa.field("choice_call", pa.string()),
        pa.field("gate_call", pa.string()),
        pa.field("critique_call", pa.string()),
        pa.field("revision_call", pa.string()),
    ]
)

_ROW = (
    ("row_id", pa.string()),
    ("prompt_id", pa.string()),
    ("sample", pa.int32()),
    ("prompt", _MESSAGES),
    ("source", pa.string()),
    ("extra", pa.string()),
)
_TOKENS = (("prompt_tokens", pa.int64()), ("cached_tokens", pa.int64()), ("completion_tokens", pa.int64()))

RESPONSES = _required(
    *_ROW,
    ("response", pa.string()),
    ("finish", pa.string()),
    ("call", pa.string()),
    ("model", pa.string()),
    ("templates_sha", pa.string()),
    ("seed", pa.int64()),
    *_TOKENS,
)

TRAJECTORIES = _required(
    *_ROW,
    ("response", pa.string()),
    ("response_finish", pa.string()),
    ("response_call", pa.string()),
    ("rounds", pa.list_(_ROUND)),
    ("final", pa.string()),
    ("changed", pa.bool_()),
    ("model", pa.string()),
    ("critic", pa.string()),
    ("reviser", pa.string()),
    ("constitution", pa.string()),
    ("constitution_sha", pa.string()),
    ("templates_sha", pa.string()),
    ("seed", pa.int64()),
    *_TOKENS,
)

DROPS = _required(
    ("row_id", pa.string()),
    ("stage", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("raw", pa.string()),
    ("source", pa.string()),
)

SCHEMAS: dict[str, Any] = {"responses": RESPONSES, "trajectories": TRAJECTORIES, "drops": DROPS}
