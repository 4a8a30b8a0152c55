"""The files of a run beside its tables, against the record `other files` of the manifest, see `listing`; the copies of
the texts, against the digests that the rows carry; and whatever is none of the run's.
"""

from cai.audit import TABLES
from cai.findings import Findings
from cai.ids import digest, file_digest
from cai.listing import fixed_files, growing_files, is_own
from cai.replay import used_texts
from cai.review import as_written
from cai.seal import SIGNATURE, Json
from cai.store import Run
from cai.verify_folder import empty_folders, files_below
from cai.verify_lines import check_growing
from cai.verify_tables import name_in, tables_of


def check_others(run: Run, open_stages: list[str], findings: Findings) -> None:
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
    found = as_written(run.folder, sha256)
    if found is None:
        return False
    filled, is_saved_otherwise = found
    but = ", but for how an editor or a script has saved the lines" if is_saved_otherwise else ""
    findings.note_uncovered(
        f"review.jsonl: {filled} answers are filled in and not applied yet; else it is what cai wrote{but}."
    )
    return True


def check_texts(run: Run, stage: str, belongs: Json, findings: Findings) -> None:
    """The copies of the constitution and of the templates against the digests that every row carries."""
    texts, folder = belongs.get("texts", {}), run.folder / "inputs" / stage
    path = folder / "constitution.yaml"
    if "constitution_sha" in texts:
        if not path.is_file():
            findings.differ(name_in(run, path), "no such file", f"the copy of the constitution that cai {stage} used")
        elif (found := file_digest(path)) != texts["constitution_sha"]:
            expected = f"the constitution that cai {stage} used, with {texts['constitution_sha'][:12]}"
            findings.differ(name_in(run, path), f"a text with the sha256 {found[:12]}", expected)
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
            findings.differ(name_in(run, folder), found, expected)
        else:
            findings.looked["templates"] += len(used)


def copies_may_be_unfinished(run: Run, stage: str, belongs: Json) -> bool:
    """Whether a copy is not there yet, or still is what the manifest has of a session before."""
    folder, listed = run.folder / "inputs" / stage, (run.other_files() or {}).get("fixed", {})
    if used_texts(folder, stage, belongs.get("settings", {})) is None:
        return True
    path = folder / "constitution.yaml"
    if "constitution_sha" in belongs.get("texts", {}) and not path.is_file():
        return True
    there = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return bool(there) and all(listed.get(name_in(run, path)) == file_digest(path) for path in there)


def check_extra(run: Run, settings: dict[str, Json], findings: Findings) -> None:
    """Name whatever is none of the run's files."""
    known = {"settings.json", "manifest.json", SIGNATURE, ".lock", *growing_files(run.folder)}
    listed = run.other_files()
    if listed is None or findings.unfinished:
        known |= {name for name in fixed_files(run.folder) if any(is_own(stage, name) for stage in settings)}
    known |= set((listed or {}).get("fixed", {}))
    known |= {name_in(run, path) for stage in settings for path in tables_of(run, stage)}
    for path in files_below(run.folder):
        name = name_in(run, path)
        if path.is_symlink():
            findings.differ(name, "a link", "a file of the run, or nothing")
        elif name not in known and path.name.startswith(".") and path.name.endswith(".tmp"):
            findings.note_uncovered(f"{name} is what a killed command had begun to write; it counts for nothing.")
        elif name not in known:
            findings.differ(name, "a file that is none of this run's", "nothing here")
    # A command may be killed between making one of its folders and the first file there.
    own = {"journal", "inputs", "drops", *(table for tables in TABLES.values() for table in tables)}
    own |= {f"inputs/{stage}" for stage in TABLES}
    for path in empty_folders(run.folder):
        if name_in(run, path) not in own:
            findings.differ(name_in(run, path), "an empty folder that is none of this run's", "nothing here")
