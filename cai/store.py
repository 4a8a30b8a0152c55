"""A run on disk: Parquet shards, the settings it was made with, its sessions, its manifest.

    RUN/trajectories/part-00000.parquet   rows in input order, whatever order they finished in
    RUN/labels/part-00000.parquet         and pairs/, verdicts/: a stage may write several tables, shard by shard
    RUN/drops/revise-00000.parquet        the rows of that shard that could not be used, if there are any
    RUN/journal/part-00000.jsonl          the finished calls of that shard's rows
    RUN/inputs/revise/                    the constitution and the templates as the stage used them
    RUN/settings.json                     what the run belongs to, by stage; written first
    RUN/shards.jsonl                      the sha256 of each Parquet file, written down before the file has its name
    RUN/sessions.jsonl                    one line for each time a command worked on the run and could say so
    RUN/manifest.json                     files, digests, counts, tokens, times; written last
    RUN/manifest.json.sig                 a signature over it, if somebody has signed it (`cai sign`)

A shard is written beside its name, synced and renamed, its drops before it; so a finished name means a finished file,
and a shard whose rows are there has its drops. Of a stage with several tables the last one is written last, and stands
for all. Its footer holds the digests of its inputs and of the settings. Before a file is first read, its bytes are
compared with the sha256 that it was written with: Parquet itself would let many a flipped one pass for data. A file
without a line in shards.jsonl is not the run's.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from cai.errors import BadInput
from cai.files import write_atomically, writing
from cai.folder import Hold, hold
from cai.ids import digest, file_digest
from cai.listing import is_listed, list_files
from cai.pasted import folder_word
from cai.rows import Drop
from cai.schemas import to_table
from cai.seal import SIGNATURE, Json, add_line, read_stages, sealed_lines, write_stages
from cai.sums import Sums, damaged_shard, stray

# As `Run.shard` names them: a copy of one is none.
_SHARD = re.compile(r"part-([0-9]{5}|[1-9][0-9]{5,})\.parquet")

# What the records of versions held that did not seal them yet.
OLDER_SETTINGS = frozenset({"settings", "models", "texts"})
OLDER_MANIFEST = OLDER_SETTINGS | {"prompts", "versions", "counts", "cost", "files"}
OLDER_SESSION = frozenset({
    "stage", "started", "seconds", "asked_calls", "reused_calls", "prompt_tokens", "cached_tokens",
    "completion_tokens", "engine_restarts", "shortened_calls",
})  # fmt: skip
# What the name of a stage ends with in the manifest while people's answers are entered into its finished tables.
_REOPENED = " (being reviewed)"
# The record in the manifest of what is no stage's table; no stage is called so.
_OTHER_FILES = "other files"


@dataclass(frozen=True, slots=True)
class ShardMark:
    """What a shard's footer says of it: which settings and inputs made it, and how many of its records were dropped.

    `places` is the digest of where the inputs were read, see `inputs.Chunk`; earlier versions wrote none.
    """

    settings_sha: str
    inputs: tuple[str, ...]
    dropped: int
    places: str | None = None


class Run:
    """A run's folder, held by one process at a time while it is open for writing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hold: Hold | None = None
        self._sums = Sums(folder, self._entries)

    def __enter__(self) -> Self:
        """Take the folder.

        Raises BadInput if another process holds it, or if it holds something that is not a run, CannotWrite if the disk
        is full.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"--out {self.folder}", "a file", "a folder", "Choose another --out.")
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set[str]()
        if "settings.json" not in names and any(not name.startswith(".") for name in names):
            found, expected = "a folder with other files", "a run or an empty folder"
            raise BadInput(f"--out {self.folder}", found, expected, "Choose another --out.")
        self._hold = hold(self.folder / ".lock", self.folder, "a run", "is working on", "Wait for it, or end it.")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._hold is not None
        self._hold.let_go(remove=not (self.folder / "settings.json").exists())
        self._hold = None

    def check_held(self) -> None:
        """Raise BadInput if the folder that was taken is no longer there: what is written would be lost, or mixed."""
        if self._hold is not None and not self._hold.is_there():
            raise BadInput(
                str(self.folder), "no folder any more, or another one", "the one that this command works on",
                "Leave it in its place until the command has ended, and give the command again.",
            )  # fmt: skip

    # What the run belongs to

    def settings(self) -> dict[str, Json]:
        """What each stage of the run belongs to; empty for a new run. Raises BadInput if that is damaged."""
        remedy = f"Restore it, or choose another --out, with --reuse {folder_word(self.folder)} to keep the calls."
        return read_stages(self.folder / "settings.json", OLDER_SETTINGS, remedy)

    def belong(self, stage: str, belongs: Json, copies: Mapping[str, str]) -> None:
        """Write down what a stage belongs to, then copies of the texts it uses, before its first row.

        Raises CannotWrite, and BadInput if the folder is gone or settings.json is damaged.
        """
        self.check_held()
        write_stages(self.folder / "settings.json", self.settings() | {stage: belongs})
        self._sums.begin()
        self.keep_copies(stage, copies)

    def keep_copies(self, stage: str, copies: Mapping[str, str]) -> None:
        """Copy the texts that a stage uses, those that are not there as they should be. Raises CannotWrite."""
        folder = self.folder / "inputs" / stage
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in copies.items():
            data = text.encode("utf-8")
            if not (folder / name).is_file() or (folder / name).read_bytes() != data:
                write_atomically(folder / name, data)

    def constitution(self, stage: str) -> Path | None:
        """The copy of the constitution that a stage used, if there is one. Raises BadInput if somebody changed it."""
        path = self.folder / "inputs" / stage / "constitution.yaml"
        if not path.is_file():
            return None
        sha = self.settings().get(stage, {}).get("texts", {}).get("constitution_sha")
        if sha is not None and file_digest(path) != sha:
            found = f"another text than the one that cai {stage} used"
            raise BadInput(str(path), found, "its copy", f"Give cai {stage} once more, which copies it again.")
        return path

    # Shards

    def shard(self, table: str, index: int) -> Path:
        return self.folder / table / f"part-{index:05d}.parquet"

    def drops(self, stage: str, index: int) -> Path:
        return self.folder / "drops" / f"{stage}-{index:05d}.parquet"

    def paths(self, stage: str, tables: Sequence[str], index: int) -> list[Path]:
        """Where a shard's tables are, and its drops if it has any; the table that stands for all of it first."""
        return [*(self.shard(table, index) for table in reversed(tables)), self.drops(stage, index)]

    def mark(self, stage: str, tables: Sequence[str], index: int) -> ShardMark | None:
        """What a finished shard says of itself; None if it or its drops are not there, or not known to be cai's.

        Raises BadInput if one, or the manifest, is damaged.
        """
        paths = [self.shard(table, index) for table in tables]
        if not all(path.exists() and self._sums.names(path) for path in paths):
            return None
        marks: list[ShardMark] = []
        for path in paths:
            self._sums.check(path)
            try:
                said = json.loads((pq.read_schema(path).metadata or {})[b"cai"])
                told = said["settings_sha"], tuple(said["inputs"]), said["dropped"], said.get("places")
                marks.append(ShardMark(*told))
            except (pa.ArrowException, KeyError, ValueError, OSError) as error:
                raise damaged_shard(path, error) from error
        mark, drops = marks[-1], self.drops(stage, index)
        if any(one != mark for one in marks) or bool(mark.dropped) != drops.exists():
            return None
        if mark.dropped:
            if not self._sums.names(drops):
                return None
            self._sums.check(drops)
        return mark

    def remove_shard(self, stage: str, tables: Sequence[str], index: int) -> None:
        """Take a shard away, the table that stands for all of it first. Raises CannotWrite."""
        for path in self.paths(stage, tables, index):
            with writing(path):
                path.unlink(missing_ok=True)

    def write_shard(
        self, stage: str, index: int, tables: Mapping[str, Sequence[object]], drops: Sequence[Drop], mark: ShardMark
    ) -> None:
        """Write a shard's drops, then its tables in their order, each under a scratch name first.

        Raises CannotWrite, BadInput if the folder is gone or the manifest damaged, ValueError as `to_table` does.
        """
        self.check_held()
        path = self.drops(stage, index)
        if drops:
            self._write(path, to_table(drops, "drops"))
        else:
            with writing(path):
                path.unlink(missing_ok=True)
        footer = json.dumps(asdict(mark), sort_keys=True)
        for table, rows in tables.items():
            self._write(self.shard(table, index), to_table(rows, table).replace_schema_metadata({"cai": footer}))

    def rewrite_shard(self, table: str, index: int, rows: Sequence[object]) -> None:
        """Write other rows into a finished shard, with the footer that it has. Raises what `write_shard` does."""
        self.check_held()
        footer = pq.read_schema(self.shard(table, index)).metadata
        self._write(self.shard(table, index), to_table(rows, table).replace_schema_metadata(footer))

    def _write(self, path: Path, table: Any) -> None:
        file = pa.BufferOutputStream()
        pq.write_table(table, file, compression="zstd")
        data = file.getvalue().to_pybytes()
        self._sums.add(path, data)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        write_atomically(path, data)

    def finished_shards(self, table: str) -> list[int]:
        """The numbers of the shards of a table that are there."""
        names = (_SHARD.fullmatch(path.name) for path in (self.folder / table).glob("part-*.parquet"))
        return sorted(int(name[1]) for name in names if name is not None)

    def check_files(self, stage: str) -> None:
        """Raise BadInput unless the files of a finished stage are those that its manifest has, each as it was."""
        listed: dict[str, str] = self._listed(stage)
        for name, sha256 in listed.items():
            path = self.folder / name
            if not path.is_file():
                found = "no such file, though the manifest has it"
                raise BadInput(str(path), found, "the run as it was finished", f"Give cai {stage} once more.")
            if self._sums.of(path) != sha256:
                raise damaged_shard(path, "it is not the one that its manifest has")
        for path in self.strays(stage, sorted({Path(name).parent.name for name in listed} - {"drops"})):
            raise stray(path)

    def strays(self, stage: str, tables: Sequence[str]) -> list[Path]:
        """The Parquet files among those of a stage that it did not write."""
        listed = self._listed(stage)
        globs = [*((table, "*.parquet") for table in tables), ("drops", f"{stage}-*.parquet")]
        there = [path for folder, names in globs for path in sorted((self.folder / folder).glob(names))]
        return [
            path
            for path in there
            if not path.name.startswith(".")
            and not (str(path.relative_to(self.folder)) in listed if listed else self._sums.names(path))
        ]

    def _listed(self, stage: str) -> dict[str, str]:
        """The sha256 of each file of a finished stage, by its path in the run."""
        return {file["path"]: file["sha256"] for file in self.manifest().get(stage, {}).get("files", ())}

    def files_sha(self, stage: str) -> str:
        """A digest of the files of a finished stage, by its manifest."""
        return digest([[name, sha256] for name, sha256 in self._listed(stage).items()])

    def damaged_lines(self) -> list[str]:
        """The lines of shards.jsonl and sessions.jsonl that a kill has torn or somebody has changed.

        Raises BadInput if the manifest is damaged.
        """
        places = list(self._sums.damaged_lines())
        deque(sealed_lines(self.folder / "sessions.jsonl", OLDER_SESSION, places), maxlen=0)
        return places

    # Sessions and manifest

    def add_session(self, session: Json) -> None:
        """Write down what one command asked and took. Raises CannotWrite, and BadInput if the folder is gone."""
        self.check_held()
        add_line(self.folder / "sessions.jsonl", session)

    def sessions(self, stage: str | None = None) -> list[Json]:
        """The sessions of a stage, or of all; damaged lines are passed over, see `damaged_lines`."""
        lines = sealed_lines(self.folder / "sessions.jsonl", OLDER_SESSION, [])
        return [one for one in lines if stage is None or one.get("stage") == stage]

    def manifest(self) -> dict[str, Json]:
        """The manifest by stage; empty if no stage has finished. Raises BadInput if it is damaged."""
        entries = self._entries().items()
        return {name: entry for name, entry in entries if not name.endswith(_REOPENED) and name != _OTHER_FILES}

    def other_files(self) -> Json | None:
        """What the manifest says of the files beside the tables, see `listing`; None in a run of an earlier version.

        Raises BadInput if the manifest is damaged.
        """
        return self._entries().get(_OTHER_FILES)

    def known_sums(self, name: str) -> set[str]:
        """Every sha256 that a table's file, by its path in the run, was written with. Raises as `Sums.known`."""
        return self._sums.known(self.folder / name)

    def written(self) -> list[str]:
        """The tables' files that were written or about to be, by their paths in the run. Raises as `Sums.known`."""
        return self._sums.written()

    def is_listed(self, stage: str) -> bool:
        """Whether the manifest has the files that a stage writes beside its tables as they are, or knows of none."""
        listed = self.other_files()
        return listed is None or is_listed(self.folder, stage, listed)

    def _entries(self) -> dict[str, Json]:
        remedy = "Remove it and give the run's commands again; no finished call is asked again."
        return read_stages(self.folder / "manifest.json", OLDER_MANIFEST, remedy)

    def write_manifest(self, stage: str, entry: Json | None) -> None:
        """Enter a finished stage, or with None take it out because it is being worked on again.

        With it goes what the other files of the run hold. Raises BadInput if the manifest is damaged or the folder is
        gone, CannotWrite.
        """
        self.check_held()
        entries = self._entries()
        stages = {name: old for name, old in entries.items() if name not in (stage, stage + _REOPENED)}
        if entry is not None:
            stages[stage] = entry
            stages[_OTHER_FILES] = list_files(self.folder, stage, entries.get(_OTHER_FILES, {}))
        self._write_entries(stages)

    def reopen(self, stage: str) -> None:
        """Take a stage out because its finished tables are being rewritten, and keep its entry, see `reopened`.

        So nobody takes half of them for finished, and after a kill the same command can enter the stage again.
        Raises BadInput if the manifest is damaged or the folder is gone, CannotWrite.
        """
        self.check_held()
        self._write_entries(
            {name + _REOPENED if name == stage else name: entry for name, entry in self._entries().items()}
        )

    def _write_entries(self, entries: Mapping[str, Json]) -> None:
        signature = self.folder / SIGNATURE
        with writing(signature):
            signature.unlink(missing_ok=True)  # it was given for the manifest that is being replaced
        write_stages(self.folder / "manifest.json", entries)

    def reopened(self, stage: str) -> Json | None:
        """The entry of a stage before `reopen`, if it was not entered since. Raises BadInput as `manifest` does."""
        return self._entries().get(stage + _REOPENED)

    def files(self, stage: str, tables: Sequence[str]) -> list[Json]:
        """Path, rows, bytes and sha256 of every file that a stage's manifest answers for.

        Raises BadInput if one is not as it was written.
        """
        finished = self.finished_shards(tables[-1])
        shards = [self.shard(table, index) for table in tables for index in finished]
        drops = [path for index in finished if (path := self.drops(stage, index)).exists()]
        return [
            {
                "path": str(path.relative_to(self.folder)),
                "sha256": self._sums.of(path),
                "rows": pq.read_metadata(path).num_rows,
                "bytes": path.stat().st_size,
            }
            for path in [*shards, *drops]
        ]

    def records(self, table: str, columns: list[str] | None = None) -> Iterator[Json]:
        """The rows of a table, shard by shard, in input order, as plain dicts."""
        for index in self.finished_shards(table):
            yield from self.shard_records(table, index, columns)

    def shard_records(self, table: str, index: int, columns: list[str] | None = None) -> Iterator[Json]:
        """The rows of one shard."""
        self._sums.check(self.shard(table, index))
        return _read(self.shard(table, index), columns)

    def dropped(self, stage: str, table: str) -> Iterator[Json]:
        """The drops of a stage, in input order; those of shards that are not finished do not count yet."""
        for index in self.finished_shards(table):
            yield from self.shard_drops(stage, index)

    def shard_drops(self, stage: str, index: int) -> Iterator[Json]:
        """The drops of one shard."""
        if self.drops(stage, index).exists():
            self._sums.check(self.drops(stage, index))
            yield from _read(self.drops(stage, index), None)


def open_run(folder: str) -> Run:
    """A run to read. Raises BadInput if the folder is not one."""
    run = Run(Path(folder))
    if not (run.folder / "settings.json").is_file():
        raise BadInput(folder, "no run", "the folder that was --out of a run", "Check the path.")
    return run


def _read(path: Path, columns: list[str] | None) -> Iterator[Json]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise damaged_shard(path, error) from error
