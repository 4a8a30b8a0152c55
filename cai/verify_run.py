"""Is a run what its commands wrote? Every file against the manifest, then what the files say against each other.

    settings.json, manifest.json   each record against its seal, and byte by byte as cai writes it
    the tables                     see `verify_tables`
    all other files                see `verify_others`
    the tables' rows               see `verify_rows`

Whatever lies in the folder beside these is named. Nothing is written, and no lock is taken.
"""

import fcntl
import json
import re
from pathlib import Path
from typing import Any

from cai.errors import BadInput
from cai.findings import Findings
from cai.listing import growing_files
from cai.seal import Json, stages_text
from cai.store import Run
from cai.verify_folder import NO_FILE, unopenable
from cai.verify_others import check_extra, check_others, check_texts, copies_may_be_unfinished
from cai.verify_rows import check_rows
from cai.verify_tables import check_tables, missing_tables

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
    sound = check_tables(run, settings, manifest, findings)
    check_others(run, open_stages, findings)
    for stage, belongs in settings.items():
        # A command that was killed at its very beginning has not copied them all, or not over those of the last one.
        if stage in manifest or not copies_may_be_unfinished(run, stage, belongs):
            check_texts(run, stage, belongs, findings)
    check_extra(run, settings, findings)
    for stage in settings:
        check_rows(run, stage, sound, findings)


def check_run_files(folder: Path, findings: Findings) -> None:
    """Name every file of a finished run that is not what its manifest has, and no more: the rows are not looked at."""
    if not _all_are_files(folder, findings):
        return
    run = Run(folder)
    if all(_check_canonical(folder / name, findings) for name in ("settings.json", "manifest.json")):
        settings, manifest = run.settings(), run.manifest()
        check_tables(run, settings, manifest, findings)
        check_others(run, [], findings)
        check_extra(run, settings, findings)


def _all_are_files(folder: Path, findings: Findings) -> bool:
    """Whether all that lies in a run can be opened; what cannot is named, and nothing else is looked at."""
    waiting = unopenable(folder)
    for path in waiting:
        findings.differ(path.relative_to(folder), NO_FILE, "a file")
    if waiting:
        findings.note("Nothing else was looked at.")
    return not waiting


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
        for name in missing_tables(run):
            findings.differ(name, "no such file", "a table, which shards.jsonl has")
    return not is_missing


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
