"""Is a run what its commands wrote? Every file against the manifest, then what the files say against each other.

    settings.json, manifest.json   each record against its seal, and byte by byte as cai writes it
    the tables                     sha256, size and rows against the manifest; of a stage that is not finished, the
                                   sha256 against shards.jsonl
    all other files                against the record `other files` of the manifest, see `listing`
    the tables' rows               see `verify_rows`

Whatever lies in the folder beside these is named. Nothing is written, and no lock is taken.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cai.audit import TABLES
from cai.errors import BadInput
from cai.findings import Findings
from cai.ids import digest, file_digest
from cai.listing import fixed_files, growing_files, is_own
from cai.replay import used_texts
from cai.review import as_written
from cai.seal import SIGNATURE, Json, stages_text
from cai.store import Run
from cai.verify_lines import check_growing
from cai.verify_rows import check_rows

NO_FILE = "a named pipe or a device, which is not opened"
# The number of a process, as a lock file holds it.
_PROCESS = re.compile(rb"[1-9][0-9]{0,9}")


def verify_run(folder: Path, findings: Findings) -> None:
    """Name every difference in a run."""
    if not _all_are_files(folder, findings):
        return
    run = Run(folder)
    whole = [_check_canonical(folder / name, findings) for name in ("settings.json", "manifest.json")]
    if not all(whole):
        findings.note("Nothing else was looked at, since all else is held against these two files.")
        return
    settings, manifest = run.settings(), run.manifest()
    open_stages = [stage for stage in settings if stage not in manifest]
    findings.unfinished = bool(open_stages)
    has_manifest = _check_manifest(run, findings)
    for stage in open_stages:
        what = "is not finished: what is there was looked at, and what is missing is no difference."
        if not has_manifest:
            what = "may be finished or not, which manifest.json would say: what is there was looked at."
        findings.note(f"cai {stage} {what}")
    _check_agree(settings, manifest, findings)
    _check_stages(run, settings, findings)
    _check_lock(folder, findings)
    sound = _check_tables(run, settings, manifest, findings)
    _check_others(run, open_stages, findings)
    for stage, belongs in settings.items():
        # A command that was killed at its very beginning has not copied them all, or not over those of the last one.
        if stage in manifest or not _may_be_unfinished(run, stage, belongs):
            _check_texts(run, stage, belongs, findings)
    _check_extra(run, settings, manifest, findings)
    for stage in settings:
        check_rows(run, stage, sound, findings)


def check_run_files(folder: Path, findings: Findings) -> None:
    """Name every file of a finished run that is not what its manifest has, and no more: the rows are not looked at."""
    if not _all_are_files(folder, findings):
        return
    run = Run(folder)
    if all(_check_canonical(folder / name, findings) for name in ("settings.json", "manifest.json")):
        settings, manifest = run.settings(), run.manifest()
        _check_tables(run, settings, manifest, findings)
        _check_others(run, [], findings)
        _check_extra(run, settings, manifest, findings)


def _all_are_files(folder: Path, findings: Findings) -> bool:
    """Whether all that lies in a run can be opened; what cannot is named, and nothing else is looked at."""
    waiting = no_files(folder)
    for path in waiting:
        findings.differ(path.relative_to(folder), NO_FILE, "a file")
    if waiting:
        findings.note("Nothing else was looked at.")
    return not waiting


def no_files(folder: Path) -> list[Path]:
    """What in a folder is neither a file nor a folder, nor a link to one: who opens a named pipe waits for ever."""
    return [path for path in files_below(folder) if path.exists() and not path.is_file() and not path.is_dir()]


def _check_canonical(path: Path, findings: Findings) -> bool:
    """Whether a file of sealed records is sound, and byte by byte as it is written; with no file there is none."""
    run = Run(path.parent)
    if not path.is_file():
        return True
    try:
        run.settings() if path.name == "settings.json" else run.manifest()
        data = path.read_bytes()
        value: Any = json.loads(data)
    except BadInput as error:
        findings.refused(error)
        return False
    findings.looked["files"] += 1
    if stages_text(value) != data:
        findings.differ(path.name, "other white space or another order than cai writes", "the bytes that cai wrote")
    return True


def _check_agree(settings: dict[str, Json], manifest: dict[str, Json], findings: Findings) -> None:
    """What a stage belongs to stands in both files."""
    for stage, entry in manifest.items():
        belongs = settings.get(stage)
        if belongs is None:
            findings.differ("settings.json", f"nothing about cai {stage}", "what it belongs to, as in manifest.json")
            continue
        for name in ("settings", "models", "texts"):
            where = f"settings.json, cai {stage}"
            findings.same(where, belongs.get(name), entry.get(name), f"other {name} than in manifest.json:")


def _check_manifest(run: Run, findings: Findings) -> bool:
    """Whether no manifest.json is missing: a run has one from before its first row, and no command ever removes it."""
    if (run.folder / "manifest.json").is_file():
        return True
    begun = [*run.folder.glob("*/*.parquet"), *(run.folder / name for name in growing_files(run.folder))]
    is_missing = any(path.stat().st_size for path in begun)
    if is_missing:
        expected = "the one that cai writes before a run's first row, and never removes"
        findings.differ("manifest.json", "no such file", expected)
        for name in _missing(run):
            findings.differ(name, "no such file", "a table, which shards.jsonl has")
    return not is_missing


def _missing(run: Run) -> list[str]:
    """The tables' files that were written, or were just about to be, and are not there. A shard that is made anew may
    have no drops any more."""
    return [name for name in run.written() if not name.startswith("drops/") and not (run.folder / name).exists()]


def _check_stages(run: Run, settings: dict[str, Json], findings: Findings) -> None:
    """A stage that has worked on the run is never taken out of settings.json, nor the record of the other files out of
    a manifest that has it."""
    if not settings:
        findings.differ("settings.json", "no stage", "what each stage belongs to; a run has at least one")
    for stage in sorted({str(one.get("stage")) for one in run.sessions()} - settings.keys()):
        found = f"nothing about cai {stage}, which sessions.jsonl says has worked here"
        findings.differ("settings.json", found, "what it belongs to")
    if run.other_files() is None and any("code_sha" in entry for entry in run.manifest().values()):
        findings.differ("manifest.json", "no record of the other files", "one, as this version of cai writes it")


def _check_lock(folder: Path, findings: Findings) -> None:
    """The lock file is empty unless a process holds it, or was killed while it did: also one that had all but ended,
    or that found nothing to do in a finished run. Such a one leaves its number."""
    path = folder / ".lock"
    if not path.is_file():
        return
    findings.looked["files"] += 1
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
        except BlockingIOError:
            findings.note("A command is working on the run now: what it has half done may look like a difference.")
            return
        said = file.read(100)
    if _PROCESS.fullmatch(said):
        findings.note(f".lock: a command was killed while it worked on the run (process {said.decode()}).")
    elif said:
        expected = "an empty file (any command on the run empties it)"
        findings.differ(".lock", f"{len(said)} bytes", expected)


# Tables


def _check_tables(run: Run, settings: dict[str, Json], manifest: dict[str, Json], findings: Findings) -> set[str]:
    """The tables that are what was written, by their paths in the run."""
    sound: set[str] = set()
    for stage in settings:
        listed: dict[str, Json] = {file["path"]: file for file in manifest.get(stage, {}).get("files", ())}
        there = [path.relative_to(run.folder).as_posix() for path in _tables_of(run, stage)]
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
            findings.differ(_name(run, path), "no such file", f"the table that belongs to {last}/{path.name}")
    if (run.folder / "manifest.json").is_file():
        for name in _missing(run):
            if name.partition("/")[0] in TABLES[stage]:
                findings.note(
                    f"{name}: it is not there, though shards.jsonl has it. Either a command was killed just before it "
                    "wrote it, or removed it to make it anew; or somebody else has removed it."
                )


def _tables_of(run: Run, stage: str) -> Iterator[Path]:
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


# All other files


def _check_others(run: Run, open_stages: list[str], findings: Findings) -> None:
    """Compare the files beside the tables with what the manifest says they held."""
    listed = run.other_files()
    if listed is None:
        _check_unlisted(run, findings)
        return
    fixed, growing = listed.get("fixed", {}), listed.get("growing", {})
    for name, sha256 in fixed.items():
        path = run.folder / name
        if any(is_own(stage, name) for stage in open_stages):
            continue
        if not path.is_file():
            findings.differ(name, "no such file", "the file that manifest.json has")
            continue
        findings.looked["files"] += 1
        found = file_digest(path)
        if found != sha256 and not (name == "review.jsonl" and _is_being_filled_in(run, sha256, findings)):
            findings.differ(name, f"other bytes, with the sha256 {found[:12]}", f"the sha256 {sha256[:12]}")
    for name, was in growing.items():
        if not (run.folder / name).is_file():
            findings.differ(name, "no such file", f"{was['bytes']} bytes that manifest.json has the sha256 of")
    for name in growing_files(run.folder):
        findings.looked["files"] += 1
        if name not in growing and not open_stages:
            findings.differ(name, "a file that manifest.json does not have", "none")
        check_growing(run.folder, name, growing.get(name), not open_stages, findings)


def _check_unlisted(run: Run, findings: Findings) -> None:
    """In a run of which no stage is finished, or that an earlier version made."""
    if run.manifest():
        findings.note(
            "An earlier version of cai made this run: of the files beside the tables it wrote down no sha256, so a "
            "change in calibration.json, reliability.svg, review.jsonl or reviews.jsonl, or a line that is missing in "
            "a .jsonl file, is not found."
        )
    for name in growing_files(run.folder):
        findings.looked["files"] += 1
        check_growing(run.folder, name, None, False, findings)


def _is_being_filled_in(run: Run, sha256: str, findings: Findings) -> bool:
    """Whether review.jsonl is what cai wrote, but for answers that somebody has filled in since."""
    filled = as_written(run.folder, sha256)
    if filled is not None:
        findings.note(f"review.jsonl: {filled} answers are filled in and not applied yet; else it is what cai wrote.")
    return filled is not None


def _check_texts(run: Run, stage: str, belongs: Json, findings: Findings) -> None:
    """The copies of the constitution and of the templates against the digests that every row carries."""
    texts, folder = belongs.get("texts", {}), run.folder / "inputs" / stage
    path = folder / "constitution.yaml"
    if "constitution_sha" in texts:
        if not path.is_file():
            findings.differ(_name(run, path), "no such file", f"the copy of the constitution that cai {stage} used")
        elif (found := file_digest(path)) != texts["constitution_sha"]:
            expected = f"the constitution that cai {stage} used, with {texts['constitution_sha'][:12]}"
            findings.differ(_name(run, path), f"a text with the sha256 {found[:12]}", expected)
        else:
            findings.looked["constitutions"] += 1
    if "templates_sha" in texts:
        used = used_texts(folder, stage, belongs.get("settings", {}))
        if used is None or digest(used) != texts["templates_sha"]:
            found = (
                "templates of which one is missing"
                if used is None
                else f"templates with the digest {digest(used)[:12]}"
            )
            expected = f"those that cai {stage} used, with {texts['templates_sha'][:12]}"
            findings.differ(_name(run, folder), found, expected)
        else:
            findings.looked["templates"] += len(used)


def _may_be_unfinished(run: Run, stage: str, belongs: Json) -> bool:
    """Whether a copy is not there yet, or still is what the manifest has of a session before."""
    folder, listed = run.folder / "inputs" / stage, (run.other_files() or {}).get("fixed", {})
    if used_texts(folder, stage, belongs.get("settings", {})) is None:
        return True
    path = folder / "constitution.yaml"
    if "constitution_sha" in belongs.get("texts", {}) and not path.is_file():
        return True
    there = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return bool(there) and all(listed.get(_name(run, path)) == file_digest(path) for path in there)


def _name(run: Run, path: Path) -> str:
    return path.relative_to(run.folder).as_posix()


def _check_extra(run: Run, settings: dict[str, Json], manifest: dict[str, Json], findings: Findings) -> None:
    """Name whatever is none of the run's files."""
    known = {"settings.json", "manifest.json", SIGNATURE, ".lock", *growing_files(run.folder)}
    listed = run.other_files()
    if listed is None or findings.unfinished:
        known |= {name for name in fixed_files(run.folder) if _may_be(name, settings)}
    known |= set((listed or {}).get("fixed", {}))
    known |= {_name(run, path) for stage in settings for path in _tables_of(run, stage)}
    for path in files_below(run.folder):
        name = _name(run, path)
        if path.is_symlink():
            findings.differ(name, "a link", "a file of the run, or nothing")
        elif name not in known and path.name.startswith(".") and path.name.endswith(".tmp"):
            findings.note(f"{name} is what a killed command had begun to write; it counts for nothing.")
        elif name not in known:
            findings.differ(name, "a file that is none of this run's", "nothing here")


def _may_be(name: str, settings: dict[str, Json]) -> bool:
    return any(is_own(stage, name) for stage in settings)


def files_below(folder: Path) -> Iterator[Path]:
    """All files and links below a folder, in order; a link to a folder is a link."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(path) / name).is_symlink()]
        yield from (Path(path) / name for name in sorted([*files, *links]))
