"""The tables of a run: are they the files that were written, each of them, and no others?

sha256, size and rows are held against the manifest; of a stage that is not finished, the sha256 against shards.jsonl.
What the rows say is another matter, see `verify_rows`.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cai.audit import TABLES
from cai.findings import Findings
from cai.ids import file_digest
from cai.seal import Json
from cai.store import Run


def check_tables(run: Run, settings: dict[str, Json], manifest: dict[str, Json], findings: Findings) -> set[str]:
    """The tables that are what was written, by their paths in the run."""
    sound: set[str] = set()
    for stage in settings:
        listed: dict[str, Json] = {file["path"]: file for file in manifest.get(stage, {}).get("files", ())}
        there = [name_in(run, path) for path in tables_of(run, stage)]
        for name in sorted({*listed, *there}):
            path = run.folder / name
            if not path.is_file():
                findings.differ(name, "no such file", f"the table that manifest.json has of cai {stage}")
            elif name not in listed and stage in manifest:
                findings.differ(name, "a file that is none of this run's", "nothing here")
            elif _is_sound(run, name, listed.get(name), findings):
                sound.add(name)
        if stage not in manifest:
            _check_unlisted_tables(run, stage, findings)
    return sound


def _check_unlisted_tables(run: Run, stage: str, findings: Findings) -> None:
    """Of a stage that is not finished, a shard of which the last table is there has the others: it is the last that is
    written, and the first that is removed."""
    *others, last = TABLES[stage]
    for path in (run.shard(table, index) for index in run.finished_shards(last) for table in others):
        if not path.is_file():
            findings.differ(name_in(run, path), "no such file", f"the table that belongs to {last}/{path.name}")
    if (run.folder / "manifest.json").is_file():
        for name in missing_tables(run):
            if name.partition("/")[0] in TABLES[stage]:
                findings.note(
                    f"{name}: it is not there, though shards.jsonl has it. Either a command was killed just before it "
                    "wrote it, or removed it to make it anew; or somebody else has removed it."
                )


def tables_of(run: Run, stage: str) -> Iterator[Path]:
    """The Parquet files that lie where a stage writes its tables and drops."""
    for table in TABLES[stage]:
        yield from (run.folder / table).glob("*.parquet")
    yield from (run.folder / "drops").glob(f"{stage}-*.parquet")


def _is_sound(run: Run, name: str, listed: Json | None, findings: Findings) -> bool:
    findings.looked["files"] += 1
    sha256, known = file_digest(run.folder / name), run.known_sums(name)
    if listed is not None and sha256 != listed["sha256"]:
        findings.differ(name, f"other bytes, with the sha256 {sha256[:12]}", f"the sha256 {listed['sha256'][:12]}")
        return False
    if sha256 not in known and (known or (run.folder / "shards.jsonl").is_file()):
        findings.differ(name, f"bytes that cai has not written (sha256 {sha256[:12]})", "what shards.jsonl has of it")
        return False
    if listed is not None:
        size = (run.folder / name).stat().st_size
        is_as_long = findings.same(name, size, listed["bytes"], "so many bytes:")
        try:
            rows = pq.read_metadata(run.folder / name).num_rows
        except (pa.ArrowException, OSError):
            findings.differ(name, "no Parquet file", "a table")
            return False
        return findings.same(name, rows, listed["rows"], "so many rows:") and is_as_long
    return True


def missing_tables(run: Run) -> list[str]:
    """The tables' files that were written, or were just about to be, and are not there. A shard that is made anew may
    have no drops any more."""
    return [name for name in run.written() if not name.startswith("drops/") and not (run.folder / name).exists()]


def name_in(run: Run, path: Path) -> str:
    """A file by its path in the run, as the manifest has it."""
    return path.relative_to(run.folder).as_posix()
