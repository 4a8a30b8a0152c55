"""The configs of an exported dataset: their rows, their Arrow schemas, and their Parquet files.

    DIR/preference/train-00000-of-00001.parquet   100,000 rows to a file; a test file only where there are test rows

The prompt stands in a column of its own and `chosen`, `rejected` and `completion` are one-message lists: the one form
that TRL's trainers all take as it is. The same conversation as text, or with the prompt inside `chosen`, fails in one
of them and is read wrongly in another. `row_id`, `pair_id` and `principle_ids` lead back to the run and are ignored by
the trainers.
"""

import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cai.files import writing
from cai.ids import file_digest
from cai.rows import Message, as_turns
from cai.schemas import MESSAGES, schema_of
from cai.seal import Json

Config = Literal["sft", "preference", "reward", "kto"]
CONFIGS: tuple[Config, ...] = ("sft", "preference", "reward", "kto")
SPLITS = ("train", "test")
FILE_ROWS = 100_000
KIND = "cai export"  # what the manifest of a dataset calls itself
# The rows of each config, by split.
Tables = Mapping[Config, Mapping[str, Sequence[Json]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to be imitated. `answer_from` is "revision-2" (the second one taken), "response" or "helpful";
    `principle_ids` are the principles of the rounds that asked for a revision, up to that one."""

    row_id: str
    prompt: tuple[Message, ...]
    answer: str
    answer_from: str
    principle_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DecidedPair:
    """A pair whose label decides. `chosen_probability` and `margin` are the label's, seen from the chosen answer;
    `by_person` where a person decided it against the judge or without one."""

    pair_id: str
    row_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_from: str
    rejected_from: str
    chosen_probability: float
    margin: float
    principle_ids: tuple[str, ...]
    by_person: bool = False
    reviewed: bool = False


_LINEAGE = (("pair_id", pa.string()), ("row_id", pa.string()), ("principle_ids", pa.list_(pa.string())))
_PAIR = (
    *(("prompt", MESSAGES), ("chosen", MESSAGES), ("rejected", MESSAGES)),
    ("chosen_probability", pa.float64()),
)

# Nothing may be null: a null margin, for one, makes a trainer crash.
DATASET_SCHEMAS: dict[Config, Any] = {
    "sft": schema_of(("messages", MESSAGES), ("answer_from", pa.string()), *_LINEAGE[1:]),
    "preference": schema_of(*_PAIR, *_LINEAGE),
    "reward": schema_of(*_PAIR, ("margin", pa.float64()), *_LINEAGE),
    "kto": schema_of(("prompt", MESSAGES), ("completion", MESSAGES), ("label", pa.bool_()), *_LINEAGE),
}


def reply(text: str) -> list[Json]:
    """An answer as the one-message list that trainers take."""
    return [{"role": "assistant", "content": text}]


def sft_row(answer: Answer) -> Json:
    """The row of `sft`: the conversation with the answer as its last turn."""
    return {
        "messages": as_turns(answer.prompt) + reply(answer.answer),
        "answer_from": answer.answer_from,
        "row_id": answer.row_id,
        "principle_ids": list(answer.principle_ids),
    }


def reward_row(pair: DecidedPair) -> Json:
    """The row of `reward`."""
    return {
        "prompt": as_turns(pair.prompt),
        "chosen": reply(pair.chosen),
        "rejected": reply(pair.rejected),
        "chosen_probability": pair.chosen_probability,
        "margin": pair.margin,
        "pair_id": pair.pair_id,
        "row_id": pair.row_id,
        "principle_ids": list(pair.principle_ids),
    }


def preference_row(pair: DecidedPair) -> Json:
    """The row of `preference`: that of `reward` without the margin, which its trainers have no use for."""
    return {name: value for name, value in reward_row(pair).items() if name != "margin"}


def kto_rows(pair: DecidedPair) -> list[Json]:
    """The two rows of `kto`: the chosen answer is a good one, the rejected one is not."""
    shared = {name: value for name, value in reward_row(pair).items() if name in DATASET_SCHEMAS["kto"].names}
    sides = ((pair.chosen, True), (pair.rejected, False))
    return [shared | {"completion": reply(text), "label": label} for text, label in sides]


def arrow_table(records: Sequence[Json], schema: Any) -> Any:
    """Records as an Arrow table whose footer carries the features as `datasets` writes them.

    Raises ValueError where a record's keys are not the schema's, or a null stands in a column: pyarrow lets both pass.
    """
    from datasets import Features  # a second to load, so only when something is written

    for record in records:
        if record.keys() != set(schema.names):
            raise ValueError(f"keys {sorted(record.keys() ^ set(schema.names))} are not in both the row and the schema")
    features: Any = Features.from_arrow_schema(schema)
    made: Any = pa.Table.from_pylist(list(records), schema=schema.with_metadata(features.arrow_schema.metadata))
    for name in schema.names:
        if made.column(name).null_count:
            raise ValueError(f"a null in '{name}', which never has one")
    return made


def write_configs(folder: Path, tables: Tables) -> list[Json]:
    """Write every config that has rows, a config's splits to files of at most FILE_ROWS rows.

    Returns path, rows, bytes and sha256 of each file. Raises CannotWrite.
    """
    files: list[Json] = []
    for config in CONFIGS:
        for split in SPLITS:
            rows = tables[config][split]
            shards = -(-len(rows) // FILE_ROWS)
            for index in range(shards):
                path = folder / config / f"{split}-{index:05d}-of-{shards:05d}.parquet"
                part = rows[index * FILE_ROWS : (index + 1) * FILE_ROWS]
                files.append(write_parquet(folder, path, arrow_table(part, DATASET_SCHEMAS[config])))
    return files


def rows_of(folder: Path, config: str, split: str, columns: list[str] | None = None) -> Iterator[Json]:
    """The rows of a config's split, in their order."""
    for path in sorted(folder.glob(f"{config}/{split}-*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000, columns=columns):
                yield from batch.to_pylist()


def write_parquet(folder: Path, path: Path, table: Any) -> Json:
    """Write and sync one file; returns what the manifest says of it. `folder` is where its path begins.

    Content-defined chunks keep the pages of unchanged rows unchanged, so that a hub stores a new version's difference
    only; the page index lets a reader take single rows. Raises CannotWrite.
    """
    with _written(path) as file:
        pq.write_table(
            table, file, compression="zstd", row_group_size=10_000, use_content_defined_chunking=True,
            write_page_index=True,
        )  # fmt: skip
    return file_entry(folder, path, table.num_rows)


def write_json_lines(folder: Path, path: Path, records: Sequence[Json]) -> Json:
    """Write and sync records as JSON lines; returns what the manifest says of the file. Raises CannotWrite."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return write_text(folder, path, lines, len(records))


def write_text(folder: Path, path: Path, text: str, rows: int = 0) -> Json:
    """Write and sync a text; returns what the manifest says of the file. Raises CannotWrite."""
    with _written(path) as file:
        file.write(text.encode("utf-8"))
    return file_entry(folder, path, rows)


@contextmanager
def _written(path: Path) -> Generator[BinaryIO]:
    """A new file, synced in the end. It needs no scratch name: its folder has one."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


def json_text(value: Json) -> str:
    """A JSON object as it is written to a file."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def file_entry(folder: Path, path: Path, rows: int) -> Json:
    """What the manifest says of a file: its path in the folder, rows, bytes and sha256."""
    size, sha256 = path.stat().st_size, file_digest(path)
    return {"path": path.relative_to(folder).as_posix(), "rows": rows, "bytes": size, "sha256": sha256}
