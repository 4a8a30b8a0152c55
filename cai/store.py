"""A run on disk: Parquet shards, the settings it was made with, its sessions, its manifest.

    RUN/trajectories/part-00000.parquet   rows in input order, whatever order they finished in
    RUN/labels/part-00000.parquet         and pairs/, verdicts/: a stage may write several tables, shard by shard
    RUN/drops/revise-00000.parquet        the rows of that shard that could not be used, if there are any
    RUN/journal/part-00000.jsonl          the finished calls of that shard's rows
    RUN/inputs/revise/                    the constitution and the templates as the stage used them
    RUN/settings.json                     what the run belongs to, by stage; written first
    RUN/sessions.jsonl                    one line for each time a command worked on the run and could say so
    RUN/manifest.json                     files, digests, counts, tokens, times; written last

A shard is written beside its name, synced and renamed, its drops before it; so a finished name means a finished file,
and a shard whose rows are there has its drops. Of a stage with several tables the last one is written last, and stands
for all. Its footer holds the digests of its inputs and of the settings.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from cai.errors import BadInput
from cai.files import publish, write_atomically
from cai.ids import file_digest
from cai.rows import SCHEMAS, Drop, as_turns

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShardMark:
    """What a shard's footer says of it: which settings and inputs made it, and how many of its records were dropped."""

    settings_sha: str
    inputs: tuple[str, ...]
    dropped: int


def to_table(rows: Sequence[object], table: str) -> Any:
    """Dataclass rows as an Arrow table with the schema of `table`.

    Raises ValueError where a row's keys differ from the schema, or a null stands where none may: pyarrow alone drops
    unknown keys, fills missing ones with nulls and lets both pass without a word.
    """
    schema = SCHEMAS[table]
    records = [_record(row) for row in rows]
    for record in records:
        _check_keys(record, schema, table)
    made: Any = pa.Table.from_pylist(records, schema=schema)
    for field in schema:
        if not field.nullable and made.column(field.name).null_count:
            raise ValueError(f"{table}: a null in '{field.name}', which never has one")
    return made


def _record(row: object) -> Json:
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


