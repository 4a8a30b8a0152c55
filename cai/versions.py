"""Versions of a dataset: OUT/v0001, OUT/v0002, ... A schedule adds to them, and none is ever written again.

Each is a whole dataset, which needs no other one to be loaded. Its card and manifest say what is new since the one
before, and changes.parquet names each row that was added, changed, moved or removed. The highest number is the latest:
there is no link or file beside them that could be wrong.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cai.dataset import CONFIGS, KIND, SPLITS, Tables, arrow_table, write_parquet
from cai.errors import BadInput
from cai.hygiene import prompt_key
from cai.ids import digest, file_digest
from cai.rows import as_messages
from cai.schemas import schema_of
from cai.seal import Json

CHANGES = ("added", "removed", "changed", "moved")
_NAME = re.compile(r"v([0-9]{4,})")
_SCHEMA = schema_of(*((name, pa.string()) for name in ("config", "split", "change", "row_id", "pair_id")))


@dataclass(frozen=True, slots=True)
class Version:
    """A version that is there. `rows` has, by config, the split and the digest of each row; `splits` the split of each
    prompt, by its key."""

    folder: Path
    manifest: Json
    rows: Mapping[str, Mapping["_Row", tuple[str, str]]]
    splits: Mapping[str, str]

    def made_like(self, manifest: Json) -> bool:
        """Whether a dataset was made by the same method."""
        names = ("method", "evaluation_sets")
        return all(json.loads(json.dumps(manifest[name])) == self.manifest.get(name) for name in names)


@dataclass(frozen=True, slots=True)
class _Row:
    """What a row is called: its ids, and what tells it from others with the same ones."""

    row_id: str
    pair_id: str
    kind: str


@dataclass(frozen=True, slots=True)
class Since:
    """The version that is being made, and the last one before it, if there is one."""

    name: str
    last: Version | None

    def splits(self) -> Mapping[str, str]:
        """The split of each prompt that has one already."""
        return self.last.splits if self.last is not None else {}

    def told(self, tables: Tables) -> tuple[Json, list[Json]]:
        """What the manifest says of the version, and the rows of changes.parquet."""
        changes = list(_changes(self.last.rows if self.last is not None else {}, tables))
        counted = Counter((row["config"], row["split"], row["change"]) for row in changes)
        counts = {
            config: {split: {change: counted[config, split, change] for change in CHANGES} for split in SPLITS}
            for config in CONFIGS
        }
        before = None
        if self.last is not None:
            before = {"name": self.last.folder.name, "content_sha": self.last.manifest["content_sha"]}
        return {"name": self.name, "before": before, "counts": counts}, changes


def write_changes(folder: Path, changes: Sequence[Json]) -> list[Json]:
    """Write changes.parquet; returns what the manifest says of it."""
    return [write_parquet(folder, folder / "changes.parquet", arrow_table(changes, _SCHEMA))]


def next_version(out: Path) -> Path:
    """The folder of the version after the last."""
    return out / f"v{max(_numbers(out), default=0) + 1:04d}"


def check_versions(out: Path) -> Json | None:
    """The manifest of the last version in a folder; None where there is none yet.

    Raises BadInput if the folder is none, or a dataset without versions, or the last version has no manifest.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BadInput(f"--out {out}", "a file or a link", "a folder", "Choose another --out.")
    if (out / "manifest.json").exists():
        found = "a dataset without versions, or a run"
        raise BadInput(f"--out {out}", found, "a folder of versions, or none yet", "Choose another --out.")
    numbers = _numbers(out)
    return _manifest(out / f"v{max(numbers):04d}") if numbers else None


def last_version(out: Path) -> Version | None:
    """The last version in a folder, read whole. Raises BadInput if it is not as it was written."""
    manifest = check_versions(out)
    if manifest is None:
        return None
    return read_version(out / f"v{max(_numbers(out)):04d}")


def read_version(folder: Path) -> Version:
    """A version, read whole. Raises BadInput if it is not as it was written."""
    manifest = _manifest(folder)
    for file in manifest["files"]:
        path = folder / file["path"]
        if not path.is_file() or file_digest(path) != file["sha256"]:
            raise _damaged(path)
    rows: dict[str, dict[_Row, tuple[str, str]]] = {config: {} for config in CONFIGS}
    splits: dict[str, str] = {}
    for config in CONFIGS:
        for split, row in _rows(folder, config):
            rows[config][_called(row, rows[config])] = split, digest(row)
            prompt = row["messages"][:-1] if config == "sft" else row["prompt"]
            splits[prompt_key(as_messages(prompt))] = split
    return Version(folder, manifest, rows, splits)


def number_of(folder: Path) -> int | None:
    """The number in a version's name; None if it is no such name."""
    name = _NAME.fullmatch(folder.name)
    return int(name[1]) if name else None


def _numbers(out: Path) -> list[int]:
    return [number for path in out.glob("v*") if (number := number_of(path)) is not None and path.is_dir()]


def _manifest(folder: Path) -> Json:
    try:
        manifest: Any = json.loads((folder / "manifest.json").read_bytes())
        if manifest["kind"] == KIND and manifest["content_sha"] and manifest["method"] and manifest["files"]:
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise _damaged(folder / "manifest.json")


def _damaged(path: Path) -> BadInput:
    remedy = "Restore that version, or move it out of the folder, or choose another --out."
    return BadInput(str(path), "a file that is not as cai export wrote it, or none", "the last version whole", remedy)


def _rows(folder: Path, config: str) -> Iterator[tuple[str, Json]]:
    for split in SPLITS:
        for path in sorted(folder.glob(f"{config}/{split}-*.parquet")):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1000):
                    yield from ((split, row) for row in batch.to_pylist())


def _called(row: Json, others: Mapping[_Row, object]) -> _Row:
    kind = f"{row.get('answer_from', '')}{row.get('label', '')}"
    name, times = _Row(row["row_id"], row.get("pair_id", ""), kind), 1
    while name in others:
        times += 1
        name = _Row(name.row_id, name.pair_id, f"{kind} {times}")
    return name


def _changes(before: Mapping[str, Mapping[_Row, tuple[str, str]]], tables: Tables) -> Iterator[Json]:
    """Each row that is not what it was, in the order of the tables; removed ones come last in their config."""
    for config in CONFIGS:
        old, seen = before.get(config, {}), dict[_Row, None]()
        for split in SPLITS:
            for row in tables[config][split]:
                name = _called(row, seen)
                seen[name] = None
                was = old.get(name)
                if was is None:
                    yield _change(config, split, "added", name)
                elif was[0] != split:
                    yield _change(config, split, "moved", name)
                elif was[1] != digest(row):
                    yield _change(config, split, "changed", name)
        yield from (_change(config, split, "removed", name) for name, (split, _) in old.items() if name not in seen)


def _change(config: str, split: str, change: str, name: _Row) -> Json:
    return {"config": config, "split": split, "change": change, "row_id": name.row_id, "pair_id": name.pair_id}
