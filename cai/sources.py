"""Records from JSONL, Parquet, CSV or `datasets:NAME[:CONFIG][:SPLIT]`, one after another, each with its place.

What concerns the whole source is BadInput; a record that cannot be parsed is `Unreadable`, and the ones behind it are
read all the same.
"""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cai.errors import BadInput, brief
from cai.files import find_shipped
from cai.rows import is_text

# Bytes of a JSON line, and characters of a text: about four million tokens, which no model's window holds.
LONGEST = 16 << 20
# Objects and lists within each other. What a table and a journal hold of a record is written by functions that recurse.
DEEPEST = 100


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that could not even be parsed: `found` says what is there instead, `raw` is its beginning."""

    found: str
    raw: str


def read_records(spec: str) -> Iterator[tuple[str, dict[str, Any] | Unreadable]]:
    """Each record with its place ("file.jsonl:12"). Raises BadInput if the source as a whole cannot be read."""
    for place, record in _records(spec):
        if isinstance(record, dict) and _nested_over(record, DEEPEST):
            yield place, Unreadable(f"values nested more than {DEEPEST} deep", f"columns {', '.join(record)}"[:2000])
        else:
            yield place, record


def is_left(records: Iterator[tuple[str, dict[str, Any] | Unreadable]]) -> bool:
    """Whether there is one more record; one that cannot be read is one, too."""
    try:
        return next(records, None) is not None
    except BadInput:
        return True


def _nested_over(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list | tuple) and (depth == 0 or any(_nested_over(one, depth - 1) for one in value))


def file_of(spec: str) -> Path | None:
    """The file that a spec means, whether it is there or not; None if it means a dataset."""
    return None if spec.startswith("datasets:") else find_shipped("data/prompts", spec, ".jsonl") or Path(spec)


def _records(spec: str) -> Iterator[tuple[str, dict[str, Any] | Unreadable]]:
    path = file_of(spec)
    if path is None:
        yield from _datasets(spec)
        return
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet, ".csv": _csv}
    if path.suffix not in readers:
        remedy = "Convert it, or give datasets:NAME." if path.exists() else "Check the path."
        raise BadInput(spec, f"the ending '{path.suffix}'", "a .jsonl, .parquet or .csv file, or datasets:NAME", remedy)
    if not path.is_file():
        raise BadInput(
            spec, "no such file", "a file of prompts", "Check the path; it is relative to the current folder."
        )
    try:
        yield from readers[path.suffix](path)
    except OSError as error:
        raise BadInput(
            spec, f"a file that cannot be read ({error.strerror or error})", "a readable file", "Check its permissions."
        ) from error


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any] | Unreadable]]:
    with path.open("rb") as file:
        for number, (line, length) in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            place = f"{path.name}:{number}"
            if length > LONGEST:
                found = f"a line of {length} bytes, of which at most {LONGEST} are read"
                yield place, Unreadable(found, line[:2000].decode("utf-8", "replace"))
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text, object_pairs_hook=each_key_once)
            except (ValueError, RecursionError) as error:
                yield place, Unreadable(f"no JSON ({error})", line[:2000].decode("utf-8", "replace"))
                continue
            if isinstance(record, dict):
                yield place, record
            else:
                yield place, Unreadable(f"JSON of the type {kind_of(record)}", line[:2000].decode("utf-8", "replace"))


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each line and its length; of one that is too long only the beginning, so that none fills the memory."""
    while line := file.readline(LONGEST + 1):
        length, rest = len(line), line
        while not rest.endswith(b"\n") and (rest := file.readline(1 << 20)):
            length += len(rest)
        yield line, length


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: an object, unless a key stands in it twice, of which one would be lost."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key that stands twice")
    return record


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any] | Unreadable]]:
    csv.field_size_limit(1 << 30)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        # strict: a stray or unclosed quote is an error, not a guess at what was meant.
        reader = csv.DictReader(file, strict=True)
        try:
            if not all(map(is_text, reader.fieldnames or ())):
                raise BadInput(f"{path}:1", "bytes that are not UTF-8", "UTF-8 text", "Convert the file.")
            if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
                raise BadInput(f"{path}:1", "a column name twice", "each column once", "Rename one of them.")
            for record in reader:
                place = f"{path.name}:{reader.line_num}"
                if None in record or None in record.values():
                    columns = len(reader.fieldnames or ())
                    yield (
                        place,
                        Unreadable(f"a line that has not {columns} columns", json.dumps(record, default=str)[:2000]),
                    )
                elif not all(map(is_text, record.values())):
                    yield place, Unreadable("bytes that are not UTF-8", json.dumps(record)[:2000])
                else:
                    # An empty cell is the only way in which CSV can leave an id out.
                    yield place, {name: value for name, value in record.items() if name != "id" or value}
        except csv.Error as error:
            # The reader below: this one counts what it has handed over.
            raise BadInput(f"{path}:{reader.reader.line_num}", str(error), "CSV", "Mend that line.") from error


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any] | Unreadable]]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise BadInput(
            str(path), f"no Parquet file ({error})", "a Parquet file", "Check how it was written."
        ) from error
    if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
        raise BadInput(str(path), "a column name twice", "each column once", "Rename one of them.")
    number = 0
    with file:
        try:
            for batch in file.iter_batches(batch_size=1024):
                for record in _batch(batch):
                    number += 1
                    yield f"{path.name}:{number}", record
        except (pa.ArrowException, ValueError, LookupError, OverflowError) as error:  # a time zone that is none, too
            found = f"rows after {number} that cannot be read ({brief(error)})"
            raise BadInput(str(path), found, "a sound Parquet file", "Check how it was written.") from error


def _batch(batch: Any) -> list[dict[str, Any] | Unreadable]:
    """The records of a batch; one that holds bytes which are no text does not take the others with it."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_alone(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _alone(batch: Any) -> dict[str, Any] | Unreadable:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return Unreadable("bytes that are not UTF-8", f"columns {', '.join(batch.schema.names)}"[:2000])


def _datasets(spec: str) -> Iterator[tuple[str, dict[str, Any] | Unreadable]]:
    import datasets
    import yaml
    from datasets.exceptions import DatasetsError

    name, *rest = spec.removeprefix("datasets:").split(":")
    if not name or len(rest) > 2:
        raise BadInput(spec, "this", "datasets:NAME, datasets:NAME:SPLIT or datasets:NAME:CONFIG:SPLIT", "Mend it.")
    split = rest[-1] if rest else "train"
    try:
        source: Any = datasets.load_dataset(name, rest[0] if len(rest) == 2 else None, split=split, streaming=True)
        for number, record in enumerate(source, start=1):
            yield f"{name}:{split}:{number}", dict(record)
    # RuntimeError: a folder with a script, which is not run.
    except (OSError, ValueError, ImportError, RuntimeError, yaml.YAMLError, DatasetsError) as error:
        raise BadInput(
            spec,
            f"a dataset that cannot be loaded ({brief(error)})",
            "a dataset on the hub or a folder",
            "Check name and split.",
        ) from error


def plain(value: Any) -> Any:
    """`value` with JSON types only: dates and bytes as text, and numbers that are not finite as text too."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def kind_of(value: object) -> str:
    names = {"dict": "object", "str": "text", "bool": "boolean", "int": "number", "float": "number", "NoneType": "null"}
    kind = type(value).__name__
    return names.get(kind, kind) + (" (empty)" if value in ([], {}) else "")
