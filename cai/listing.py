"""What lies in a run beside its tables, and what each of these files held when the manifest was written.

The manifest has a record of them: of files that a stage writes whole the sha256, and of those that only ever grow
(the journal, sessions.jsonl, shards.jsonl) the sha256 of as many bytes as there were. So whoever takes a line out of
the journal, or another byte into a template's copy, is found out by `cai verify`, and the manifest alone says what the
whole run held.

What was written down once stays so: a stage writes down anew what it has itself written, and what has grown, if that
is still what it was as far as it went. A change that somebody else makes is not covered up by the next command.
"""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

from cai.ids import file_digest
from cai.seal import Json

REVIEW = ("review.jsonl", "reviews.jsonl", "review-unused.jsonl")
CALIBRATION = ("calibration.json", "reliability.svg")
_CHUNK = 1 << 20


def is_own(stage: str, name: str) -> bool:
    """Whether a stage writes this file itself, each time that it is given."""
    names = {"label": REVIEW, "calibrate": CALIBRATION}.get(stage, ())
    return name in names or name.startswith(f"inputs/{stage}/")


def fixed_files(folder: Path) -> list[str]:
    """The files of a run that are written whole, without its tables, settings.json and the manifest."""
    found = [path for path in folder.glob("inputs/*/*") if not path.name.startswith(".")]
    found += [folder / name for name in (*REVIEW, *CALIBRATION)]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file() and not path.is_symlink())


def growing_files(folder: Path) -> list[str]:
    """The files of a run to which lines are added, and nothing else is ever done."""
    found = [*folder.glob("journal/part-*.jsonl"), folder / "sessions.jsonl", folder / "shards.jsonl"]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file() and not path.is_symlink())


def list_files(folder: Path, stage: str, before: Json) -> Json:
    """The record of a run's files that `stage`, which is being finished, leaves; `before` is the one until now."""
    fixed: dict[str, str] = {name: one for name, one in before.get("fixed", {}).items() if not is_own(stage, name)}
    growing: dict[str, Json] = dict(before.get("growing", {}))
    for name in fixed_files(folder):
        if name not in fixed:
            fixed[name] = file_digest(folder / name)
    for name in growing_files(folder):
        growing[name] = _grown(folder / name, growing.get(name))
    return {"fixed": fixed, "growing": growing}


def is_listed(folder: Path, stage: str, before: Json) -> bool:
    """Whether the record has the files that a stage writes itself as they are now."""
    was = {name: one for name, one in before.get("fixed", {}).items() if is_own(stage, name)}
    return was == {name: file_digest(folder / name) for name in fixed_files(folder) if is_own(stage, name)}


def _grown(path: Path, before: Json | None) -> Json:
    with path.open("rb") as file:
        sha256, read = hash_of(file, before["bytes"] if before is not None else 0)
        if before is not None and sha256.hexdigest() != before["sha256"]:
            return before
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            read += len(chunk)
    return {"bytes": read, "sha256": sha256.hexdigest()}


def hash_of(file: BinaryIO, size: int) -> tuple[Any, int]:
    """The hash of the next `size` bytes of a file, or of those that are left, and how many these were."""
    sha256, read = hashlib.sha256(), 0
    while read < size and (chunk := file.read(min(_CHUNK, size - read))):
        sha256.update(chunk)
        read += len(chunk)
    return sha256, read