class Run:
    """A run's folder, held by one process at a time while it is open for writing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        """Take the folder. Raises BadInput if another process holds it, or if it holds something that is not a run."""
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"--out {self.folder}", "a file", "a folder", "Choose another --out.")
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set[str]()
        if "settings.json" not in names and any(not name.startswith(".") for name in names):
            found, expected = "a folder with other files", "a run or an empty folder"
            raise BadInput(f"--out {self.folder}", found, expected, "Choose another --out.")
        self._made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BadInput(
                f"--out {self.folder}",
                f"a folder that cannot be written ({error.strerror})",
                "a writable folder",
                "Choose another --out.",
            ) from error
        try:
            # The kernel lets go of the lock when the process ends, however it ends: there are no stale ones.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._lock), os.stat(self.folder / ".lock")):
                raise BlockingIOError  # another process has just removed the folder that was empty
        except OSError:
            pid = os.pread(self._lock, 32, 0).decode() or "unknown"
            os.close(self._lock)
            raise BadInput(
                f"--out {self.folder}",
                f"a run that process {pid} is working on",
                "a free one",
                "Wait for it, or end it.",
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        if not (self.folder / "settings.json").exists():  # nothing came of it: leave nothing behind
            (self.folder / ".lock").unlink()
            with contextlib.suppress(OSError):  # a folder that somebody else has put something into stays
                for folder in self._made:
                    folder.rmdir()
        os.close(self._lock)

    # What the run belongs to

    def settings(self) -> dict[str, Json]:
        """What each stage of the run belongs to; empty for a new run."""
        return read_json(self.folder / "settings.json") if (self.folder / "settings.json").exists() else {}

    def belong(self, stage: str, belongs: Json, copies: Mapping[str, str]) -> None:
        """Write down what a stage belongs to, then copies of the texts it uses, before its first row."""
        write_atomically(self.folder / "settings.json", _dump(self.settings() | {stage: belongs}))
        folder = self.folder / "inputs" / stage
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in copies.items():
            write_atomically(folder / name, text.encode("utf-8"))

    # Shards

    def shard(self, table: str, index: int) -> Path:
        return self.folder / table / f"part-{index:05d}.parquet"

    def drops(self, stage: str, index: int) -> Path:
        return self.folder / "drops" / f"{stage}-{index:05d}.parquet"

    def mark(self, stage: str, tables: Sequence[str], index: int) -> ShardMark | None:
        """What a finished shard says of itself; None if it or its drops are not there. Raises BadInput if damaged."""
        if not all(self.shard(table, index).exists() for table in tables):
            return None
        marks: list[ShardMark] = []
        for path in (self.shard(table, index) for table in tables):
            try:
                said = json.loads((pq.read_schema(path).metadata or {})[b"cai"])
                marks.append(ShardMark(said["settings_sha"], tuple(said["inputs"]), said["dropped"]))
            except (pa.ArrowException, KeyError, ValueError, OSError) as error:
                raise _damaged(path, error) from error
        mark = marks[-1]
        whole = all(one == mark for one in marks) and (not mark.dropped or self.drops(stage, index).exists())
        return mark if whole else None

    def remove_shard(self, stage: str, tables: Sequence[str], index: int) -> None:
        """Take a shard away, the table that stands for all of it first."""
        for path in (*(self.shard(table, index) for table in reversed(tables)), self.drops(stage, index)):
            path.unlink(missing_ok=True)

    def write_shard(
        self, stage: str, index: int, tables: Mapping[str, Sequence[object]], drops: Sequence[Drop], mark: ShardMark
    ) -> None:
        """Write a shard's drops, then its tables in their order, each under a scratch name first."""
        path = self.drops(stage, index)
        if drops:
            _write(path, to_table(drops, "drops"))
        else:
            path.unlink(missing_ok=True)
        footer = json.dumps(asdict(mark), sort_keys=True)
        for table, rows in tables.items():
            _write(self.shard(table, index), to_table(rows, table).replace_schema_metadata({"cai": footer}))

    def rewrite_shard(self, table: str, index: int, rows: Sequence[object]) -> None:
        """Write other rows into a finished shard, with the footer that it has."""
        footer = pq.read_schema(self.shard(table, index)).metadata
        _write(self.shard(table, index), to_table(rows, table).replace_schema_metadata(footer))

    def finished_shards(self, table: str) -> list[int]:
        """The numbers of the shards of a table that are there."""
        return sorted(
            int(path.stem.removeprefix("part-")) for path in (self.folder / table).glob("part-[0-9]*.parquet")
        )

    # Sessions and manifest

    def add_session(self, session: Json) -> None:
        # A line of its own, also behind one that a killed process has torn.
        with (self.folder / "sessions.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(session) + "\n")

    def sessions(self, stage: str) -> list[Json]:
        path = self.folder / "sessions.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        sessions = [_session(line) for line in lines if line]
        return [session for session in sessions if session is not None and session["stage"] == stage]

    def manifest(self) -> dict[str, Json]:
        """The manifest by stage; empty if no stage has finished."""
        path = self.folder / "manifest.json"
        return read_json(path) if path.exists() else {}

    def write_manifest(self, stage: str, entry: Json | None) -> None:
        """Enter a finished stage, or with None take it out because it is being worked on again."""
        stages = {name: old for name, old in self.manifest().items() if name != stage}
        if entry is not None:
            stages[stage] = entry
        write_atomically(self.folder / "manifest.json", _dump(stages))

    def files(self, stage: str, tables: Sequence[str]) -> list[Json]:
        """Path, rows, bytes and sha256 of every file that a stage's manifest answers for."""
        finished = self.finished_shards(tables[-1])
        shards = [self.shard(table, index) for table in tables for index in finished]
        drops = [path for index in finished if (path := self.drops(stage, index)).exists()]
        return [
            {
                "path": str(path.relative_to(self.folder)),
                "rows": pq.read_metadata(path).num_rows,
                "bytes": path.stat().st_size,
                "sha256": file_digest(path),
            }
            for path in [*shards, *drops]
        ]

    def records(self, table: str, columns: list[str] | None = None) -> Iterator[Json]:
        """The rows of a table, shard by shard, in input order, as plain dicts."""
        for index in self.finished_shards(table):
            yield from self.shard_records(table, index, columns)

    def shard_records(self, table: str, index: int, columns: list[str] | None = None) -> Iterator[Json]:
        """The rows of one shard."""
        return _read(self.shard(table, index), columns)

    def dropped(self, stage: str, table: str) -> Iterator[Json]:
        """The drops of a stage, in input order; those of shards that are not finished do not count yet."""
        for index in self.finished_shards(table):
            if self.drops(stage, index).exists():
                yield from _read(self.drops(stage, index), None)


def open_run(folder: str) -> Run:
    """A run to read. Raises BadInput if the folder is not one."""
    run = Run(Path(folder))
    if not (run.folder / "settings.json").is_file():
        raise BadInput(folder, "no run", "the folder that was --out of a run", "Check the path.")
    return run


def read_json(path: Path) -> Json:
    """A JSON file of a run. Raises BadInput if it is damaged."""
    remedy = "Restore it, or remove it and run again."
    try:
        value: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadInput(str(path), f"a damaged file ({error})", "what cai wrote", remedy) from error
    if not isinstance(value, dict):
        raise BadInput(str(path), "a damaged file", "what cai wrote", remedy)
    return value


def _session(line: str) -> Json | None:
    try:
        session: Any = json.loads(line)
    except ValueError:
        return None
    return session if isinstance(session, dict) and "stage" in session else None


def _damaged(path: Path, error: Exception) -> BadInput:
    brief = " ".join(str(error).split())[:200]
    return BadInput(
        str(path),
        f"a damaged shard ({brief})",
        "what cai wrote",
        "Remove it and run again; its calls are in the journal.",
    )


def _read(path: Path, columns: list[str] | None) -> Iterator[Json]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise _damaged(path, error) from error


def _write(path: Path, table: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    publish(scratch, path)


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
