"""The Arrow schema of each table, and rows as such a table. Nothing is written that its schema does not have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import pyarrow as pa

from cai.rows import as_turns
from cai.seal import Json


def schema_of(*fields: tuple[str, Any], nullable: tuple[str, ...] = ()) -> Any:
    """An Arrow schema of these fields, in which only those that are named may be null."""
    return pa.schema([pa.field(name, kind, nullable=name in nullable) for name, kind in fields])


MESSAGE = pa.struct([pa.field("role", pa.string(), False), pa.field("content", pa.string(), False)])
MESSAGES = pa.list_(MESSAGE)

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
    ("prompt", MESSAGES),
    ("source", pa.string()),
    ("extra", pa.string()),
)
_TOTALS = (
    ("prompt_tokens", pa.int64()),
    ("cached_tokens", pa.int64()),
    ("completion_tokens", pa.int64()),
    ("left_out_turns", pa.int32()),
)

RESPONSES = schema_of(
    *_ROW,
    ("response", pa.string()),
    ("finish", pa.string()),
    ("call", pa.string()),
    ("model", pa.string()),
    ("templates_sha", pa.string()),
    ("seed", pa.int64()),
    *_TOTALS,
)

TRAJECTORIES = schema_of(
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
    *_TOTALS,
)

PAIRS = schema_of(
    ("pair_id", pa.string()),
    ("row_id", pa.string()),
    ("prompt_id", pa.string()),
    ("prompt", MESSAGES),
    ("a", pa.string()),
    ("b", pa.string()),
    ("a_from", pa.string()),
    ("b_from", pa.string()),
    ("source", pa.string()),
    ("position", pa.int64()),
)

VERDICTS = schema_of(
    ("pair_id", pa.string()),
    ("principle_id", pa.string()),
    ("order", pa.string()),
    ("mode", pa.string()),
    ("probability_a", pa.float64()),
    ("logprob_a", pa.float64()),
    ("logprob_b", pa.float64()),
    ("letter_mass", pa.float64()),
    ("reasoning", pa.string()),
    ("raw", pa.string()),
    ("calls", pa.list_(pa.string())),
    ("judge", pa.string()),
    ("templates_sha", pa.string()),
    nullable=("probability_a", "logprob_a", "logprob_b", "letter_mass", "reasoning"),
)

LABELS = schema_of(
    ("pair_id", pa.string()),
    ("row_id", pa.string()),
    ("probability_a", pa.float64()),
    ("chosen", pa.string()),
    ("margin", pa.float64()),
    ("position_gap", pa.float64()),
    ("principles", pa.list_(pa.string())),
    ("agreement", pa.float64()),
    ("judged", pa.string()),
    ("reason", pa.string()),
    ("reviewed", pa.string()),
    ("mode", pa.string()),
    ("judge", pa.string()),
    ("constitution", pa.string()),
    ("constitution_sha", pa.string()),
    ("templates_sha", pa.string()),
    ("seed", pa.int64()),
    *_TOTALS,
    nullable=("probability_a", "margin", "position_gap", "agreement", "reviewed"),
)

DROPS = schema_of(
    ("row_id", pa.string()),
    ("stage", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("raw", pa.string()),
    ("source", pa.string()),
)

HISTORY = schema_of(
    ("finished", pa.string()),
    ("run", pa.string()),
    ("stage", pa.string()),
    ("source", pa.string()),
    ("first_row", pa.int64()),
    ("rows_read", pa.int64()),
    ("figure", pa.string()),
    ("values", pa.int64()),
    ("mean", pa.float64()),
    ("deviation", pa.float64()),
    ("earlier", pa.float64()),
    ("shifted", pa.bool_()),
    ("models", pa.string()),
    ("constitution_sha", pa.string()),
    ("templates_sha", pa.string()),
    ("checks_sha", pa.string()),
    ("settings_sha", pa.string()),
    ("sessions", pa.int64()),
    ("asked_calls", pa.int64()),
    ("prompt_tokens", pa.int64()),
    ("completion_tokens", pa.int64()),
    ("seconds", pa.float64()),
    nullable=("earlier",),
)

SCHEMAS: dict[str, Any] = {
    "responses": RESPONSES,
    "trajectories": TRAJECTORIES,
    "pairs": PAIRS,
    "verdicts": VERDICTS,
    "labels": LABELS,
    "drops": DROPS,
    "history": HISTORY,
}


def to_table(rows: Sequence[object], table: str) -> Any:
    """Dataclass rows as an Arrow table with the schema of `table`.

    Raises ValueError where a row's keys differ from the schema, or a null stands where none may: pyarrow alone drops
    unknown keys, fills missing ones with nulls and lets both pass without a word.
    """
    schema = SCHEMAS[table]
    records = [record_of(row) for row in rows]
    for record in records:
        _check_keys(record, schema, table)
    made: Any = pa.Table.from_pylist(records, schema=schema)
    for field in schema:
        if not field.nullable and made.column(field.name).null_count:
            raise ValueError(f"{table}: a null in '{field.name}', which never has one")
    return made


def record_of(row: object) -> Json:
    """A row as its table holds it, but for tuples."""
    assert is_dataclass(row) and not isinstance(row, type)
    record = asdict(row)
    prompt: Any = getattr(row, "prompt", None)
    if prompt is not None:
        record["prompt"] = as_turns(prompt)
    return record


def _check_keys(record: Mapping[str, Any], fields: Iterable[Any], where: str) -> None:
    expected = {field.name: field.type for field in fields}
    if record.keys() != expected.keys():
        raise ValueError(
            f"{where}: keys {sorted(record.keys() ^ expected.keys())} are not in both the row and the schema"
        )
    for name, kind in expected.items():
        if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
            for inner in record[name]:
                _check_keys(inner, kind.value_type, f"{where}.{name}")
